-- best_shares: The best shares and how near they came to a block
-- question: Which shares came nearest to a block, and whose were they?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- param rows UInt64 = 20: rows to show
-- answer: network_percent is the difficulty of the share's hash as a part of what the network asked for at its job; 100 and above is a block.
SELECT worker_name, share_difficulty, round(if(network_difficulty > 0, 100 * share_difficulty / network_difficulty, 0), 4) AS network_percent, time, us, seg, seq
FROM
(
    SELECT worker, share_difficulty, network_difficulty, time, us, seg, seq
    FROM
    (
        SELECT worker, job, share_difficulty, time, us, seg, seq
        FROM shares
        WHERE status = 'accepted' AND time >= {since:DateTime} AND time < {until:DateTime}
        ORDER BY share_difficulty DESC, seg, seq
        LIMIT {rows:UInt64}
    ) AS counted
    ANY LEFT JOIN
    (
        SELECT job, any(exp2(256 - 8 * (toFloat64(intDiv(nbits, 16777216)) - 3)) / bitAnd(nbits, 8388607)) * 65535 / exp2(48) AS network_difficulty
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
ORDER BY share_difficulty DESC, seg, seq
