-- luck: Luck of the pool and how likely it is
-- question: Did the pool find as many blocks as its work deserves, and if not, is that chance?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: expected is the accepted work over the network's, job by job. p_so_few is the chance of as few or fewer solutions by luck alone, p_so_many of as many or more. A p_so_few under 0.001
--   is no bad luck to wait out: run withholding_test, and look at blocks_found for refusals.
SELECT
    solutions,
    round(expected, 3) AS solutions_expected,
    round(100 * solutions / expected, 1) AS luck_percent,
    round(arraySum(arrayMap(k -> exp(k * log(expected) - expected - lgamma(k + 1)), range(solutions + 1))), 5) AS p_so_few,
    round(1 - arraySum(arrayMap(k -> exp(k * log(expected) - expected - lgamma(k + 1)), range(solutions))), 5) AS p_so_many
FROM
(
    SELECT
        sum(hashes / network_hashes) AS expected,
        (SELECT count() FROM blocks FINAL WHERE time >= {since:DateTime} AND time < {until:DateTime}) AS solutions
    FROM
    (
        SELECT job, sum(toFloat64(work)) AS hashes
        FROM shares
        WHERE status = 'accepted' AND time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY job
    ) AS counted
    ALL INNER JOIN
    (
        SELECT job, any(exp2(256 - 8 * (toFloat64(intDiv(nbits, 16777216)) - 3)) / bitAnd(nbits, 8388607)) AS network_hashes
        FROM jobs
        GROUP BY job
    ) AS known USING (job)
)
