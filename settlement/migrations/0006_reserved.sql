-- Which product is traded under an instrument's number, as it was listed.
CREATE TABLE listed (
    instrument bigint PRIMARY KEY,
    product    bigint NOT NULL
);
