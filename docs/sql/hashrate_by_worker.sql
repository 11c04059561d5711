-- hashrate_by_worker: Hashrate by worker with its 95 % interval
-- question: How fast is each worker, and how sure can one be of it?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: Shares are rare random events, so few of them say little: the true rate lies between low and high 19 times out of 20. A worker is slower than yesterday only where the two
--   intervals do not overlap. Shares of unequal difficulty count as fewer (Kish's effective number).
SELECT
    worker_name,
    shares_accepted,
    round(hashes / seconds / 1e12, 3) AS th_per_s,
    round(hashes / seconds / 1e12 * pow(1 - 1 / (9 * effective) - 1.96 / (3 * sqrt(effective)), 3), 3) AS th_per_s_low,
    round(hashes / seconds / 1e12 * (effective + 1) / effective * pow(1 - 1 / (9 * (effective + 1)) + 1.96 / (3 * sqrt(effective + 1)), 3), 3) AS th_per_s_high
FROM
(
    SELECT
        worker,
        sum(share_count) AS shares_accepted,
        sum(toFloat64(work)) AS hashes,
        hashes * hashes / sum(toFloat64(work) * toFloat64(work) / share_count) AS effective,
        toUInt32({until:DateTime}) - toUInt32({since:DateTime}) AS seconds
    FROM shares
    WHERE status = 'accepted' AND time >= {since:DateTime} AND time < {until:DateTime}
    GROUP BY worker
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY th_per_s DESC, worker_name
