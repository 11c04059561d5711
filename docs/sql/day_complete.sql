-- day_complete: Whether a day is complete, by server
-- question: Is yesterday complete, so that a report on it will not change?
-- param day DateTime = yesterday: start of the day
-- answer: complete = 1 when every segment of the day is here (none missing between the first and the last, the one before and the one after are known too) and shares has the rows and the work
--   that the log counted. ends_whole = 0 until a segment of the next day has come: ask again later. Anything else that is not whole wants `otedama reconcile`. One line per server and
--   log folder; a pool of three servers wants three lines.
SELECT
    instance,
    directory,
    segments_of_day,
    last_sequence - first_sequence + 1 - segments_of_day AS segments_missing,
    first_sequence = 1 OR sequence_before + 1 = first_sequence AS starts_whole,
    sequence_after = last_sequence + 1 AS ends_whole,
    rows_sealed,
    rows_here,
    work_sealed,
    work_here,
    segments_missing = 0 AND starts_whole AND ends_whole AND rows_sealed = rows_here AND work_sealed = work_here AS complete
FROM
(
    SELECT
        instance,
        directory,
        countIf(of_day) AS segments_of_day,
        minIf(sequence, of_day) AS first_sequence,
        maxIf(sequence, of_day) AS last_sequence,
        maxIf(sequence, before_day) AS sequence_before,
        minIf(sequence, after_day) AS sequence_after,
        sumIf(segment_rows, of_day) AS rows_sealed,
        sumIf(segment_work, of_day) AS work_sealed
    FROM
    (
        SELECT
            instance,
            intDiv(seg, 4294967296) AS directory,
            bitAnd(seg, 4294967295) AS sequence,
            rows AS segment_rows,
            toDecimal128(work, 0) AS segment_work,
            time >= {day:DateTime} AND time < {day:DateTime} + 86400 AS of_day,
            time < {day:DateTime} AS before_day,
            time >= {day:DateTime} + 86400 AS after_day
        FROM segments FINAL
    )
    GROUP BY instance, directory
    HAVING segments_of_day > 0
) AS counted
ANY LEFT JOIN
(
    SELECT instance, intDiv(seg, 4294967296) AS directory, count() AS rows_here, sum(toDecimal128(work, 0)) AS work_here
    FROM shares
    WHERE time >= {day:DateTime} AND time < {day:DateTime} + 86400
    GROUP BY instance, directory
) AS known USING (instance, directory)
ORDER BY instance, directory
