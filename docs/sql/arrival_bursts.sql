-- arrival_bursts: How bursty submits arrive, by hour
-- question: Do submits come evenly, or in bursts that want more room than the mean suggests?
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: fano is the variance of the submits per second over their mean, seconds without a submit included: near 1 when miners are independent of each other, far above 1 when something
--   makes them submit at once (a new block, a proxy that flushes). Take whole hours: at the ends of the span an hour is cut.
SELECT
    hour,
    sum(submits) AS submits_of_hour,
    round(sum(submits) / 3600, 3) AS per_s_mean,
    quantileExact(0.99)(submits) AS per_s_p99,
    max(submits) AS per_s_max,
    round((sum(submits * submits) / 3600 - pow(sum(submits) / 3600, 2)) / (sum(submits) / 3600), 3) AS fano
FROM
(
    SELECT toStartOfHour(time, 'UTC') AS hour, time AS second, sum(share_count) AS submits
    FROM shares
    WHERE time >= {since:DateTime} AND time < {until:DateTime}
    GROUP BY hour, second
)
GROUP BY hour
ORDER BY hour
