-- duplicate_probes: Who sends shares twice
-- question: Which workers send the same share again, by mistake or to be paid twice?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: A share or two after a reconnect is a miner that resends what it saw no answer to. Many distinct shares, each again and again, is a proxy in a loop or somebody trying the door;
--   none of it was credited.
SELECT worker_name, submits, duplicates, round(100 * duplicates / submits, 3) AS duplicate_percent, distinct_shares, copies_max
FROM
(
    SELECT worker, submits, duplicates, distinct_shares, copies_max
    FROM
    (
        SELECT worker, sum(copies) AS duplicates, count() AS distinct_shares, max(copies) AS copies_max
        FROM
        (
            SELECT worker, session, job, extranonce2, ntime, nonce, version, count() AS copies
            FROM shares
            WHERE status = 'duplicate' AND time >= {since:DateTime} AND time < {until:DateTime}
            GROUP BY worker, session, job, extranonce2, ntime, nonce, version
        )
        GROUP BY worker
    ) AS counted
    ANY LEFT JOIN
    (
        SELECT worker, sum(share_count) AS submits
        FROM shares
        WHERE time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY worker
    ) AS known USING (worker)
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY duplicates DESC, worker_name
