-- What is told to the vault, in full: every transaction that was ever signed, who may write, and
-- which block was final. A value added to a type cannot be named in the transaction that adds it,
-- hence `::text`; the bodies of functions are read when they are first run.

ALTER TYPE outgoing_state ADD VALUE 'SAFE' AFTER 'MINED';
ALTER TYPE outgoing_kind ADD VALUE 'release';    -- leases paid out of escrow
ALTER TYPE outgoing_kind ADD VALUE 'collect';    -- an account's matured earnings made free
ALTER TYPE outgoing_kind ADD VALUE 'answer';     -- the orders behind a fill that was asked about
ALTER TYPE outgoing_kind ADD VALUE 'heartbeat';  -- nothing to settle, but somebody is there

-- --- the one writer ---------------------------------------------------------------------------
-- Whoever begins to write takes the next token, and each transaction that writes checks that its
-- token is still the newest: who has lost the lock without noticing stores nothing more.
CREATE TABLE fence (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    token bigint NOT NULL CHECK (token >= 0)
);
INSERT INTO fence (token) VALUES (0);

-- --- attempts ---------------------------------------------------------------------------------
CREATE TYPE attempt_outcome AS ENUM (
    'OPEN',       -- not mined, as far as is known
    'SUCCEEDED',
    'REVERTED',   -- mined without effect
    'OVERTAKEN'   -- its nonce went to another transaction
);

CREATE TABLE attempt (
    tx_hash      bytea PRIMARY KEY CHECK (length(tx_hash) = 32),
    kind         outgoing_kind NOT NULL,
    id           bigint NOT NULL,
    nonce        bigint NOT NULL CHECK (nonce >= 0),
    fee_cap_wei  bigint NOT NULL CHECK (fee_cap_wei >= 0),  -- per gas; 0: signed before it was kept
    tip_wei      bigint NOT NULL CHECK (tip_wei BETWEEN 0 AND fee_cap_wei),
    raw          bytea NOT NULL,
    signed_ns    bigint NOT NULL,
    outcome      attempt_outcome NOT NULL DEFAULT 'OPEN',
    block_number bigint,
    block_hash   bytea,
    gas_used     bigint,
    CONSTRAINT mined_attempts_are_somewhere
        CHECK ((outcome IN ('SUCCEEDED', 'REVERTED')) = (block_hash IS NOT NULL))
);
CREATE INDEX attempt_by_nonce ON attempt (nonce, fee_cap_wei);
CREATE INDEX attempt_of_row ON attempt (kind, id);

INSERT INTO attempt
    SELECT tx_hash, kind, id, nonce, 0, 0, raw, 0,
           (CASE WHEN mined THEN 'SUCCEEDED' ELSE 'OPEN' END)::attempt_outcome,
           CASE WHEN mined THEN block_number END, CASE WHEN mined THEN block_hash END,
           CASE WHEN mined THEN gas_used END
    FROM (
        SELECT *, state::text IN ('MINED', 'FINAL', 'RECONCILED') AS mined
        FROM outgoing WHERE raw IS NOT NULL
    ) signed;

CREATE TRIGGER attempt_only_grows BEFORE DELETE OR TRUNCATE ON attempt
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER attempt_is_what_was_signed BEFORE UPDATE OF
    tx_hash, kind, id, nonce, fee_cap_wei, tip_wei, raw, signed_ns
    ON attempt FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION outbid_the_last() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Pools take a replacement if both fees are a tenth higher; an eighth leaves no doubt.
    IF EXISTS (
        SELECT FROM attempt WHERE nonce = NEW.nonce
        AND ((kind, id) <> (NEW.kind, NEW.id)
             OR fee_cap_wei >= NEW.fee_cap_wei
             OR 9::numeric * fee_cap_wei > 8::numeric * NEW.fee_cap_wei
             OR 9::numeric * tip_wei > 8::numeric * NEW.tip_wei)
    ) THEN
        RAISE EXCEPTION 'nonce %: one row''s, and each attempt an eighth above the last', NEW.nonce
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER outbid_the_last BEFORE INSERT ON attempt
    FOR EACH ROW EXECUTE FUNCTION outbid_the_last();

-- Nonces of the settler's key that no transaction of ours has used: somebody else has the key.
CREATE TABLE foreign_nonce (
    nonce        bigint PRIMARY KEY,
    block_number bigint NOT NULL,  -- by whose end it was used
    noticed_ns   bigint NOT NULL
);

-- --- the states -------------------------------------------------------------------------------
ALTER TABLE outgoing DROP CONSTRAINT signed_is_stored;
ALTER TABLE outgoing DROP COLUMN raw, DROP COLUMN tx_hash;
ALTER TABLE outgoing ADD CONSTRAINT signed_has_a_nonce CHECK (
    state IN ('SEALED', 'SIMULATED') OR state >= 'REFUSED' OR nonce IS NOT NULL
);
ALTER TABLE outgoing DROP CONSTRAINT mined_is_somewhere;
ALTER TABLE outgoing ADD CONSTRAINT mined_is_somewhere CHECK (
    state::text NOT IN ('MINED', 'SAFE', 'FINAL', 'RECONCILED')
    OR (block_number IS NOT NULL AND block_hash IS NOT NULL)
);

CREATE OR REPLACE FUNCTION follow_the_states() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Onwards one by one. SENT goes back to SIGNED when it is signed again for a higher fee;
    -- SIGNED and SENT to SEALED when their nonce is spent without effect; all that are not mined
    -- yet are MINED when the vault turns out to have it already; MINED and SAFE go back to SENT
    -- when their block is no longer canonical. FINAL never goes back.
    IF (OLD.state::text, NEW.state::text) NOT IN (
        ('SEALED', 'SIMULATED'), ('SIMULATED', 'SIGNED'), ('SIGNED', 'SENT'), ('SENT', 'MINED'),
        ('MINED', 'SAFE'), ('SAFE', 'FINAL'), ('FINAL', 'RECONCILED'),
        ('SEALED', 'REFUSED'), ('REFUSED', 'RETURNED'), ('SENT', 'SIGNED'),
        ('SIGNED', 'SEALED'), ('SENT', 'SEALED'), ('SEALED', 'MINED'), ('SIGNED', 'MINED'),
        ('MINED', 'SENT'), ('SAFE', 'SENT')
    ) THEN
        RAISE EXCEPTION '% % goes from % to %', OLD.kind, OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- --- finality ---------------------------------------------------------------------------------
-- The newest block that was final when something followed from it. Should the chain have another
-- one in its place some day, then what the engine was told of is no longer so.
CREATE TABLE final_block (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    number bigint NOT NULL CHECK (number >= 0),
    hash   bytea NOT NULL CHECK (length(hash) = 32)
);
