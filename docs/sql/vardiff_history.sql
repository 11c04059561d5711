-- vardiff_history: Every difficulty a worker was judged at, and how fast it went there
-- question: Did vardiff settle for this worker, and at how many shares a minute?
-- param worker String: its name
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- answer: One line per stretch of accepted shares at one difficulty within a session, in order. per_minute should settle near [vardiff] target_shares_per_minute; difficulties that go to and fro
--   are a rate that truly changes, or a target too tight for it.
SELECT session, toDateTime(toUInt32(intDiv(from_us, 1000000)), 'UTC') AS since, difficulty, shares_at, round(60e6 * shares_at / (until_us - from_us), 2) AS per_minute
FROM
(
    SELECT
        session,
        arrayMap(row -> row.1, rows_in_order) AS moments,
        arrayMap(row -> row.2, rows_in_order) AS levels,
        arrayPushFront(arrayPopBack(levels), -1.) AS levels_before,
        arrayFilter((position, level, before) -> level != before, arrayEnumerate(levels), levels, levels_before) AS starts,
        arrayFilter((moment, level, before) -> level != before, moments, levels, levels_before) AS from_moments,
        arrayFilter((level, before) -> level != before, levels, levels_before) AS new_levels,
        arrayPushBack(arrayPopFront(starts), toUInt32(length(levels) + 1)) AS ends,
        arrayPushBack(arrayPopFront(from_moments), arrayElement(moments, length(moments)) + 1) AS until_moments
    FROM
    (
        SELECT session, arraySort(groupArray((toUInt32(time) * 1000000 + us, round(toFloat64(work) * 65535 / exp2(48), 6)))) AS rows_in_order
        FROM shares
        WHERE status = 'accepted' AND session != 0 AND worker IN (SELECT worker FROM workers WHERE name = {worker:String}) AND time >= {since:DateTime} AND time < {until:DateTime}
        GROUP BY session
    )
)
ARRAY JOIN from_moments AS from_us, until_moments AS until_us, new_levels AS difficulty, arrayMap((end, start) -> end - start, ends, starts) AS shares_at
ORDER BY from_us, session
