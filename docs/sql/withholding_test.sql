-- withholding_test: Whether a worker finds the blocks that its work deserves
-- question: Does a worker send shares but keep its blocks to itself?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- param suspect_under Float64 = 0.0001: p from which on a worker is a suspect; divide the risk you accept by the number of workers
-- answer: p_so_few is the chance of as few solutions or fewer by luck alone. Before about 6 expected solutions nothing can be told: a worker that withholds everything has then
--   p = 0.0025. Suspects over a long span want a closer look, with their owner's other workers added.
SELECT worker_name, round(expected, 3) AS solutions_expected, solutions, round(p, 6) AS p_so_few, multiIf(p < {suspect_under:Float64}, 'suspect', expected < 6, 'too early', 'as expected') AS verdict
FROM
(
    SELECT worker, expected, solutions, arraySum(arrayMap(k -> exp(k * log(expected) - expected - lgamma(k + 1)), range(solutions + 1))) AS p
    FROM
    (
        SELECT worker, sum(toFloat64(work) / network_hashes) AS expected
        FROM
        (
            SELECT worker, job, work
            FROM shares
            WHERE status = 'accepted' AND time >= {since:DateTime} AND time < {until:DateTime}
        ) AS counted
        ALL INNER JOIN
        (
            SELECT job, any(exp2(256 - 8 * (toFloat64(intDiv(nbits, 16777216)) - 3)) / bitAnd(nbits, 8388607)) AS network_hashes
            FROM jobs
            GROUP BY job
        ) AS known USING (job)
        GROUP BY worker
    ) AS counted
    ANY LEFT JOIN
    (
        SELECT worker, count() AS solutions
        FROM blocks FINAL
        WHERE time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY worker
    ) AS known USING (worker)
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY p, worker_name
