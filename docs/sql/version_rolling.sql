-- version_rolling: Who rolls version bits, and which
-- question: Which firmware makes use of version rolling (overt AsicBoost), and within which bits?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: bits are all the bits that ever differed from the job's version, hexadecimal; they lie within [stratum] version_mask, as others are refused (bad_version). A firmware that
--   could roll and does not wastes power.
SELECT agent_name AS agent, sum(shares_seen) AS shares_accepted, round(100 * sum(rolled_seen) / sum(shares_seen), 3) AS rolled_percent, hex(groupBitOr(bits_seen)) AS bits
FROM
(
    SELECT session, count() AS shares_seen, countIf(rolled != 0) AS rolled_seen, groupBitOr(rolled) AS bits_seen
    FROM
    (
        SELECT session, bitXor(version, job_version) AS rolled
        FROM
        (
            SELECT session, job, version
            FROM shares
            WHERE status = 'accepted' AND version != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
        ) AS counted
        ALL INNER JOIN
        (
            SELECT job, any(version) AS job_version
            FROM jobs
            GROUP BY job
        ) AS known USING (job)
    )
    GROUP BY session
) AS counted
ALL INNER JOIN
(
    SELECT session, any(agent) AS agent_name
    FROM sessions
    GROUP BY session
) AS known USING (session)
GROUP BY agent_name
ORDER BY agent
