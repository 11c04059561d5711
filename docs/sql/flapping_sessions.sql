-- flapping_sessions: Workers whose sessions do not last
-- question: Which workers connect again and again?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- param min_sessions UInt64 = 6: sessions from which a worker is listed
-- answer: Sessions that sent at least one share. Short lives at even intervals are a timeout on the way (a router, a proxy) or a miner that restarts; a worker whose sessions live long but
--   are many has several machines under one name.
SELECT worker_name, sessions_seen, life_s_p50, shares_p50, round(sessions_seen * 3600 / (toUInt32({until:DateTime}) - toUInt32({since:DateTime})), 3) AS sessions_per_hour
FROM
(
    SELECT worker, count() AS sessions_seen, quantileExact(0.5)(last_s - first_s) AS life_s_p50, quantileExact(0.5)(submits) AS shares_p50
    FROM
    (
        SELECT worker, session, toUInt32(min(time)) AS first_s, toUInt32(max(time)) AS last_s, count() AS submits
        FROM shares
        WHERE worker != 0 AND session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY worker, session
    )
    GROUP BY worker
    HAVING sessions_seen >= {min_sessions:UInt64}
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY sessions_seen DESC, worker_name
