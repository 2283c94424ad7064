-- A fill whose seller had bought the hours itself: no capacity and no bond of its own stand behind
-- it, so whoever undoes it must say that it was a resale.
ALTER TABLE fill ADD COLUMN resold boolean NOT NULL DEFAULT false;

DROP TRIGGER fill_is_what_was_matched ON fill;
CREATE TRIGGER fill_is_what_was_matched BEFORE UPDATE OF
    event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id, taker, maker,
    buyer, seller, price_ticks, qty_lots, buyer_fee_ppm, seller_fee_ppm, resold
    ON fill FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
