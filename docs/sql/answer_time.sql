-- answer_time: How long answers take, by build and net core
-- question: How long do miners wait for an answer, and does a build or a net core stand out?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: Microseconds from bytes read to append, half of the answers and all but 1 in 100 and 1 in 1,000 at or under the value. A net whose us_p99 is a multiple of the others' has a
--   core that something else runs on; a build whose us_p99 rose is a regression.
SELECT build_name AS build, net_stage AS net, shares_answered, q[1] AS us_p50, q[2] AS us_p99, q[3] AS us_p999, us_max
FROM
(
    SELECT build_name, net_stage, count() AS shares_answered, quantilesExact(0.5, 0.99, 0.999)(latency_us) AS q, max(latency_us) AS us_max
    FROM
    (
        SELECT run, net_stage, latency_us
        FROM
        (
            SELECT session, toUInt32(intDiv(session, 4294967296)) AS run, latency_us
            FROM shares
            WHERE session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
        ) AS counted
        ALL INNER JOIN
        (
            SELECT session, any(net) AS net_stage
            FROM sessions
            GROUP BY session
        ) AS known USING (session)
    ) AS counted
    ALL INNER JOIN
    (
        SELECT run, any(build) AS build_name
        FROM runs
        GROUP BY run
    ) AS known USING (run)
    GROUP BY build_name, net_stage
)
ORDER BY build, net
