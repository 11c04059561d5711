-- refusals_over_time: Refusals by reason, hour by hour
-- question: What are shares refused for, and since when?
-- param since DateTime = 1d: start of the span, a whole hour
-- param until DateTime = now: end of the span
-- answer: One column per reason, in shares. stale rises with blocks and slow lines; low_difficulty and bad_version with a firmware that ignores what it was told; duplicate with a proxy;
--   overload is ours: see `otedama status`.
SELECT
    toStartOfHour(minute, 'UTC') AS hour,
    sum(shares) AS submits,
    round(100 * sumIf(shares, status != 'accepted') / sum(shares), 3) AS refused_percent,
    sumIf(shares, status = 'stale') AS stale,
    sumIf(shares, status = 'duplicate') AS duplicate,
    sumIf(shares, status = 'low_difficulty') AS low_difficulty,
    sumIf(shares, status = 'bad_time') AS bad_time,
    sumIf(shares, status = 'bad_version') AS bad_version,
    sumIf(shares, status = 'malformed') AS malformed,
    sumIf(shares, status = 'unauthorized') AS unauthorized,
    sumIf(shares, status = 'overload') AS overload
FROM pool_minute
WHERE minute >= {since:DateTime} AND minute < {until:DateTime}
GROUP BY hour
ORDER BY hour
