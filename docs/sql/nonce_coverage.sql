-- nonce_coverage: Which part of the nonces a worker never finds
-- question: Does a worker search all nonces, or is a part of its chips dead?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- param min_shares UInt64 = 1000: accepted shares from which a worker is listed
-- answer: Shares by the upper 4 bits of their nonce, 16 parts. Machines that give each chip a range of its own show a dead chip or board as a part that is never hit, or as one that is thin. Some
--   firmware searches unevenly by design: compare workers of the same firmware.
SELECT worker_name, shares_tested, parts_hit, round(100 * thinnest / shares_tested, 2) AS thinnest_percent, round(100 * thickest / shares_tested, 2) AS thickest_percent
FROM
(
    SELECT worker, sum(shares_in) AS shares_tested, count() AS parts_hit, if(count() = 16, min(shares_in), 0) AS thinnest, max(shares_in) AS thickest
    FROM
    (
        SELECT worker, intDiv(nonce, 268435456) AS part, count() AS shares_in
        FROM shares
        WHERE status = 'accepted' AND session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY worker, part
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
ORDER BY parts_hit, thinnest_percent, worker_name
