//! kill -9 at named places: the pool kills itself at every kill point there is, at a pass drawn at random, under load, in tier `process` and in tier `disk`; and one ledger of the
//! miners over all boots of a round has every accepted share in the log, once.
//!
//! 11 points, 20 kills each; every point 100 times with OTEDAMA_LONG=1. A build without debug assertions has no kill points, and says so here.
mod support;

use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use loadgen::random;
use otedama_primitives::ShareStatus;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Config, Site, alone, eventually, ledger_counts, long, port_out_of_the_way};

/// Points of the short form: one of each part of a share's way, and the moments of a seal that matter most.
const SHORT: [&str; 11] = [
    "open.ready",
    "net.answered",
    "log.taken",
    "log.appended",
    "journal.commit_stored",
    "dimensions.written",
    "seal.native_written",
    "seal.meta_renamed",
    "seal.native_renamed",
    "cold.renamed",
    "sync.synced",
];

/// Shares a second of the farm, so that a ledger over a thousand boots stays readable.
const SHARES_PER_S: f64 = 3000.0;
const CONNECTIONS: usize = 32;
/// Rows of a segment: several seals a second.
const SEGMENT_ROWS: &str = "150";

/// Where in the life of a boot a point may strike: up to this pass. Loops turn ten thousand times a second, batches come in hundreds, segments in tens, boots once.
fn passes_of(point: &str) -> u64 {
    match point {
        "net.step" | "validate.step" | "log.step" => 2000,
        "journal.turned" | "sealer.file_recycled" | "sync.header_written" => 1,
        "sealer.file_allocated" | "sealer.file_synced" | "sealer.file_renamed" => 2,
        "dimensions.written" | "dimensions.synced" => 4,
        _ if point.starts_with("open.") => 1,
        _ if point.starts_with("seal.") || point.starts_with("cold.") => 3,
        _ if point.starts_with("sync.") => 20,
        _ => 100,
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Kills {
    at_the_point: u32,
    from_outside: u32,
}

/// `each` kills at every point of `points`, in a random order, on one log with one ledger.
fn round(points: &[&'static str], each: u32, chance: &mut u64, tally: &mut BTreeMap<&'static str, Kills>) {
    let listen = SocketAddr::from(([127, 0, 0, 1], port_out_of_the_way()));
    let site = Site::new(Config { listen, refresh_s: 1, block_s: 3, ..Config::default() });
    let mut farm = FarmConfig::new(listen);
    farm.connections = CONNECTIONS;
    farm.shares_per_s_per_connection = SHARES_PER_S / CONNECTIONS as f64;
    farm.ledger = LedgerSink::File(site.ledger());
    farm.behaviour.bad_every = 10;
    farm.behaviour.dup_every = 10;
    let first = site.serve();
    let stop = Arc::new(AtomicBool::new(false));
    let farm = Farm::start(farm, stop.clone()).expect("farm");
    let accepted = || farm.live().accepted.load(Ordering::Relaxed);
    assert!(eventually(|| accepted() > 0), "the first server serves");
    first.kill();

    let mut left: Vec<&'static str> = points.iter().flat_map(|&point| std::iter::repeat_n(point, each as usize)).collect();
    while !left.is_empty() {
        let point = left.swap_remove((random::next(chance) % left.len() as u64) as usize);
        let at = 1 + random::next(chance) % passes_of(point);
        let tier = if point.starts_with("sync.") || random::next(chance).is_multiple_of(3) { "disk" } else { "process" };
        let armed = format!("{point}@{at}");
        // Segments of the boots before are cold in every boot, and so many that there is always one to compress.
        let variables = [
            ("OTEDAMA_KILL_AT", armed.as_str()),
            ("OTEDAMA_LOG__ACK", tier),
            ("OTEDAMA_LOG__SEGMENT_ROWS", SEGMENT_ROWS),
            ("OTEDAMA_LOG__COMPRESS_AFTER", "1s"),
        ];
        let booting = site.spawn_with(&variables);
        let patience = Duration::from_millis(2500 + random::next(chance) % 500);
        let kills = tally.entry(point).or_default();
        if booting.killed_itself_within(patience) {
            kills.at_the_point += 1;
        } else {
            kills.from_outside += 1;
        }
    }
    let last = site.serve();
    let before = accepted();
    assert!(eventually(|| accepted() > before + 100), "the last server serves");
    stop.store(true, Ordering::Relaxed);
    let summary = farm.join().expect("farm");
    last.stop();
    site.assert_no_panic();

    let totals = &summary.totals;
    assert_eq!(totals.wrong, 0, "{:#?}", totals.wrong_kept);
    let (ledger, unanswered) = ledger_counts(&site.ledger());
    assert_eq!((ledger, unanswered), (totals.by_status, totals.unanswered), "the ledger has what the farm counted");
    let logged = site.verified_clean();
    for status in ShareStatus::ALL {
        let (told, written) = (ledger[status as usize], logged[status as usize]);
        assert!(told <= written && written <= told + unanswered, "{}: {told} answered, {written} logged", status.label());
    }
    println!("a round of {} kills: {} accepted, {unanswered} unanswered; lost 0, doubled 0", points.len() as u32 * each, totals.accepted);
}

#[test]
#[ignore = "minutes of kills: cargo xtask test --lane faults"]
fn no_accepted_share_is_lost_or_doubled_by_a_kill_at_any_named_point() {
    if !otedama_killpoint::are_built_in() {
        println!("skipped: this build has no kill points; nothing was killed (they need debug assertions)");
        return;
    }
    let _turn = alone();
    let mut chance = std::env::var("OTEDAMA_KILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(std::process::id()));
    println!("kill seed {chance}");
    let mut tally = BTreeMap::new();
    let started = Instant::now();
    if long() {
        // Ten rounds of ten: each with a log and a ledger of its own, which stay small enough to be read.
        for _ in 0..10 {
            round(&otedama_killpoint::POINTS, 10, &mut chance, &mut tally);
        }
    } else {
        round(&SHORT, 20, &mut chance, &mut tally);
    }
    for (point, kills) in &tally {
        println!("{point:<24} {:>4} at the point {:>4} from outside", kills.at_the_point, kills.from_outside);
    }
    println!("{:.0} s", started.elapsed().as_secs_f64());
    for (point, kills) in &tally {
        assert!(kills.at_the_point > 0, "{point} was never reached");
    }
    let at_points: u32 = tally.values().map(|kills| kills.at_the_point).sum();
    let all: u32 = tally.values().map(|kills| kills.at_the_point + kills.from_outside).sum();
    assert!(at_points * 10 >= all * 8, "{at_points} of {all} kills met their point: {tally:?}");
}
