-- hash_uniformity: Whether the hashes of a worker are as random as they must be
-- question: Are a worker's shares the random draws that honest hashing gives?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- param min_shares UInt64 = 1000: accepted shares from which a worker is tested
-- answer: Of honest shares, hash over target is uniform from 0 to 1; the tenths are compared by chi-squared with 9 degrees of freedom. A p_value under 0.001 in one of a few workers is worth a
--   look (one in a thousand does so by chance): shares held back, filtered or counted by a proxy, or a difficulty that is not the one we judged at.
SELECT worker_name, shares_tested, round(chi_squared, 2) AS chi_2, round(erfc((pow(chi_squared / 9, 1 / 3) - (1 - 2 / 81)) / sqrt(2 / 81) / sqrt(2)) / 2, 5) AS p_value
FROM
(
    SELECT worker, sum(shares_in) AS shares_tested, 10 * sum(shares_in * shares_in) / sum(shares_in) - sum(shares_in) AS chi_squared
    FROM
    (
        SELECT worker, least(9, toUInt8(floor(10 * (toFloat64(work) * 65535 / exp2(48) / share_difficulty)))) AS tenth, count() AS shares_in
        FROM shares
        WHERE status = 'accepted' AND share_difficulty > 0 AND session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY worker, tenth
    )
    GROUP BY worker
    HAVING shares_tested >= {min_shares:UInt64}
) AS counted
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name
    FROM workers
    GROUP BY worker
) AS known USING (worker)
ORDER BY p_value, worker_name
