-- Which orders are known to be signed by who placed them, and under which number.
CREATE TABLE signed_order (
    account  bigint NOT NULL,
    order_id bigint NOT NULL,
    number   bigint NOT NULL,
    verified boolean NOT NULL,
    UNIQUE (account, number),
    UNIQUE (account, order_id)
);
