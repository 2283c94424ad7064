-- Wallets that leave the vault by themselves, withdrawals that come back, fills that are undone.
-- A value added to a type cannot be named in the transaction that adds it, hence `::text` and `>=`.

ALTER TYPE transfer_kind ADD VALUE 'return';  -- a refused withdrawal: leaving -> cash
ALTER TYPE transfer_kind ADD VALUE 'void';    -- a fill that will not be settled: pending -> cash
ALTER TYPE transfer_kind ADD VALUE 'exit';    -- taken by its owner without us: cash -> vault
ALTER TABLE transfer DROP CONSTRAINT each_kind_has_its_two_ends;
ALTER TABLE transfer ADD CONSTRAINT each_kind_has_its_two_ends CHECK (
    (kind::text, from_bucket, to_bucket) IN (
        ('deposit', 'vault', 'cash'), ('deposit', 'vault', 'bond'), ('fill', 'cash', 'pending'),
        ('escrow', 'pending', 'escrow'), ('reserve', 'cash', 'leaving'),
        ('withdraw', 'leaving', 'vault'), ('return', 'leaving', 'cash'),
        ('void', 'pending', 'cash'), ('exit', 'cash', 'vault')
    )
);

-- --- exits ------------------------------------------------------------------------------------
CREATE TYPE exit_step AS ENUM ('requested', 'cancelled', 'finished');

-- What the vault has logged in final blocks; the vault numbers them, so none can be missing. The
-- highest number is where reading goes on.
CREATE TABLE vault_exit (
    number       bigint PRIMARY KEY CHECK (number > 0),
    account      bigint NOT NULL CHECK (account > 0),
    step         exit_step NOT NULL,
    amount_usdc6 bigint NOT NULL CHECK (amount_usdc6 >= 0),
    block_number bigint NOT NULL,
    CONSTRAINT only_a_finished_exit_takes_money CHECK (step = 'finished' OR amount_usdc6 = 0)
);
CREATE INDEX vault_exit_of_account ON vault_exit (account, number);
CREATE TRIGGER vault_exit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON vault_exit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Accounts that the engine has closed; `emptied` once no order of theirs is left.
CREATE TABLE closed_account (
    account bigint PRIMARY KEY,
    emptied boolean NOT NULL
);

-- A fill is in a batch or void, never both. Void numbers order the commands that undo them.
ALTER TABLE fill ADD COLUMN void_number bigint UNIQUE CHECK (void_number > 0);
ALTER TABLE fill ADD CONSTRAINT settled_or_void CHECK (batch_id IS NULL OR void_number IS NULL);

-- --- refused withdrawals ----------------------------------------------------------------------
ALTER TYPE outgoing_state ADD VALUE 'RETURNED' AFTER 'REFUSED';
ALTER TABLE outgoing DROP CONSTRAINT signed_is_stored;
ALTER TABLE outgoing ADD CONSTRAINT signed_is_stored CHECK (
    state IN ('SEALED', 'SIMULATED') OR state >= 'REFUSED'
    OR (nonce IS NOT NULL AND raw IS NOT NULL AND tx_hash IS NOT NULL)
);
ALTER TABLE outgoing DROP CONSTRAINT refused_for_a_reason;
ALTER TABLE outgoing ADD CONSTRAINT refused_for_a_reason
    CHECK ((state >= 'REFUSED') = (refusal IS NOT NULL));

CREATE OR REPLACE FUNCTION follow_the_states() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- SIGNED and SENT fall back to SEALED when their nonce went to another transaction; from all
    -- three it is MINED when the vault turns out to have it already. MINED falls back to SENT
    -- when its block is no longer canonical. FINAL never falls back.
    IF (OLD.state, NEW.state) NOT IN (
        ('SEALED', 'SIMULATED'), ('SEALED', 'REFUSED'), ('SIMULATED', 'SIGNED'),
        ('SIGNED', 'SENT'), ('SIGNED', 'SEALED'), ('SENT', 'SEALED'), ('SENT', 'MINED'),
        ('SIGNED', 'MINED'), ('SEALED', 'MINED'), ('MINED', 'SENT'), ('MINED', 'FINAL'),
        ('FINAL', 'RECONCILED'), ('REFUSED', 'RETURNED')
    ) THEN
        RAISE EXCEPTION '% % goes from % to %', OLD.kind, OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
