-- top_workers: The largest workers and their part of the pool
-- question: Whose hashrate is the pool made of?
-- param since DateTime = 1d: start of the span, a whole minute
-- param until DateTime = now: end of the span
-- param rows UInt64 = 50: rows to show
-- answer: From the roll-up. pool_percent is of all accepted work of the span, so the column need not add up to 100.
SELECT worker_name, shares_accepted, hashes, round(hashes_near / (toUInt32({until:DateTime}) - toUInt32({since:DateTime})) / 1e12, 3) AS th_per_s, pool_percent
FROM
(
    SELECT
        worker,
        sum(shares) AS shares_accepted,
        sum(work) AS hashes,
        sum(toFloat64(work)) AS hashes_near,
        round(100 * hashes_near / (SELECT sum(toFloat64(work)) FROM pool_minute WHERE status = 'accepted' AND minute >= {since:DateTime} AND minute < {until:DateTime}), 3) AS pool_percent
    FROM worker_minute
    WHERE status = 'accepted' AND minute >= {since:DateTime} AND minute < {until:DateTime}
    GROUP BY worker
    ORDER BY hashes_near DESC, worker
    LIMIT {rows:UInt64}
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY hashes_near DESC, worker_name
