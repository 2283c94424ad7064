-- What the vault says of itself in final blocks, and what it is told beside batches and
-- withdrawals.
-- Every row here follows from the vault's logs and from what was sealed here, so that whoever reads
-- the chain again finds the same.

-- --- how far the vault's logs are read --------------------
CREATE TABLE vault_seen (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    block_number bigint NOT NULL CHECK (block_number >= 0)
);
INSERT INTO vault_seen (block_number) VALUES (0);

CREATE TABLE vault_owner (
    account bigint PRIMARY KEY CHECK (account > 0),
    owner   bytea NOT NULL UNIQUE CHECK (length(owner) = 20)
);

-- --- money that became free in the vault without the engine's doing --------------------
-- The engine credits each as a DEPOSIT of this number: 1, 2, 3, ... in the order of the logs.
CREATE TYPE credit_kind AS ENUM (
    'deposit', 'collected', 'claimed', 'voided', 'penalty', 'slashed'
);
CREATE TABLE vault_credit (
    number       bigint PRIMARY KEY CHECK (number > 0),
    kind         credit_kind NOT NULL,
    account      bigint NOT NULL REFERENCES vault_owner (account),
    is_bond      boolean NOT NULL CHECK (NOT is_bond OR kind = 'deposit'),
    amount_usdc6 bigint NOT NULL CHECK (amount_usdc6 > 0),
    deposit      bigint UNIQUE,  -- the vault's own number of it
    block_number bigint NOT NULL,
    CONSTRAINT deposits_have_the_vaults_number CHECK ((kind = 'deposit') = (deposit IS NOT NULL))
);
CREATE TRIGGER vault_credit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON vault_credit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- --- what wallets have told the vault --------------------
-- Whoever has asked for the bond back sells nothing more: what is sold from a day later on is void.
CREATE TABLE bond_request (
    account   bigint PRIMARY KEY,
    bond_at_s bigint NOT NULL
);
-- Orders with lower numbers, and those that a key has signed, count no more in batches posted from
-- then on; batches that are sealed until `post_until_s` are posted in time.
CREATE TABLE cancelled_below (
    account      bigint NOT NULL,
    below        bigint NOT NULL,
    post_until_s bigint NOT NULL,
    PRIMARY KEY (account, below)
);
CREATE TABLE revoked_key (
    owner        bytea NOT NULL,  -- who may have an account only later
    key          bytea NOT NULL,
    post_until_s bigint NOT NULL,
    PRIMARY KEY (owner, key)
);

-- --- leases --------------------
-- A fill of a settled batch, by its place in it. Times are Unix seconds.
CREATE TABLE release (
    id       bigint PRIMARY KEY CHECK (id > 0),
    batch_id bigint NOT NULL REFERENCES batch (id),
    accounts bytea NOT NULL,  -- as the vault takes them
    records  bytea NOT NULL
);
CREATE TYPE lease_end AS ENUM ('released', 'claimed', 'void');
CREATE TABLE lease (
    batch_id      bigint NOT NULL REFERENCES batch (id),
    place         integer NOT NULL CHECK (place >= 0),
    posted_at_s   bigint NOT NULL,
    due_at_s      bigint NOT NULL,  -- when it may be released, unless its buyer says otherwise
    stopped_at_s  bigint,
    reported_at_s bigint,
    disputes      integer NOT NULL DEFAULT 0 CHECK (disputes >= 0),  -- open ones
    release_id    bigint REFERENCES release (id),  -- chosen for it; null again if it was undone
    ended         lease_end,  -- as the vault has logged it
    PRIMARY KEY (batch_id, place)
);
CREATE INDEX lease_due ON lease (batch_id, place) WHERE release_id IS NULL AND ended IS NULL;

-- Questions about fills, each to be answered with both orders within half a day.
CREATE TABLE challenge (
    id         bigint PRIMARY KEY CHECK (id > 0),  -- in the order of the logs
    batch_id   bigint NOT NULL,
    place      integer NOT NULL,
    bought     bigint NOT NULL,
    sold       bigint NOT NULL,
    asked_at_s bigint NOT NULL,
    answered   boolean NOT NULL DEFAULT false,
    UNIQUE (batch_id, place, bought, sold),
    FOREIGN KEY (batch_id, place) REFERENCES lease (batch_id, place)
);

-- --- told to the vault --------------------
CREATE TABLE collection (
    id           bigint PRIMARY KEY CHECK (id > 0),
    account      bigint NOT NULL CHECK (account > 0),
    matured_usdc6 bigint NOT NULL CHECK (matured_usdc6 > 0)
);
CREATE TABLE heartbeat (
    id      bigint PRIMARY KEY CHECK (id > 0),
    heard_s bigint NOT NULL  -- of the sign of life before it
);
