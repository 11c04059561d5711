-- share_explained: One share explained from end to end
-- question: What is known about this one share: who, where, on what, and why this verdict?
-- param seg UInt64: its segment, as worker_shares or best_shares list it
-- param seq UInt64: its place by arrival in the segment
-- answer: One row; ask for FORMAT Vertical. luck is its difficulty over what was asked, at least 1 where accepted. credited is what it counts for. With share_rehashed the hash itself can be
--   computed again.
SELECT
    seg, seq, arrived, arrived_us, latency_us,
    instance, build_name AS build, kernel_name AS kernel, driver_name AS driver, tier_name AS tier,
    worker_name, session, peer_address AS peer, agent_name AS agent, net_stage AS net, extranonce1_number AS extranonce1,
    job, height_mined AS height, prev_hash_shown AS prev_hash, is_clean, job_created, job_ended,
    verdict,
    bitAnd(flags, 1) != 0 AS block_candidate, bitAnd(flags, 2) != 0 AS late, bitAnd(flags, 4) != 0 AS grace,
    hashes, if(verdict = 'accepted', hashes, '0') AS credited,
    difficulty, share_difficulty, round(share_difficulty / difficulty, 4) AS luck, round(100 * share_difficulty / network_difficulty, 6) AS network_percent,
    nonce, ntime, toInt64(ntime) - toInt64(toUInt32(arrived)) AS ntime_ahead_s, hex(version) AS version_hex, hex(bitXor(version, job_version)) AS rolled_bits, hex(extranonce2) AS extranonce2_hex,
    block_status
FROM
(
    SELECT *
    FROM
    (
        SELECT *
        FROM
        (
            SELECT *
            FROM
            (
                SELECT *
                FROM
                (
                    SELECT
                        seg, seq, time AS arrived, us AS arrived_us, latency_us, instance, session, worker, job, toString(status) AS verdict, flags, toString(work) AS hashes,
                        toFloat64(work) * 65535 / exp2(48) AS difficulty, share_difficulty, nonce, ntime, version, extranonce2,
                        toUInt32(intDiv(session, 4294967296)) AS run
                    FROM shares
                    WHERE seg = {seg:UInt64} AND seq = {seq:UInt64}
                ) AS counted
                ANY LEFT JOIN
                (
                    SELECT session, any(peer) AS peer_address, any(agent) AS agent_name, any(net) AS net_stage, any(extranonce1) AS extranonce1_number
                    FROM sessions
                    WHERE session IN (SELECT session FROM shares WHERE seg = {seg:UInt64} AND seq = {seq:UInt64})
                    GROUP BY session
                ) AS known USING (session)
            ) AS counted
            ANY LEFT JOIN
            (
                SELECT worker, any(name) AS worker_name
                FROM workers
                GROUP BY worker
            ) AS known USING (worker)
        ) AS counted
        ANY LEFT JOIN
        (
            SELECT
                job, any(height) AS height_mined, any(prev_hash) AS prev_hash_shown, any(clean) AS is_clean, min(time) AS job_created, max(ended) AS job_ended,
                any(version) AS job_version, any(exp2(256 - 8 * (toFloat64(intDiv(nbits, 16777216)) - 3)) / bitAnd(nbits, 8388607)) * 65535 / exp2(48) AS network_difficulty
            FROM jobs
            WHERE job IN (SELECT job FROM shares WHERE seg = {seg:UInt64} AND seq = {seq:UInt64})
            GROUP BY job
        ) AS known USING (job)
    ) AS counted
    ANY LEFT JOIN
    (
        SELECT run, any(build) AS build_name, any(kernel) AS kernel_name, any(driver) AS driver_name, any(tier) AS tier_name
        FROM runs
        GROUP BY run
    ) AS known USING (run)
) AS counted
ANY LEFT JOIN
(
    SELECT job, session, time AS arrived, us AS arrived_us, toString(status) AS block_status
    FROM blocks FINAL
) AS known USING (job, session, arrived, arrived_us)
