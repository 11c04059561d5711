//! More than the server can take, and parts of it that stop for a while: nothing is lost, what was read is judged, a block goes out at once, and the measures
//! against overload are the only thing that miners notice.
//!
//! `OTEDAMA_LONG=1 cargo test --profile ci --test overload -- --nocapture` is the long form: a minute at three times saturation, every stage paused in turn.
mod support;

#[path = "../shipper/tests/mock/mod.rs"]
mod mock;

use loadgen::engine::EngineConfig;
use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use loadgen::report::RunReport;
use loadgen::run::RunConfig;
use loadgen::session::Behaviour;
use mock::{Act, Mock};
use otedama_kernels::sha256d::scalar::sha256d;
use otedama_pipeline::stages::{DUPLICATE_TABLE_BYTES, DUPLICATE_TABLES};
use otedama_primitives::{ShareStatus, decode_hex, encode_hex, flags};
use otedama_sharelog::scan::{Filter, rows};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{Amount, Config, Miner, PATIENCE, Server, Site, Wire, alone, eventually, load, long, memory_kib, size};

const PAYOUT: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
/// One hash in 8,192 is a block: dozens a second under load, each of which ends all jobs.
const BITS: &str = "1f080000";
/// What overload may cost in memory beside the duplicate tables, which are touched as jobs come and go. Buffers of the kernel do not count.
const GROWTH_KIB_MAX: u64 = 32 << 10;
const TABLES_KIB: u64 = (DUPLICATE_TABLES * DUPLICATE_TABLE_BYTES / 1024) as u64;

/// setpriority(2): whoever else wants the core has it.
const LEAST_PRIORITY: i32 = 19;

/// Puts the calling thread on the last core, beside the server's control core: the first one is the share path's.
fn leave_the_share_core() {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let Some(last) = (0..CpuSet::MAX_CPU).rev().find(|&core| allowed.is_set(core)) else { return };
    let mut one = CpuSet::new();
    one.set(last);
    let _ = sched_setaffinity(None, &one);
}

/// A value of `/metrics` that has no labels.
fn metric(server: &Server, name: &str) -> f64 {
    let (_, text) = server.get("/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
}

/// A farm that mines as fast as it is answered, with a ledger.
struct Load {
    farm: Farm,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(site: &Site, target: SocketAddr) -> Self {
        let mut config = FarmConfig::new(target);
        config.reconnect = false;
        config.shares_per_s_per_connection = 50.0;
        config.ledger = LedgerSink::File(site.ledger());
        let stop = Arc::new(AtomicBool::new(false));
        Self { farm: Farm::start(config, stop.clone()).expect("a farm"), stop }
    }

    fn accepted(&self) -> u64 {
        self.farm.live().accepted.load(Ordering::Relaxed)
    }

    /// Ends it; all that it sent was accepted, and no connection was lost.
    fn end_without_a_loss(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let totals = self.farm.join().expect("the farm").totals;
        assert_eq!((totals.wrong, totals.unanswered, totals.disconnects), (0, 0, 0), "{:#?}", totals.wrong_kept);
        assert_eq!(totals.accepted, totals.submits, "{totals:?}");
        totals.submits
    }
}

#[test]
fn a_stage_that_stops_for_five_seconds_costs_time_and_no_share() {
    let _turn = alone();
    let stages: &[&'static str] = if long() { &["net:0@2000+5000", "validate:0@2000+5000", "log@2000+5000"] } else { &["log@1000+5000"] };
    for &fail_point in stages {
        let site = Site::new(Config { fail_point, ..Config::default() });
        let server = site.serve();
        let load = Load::start(&site, server.stratum);
        // Miners see it: nothing is accepted for so long. The server's latency starts where a share is read, which a net that stands still does not do.
        let (mut seen, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
        let stopped = eventually(|| {
            let accepted = load.accepted();
            if accepted != seen {
                longest = if seen > 0 { longest.max(since.elapsed()) } else { longest };
                (seen, since) = (accepted, Instant::now());
            }
            longest > Duration::from_secs(4)
        });
        assert!(stopped, "{fail_point} did not stop: {}", server.stats());
        let before = load.accepted();
        assert!(eventually(|| load.accepted() > before + 2_000), "{fail_point}: shares are accepted as before");
        let submits = load.end_without_a_loss();
        assert!(eventually(|| metric(&server, "otedama_net_overload_step") == 0.0), "no measure stays in force");
        assert_eq!(server.stop().accepted, submits);
        assert_eq!(site.verified_clean()[0], submits);
        site.assert_no_panic();
    }
}

#[test]
fn a_slow_clickhouse_slows_no_miner_and_gets_every_row_once() {
    let _turn = alone();
    let house = Mock::start("25.8.2.1");
    house.world().acts.extend((0..3).map(|_| Act::TakeAfter(Duration::from_secs(2))));
    let site = Site::new(Config { clickhouse: house.url(), ..Config::default() });
    let server = site.serve();
    let load = Load::start(&site, server.stratum);
    let sealed = |server: &Server| server.stats()["log"]["segments_sealed"].as_u64().expect("a count");
    assert!(eventually(|| sealed(&server) >= 4), "segments are sealed while the first is still on its way: {}", server.stats());
    let submits = load.end_without_a_loss();
    let shipped = |server: &Server| {
        let log = &server.stats()["log"];
        log["rows_unshipped"] == 0 && log["segments_shipped"] == log["segments_sealed"]
    };
    assert!(
        eventually(|| shipped(&server) && house.world().rows.values().sum::<u64>() == submits),
        "{} of {submits} rows: {}",
        house.world().rows.values().sum::<u64>(),
        server.stats()
    );
    assert_eq!(server.stats()["clickhouse"]["state"], "ok");
    assert_eq!(server.stop().accepted, submits);
    let tokens: Vec<String> = house.segment_inserts().iter().map(|insert| insert.token().to_owned()).collect();
    assert_eq!(tokens.len(), house.world().rows.len(), "each segment came once: {tokens:?}");
    site.verified_clean();
}

#[test]
fn a_miner_that_reads_late_gets_every_answer_in_order() {
    let _turn = alone();
    let site = Site::new(Config::default());
    let server = site.serve();
    let SocketAddr::V4(target) = server.stratum else { panic!("listens on IPv4") };
    let plain = socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
    set_socket_recv_buffer_size(&plain, 2048).expect("a small buffer");
    connect(&plain, &target).expect("connect");
    let mut miner = Miner::over(Wire::over(TcpStream::from(plain)));
    // More answers than the kernel holds, less than the server does.
    let shares: Vec<_> = (0..6_000).map(|_| miner.mine()).collect();
    let lines: Vec<(u64, String)> = shares.iter().map(|share| miner.submit_line(share)).collect();
    miner.wire.send(lines.iter().map(|(_, line)| line.as_str()).collect::<String>());
    // All are judged and in the log while none of their answers has been read.
    assert_eq!(server.settled_shares(6_000)[0], 6_000);
    let mut other = Miner::connect(server.stratum);
    let share = other.mine();
    assert_eq!(other.submit_at_once(&[share]), [0], "others do not wait for it");
    for (id, _) in &lines {
        assert_eq!(support::code(&miner.answer(*id)), 0);
    }
    assert_eq!(server.stop().accepted, 6_001);
    assert_eq!(site.verify(None).0, 0);
}

/// What the node knows of its chain, and the blocks that came, by nonce, ntime and version: when the head of their request was read, microseconds since the epoch.
#[derive(Default)]
struct Chain {
    tip: String,
    height: u64,
    blocks: HashMap<(u32, u32, u32), u64>,
}

/// A node of an easy network: takes every block that is solved and on its tip, and notes when submitblock reached it.
struct Node {
    address: SocketAddr,
    chain: Arc<Mutex<Chain>>,
}

impl Node {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let chain = Arc::new(Mutex::new(Chain { tip: "11".repeat(32), height: 100, ..Chain::default() }));
        let shared = chain.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let chain = shared.clone();
                std::thread::spawn(move || {
                    leave_the_share_core();
                    // A pool that goes away ends the conversation.
                    let _ = serve(stream, &chain);
                });
            }
        });
        Self { address, chain }
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(stream: TcpStream, chain: &Mutex<Chain>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut first_us) = (0, 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if first_us == 0 {
                first_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let call: Value = serde_json::from_slice(&body).expect("the pool sends JSON");
        let result = answer(&call, first_us, &mut chain.lock().unwrap_or_else(PoisonError::into_inner));
        let text = json!({ "result": result, "error": null, "id": call["id"] }).to_string();
        writer.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes())?;
    }
}

/// What a share of a busy network takes to judge: eight levels of the merkle tree above the coinbase.
fn transactions() -> Value {
    let of = |number: u32| {
        let data = [number.to_le_bytes(); 15].concat();
        let id = sha256d(&data).to_string();
        json!({ "data": encode_hex(&data), "txid": id, "hash": id })
    };
    (0..255).map(of).collect()
}

fn answer(call: &Value, first_us: u64, chain: &mut Chain) -> Value {
    match call["method"].as_str().expect("a method") {
        "getblockchaininfo" => json!({ "chain": "regtest" }),
        "getbestblockhash" => json!(chain.tip),
        "getblockheader" => json!({ "confirmations": 1 }),
        "getblocktemplate" => {
            let now_s = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
            json!({
                "version": 0x2000_0000, "previousblockhash": chain.tip, "height": chain.height + 1, "mintime": now_s - 3600, "curtime": now_s,
                "coinbasevalue": 5_000_000_000_u64, "bits": BITS, "transactions": transactions(), "rules": ["segwit"]
            })
        }
        "submitblock" => {
            let hex = call["params"][0].as_str().expect("hex");
            let mut header = [0; 80];
            decode_hex(&hex.as_bytes()[..160], &mut header).expect("hex");
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let hash = sha256d(&header);
            let parent: String = header[4..36].iter().rev().map(|byte| format!("{byte:02x}")).collect();
            // 0x1f080000: three bytes of zeros would be 2^232, this is 2^243.
            assert!(hash.to_string().starts_with("000"), "submitblock of what is no block: {hash}");
            chain.blocks.insert((word(76), word(68), word(0)), first_us);
            if parent != chain.tip {
                return json!("inconclusive");
            }
            chain.tip = hash.to_string();
            chain.height += 1;
            Value::Null
        }
        other => panic!("the pool calls {other}"),
    }
}

/// Shares by the clock, whatever the server answers.
fn open_loop(target: SocketAddr, connections: usize, rate: f64, seconds: u64) -> RunReport {
    let behaviour = Behaviour { open_loop: true, ..Behaviour::default() };
    let engine = EngineConfig { connections, behaviour, rate_shares_per_s: rate, ..EngineConfig::new(target) };
    let config =
        RunConfig { window: Duration::from_secs(seconds), warmup: Duration::ZERO, set_up_limit: PATIENCE, ..RunConfig::new(engine) };
    loadgen::run::run(config, &AtomicBool::new(false)).expect("the load generator")
}

/// What was seen from outside while a load was on.
#[derive(Default, Debug)]
struct Seen {
    /// Anonymous memory, one look after another.
    rss_anon_kib: Vec<u64>,
    unread_us: f64,
    step: f64,
    doubled: f64,
}

/// Runs `load` on a thread beside the control core, and looks at the server meanwhile.
fn watched<T: Send>(server: &Server, load: impl FnOnce() -> T + Send) -> (T, Seen) {
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            leave_the_share_core();
            // The control core is the server's: what knocks at its door from other machines would not take time of it.
            let _ = setpriority_process(None, LEAST_PRIORITY);
            load()
        });
        let mut seen = Seen::default();
        while !loading.is_finished() {
            seen.rss_anon_kib.push(memory_kib(server.pid(), "RssAnon"));
            seen.unread_us = seen.unread_us.max(metric(server, "otedama_net_unread_oldest_us"));
            seen.step = seen.step.max(metric(server, "otedama_net_overload_step"));
            seen.doubled = seen.doubled.max(metric(server, "otedama_net_session_doubled"));
            std::thread::sleep(Duration::from_millis(100));
        }
        (loading.join().expect("the load"), seen)
    })
}

/// Every value of a sorted list that has at most one in `one_in` above it.
fn quantile(sorted: &[u64], one_in: usize) -> u64 {
    sorted.len().checked_sub(1 + sorted.len() / one_in).map_or(0, |at| sorted[at])
}

#[test]
fn at_three_times_saturation_blocks_go_out_at_once_and_nothing_that_was_read_is_lost() {
    let _turn = alone();
    let (seconds, connections) = (size(6, 60), 64);
    let node = Node::start();
    let chain = format!("network = \"regtest\"\nrpc = [\"http://{}\"]\npayout_address = \"{PAYOUT}\"\npoll_ms = 1000\n", node.address);
    // With the kernels of its CPU, or without transactions, the server judges nearly as fast as a core can mine and write: no generator makes three times that.
    let site = Site::new(Config { difficulty: 2.4e-10, chain, isa: "portable", ..Config::default() });
    let server = site.serve();
    // Saturation of this machine, with both ends on it: the closed loop that fills the server's core.
    let (saturated, _) =
        watched(&server, || load(server.stratum, Amount::Seconds(size(2, 5)), connections, 64, Behaviour::default(), LedgerSink::None));
    let rate = 3.0 * saturated.measured().shares_per_s();
    let rss_before_kib = memory_kib(server.pid(), "RssAnon");
    let first_us = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64;

    let (report, seen) = watched(&server, || open_loop(server.stratum, connections, rate, seconds));
    let totals = &report.totals;
    assert_eq!(totals.wrong, 0, "every refusal has its reason: {:#?}", totals.wrong_kept);
    assert_eq!(totals.submits, totals.answered() + totals.unanswered);
    let most = |looks: &[u64]| looks.iter().copied().max().unwrap_or(0);
    let (first_half, second_half) = seen.rss_anon_kib.split_at(seen.rss_anon_kib.len() / 2);
    let grown_kib = most(&seen.rss_anon_kib).saturating_sub(rss_before_kib);
    assert!(grown_kib < GROWTH_KIB_MAX + TABLES_KIB, "the server grew by {grown_kib} KiB");
    // A minute is enough for every table to have been used: from then on memory is flat.
    let grown_late_kib = most(second_half).saturating_sub(most(first_half));
    assert!(!long() || grown_late_kib < GROWTH_KIB_MAX, "the server grew by {grown_late_kib} KiB in the second half");
    assert!(eventually(|| metric(&server, "otedama_net_overload_step") == 0.0), "every measure goes back");
    Miner::connect(server.stratum);

    let handed_ms = 1e3 * metric(&server, "otedama_chain_block_handed_most_seconds");
    let blocks = server.stats()["blocks"].clone();
    let drained = server.stop();
    assert_eq!(drained.received, drained.accepted + drained.rejected);
    assert_eq!(site.verify(None).0, 0);
    site.assert_no_panic();

    let found: Vec<_> = rows(&site.log(), Filter::default())
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .expect("scan")
        .into_iter()
        .filter(|row| row.flags & flags::BLOCK != 0 && row.arrival_us >= first_us)
        .collect();
    let chain = node.chain();
    let mut took_us: Vec<u64> = found
        .iter()
        .filter_map(|row| Some(chain.blocks.get(&(row.nonce, row.ntime, row.version))?.saturating_sub(row.arrival_us)))
        .collect();
    took_us.sort_unstable();
    // How many depends on the machine; without any this shows nothing.
    assert!(!took_us.is_empty(), "{} candidates in the log, none of them at the node: {blocks}", found.len());
    assert!(took_us.len() <= found.len());
    println!(
        "saturation {:.0} shares/s; offered {rate:.0}/s for {seconds} s: sent {}, accepted {}, rejected {:?}, closed by the server {}; server grew by {grown_kib} KiB, by {grown_late_kib} KiB in the second half; unread for {:.0} us at most, step {}, {} sessions doubled",
        saturated.measured().shares_per_s(),
        totals.submits,
        totals.accepted,
        totals.rejected,
        totals.disconnects,
        seen.unread_us,
        seen.step,
        seen.doubled
    );
    let bytes = |kib: u64| kib << 10;
    let refused: serde_json::Map<String, Value> =
        ShareStatus::ALL.into_iter().skip(1).map(|status| (status.label().to_owned(), totals.by_status[status as usize].into())).collect();
    // `cargo xtask figures network --part overload` reads this line.
    println!(
        "figures: {}",
        json!({
            "seconds": seconds, "saturation_shares_per_s": saturated.measured().shares_per_s(), "offered_shares_per_s": rate,
            "sent_shares": totals.submits, "accepted_shares": totals.accepted, "unanswered_shares": totals.unanswered, "held_back_shares": totals.missed,
            "refused": refused, "disconnects": totals.disconnects,
            "rss_first_bytes": bytes(rss_before_kib), "rss_last_bytes": bytes(seen.rss_anon_kib.last().copied().unwrap_or(0)),
            "rss_most_bytes": bytes(most(&seen.rss_anon_kib)), "unread_us_most": seen.unread_us, "step_most": seen.step,
            "candidates": took_us.len(), "submit_us_p50": quantile(&took_us, 2), "submit_us_p999": quantile(&took_us, 1000),
            "submit_us_max": took_us.last().copied().unwrap_or(0),
        })
    );
    println!(
        "{} candidates at submitblock (of {} found): read to the node's first byte, us: p50 {} p99 {} p99.9 {} max {}; to the start of submitblock at most {handed_ms:.2} ms",
        took_us.len(),
        found.len(),
        quantile(&took_us, 2),
        quantile(&took_us, 100),
        quantile(&took_us, 1000),
        took_us.last().copied().unwrap_or(0)
    );
}

#[test]
fn overload_raises_difficulties_for_as_long_as_it_lasts() {
    let _turn = alone();
    // So short that a few connections with full buffers are overload.
    let site = Site::new(Config { difficulty: 2.4e-10, read_within_ms: 2, ..Config::default() });
    let server = site.serve();
    let (saturated, _) = watched(&server, || load(server.stratum, Amount::Seconds(2), 16, 64, Behaviour::default(), LedgerSink::None));
    let rate = 3.0 * saturated.measured().shares_per_s();
    assert!(eventually(|| metric(&server, "otedama_net_overload_step") == 0.0));
    let started = Instant::now();
    let (report, seen) = watched(&server, || open_loop(server.stratum, 16, rate, size(8, 20)));
    assert_eq!(report.totals.wrong, 0, "{:#?}", report.totals.wrong_kept);
    // The third doubling is two seconds behind the first: two walks over all connections, one to learn who is busy and one to act.
    if seen.step < 4.0 {
        // How fast a machine is decides here; the simulator walks every measure up and down at any speed.
        println!(
            "skipped: overload_raises_difficulties_for_as_long_as_it_lasts: at 3 x {:.0} shares/s this machine came to step {} alone",
            rate / 3.0,
            seen.step
        );
        return;
    }
    assert!(seen.doubled >= 1.0, "overload was met: {seen:?} in {:?}", started.elapsed());
    assert!(eventually(|| metric(&server, "otedama_net_overload_step") == 0.0), "every measure goes back");
    assert_eq!(metric(&server, "otedama_net_session_doubled"), 0.0);
    let mut miner = Miner::connect(server.stratum);
    let share = miner.mine();
    assert_eq!(miner.submit_at_once(&[share]), [0], "the door is open again");
    println!("step {}, {} sessions doubled, {} of {} accepted", seen.step, seen.doubled, report.totals.accepted, report.totals.submits);
    let drained = server.stop();
    assert_eq!(drained.received, drained.accepted + drained.rejected);
    assert_eq!(site.verify(None).0, 0);
}
