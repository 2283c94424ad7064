-- When a seller's word is worth no more, and whether each side had signed by some time.
--
-- What is posted a day after its seller has asked for the bond, or once its seller's exit is due,
-- anybody may void at the settler's cost. So it is with orders that were taken back: what is sealed
-- until `post_until_s` is posted in time.

ALTER TABLE bond_request ADD COLUMN post_until_s bigint;
-- The bond may be taken a hundred days after it was asked for; posting is given half a day.
UPDATE bond_request SET post_until_s = bond_at_s - 100 * 86400 + 86400 - 43200;
ALTER TABLE bond_request ALTER COLUMN post_until_s SET NOT NULL;

-- Of an exit that was read before, nobody knows when it is due: none.
ALTER TABLE vault_exit ADD COLUMN post_until_s bigint,
    ADD CONSTRAINT only_a_requested_exit_falls_due
        CHECK (step = 'requested' OR post_until_s IS NULL);

-- Whose fills are sealed until then and no longer, whatever they have signed.
CREATE VIEW unbacked_seller AS
    SELECT account, post_until_s FROM bond_request
    UNION ALL
    SELECT account, coalesce(post_until_s, 0) FROM (
        SELECT DISTINCT ON (account) account, step, post_until_s
        FROM vault_exit ORDER BY account, number DESC
    ) latest WHERE step = 'requested';

-- --- which fills are covered ------------------------------------------------------------------
-- Both sides of every fill that is neither in a batch nor void: of which order it is, how much of
-- that order has been filled up to it (void fills apart), whether what its owner signed is for so
-- much, and in batches of which times it covers it.
CREATE FUNCTION signed_sides() RETURNS TABLE (
    event_number bigint, time_ns bigint, instrument bigint, price_ticks bigint, account bigint,
    is_buy boolean, order_id bigint, fee_ppm integer, filled_lots bigint, number bigint,
    is_signed boolean, post_from_s bigint, post_until_s bigint
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
    )
    SELECT s.event_number, s.time_ns, s.instrument, s.price_ticks, s.account, s.is_buy, s.order_id,
           s.fee_ppm, t.filled_lots, o.number,
           coalesce(
               o.verified AND o.is_buy = s.is_buy AND o.instrument = s.instrument
               AND CASE WHEN s.is_buy THEN s.price_ticks <= o.price_ticks
                        ELSE s.price_ticks >= o.price_ticks END
               AND t.filled_lots <= o.qty_lots AND s.fee_ppm <= o.fee_ppm_max,
               false),
           o.post_from_s, o.post_until_s
    FROM side s JOIN total t ON t.order_id = s.order_id AND t.event_number = s.event_number
    LEFT JOIN signed_order o ON o.account = s.account AND o.order_id = s.order_id
$$;

-- The same, and whether a batch that is posted now is covered.
CREATE OR REPLACE FUNCTION fill_sides(now_s bigint) RETURNS TABLE (
    event_number bigint, time_ns bigint, instrument bigint, price_ticks bigint, account bigint,
    is_buy boolean, order_id bigint, fee_ppm integer, filled_lots bigint, number bigint,
    covered boolean
) LANGUAGE sql STABLE AS $$
    WITH taken_back AS (
        SELECT account, order_id FROM order_taken_back WHERE now_s > post_until_s
    ), unbacked AS (
        SELECT account FROM unbacked_seller WHERE now_s > post_until_s
    )
    SELECT s.event_number, s.time_ns, s.instrument, s.price_ticks, s.account, s.is_buy, s.order_id,
           s.fee_ppm, s.filled_lots, s.number,
           s.is_signed AND now_s BETWEEN s.post_from_s AND s.post_until_s
               AND (s.account, s.order_id) NOT IN (TABLE taken_back)
               AND (s.is_buy OR s.account NOT IN (TABLE unbacked))
    FROM signed_sides() s
$$;
