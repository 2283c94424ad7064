-- Fees. A fill states each side's rate in parts per million of its notional; from it follow, as
-- columns, the fee of either side, rounded down for each fill, and what goes into escrow: the
-- notional and the buyer's fee. The seller's fee is taken from the proceeds once they are released.

ALTER TABLE fill ADD COLUMN buyer_fee_ppm integer NOT NULL DEFAULT 0;
ALTER TABLE fill ADD COLUMN seller_fee_ppm integer NOT NULL DEFAULT 0;
-- Fills until now were free of charge; from now on each must say its rates.
ALTER TABLE fill ALTER COLUMN buyer_fee_ppm DROP DEFAULT;
ALTER TABLE fill ALTER COLUMN seller_fee_ppm DROP DEFAULT;
ALTER TABLE fill ADD CONSTRAINT nobody_is_charged_above_the_limit CHECK (
    buyer_fee_ppm BETWEEN 0 AND 50000 AND seller_fee_ppm BETWEEN 0 AND 50000
);

-- numeric on the way: the product of all three leaves 64 bits.
ALTER TABLE fill DROP COLUMN amount_usdc6;
ALTER TABLE fill
    ADD COLUMN notional_usdc6 bigint NOT NULL GENERATED ALWAYS AS (price_ticks * qty_lots) STORED,
    ADD COLUMN buyer_fee_usdc6 bigint NOT NULL GENERATED ALWAYS AS (
        div(price_ticks::numeric * qty_lots * buyer_fee_ppm, 1000000)::bigint
    ) STORED,
    ADD COLUMN seller_fee_usdc6 bigint NOT NULL GENERATED ALWAYS AS (
        div(price_ticks::numeric * qty_lots * seller_fee_ppm, 1000000)::bigint
    ) STORED,
    ADD COLUMN amount_usdc6 bigint NOT NULL GENERATED ALWAYS AS (
        price_ticks * qty_lots
        + div(price_ticks::numeric * qty_lots * buyer_fee_ppm, 1000000)::bigint
    ) STORED;

-- What a fill moved from its buyer's cash to pending is what it says that it costs.
ALTER TABLE transfer ADD CONSTRAINT transfer_of_whom_and_how_much
    UNIQUE (event_number, from_account, amount_usdc6);
ALTER TABLE fill ADD CONSTRAINT booked_is_price_and_fee
    FOREIGN KEY (event_number, buyer, amount_usdc6)
    REFERENCES transfer (event_number, from_account, amount_usdc6);

DROP TRIGGER fill_is_what_was_matched ON fill;
CREATE TRIGGER fill_is_what_was_matched BEFORE UPDATE OF
    event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id, taker, maker,
    buyer, seller, price_ticks, qty_lots, buyer_fee_ppm, seller_fee_ppm
    ON fill FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
