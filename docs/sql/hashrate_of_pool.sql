-- hashrate_of_pool: Hashrate of the pool over time
-- question: How fast was the pool, step by step?
-- param since DateTime = 1d: start of the span, a whole minute
-- param until DateTime = now: end of the span
-- param step_s UInt64 = 3600: seconds of a step, a multiple of 60
-- answer: From the roll-up, so it is quick on any span, and stays when raw rows have gone. hashes is exact; th_per_s takes every step as whole, the last may not be.
SELECT
    toDateTime(toUInt32(intDiv(toUInt32(minute), {step_s:UInt64}) * {step_s:UInt64}), 'UTC') AS step,
    sum(shares) AS shares_accepted,
    sum(work) AS hashes,
    round(sum(toFloat64(work)) / {step_s:UInt64} / 1e12, 3) AS th_per_s
FROM pool_minute
WHERE status = 'accepted' AND minute >= {since:DateTime} AND minute < {until:DateTime}
GROUP BY step
ORDER BY step
