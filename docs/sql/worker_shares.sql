-- worker_shares: The last shares of a worker, row by row
-- question: What did this worker send last?
-- param worker String: its name
-- param since DateTime = 1d: start of the span
-- param until DateTime = now: end of the span
-- param rows UInt64 = 50: rows to show
-- answer: The newest first. seg and seq name a share for share_explained and share_rehashed.
SELECT time, us, status, round(toFloat64(work) * 65535 / exp2(48), 6) AS difficulty, share_difficulty, latency_us, session, job, seg, seq
FROM shares
WHERE worker IN (SELECT worker FROM workers WHERE name = {worker:String}) AND time >= {since:DateTime} AND time < {until:DateTime}
ORDER BY time DESC, us DESC, seg DESC, seq DESC
LIMIT {rows:UInt64}
