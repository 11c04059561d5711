-- firmware: Firmware by share of the hashrate and refusals
-- question: Which firmware do miners run, and does one of them lose more shares than the others?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: agent is what the miner said of itself. A refused_percent well above the others' on many workers points at the firmware (or its settings), not at a line.
SELECT
    agent_name AS agent,
    uniqExact(session) AS sessions_seen,
    uniqExact(worker) AS workers_seen,
    sum(submits) AS submits_seen,
    round(100 * sum(refused) / sum(submits), 3) AS refused_percent,
    round(100 * sum(hashes) / (SELECT sum(toFloat64(work)) FROM shares WHERE status = 'accepted' AND session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}), 3) AS hashrate_percent
FROM
(
    SELECT session, worker, count() AS submits, countIf(status != 'accepted') AS refused, sumIf(toFloat64(work), status = 'accepted') AS hashes
    FROM shares
    WHERE session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
    GROUP BY session, worker
) AS counted
ALL INNER JOIN
(
    SELECT session, any(agent) AS agent_name
    FROM sessions
    GROUP BY session
) AS known USING (session)
GROUP BY agent_name
ORDER BY hashrate_percent DESC, agent
