-- The ledger for what the next vault does, and for a hundred million postings.
--
-- One vault holds one token, so a ledger is of one asset and has no column for it: another asset is
-- another vault with another database. Sums over different assets cannot be formed by mistake.
--
-- A transaction is an event of the engine (shard 0) or a log of the vault (shard 32767: sequence is
-- its block, ordinal its place there). Its lines are transfers, each of one amount and two ends, so
-- each line and thus each transaction sums to zero by its shape. What the vault does without the
-- engine becomes cash only when the engine credits it, as a deposit: until then it is the vault's.
--
-- Transfers and fills are kept in periods of consecutive event numbers. One that is over is closed
-- (its balances written down and compared) and may then be detached:
--
--     SELECT close_period(1); SELECT detach_period(1);  -- transfer_1 and fill_1 are by themselves

DROP VIEW audit;
DROP VIEW posting;
ALTER TABLE fill DROP CONSTRAINT booked_is_price_and_fee;
ALTER TABLE transfer
    DROP CONSTRAINT transfer_from_account_from_bucket_fkey,
    DROP CONSTRAINT transfer_to_account_to_bucket_fkey;
DROP INDEX transfer_once;
ALTER TABLE transfer RENAME TO transfer_before;
ALTER TABLE fill RENAME TO fill_before;
ALTER TYPE bucket RENAME TO bucket_before;
ALTER TYPE transfer_kind RENAME TO transfer_kind_before;

-- --- accounts -----------------------------------------------------------------------------------
CREATE TYPE bucket AS ENUM (
    'vault', 'cash', 'pending', 'escrow', 'leaving', 'bond', 'earnings',
    'settler_bond', 'stakes', 'owed'
);
ALTER TABLE ledger_account
    DROP CONSTRAINT only_the_vault_is_account_zero,
    DROP CONSTRAINT no_user_bucket_is_negative,
    DROP CONSTRAINT the_vault_owes_what_users_own;
DROP TRIGGER balance_starts_at_zero ON ledger_account;
ALTER TABLE ledger_account ALTER COLUMN bucket TYPE bucket USING bucket::text::bucket;
ALTER TABLE ledger_account
    -- How much of the balance the vault's own transactions are: the engine has the rest.
    ADD COLUMN by_vault_usdc6 bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT each_has_its_own_buckets CHECK (
        CASE WHEN account = 0
            THEN bucket IN ('vault', 'earnings', 'settler_bond', 'stakes', 'owed')
            ELSE bucket IN ('cash', 'pending', 'escrow', 'leaving', 'bond', 'earnings')
        END
    ),
    ADD CONSTRAINT no_bucket_is_negative CHECK (bucket = 'vault' OR balance_usdc6 >= 0),
    ADD CONSTRAINT the_vault_owes_what_is_owned CHECK (bucket <> 'vault' OR balance_usdc6 <= 0);
CREATE TRIGGER balance_starts_at_zero BEFORE INSERT ON ledger_account
    FOR EACH ROW WHEN (NEW.balance_usdc6 <> 0 OR NEW.by_vault_usdc6 <> 0)
    EXECUTE FUNCTION refuse_change();
INSERT INTO ledger_account (account, bucket)
    SELECT account, 'earnings' FROM ledger_account WHERE bucket = 'cash'
    UNION ALL
    SELECT 0, unnest('{earnings, settler_bond, stakes, owed}'::bucket[]);

-- --- transfers ----------------------------------------------------------------------------------
CREATE TYPE transfer_kind AS ENUM (
    'fill', 'deposit', 'escrow', 'reserve', 'withdraw', 'return', 'void', 'exit',
    'release', 'undo', 'claim', 'annul', 'collect', 'slash', 'penalty',
    'stake', 'answer', 'refund', 'reward', 'pledge', 'unpledge', 'unbond', 'fees'
);

CREATE TABLE transfer (
    event_number bigint NOT NULL CHECK (event_number > 0),  -- of a log: the last one booked before
    shard        smallint NOT NULL CHECK (shard >= 0),
    sequence     bigint NOT NULL CHECK (sequence > 0),
    ordinal      integer NOT NULL CHECK (ordinal >= 0),
    time_ns      bigint NOT NULL,
    kind         transfer_kind NOT NULL,
    reference    bigint NOT NULL,  -- deposit, batch, withdrawal; a fill's event; release or lease
    from_account bigint NOT NULL,
    from_bucket  bucket NOT NULL,
    to_account   bigint NOT NULL,
    to_bucket    bucket NOT NULL,
    amount_usdc6 bigint NOT NULL CHECK (amount_usdc6 > 0),
    line         smallint NOT NULL DEFAULT 0 CHECK (line >= 0),
    PRIMARY KEY (event_number, shard, sequence, ordinal, line),
    -- Those of the engine in the first list, those of the vault in the second.
    CONSTRAINT each_kind_has_its_two_ends CHECK (CASE WHEN shard = 32767 THEN
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
            ('return', 'leaving', 'cash'), ('void', 'pending', 'cash'), ('exit', 'cash', 'vault')
        )
    END),
    CONSTRAINT money_stays_with_its_owner CHECK (
        from_account = to_account OR 'vault' IN (from_bucket, to_bucket)
        OR kind IN ('release', 'undo', 'claim')
    ),
    CONSTRAINT fees_are_the_exchanges CHECK (
        (kind <> 'fees' OR from_account = 0) AND (kind <> 'collect' OR from_account > 0)
        AND (kind <> 'claim' OR to_account = 0)
    )
) PARTITION BY RANGE (event_number);

-- What the engine books once only, by its own number: each deposit, each withdrawal, each buyer's
-- part of a batch. It outlives the period it was booked in.
CREATE TABLE booked (
    kind         transfer_kind NOT NULL,
    reference    bigint NOT NULL,
    from_account bigint NOT NULL,
    to_account   bigint NOT NULL,
    amount_usdc6 bigint NOT NULL,
    CONSTRAINT transfer_once PRIMARY KEY (kind, reference, from_account, to_account)
);

-- The same transfers as signed lines, for auditors: per transaction they sum to zero.
CREATE VIEW posting AS
    SELECT event_number, shard, sequence, ordinal, line, from_account AS account,
           from_bucket AS bucket, -amount_usdc6 AS amount_usdc6
    FROM transfer
    UNION ALL
    SELECT event_number, shard, sequence, ordinal, line, to_account, to_bucket, amount_usdc6
    FROM transfer;

CREATE FUNCTION refuse(why text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', why USING ERRCODE = 'integrity_constraint_violation';
END $$;

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
               event_number, shard, sequence, ordinal, line
        FROM added
        UNION ALL
        SELECT to_account, to_bucket, amount_usdc6, event_number, shard, sequence, ordinal, line
        FROM added
    ), running AS (
        SELECT account, bucket, shard, amount_usdc6, sum(amount_usdc6) OVER (
            PARTITION BY account, bucket ORDER BY event_number, shard, sequence, ordinal, line
            ROWS UNBOUNDED PRECEDING) AS then_usdc6
        FROM entry
    ), moved AS (
        SELECT account, bucket, sum(amount_usdc6)::bigint AS amount_usdc6,
               coalesce(sum(amount_usdc6) FILTER (WHERE shard = 32767), 0)::bigint AS by_vault,
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

-- --- fills --------------------------------------------------------------------------------------
CREATE TABLE fill (
    event_number   bigint PRIMARY KEY CHECK (event_number > 0),
    sequence       bigint NOT NULL CHECK (sequence > 0),
    time_ns        bigint NOT NULL,
    instrument     bigint NOT NULL,
    taker_order_id bigint NOT NULL,
    maker_order_id bigint NOT NULL,
    taker          bigint NOT NULL,
    maker          bigint NOT NULL,
    buyer          bigint NOT NULL,
    seller         bigint NOT NULL,
    price_ticks    bigint NOT NULL CHECK (price_ticks > 0),
    qty_lots       bigint NOT NULL CHECK (qty_lots > 0),
    batch_id       bigint REFERENCES batch (id),  -- null: not sealed yet
    void_number    bigint CHECK (void_number > 0),
    buyer_fee_ppm  integer NOT NULL,
    seller_fee_ppm integer NOT NULL,
    resold         boolean NOT NULL DEFAULT false,
    notional_usdc6 bigint NOT NULL GENERATED ALWAYS AS (price_ticks * qty_lots) STORED,
    -- In two parts, because an amount times its rate leaves 64 bits; rounded down.
    buyer_fee_usdc6 bigint NOT NULL GENERATED ALWAYS AS (
        price_ticks * qty_lots / 1000000 * buyer_fee_ppm
        + price_ticks * qty_lots % 1000000 * buyer_fee_ppm / 1000000
    ) STORED,
    seller_fee_usdc6 bigint NOT NULL GENERATED ALWAYS AS (
        price_ticks * qty_lots / 1000000 * seller_fee_ppm
        + price_ticks * qty_lots % 1000000 * seller_fee_ppm / 1000000
    ) STORED,
    amount_usdc6 bigint NOT NULL GENERATED ALWAYS AS (
        price_ticks * qty_lots + price_ticks * qty_lots / 1000000 * buyer_fee_ppm
        + price_ticks * qty_lots % 1000000 * buyer_fee_ppm / 1000000
    ) STORED,
    CONSTRAINT taker_and_maker_are_buyer_and_seller CHECK (
        (taker = buyer AND maker = seller) OR (taker = seller AND maker = buyer)
    ),
    CONSTRAINT settled_or_void CHECK (batch_id IS NULL OR void_number IS NULL),
    CONSTRAINT nobody_is_charged_above_the_limit CHECK (
        buyer_fee_ppm BETWEEN 0 AND 50000 AND seller_fee_ppm BETWEEN 0 AND 50000
    )
) PARTITION BY RANGE (event_number);

-- Void numbers order the commands that undo fills: each is used once.
CREATE TABLE voided_fill (
    void_number  bigint PRIMARY KEY,
    event_number bigint NOT NULL UNIQUE
);
CREATE FUNCTION void_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.void_number IS NOT NULL THEN
        PERFORM refuse('void_once: a fill is void for good');
    END IF;
    INSERT INTO voided_fill VALUES (NEW.void_number, NEW.event_number);
    RETURN NEW;
END $$;

-- What a fill moved from its buyer's cash to pending is what it says that it costs. Its transfer is
-- found in the range of events, which is as long as what was added.
CREATE FUNCTION require_booked() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off AS $$
DECLARE
    first bigint;
    last bigint;
BEGIN
    SELECT min(event_number), max(event_number) INTO first, last FROM added;
    IF EXISTS (
        SELECT FROM added LEFT JOIN (
            SELECT * FROM transfer WHERE event_number BETWEEN first AND last AND kind = 'fill'
        ) t ON t.event_number = added.event_number
        WHERE (t.from_account, t.amount_usdc6) IS DISTINCT FROM (added.buyer, added.amount_usdc6)
    ) THEN
        PERFORM refuse('booked_is_price_and_fee: a fill of which something else was booked');
    END IF;
    RETURN NULL;
END $$;

-- Which product is traded under an instrument's number, as it was listed.
CREATE TABLE listed (
    instrument bigint PRIMARY KEY,
    product    bigint NOT NULL
);

-- --- periods ------------------------------------------------------------------------------------
CREATE TABLE period (
    number      integer PRIMARY KEY CHECK (number > 0),
    first_event bigint NOT NULL CHECK (first_event > 0),
    end_event   bigint NOT NULL CHECK (end_event > first_event),  -- the first that is not in it
    closed      boolean NOT NULL DEFAULT false,
    detached    boolean NOT NULL DEFAULT false,
    CONSTRAINT closed_before_detached CHECK (closed OR NOT detached)
);
-- What every account had when a period was over.
CREATE TABLE closing (
    period        integer NOT NULL REFERENCES period (number),
    account       bigint NOT NULL,
    bucket        bucket NOT NULL,
    balance_usdc6 bigint NOT NULL,
    PRIMARY KEY (period, account, bucket)
);
CREATE TRIGGER closing_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON closing
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The period after the last one. A partition is written to through its table alone, whose triggers
-- keep the balances.
CREATE FUNCTION open_period(events bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    next period;
    parent text;
BEGIN
    SELECT coalesce(max(number), 0) + 1, coalesce(max(end_event), 1),
           coalesce(max(end_event), 1) + events, false, false
    INTO next FROM period;
    INSERT INTO period VALUES (next.*);
    FOREACH parent IN ARRAY '{transfer,fill}'::text[] LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)',
                       parent || '_' || next.number, parent, next.first_event, next.end_event);
        EXECUTE format('CREATE TRIGGER only_through_its_table BEFORE INSERT OR UPDATE OR DELETE'
                       ' OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
                       parent || '_' || next.number);
    END LOOP;
    RETURN next.end_event;
END $$;

-- Lines of the periods that are not closed, and what was there before them.
CREATE FUNCTION opening_event() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(max(end_event), 1) FROM period WHERE closed
$$;
CREATE VIEW opening AS
    SELECT account, bucket, balance_usdc6 FROM closing
    WHERE period = (SELECT max(number) FROM period WHERE closed);

-- Whether each of its fills is in a batch, or undone: nothing will be asked of it any more.
CREATE FUNCTION is_settled(wanted integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM period p JOIN fill f
            ON f.event_number >= p.first_event AND f.event_number < p.end_event
        WHERE p.number = wanted AND f.batch_id IS NULL AND NOT EXISTS (
            SELECT FROM booked b WHERE b.kind = 'void' AND b.reference = f.event_number)
    )
$$;

CREATE FUNCTION close_period(wanted integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p period;
BEGIN
    SELECT * INTO p FROM period WHERE number = wanted;
    IF p IS NULL OR p.closed
        OR EXISTS (SELECT FROM period WHERE number < wanted AND NOT closed)
        OR p.end_event > (SELECT event_number FROM watermark WHERE shard = 0)
    THEN
        PERFORM refuse(format('period %s is not over, or not the next to close', wanted));
    END IF;
    IF NOT is_settled(wanted) THEN
        PERFORM refuse(format('period %s has fills that are neither settled nor undone', wanted));
    END IF;
    INSERT INTO closing
        SELECT wanted, account, bucket, sum(amount_usdc6)::bigint FROM (
            SELECT account, bucket, balance_usdc6 AS amount_usdc6 FROM opening
            UNION ALL
            SELECT account, bucket, amount_usdc6 FROM posting
            WHERE event_number >= p.first_event AND event_number < p.end_event
        ) line GROUP BY account, bucket;
    IF EXISTS (SELECT FROM closing WHERE period = wanted GROUP BY period
               HAVING sum(balance_usdc6) <> 0
                   OR bool_or(bucket <> 'vault' AND balance_usdc6 < 0))
        OR EXISTS (
            SELECT FROM ledger_account a
            FULL JOIN (SELECT * FROM closing WHERE period = wanted) c USING (account, bucket)
            LEFT JOIN (
                SELECT account, bucket, sum(amount_usdc6) AS amount_usdc6 FROM posting
                WHERE event_number >= p.end_event GROUP BY account, bucket
            ) later USING (account, bucket)
            WHERE a.balance_usdc6 IS DISTINCT FROM
                coalesce(c.balance_usdc6, 0) + coalesce(later.amount_usdc6, 0)
        )
    THEN
        PERFORM refuse(format('period %s does not add up', wanted));
    END IF;
    UPDATE period SET closed = true WHERE number = wanted;
END $$;

CREATE FUNCTION detach_period(wanted integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE period SET detached = true WHERE number = wanted AND closed AND NOT detached
        AND NOT EXISTS (SELECT FROM period WHERE number < wanted AND NOT detached);
    IF NOT FOUND THEN
        PERFORM refuse(format('period %s is not closed, or not the next to detach', wanted));
    END IF;
    EXECUTE format('ALTER TABLE fill DETACH PARTITION %I', 'fill_' || wanted);
    EXECUTE format('ALTER TABLE transfer DETACH PARTITION %I', 'transfer_' || wanted);
END $$;

-- --- what there is moves over -------------------------------------------------------------------
DO $$
BEGIN
    WHILE open_period(1 << 22) <= (SELECT max(event_number) FROM watermark) LOOP
    END LOOP;
END $$;
INSERT INTO transfer
    SELECT event_number, shard, sequence, ordinal, time_ns, kind::text::transfer_kind, reference,
           from_account, from_bucket::text::bucket, to_account, to_bucket::text::bucket,
           amount_usdc6, 0
    FROM transfer_before;
INSERT INTO booked
    SELECT kind, reference, from_account, to_account, amount_usdc6 FROM transfer
    WHERE kind <> 'fill';
INSERT INTO fill (event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id,
                  taker, maker, buyer, seller, price_ticks, qty_lots, batch_id, void_number,
                  buyer_fee_ppm, seller_fee_ppm, resold)
    SELECT event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id,
           taker, maker, buyer, seller, price_ticks, qty_lots, batch_id, void_number,
           buyer_fee_ppm, seller_fee_ppm, resold
    FROM fill_before;
INSERT INTO voided_fill SELECT void_number, event_number FROM fill WHERE void_number IS NOT NULL;
DROP TABLE fill_before;
DROP TABLE transfer_before;
DROP TYPE bucket_before;
DROP TYPE transfer_kind_before;
-- A shard of its own for the vault's logs.
INSERT INTO watermark (shard, event_number, sequence, ordinal, event) VALUES (32767, 0, 0, 0, '');

CREATE INDEX fill_unsealed ON fill (event_number) WHERE batch_id IS NULL;
CREATE INDEX fill_of_batch ON fill (batch_id, event_number) WHERE batch_id IS NOT NULL;

CREATE TRIGGER move_balances AFTER INSERT ON transfer
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION move_balances();
CREATE TRIGGER transfer_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER booked_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON booked
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER require_booked AFTER INSERT ON fill
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION require_booked();
CREATE TRIGGER fill_only_grows BEFORE DELETE OR TRUNCATE ON fill
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER fill_is_what_was_matched BEFORE UPDATE OF
    event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id, taker, maker,
    buyer, seller, price_ticks, qty_lots, buyer_fee_ppm, seller_fee_ppm, resold
    ON fill FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER void_once BEFORE UPDATE ON fill
    FOR EACH ROW WHEN (NEW.void_number IS DISTINCT FROM OLD.void_number)
    EXECUTE FUNCTION void_once();

CREATE OR REPLACE FUNCTION only_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (CASE WHEN NEW.shard = 32767
        THEN (NEW.sequence, NEW.ordinal) <= (OLD.sequence, OLD.ordinal)
            OR NEW.event_number < OLD.event_number
        ELSE NEW.event_number <= OLD.event_number
    END) THEN
        PERFORM refuse('the watermark goes forward only');
    END IF;
    RETURN NEW;
END $$;

-- --- the audit ----------------------------------------------------------------------------------
-- As before, from the closing of the last period that is over. A detached one is audited by it.
CREATE VIEW audit AS
    WITH line AS (
        SELECT * FROM posting WHERE event_number >= (SELECT opening_event())
        UNION ALL
        SELECT 0, 0, 0, 0, 0, account, bucket, balance_usdc6 FROM opening
    ), total AS (
        SELECT account, bucket, sum(amount_usdc6) AS lines_usdc6 FROM line
        GROUP BY account, bucket
    )
    SELECT 'each line is of an account that there is' AS claim, count(*) AS contradicting
    FROM line LEFT JOIN ledger_account USING (account, bucket) WHERE balance_usdc6 IS NULL
    UNION ALL
    SELECT 'all balances sum to zero', abs(coalesce(sum(balance_usdc6), 0))::bigint
    FROM ledger_account
    UNION ALL
    SELECT 'each balance is the sum of its lines', count(*)
    FROM ledger_account LEFT JOIN total USING (account, bucket)
    WHERE balance_usdc6 <> coalesce(lines_usdc6, 0)
    UNION ALL
    SELECT 'after no line was a bucket below zero', count(*) FROM (
        SELECT bucket, sum(amount_usdc6) OVER (
            PARTITION BY account, bucket ORDER BY event_number, shard, sequence, ordinal, line
        ) AS then_usdc6
        FROM line
    ) history
    WHERE bucket <> 'vault' AND then_usdc6 < 0
    UNION ALL
    SELECT 'what is owned came in and has not left',
        abs(coalesce(sum(balance_usdc6) FILTER (WHERE bucket <> 'vault'), 0)
            + (SELECT coalesce(sum(amount_usdc6), 0) FROM line WHERE bucket = 'vault'))::bigint
    FROM ledger_account
    UNION ALL
    SELECT 'each fill was booked at its price and fee, and nothing else as a fill', count(*)
    FROM (SELECT * FROM fill WHERE event_number >= (SELECT opening_event())) fill
    FULL JOIN (
        SELECT * FROM transfer
        WHERE kind = 'fill' AND event_number >= (SELECT opening_event())
    ) booked USING (event_number)
    WHERE (fill.buyer, fill.amount_usdc6)
        IS DISTINCT FROM (booked.from_account, booked.amount_usdc6);
