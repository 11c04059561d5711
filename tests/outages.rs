//! What a ClickHouse can do to a pool that ships to it: be away, cut answers off, be slow, answer 500, lose a column, have too many parts. Under each the miners go on as before,
//! and afterwards every share is there once.
//!
//! `OTEDAMA_OUTAGE_SECONDS=60 OTEDAMA_OUTAGE_RATE=30000 cargo test --release --test outages -- --nocapture` takes half an hour of a pool of 1,000 shares a second in a minute; with
//! `OTEDAMA_LONG=1` the server is away for half an hour by the clock. `cargo xtask figures outages` makes the table.
mod support;

#[path = "../shipper/tests/server/mod.rs"]
mod server;

use loadgen::engine::EngineConfig;
use loadgen::ledger::LedgerSink;
use loadgen::report::RunReport;
use loadgen::run::RunConfig;
use loadgen::session::Behaviour;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Config, PATIENCE, Server, Site, alone, eventually, size};

const CONNECTIONS: usize = 64;
/// The time before an outage is as long as it, but not longer than this: p99 is settled by then.
const QUIET_SECONDS: f64 = 30.0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outage {
    /// The server is stopped.
    Away,
    /// Every insert is carried out, and its answer lost.
    Cut,
    /// Every insert is answered two seconds late.
    Slow,
    /// Every insert is answered 500, unread by the server.
    Error500,
    /// A column of `shares` is gone.
    ColumnDropped,
    /// Code 252 to every insert.
    TooManyParts,
}

impl Outage {
    fn name(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Cut => "cut_after_accept",
            Self::Slow => "slow",
            Self::Error500 => "http_500",
            Self::ColumnDropped => "column_dropped",
            Self::TooManyParts => "too_many_parts",
        }
    }
}

/// What the proxy does with inserts of segments.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Pass,
    Cut,
    Slow,
    Error500,
    TooManyParts,
}

/// Passes connections on to a server, with faults in inserts of segments.
struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    mode: AtomicU8,
    /// Inserts that a fault met.
    faults: AtomicU64,
    stop: AtomicBool,
}

impl Proxy {
    fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
        let address = listener.local_addr().expect("its address");
        let shared =
            Arc::new(Shared { target, mode: AtomicU8::new(Mode::Pass as u8), faults: AtomicU64::new(0), stop: AtomicBool::new(false) });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.pass(client));
            }
        });
        Self { address, shared }
    }

    fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Ordering::SeqCst) == mode as u8
    }

    fn pass(&self, mut client: TcpStream) {
        // A server that is down: the client's connection just closes.
        let Ok(mut server) = TcpStream::connect(self.target) else { return };
        let (Ok(mut client_in), Ok(mut server_out)) = (client.try_clone(), server.try_clone()) else { return };
        let is_insert = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = vec![0u8; 1 << 16];
                let mut refusing = None;
                while let Ok(count @ 1..) = client_in.read(&mut buffer) {
                    let piece = &buffer[..count];
                    // A client asks again on a connection only when it has its answer, so a request starts a piece.
                    if refusing.is_none() && piece.starts_with(b"POST ") {
                        let line = piece.split(|&byte| byte == b'\r').next().unwrap_or_default();
                        let native = line.windows(6).any(|word| word == b"Native");
                        is_insert.store(native, Ordering::SeqCst);
                        if native && !self.is(Mode::Pass) {
                            self.faults.fetch_add(1, Ordering::SeqCst);
                        }
                        refusing = (native && self.is(Mode::Error500))
                            .then_some("Code: 999, e.displayText() = DB::Exception: made up by a test")
                            .or_else(|| {
                                (native && self.is(Mode::TooManyParts)).then_some(
                                    "Code: 252, e.displayText() = DB::Exception: Too many parts (300). Merges are processing significantly slower than inserts",
                                )
                            });
                    }
                    if let Some(text) = refusing {
                        // Read to its end: an answer in the middle of a body may be thrown away with the connection.
                        if piece.ends_with(b"0\r\n\r\n") {
                            let answer = format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
                            let _ = client_in.write_all(answer.as_bytes());
                            break;
                        }
                        continue;
                    }
                    if server_out.write_all(piece).is_err() {
                        break;
                    }
                }
                let _ = client_in.shutdown(Shutdown::Write);
                let _ = server_out.shutdown(Shutdown::Both);
            });
            let mut buffer = vec![0u8; 1 << 16];
            while let Ok(count @ 1..) = server.read(&mut buffer) {
                if is_insert.load(Ordering::SeqCst) && self.is(Mode::Cut) {
                    let _ = client.shutdown(Shutdown::Both);
                    break;
                }
                if is_insert.load(Ordering::SeqCst) && self.is(Mode::Slow) {
                    std::thread::sleep(Duration::from_secs(2));
                }
                if client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = server.shutdown(Shutdown::Both);
            let _ = client.shutdown(Shutdown::Write);
        });
    }
}

fn from_environment(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Paced load for a time, on connections of its own.
fn paced(stratum: SocketAddr, ledger: LedgerSink, seed: u64, seconds: f64, rate: f64) -> RunReport {
    let behaviour = Behaviour {
        bad_every: 10,
        dup_every: 10,
        seed,
        worker_prefix: format!("outage{seed}"),
        workers_per_connection: 2,
        ..Behaviour::default()
    };
    let engine = EngineConfig {
        connections: CONNECTIONS,
        behaviour,
        ledger,
        pace_shares_per_s: rate / CONNECTIONS as f64,
        ..EngineConfig::new(stratum)
    };
    let config =
        RunConfig { window: Duration::from_secs_f64(seconds), warmup: Duration::ZERO, set_up_limit: PATIENCE, ..RunConfig::new(engine) };
    let report = loadgen::run::run(config, &AtomicBool::new(false)).expect("the load generator");
    assert_eq!(report.totals.wrong, 0, "{:#?}", report.totals.wrong_kept);
    assert_eq!(report.totals.unanswered, 0, "{}", report.trouble);
    report
}

fn p99(report: &RunReport) -> f64 {
    serde_json::to_value(report.latency_us()).expect("JSON")["p99"].as_f64().expect("a number")
}

fn unshipped(pool: &Server) -> u64 {
    pool.stats()["log"]["rows_unshipped"].as_u64().expect("a count")
}

/// What `begin` started goes over: the server is as it was.
struct Stage {
    clickhouse: server::Server,
    proxy: Proxy,
    outage: Outage,
}

impl Stage {
    fn begin(&mut self) {
        match self.outage {
            Outage::Away => self.clickhouse.stop(),
            Outage::Cut => self.proxy.set(Mode::Cut),
            Outage::Slow => self.proxy.set(Mode::Slow),
            Outage::Error500 => self.proxy.set(Mode::Error500),
            Outage::ColumnDropped => drop(self.clickhouse.query("ALTER TABLE otedama.shares DROP COLUMN extranonce2")),
            Outage::TooManyParts if self.clickhouse.is_modern() => {
                self.clickhouse.query("SYSTEM STOP MERGES otedama.shares");
                self.clickhouse.query("ALTER TABLE otedama.shares MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 1");
            }
            // 18.16 cannot be told a limit for a table that exists: the words are its own, the cause is not.
            Outage::TooManyParts => self.proxy.set(Mode::TooManyParts),
        }
    }

    fn end(&mut self) {
        self.proxy.set(Mode::Pass);
        match self.outage {
            Outage::Away => self.clickhouse.restart(),
            Outage::ColumnDropped => drop(self.clickhouse.query("ALTER TABLE otedama.shares ADD COLUMN extranonce2 UInt64 AFTER version")),
            Outage::TooManyParts if self.clickhouse.is_modern() => {
                self.clickhouse.query("ALTER TABLE otedama.shares RESET SETTING parts_to_delay_insert, parts_to_throw_insert");
                self.clickhouse.query("SYSTEM START MERGES otedama.shares");
            }
            Outage::Cut | Outage::Slow | Outage::Error500 | Outage::TooManyParts => {}
        }
    }
}

/// A quiet time, an outage, and the time after it until all is on the server, under a load that never stops; the lines are of a table.
fn clickhouse_outage(outage: Outage) {
    let _turn = alone();
    let test = format!("clickhouse_outage_{}", outage.name());
    let Some(clickhouse) = server::Server::start(&test) else { return };
    let long_s = if outage == Outage::Away { 1800.0 } else { 60.0 };
    let seconds = from_environment("OTEDAMA_OUTAGE_SECONDS", size(2.5, long_s));
    let rate = from_environment("OTEDAMA_OUTAGE_RATE", size(6_400.0, 20_000.0));
    let proxy = Proxy::start(clickhouse.address());
    let site = Site::new(Config { clickhouse: format!("http://{}", proxy.address), ..Config::default() });
    let mut stage = Stage { clickhouse, proxy, outage };
    let pool = site.serve();
    let ledger = || LedgerSink::File(site.ledger());

    let quiet = paced(pool.stratum, ledger(), 1, seconds.min(QUIET_SECONDS), rate);
    assert!(eventually(|| unshipped(&pool) == 0), "{}", pool.stats());
    stage.begin();
    let during = paced(pool.stratum, ledger(), 2, seconds, rate);
    // However slow the machine is: the rows of this time are sent, and meet the fault.
    match outage {
        Outage::Away | Outage::ColumnDropped => {}
        Outage::TooManyParts if stage.clickhouse.is_modern() => {}
        _ => assert!(eventually(|| stage.proxy.faults() > 0), "the fault met no insert"),
    }
    // 18.16 is asked what became of a cut insert, and the shipper goes on; a slow one goes on by itself.
    if !matches!(outage, Outage::Slow | Outage::Cut) {
        assert!(eventually(|| unshipped(&pool) > 0), "nothing waited: {}", pool.stats());
    }
    let backlog = unshipped(&pool);
    let state = pool.stats()["clickhouse"]["state"].as_str().expect("a text").to_owned();
    assert_eq!(pool.get("/health").0, 200, "miners need not go elsewhere");
    stage.end();

    // Under load all the while. The wait until the shipper looks again is a time of its own.
    let ended = Instant::now();
    let again = std::thread::scope(|scope| {
        let stratum = pool.stratum;
        let after = ledger();
        let load = scope.spawn(move || paced(stratum, after, 3, seconds.clamp(2.0, 30.0), rate));
        let mut last = backlog;
        let mut began = None;
        let drained = eventually(|| {
            let left = unshipped(&pool);
            if began.is_none() && left < last {
                began = Some((Instant::now(), last));
            }
            last = left;
            // What arrives within a second or two is always on its way.
            (left as f64) < 2.5 * rate
        });
        assert!(drained, "{}", pool.stats());
        let (since, from) = began.unwrap_or((ended, backlog));
        (
            load.join().expect("the load"),
            since.duration_since(ended).as_secs_f64(),
            since.elapsed().as_secs_f64(),
            from.saturating_sub(last),
        )
    });
    let (again, looked_s, drain_s, drained_rows) = again;

    let submits: u64 = [&quiet, &during, &again].map(|report| report.totals.submits).iter().sum();
    let counts = pool.settled_shares(submits);
    let mut stats = Value::Null;
    let shipped = eventually(|| {
        stats = pool.stats();
        stats["log"]["rows_unshipped"] == 0
            && stage.clickhouse.try_query("SELECT count() FROM otedama.shares").is_ok_and(|count| count.trim() == submits.to_string())
    });
    let ask = |sql: &str| -> u64 { stage.clickhouse.query(sql).trim().parse().unwrap_or_else(|_| panic!("{sql}")) };
    let rows = ask("SELECT count() FROM otedama.shares");
    let once = ask("SELECT count() FROM (SELECT seg, seq FROM otedama.shares GROUP BY seg, seq)");
    let (lost, doubled) = (submits - once.min(submits), rows - once);
    assert_eq!((lost, doubled), (0, 0), "{submits} shares, {rows} rows on the server, {once} different ones; {stats}");
    assert!(shipped, "{stats}");
    for roll_up in ["worker_minute", "worker_hour", "pool_minute"] {
        // 18.16 has an insert in the table a moment before it is in the roll-ups.
        let mut sum = 0;
        let summed = eventually(|| {
            sum = ask(&format!("SELECT sum(shares) FROM otedama.{roll_up}"));
            sum == submits
        });
        assert!(summed, "{roll_up}: {sum} of {submits}");
    }
    pool.stop();
    assert_eq!(site.verified_clean(), counts);
    site.assert_no_panic();

    let server = if stage.clickhouse.is_modern() { "libchdb behind otedama-engine" } else { "ClickHouse 18.16" };
    println!(
        "{test}: {server}, {seconds} s at {rate} shares/s, state {state}: {submits} shares, lost {lost}, doubled {doubled}; p99 us quiet {}, outage {}, after {}; {backlog} rows waited, \
         taken up after {looked_s:.2} s, {drained_rows} fewer after further {drain_s:.2} s",
        p99(&quiet),
        p99(&during),
        p99(&again)
    );
    if std::env::var_os("OTEDAMA_FIGURES").is_some() {
        let conditions = format!(
            "{server}; pool, server and load on the same cores; {CONNECTIONS} connections, {rate} shares/s paced, {seconds} s of outage after a quiet time as long, but not over {QUIET_SECONDS} s; practice chain"
        );
        let line = |what: &str, value: f64, unit: &str, counted: &str| {
            let line = serde_json::json!({"name": format!("outage_{}_{what}", outage.name()), "value": value, "unit": unit, "counted": counted, "conditions": conditions});
            println!("{line}");
        };
        line("lost", lost as f64, "rows", "shares that the ledger has and the server has not");
        line("doubled", doubled as f64, "rows", "rows of the server beyond one per share");
        line("latency_us_p99_quiet", p99(&quiet), "us", "submit to answer as loadgen sees it, before the outage");
        line("latency_us_p99", p99(&during), "us", "submit to answer as loadgen sees it, in the outage");
        line("p99_ratio", p99(&during) / p99(&quiet).max(1.0), "ratio", "p99 in the outage to p99 before it");
        line("taken_up_s", looked_s, "s", "end of the outage to the first segment");
        if drained_rows as f64 > rate {
            let per_s = drained_rows as f64 / drain_s.max(0.001) + rate;
            line(
                "drained_ratio",
                per_s / rate,
                "ratio",
                "rows acknowledged per second from then on, to rows that arrive per second meanwhile",
            );
        }
    }
}

#[test]
fn clickhouse_that_is_away_loses_and_doubles_nothing() {
    clickhouse_outage(Outage::Away);
}

#[test]
fn clickhouse_whose_answers_are_cut_off_loses_and_doubles_nothing() {
    clickhouse_outage(Outage::Cut);
}

#[test]
fn clickhouse_that_is_slow_loses_and_doubles_nothing() {
    clickhouse_outage(Outage::Slow);
}

#[test]
fn clickhouse_that_answers_500_loses_and_doubles_nothing() {
    clickhouse_outage(Outage::Error500);
}

#[test]
fn clickhouse_that_loses_a_column_loses_and_doubles_no_row() {
    clickhouse_outage(Outage::ColumnDropped);
}

#[test]
fn clickhouse_with_too_many_parts_loses_and_doubles_nothing() {
    clickhouse_outage(Outage::TooManyParts);
}
