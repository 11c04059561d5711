-- pplns_weights: Weights of workers in a PPLNS window
-- question: How much of the last N blocks' worth of work is each worker's?
-- param until DateTime = now: end of the window, a whole minute
-- param blocks Float64 = 2: size of the window in expected blocks at the network's difficulty of then
-- answer: The window starts with the minute in which it fills up, so it is up to a minute larger than asked for; hashes is exact, percent sums to 100. A check on what a ledger pays, not a
--   replacement for it: money never depends on ClickHouse.
SELECT worker_name, hashes, round(100 * hashes_near / total, 6) AS percent
FROM
(
    SELECT worker, hashes, hashes_near, total
    FROM
    (
        SELECT groupArray(worker) AS all_workers, groupArray(worker_hashes) AS all_hashes, groupArray(worker_near) AS all_near, sum(worker_near) AS total
        FROM
        (
            SELECT worker, sum(toDecimal128(work, 0)) AS worker_hashes, sum(toFloat64(work)) AS worker_near
            FROM worker_minute
            WHERE status = 'accepted' AND minute < {until:DateTime} AND toUInt32(minute) >=
            (
                SELECT arrayFirst((minute_s, blocks_until) -> blocks_until >= {blocks:Float64}, minutes, blocks_back)
                FROM
                (
                    SELECT groupArray(minute_s) AS minutes, arrayCumSum(groupArray(blocks_of_minute)) AS blocks_back
                    FROM
                    (
                        SELECT
                            toUInt32(minute) AS minute_s,
                            sum(toFloat64(work)) /
                            (
                                SELECT exp2(256 - 8 * (toFloat64(intDiv(nbits, 16777216)) - 3)) / bitAnd(nbits, 8388607)
                                FROM
                                (
                                    SELECT argMax(nbits, time) AS nbits
                                    FROM jobs
                                    WHERE time < {until:DateTime}
                                )
                            ) AS blocks_of_minute
                        FROM pool_minute
                        WHERE status = 'accepted' AND minute < {until:DateTime}
                        GROUP BY minute_s
                        ORDER BY minute_s DESC
                    )
                )
            )
            GROUP BY worker
        )
    )
    ARRAY JOIN all_workers AS worker, all_hashes AS hashes, all_near AS hashes_near
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY hashes_near DESC, worker_name
