//! Every bound of the server with its bytes: what `otedama check` prints.
//!
//! Nothing in the server grows without a line here. The numbers that the code fixes come in as [`Limits`], those that the operator chooses from
//! the [`Config`]; so a changed depth shows up without anybody remembering this page.

use std::fmt::Write as _;

use otedama_chain::driver::{LATE_BYTES, LATE_MAX};
use otedama_pipeline::driver::Plan;
use otedama_pipeline::stages::{
    CHUNK_BYTES, CONNECTION_BYTES, DUPLICATE_TABLE_BYTES, DUPLICATE_TABLES, EXTRANONCES_WAITING, IN_FLIGHT, ROOT_CACHE_BYTES,
    SHARED_CHUNKS, TEXT_BYTES_MAX,
};
use otedama_primitives::{Answer, BlockCandidate, Dimension, Hash256, Submit, Verdict};
use otedama_sharelog::LoggedRow;
use otedama_stratum::v1::template::Shapes;
use otedama_stratum::v1::workers::Workers;
use otedama_stratum::vardiff::Memory;
use serde::Serialize;

use crate::config::{Ack, Config, Cores, RowLayout, WhenFull};
use crate::jobs::{JOBS_WAITING, KEPT_FOR_CANDIDATES};
use crate::stats::CONNECTIONS_MAX;
use crate::topology::depth;
use crate::wiring::{CANDIDATES_WAITING, FLAGGED_WAITING, SOCKET_BUFFER_BYTES, journal_file_bytes, layout_of};

/// Numbers that the code fixes. All bytes are of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Net stages.
    pub nets: u64,
    /// Validate stages (lanes).
    pub lanes: u64,
    /// Session columns of one connection: kept for `stratum.max_connections` from the start.
    pub session_bytes: u64,
    /// Bytes of one authorized worker of a session.
    pub worker_bytes: u64,
    /// Buffers that a net reads all its sockets into.
    pub read_buffers: u64,
    /// Bytes of one of them.
    pub read_buffer_bytes: u64,
    /// Rings of a net, each with a table of sockets in the kernel; 0 with mio.
    pub rings: u64,
    /// Bytes of the kernel for one.
    pub ring_bytes: u64,
    /// Unsent bytes that a connection may have before it is closed.
    pub write_buffer_bytes: u64,
    /// What the kernel holds for a connection in one direction at most.
    pub socket_buffer_bytes: u64,
    /// Replies that wait behind the shares in flight of a net.
    pub waiting_replies_bytes: u64,
    /// Values of extranonce1 of a net that wait for their last job to end.
    pub extranonces_waiting: u64,
    /// Bytes of one.
    pub extranonce_bytes: u64,
    /// Depth of a net's FIFO of shares in flight; also of `log_net`, which therefore never fills.
    pub in_flight: u64,
    /// Bytes of an entry of that FIFO: slot, generation, id token, work.
    pub in_flight_bytes: u64,
    /// Depth of each `net_validate` ring.
    pub net_validate: u64,
    /// Depth of each `validate_log` ring.
    pub validate_log: u64,
    /// Depth of each `net_log` ring.
    pub net_log: u64,
    /// Depth of each `validate_chain` ring.
    pub validate_chain: u64,
    /// Jobs that shares are taken for.
    pub jobs_live: u64,
    /// Bytes of a job's slot with its coinbase and branch.
    pub job_bytes: u64,
    /// Duplicate tables of a lane, one per job: more than `jobs_live`, as net may be some jobs behind validate.
    pub duplicate_tables: u64,
    /// Bytes of a duplicate table: its index and its keys.
    pub duplicate_table_bytes: u64,
    /// Bytes of a lane's cache of merkle roots.
    pub root_cache_bytes: u64,
    /// Journal files, preallocated and recycled.
    pub journal_files: u64,
    /// Rows that the sealer encodes at once are a segment's; bytes of a row while it does, in the fullest layout: as it was journaled with its hash 96, its place in the order of
    /// the table 20, its values in the block 117.
    pub seal_row_bytes: u64,
    /// Pieces of a segment that one insert holds at once.
    pub pieces_per_insert: u64,
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// Latency histograms: one per net, and one that merges them.
    pub histograms_per_net: u64,
    /// Bytes of a histogram.
    pub histogram_bytes: u64,
    /// Clients of the stats page at once.
    pub stats_clients: u64,
    /// Bytes that one of them may cost.
    pub stats_client_bytes: u64,
    /// Addresses whose rate of connects is watched at once.
    pub connect_rate_addresses: u64,
    /// Bytes for one of them.
    pub connect_rate_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            nets: 1,
            lanes: 1,
            session_bytes: CONNECTION_BYTES as u64,
            worker_bytes: Workers::EACH_BYTES_MAX as u64,
            read_buffers: 1,
            read_buffer_bytes: 64 << 10,
            rings: 0,
            ring_bytes: 0,
            write_buffer_bytes: 256 << 10,
            // Linux doubles what it is asked for.
            socket_buffer_bytes: 2 * SOCKET_BUFFER_BYTES as u64,
            waiting_replies_bytes: TEXT_BYTES_MAX as u64,
            extranonces_waiting: EXTRANONCES_WAITING as u64,
            extranonce_bytes: 24,
            in_flight: IN_FLIGHT as u64,
            in_flight_bytes: 48,
            net_validate: depth::NET_VALIDATE as u64,
            validate_log: depth::VALIDATE_LOG as u64,
            net_log: depth::NET_LOG as u64,
            validate_chain: depth::VALIDATE_CHAIN as u64,
            jobs_live: 8,
            job_bytes: 4 << 10,
            duplicate_tables: DUPLICATE_TABLES as u64,
            duplicate_table_bytes: DUPLICATE_TABLE_BYTES as u64,
            root_cache_bytes: ROOT_CACHE_BYTES as u64,
            journal_files: 4,
            seal_row_bytes: 233,
            pieces_per_insert: otedama_shipper::PIECES_KEPT as u64,
            piece_bytes: otedama_sharelog::PIECE_BYTES as u64,
            histograms_per_net: 2,
            histogram_bytes: 64 << 10,
            stats_clients: CONNECTIONS_MAX as u64,
            stats_client_bytes: 64 << 10,
            connect_rate_addresses: 1 << 16,
            connect_rate_bytes: 64,
        }
    }
}

impl Limits {
    /// The defaults with as many stages as the config names cores; `auto` counts as `nets_auto` and `lanes_auto`.
    pub fn of(config: &Config, nets_auto: u64, lanes_auto: u64) -> Limits {
        let count = |cores: &Cores, auto: u64| match cores {
            Cores::Auto => auto,
            Cores::List(cores) => cores.len() as u64,
        };
        Limits { nets: count(&config.layout.net, nets_auto), lanes: count(&config.layout.validate, lanes_auto), ..Limits::default() }
    }

    /// With what the sockets' driver takes.
    pub fn with_driver(self, plan: &Plan) -> Limits {
        let &Plan { rings, ring_bytes, read_buffers, read_buffer_bytes, .. } = plan;
        Limits { rings, ring_bytes, read_buffers: read_buffers * rings.max(1), read_buffer_bytes, ..self }
    }
}

/// When a bound's bytes are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// Memory, all of it at start.
    AtStart,
    /// Memory, as it is needed, never more.
    AtMost,
    /// Disk.
    Disk,
}

/// One bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// What is bounded.
    pub name: String,
    /// How many there may be.
    pub count: u64,
    /// Bytes of one.
    pub bytes_each: u64,
    /// Bytes of all.
    pub bytes: u64,
    /// When they are taken.
    pub taken: Taken,
    /// What happens to the one that does not fit.
    pub what_happens_when_full: &'static str,
}

/// Every bound of a server with this configuration.
pub fn bounds(config: &Config, limits: &Limits) -> Vec<Bound> {
    let mut all = Vec::new();
    let mut bound = |name: &str, count: u64, bytes_each: u64, taken: Taken, what_happens_when_full: &'static str| {
        all.push(Bound {
            name: name.to_owned(),
            count,
            bytes_each,
            bytes: count.saturating_mul(bytes_each),
            taken,
            what_happens_when_full,
        });
    };
    let size = |bytes: usize| bytes as u64;
    let connections = u64::from(config.stratum.max_connections);
    let workers = u64::from(config.stratum.max_workers_per_connection);
    // One FIFO from each net to each validate stage it may feed: the wider side decides how many rings there are.
    let pairs = limits.nets.max(limits.lanes);

    bound("connections", connections, limits.session_bytes, Taken::AtStart, "the newest is closed before it is read");
    bound(
        "read buffers",
        limits.nets * limits.read_buffers,
        limits.read_buffer_bytes,
        if limits.rings == 0 { Taken::AtStart } else { Taken::AtMost },
        "the rest is read in the next pass",
    );
    if limits.rings > 0 {
        bound("rings", limits.nets * limits.rings, limits.ring_bytes, Taken::AtStart, "a longer pass takes several calls of the kernel");
    }
    bound(
        "unfinished lines",
        connections + limits.nets * size(SHARED_CHUNKS),
        size(CHUNK_BYTES),
        Taken::AtMost,
        "every connection has one of these; who needs more than are left is closed, saying why",
    );
    bound(
        "shapes of submits",
        limits.nets * size(Shapes::MAX),
        size(Shapes::EACH_BYTES),
        Taken::AtMost,
        "one that was not used of late is forgotten: its submits are scanned",
    );
    bound("unsent answers", connections, limits.write_buffer_bytes, Taken::AtMost, "a miner that does not read is closed");
    bound("unread, in the kernel", connections, limits.socket_buffer_bytes, Taken::AtMost, "TCP holds the sender back");
    bound(
        "unsent, in the kernel",
        connections,
        limits.socket_buffer_bytes,
        Taken::AtMost,
        "answers wait in the server, see unsent answers",
    );
    bound(
        "replies behind shares",
        limits.nets,
        limits.waiting_replies_bytes,
        Taken::AtMost,
        "net stops reading sockets until answers have left",
    );
    bound(
        "extranonces on hold",
        limits.nets * limits.extranonces_waiting,
        limits.extranonce_bytes,
        Taken::AtMost,
        "new connections are closed until the jobs of old ones have ended",
    );
    bound(
        "workers of a connection",
        connections.saturating_mul(workers),
        limits.worker_bytes,
        Taken::AtMost,
        "mining.authorize is answered false (24)",
    );
    if config.vardiff.enabled {
        bound(
            "remembered difficulties",
            size(Memory::WORKERS),
            size(Memory::ENTRY_BYTES),
            Taken::AtStart,
            "the oldest of four is forgotten: its worker starts at stratum.difficulty",
        );
    }
    bound(
        "connect rates",
        limits.connect_rate_addresses,
        limits.connect_rate_bytes,
        Taken::AtMost,
        "new addresses are refused until an old one was quiet for a second",
    );
    bound(
        "shares in flight",
        limits.nets * limits.in_flight,
        limits.in_flight_bytes,
        Taken::AtStart,
        "net stops reading sockets; nothing is dropped",
    );
    bound("ring net_validate", pairs * limits.net_validate, size(size_of::<Submit>()), Taken::AtStart, "net waits");
    bound("ring validate_log", limits.lanes * limits.validate_log, size(size_of::<Verdict>()), Taken::AtStart, "validate waits");
    if config.log.row == RowLayout::Full {
        bound("ring validate_log_hash", limits.lanes * limits.validate_log, size(size_of::<Hash256>()), Taken::AtStart, "validate waits");
    }
    bound(
        "ring log_net",
        limits.nets * limits.in_flight,
        size(size_of::<Answer>()),
        Taken::AtStart,
        "never: as deep as the shares in flight",
    );
    bound("ring net_log", limits.nets * limits.net_log, size(size_of::<Dimension>()), Taken::AtStart, "net waits");
    bound(
        "ring validate_chain",
        limits.lanes * limits.validate_chain,
        size(size_of::<BlockCandidate>()),
        Taken::AtStart,
        "the row carries the flag; chain reads it from the log",
    );
    bound(
        "candidates to chain",
        size(CANDIDATES_WAITING),
        size(size_of::<BlockCandidate>()),
        Taken::AtMost,
        "they wait on ring validate_chain, and then in the log",
    );
    bound(
        "candidates from the log",
        size(FLAGGED_WAITING),
        size(size_of::<LoggedRow>()),
        Taken::AtMost,
        "the sealer waits for chain, and log for the sealer",
    );
    bound("candidates too late", size(LATE_MAX), size(LATE_BYTES), Taken::AtMost, "chain writes them down before it takes more");
    bound(
        "jobs for a stage at rest",
        size(JOBS_WAITING),
        limits.job_bytes,
        Taken::AtMost,
        "the newest takes the place of the one before it, which no miner has seen",
    );
    bound("live jobs", limits.jobs_live, limits.job_bytes, Taken::AtStart, "the oldest job ends: its shares are stale (21)");
    bound(
        "ended jobs",
        size(KEPT_FOR_CANDIDATES),
        limits.job_bytes,
        Taken::AtMost,
        "the oldest is freed: a block over it that waits in the log is not sent",
    );
    bound(
        "duplicate tables",
        limits.lanes * limits.duplicate_tables,
        limits.duplicate_table_bytes,
        Taken::AtMost,
        "at three quarters chain issues a new job and the oldest ends",
    );
    bound("merkle roots", limits.lanes, limits.root_cache_bytes, Taken::AtStart, "a new root takes an old one's place");
    bound(
        "latency histograms",
        limits.nets * limits.histograms_per_net + 1,
        limits.histogram_bytes,
        Taken::AtStart,
        "never: larger values count in the last bucket",
    );
    bound(
        "sealer's segment",
        config.log.segment_rows.into(),
        limits.seal_row_bytes,
        Taken::AtMost,
        "never: a segment ends at this number of rows",
    );
    bound(
        "segments on their way to ClickHouse",
        u64::from(config.clickhouse.inserts_in_flight) * limits.pieces_per_insert,
        limits.piece_bytes,
        Taken::AtMost,
        "the shipper waits for the connection",
    );
    bound("stats clients", limits.stats_clients, limits.stats_client_bytes, Taken::AtMost, "the newest waits in the listen queue");
    let log_full = match config.log.when_full {
        WhenFull::Refuse => "new connections are shed, then shares answered 20 \"log full\"; blocks are submitted",
        WhenFull::Rollup => {
            "its last eighth takes sums per worker and second; then as with \"refuse\": shares are answered 20 \"log full\""
        }
    };
    bound(
        "journal files",
        limits.journal_files,
        journal_file_bytes(config.log.max_bytes),
        Taken::Disk,
        "log waits for the sealer, then shares are answered 20 \"log full\"",
    );
    if config.log.ack == Ack::Disk {
        bound(
            "journal files in memory (ack = \"disk\")",
            limits.journal_files,
            journal_file_bytes(config.log.max_bytes),
            Taken::AtMost,
            "the sync thread brings them to the files; without room log waits as above",
        );
    }
    bound("share log", 1, config.log.max_bytes, Taken::Disk, log_full);
    all
}

/// How long the log's room lasts at a steady rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LogRoom {
    /// Shares a second.
    pub shares_per_s: u64,
    /// Hours until `log.max_bytes` is reached, nothing being deleted.
    pub hours: f64,
}

/// The log's room at 1 k, 10 k, 100 k and 1 M shares a second.
pub fn log_room(config: &Config, limits: &Limits) -> Vec<LogRoom> {
    // The journal's files lie in the same folder and count.
    let room = config.log.max_bytes.saturating_sub(limits.journal_files.saturating_mul(journal_file_bytes(config.log.max_bytes)));
    let rows = room / sealed_row_bytes(config);
    [1_000, 10_000, 100_000, 1_000_000].map(|rate| LogRoom { shares_per_s: rate, hours: rows as f64 / rate as f64 / 3600.0 }).to_vec()
}

/// Bytes of a row in a sealed segment.
fn sealed_row_bytes(config: &Config) -> u64 {
    layout_of(config.log.row).row_bytes() as u64
}

/// The bounds and the log's room as `otedama check` prints them.
pub fn table(config: &Config, limits: &Limits) -> String {
    let bounds = bounds(config, limits);
    let mut out = String::new();
    let _ = writeln!(out, "{:<24} {:>13} {:>10} {:>10}  {:<8}  when full", "bound", "count", "each", "bytes", "taken");
    for b in &bounds {
        let taken = match b.taken {
            Taken::AtStart => "at start",
            Taken::AtMost => "at most",
            Taken::Disk => "disk",
        };
        let _ = writeln!(
            out,
            "{:<24} {:>13} {:>10} {:>10}  {taken:<8}  {}",
            b.name,
            b.count,
            bytes_text(b.bytes_each),
            bytes_text(b.bytes),
            b.what_happens_when_full
        );
    }
    let total = |taken: Taken| bounds.iter().filter(|b| b.taken == taken).fold(0_u64, |sum, b| sum.saturating_add(b.bytes));
    let _ = writeln!(
        out,
        "\nmemory at start {}, and at most {} more if every miner used all it may; disk {}",
        bytes_text(total(Taken::AtStart)),
        bytes_text(total(Taken::AtMost)),
        bytes_text(config.log.max_bytes)
    );
    let _ = writeln!(
        out,
        "\nthe log's {} hold, at {} bytes a row{}:",
        bytes_text(config.log.max_bytes),
        sealed_row_bytes(config),
        if config.log.row == RowLayout::Rollup { ", at least, as shares of a worker in the same second are one row" } else { "" }
    );
    for room in log_room(config, limits) {
        let _ = writeln!(out, "  {:>9} shares/s  {:>10.1} h", room.shares_per_s, room.hours);
    }
    out
}

/// `65536` as `64.0 KiB`.
fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(bounds: &[Bound], name: &str) -> Bound {
        bounds.iter().find(|b| b.name == name).expect(name).clone()
    }

    #[test]
    fn every_bound_has_bytes_and_says_what_happens() {
        let all = bounds(&Config::defaults(), &Limits::default());
        for b in &all {
            assert!(b.count > 0 && b.bytes_each > 0, "{b:?}");
            assert_eq!(b.bytes, b.count * b.bytes_each, "{b:?}");
            assert!(b.what_happens_when_full.len() > 5, "{b:?}");
        }
        let mut names: Vec<&str> = all.iter().map(|b| b.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert_eq!(find(&all, "duplicate tables").bytes, 12 * ((1 << 20) * 8 + (1 << 19) * 24));
        assert_eq!(find(&all, "unread, in the kernel").bytes, 10_000 << 18);
        assert_eq!(find(&all, "ring net_validate").bytes, (1 << 14) * 64);
        assert_eq!(find(&all, "ring log_net").bytes, (1 << 15) * 8);
        assert_eq!(find(&all, "connections").count, 10_000);
    }

    #[test]
    fn what_the_operator_chooses_moves_its_bound() {
        let variables = [
            ("OTEDAMA_STRATUM__MAX_CONNECTIONS", "7"),
            ("OTEDAMA_LIMITS__LINE_BYTES", "1024"),
            ("OTEDAMA_LAYOUT__NET", "0-2"),
            ("OTEDAMA_LAYOUT__VALIDATE", "3,4"),
            ("OTEDAMA_LOG__MAX_BYTES", "1 GiB"),
        ];
        let env = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::load(None, env).expect("it loads");
        let limits = Limits::of(&config, 1, 1);
        assert_eq!((limits.nets, limits.lanes), (3, 2));
        let all = bounds(&config, &limits);
        assert_eq!(find(&all, "unfinished lines").bytes, (7 + 3 * (1 << 14)) * 256);
        assert_eq!(find(&all, "ring net_validate").count, 3 << 14);
        assert_eq!(find(&all, "ring validate_log").count, 2 << 14);
        assert_eq!(find(&all, "share log").bytes, 1 << 30);
    }

    #[test]
    fn the_driver_moves_its_bounds() {
        let plan = Plan { name: "uring", rings: 7, places: 1 << 14, ring_bytes: 300_000, read_buffers: 1024, read_buffer_bytes: 16_448 };
        let all = bounds(&Config::defaults(), &Limits { nets: 2, ..Limits::default() }.with_driver(&plan));
        assert_eq!(find(&all, "rings").bytes, 14 * 300_000);
        assert_eq!((find(&all, "read buffers").count, find(&all, "read buffers").taken), (14 * 1024, Taken::AtMost));
        let mio = Plan { name: "mio", rings: 0, places: 0, ring_bytes: 0, read_buffers: 1, read_buffer_bytes: 65_536 };
        let all = bounds(&Config::defaults(), &Limits::default().with_driver(&mio));
        assert!(all.iter().all(|b| b.name != "rings"));
        assert_eq!((find(&all, "read buffers").count, find(&all, "read buffers").taken), (1, Taken::AtStart));
    }

    #[test]
    fn ten_times_the_rate_lasts_a_tenth() {
        let limits = Limits { journal_files: 0, ..Limits::default() };
        let room = log_room(&Config::defaults(), &limits);
        let rates: Vec<u64> = room.iter().map(|r| r.shares_per_s).collect();
        assert_eq!(rates, [1_000, 10_000, 100_000, 1_000_000]);
        // 64 GiB at 85 bytes a row: 808.5 million rows.
        assert!((room[3].hours - 0.2246).abs() < 0.0001, "{room:?}");
        let lean = Config::from_text("[log]\nrow = \"lean\"", "pool.toml", std::iter::empty());
        assert!(lean.is_ok_and(|lean| log_room(&lean, &limits)[0].hours > room[0].hours * 1.2));
        assert!((room[0].hours / room[3].hours - 1000.0).abs() < 0.001);
        let small = Limits { journal_files: u64::MAX, ..Limits::default() };
        assert_eq!(log_room(&Config::defaults(), &small)[0].hours, 0.0);
    }

    #[test]
    fn the_table_names_every_bound() {
        let (config, limits) = (Config::defaults(), Limits::default());
        let text = table(&config, &limits);
        for b in bounds(&config, &limits) {
            assert!(text.contains(&b.name), "{}", b.name);
        }
        assert!(text.contains("100000 shares/s"));
    }

    #[test]
    fn bytes_are_printed_in_the_largest_unit_that_fits() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(1024), "1.0 KiB");
        assert_eq!(bytes_text(64 << 30), "64.0 GiB");
        assert_eq!(bytes_text(2 << 40), "2.0 TiB");
    }
}
