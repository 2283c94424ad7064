-- What the engine hears of leases that are over: their cost is no escrow any more, and the bond
-- behind them is free.

-- --- leases -------------------------------------------------------------------------------------
-- The fill that a lease is, as it is needed once the fill's period may have been taken out. Null
-- where that of any fill of the batch was taken out before: of those the engine hears nothing.
ALTER TABLE lease
    ADD COLUMN buyer        bigint,
    ADD COLUMN seller       bigint,
    ADD COLUMN instrument   bigint,
    ADD COLUMN qty_lots     bigint,
    ADD COLUMN cost_usdc6   bigint,
    ADD COLUMN resold       boolean,
    ADD COLUMN ended_at_s   bigint,  -- the time of the block that says so
    ADD COLUMN counted      boolean NOT NULL DEFAULT false;  -- in ended_leases
UPDATE lease SET buyer = f.buyer, seller = f.seller, instrument = f.instrument,
                 qty_lots = f.qty_lots, cost_usdc6 = f.amount_usdc6, resold = f.resold
    FROM (SELECT *, count(*) OVER (PARTITION BY batch_id) AS there,
                 row_number() OVER (PARTITION BY batch_id ORDER BY buyer, event_number) - 1 AS place
          FROM fill WHERE batch_id IS NOT NULL) f JOIN batch ON f.batch_id = batch.id
    WHERE lease.batch_id = f.batch_id AND lease.place = f.place AND f.there = batch.fills;
-- When was not kept: so late that nothing of it can be undone once that is over.
UPDATE lease SET ended_at_s = extract(epoch FROM now())::bigint WHERE ended IS NOT NULL;
ALTER TABLE lease ADD CONSTRAINT an_end_has_its_time CHECK (
    (ended IS NULL) = (ended_at_s IS NULL) AND (ended IS NOT NULL OR NOT counted)
);
CREATE INDEX lease_over ON lease (ended_at_s) WHERE buyer IS NOT NULL AND NOT counted;

-- Of one account: what it has bought and sold in leases that are over for good. The engine takes
-- each as END_LEASES of this number: 1, 2, 3, ... in the order of when they were over, so that
-- whoever reads the chain again finds the same.
CREATE TABLE ended_leases (
    number       bigint PRIMARY KEY CHECK (number > 0),
    account      bigint NOT NULL,
    escrow_usdc6 bigint NOT NULL CHECK (escrow_usdc6 >= 0),
    bond_usdc6   bigint NOT NULL CHECK (bond_usdc6 >= 0),
    CONSTRAINT something_has_ended CHECK (escrow_usdc6 + bond_usdc6 > 0)
);
CREATE TRIGGER ended_leases_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON ended_leases
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TABLE ended_leases_booked (  -- the last one that the engine has taken
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number   bigint NOT NULL CHECK (number >= 0)
);
INSERT INTO ended_leases_booked (number) VALUES (0);

-- --- the ledger ---------------------------------------------------------------------------------
-- What the vault has moved out of an escrow is moved twice, by the vault's log and by the engine,
-- when it hears of it: first it is handed back, then it is the engine that takes it.
ALTER TABLE transfer
    DROP CONSTRAINT each_kind_has_its_two_ends,
    ADD CONSTRAINT each_kind_has_its_two_ends CHECK (CASE WHEN shard = 32767 THEN
        (kind, from_bucket, to_bucket) IN (
            ('release', 'escrow', 'earnings'), ('undo', 'earnings', 'escrow'),
            ('claim', 'escrow', 'vault'), ('claim', 'escrow', 'earnings'),
            ('annul', 'escrow', 'vault'), ('collect', 'earnings', 'vault'),
            ('slash', 'bond', 'vault'), ('unbond', 'bond', 'vault'),
            ('penalty', 'settler_bond', 'vault'), ('penalty', 'settler_bond', 'owed'),
            ('stake', 'vault', 'stakes'), ('answer', 'stakes', 'settler_bond'),
            ('refund', 'stakes', 'owed'), ('reward', 'owed', 'vault'),
            ('pledge', 'vault', 'settler_bond'), ('unpledge', 'settler_bond', 'vault'),
            ('fees', 'earnings', 'vault')
        )
        ELSE (kind, from_bucket, to_bucket) IN (
            ('fill', 'cash', 'pending'), ('escrow', 'pending', 'escrow'),
            ('deposit', 'vault', 'cash'), ('deposit', 'vault', 'bond'),
            ('reserve', 'cash', 'leaving'), ('withdraw', 'leaving', 'vault'),
            ('return', 'leaving', 'cash'), ('void', 'pending', 'cash'), ('exit', 'cash', 'vault'),
            ('handed', 'vault', 'escrow'), ('ended', 'escrow', 'vault')
        )
    END);

-- Plans are kept for as long as the connection, and made when a table may be empty: they must not
-- count on that. Here each account is looked up by its index.
CREATE OR REPLACE FUNCTION move_balances() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    missing bigint;
    lowest bigint;
BEGIN
    -- The watermark follows in the same database transaction: what is at or below it was booked.
    IF EXISTS (
        SELECT FROM added LEFT JOIN watermark w USING (shard)
        WHERE w.shard IS NULL OR (added.sequence, added.ordinal) <= (w.sequence, w.ordinal)
    ) THEN
        PERFORM refuse('booked_before: a transfer at or below its shard''s watermark');
    END IF;
    INSERT INTO booked
        SELECT kind, reference, from_account, to_account, amount_usdc6 FROM added
        WHERE shard <> 32767 AND kind <> 'fill';
    WITH entry AS (
        SELECT from_account AS account, from_bucket AS bucket, -amount_usdc6 AS amount_usdc6,
               event_number, shard, sequence, ordinal, line,
               shard = 32767 OR kind = 'handed' AS of_vault
        FROM added
        UNION ALL
        SELECT to_account, to_bucket, amount_usdc6, event_number, shard, sequence, ordinal, line,
               shard = 32767 OR kind = 'handed'
        FROM added
    ), running AS (
        SELECT account, bucket, of_vault, amount_usdc6, sum(amount_usdc6) OVER (
            PARTITION BY account, bucket ORDER BY event_number, shard, sequence, ordinal, line
            ROWS UNBOUNDED PRECEDING) AS then_usdc6
        FROM entry
    ), moved AS (
        SELECT account, bucket, sum(amount_usdc6)::bigint AS amount_usdc6,
               coalesce(sum(amount_usdc6) FILTER (WHERE of_vault), 0)::bigint AS by_vault,
               min(then_usdc6)::bigint AS lowest
        FROM running GROUP BY account, bucket
    ), changed AS (
        UPDATE ledger_account a
        SET balance_usdc6 = a.balance_usdc6 + m.amount_usdc6,
            by_vault_usdc6 = a.by_vault_usdc6 + m.by_vault
        FROM moved m WHERE a.account = m.account AND a.bucket = m.bucket
        RETURNING a.bucket, a.balance_usdc6 - m.amount_usdc6 + m.lowest AS lowest
    )
    SELECT (SELECT count(*) FROM moved) - count(*),
           min(changed.lowest) FILTER (WHERE bucket <> 'vault')
    INTO missing, lowest FROM changed;
    IF missing > 0 THEN
        PERFORM refuse('no_such_account: a transfer from or to one that was never opened');
    END IF;
    IF lowest < 0 THEN
        PERFORM refuse('no_bucket_is_negative: not between two lines of one statement either');
    END IF;
    RETURN NULL;
END $$;
