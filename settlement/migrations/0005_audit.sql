-- What an auditor asks the ledger, as one view: a row for each claim, and how much in the ledger
-- contradicts it. All are 0 in a sound one. It trusts no balance and no constraint: it adds up the
-- transfers themselves, each of which has one amount and two ends.
--
--     SELECT * FROM audit;

CREATE VIEW audit AS
    SELECT 'each line is of an account that there is' AS claim, count(*) AS contradicting
    FROM posting LEFT JOIN ledger_account USING (account, bucket)
    WHERE balance_usdc6 IS NULL
    UNION ALL
    SELECT 'all balances sum to zero', abs(coalesce(sum(balance_usdc6), 0))::bigint
    FROM ledger_account
    UNION ALL
    SELECT 'each balance is the sum of its lines', count(*)
    FROM ledger_account LEFT JOIN (
        SELECT account, bucket, sum(amount_usdc6) AS lines_usdc6 FROM posting
        GROUP BY account, bucket
    ) lines USING (account, bucket)
    WHERE balance_usdc6 <> coalesce(lines_usdc6, 0)
    UNION ALL
    SELECT 'after no event was a user''s bucket below zero', count(*) FROM (
        SELECT bucket, sum(amount_usdc6)
            OVER (PARTITION BY account, bucket ORDER BY event_number) AS then_usdc6
        FROM posting
    ) history
    WHERE bucket <> 'vault' AND then_usdc6 < 0
    UNION ALL
    SELECT 'users own what was deposited and has not left',
        abs(coalesce(sum(CASE bucket WHEN 'vault' THEN 0 ELSE balance_usdc6 END), 0) - (
            SELECT coalesce(sum(CASE WHEN kind = 'deposit' THEN amount_usdc6
                                     WHEN kind IN ('withdraw', 'exit') THEN -amount_usdc6
                                     ELSE 0 END), 0) FROM transfer
        ))::bigint
    FROM ledger_account
    UNION ALL
    SELECT 'each fill was booked at its price and fee, and nothing else as a fill', count(*)
    FROM fill FULL JOIN (SELECT * FROM transfer WHERE kind = 'fill') booked USING (event_number)
    WHERE (fill.buyer, fill.amount_usdc6)
        IS DISTINCT FROM (booked.from_account, booked.amount_usdc6);
