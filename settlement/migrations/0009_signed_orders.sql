-- Orders as their owners have signed them, and which fills they cover. What is here was checked
-- before it was written: who signed, with which key, and that the key may trade.

-- A key that has signed: the wallet's own (no signature of its own), or one that the wallet let
-- trade, by what it signed then.
CREATE TABLE signing_key (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account       bigint NOT NULL CHECK (account > 0),
    key           bytea NOT NULL CHECK (length(key) = 20),
    scopes        smallint NOT NULL,
    markets_hash  bytea NOT NULL CHECK (length(markets_hash) = 32),
    valid_from_s  bigint NOT NULL,
    valid_until_s bigint NOT NULL,
    nonce         bigint NOT NULL,
    signature     bytea NOT NULL CHECK (length(signature) IN (0, 65)),
    UNIQUE (account, key, nonce)
);

-- One signature: over the only order, or over the root of the tree whose leaves are the orders'
-- hashes in this order. A path to the root follows from them, so none is kept.
CREATE TABLE order_root (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account     bigint NOT NULL CHECK (account > 0),
    signing_key bigint NOT NULL REFERENCES signing_key (id),
    leaves      bytea NOT NULL CHECK (length(leaves) > 0 AND length(leaves) % 32 = 0),
    signature   bytea NOT NULL CHECK (length(signature) = 65),
    time_ns     bigint NOT NULL
);

-- An order of the engine's (account, order_id) and what its owner signed for it under a number of
-- its own choice. Signed anew it only gets wider: every fill that was covered stays so.
CREATE TABLE signed_order (
    account       bigint NOT NULL CHECK (account > 0),
    order_id      bigint NOT NULL CHECK (order_id > 0),
    number        bigint NOT NULL CHECK (number BETWEEN 1 AND 4294967295),
    verified      boolean NOT NULL,  -- by its owner's key, or one that may trade for it
    instrument    bigint NOT NULL,
    is_buy        boolean NOT NULL,
    series        integer NOT NULL CHECK (series BETWEEN 1 AND 65535),
    delivery      integer NOT NULL CHECK (delivery BETWEEN 0 AND 16777215),  -- its window
    price_ticks   bigint NOT NULL CHECK (price_ticks BETWEEN 0 AND 4294967295),
    qty_lots      bigint NOT NULL CHECK (qty_lots BETWEEN 1 AND 4294967295),
    fee_ppm_max   integer NOT NULL CHECK (fee_ppm_max BETWEEN 0 AND 65535),
    valid_until_s bigint NOT NULL CHECK (valid_until_s >= 0),
    root          bigint NOT NULL REFERENCES order_root (id),
    place         integer NOT NULL CHECK (place >= 0),  -- among the root's leaves
    -- A batch posted within these times can be answered for: with order, key, and time to spare.
    post_from_s   bigint NOT NULL,
    post_until_s  bigint NOT NULL,
    PRIMARY KEY (account, order_id),
    UNIQUE (account, number)
);
CREATE TRIGGER signed_order_only_grows BEFORE DELETE OR TRUNCATE ON signed_order
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER order_root_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON order_root
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER signing_key_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON signing_key
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION only_wider() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.account, NEW.order_id, NEW.number, NEW.instrument, NEW.is_buy, NEW.series, NEW.delivery)
        IS DISTINCT FROM (OLD.account, OLD.order_id, OLD.number, OLD.instrument, OLD.is_buy,
                          OLD.series, OLD.delivery)
        OR NEW.qty_lots < OLD.qty_lots OR NEW.fee_ppm_max < OLD.fee_ppm_max
        OR NEW.post_from_s > OLD.post_from_s
        OR (CASE WHEN OLD.is_buy THEN NEW.price_ticks < OLD.price_ticks
                ELSE NEW.price_ticks > OLD.price_ticks END)
    THEN
        RAISE EXCEPTION 'order % of account % was signed for more', OLD.number, OLD.account
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER only_wider BEFORE UPDATE ON signed_order
    FOR EACH ROW EXECUTE FUNCTION only_wider();

-- --- orders that were taken back ----------------------------------------------------------------
CREATE INDEX order_root_by_key ON order_root (signing_key);
-- By what their owners have told the vault, of orders that their own terms would still let settle.
CREATE VIEW order_taken_back AS
    SELECT o.account, o.order_id, c.post_until_s
    FROM cancelled_below c JOIN signed_order o ON o.account = c.account AND o.number < c.below
    UNION ALL
    SELECT o.account, o.order_id, r.post_until_s
    FROM revoked_key r JOIN vault_owner v USING (owner)
    JOIN signing_key k ON k.account = v.account AND k.key = r.key
    JOIN order_root t ON t.signing_key = k.id
    JOIN signed_order o ON o.root = t.id;

-- --- what was filled in periods that are detached -----------------------------------------------
-- Of orders that may be filled again.
CREATE TABLE filled_before (
    order_id bigint PRIMARY KEY,
    qty_lots bigint NOT NULL CHECK (qty_lots > 0)
);
CREATE FUNCTION carry_filled() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    then_s bigint;  -- no batch is posted before it any more
BEGIN
    SELECT max(time_ns) / 1000000000 INTO then_s FROM fill
    WHERE event_number >= NEW.first_event AND event_number < NEW.end_event;
    DELETE FROM filled_before f USING signed_order o
        WHERE o.order_id = f.order_id AND o.post_until_s < then_s;
    INSERT INTO filled_before AS f
        SELECT o.order_id, sum(went.qty_lots) FROM fill went
        CROSS JOIN LATERAL (VALUES (taker_order_id), (maker_order_id)) side (order_id)
        JOIN signed_order o USING (order_id)
        WHERE went.event_number >= NEW.first_event AND went.event_number < NEW.end_event
            AND went.void_number IS NULL AND o.post_until_s >= then_s
        GROUP BY o.order_id
        ON CONFLICT (order_id) DO UPDATE SET qty_lots = f.qty_lots + EXCLUDED.qty_lots;
    RETURN NEW;
END $$;
CREATE TRIGGER carry_filled BEFORE UPDATE OF detached ON period
    FOR EACH ROW WHEN (NEW.detached AND NOT OLD.detached) EXECUTE FUNCTION carry_filled();

-- --- which fills are covered ------------------------------------------------------------------
CREATE INDEX fill_of_taker ON fill (taker_order_id);
CREATE INDEX fill_of_maker ON fill (maker_order_id);

-- Both sides of every fill that is neither in a batch nor void: of which order it is, how much of
-- that order has been filled up to it (void fills apart), and whether what its owner signed covers
-- it, in a batch that is posted now.
CREATE FUNCTION fill_sides(now_s bigint) RETURNS TABLE (
    event_number bigint, time_ns bigint, instrument bigint, price_ticks bigint, account bigint,
    is_buy boolean, order_id bigint, fee_ppm integer, filled_lots bigint, number bigint,
    covered boolean
) LANGUAGE sql STABLE AS $$
    WITH side AS (
        SELECT f.event_number, f.time_ns, f.instrument, f.price_ticks, s.*
        FROM fill f CROSS JOIN LATERAL (VALUES
            (f.buyer, true, f.buyer_fee_ppm,
             CASE WHEN f.taker = f.buyer THEN f.taker_order_id ELSE f.maker_order_id END),
            (f.seller, false, f.seller_fee_ppm,
             CASE WHEN f.taker = f.seller THEN f.taker_order_id ELSE f.maker_order_id END)
        ) s (account, is_buy, fee_ppm, order_id)
        WHERE f.batch_id IS NULL AND f.void_number IS NULL
    ), named AS (
        SELECT DISTINCT side.order_id FROM side
    ), line AS (
        SELECT n.order_id, f.event_number, f.qty_lots
        FROM named n JOIN fill f ON f.taker_order_id = n.order_id WHERE f.void_number IS NULL
        UNION ALL
        SELECT n.order_id, f.event_number, f.qty_lots
        FROM named n JOIN fill f ON f.maker_order_id = n.order_id WHERE f.void_number IS NULL
    ), total AS (
        SELECT line.order_id, line.event_number, coalesce(before.qty_lots, 0)
            + sum(line.qty_lots) OVER (
                PARTITION BY line.order_id ORDER BY line.event_number)::bigint AS filled_lots
        FROM line LEFT JOIN filled_before before USING (order_id)
    ), taken_back AS (
        SELECT account, order_id FROM order_taken_back WHERE now_s > post_until_s
    )
    SELECT s.event_number, s.time_ns, s.instrument, s.price_ticks, s.account, s.is_buy, s.order_id,
           s.fee_ppm, t.filled_lots, o.number,
           coalesce(
               o.verified AND o.is_buy = s.is_buy AND o.instrument = s.instrument
               AND CASE WHEN s.is_buy THEN s.price_ticks <= o.price_ticks
                        ELSE s.price_ticks >= o.price_ticks END
               AND t.filled_lots <= o.qty_lots AND s.fee_ppm <= o.fee_ppm_max
               AND now_s BETWEEN o.post_from_s AND o.post_until_s
               AND (s.account, s.order_id) NOT IN (TABLE taken_back),
               false)
    FROM side s JOIN total t ON t.order_id = s.order_id AND t.event_number = s.event_number
    LEFT JOIN signed_order o ON o.account = s.account AND o.order_id = s.order_id
$$;

-- The fills that may be sealed now, with the numbers of both orders: each side has signed for it.
-- Hours sold again wait for the purchases that they came from; were one of those void later, there
-- would be nothing to deliver.
CREATE FUNCTION sealable_fills(now_s bigint) RETURNS TABLE (
    event_number bigint, buyer_number bigint, seller_number bigint
) LANGUAGE sql STABLE AS $$
    -- Gathered, not joined with itself: the planner takes so few for covered that it would compare
    -- each with each.
    WITH both_covered AS (
        SELECT s.event_number, max(s.number) FILTER (WHERE s.is_buy) AS buyer_number,
               max(s.number) FILTER (WHERE NOT s.is_buy) AS seller_number
        FROM fill_sides(now_s) s WHERE s.covered GROUP BY s.event_number HAVING count(*) = 2
    )
    SELECT c.event_number, c.buyer_number, c.seller_number
    FROM both_covered c JOIN fill f USING (event_number)
    WHERE NOT (f.resold AND EXISTS (
          SELECT FROM fill bought
          WHERE bought.buyer = f.seller AND bought.instrument = f.instrument
            AND bought.event_number < f.event_number
            AND bought.batch_id IS NULL AND bought.void_number IS NULL))
$$;

-- --- who does not sign ------------------------------------------------------------------------
-- Fills that were undone because one side had not signed for them, and by whom.
CREATE TABLE withheld (
    event_number bigint NOT NULL,
    account      bigint NOT NULL CHECK (account > 0),
    time_ns      bigint NOT NULL,
    PRIMARY KEY (event_number, account)
);
CREATE INDEX withheld_by ON withheld (account, time_ns);
