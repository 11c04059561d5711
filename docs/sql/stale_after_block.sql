-- stale_after_block: Stale shares after each new block, beside how fast it reached miners
-- question: How many shares does a new block cost, and does that follow from how fast the new job got out?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: Per server and height: first_share_ms is from the arrival of the template to the first accepted share on it, stale_shares are submits on jobs of the block before, with how long after
--   the end of their job they came. Stale shares that come within a second are the way to the miner and back; a long tail (stale_ms_p99) is miners that do not switch.
SELECT
    instance, height, new_job_at, round((first_share_us - created_us) / 1000, 1) AS first_share_ms, stale_shares, stale_ms_p50, stale_ms_p99
FROM
(
    SELECT instance, height, min(created_us) AS created_us, toDateTime(toUInt32(intDiv(created_us, 1000000)), 'UTC') AS new_job_at, min(first_us) AS first_share_us
    FROM
    (
        SELECT job, toUInt8(intDiv(job, 72057594037927936)) AS instance, any(height) AS height, min(toUInt32(time) * 1000000 + us) AS created_us
        FROM jobs
        WHERE clean = 1 AND time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY job
    ) AS counted
    ALL INNER JOIN
    (
        SELECT job, min(toUInt32(time) * 1000000 + us) AS first_us
        FROM shares
        WHERE status = 'accepted' AND time >= {since:DateTime}
        GROUP BY job
    ) AS known USING (job)
    GROUP BY instance, height
) AS counted
ANY LEFT JOIN
(
    SELECT instance, height, count() AS stale_shares, round(quantileExact(0.5)(after_us) / 1000, 1) AS stale_ms_p50, round(quantileExact(0.99)(after_us) / 1000, 1) AS stale_ms_p99
    FROM
    (
        SELECT instance, height, at_us - over_us AS after_us
        FROM
        (
            SELECT job, toUInt32(time) * 1000000 + us AS at_us
            FROM shares
            WHERE status = 'stale' AND job != 0 AND time >= {since:DateTime}
        ) AS counted
        ALL INNER JOIN
        (
            SELECT job, toUInt8(intDiv(job, 72057594037927936)) AS instance, toUInt32(any(height) + 1) AS height, max(toUInt32(ended) * 1000000 + ended_us) AS over_us
            FROM jobs
            GROUP BY job
            HAVING over_us > 0
        ) AS known USING (job)
    )
    GROUP BY instance, height
) AS known USING (instance, height)
ORDER BY instance, height
