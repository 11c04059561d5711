-- silent_workers: Workers that have gone silent
-- question: Who was mining and is not any more?
-- param since DateTime = 2d: start of the span in which a worker was seen
-- param until DateTime = now: end of the span, a whole minute
-- param silent_minutes UInt64 = 30: minutes without an accepted share from which a worker is listed
-- answer: th_per_s_before is the rate over the time it was seen in the span. A slow worker at a high difficulty can be silent for long by chance: at 8 shares a minute, 2 minutes are rare.
SELECT worker_name, last_minute, intDiv(toUInt32({until:DateTime}) - toUInt32(last_minute), 60) AS minutes_silent, round(hashes / (toUInt32(last_minute) - toUInt32(first_minute) + 60) / 1e12, 3) AS th_per_s_before
FROM
(
    SELECT worker, min(minute) AS first_minute, max(minute) AS last_minute, sum(toFloat64(work)) AS hashes
    FROM worker_minute
    WHERE status = 'accepted' AND minute >= {since:DateTime} AND minute < {until:DateTime}
    GROUP BY worker
    HAVING toUInt32(last_minute) + 60 * {silent_minutes:UInt64} <= toUInt32({until:DateTime})
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY last_minute, worker_name
