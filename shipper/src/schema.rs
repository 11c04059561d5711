//! The tables as data, and their DDL for three kinds of server: one modern server, a cluster of them, and Debian's 18.16.
//!
//! What holds in all three: time is UTC in every function and in the partition key; a segment never crosses a UTC day, so one insert is one part;
//! `sum(work)` over a roll-up is exact past 2^64. Dimension tables are Replacing tables by key: a record that is shipped twice is still one row under `FINAL`.
//!
//! The schema has a version, which the view `schema_version` tells; `migration` leads from any older one to today's, and a test starts from each.
use otedama_sharelog::Layout;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Version of the tables and views that `ddl` makes. 1: until November 2026, without a version of its own. 2: `schema_version`, TTL on `shares`, `ts` in `shares_named`.
/// 3: row layouts: `share_count` and `hash` in `shares`, `layout` and `shares` in `segments`, roll-ups that count what sums stand for.
pub const VERSION: u32 = 3;

/// Version that brought the columns of row layouts: before it a server takes no segment of layout `full` or `rollup`.
pub const LAYOUTS_FROM: u32 = 3;

/// The view that tells the version of the schema.
pub const VERSION_VIEW: &str = "schema_version";

/// Days that rows of `shares` are kept unless told otherwise; the roll-ups stay.
pub const KEEP_DAYS: u32 = 90;

/// The server the DDL is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// One modern server (24.8 or later): deduplication windows, `work` as UInt128.
    Single,
    /// A cluster of modern servers of this name: Replicated tables `*_local` per shard, Distributed tables over them, dimension tables in full on every node.
    Cluster(String),
    /// ClickHouse before 24.8, such as Debian's 18.16: no deduplication window, no UInt128; roll-ups sum in Decimal(38, 0).
    Legacy,
}

/// Insert identities the server remembers per table. At 10 inserts a second (the most that the shipper makes) this is close to three hours of retries.
pub const DEDUPLICATION_WINDOW: u32 = 100_000;

/// `coin` on the wire and in tables. Append-only.
pub const COIN_TYPE: &str = "Enum8('bitcoin' = 0)";

/// `status` on the wire and in tables. Append-only; the numbers are those of `ShareStatus`.
pub const STATUS_TYPE: &str = "Enum8('accepted' = 0, 'stale' = 1, 'duplicate' = 2, 'low_difficulty' = 3, 'bad_time' = 4, 'bad_version' = 5, 'malformed' = 6, 'unauthorized' = 7, 'overload' = 8)";

/// What the rows of a segment keep. Append-only.
pub const LAYOUT_TYPE: &str = "Enum8('lean' = 0, 'replayable' = 1, 'full' = 2, 'rollup' = 3)";

/// A column that the shipper sends.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name, the same on the wire and in the table.
    pub name: &'static str,
    /// Its type in the table; `WORK` stands for the flavour's widest integer.
    pub kind: &'static str,
    /// What it is where an insert has it not; empty for the zero of its type.
    default: &'static str,
    /// Version of the schema that brought it.
    since: u32,
    /// Codec on modern servers; empty for the server's default. LZ4 mixes cost least CPU for about 4 % more disk than ZSTD(1).
    codec: &'static str,
    /// What it means.
    pub comment: &'static str,
}

/// A table that the shipper fills.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name in the database.
    pub name: &'static str,
    /// The columns of an insert, in order.
    pub columns: &'static [Column],
    /// Sorting key of a dimension table.
    key: &'static str,
    /// Version column of a dimension table; empty where all rows of a key are equal.
    version: &'static str,
    /// What one row is.
    comment: &'static str,
}

/// Comment of `work` in the legacy table of shares, the one whose bare sum wraps.
const WORK_THAT_WRAPS: &str = "Expected hashes it was judged at, exact; credited where accepted; its difficulty is work * 65535 / 2^48. sum(work) wraps here: take sum(toDecimal128(work, 0)), a roll-up or shares_named";

/// The column of modern servers that no insert has.
const TS: &str = "ts";
const TS_COMMENT: &str = "time and us in one";

/// Stands in `Column::kind` for UInt128 in a modern table and for Decimal(38, 0) in a legacy one.
const WORK: &str = "WORK";

const fn column(name: &'static str, kind: &'static str, comment: &'static str) -> Column {
    Column { name, kind, default: "", since: 1, codec: "", comment }
}

const fn coded(name: &'static str, kind: &'static str, codec: &'static str, comment: &'static str) -> Column {
    Column { name, kind, default: "", since: 1, codec, comment }
}

impl Column {
    const fn since(self, since: u32) -> Self {
        Self { since, ..self }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }
}

/// One row per submit of a subscribed session, or per sum of layout `rollup`. The columns of a segment are those of its layout, in this order.
pub const SHARES: Table = Table {
    name: "shares",
    columns: &[
        column("instance", "UInt16", "Number of the server within its pool, 0 to 255"),
        column("seg", "UInt64", "Sealed segment: directory epoch (32 random bits) << 32 | sequence"),
        coded("seq", "UInt32", "Delta, LZ4", "Position of the row in its segment; (seg, seq) is unique for ever"),
        coded("time", "DateTime('UTC')", "Delta, LZ4", "When the bytes of the submit were read, seconds, UTC"),
        coded("us", "UInt32", "NONE", "Microseconds within the second of time"),
        column("session", "UInt64", "Stratum session: instance 8 bits, boot epoch 24, counter 32; 0 in a sum of layout rollup"),
        column("worker", "UInt64", "First 8 bytes of SHA-256 of (pool, 0, account.worker); 0 when unauthorized"),
        column("job", "UInt64", "Job: instance 8 bits, boot epoch 24, counter 32; 0 when the job named is unknown, and in a sum"),
        column("coin", COIN_TYPE, "Coin of the job"),
        column("status", STATUS_TYPE, "Verdict; only accepted rows are credited"),
        column(
            "flags",
            "UInt8",
            "1 block candidate, 2 late: a newer job of the same parent had been sent, 4 judged in the grace after a retarget, 8 the candidate reached the node by way of the log, as its ring was full",
        ),
        column("work", WORK, "Expected hashes it was judged at, exact; credited where accepted; its difficulty is work * 65535 / 2^48"),
        coded("share_difficulty", "Float32", "NONE", "Difficulty of the hash, for display; 0 where nothing was hashed; the best of a sum"),
        coded("nonce", "UInt32", "NONE", "Header nonce; 0 in a sum"),
        coded("ntime", "UInt32", "Delta, LZ4", "Header time, seconds; 0 in layout lean and in a sum"),
        coded("version", "UInt32", "T64, LZ4", "Header version as hashed, rolled bits included; in a row of bad_version, which is not hashed, the bits as the miner sent them; 0 in layout lean and in a sum"),
        coded("extranonce2", "UInt64", "T64, LZ4", "Extranonce2 as a big-endian number; 0 in layout lean and in a sum"),
        coded("latency_us", "UInt32", "T64, LZ4", "Bytes read to append to the log, microseconds; the mean of a sum"),
        coded(
            "share_count",
            "UInt32",
            "T64, LZ4",
            "Shares the row stands for: 1, or the accepted shares of a worker and second in a sum of layout rollup; take sum(share_count), not count()",
        )
        .or("1")
        .since(3),
        column("hash", "FixedString(32)", "Hash of the header, most significant byte first as explorers show it: hex(hash); zeros in every layout but full")
            .since(3),
    ],
    key: "worker, time",
    version: "",
    comment: "One row per submit of a subscribed session, accepted or refused",
};

/// Names of workers.
pub const WORKERS: Table = Table {
    name: "workers",
    columns: &[
        column("worker", "UInt64", "First 8 bytes of SHA-256 of (pool, 0, account.worker)"),
        column("name", "String", "account.worker as normalised"),
        column("account", "String", "The part of the name before its first dot"),
        column("session", "UInt64", "Session it was authorized on"),
        column("time", "DateTime('UTC')", "When it was last authorized, seconds, UTC"),
        column("us", "UInt32", "Microseconds within the second of time"),
    ],
    key: "worker",
    version: "time",
    comment: "Names of workers; the newest authorization of each under FINAL",
};

/// Stratum sessions.
pub const SESSIONS: Table = Table {
    name: "sessions",
    columns: &[
        column("session", "UInt64", "Instance 8 bits, boot epoch 24, counter 32"),
        column("extranonce1", "UInt32", "Extranonce1 as a big-endian number"),
        column("extranonce2_bytes", "UInt8", "Bytes of extranonce2"),
        column("net", "UInt8", "Index of the net stage that serves it"),
        column("peer", "String", "Peer address with its port behind the last colon"),
        column("agent", "String", "User agent of mining.subscribe"),
        column("time", "DateTime('UTC')", "When it subscribed, seconds, UTC"),
        column("us", "UInt32", "Microseconds within the second of time"),
    ],
    key: "session",
    version: "",
    comment: "Stratum sessions",
};

/// Jobs, with what is needed to hash their shares again.
pub const JOBS: Table = Table {
    name: "jobs",
    columns: &[
        column("job", "UInt64", "Instance 8 bits, boot epoch 24, counter 32; stands in the coinbase"),
        column("wire_id", "UInt32", "Job id as Stratum V1 sends it, a number"),
        column("coin", COIN_TYPE, "Coin it mines"),
        column("height", "UInt32", "Height of the block it would make"),
        column("prev_hash", "String", "Previous block hash, hex as explorers show it"),
        column("version", "UInt32", "Header version before rolled bits"),
        column("nbits", "UInt32", "Compact network target"),
        column("ntime", "UInt32", "Template time, seconds"),
        column("ntime_min", "UInt32", "Smallest header time allowed, seconds"),
        column("coinbase_prefix", "String", "Coinbase before extranonce1, hex"),
        column("coinbase_suffix", "String", "Coinbase after extranonce2, hex"),
        column("branch", "String", "Merkle siblings of the coinbase, leaf to root, internal byte order, hex, 64 digits each"),
        column("extranonce2_bytes", "UInt8", "Bytes of extranonce2"),
        column("network_target", "String", "Network target, hex as explorers show hashes"),
        column("clean", "UInt8", "1 for the first job on a new parent"),
        column("time", "DateTime('UTC')", "When the template arrived, seconds, UTC"),
        column("us", "UInt32", "Microseconds within the second of time"),
        column(
            "ended",
            "DateTime('UTC')",
            "When it ended, seconds, UTC; 1970-01-01 while it is live. A job whose server was killed ended with the last that its log shows of that server; the next start says so",
        ),
        column("ended_us", "UInt32", "Microseconds within the second of ended; 0 while it is live"),
    ],
    key: "job",
    version: "ended",
    comment: "Jobs; once a job has ended the row that says so wins under FINAL",
};

/// Block candidates and what became of them.
pub const BLOCKS: Table = Table {
    name: "blocks",
    columns: &[
        column("job", "UInt64", "Job it solves"),
        column("hash", "String", "Block hash, hex as explorers show it"),
        column("height", "UInt32", "Height"),
        column("worker", "UInt64", "Worker that found it"),
        column("session", "UInt64", "Session that found it"),
        column("status", "Enum8('found' = 0, 'accepted' = 1, 'superseded' = 2, 'rejected' = 3)", "What became of it"),
        column("reason", "String", "Why it was refused, in the node's words"),
        column("time", "DateTime('UTC')", "When its share was read, seconds, UTC"),
        column("us", "UInt32", "Microseconds within the second of time"),
        column("log_offset", "UInt64", "Place of the record in the dimension log: the newest of a block wins under FINAL"),
    ],
    key: "job, hash",
    version: "log_offset",
    comment: "Block candidates; the last known state of each under FINAL",
};

/// Boots of the server.
pub const RUNS: Table = Table {
    name: "runs",
    columns: &[
        column("run", "UInt32", "Instance 8 bits, boot epoch 24: the upper half of the run's sessions and jobs"),
        column("instance", "UInt16", "Number of the server within its pool"),
        column("epoch", "UInt32", "Boot epoch, 24 random bits"),
        column("pool", "String", "Name of the pool"),
        column("build", "String", "Version and commit of the binary"),
        column("kernel", "String", "Hashing kernel chosen at boot"),
        column("driver", "String", "Network driver chosen at boot"),
        column("tier", "String", "Acknowledgement tier: memory, process or disk"),
        column("time", "DateTime('UTC')", "When it started, seconds, UTC"),
        column("us", "UInt32", "Microseconds within the second of time"),
    ],
    key: "run",
    version: "",
    comment: "Boots of the server",
};

/// Sealed segments that the server has acknowledged, as the log counts them.
pub const SEGMENTS: Table = Table {
    name: "segments",
    columns: &[
        column("instance", "UInt16", "Number of the server within its pool"),
        column("seg", "UInt64", "Directory epoch << 32 | sequence"),
        column("name", "String", "File name without its ending"),
        column("rows", "UInt32", "Rows in the segment"),
        column("accepted", "UInt32", "Accepted shares"),
        column("work", WORK, "Sum of work over all of its rows"),
        column("work_credited", WORK, "Sum of work over its accepted rows"),
        column("native_bytes", "UInt64", "Bytes of the Native block"),
        column("content_hash", "String", "Hash of the Native block, hex"),
        column("time", "DateTime('UTC')", "Arrival of its first row, seconds, UTC"),
        column("last_time", "DateTime('UTC')", "Arrival of its last row, seconds, UTC"),
        column("layout", LAYOUT_TYPE, "What its rows keep").or("'replayable'").since(3),
        column("shares", "UInt64", "Shares that its rows stand for: as many as rows, but in layout rollup").or("rows").since(3),
    ],
    key: "instance, seg",
    version: "",
    comment: "Segments that the server has acknowledged, as the log counts them",
};

/// Every table that the shipper inserts into.
pub const TABLES: [&Table; 7] = [&SHARES, &WORKERS, &SESSIONS, &JOBS, &BLOCKS, &RUNS, &SEGMENTS];

/// A roll-up: a Summing table and the view on `shares` that fills it.
#[derive(Clone, Copy, Debug)]
pub struct RollUp {
    /// Name of the Summing table; its view is called `NAME_view`.
    pub name: &'static str,
    /// Key columns: name, type, expression over `shares`, comment.
    key: &'static [(&'static str, &'static str, &'static str, &'static str)],
    /// Summed columns: name, type, expression, comment.
    sums: &'static [(&'static str, &'static str, &'static str, &'static str)],
    comment: &'static str,
}

const MINUTE: (&str, &str, &str, &str) = ("minute", "DateTime('UTC')", "toStartOfMinute(time, 'UTC')", "Start of the minute, UTC");
const HOUR: (&str, &str, &str, &str) = ("hour", "DateTime('UTC')", "toStartOfHour(time, 'UTC')", "Start of the hour, UTC");
const WORKER: (&str, &str, &str, &str) = ("worker", "UInt64", "worker", "Worker; its name stands in workers");
const COIN: (&str, &str, &str, &str) = ("coin", COIN_TYPE, "coin", "Coin");
const STATUS: (&str, &str, &str, &str) = ("status", STATUS_TYPE, "status", "Verdict");
const COUNT_SHARES: &str = "sum(share_count)";
const LATENCY_SUM: &str = "sum(toUInt64(latency_us) * share_count)";
const COUNT: (&str, &str, &str, &str) = ("shares", "UInt64", COUNT_SHARES, "Shares; take sum(shares), rows of a key merge later");
const WORK_SUM: (&str, &str, &str, &str) = ("work", WORK, WORK, "Expected hashes; sum(work) is exact past 2^64");

/// The roll-ups. Latency quantiles are left out: a digest costs the insert 63 % more CPU, and the stats endpoint has them.
pub const ROLL_UPS: [RollUp; 3] = [
    RollUp {
        name: "worker_minute",
        key: &[WORKER, MINUTE, COIN, STATUS],
        sums: &[COUNT, WORK_SUM],
        comment: "Shares and work by worker and minute",
    },
    RollUp {
        name: "worker_hour",
        key: &[WORKER, HOUR, COIN, STATUS],
        sums: &[COUNT, WORK_SUM],
        comment: "Shares and work by worker and hour",
    },
    RollUp {
        name: "pool_minute",
        key: &[MINUTE, COIN, STATUS],
        sums: &[
            COUNT,
            WORK_SUM,
            ("block_candidates", "UInt64", "sum(bitAnd(flags, 1))", "Rows flagged as block candidates"),
            ("latency_us_sum", "UInt64", LATENCY_SUM, "Sum of latency_us; divide by sum(shares) for the mean"),
        ],
        comment: "Shares and work of the pool by minute",
    },
];

impl RollUp {
    /// The column that tells its minute or hour.
    pub fn time_column(&self) -> &'static str {
        self.key.iter().find(|(_, kind, ..)| kind.starts_with("DateTime")).map_or(MINUTE.0, |(name, ..)| *name)
    }

    /// What its view selects from `shares` of schema `version`, and the names of its key.
    fn selected(&self, legacy: bool, version: u32) -> (String, String) {
        let work = if legacy { "sum(toDecimal128(work, 0))" } else { "sum(work)" };
        let selected: Vec<_> = self
            .key
            .iter()
            .chain(self.sums)
            .map(|(name, _, expression, _)| {
                let expression = match *expression {
                    WORK => work,
                    COUNT_SHARES => count_shares(version),
                    LATENCY_SUM if version < LAYOUTS_FROM => "sum(latency_us)",
                    other => other,
                };
                // An alias equal to the column it is made of would shadow it in the query.
                if expression == *name { (*name).to_owned() } else { format!("{expression} AS {name}") }
            })
            .collect();
        (selected.join(", "), self.names(self.key))
    }

    fn names(&self, columns: &[(&'static str, &'static str, &'static str, &'static str)]) -> String {
        columns.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The hours, as seconds since the epoch, from `since` to before `until` (expressions of type DateTime) of which any key has other rows or other work than `shares`.
    pub(crate) fn differing_hours_sql(&self, database: &str, version: u32, since: &str, until: &str) -> String {
        let table = |name: &str| format!("{}.{}", identifier(database), identifier(name));
        let (time, keys) = (self.time_column(), self.names(self.key));
        let of_shares: Vec<_> = self
            .key
            .iter()
            .map(|(name, _, expression, _)| if expression == name { (*name).to_owned() } else { format!("{expression} AS {name}") })
            .collect();
        format!(
            "SELECT toUInt32(toStartOfHour({time}, 'UTC')) AS hour_start, count() AS groups FROM (SELECT {keys}, sum(n) AS rows_shares, sum(m) AS rows_here, sum(w) AS work_shares, \
             sum(v) AS work_here FROM (SELECT {}, {} AS n, toUInt64(0) AS m, sum(toDecimal128(work, 0)) AS w, toDecimal128(0, 0) AS v FROM {} \
             WHERE time >= {since} AND time < {until} GROUP BY {keys} UNION ALL SELECT {keys}, toUInt64(0) AS n, sum(shares) AS m, toDecimal128(0, 0) AS w, \
             sum(toDecimal128(work, 0)) AS v FROM {} WHERE {time} >= {since} AND {time} < {until} GROUP BY {keys}) GROUP BY {keys} \
             HAVING rows_shares != rows_here OR work_shares != work_here) GROUP BY hour_start ORDER BY hour_start FORMAT TabSeparated",
            of_shares.join(", "),
            count_shares(version),
            table(SHARES.name),
            table(self.name)
        )
    }

    /// The statements that make it again from `shares`, from `since` to before `until`: delete, insert. Nothing else may write into these hours meanwhile. `token` marks the
    /// insert as a new one on servers that would take it for a repetition of an earlier one of the same rows.
    pub(crate) fn rebuild_sql(&self, database: &str, version: u32, since: &str, until: &str, token: Option<&str>) -> [String; 2] {
        let table = |name: &str| format!("{}.{}", identifier(database), identifier(name));
        let time = self.time_column();
        let (selected, keys) = self.selected(token.is_none(), version);
        let settings =
            token.map_or_else(String::new, |token| format!(" SETTINGS async_insert = 0, insert_deduplication_token = {}", literal(token)));
        [
            format!("ALTER TABLE {} DELETE WHERE {time} >= {since} AND {time} < {until}", table(self.name)),
            format!(
                "INSERT INTO {} ({}, {}){settings} SELECT {selected} FROM {} WHERE time >= {since} AND time < {until} GROUP BY {keys}",
                table(self.name),
                self.names(self.key),
                self.names(self.sums),
                table(SHARES.name)
            ),
        ]
    }
}

impl Table {
    /// `(a, b, c)`: the column list of an insert. It is always sent, so that columns a user adds by ALTER take their defaults.
    pub fn column_list(&self) -> String {
        self.column_list_at(VERSION)
    }

    /// As `column_list`, of a server whose schema has this version.
    pub(crate) fn column_list_at(&self, version: u32) -> String {
        let names: Vec<_> = self.columns_at(version).map(|column| column.name).collect();
        format!("({})", names.join(", "))
    }

    /// The columns that version `version` of the schema has.
    pub(crate) fn columns_at(&self, version: u32) -> impl Iterator<Item = &'static Column> {
        self.columns.iter().filter(move |column| column.since <= version)
    }
}

/// The column list of a segment's insert: what its layout has.
pub fn segment_columns(layout: Layout) -> String {
    let names: Vec<_> = layout.column_names().collect();
    format!("({})", names.join(", "))
}

/// What counts the shares of `shares` in this version of the schema: before sums could stand there, rows.
pub(crate) fn count_shares(version: u32) -> &'static str {
    if version < LAYOUTS_FROM { "count()" } else { COUNT_SHARES }
}

/// True for a sum or summand of work.
pub(crate) fn is_work(column: &Column) -> bool {
    column.kind == WORK
}

/// The type of a column of `SHARES` in a sealed segment.
pub(crate) fn wire_kind(column: &Column) -> &'static str {
    if is_work(column) { "UInt64" } else { column.kind }
}

/// Backtick-quotes an identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// Quotes a string literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The statements that make database and tables, each `IF NOT EXISTS` and without a closing semicolon, in the order to run them. Rows of `shares` go after `keep_days`
/// (0: never) where the server knows TTL; on 18.16 drop partitions by hand.
pub fn ddl(flavour: &Flavour, database: &str, keep_days: u32) -> Vec<String> {
    let scheme = Scheme { flavour, database, keep_days };
    let mut statements = vec![format!("CREATE DATABASE IF NOT EXISTS {}{}", identifier(database), scheme.on_cluster())];
    statements.extend(scheme.shares());
    for table in &TABLES[1..] {
        statements.push(scheme.dimension(table));
    }
    for roll_up in &ROLL_UPS {
        statements.extend(scheme.roll_up(roll_up));
    }
    statements.push(scheme.shares_named());
    statements.push(scheme.version_view());
    statements
}

/// The statements that lead from version `from` to today's, in the order to run them; each can be run again. None of them removes a row: a TTL for `shares`, which version 2
/// gives new tables, is for the operator of an older one to set (`script_from` prints the statement).
pub fn migration(flavour: &Flavour, database: &str, from: u32) -> Vec<String> {
    let scheme = Scheme { flavour, database, keep_days: 0 };
    let replaced = |name: &str, create: String| [format!("DROP TABLE IF EXISTS {}{}", scheme.table(name), scheme.on_cluster()), create];
    let mut statements = Vec::new();
    if from < 3 {
        // Columns first: what an older pool inserts meanwhile has their defaults in the views below.
        for table in TABLES {
            statements.extend(table.columns.iter().filter(|column| column.since == 3).flat_map(|column| scheme.add_column(table, column)));
        }
        for roll_up in &ROLL_UPS {
            let view = format!("{}_view", roll_up.name);
            if scheme.legacy() {
                statements.extend(replaced(&view, scheme.roll_up_view(roll_up)));
            } else {
                // At once: between dropping and making it an insert would be in no roll-up.
                let select = scheme.roll_up_select(roll_up);
                statements.push(format!("ALTER TABLE {}{} MODIFY QUERY\n{select}", scheme.table(&view), scheme.on_cluster()));
            }
        }
        statements.extend(replaced("shares_named", scheme.shares_named()));
    }
    if from < VERSION {
        // Last: a migration that was cut short starts again.
        statements.extend(replaced(VERSION_VIEW, scheme.version_view()));
    }
    statements
}

/// Every commented column of every table, as this release words it: table, column, comment. Words are of no version: the shipper puts them right wherever it may.
pub fn comments(flavour: &Flavour) -> Vec<(String, &'static str, &'static str)> {
    Scheme { flavour, database: "", keep_days: 0 }.comments()
}

/// The statement that words a comment.
pub fn comment_sql(flavour: &Flavour, database: &str, table: &str, column: &str, comment: &str) -> String {
    let scheme = Scheme { flavour, database, keep_days: 0 };
    format!("ALTER TABLE {}{} COMMENT COLUMN {} {}", scheme.table(table), scheme.on_cluster(), identifier(column), literal(comment))
}

/// `migration` as a script for `clickhouse-client -mn`, and behind it the comments of all columns.
pub fn script_from(flavour: &Flavour, database: &str, from: u32, keep_days: u32) -> String {
    let mut script = format!("-- From version {from} of the schema to version {VERSION}.\n");
    let scheme = Scheme { flavour, database, keep_days };
    if from < 2 && !scheme.ttl().is_empty() {
        // Infallible, here and below: writing to a String.
        let _ = writeln!(
            script,
            "-- New installations drop rows of shares after {keep_days} days. To do so here as well, which removes older rows:\n-- ALTER TABLE {}{} MODIFY{};",
            scheme.local(SHARES.name),
            scheme.on_cluster(),
            scheme.ttl().replace('\n', " ")
        );
    }
    if from < 3 && scheme.legacy() {
        script.push_str("-- Stop the pools that ship here meanwhile: a row that arrives while a view is away is in no roll-up.\n");
    }
    for statement in migration(flavour, database, from) {
        let _ = writeln!(script, "{statement};\n");
    }
    script.push_str("-- What columns mean, in the words of this release.\n");
    for (table, column, comment) in comments(flavour) {
        let _ = writeln!(script, "{};", comment_sql(flavour, database, &table, column, comment));
    }
    script
}

/// A name that can stand for a user everywhere: letters, digits and underscores, not first a digit.
pub fn is_user_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// A user who may read the database, column comments included, and nothing else, within limits that leave the server to the shipper: for `clickhouse-client -mn`, or on
/// servers before 24.8, which keep users in files, a file for users.d. The password stands in it as its SHA-256. `name` is one that `is_user_name` takes.
pub fn reader(flavour: &Flavour, database: &str, name: &str, password: &str) -> String {
    assert!(is_user_name(name), "the caller checks the name");
    let digest: String = Sha256::digest(password.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let scheme = Scheme { flavour, database, keep_days: 0 };
    if scheme.legacy() {
        let database = database.replace('&', "&amp;").replace('<', "&lt;");
        return format!(
            "<?xml version=\"1.0\"?>\n<!-- Put this into users.d/{name}.xml beside the server's users.xml. It may log in from this machine; add networks as needed. -->\n\
             <yandex>\n    <profiles>\n        <{name}>\n            <readonly>1</readonly>\n            <max_execution_time>60</max_execution_time>\n            \
             <max_memory_usage>4000000000</max_memory_usage>\n            <max_threads>4</max_threads>\n            \
             <max_concurrent_queries_for_user>8</max_concurrent_queries_for_user>\n            <priority>10</priority>\n        </{name}>\n    </profiles>\n    \
             <users>\n        <{name}>\n            <password_sha256_hex>{digest}</password_sha256_hex>\n            \
             <networks>\n                <ip>127.0.0.1</ip>\n                <ip>::1</ip>\n            </networks>\n            \
             <profile>{name}</profile>\n            <quota>{name}</quota>\n            \
             <allow_databases>\n                <database>{database}</database>\n                <database>system</database>\n            </allow_databases>\n        \
             </{name}>\n    </users>\n    \
             <quotas>\n        <{name}>\n            <interval>\n                <duration>3600</duration>\n                <queries>10000</queries>\n                \
             <errors>0</errors>\n                <result_rows>0</result_rows>\n                <read_rows>0</read_rows>\n                \
             <execution_time>3600</execution_time>\n            </interval>\n        </{name}>\n    </quotas>\n</yandex>\n"
        );
    }
    let (on_cluster, user) = (scheme.on_cluster(), identifier(name));
    // readonly = 2: clients such as Grafana send settings with a query; what they may set ends at these limits.
    format!(
        "CREATE SETTINGS PROFILE IF NOT EXISTS {user}{on_cluster} SETTINGS readonly = 2 CONST, allow_ddl = 0 CONST, max_execution_time = 60 MAX 60, \
         max_memory_usage = 4000000000 MAX 4000000000, max_threads = 4 MAX 4, max_concurrent_queries_for_user = 8 MAX 8, priority = 10 MIN 10;\n\n\
         CREATE USER IF NOT EXISTS {user}{on_cluster} IDENTIFIED WITH sha256_hash BY {} SETTINGS PROFILE {};\n\n\
         CREATE QUOTA IF NOT EXISTS {user}{on_cluster} FOR INTERVAL 1 hour MAX queries = 10000, execution_time = 3600 TO {user};\n\n\
         GRANT{on_cluster} SELECT ON {}.* TO {user};\n",
        literal(&digest),
        literal(name),
        identifier(database)
    )
}

/// The statements as one script for `clickhouse-client -mn`, with the remarks a reader of the schema wants first.
pub fn script(flavour: &Flavour, database: &str, keep_days: u32) -> String {
    let mut script = String::new();
    script.push_str(match flavour {
        Flavour::Single => "-- One modern server (24.8 or later). shares.work is UInt128: a bare sum(work) is exact.\n",
        Flavour::Cluster(_) => {
            "-- A cluster of modern servers with the macros {shard} and {replica}. Point the pool at one node of a shard: it inserts into the *_local tables of that shard.\n"
        }
        Flavour::Legacy => {
            "-- ClickHouse before 24.8. shares.work is UInt64, as 18.16 has no wider integer, and sum(work) over shares wraps after 18 s of 1 EH/s: sum the roll-ups or\n\
             -- shares_named (Decimal(38, 0)), or write sum(toDecimal128(work, 0)). Such servers have no insert tokens: at least once, and `otedama reconcile` tells.\n"
        }
    });
    for statement in ddl(flavour, database, keep_days) {
        // Infallible: writing to a String.
        let _ = writeln!(script, "{statement};\n");
    }
    script
}

struct Scheme<'a> {
    flavour: &'a Flavour,
    database: &'a str,
    keep_days: u32,
}

impl Scheme<'_> {
    fn legacy(&self) -> bool {
        *self.flavour == Flavour::Legacy
    }

    fn on_cluster(&self) -> String {
        match self.flavour {
            Flavour::Cluster(name) => format!(" ON CLUSTER {}", identifier(name)),
            Flavour::Single | Flavour::Legacy => String::new(),
        }
    }

    fn table(&self, name: &str) -> String {
        format!("{}.{}", identifier(self.database), identifier(name))
    }

    /// The table that inserts and views write: the local one of the shard in a cluster.
    fn local(&self, name: &str) -> String {
        match self.flavour {
            Flavour::Cluster(_) => self.table(&format!("{name}_local")),
            Flavour::Single | Flavour::Legacy => self.table(name),
        }
    }

    fn wide(&self) -> &'static str {
        if self.legacy() { "Decimal(38, 0)" } else { "UInt128" }
    }

    /// Engine with its arguments: `kind` is "", "Summing" or "Replacing". `per_shard` tables have a path of their own on every shard; the others are one table, whole on every node.
    fn engine(&self, kind: &str, arguments: &str, name: &str, per_shard: bool) -> String {
        match self.flavour {
            Flavour::Single | Flavour::Legacy => format!("{kind}MergeTree({arguments})"),
            Flavour::Cluster(_) => {
                let place = if per_shard {
                    format!("'/clickhouse/tables/{{shard}}/{}/{name}', '{{replica}}'", self.database)
                } else {
                    format!("'/clickhouse/tables/all/{}/{name}', '{{shard}}-{{replica}}'", self.database)
                };
                let comma = if arguments.is_empty() { "" } else { ", " };
                format!("Replicated{kind}MergeTree({place}{comma}{arguments})")
            }
        }
    }

    /// The window in which a repeated insert is recognised; it must stand on the base table and on every view target, else a retry doubles the roll-up.
    fn window(&self) -> String {
        match self.flavour {
            Flavour::Single => format!("\nSETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"),
            Flavour::Cluster(_) => {
                format!(
                    "\nSETTINGS replicated_deduplication_window = {DEDUPLICATION_WINDOW}, replicated_deduplication_window_seconds = 604800"
                )
            }
            Flavour::Legacy => String::new(),
        }
    }

    /// How long raw rows stay; a part is a day or less of them, so parts go whole and nothing is rewritten.
    fn ttl(&self) -> String {
        if self.legacy() || self.keep_days == 0 { String::new() } else { format!("\nTTL time + toIntervalDay({})", self.keep_days) }
    }

    fn table_comment(&self, comment: &str) -> String {
        // 18.16 has comments on columns but none on tables.
        if self.legacy() { String::new() } else { format!("\nCOMMENT {}", literal(comment)) }
    }

    /// `AS` the local table behind Distributed: same columns, comments and codecs.
    fn distributed(&self, name: &str, sharding: &str, comment: &str) -> Option<String> {
        let Flavour::Cluster(cluster) = self.flavour else { return None };
        Some(format!(
            "CREATE TABLE IF NOT EXISTS {}{} AS {}\nENGINE = Distributed({}, {}, {}, {sharding}){}",
            self.table(name),
            self.on_cluster(),
            self.local(name),
            literal(cluster),
            literal(self.database),
            literal(&format!("{name}_local")),
            self.table_comment(comment)
        ))
    }

    /// Names of the tables of this name: in a cluster that of the shard too, where there is one.
    fn every(&self, name: &str) -> Vec<String> {
        let has_local = name == SHARES.name || ROLL_UPS.iter().any(|roll_up| roll_up.name == name);
        match self.flavour {
            Flavour::Cluster(_) if has_local => vec![format!("{name}_local"), name.to_owned()],
            _ => vec![name.to_owned()],
        }
    }

    /// Adds a column that an earlier version has not. 18.16 does not know IF NOT EXISTS: there a second try is refused with code 44, which says that it is done.
    fn add_column(&self, table: &Table, column: &Column) -> Vec<String> {
        let condition = if self.legacy() { "" } else { "IF NOT EXISTS " };
        let add = |name: String| {
            format!("ALTER TABLE {}{} ADD COLUMN {condition}{}", self.table(&name), self.on_cluster(), self.column(column).trim_start())
        };
        self.every(table.name).into_iter().map(add).collect()
    }

    /// Every commented column of every table, as the statements above make it: table, column, comment.
    fn comments(&self) -> Vec<(String, &'static str, &'static str)> {
        let of_tables = TABLES.into_iter().flat_map(|table| {
            let ts = (table.name == SHARES.name && !self.legacy()).then_some((TS, TS_COMMENT));
            let columns = table.columns.iter().map(|column| (column.name, self.comment_in(table, column)));
            columns.chain(ts).map(|(column, comment)| (table.name, column, comment))
        });
        let of_roll_ups = ROLL_UPS
            .iter()
            .flat_map(|roll_up| roll_up.key.iter().chain(roll_up.sums).map(|(column, _, _, comment)| (roll_up.name, *column, *comment)));
        of_tables
            .chain(of_roll_ups)
            .flat_map(|(table, column, comment)| self.every(table).into_iter().map(move |table| (table, column, comment)))
            .collect()
    }

    fn comment_in(&self, table: &Table, column: &Column) -> &'static str {
        if self.legacy() && table.name == SHARES.name && is_work(column) { WORK_THAT_WRAPS } else { column.comment }
    }

    fn column(&self, column: &Column) -> String {
        let kind = if column.kind == WORK { self.wide() } else { column.kind };
        let kind = if column.default.is_empty() { kind.to_owned() } else { format!("{kind} DEFAULT {}", column.default) };
        self.column_line(column.name, &kind, column.codec, column.comment)
    }

    fn column_line(&self, name: &str, kind: &str, codec: &str, comment: &str) -> String {
        let kind = if kind == WORK { self.wide() } else { kind };
        // 18.16 knows no codecs on columns; both know `name type COMMENT 'text'`, modern servers with the codec behind the comment.
        let codec = if codec.is_empty() || self.legacy() { String::new() } else { format!(" CODEC({codec})") };
        format!("    {} {kind} COMMENT {}{codec}", identifier(name), literal(comment))
    }

    fn shares(&self) -> Vec<String> {
        let mut lines: Vec<_> = SHARES
            .columns
            .iter()
            .map(|column| {
                // The wire has UInt64. Modern servers widen a Native column on its way in; 18.16 refuses (code 368), so its table keeps the wire type.
                if column.kind == WORK && self.legacy() {
                    self.column_line(column.name, "UInt64", "", WORK_THAT_WRAPS)
                } else {
                    self.column(column)
                }
            })
            .collect();
        if !self.legacy() {
            lines.push(format!(
                "    `{TS}` DateTime64(6, 'UTC') ALIAS toDateTime64(time, 6, 'UTC') + toIntervalMicrosecond(us) COMMENT {}",
                literal(TS_COMMENT)
            ));
        }
        let mut statements = vec![format!(
            "CREATE TABLE IF NOT EXISTS {}{}\n(\n{}\n)\nENGINE = {}\nPARTITION BY toYYYYMMDD(time, 'UTC')\nORDER BY ({}){}{}{}{}",
            self.local(SHARES.name),
            self.on_cluster(),
            lines.join(",\n"),
            self.engine("", "", SHARES.name, true),
            SHARES.key,
            self.ttl(),
            self.window(),
            if self.ttl().is_empty() { "" } else { ", ttl_only_drop_parts = 1" },
            self.table_comment(SHARES.comment)
        )];
        statements.extend(self.distributed(SHARES.name, "cityHash64(worker)", SHARES.comment));
        statements
    }

    fn dimension(&self, table: &Table) -> String {
        let lines: Vec<_> = table.columns.iter().map(|column| self.column(column)).collect();
        format!(
            "CREATE TABLE IF NOT EXISTS {}{}\n(\n{}\n)\nENGINE = {}\nORDER BY ({}){}",
            self.table(table.name),
            self.on_cluster(),
            lines.join(",\n"),
            self.engine("Replacing", table.version, table.name, false),
            table.key,
            self.table_comment(table.comment)
        )
    }

    fn roll_up(&self, roll_up: &RollUp) -> Vec<String> {
        let columns = || roll_up.key.iter().chain(roll_up.sums);
        let lines: Vec<_> = columns().map(|(name, kind, _, comment)| self.column_line(name, kind, "", comment)).collect();
        let keys: Vec<_> = roll_up.key.iter().map(|(name, ..)| *name).collect();
        let sums: Vec<_> = roll_up.sums.iter().map(|(name, ..)| *name).collect();
        let time = roll_up.time_column();
        let mut statements = vec![format!(
            "CREATE TABLE IF NOT EXISTS {}{}\n(\n{}\n)\nENGINE = {}\nPARTITION BY toYYYYMM({time}, 'UTC')\nORDER BY ({}){}{}",
            self.local(roll_up.name),
            self.on_cluster(),
            lines.join(",\n"),
            self.engine("Summing", &format!("({})", sums.join(", ")), roll_up.name, true),
            keys.join(", "),
            self.window(),
            self.table_comment(roll_up.comment)
        )];
        statements.push(self.roll_up_view(roll_up));
        let sharding = if keys.contains(&"worker") { "cityHash64(worker)" } else { "rand()" };
        statements.extend(self.distributed(roll_up.name, sharding, roll_up.comment));
        statements
    }

    /// The view that fills a roll-up.
    fn roll_up_view(&self, roll_up: &RollUp) -> String {
        format!(
            "CREATE MATERIALIZED VIEW IF NOT EXISTS {}{} TO {} AS\n{}",
            self.table(&format!("{}_view", roll_up.name)),
            self.on_cluster(),
            self.local(roll_up.name),
            self.roll_up_select(roll_up)
        )
    }

    fn roll_up_select(&self, roll_up: &RollUp) -> String {
        let (selected, keys) = roll_up.selected(self.legacy(), VERSION);
        format!("SELECT {selected}\nFROM {}\nGROUP BY {keys}", self.local(SHARES.name))
    }

    /// Shares with the worker's name, and `work` in a type whose sum cannot wrap in any flavour.
    fn shares_named(&self) -> String {
        let mut columns: Vec<_> = SHARES
            .columns
            .iter()
            .map(|column| match (column.kind, self.legacy()) {
                (WORK, true) => "toDecimal128(work, 0) AS work".to_owned(),
                _ => column.name.to_owned(),
            })
            .collect();
        if !self.legacy() {
            columns.push("ts".to_owned());
        }
        format!(
            "CREATE VIEW IF NOT EXISTS {}{} AS\nSELECT {}, worker_name, account\nFROM {}\nANY LEFT JOIN\n(\n    SELECT worker, any(name) AS worker_name, any(account) AS account\n    FROM {}\n    GROUP BY worker\n) AS named USING (worker)",
            self.table("shares_named"),
            self.on_cluster(),
            columns.join(", "),
            self.table(SHARES.name),
            self.table(WORKERS.name)
        )
    }

    fn version_view(&self) -> String {
        format!("CREATE VIEW IF NOT EXISTS {}{} AS\nSELECT toUInt32({VERSION}) AS version", self.table(VERSION_VIEW), self.on_cluster())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::{Coin, ShareStatus};
    use otedama_sharelog::COLUMNS;

    fn all() -> [Flavour; 3] {
        [Flavour::Single, Flavour::Cluster("farm".into()), Flavour::Legacy]
    }

    #[test]
    fn enum_types_carry_the_numbers_of_the_log() {
        let values: Vec<_> = ShareStatus::ALL.iter().map(|status| format!("'{}' = {}", status.label(), *status as u8)).collect();
        assert_eq!(STATUS_TYPE, format!("Enum8({})", values.join(", ")));
        assert_eq!(COIN_TYPE, format!("Enum8('{}' = {})", Coin::Bitcoin.label(), Coin::Bitcoin as u8));
    }

    #[test]
    fn every_layout_has_columns_of_the_table_in_its_order_and_type() {
        assert_eq!(COLUMNS.map(|column| column.0), std::array::from_fn(|at| SHARES.columns.get(at).map_or("", |column| column.name)));
        for (column, (name, kind, _)) in SHARES.columns.iter().zip(COLUMNS) {
            // The wire leaves the zone out.
            assert_eq!(wire_kind(column).replace("('UTC')", ""), kind, "{name}");
        }
        assert_eq!(SHARES.columns.len(), COLUMNS.len());
        let labels: Vec<_> = Layout::ALL.iter().enumerate().map(|(number, layout)| format!("'{}' = {number}", layout.label())).collect();
        assert_eq!(LAYOUT_TYPE, format!("Enum8({})", labels.join(", ")));
        assert!(segment_columns(Layout::Lean).ends_with("share_difficulty, nonce, latency_us)"));
    }

    #[test]
    fn every_time_function_and_partition_names_utc() {
        for flavour in all() {
            for statement in ddl(&flavour, "otedama", KEEP_DAYS) {
                for function in ["toYYYYMMDD(", "toYYYYMM(", "toStartOfMinute(", "toStartOfHour(", "toDateTime64("] {
                    for (start, _) in statement.match_indices(function) {
                        let call = &statement[start..start + statement[start..].find(')').expect("closed")];
                        assert!(call.ends_with("'UTC'"), "{call} in {statement}");
                    }
                }
                assert!(!statement.contains(" DateTime "), "a DateTime without its zone in {statement}");
            }
        }
    }

    #[test]
    fn every_column_of_every_table_is_commented() {
        for flavour in all() {
            for statement in ddl(&flavour, "otedama", KEEP_DAYS).iter().filter(|statement| statement.contains("\n(\n    `")) {
                for line in statement.lines().filter(|line| line.starts_with("    `")) {
                    assert!(line.contains(" COMMENT '"), "{line}");
                }
            }
        }
    }

    #[test]
    fn the_words_of_a_column_are_those_it_is_made_with() {
        for flavour in all() {
            let made = ddl(&flavour, "otedama", KEEP_DAYS);
            let comments = comments(&flavour);
            let lines = made.iter().flat_map(|statement| statement.lines()).filter(|line| line.starts_with("    `")).count();
            let has_local = if matches!(flavour, Flavour::Cluster(_)) {
                // The Distributed tables are made AS the local ones, with their comments.
                comments.iter().filter(|(table, ..)| table.ends_with("_local")).count()
            } else {
                0
            };
            assert_eq!(comments.len(), lines + has_local, "{flavour:?}");
            for (table, column, comment) in &comments {
                let local = if has_local > 0 { format!("`{}_local`", table.trim_end_matches("_local")) } else { format!("`{table}`") };
                let statement = made.iter().find(|statement| {
                    statement.starts_with(&format!("CREATE TABLE IF NOT EXISTS `otedama`.{local}"))
                        || statement.starts_with(&format!("CREATE TABLE IF NOT EXISTS `otedama`.`{table}`"))
                });
                let line = format!("`{column}` ");
                let found = statement.and_then(|statement| statement.lines().find(|made| made.trim_start().starts_with(&line)));
                assert!(
                    found.is_some_and(|found| found.contains(&format!(" COMMENT {}", literal(comment)))),
                    "{table}.{column}: {found:?}"
                );
            }
            let script = script_from(&flavour, "otedama", VERSION, KEEP_DAYS);
            assert_eq!(script.matches(" COMMENT COLUMN ").count(), comments.len());
        }
    }

    #[test]
    fn windows_stand_on_the_base_table_and_on_every_view_target() {
        for (flavour, setting) in [
            (Flavour::Single, " non_replicated_deduplication_window = 100000"),
            (Flavour::Cluster("c".into()), " replicated_deduplication_window = 100000"),
        ] {
            let with_window = ddl(&flavour, "otedama", KEEP_DAYS).iter().filter(|statement| statement.contains(setting)).count();
            assert_eq!(with_window, 1 + ROLL_UPS.len(), "{flavour:?}");
        }
        assert!(!script(&Flavour::Legacy, "otedama", KEEP_DAYS).contains("deduplication_window"));
    }

    #[test]
    fn raw_rows_go_after_the_days_asked_for_and_the_roll_ups_stay() {
        for flavour in all() {
            let legacy = flavour == Flavour::Legacy;
            for (days, clause) in [(90, "\nTTL time + toIntervalDay(90)\n"), (7, "\nTTL time + toIntervalDay(7)\n")] {
                let statements = ddl(&flavour, "otedama", days);
                let with: Vec<_> = statements.iter().filter(|statement| statement.contains(clause)).collect();
                assert_eq!(with.len(), usize::from(!legacy), "{flavour:?}");
                assert!(with.iter().all(|statement| statement.contains("`.`shares") && statement.contains("ttl_only_drop_parts = 1")));
            }
            assert!(!script(&flavour, "otedama", 0).to_lowercase().contains("ttl"), "{flavour:?}");
        }
    }

    #[test]
    fn a_migration_ends_with_the_version_it_leads_to_and_removes_no_row() {
        for flavour in all() {
            assert!(migration(&flavour, "otedama", VERSION).is_empty());
            for from in 1..VERSION {
                let statements = migration(&flavour, "otedama", from);
                assert!(statements.last().is_some_and(|last| last.ends_with(&format!("SELECT toUInt32({VERSION}) AS version"))), "{from}");
                for statement in &statements {
                    let view = ["shares_named`", "schema_version`", "_view`"].iter().any(|name| statement.contains(name));
                    let adds = statement.starts_with("ALTER TABLE ") && statement.contains(" ADD COLUMN ");
                    assert!((view || adds) && !statement.contains("TTL"), "{statement}");
                }
                let advice = script_from(&flavour, "otedama", from, KEEP_DAYS);
                assert_eq!(advice.contains("MODIFY TTL time + toIntervalDay(90);"), from < 2 && flavour != Flavour::Legacy, "{advice}");
            }
        }
    }

    #[test]
    fn a_reader_gets_select_and_limits_and_the_password_only_as_its_hash() {
        // Expected hash from sha256sum.
        let digest = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
        for flavour in all() {
            let text = reader(&flavour, "otedama", "analyst", "password");
            assert!(text.contains(digest) && !text.contains("'password'") && !text.contains(">password<"), "{text}");
            assert!(text.contains("max_execution_time") && text.contains("max_memory_usage") && text.contains("queries"), "{text}");
        }
        let cluster = reader(&Flavour::Cluster("farm".into()), "otedama", "analyst", "password");
        assert_eq!(cluster.matches("ON CLUSTER `farm`").count(), 4, "{cluster}");
        assert_eq!(cluster.matches("GRANT").count(), 1);
        assert!(cluster.contains("GRANT ON CLUSTER `farm` SELECT ON `otedama`.* TO `analyst`"), "{cluster}");
        for wrong in ["", "a-b", "1a", "a'b", "a b", "é"] {
            assert!(!is_user_name(wrong), "{wrong}");
        }
        assert!(is_user_name("reader_2"));
    }

    #[test]
    fn names_and_texts_cannot_end_their_quotes() {
        assert_eq!(identifier("a`b\\"), "`a\\`b\\\\`");
        assert_eq!(literal("it's \\"), "'it\\'s \\\\'");
    }
}
