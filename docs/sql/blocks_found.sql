-- blocks_found: Block candidates and what became of them
-- question: Which blocks did the pool find, who found them, and what did the node say?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: status is the last that is known: accepted is in the chain of the node; superseded had a sibling that came first; rejected says why in reason; found is still being submitted.
--   age_s is the age of the job when it was solved.
SELECT found_at, found_us, height, block_status AS status, reason, worker_name, age_s, hash
FROM
(
    SELECT found_at, found_us, height, block_status, reason, worker, hash, round(toUInt32(found_at) + found_us / 1e6 - job_created, 3) AS age_s
    FROM
    (
        SELECT time AS found_at, us AS found_us, height, status AS block_status, reason, worker, hash, job
        FROM blocks FINAL
        WHERE time >= {since:DateTime} AND time < {until:DateTime}
    ) AS counted
    ANY LEFT JOIN
    (
        SELECT job, min(toUInt32(time) + us / 1e6) AS job_created
        FROM jobs
        GROUP BY job
    ) AS known USING (job)
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY found_at, found_us, hash
