-- ntime_skew: How far header times are from the clock, by firmware
-- question: Do miners roll the header time or run on a wrong clock?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: Header time less arrival, seconds. Near 0 or a little under it is the template's time; a wide spread upwards is a miner that rolls ntime for lack of extranonce; what passes 7200 ahead is
--   refused as bad_time.
SELECT agent_name AS agent, count() AS shares_hashed, quantileExact(0.01)(ahead_s) AS s_p01, quantileExact(0.5)(ahead_s) AS s_p50, quantileExact(0.99)(ahead_s) AS s_p99
FROM
(
    SELECT session, toInt64(ntime) - toInt64(toUInt32(time)) AS ahead_s
    FROM shares
    WHERE status IN ('accepted', 'low_difficulty') AND ntime != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
) AS counted
ALL INNER JOIN
(
    SELECT session, any(agent) AS agent_name
    FROM sessions
    GROUP BY session
) AS known USING (session)
GROUP BY agent_name
ORDER BY agent
