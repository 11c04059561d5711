-- late_and_grace: Shares of old jobs and old difficulties that were credited
-- question: How much work was credited although a newer job or a new difficulty had been sent?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: late: a newer job of the same parent had been sent, the share is worth as much. grace: judged at the easier of two difficulties after a change. Both are a few percent; much late
--   work means slow miners or a job refresh that is too frequent, much grace work a difficulty that changes too often.
SELECT
    toStartOfHour(time, 'UTC') AS hour,
    sum(share_count) AS shares_accepted,
    sumIf(share_count, bitAnd(flags, 2) != 0) AS late,
    sumIf(share_count, bitAnd(flags, 4) != 0) AS grace,
    round(100 * sumIf(toFloat64(work), bitAnd(flags, 2) != 0) / sum(toFloat64(work)), 3) AS late_work_percent,
    round(100 * sumIf(toFloat64(work), bitAnd(flags, 4) != 0) / sum(toFloat64(work)), 3) AS grace_work_percent
FROM shares
WHERE status = 'accepted' AND time >= {since:DateTime} AND time < {until:DateTime}
GROUP BY hour
ORDER BY hour
