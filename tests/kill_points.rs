//! kill -9 at named places: the pool kills itself at every kill point there is on a share's way, at a pass drawn at random, under load, in tier `process` and in tier `disk`, with
//! journal files of the usual size and with small ones that turn and come back all the time; and one ledger of the miners over all boots of a round has every accepted share in
//! the log, once. A boot that does not come to its point is killed from outside, and the point has another try: each is reached as often as it is to be.
//!
//! 11 points, 20 kills each; every point 100 times with OTEDAMA_LONG=1. `OTEDAMA_KILL_POINTS=seal.meta_renamed,sync.told` takes these points alone, so that a long run can be made in
//! pieces. The points of shipping are those of `tests/clickhouse.rs`. A build without debug assertions has no kill points, and says so here.
mod support;

use loadgen::random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::kills::{self, Armed, CONNECTIONS, Kills, Miners};
use support::{alone, long};

/// Points of the short form: one of each part of a share's way, and the moments of a seal that matter most.
const SHORT: [&str; 11] = [
    "open.ready",
    "net.answered",
    "log.appended",
    "journal.commit_stored",
    "dimensions.written",
    "seal.meta_renamed",
    "seal.native_renamed",
    "cold.renamed",
    "sealer.file_recycled",
    "sync.header_written",
    "sync.synced",
];

/// Shares a second of the farm, so that a ledger over a thousand boots stays readable.
const SHARES_PER_S: f64 = 3000.0;
/// Rows of a segment: several seals a second.
const SEGMENT_ROWS: &str = "150";
/// The smallest journal file there is: three turns a second.
const SMALL_FILE_BYTES: &str = "131072";

/// Where in the life of a boot a point may strike: up to this pass. Loops turn ten thousand times a second, batches come in hundreds, segments in tens, files in threes, boots once.
fn passes_of(point: &str) -> u64 {
    match point {
        "net.step" | "validate.step" | "log.step" => 2000,
        "journal.turned" | "sealer.file_recycled" => 3,
        "sync.header_written" | "sealer.file_allocated" | "sealer.file_synced" | "sealer.file_renamed" => 2,
        "dimensions.written" | "dimensions.synced" => 4,
        _ if point.starts_with("open.") => 1,
        _ if point.starts_with("seal.") || point.starts_with("cold.") => 3,
        _ if point.starts_with("sync.") => 20,
        _ => 100,
    }
}

/// What only a boot with small files comes to within seconds: a file that has been used comes back.
fn needs_small_files(point: &str, pass: u64) -> bool {
    matches!(point, "sealer.file_recycled" | "sync.header_written") || (point == "journal.turned" && pass > 1)
}

/// The points of this run: those that OTEDAMA_KILL_POINTS names, else all of a share's way, or ten of them.
fn points() -> Vec<&'static str> {
    let of_the_share_path = otedama_killpoint::POINTS.into_iter().filter(|point| !point.starts_with("ship."));
    match std::env::var("OTEDAMA_KILL_POINTS") {
        Ok(names) => {
            let known: Vec<_> = of_the_share_path.collect();
            let find = |name: &str| {
                *known.iter().find(|&&point| point == name).unwrap_or_else(|| panic!("no kill point {name:?} on a share's way"))
            };
            names.split(',').map(str::trim).map(find).collect()
        }
        Err(_) if long() => of_the_share_path.collect(),
        Err(_) => SHORT.to_vec(),
    }
}

/// `each` kills at every point of `points`, in a random order, on one log with one ledger.
fn round(points: &[&'static str], each: u32, chance: &mut u64, tally: &mut BTreeMap<&'static str, Kills>) {
    let site = kills::site(String::new());
    let (miners, first) = Miners::start(&site, |farm| farm.shares_per_s_per_connection = SHARES_PER_S / CONNECTIONS as f64);
    first.kill();
    let arm = |point: &'static str, chance: &mut u64| {
        let pass = 1 + random::next(chance) % passes_of(point);
        let tier = if point.starts_with("sync.") || random::next(chance).is_multiple_of(3) { "disk" } else { "process" };
        // Segments of the boots before are cold in every boot, and so many that there is always one to compress.
        let mut variables =
            vec![("OTEDAMA_LOG__ACK", tier), ("OTEDAMA_LOG__SEGMENT_ROWS", SEGMENT_ROWS), ("OTEDAMA_LOG__COMPRESS_AFTER", "1s")];
        if needs_small_files(point, pass) || random::next(chance).is_multiple_of(2) {
            variables.push(("OTEDAMA_KILL_JOURNAL_FILE_BYTES", SMALL_FILE_BYTES));
        }
        let variables = variables.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        Armed { pass, variables, patience: Duration::from_millis(4000 + random::next(chance) % 1000) }
    };
    kills::at_points(&site, points, each, chance, tally, arm, |_| {});
    let (totals, _) = miners.end(&site, site.serve());
    println!(
        "a round of {} kills at points: {} accepted, {} unanswered; lost 0, doubled 0",
        points.len() as u32 * each,
        totals.accepted,
        totals.unanswered
    );
}

#[test]
#[ignore = "minutes of kills: cargo xtask test --lane faults"]
fn no_accepted_share_is_lost_or_doubled_by_a_kill_at_any_named_point() {
    if !otedama_killpoint::are_built_in() {
        println!("skipped: this build has no kill points; nothing was killed (they need debug assertions)");
        return;
    }
    let _turn = alone();
    let mut chance = kills::seed();
    let mut tally = BTreeMap::new();
    let started = Instant::now();
    // Ten rounds of ten: each with a log and a ledger of its own, which stay small enough to be read.
    let (rounds, each) = if long() { (10, 10) } else { (1, 20) };
    let points = points();
    for _ in 0..rounds {
        round(&points, each, &mut chance, &mut tally);
    }
    for (point, kills) in &tally {
        println!("{point:<24} {:>4} at the point {:>4} from outside", kills.at_the_point, kills.from_outside);
    }
    let outside: u32 = tally.values().map(|kills| kills.from_outside).sum();
    println!(
        "{} points, {} kills each, {outside} kills from outside beside them; {:.0} s",
        points.len(),
        rounds * each,
        started.elapsed().as_secs_f64()
    );
    for point in points {
        assert_eq!(tally[point].at_the_point, rounds * each, "{point}");
    }
}
