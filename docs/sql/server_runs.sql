-- server_runs: Boots of the servers, their builds and what each served
-- question: When did servers start, with what build, and what did each boot serve?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: One line per boot that has shares in the span. The gap between last_share of a boot and first_share of the next of the same instance is the time miners were without it.
SELECT run, instance_number AS instance, build_name AS build, kernel_name AS kernel, driver_name AS driver, tier_name AS tier, started, sessions_seen, submits, first_share, last_share
FROM
(
    SELECT toUInt32(intDiv(session, 4294967296)) AS run, uniqExact(session) AS sessions_seen, count() AS submits, min(time) AS first_share, max(time) AS last_share
    FROM shares
    WHERE session != 0 AND time >= {since:DateTime} AND time < {until:DateTime}
    GROUP BY run
) AS counted
ANY LEFT JOIN
(
    SELECT
        run,
        any(instance) AS instance_number,
        any(build) AS build_name,
        any(kernel) AS kernel_name,
        any(driver) AS driver_name,
        any(tier) AS tier_name,
        min(time) AS started
    FROM runs
    GROUP BY run
) AS known USING (run)
ORDER BY started, run
