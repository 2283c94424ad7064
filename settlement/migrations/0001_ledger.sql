-- The ledger, the fills, and what is told to the vault. Everything is in µUSDC (`_usdc6`), the one
-- asset a vault settles in; times are ns since the Unix epoch, UTC.

-- --- double entry -----------------------------------------------------------------------------
-- A transfer has one amount and two ends, so it sums to zero by its shape; which ends a kind may
-- have is checked below; balances change only through transfers; nothing is ever taken back.

CREATE TYPE bucket AS ENUM ('vault', 'cash', 'pending', 'escrow', 'leaving', 'bond');
CREATE TYPE transfer_kind AS ENUM ('deposit', 'fill', 'escrow', 'reserve', 'withdraw');

CREATE TABLE ledger_account (
    account       bigint NOT NULL CHECK (account >= 0),
    bucket        bucket NOT NULL,
    balance_usdc6 bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, bucket),
    CONSTRAINT only_the_vault_is_account_zero CHECK ((account = 0) = (bucket = 'vault')),
    CONSTRAINT no_user_bucket_is_negative CHECK (bucket = 'vault' OR balance_usdc6 >= 0),
    CONSTRAINT the_vault_owes_what_users_own CHECK (bucket <> 'vault' OR balance_usdc6 <= 0)
);
INSERT INTO ledger_account (account, bucket) VALUES (0, 'vault');

CREATE TABLE transfer (
    event_number bigint PRIMARY KEY CHECK (event_number > 0),
    shard        smallint NOT NULL CHECK (shard >= 0),
    sequence     bigint NOT NULL CHECK (sequence > 0),
    ordinal      integer NOT NULL CHECK (ordinal >= 0),
    time_ns      bigint NOT NULL,
    kind         transfer_kind NOT NULL,
    reference    bigint NOT NULL,  -- deposit number, batch id, withdrawal id; a fill's own number
    from_account bigint NOT NULL,
    from_bucket  bucket NOT NULL,
    to_account   bigint NOT NULL,
    to_bucket    bucket NOT NULL,
    amount_usdc6 bigint NOT NULL CHECK (amount_usdc6 > 0),
    UNIQUE (shard, sequence, ordinal),
    FOREIGN KEY (from_account, from_bucket) REFERENCES ledger_account (account, bucket),
    FOREIGN KEY (to_account, to_bucket) REFERENCES ledger_account (account, bucket),
    CONSTRAINT each_kind_has_its_two_ends CHECK (
        (kind, from_bucket, to_bucket) IN (
            ('deposit', 'vault', 'cash'), ('deposit', 'vault', 'bond'), ('fill', 'cash', 'pending'),
            ('escrow', 'pending', 'escrow'), ('reserve', 'cash', 'leaving'),
            ('withdraw', 'leaving', 'vault')
        )
    ),
    CONSTRAINT money_stays_with_its_owner CHECK (
        from_account = to_account OR from_bucket = 'vault' OR to_bucket = 'vault'
    )
);
-- Each deposit, each withdrawal and each buyer's part of a batch is booked once.
CREATE UNIQUE INDEX transfer_once ON transfer (kind, reference, from_account, to_account);

-- The same transfers as signed lines, for auditors: per event they sum to zero.
CREATE VIEW posting AS
    SELECT event_number, from_account AS account, from_bucket AS bucket,
           -amount_usdc6 AS amount_usdc6
    FROM transfer
    UNION ALL
    SELECT event_number, to_account, to_bucket, amount_usdc6 FROM transfer;

CREATE FUNCTION move_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger_account a
    SET balance_usdc6 = a.balance_usdc6 + moved.amount_usdc6
    FROM (
        SELECT account, bucket, sum(amount_usdc6)::bigint AS amount_usdc6 FROM (
            SELECT from_account AS account, from_bucket AS bucket, -amount_usdc6 AS amount_usdc6
            FROM added
            UNION ALL
            SELECT to_account, to_bucket, amount_usdc6 FROM added
        ) lines
        GROUP BY account, bucket
    ) moved
    WHERE a.account = moved.account AND a.bucket = moved.bucket;
    RETURN NULL;
END $$;
CREATE TRIGGER move_balances AFTER INSERT ON transfer
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION move_balances();

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the ledger only grows', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER transfer_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_account_only_grows BEFORE DELETE OR TRUNCATE ON ledger_account
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
-- Depth 1 is a statement of the caller's; the update in move_balances runs at depth 2.
CREATE TRIGGER balance_moves_by_transfer BEFORE UPDATE ON ledger_account
    FOR EACH ROW WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION refuse_change();
CREATE TRIGGER balance_starts_at_zero BEFORE INSERT ON ledger_account
    FOR EACH ROW WHEN (NEW.balance_usdc6 <> 0) EXECUTE FUNCTION refuse_change();

-- --- fills and their batches ---------------------------------------------------------------------
CREATE TABLE batch (
    id           bigint PRIMARY KEY CHECK (id > 0),
    packed       bytea NOT NULL,        -- the calldata of Vault.settle
    fills_hash   bytea NOT NULL CHECK (length(fills_hash) = 32),
    fills        integer NOT NULL CHECK (fills > 0 AND length(packed) % fills = 0),
    amount_usdc6 bigint NOT NULL CHECK (amount_usdc6 > 0),
    sealed_ns    bigint NOT NULL
);

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
    amount_usdc6   bigint NOT NULL GENERATED ALWAYS AS (price_ticks * qty_lots) STORED,
    batch_id       bigint REFERENCES batch (id),  -- null: not sealed yet
    CONSTRAINT taker_and_maker_are_buyer_and_seller CHECK (
        (taker = buyer AND maker = seller) OR (taker = seller AND maker = buyer)
    )
);
CREATE INDEX fill_unsealed ON fill (event_number) WHERE batch_id IS NULL;
CREATE INDEX fill_of_batch ON fill (batch_id, event_number);
CREATE TRIGGER fill_only_grows BEFORE DELETE OR TRUNCATE ON fill
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER fill_is_what_was_matched BEFORE UPDATE OF
    event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id, taker, maker,
    buyer, seller, price_ticks, qty_lots
    ON fill FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Accounts the vault refused to settle (exited or insolvent there). Their fills stay unsealed
-- until the row is deleted; everybody else's go on.
CREATE TABLE quarantine (
    account  bigint PRIMARY KEY,
    batch_id bigint NOT NULL,
    reason   text NOT NULL,
    time_ns  bigint NOT NULL
);

-- --- withdrawals -------------------------------------------------------------------------------
CREATE TABLE withdrawal (
    id           bigint PRIMARY KEY CHECK (id > 0),  -- the sequence of the WITHDRAW command
    account      bigint NOT NULL CHECK (account > 0),
    amount_usdc6 bigint NOT NULL CHECK (amount_usdc6 > 0)
);

-- --- what is told to the vault ------------------------------------------------------------------
-- One row per batch and per withdrawal, from its sealing to its confirmation by the engine.
CREATE TYPE outgoing_kind AS ENUM ('settle', 'withdraw');
CREATE TYPE outgoing_state AS ENUM (
    'SEALED', 'SIMULATED', 'SIGNED', 'SENT', 'MINED', 'FINAL', 'RECONCILED', 'REFUSED'
);

CREATE TABLE outgoing (
    kind         outgoing_kind NOT NULL,
    id           bigint NOT NULL,       -- batch.id or withdrawal.id
    state        outgoing_state NOT NULL DEFAULT 'SEALED',
    attempts     integer NOT NULL DEFAULT 0,  -- transactions signed for it
    nonce        bigint,
    raw          bytea,
    tx_hash      bytea,
    block_number bigint,
    block_hash   bytea,
    gas_used     bigint,
    refusal      text,
    PRIMARY KEY (kind, id),
    CONSTRAINT signed_is_stored CHECK (
        state IN ('SEALED', 'SIMULATED', 'REFUSED')
        OR (nonce IS NOT NULL AND raw IS NOT NULL AND tx_hash IS NOT NULL)
    ),
    CONSTRAINT mined_is_somewhere CHECK (
        state NOT IN ('MINED', 'FINAL', 'RECONCILED')
        OR (block_number IS NOT NULL AND block_hash IS NOT NULL)
    ),
    CONSTRAINT refused_for_a_reason CHECK ((state = 'REFUSED') = (refusal IS NOT NULL))
);
CREATE INDEX outgoing_unfinished ON outgoing (kind, id)
    WHERE state NOT IN ('RECONCILED', 'REFUSED');

CREATE FUNCTION follow_the_states() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- SIGNED and SENT fall back to SEALED when their nonce went to another transaction; from all
    -- three it is MINED when the vault turns out to have it already. MINED falls back to SENT
    -- when its block is no longer canonical. FINAL never falls back.
    IF (OLD.state, NEW.state) NOT IN (
        ('SEALED', 'SIMULATED'), ('SEALED', 'REFUSED'), ('SIMULATED', 'SIGNED'),
        ('SIGNED', 'SENT'), ('SIGNED', 'SEALED'), ('SENT', 'SEALED'), ('SENT', 'MINED'),
        ('SIGNED', 'MINED'), ('SEALED', 'MINED'), ('MINED', 'SENT'), ('MINED', 'FINAL'),
        ('FINAL', 'RECONCILED')
    ) THEN
        RAISE EXCEPTION '% % goes from % to %', OLD.kind, OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER follow_the_states BEFORE UPDATE ON outgoing
    FOR EACH ROW EXECUTE FUNCTION follow_the_states();

-- --- how far the engine's events are posted -----------------------------------------------------
CREATE TABLE watermark (
    shard        smallint PRIMARY KEY,
    event_number bigint NOT NULL CHECK (event_number >= 0),
    sequence     bigint NOT NULL CHECK (sequence >= 0),
    ordinal      integer NOT NULL,
    event        bytea NOT NULL  -- its 64 bytes: another journal is recognised by them
);
INSERT INTO watermark (shard, event_number, sequence, ordinal, event) VALUES (0, 0, 0, 0, '');
CREATE FUNCTION only_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.event_number <= OLD.event_number THEN
        RAISE EXCEPTION 'the watermark goes forward only'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER only_forward BEFORE UPDATE ON watermark
    FOR EACH ROW EXECUTE FUNCTION only_forward();
