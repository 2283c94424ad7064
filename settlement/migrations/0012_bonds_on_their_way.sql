-- A bond may be taken before the engine has heard of the deposit that it was taken from.
--
-- The vault books a slash, or a bond that its owner takes back, as soon as its log is final; a bond
-- that was deposited comes only when the engine has credited it. So the balance of a bond may be
-- below zero, by no more than is on its way to it: with that it is what the vault has. The engine's
-- part of it, which nobody takes anything off, never is.

ALTER TABLE ledger_account
    DROP CONSTRAINT no_bucket_is_negative,
    ADD CONSTRAINT no_bucket_is_negative CHECK (CASE bucket
        WHEN 'vault' THEN true
        WHEN 'bond' THEN balance_usdc6 >= by_vault_usdc6
        ELSE balance_usdc6 >= 0
    END);

-- What an account has deposited as a bond and the engine has not credited yet.
CREATE FUNCTION bond_on_its_way(of_account bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(amount_usdc6), 0)::bigint FROM vault_credit
    WHERE account = of_account AND is_bond
        AND number > (SELECT coalesce(max(reference), 0) FROM booked WHERE kind = 'deposit')
$$;

-- Plans are kept for as long as the connection, and made when a table may be empty: they must not
-- count on that. Here each account is looked up by its index.
CREATE OR REPLACE FUNCTION move_balances() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    missing bigint;
    lowest bigint;
    without_bond bigint[];  -- accounts
BEGIN
    -- The watermark follows in the same database transaction: what is at or below it was booked.
    IF EXISTS (
        SELECT FROM added LEFT JOIN watermark w USING (shard)
        WHERE w.shard IS NULL OR (added.sequence, added.ordinal) <= (w.sequence, w.ordinal)
    ) THEN
        PERFORM refuse('booked_before: a transfer at or below its shard''s watermark');
    END IF;
    INSERT INTO booked
        SELECT kind, reference, from_account, to_account, amount_usdc6 FROM added
        WHERE shard <> 32767 AND kind <> 'fill';
    WITH entry AS (
        SELECT from_account AS account, from_bucket AS bucket, -amount_usdc6 AS amount_usdc6,
               event_number, shard, sequence, ordinal, line,
               shard = 32767 OR kind = 'handed' AS of_vault
        FROM added
        UNION ALL
        SELECT to_account, to_bucket, amount_usdc6, event_number, shard, sequence, ordinal, line,
               shard = 32767 OR kind = 'handed'
        FROM added
    ), running AS (
        SELECT account, bucket, of_vault, amount_usdc6, sum(amount_usdc6) OVER (
            PARTITION BY account, bucket ORDER BY event_number, shard, sequence, ordinal, line
            ROWS UNBOUNDED PRECEDING) AS then_usdc6
        FROM entry
    ), moved AS (
        SELECT account, bucket, sum(amount_usdc6)::bigint AS amount_usdc6,
               coalesce(sum(amount_usdc6) FILTER (WHERE of_vault), 0)::bigint AS by_vault,
               min(then_usdc6)::bigint AS lowest
        FROM running GROUP BY account, bucket
    ), changed AS (
        UPDATE ledger_account a
        SET balance_usdc6 = a.balance_usdc6 + m.amount_usdc6,
            by_vault_usdc6 = a.by_vault_usdc6 + m.by_vault
        FROM moved m WHERE a.account = m.account AND a.bucket = m.bucket
        RETURNING a.account, a.bucket, a.balance_usdc6,
                  a.balance_usdc6 - m.amount_usdc6 + m.lowest AS lowest
    )
    SELECT (SELECT count(*) FROM moved) - count(*),
           min(changed.lowest) FILTER (WHERE bucket NOT IN ('vault', 'bond')),
           array_agg(account) FILTER (WHERE bucket = 'bond' AND balance_usdc6 < 0)
    INTO missing, lowest, without_bond FROM changed;
    IF missing > 0 THEN
        PERFORM refuse('no_such_account: a transfer from or to one that was never opened');
    END IF;
    IF lowest < 0 THEN
        PERFORM refuse('no_bucket_is_negative: not between two lines of one statement either');
    END IF;
    IF EXISTS (
        SELECT FROM ledger_account
        WHERE account = ANY(without_bond) AND bucket = 'bond'
            AND balance_usdc6 + bond_on_its_way(account) < 0
    ) THEN
        PERFORM refuse('no_bucket_is_negative: a bond, with what is on its way to it');
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION close_period(wanted integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p period;
BEGIN
    SELECT * INTO p FROM period WHERE number = wanted;
    IF p IS NULL OR p.closed
        OR EXISTS (SELECT FROM period WHERE number < wanted AND NOT closed)
        OR p.end_event > (SELECT event_number FROM watermark WHERE shard = 0)
    THEN
        PERFORM refuse(format('period %s is not over, or not the next to close', wanted));
    END IF;
    IF NOT is_settled(wanted) THEN
        PERFORM refuse(format('period %s has fills that are neither settled nor undone', wanted));
    END IF;
    INSERT INTO closing
        SELECT wanted, account, bucket, sum(amount_usdc6)::bigint FROM (
            SELECT account, bucket, balance_usdc6 AS amount_usdc6 FROM opening
            UNION ALL
            SELECT account, bucket, amount_usdc6 FROM posting
            WHERE event_number >= p.first_event AND event_number < p.end_event
        ) line GROUP BY account, bucket;
    -- What a bond lacks may be credited in the next period.
    IF EXISTS (SELECT FROM closing WHERE period = wanted GROUP BY period
               HAVING sum(balance_usdc6) <> 0
                   OR bool_or(bucket NOT IN ('vault', 'bond') AND balance_usdc6 < 0))
        OR EXISTS (
            SELECT FROM ledger_account a
            FULL JOIN (SELECT * FROM closing WHERE period = wanted) c USING (account, bucket)
            LEFT JOIN (
                SELECT account, bucket, sum(amount_usdc6) AS amount_usdc6 FROM posting
                WHERE event_number >= p.end_event GROUP BY account, bucket
            ) later USING (account, bucket)
            WHERE a.balance_usdc6 IS DISTINCT FROM
                coalesce(c.balance_usdc6, 0) + coalesce(later.amount_usdc6, 0)
        )
    THEN
        PERFORM refuse(format('period %s does not add up', wanted));
    END IF;
    UPDATE period SET closed = true WHERE number = wanted;
END $$;

-- --- the audit ----------------------------------------------------------------------------------
CREATE OR REPLACE VIEW audit AS
    WITH line AS (
        SELECT * FROM posting WHERE event_number >= (SELECT opening_event())
        UNION ALL
        SELECT 0, 0, 0, 0, 0, account, bucket, balance_usdc6 FROM opening
    ), total AS (
        SELECT account, bucket, sum(amount_usdc6) AS lines_usdc6 FROM line
        GROUP BY account, bucket
    )
    SELECT 'each line is of an account that there is' AS claim, count(*) AS contradicting
    FROM line LEFT JOIN ledger_account USING (account, bucket) WHERE balance_usdc6 IS NULL
    UNION ALL
    SELECT 'all balances sum to zero', abs(coalesce(sum(balance_usdc6), 0))::bigint
    FROM ledger_account
    UNION ALL
    SELECT 'each balance is the sum of its lines', count(*)
    FROM ledger_account LEFT JOIN total USING (account, bucket)
    WHERE balance_usdc6 <> coalesce(lines_usdc6, 0)
    UNION ALL
    SELECT 'after no line was a bucket below zero', count(*) FROM (
        SELECT bucket, sum(amount_usdc6) OVER (
            PARTITION BY account, bucket ORDER BY event_number, shard, sequence, ordinal, line
        ) AS then_usdc6
        FROM line
    ) history
    WHERE bucket NOT IN ('vault', 'bond') AND then_usdc6 < 0
    UNION ALL
    SELECT 'no bond is below zero with what is on its way to it', count(*)
    FROM total WHERE bucket = 'bond' AND lines_usdc6 < 0
        AND lines_usdc6 + bond_on_its_way(account) < 0
    UNION ALL
    SELECT 'what is owned came in and has not left',
        abs(coalesce(sum(balance_usdc6) FILTER (WHERE bucket <> 'vault'), 0)
            + (SELECT coalesce(sum(amount_usdc6), 0) FROM line WHERE bucket = 'vault'))::bigint
    FROM ledger_account
    UNION ALL
    SELECT 'each fill was booked at its price and fee, and nothing else as a fill', count(*)
    FROM (SELECT * FROM fill WHERE event_number >= (SELECT opening_event())) fill
    FULL JOIN (
        SELECT * FROM transfer
        WHERE kind = 'fill' AND event_number >= (SELECT opening_event())
    ) booked USING (event_number)
    WHERE (fill.buyer, fill.amount_usdc6)
        IS DISTINCT FROM (booked.from_account, booked.amount_usdc6);
