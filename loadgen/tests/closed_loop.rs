//! The farm against a pool that is slow and obvious: what one says the other must say, and a pool that lies must be found out.
mod minipool;

use loadgen::dialect::Style;
use loadgen::engine::EngineConfig;
use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::{HEADER, LedgerSink};
use loadgen::null::Null;
use loadgen::report::RunReport;
use loadgen::run::{RunConfig, run};
use loadgen::session::{Behaviour, Session, Shared};
use minipool::{Lie, MiniPool, Orders, Row};
use otedama_primitives::ShareStatus;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn behaviour() -> Behaviour {
    Behaviour { workers_per_connection: 2, bad_every: 5, dup_every: 5, style: Style::Mixed, ..Behaviour::default() }
}

fn order(pool: &MiniPool, behaviour: Behaviour, connections: usize, shares: u64) -> RunConfig {
    RunConfig {
        engine: EngineConfig { connections, behaviour, ledger: LedgerSink::Memory, ..EngineConfig::new(pool.address) },
        window: Duration::from_secs(60),
        warmup: Duration::ZERO,
        shares: Some(shares),
        set_up_limit: Duration::from_secs(20),
        ..RunConfig::new(EngineConfig::new(pool.address))
    }
}

fn go(config: RunConfig) -> RunReport {
    run(config, &AtomicBool::new(false)).expect("run")
}

fn ledger_rows(report: &RunReport) -> Vec<Row> {
    let text = String::from_utf8(report.ledger.clone().expect("ledger")).expect("text");
    let lines = text.strip_prefix(HEADER).expect("header").lines();
    lines.map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().expect("8 fields")).collect()
}

fn multiset(rows: impl IntoIterator<Item = Row>) -> BTreeMap<Row, u64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row).or_insert(0) += 1;
    }
    counts
}

/// A malformed line has fields that the two sides may read differently; what counts is that it is there.
fn comparable(mut row: Row) -> Row {
    if row[7] == "malformed" {
        row[1..7].iter_mut().for_each(String::clear);
    }
    row
}

fn assert_reconciled(pool: &MiniPool, report: &RunReport) {
    assert_eq!(report.totals.wrong, 0, "{}", report.table());
    assert_eq!(report.totals.unanswered, 0, "{}", report.table());
    assert_eq!(report.totals.submits, report.totals.accepted + report.totals.rejected_count());
    for status in ShareStatus::ALL {
        assert_eq!(report.totals.by_status[status as usize], pool.count(status.label()), "{}", status.label());
    }
    let (ours, theirs) = (multiset(ledger_rows(report).into_iter().map(comparable)), multiset(pool.rows().into_iter().map(comparable)));
    let difference: Vec<_> = ours.iter().filter(|(row, count)| theirs.get(*row) != Some(*count)).take(5).collect();
    assert!(ours == theirs, "ledger and rows differ, first: {difference:?}");
}

#[test]
fn every_reason_is_sent_and_answered_as_the_rules_say_across_jobs_and_retargets() {
    let pool = MiniPool::start(Orders { bits: 2, new_job_every: Some(Duration::from_millis(40)), ..Orders::default() });
    let report = go(order(&pool, behaviour(), 10, 12_000));
    assert_reconciled(&pool, &report);
    assert_eq!(report.totals.submits, 12_000);
    for status in ShareStatus::ALL.into_iter().filter(|&status| status != ShareStatus::Overload) {
        assert!(report.totals.by_status[status as usize] > 10, "{} never came: {}", status.label(), report.table());
    }
}

#[test]
fn stale_answers_before_a_late_clean_job_are_explained_by_it() {
    let orders =
        Orders { bits: 1, new_job_every: Some(Duration::from_millis(30)), slow_broadcast: Duration::from_millis(30), ..Orders::default() };
    let pool = MiniPool::start(orders);
    let report = go(order(&pool, behaviour(), 4, 8_000));
    assert_reconciled(&pool, &report);
    assert!(report.totals.crossed > 10, "{}", report.table());
}

#[test]
fn at_work_one_nothing_is_low_and_at_depth_one_repeats_come_later() {
    let pool = MiniPool::start(Orders::default());
    let report = go(order(&pool, Behaviour { depth: 1, ..behaviour() }, 5, 2_000));
    assert_reconciled(&pool, &report);
    assert_eq!(report.totals.by_status[ShareStatus::LowDifficulty as usize], 0);
    assert!(report.totals.by_status[ShareStatus::Duplicate as usize] > 100, "{}", report.table());
}

#[test]
fn hard_shares_are_looked_for_across_time_slices_and_jobs() {
    let pool = MiniPool::start(Orders { bits: 12, new_job_every: Some(Duration::from_millis(50)), ..Orders::default() });
    let report = go(order(&pool, Behaviour { depth: 4, ..behaviour() }, 3, 300));
    assert_reconciled(&pool, &report);
    assert!(report.totals.accepted > 100, "{}", report.table());
}

#[test]
fn few_extranonces_make_no_equal_headers() {
    let pool = MiniPool::start(Orders { bits: 1, ..Orders::default() });
    let only_good = Behaviour { en2_units: 3, bad_every: 0, dup_every: 0, ..behaviour() };
    let report = go(order(&pool, only_good, 2, 3_000));
    assert_reconciled(&pool, &report);
    assert_eq!(report.totals.accepted, 3_000);
    let extranonces: std::collections::BTreeSet<String> = pool.rows().into_iter().map(|row| row[3].clone()).collect();
    assert_eq!(extranonces.len(), 3);
}

#[test]
fn a_pool_that_lies_is_found_out() {
    for lie in
        [Lie::AcceptsABadOne, Lie::RefusesAGoodOne, Lie::EndsALiveJob, Lie::SwapsTwoAnswers, Lie::NamesAnotherCause, Lie::CreditsARepeat]
    {
        let pool = MiniPool::start(Orders { lie, bits: 3, ..Orders::default() });
        let report = go(order(&pool, Behaviour { style: Style::EspMiner, ..behaviour() }, 2, 2_000));
        // A share that is refused by a lie is expected to be refused again with its repeats right behind it: one lie may come to several wrong answers.
        assert!((1..=63).contains(&report.totals.wrong), "{lie:?}: {}", report.table());
        assert_eq!(report.totals.unanswered, 0, "{lie:?}: {}", report.table());
        assert_eq!(report.totals.wrong_kept.len() as u64, report.totals.wrong.min(20));
        assert!(report.is_finding());
    }
}

#[test]
fn a_dropped_answer_is_wrong_once_and_unanswered_once_and_stops_nothing() {
    let pool = MiniPool::start(Orders { lie: Lie::DropsAnAnswer, bits: 1, ..Orders::default() });
    let report = go(order(&pool, Behaviour { style: Style::EspMiner, ..behaviour() }, 2, 1_000));
    assert_eq!((report.totals.wrong, report.totals.unanswered, report.totals.submits), (1, 1, 1_000), "{}", report.table());
    assert_eq!(ledger_rows(&report).iter().filter(|row| row[7] == "unanswered").count(), 1);
}

#[test]
fn a_farm_that_reconnects_books_what_was_cut_off_and_goes_on() {
    let pool = MiniPool::start(Orders { cut_every: Some(97), bits: 1, ..Orders::default() });
    let mut config = order(&pool, behaviour(), 4, 3_000);
    config.engine.reconnect = true;
    let report = go(config);
    assert_eq!(report.totals.wrong, 0, "{}", report.table());
    assert!(report.totals.unanswered >= 20, "{}", report.table());
    assert_eq!(report.totals.submits, report.totals.accepted + report.totals.rejected_count() + report.totals.unanswered);
    assert!(!report.is_finding());
    // One that breaks while another is down prolongs the outage, which may last to the end of the run.
    assert!(report.outages_s.len() <= report.totals.disconnects as usize, "{}", report.table());
    let rows = ledger_rows(&report);
    assert_eq!(rows.len() as u64, report.totals.submits);
    assert_eq!(rows.iter().filter(|row| row[7] == "unanswered").count() as u64, report.totals.unanswered);
    // Whatever was answered stands in the pool's rows just so; whatever has a row there was sent.
    let theirs = multiset(pool.rows().into_iter().map(comparable));
    for (row, count) in multiset(rows.iter().filter(|row| row[7] != "unanswered").cloned().map(comparable)) {
        assert!(theirs.get(&row).is_some_and(|&have| have >= count), "{row:?}");
    }
    let sent = multiset(rows.into_iter().map(|mut row| {
        row[7].clear();
        row
    }));
    for row in pool.rows().into_iter().filter(|row| row[7] == "accepted") {
        let mut key = row;
        key[7].clear();
        assert!(sent.contains_key(&key), "{key:?}");
    }
}

#[test]
fn each_outage_of_a_lone_connection_is_measured() {
    let pool = MiniPool::start(Orders { cut_every: Some(97), bits: 1, ..Orders::default() });
    let mut config = order(&pool, behaviour(), 1, 3_000);
    config.engine.reconnect = true;
    let report = go(config);
    let breaks = report.totals.disconnects as usize;
    assert!(breaks >= 20, "{}", report.table());
    // The last one may come with the last share.
    assert!((breaks - 1..=breaks).contains(&report.outages_s.len()), "{}", report.table());
    // None is shorter than the wait before the next attempt.
    assert!(report.outages_s.iter().all(|&outage_s| outage_s >= 0.02), "{:?}", report.outages_s);
}

#[test]
fn without_reconnect_a_broken_connection_ends_the_run_with_an_error() {
    let pool = MiniPool::start(Orders { cut_every: Some(10), ..Orders::default() });
    let error = run(order(&pool, behaviour(), 1, 1_000), &AtomicBool::new(false)).expect_err("broken");
    assert!(error.to_string().contains("closed the connection"), "{error}");
}

const SERVER_LINES: &[&str] = &[
    r#"{"id":1,"result":{"version-rolling":true,"version-rolling.mask":"1fffe000"},"error":null}"#,
    r#"{"id":2,"result":null,"error":[25,"not subscribed",null]}"#,
    r#"{"id":3,"result":[[["mining.notify","1"]],"0badcafe",8],"error":null}"#,
    r#"{"id":4,"result":true,"error":null}"#,
    r#"{"id":null,"method":"mining.set_difficulty","params":[1e-9]}"#,
    r#"{"id":null,"method":"mining.notify","params":["0000000a","0707070707070707070707070707070707070707070707070707070707070707","0102","0304",[],"20000000","1b00ffff","6b00dbcb",true]}"#,
];

/// What a miner says to these lines when every good share is accepted, window after window.
fn conversation(seed: u64) -> Vec<u8> {
    let behaviour = Behaviour { seed, bad_every: 7, ..Behaviour::default() };
    let mut shared = Shared::new(behaviour.clone(), 1, None);
    let mut session = Session::new(0, &behaviour);
    let mut said = Vec::new();
    session.hello(&shared, &mut said);
    for line in SERVER_LINES {
        let line = format!("{line}\n");
        assert_eq!(session.on_bytes(&mut shared, line.as_bytes(), 0).expect("line"), line.len());
    }
    assert!(session.is_ready());
    let mut id = 5;
    for _ in 0..20 {
        let count = session.fill(&mut shared, usize::MAX, &mut said, Instant::now());
        assert_eq!(count, 8);
        for _ in 0..count {
            let line = format!("{{\"id\":{id},\"result\":true,\"error\":null}}\n");
            session.on_bytes(&mut shared, line.as_bytes(), 0).expect("answer");
            id += 1;
        }
    }
    assert_eq!(shared.totals.submits, 160);
    assert_eq!(shared.totals.wrong, 160 / 7, "bad shares were accepted here: each is a wrong answer");
    said
}

#[test]
fn the_same_seed_and_the_same_lines_give_the_same_bytes() {
    assert_eq!(conversation(7), conversation(7));
    assert_ne!(conversation(7), conversation(8));
}

#[test]
fn hostile_lines_are_errors_and_never_a_panic() {
    let behaviour = Behaviour::default();
    for (index, line) in SERVER_LINES.iter().enumerate() {
        for length in 0..line.len() {
            let mut shared = Shared::new(behaviour.clone(), 1, None);
            let mut session = Session::new(0, &behaviour);
            session.hello(&shared, &mut Vec::new());
            for line in &SERVER_LINES[..index] {
                let _ = session.on_bytes(&mut shared, format!("{line}\n").as_bytes(), 0);
            }
            let _ = session.on_bytes(&mut shared, format!("{}\n", &line[..length]).as_bytes(), 0);
            let _ = session.on_bytes(&mut shared, line.replace("\":", "\":-1,\"x\":").as_bytes(), 0);
        }
    }
}

#[test]
fn a_paced_farm_reports_while_it_runs_and_sums_up_when_it_is_stopped() {
    let pool = MiniPool::start(Orders { bits: 1, new_job_every: Some(Duration::from_millis(100)), ..Orders::default() });
    let stop = Arc::new(AtomicBool::new(false));
    let config = FarmConfig {
        connections: 5,
        behaviour: behaviour(),
        shares_per_s_per_connection: 100.0,
        ledger: LedgerSink::Memory,
        ..FarmConfig::new(pool.address)
    };
    let farm = Farm::start(config, Arc::clone(&stop)).expect("start");
    let live = Arc::clone(farm.live());
    let started = Instant::now();
    while live.accepted.load(Ordering::Relaxed) < 100 {
        assert!(started.elapsed() < Duration::from_secs(30) && !farm.is_finished(), "no shares");
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Relaxed);
    let summary = farm.join().expect("summary");
    assert_eq!((summary.totals.wrong, summary.totals.unanswered), (0, 0));
    assert_eq!(summary.totals.submits, pool.rows().len() as u64);
    assert_eq!(summary.totals.accepted, pool.count("accepted"));
    assert_eq!(live.accepted.load(Ordering::Relaxed), summary.totals.accepted);
    assert!(summary.first_accepted.is_some());
    // The pace is a limit: five connections, 100 a second each, and a window on top for the start.
    assert!((summary.totals.submits as f64) <= 5.0 * (100.0 * summary.seconds + 8.0));
    let lines = summary.ledger.expect("ledger").iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(lines as u64, summary.totals.submits + 1);
}

#[test]
fn two_targets_take_turns_and_give_one_ratio() {
    let stop = Arc::new(AtomicBool::new(false));
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let mut null = Null::bind("127.0.0.1:0".parse().expect("address"), 2.4e-10).expect("bind");
        addresses.push(null.address());
        let stop = Arc::clone(&stop);
        servers.push(std::thread::spawn(move || null.serve(&stop)));
    }
    let config = RunConfig {
        window: Duration::from_secs(1),
        repeat: 2,
        warmup: Duration::from_millis(50),
        against: Some((addresses[1], None)),
        set_up_limit: Duration::from_secs(20),
        ..RunConfig::new(EngineConfig { connections: 2, ..EngineConfig::new(addresses[0]) })
    };
    let report = go(config);
    stop.store(true, Ordering::Relaxed);
    for server in servers {
        server.join().expect("thread").expect("serve");
    }
    let pairing = report.pairing.as_ref().expect("pairing");
    let estimate = pairing.estimate;
    assert_eq!((estimate.pairs, pairing.per, pairing.rounds.len()), (2, "wall", 2));
    assert!(estimate.ratio > 0.0 && estimate.low < estimate.ratio && estimate.ratio < estimate.high);
    assert!(pairing.against.answered > 0 && report.measured().answered > 0);
    assert_eq!((report.totals.wrong, report.totals.unanswered), (0, 0));
    let line = report.pairing_json().expect("line");
    assert_eq!(line["rounds"].as_array().map(Vec::len), Some(2));
    assert!(!report.histogram.is_empty() && !pairing.histogram.is_empty());
}
