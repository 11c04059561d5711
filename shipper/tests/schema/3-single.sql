CREATE DATABASE IF NOT EXISTS `otedama`;

CREATE TABLE IF NOT EXISTS `otedama`.`shares`
(
    `instance` UInt16 COMMENT 'Number of the server within its pool, 0 to 255',
    `seg` UInt64 COMMENT 'Sealed segment: directory epoch (32 random bits) << 32 | sequence',
    `seq` UInt32 COMMENT 'Position of the row in its segment; (seg, seq) is unique for ever' CODEC(Delta, LZ4),
    `time` DateTime('UTC') COMMENT 'When the bytes of the submit were read, seconds, UTC' CODEC(Delta, LZ4),
    `us` UInt32 COMMENT 'Microseconds within the second of time' CODEC(NONE),
    `session` UInt64 COMMENT 'Stratum session: instance 8 bits, boot epoch 24, counter 32; 0 in a sum of layout rollup',
    `worker` UInt64 COMMENT 'First 8 bytes of SHA-256 of (pool, 0, account.worker); 0 when unauthorized',
    `job` UInt64 COMMENT 'Job: instance 8 bits, boot epoch 24, counter 32; 0 when the job named is unknown, and in a sum',
    `coin` Enum8('bitcoin' = 0) COMMENT 'Coin of the job',
    `status` Enum8('accepted' = 0, 'stale' = 1, 'duplicate' = 2, 'low_difficulty' = 3, 'bad_time' = 4, 'bad_version' = 5, 'malformed' = 6, 'unauthorized' = 7, 'overload' = 8) COMMENT 'Verdict; only accepted rows are credited',
    `flags` UInt8 COMMENT '1 block candidate, 2 late: a newer job of the same parent had been sent, 4 judged in the grace after a retarget, 8 the candidate reached the node by way of the log, as its ring was full',
    `work` UInt128 COMMENT 'Expected hashes it was judged at, exact; credited where accepted',
    `share_difficulty` Float32 COMMENT 'Difficulty of the hash, for display; 0 where nothing was hashed; the best of a sum' CODEC(NONE),
    `nonce` UInt32 COMMENT 'Header nonce; 0 in a sum' CODEC(NONE),
    `ntime` UInt32 COMMENT 'Header time, seconds; 0 in layout lean and in a sum' CODEC(Delta, LZ4),
    `version` UInt32 COMMENT 'Header version as hashed, rolled bits included; 0 in layout lean and in a sum' CODEC(T64, LZ4),
    `extranonce2` UInt64 COMMENT 'Extranonce2 as a big-endian number; 0 in layout lean and in a sum' CODEC(T64, LZ4),
    `latency_us` UInt32 COMMENT 'Bytes read to append to the log, microseconds; the mean of a sum' CODEC(T64, LZ4),
    `share_count` UInt32 DEFAULT 1 COMMENT 'Shares the row stands for: 1, or the accepted shares of a worker and second in a sum of layout rollup; take sum(share_count), not count()' CODEC(T64, LZ4),
    `hash` FixedString(32) COMMENT 'Hash of the header, most significant byte first as explorers show it: hex(hash); zeros in every layout but full',
    `ts` DateTime64(6, 'UTC') ALIAS toDateTime64(time, 6, 'UTC') + toIntervalMicrosecond(us) COMMENT 'time and us in one'
)
ENGINE = MergeTree()
PARTITION BY toYYYYMMDD(time, 'UTC')
ORDER BY (worker, time)
TTL time + toIntervalDay(90)
SETTINGS non_replicated_deduplication_window = 100000, ttl_only_drop_parts = 1
COMMENT 'One row per submit of a subscribed session, accepted or refused';

CREATE TABLE IF NOT EXISTS `otedama`.`workers`
(
    `worker` UInt64 COMMENT 'First 8 bytes of SHA-256 of (pool, 0, account.worker)',
    `name` String COMMENT 'account.worker as normalised',
    `account` String COMMENT 'The part of the name before its first dot',
    `session` UInt64 COMMENT 'Session it was authorized on',
    `time` DateTime('UTC') COMMENT 'When it was last authorized, seconds, UTC',
    `us` UInt32 COMMENT 'Microseconds within the second of time'
)
ENGINE = ReplacingMergeTree(time)
ORDER BY (worker)
COMMENT 'Names of workers; the newest authorization of each under FINAL';

CREATE TABLE IF NOT EXISTS `otedama`.`sessions`
(
    `session` UInt64 COMMENT 'Instance 8 bits, boot epoch 24, counter 32',
    `extranonce1` UInt32 COMMENT 'Extranonce1 as a big-endian number',
    `extranonce2_bytes` UInt8 COMMENT 'Bytes of extranonce2',
    `net` UInt8 COMMENT 'Index of the net stage that serves it',
    `peer` String COMMENT 'Peer address',
    `agent` String COMMENT 'User agent of mining.subscribe',
    `time` DateTime('UTC') COMMENT 'When it subscribed, seconds, UTC',
    `us` UInt32 COMMENT 'Microseconds within the second of time'
)
ENGINE = ReplacingMergeTree()
ORDER BY (session)
COMMENT 'Stratum sessions';

CREATE TABLE IF NOT EXISTS `otedama`.`jobs`
(
    `job` UInt64 COMMENT 'Instance 8 bits, boot epoch 24, counter 32; stands in the coinbase',
    `wire_id` UInt32 COMMENT 'Job id as Stratum V1 sends it, a number',
    `coin` Enum8('bitcoin' = 0) COMMENT 'Coin it mines',
    `height` UInt32 COMMENT 'Height of the block it would make',
    `prev_hash` String COMMENT 'Previous block hash, hex as explorers show it',
    `version` UInt32 COMMENT 'Header version before rolled bits',
    `nbits` UInt32 COMMENT 'Compact network target',
    `ntime` UInt32 COMMENT 'Template time, seconds',
    `ntime_min` UInt32 COMMENT 'Smallest header time allowed, seconds',
    `coinbase_prefix` String COMMENT 'Coinbase before extranonce1, hex',
    `coinbase_suffix` String COMMENT 'Coinbase after extranonce2, hex',
    `branch` String COMMENT 'Merkle siblings of the coinbase, leaf to root, internal byte order, hex, 64 digits each',
    `extranonce2_bytes` UInt8 COMMENT 'Bytes of extranonce2',
    `network_target` String COMMENT 'Network target, hex as explorers show hashes',
    `clean` UInt8 COMMENT '1 for the first job on a new parent',
    `time` DateTime('UTC') COMMENT 'When the template arrived, seconds, UTC',
    `us` UInt32 COMMENT 'Microseconds within the second of time',
    `ended` DateTime('UTC') COMMENT 'When it ended, seconds, UTC; 1970-01-01 while it is live',
    `ended_us` UInt32 COMMENT 'Microseconds within the second of ended'
)
ENGINE = ReplacingMergeTree(ended)
ORDER BY (job)
COMMENT 'Jobs; once a job has ended the row that says so wins under FINAL';

CREATE TABLE IF NOT EXISTS `otedama`.`blocks`
(
    `job` UInt64 COMMENT 'Job it solves',
    `hash` String COMMENT 'Block hash, hex as explorers show it',
    `height` UInt32 COMMENT 'Height',
    `worker` UInt64 COMMENT 'Worker that found it',
    `session` UInt64 COMMENT 'Session that found it',
    `status` Enum8('found' = 0, 'accepted' = 1, 'superseded' = 2, 'rejected' = 3) COMMENT 'What became of it',
    `reason` String COMMENT 'Why it was refused, in the node\'s words',
    `time` DateTime('UTC') COMMENT 'When its share was read, seconds, UTC',
    `us` UInt32 COMMENT 'Microseconds within the second of time',
    `log_offset` UInt64 COMMENT 'Place of the record in the dimension log: the newest of a block wins under FINAL'
)
ENGINE = ReplacingMergeTree(log_offset)
ORDER BY (job, hash)
COMMENT 'Block candidates; the last known state of each under FINAL';

CREATE TABLE IF NOT EXISTS `otedama`.`runs`
(
    `run` UInt32 COMMENT 'Instance 8 bits, boot epoch 24: the upper half of the run\'s sessions and jobs',
    `instance` UInt16 COMMENT 'Number of the server within its pool',
    `epoch` UInt32 COMMENT 'Boot epoch, 24 random bits',
    `pool` String COMMENT 'Name of the pool',
    `build` String COMMENT 'Version and commit of the binary',
    `kernel` String COMMENT 'Hashing kernel chosen at boot',
    `driver` String COMMENT 'Network driver chosen at boot',
    `tier` String COMMENT 'Acknowledgement tier: memory, process or disk',
    `time` DateTime('UTC') COMMENT 'When it started, seconds, UTC',
    `us` UInt32 COMMENT 'Microseconds within the second of time'
)
ENGINE = ReplacingMergeTree()
ORDER BY (run)
COMMENT 'Boots of the server';

CREATE TABLE IF NOT EXISTS `otedama`.`segments`
(
    `instance` UInt16 COMMENT 'Number of the server within its pool',
    `seg` UInt64 COMMENT 'Directory epoch << 32 | sequence',
    `name` String COMMENT 'File name without its ending',
    `rows` UInt32 COMMENT 'Rows in the segment',
    `accepted` UInt32 COMMENT 'Accepted shares',
    `work` UInt128 COMMENT 'Sum of work over all of its rows',
    `work_credited` UInt128 COMMENT 'Sum of work over its accepted rows',
    `native_bytes` UInt64 COMMENT 'Bytes of the Native block',
    `content_hash` String COMMENT 'Hash of the Native block, hex',
    `time` DateTime('UTC') COMMENT 'Arrival of its first row, seconds, UTC',
    `last_time` DateTime('UTC') COMMENT 'Arrival of its last row, seconds, UTC',
    `layout` Enum8('lean' = 0, 'replayable' = 1, 'full' = 2, 'rollup' = 3) DEFAULT 'replayable' COMMENT 'What its rows keep',
    `shares` UInt64 DEFAULT rows COMMENT 'Shares that its rows stand for: as many as rows, but in layout rollup'
)
ENGINE = ReplacingMergeTree()
ORDER BY (instance, seg)
COMMENT 'Segments that the server has acknowledged, as the log counts them';

CREATE TABLE IF NOT EXISTS `otedama`.`worker_minute`
(
    `worker` UInt64 COMMENT 'Worker; its name stands in workers',
    `minute` DateTime('UTC') COMMENT 'Start of the minute, UTC',
    `coin` Enum8('bitcoin' = 0) COMMENT 'Coin',
    `status` Enum8('accepted' = 0, 'stale' = 1, 'duplicate' = 2, 'low_difficulty' = 3, 'bad_time' = 4, 'bad_version' = 5, 'malformed' = 6, 'unauthorized' = 7, 'overload' = 8) COMMENT 'Verdict',
    `shares` UInt64 COMMENT 'Shares; take sum(shares), rows of a key merge later',
    `work` UInt128 COMMENT 'Expected hashes; sum(work) is exact past 2^64'
)
ENGINE = SummingMergeTree((shares, work))
PARTITION BY toYYYYMM(minute, 'UTC')
ORDER BY (worker, minute, coin, status)
SETTINGS non_replicated_deduplication_window = 100000
COMMENT 'Shares and work by worker and minute';

CREATE MATERIALIZED VIEW IF NOT EXISTS `otedama`.`worker_minute_view` TO `otedama`.`worker_minute` AS
SELECT worker, toStartOfMinute(time, 'UTC') AS minute, coin, status, sum(share_count) AS shares, sum(work) AS work
FROM `otedama`.`shares`
GROUP BY worker, minute, coin, status;

CREATE TABLE IF NOT EXISTS `otedama`.`worker_hour`
(
    `worker` UInt64 COMMENT 'Worker; its name stands in workers',
    `hour` DateTime('UTC') COMMENT 'Start of the hour, UTC',
    `coin` Enum8('bitcoin' = 0) COMMENT 'Coin',
    `status` Enum8('accepted' = 0, 'stale' = 1, 'duplicate' = 2, 'low_difficulty' = 3, 'bad_time' = 4, 'bad_version' = 5, 'malformed' = 6, 'unauthorized' = 7, 'overload' = 8) COMMENT 'Verdict',
    `shares` UInt64 COMMENT 'Shares; take sum(shares), rows of a key merge later',
    `work` UInt128 COMMENT 'Expected hashes; sum(work) is exact past 2^64'
)
ENGINE = SummingMergeTree((shares, work))
PARTITION BY toYYYYMM(hour, 'UTC')
ORDER BY (worker, hour, coin, status)
SETTINGS non_replicated_deduplication_window = 100000
COMMENT 'Shares and work by worker and hour';

CREATE MATERIALIZED VIEW IF NOT EXISTS `otedama`.`worker_hour_view` TO `otedama`.`worker_hour` AS
SELECT worker, toStartOfHour(time, 'UTC') AS hour, coin, status, sum(share_count) AS shares, sum(work) AS work
FROM `otedama`.`shares`
GROUP BY worker, hour, coin, status;

CREATE TABLE IF NOT EXISTS `otedama`.`pool_minute`
(
    `minute` DateTime('UTC') COMMENT 'Start of the minute, UTC',
    `coin` Enum8('bitcoin' = 0) COMMENT 'Coin',
    `status` Enum8('accepted' = 0, 'stale' = 1, 'duplicate' = 2, 'low_difficulty' = 3, 'bad_time' = 4, 'bad_version' = 5, 'malformed' = 6, 'unauthorized' = 7, 'overload' = 8) COMMENT 'Verdict',
    `shares` UInt64 COMMENT 'Shares; take sum(shares), rows of a key merge later',
    `work` UInt128 COMMENT 'Expected hashes; sum(work) is exact past 2^64',
    `block_candidates` UInt64 COMMENT 'Rows flagged as block candidates',
    `latency_us_sum` UInt64 COMMENT 'Sum of latency_us; divide by sum(shares) for the mean'
)
ENGINE = SummingMergeTree((shares, work, block_candidates, latency_us_sum))
PARTITION BY toYYYYMM(minute, 'UTC')
ORDER BY (minute, coin, status)
SETTINGS non_replicated_deduplication_window = 100000
COMMENT 'Shares and work of the pool by minute';

CREATE MATERIALIZED VIEW IF NOT EXISTS `otedama`.`pool_minute_view` TO `otedama`.`pool_minute` AS
SELECT toStartOfMinute(time, 'UTC') AS minute, coin, status, sum(share_count) AS shares, sum(work) AS work, sum(bitAnd(flags, 1)) AS block_candidates, sum(toUInt64(latency_us) * share_count) AS latency_us_sum
FROM `otedama`.`shares`
GROUP BY minute, coin, status;

CREATE VIEW IF NOT EXISTS `otedama`.`shares_named` AS
SELECT instance, seg, seq, time, us, session, worker, job, coin, status, flags, work, share_difficulty, nonce, ntime, version, extranonce2, latency_us, share_count, hash, ts, worker_name, account
FROM `otedama`.`shares`
ANY LEFT JOIN
(
    SELECT worker, any(name) AS worker_name, any(account) AS account
    FROM `otedama`.`workers`
    GROUP BY worker
) AS named USING (worker);

CREATE VIEW IF NOT EXISTS `otedama`.`schema_version` AS
SELECT toUInt32(3) AS version;

