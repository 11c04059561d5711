-- worker_day: One worker's day, hour by hour
-- question: How did this worker do, hour by hour?
-- param worker String: its name
-- param day DateTime = yesterday: start of the day
-- answer: From the roll-up. An hour without a line had no submit at all.
SELECT
    hour,
    round(sumIf(toFloat64(work), status = 'accepted') / 3600 / 1e12, 3) AS th_per_s,
    sumIf(shares, status = 'accepted') AS accepted,
    sumIf(shares, status = 'stale') AS stale,
    sumIf(shares, status = 'duplicate') AS duplicate,
    sumIf(shares, status = 'low_difficulty') AS low_difficulty,
    sumIf(shares, status = 'bad_time') AS bad_time,
    sumIf(shares, status = 'bad_version') AS bad_version,
    sumIf(shares, status = 'malformed') AS malformed,
    sumIf(shares, status = 'unauthorized') AS unauthorized,
    sumIf(shares, status = 'overload') AS overload
FROM worker_hour
WHERE worker IN (SELECT worker FROM workers WHERE name = {worker:String}) AND hour >= {day:DateTime} AND hour < {day:DateTime} + 86400
GROUP BY hour
ORDER BY hour
