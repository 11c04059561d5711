-- job_lifetimes: Jobs, how long they lived and what came of them
-- question: How long do jobs live, and how many shares does each get before and after its end?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: One line per job that was made in the span. life_s is 0 while it is live; a job whose server was killed ended with the last that its log shows of that server, as soon as the next start
--   has said so. Stale shares on a job are those that arrived after its end.
SELECT job, height_mined, is_clean, created, life_s, accepted, stale, refused_else
FROM
(
    SELECT
        job,
        any(height) AS height_mined,
        any(clean) AS is_clean,
        min(toUInt32(time) * 1000000 + us) AS created_us,
        max(toUInt32(ended) * 1000000 + ended_us) AS over_us,
        min(time) AS created,
        if(over_us = 0, 0., round((toFloat64(over_us) - created_us) / 1e6, 3)) AS life_s
    FROM jobs
    GROUP BY job
    HAVING created >= {since:DateTime} AND created < {until:DateTime}
) AS counted
ANY LEFT JOIN
(
    SELECT
        job,
        countIf(status = 'accepted') AS accepted,
        countIf(status = 'stale') AS stale,
        countIf(status != 'accepted' AND status != 'stale') AS refused_else
    FROM shares
    WHERE job != 0 AND time >= {since:DateTime}
    GROUP BY job
) AS known USING (job)
ORDER BY created_us, job
