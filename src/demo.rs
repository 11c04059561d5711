//! `otedama demo`: a pool on the practice chain, a farm with real proof of work, a share log in a temporary folder, a stats page; at the end every share is accounted for.
use crate::config::Config;
use crate::stats::StatsSource;
use crate::wiring::{Pool, Wire, chain_of};
use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use otedama_primitives::ShareStatus;
use otedama_sharelog::verify::verify;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Simulated miners.
const MINERS: usize = 64;
/// Shares a second of each: together 6,400, a light load for one core.
const SHARES_PER_S_PER_MINER: f64 = 100.0;
/// About 430 hashes a share: real work that a CPU does in a moment.
const DIFFICULTY: f64 = 1e-7;
/// One share in so many is wrong on purpose, and one repeats another: the refusals in the table are meant.
const BAD_EVERY: u64 = 50;
const DUP_EVERY: u64 = 50;

/// Options of the command.
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Stop after so many seconds; without it, Ctrl-C stops.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// The result as JSON on the last line.
    #[arg(long)]
    pub json: bool,
}

/// Runs it; the exit code is 1 when a share is missing or doubled.
pub fn run(args: &DemoArgs, started: Instant, stop: &Arc<AtomicBool>) -> Result<u8, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let log_dir = folder.path().join("log");
    let ledger = folder.path().join("ledger.txt");
    let mut config = Config::defaults();
    config.pool.name = "demo".to_owned();
    config.stratum.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.stratum.difficulty = DIFFICULTY;
    // The farm sends at a rate of its own, whatever the difficulty.
    config.vardiff.enabled = false;
    config.stats.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.chain.rpc = vec!["practice".to_owned()];
    config.log.dir.clone_from(&log_dir);
    let pool = Pool::start(&config, started, Wire::default())?;
    let listening_ms = started.elapsed().as_secs_f64() * 1000.0;
    let stratum = *pool.stratum().first().ok_or("the pool listens nowhere")?;
    println!("stats page  http://{}/", pool.stats_address());
    println!("stratum     stratum+tcp://{stratum}   (any user, any password; PRACTICE chain, difficulty {DIFFICULTY})");
    println!("share log   {}\n", log_dir.display());

    let mut farm = FarmConfig::new(stratum);
    farm.connections = MINERS;
    farm.shares_per_s_per_connection = SHARES_PER_S_PER_MINER;
    farm.ledger = LedgerSink::File(ledger.clone());
    farm.behaviour.bad_every = BAD_EVERY;
    farm.behaviour.dup_every = DUP_EVERY;
    farm.behaviour.worker_prefix = "demo".to_owned();
    let farm_started = started.elapsed();
    let stop_farm = Arc::new(AtomicBool::new(false));
    let farm = Farm::start(farm, stop_farm.clone())?;
    let end = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    watch(&pool, &farm, end, stop);
    stop_farm.store(true, Ordering::Relaxed);
    let summary = farm.join()?;
    let drained = pool.stop();
    let reconciled = Reconciliation::of(&log_dir, &ledger, summary.totals.answered())?;

    let totals = &summary.totals;
    let rejected: Map<String, Value> =
        ShareStatus::ALL.iter().skip(1).map(|status| (status.label().to_owned(), totals.by_status[*status as usize].into())).collect();
    let first_share_ms = summary.first_accepted.map(|first| (farm_started + first).as_secs_f64() * 1000.0);
    let round = |value: f64| (value * 10.0).round() / 10.0;
    println!(
        "\nsent {} = accepted {} + rejected {} (+ unanswered {})",
        totals.submits,
        totals.accepted,
        totals.rejected_count(),
        totals.unanswered
    );
    println!("rows in the share log {}: missing {}, doubled {}", reconciled.rows, reconciled.missing, reconciled.doubled);
    for problem in &reconciled.problems {
        println!("problem: {problem}");
    }
    let verdict_ok =
        totals.wrong == 0 && totals.unanswered == 0 && reconciled.rows == totals.submits && drained.clean && reconciled.is_clean();
    println!("{}", if verdict_ok { "every share is accounted for, once" } else { "NOT every share is accounted for" });
    if args.json {
        let report = json!({
            "sent": totals.submits, "accepted": totals.accepted, "rejected": rejected, "rows": reconciled.rows,
            "missing": reconciled.missing, "doubled": reconciled.doubled,
            "shares_per_s": round(totals.answered() as f64 / summary.seconds.max(1e-9)),
            "listening_ms": round(listening_ms), "first_share_ms": first_share_ms.map(round),
            "latency_us": drained.snapshot.latency_us, "driver": drained.snapshot.driver, "kernel": drained.snapshot.kernel,
        });
        println!("{report}");
    }
    Ok(u8::from(!verdict_ok))
}

/// The live table, a line a second.
fn watch(pool: &Pool, farm: &Farm, end: Option<Instant>, stop: &AtomicBool) {
    println!(
        "{:>6} {:>10} {:>10} {:>9} {:>10} {:>8} {:>8} {:>8}",
        "s", "shares", "accepted", "refused", "shares/s", "p50 us", "p99 us", "miners"
    );
    let begin = Instant::now();
    let mut next = begin + Duration::from_secs(1);
    let mut before = 0;
    while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) && !farm.is_finished() && pool.is_alive() {
        std::thread::sleep(Duration::from_millis(20));
        if Instant::now() < next {
            continue;
        }
        next += Duration::from_secs(1);
        let now = pool.stats().snapshot();
        let answered = now.shares.accepted + now.shares.rejected.total();
        println!(
            "{:>6} {:>10} {:>10} {:>9} {:>10} {:>8} {:>8} {:>8}",
            begin.elapsed().as_secs(),
            now.shares.received,
            now.shares.accepted,
            now.shares.rejected.total(),
            answered - before,
            now.latency_us.p50,
            now.latency_us.p99,
            now.connections.open
        );
        before = answered;
    }
}

/// The log held against the farm's ledger.
struct Reconciliation {
    rows: u64,
    missing: u64,
    doubled: u64,
    problems: Vec<String>,
}

impl Reconciliation {
    fn of(log_dir: &Path, ledger: &Path, answered: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let report = verify(log_dir, Some(ledger)).map_err(|error| chain_of(&error))?;
        let told = |word: &str| report.problems.iter().filter(|problem| problem.starts_with(word)).count() as u64;
        Ok(Self {
            rows: report.rows,
            missing: told("missing").max(answered.saturating_sub(report.rows)),
            doubled: told("doubled"),
            problems: report.problems,
        })
    }

    fn is_clean(&self) -> bool {
        self.missing == 0 && self.doubled == 0 && self.problems.is_empty()
    }
}
