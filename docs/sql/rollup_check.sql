-- rollup_check: Whether the roll-ups agree with the shares, hour by hour
-- question: Can the roll-ups be trusted for these hours?
-- param since DateTime = 1d: start of the span, a whole hour
-- param until DateTime = now: end of the span, a whole hour
-- answer: agree = 1 where shares, worker_minute, worker_hour and pool_minute count the same shares and the same work to the last hash. An hour in which inserts are under way may differ
--   for a moment. One that stays different lost a part in a crash of the server: `otedama reconcile` says so too, and deploy/clickhouse/README.md how to make it again.
SELECT
    hour,
    maxIf(submits, source = 'shares') AS shares_rows,
    maxIf(hashes, source = 'shares') AS shares_hashes,
    count() = 4 AND min(submits) = max(submits) AND min(hashes) = max(hashes) AS agree
FROM
(
    SELECT 'shares' AS source, toStartOfHour(time, 'UTC') AS hour, sum(share_count) AS submits, sum(toDecimal128(work, 0)) AS hashes
    FROM shares
    WHERE time >= {since:DateTime} AND time < {until:DateTime}
    GROUP BY hour
    UNION ALL
    SELECT 'worker_minute' AS source, toStartOfHour(minute, 'UTC') AS hour, sum(shares) AS submits, sum(toDecimal128(work, 0)) AS hashes
    FROM worker_minute
    WHERE minute >= {since:DateTime} AND minute < {until:DateTime}
    GROUP BY hour
    UNION ALL
    SELECT 'worker_hour' AS source, toStartOfHour(hour, 'UTC') AS hour, sum(shares) AS submits, sum(toDecimal128(work, 0)) AS hashes
    FROM worker_hour
    WHERE hour >= {since:DateTime} AND hour < {until:DateTime}
    GROUP BY hour
    UNION ALL
    SELECT 'pool_minute' AS source, toStartOfHour(minute, 'UTC') AS hour, sum(shares) AS submits, sum(toDecimal128(work, 0)) AS hashes
    FROM pool_minute
    WHERE minute >= {since:DateTime} AND minute < {until:DateTime}
    GROUP BY hour
)
GROUP BY hour
ORDER BY hour
