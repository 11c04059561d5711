//! kill -9 at any moment under load: one ledger of the miners over all boots, and afterwards every accepted entry of it stands in the log, once.
mod support;

use loadgen::engine::EngineConfig;
use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use loadgen::random;
use loadgen::run::RunConfig;
use loadgen::session::Behaviour;
use otedama_primitives::{Dimension, RunId, ShareRow, ShareStatus};
use otedama_sharelog::scan::{Filter, rows};
use otedama_sharelog::{DIMENSIONS_START, DimensionEntry, DimensionReader, LogSettings, LoggedRow, ShareLog};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::kills::{self, Miners};
use support::{Config, PATIENCE, Server, Site, alone, eventually, ledger_counts, port_out_of_the_way, size, verify};

/// Every value of a sorted list that has less than one in a hundred above it.
fn p99(sorted: &[f64]) -> f64 {
    sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
}

#[test]
fn no_accepted_share_is_lost_or_doubled_by_any_kill() {
    let _turn = alone();
    let kills: u32 = size(12, 200);
    let site = kills::site(String::new());
    let (miners, first) = Miners::start(&site, |_| {});
    let mut server = Some(first);
    let mut chance = kills::seed();
    let (mut listening_ms, mut serving_ms) = (vec![], vec![]);
    for kill in 0..kills {
        let wait_us = random::next(&mut chance) % 300_000;
        let in_boot = random::next(&mut chance).is_multiple_of(4);
        let up = server.take().expect("one server at a time");
        if in_boot {
            up.kill();
            // The next one does not live to say that it listens, or only just.
            let booting = site.spawn();
            std::thread::sleep(Duration::from_micros(wait_us / 8));
            booting.kill();
        } else {
            let since = Instant::now();
            miners.until_accepted(0, &format!("kill {kill}"));
            serving_ms.push(since.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_micros(wait_us));
            up.kill();
        }
        let next = site.serve();
        assert_eq!(next.stratum, site.config.listen);
        listening_ms.push(next.up.as_secs_f64() * 1e3);
        server = Some(next);
    }
    let (totals, _) = miners.end(&site, server.take().expect("one server at a time"));
    assert!(totals.disconnects > 0, "kills cut connections");
    listening_ms.sort_by(f64::total_cmp);
    println!(
        "{kills} kills, {} submits, {} accepted, {} unanswered, {} disconnects; listening again after {:.1} ms at most, p99 {:.1}, median {:.1}; first share after {:.0} ms at most",
        totals.submits,
        totals.accepted,
        totals.unanswered,
        totals.disconnects,
        listening_ms.last().copied().unwrap_or(0.0),
        p99(&listening_ms),
        listening_ms.get(listening_ms.len() / 2).copied().unwrap_or(0.0),
        serving_ms.iter().copied().fold(0.0, f64::max),
    );

    the_check_goes_red(&site);
}

/// Keeps a server from answering, so that shares are open at its death.
fn freeze(server: &Server) {
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::STOP).expect("SIGSTOP");
}

#[test]
fn shares_open_at_a_kill_stand_in_the_ledger_as_unanswered() {
    let _turn = alone();
    let site = Site::new(Config::default());
    let server = site.serve();
    let connections = 32;
    let farm = FarmConfig { connections, reconnect: false, ledger: LedgerSink::File(site.ledger()), ..FarmConfig::new(server.stratum) };
    let farm = Farm::start(farm, Arc::default()).expect("farm");
    let live = farm.live().clone();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert!(eventually(|| read(&live.accepted) > 1_000), "the farm mines");
    freeze(&server);
    let mut before = 0;
    assert!(
        eventually(|| {
            std::thread::sleep(Duration::from_millis(200));
            read(&live.sent) == std::mem::replace(&mut before, read(&live.sent))
        }),
        "a closed loop waits for answers"
    );
    let (sent, accepted) = (read(&live.sent), read(&live.accepted));
    assert!(sent - accepted >= connections as u64, "every connection has shares in flight: {sent} sent, {accepted} accepted");
    server.kill();
    let error = farm.join().expect_err("nobody is there any more");
    assert!(error.to_string().contains("every connection"), "{error}");
    let (by_status, unanswered) = ledger_counts(&site.ledger());
    assert_eq!((by_status[0], by_status.iter().sum::<u64>(), unanswered), (accepted, accepted, sent - accepted));
    assert_eq!(read(&live.unanswered), unanswered);

    // The next boot seals what the killed one had logged; nothing that was accepted is missing there.
    site.serve().stop();
    let logged = site.verified_clean();
    assert!(logged[0] >= accepted && logged.iter().sum::<u64>() <= sent, "{logged:?} of {sent}");
    every_job_has_its_end(&site.log());
    site.assert_no_panic();
}

/// Jobs of a server that was killed and of one that stopped: none says that it is live, and none ended before its last accepted row.
fn every_job_has_its_end(log: &Path) {
    let (mut jobs, mut runs) = (HashMap::new(), HashSet::new());
    for entry in DimensionReader::from(log, DIMENSIONS_START).expect("records") {
        match entry.expect("sound").1 {
            DimensionEntry::Job(record) => {
                runs.insert(record.job.run().prefix());
                jobs.insert(record.job.0, None);
            }
            DimensionEntry::JobEnd { job, us } => assert_eq!(jobs.insert(job.0, Some(us)), Some(None), "job {job} was live and ends once"),
            _ => {}
        }
    }
    assert!(runs.len() >= 2, "both servers had jobs");
    assert_eq!(jobs.values().filter(|ended| ended.is_none()).count(), 0, "{jobs:?}");
    for row in rows(log, Filter::default()).expect("scan").map(|row| row.expect("sound")) {
        if row.status == ShareStatus::Accepted as u8 {
            assert!(jobs[&row.job].is_some_and(|us| us >= row.arrival_us), "job {:016x} ended before a row of it", row.job);
        }
    }
}

#[test]
fn an_open_loop_books_what_a_kill_left_open_and_says_when_every_worker_is_back() {
    let _turn = alone();
    let listen = SocketAddr::from(([127, 0, 0, 1], port_out_of_the_way()));
    let site = Site::new(Config { listen, ..Config::default() });
    let first = site.serve();
    let behaviour = Behaviour { open_loop: true, workers_per_connection: 50, ..Behaviour::default() };
    let engine = EngineConfig {
        connections: 20,
        behaviour,
        reconnect: true,
        ledger: LedgerSink::File(site.ledger()),
        rate_shares_per_s: 2_000.0,
        ..EngineConfig::new(listen)
    };
    let config = RunConfig { window: PATIENCE, warmup: Duration::ZERO, set_up_limit: PATIENCE, ..RunConfig::new(engine) };
    let stop = AtomicBool::new(false);
    let (report, server) = std::thread::scope(|scope| {
        let running = scope.spawn(|| loadgen::run::run(config, &stop).expect("the load generator"));
        let mut server = first;
        for _ in 0..2 {
            let accepted = |server: &Server| server.stats()["shares"]["accepted"].as_u64() > Some(500);
            assert!(eventually(|| accepted(&server)), "shares are accepted");
            freeze(&server);
            // Its miners go on by their clock.
            std::thread::sleep(Duration::from_millis(500));
            server.kill();
            server = site.serve();
            assert!(eventually(|| accepted(&server)), "shares are accepted again");
        }
        stop.store(true, Ordering::Relaxed);
        (running.join().expect("the load generator"), server)
    });
    let totals = &report.totals;
    assert_eq!((totals.wrong, totals.disconnects, report.outages_s.len()), (0, 40, 2), "{}", report.table());
    assert!(totals.unanswered > 0 && totals.missed > 0, "{}", report.table());
    assert_eq!(totals.submits, totals.answered() + totals.unanswered);
    assert_eq!(ledger_counts(&site.ledger()), (totals.by_status, totals.unanswered));
    server.stop();
    site.verified_clean();
    site.assert_no_panic();
}

fn problems_of(log: &Path, ledger: &Path) -> Vec<String> {
    let (code, report) = verify(log, Some(ledger));
    let problems: Vec<String> = serde_json::from_value(report["problems"].clone()).expect("a list of sentences");
    assert_eq!(code, i32::from(!problems.is_empty()), "a finding is exit code 1");
    problems
}

/// A check that has never been seen to fail proves nothing: one row dropped, one doubled, one entry added, one removed; each turns it red.
fn the_check_goes_red(site: &Site) {
    let (log, ledger) = (site.log(), site.ledger());
    let logged: Vec<LoggedRow> = rows(&log, Filter::default()).and_then(Iterator::collect).expect("scan");
    let victim = {
        let mut answered = logged.iter().enumerate().filter(|(_, row)| row.status == ShareStatus::Accepted as u8);
        // Deep in the first boot: nothing that a kill could have cut.
        answered.nth(10).map(|(index, _)| index).expect("accepted rows")
    };

    let same = site.path("same");
    rewrite(&log, &same, &logged);
    assert_eq!(problems_of(&same, &ledger), Vec::<String>::new(), "the forger's copy of the same rows passes");

    let mut dropped = logged.clone();
    let gone = dropped.remove(victim);
    let path = site.path("dropped");
    rewrite(&log, &path, &dropped);
    assert_eq!(verify(&path, None).0, 0, "the log without the row holds together in itself");
    let problems = problems_of(&path, &ledger);
    assert!(problems.len() == 1 && problems[0].starts_with("missing"), "{problems:?}");
    assert!(problems[0].contains(&format!("nonce {:08x}", gone.nonce)), "{problems:?}");

    let mut doubled = logged.clone();
    doubled.insert(victim, doubled[victim]);
    let path = site.path("doubled");
    rewrite(&log, &path, &doubled);
    let problems = problems_of(&path, &ledger);
    assert!(problems.iter().any(|problem| problem.starts_with("doubled")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("accepted 2 times")), "{problems:?}");

    // The other way round: the log stays, the ledger changes.
    let text = std::fs::read_to_string(&ledger).expect("read");
    let lines: Vec<&str> = text.lines().collect();
    let entry = lines.iter().position(|line| line.ends_with(" accepted")).expect("accepted entries");
    let forged = site.path("forged-ledger");
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        change(&mut lines);
        std::fs::write(&forged, lines.join("\n") + "\n").expect("write");
        problems_of(&log, &forged)
    };
    let removed = with(&|lines| drop(lines.remove(entry)));
    assert!(removed.len() == 1 && removed[0].contains("an accepted row that the ledger does not know"), "{removed:?}");
    let added = with(&|lines| {
        let mut fields: Vec<&str> = lines[entry].rsplitn(4, ' ').collect();
        let nonce = format!("{:08x}", u32::from_str_radix(fields[2], 16).expect("hex") ^ 0x8000_0001);
        fields[2] = &nonce;
        fields.reverse();
        let line = fields.join(" ");
        lines.push(line);
    });
    assert!(added.len() == 1 && added[0].starts_with("missing"), "{added:?}");
    let twice = with(&|lines| lines.push(lines[entry].clone()));
    assert!(twice.iter().any(|problem| problem.contains("one share accepted 2 times")), "{twice:?}");
}

/// Writes `logged` as a log of its own in `to`, run by run, with the records of the log in `from`: sums, checksums and ranges are all in order.
fn rewrite(from: &Path, to: &Path, logged: &[LoggedRow]) {
    let records: Vec<DimensionEntry> =
        DimensionReader::from(from, DIMENSIONS_START).expect("records").map(|entry| entry.expect("a sound log").1).collect();
    let prefix = |id: u64| (id >> 32) as u32;
    let mut rest = logged;
    while let Some(first) = rest.first() {
        let run = RunId::from_prefix(prefix(first.session));
        let here = rest.iter().take_while(|row| prefix(row.session) == run.prefix()).count();
        let (rows, later) = rest.split_at(here);
        rest = later;
        let settings = LogSettings {
            dir: to.to_path_buf(),
            pool: "otedama".into(),
            run,
            segment_rows: 524_288,
            seal_after_ms: 600_000,
            max_bytes: 1 << 40,
            journal_file_bytes: 32 << 20,
            keep_ms: u64::MAX,
            keep_shipped_ms: 0,
            has_cursor: false,
            layout: otedama_sharelog::Layout::Replayable,
            rolls_up_when_full: false,
        };
        let (mut journal, mut sealer, registry, _) = ShareLog::open(settings).expect("open");
        for record in &records {
            let dimension = match record {
                DimensionEntry::Run(record) if record.run == run => {
                    registry.run(record).expect("record");
                    continue;
                }
                DimensionEntry::Job(record) if prefix(record.job.0) == run.prefix() => {
                    registry.job(record).expect("record");
                    continue;
                }
                DimensionEntry::Session { session, record } if prefix(session.0) == run.prefix() => Dimension::session(record),
                DimensionEntry::Worker { session, record } if prefix(session.0) == run.prefix() => Dimension::worker(record),
                _ => continue,
            };
            journal.append(&[dimension.expect("it did fit")], &[]).expect("room");
        }
        for batch in rows.chunks(500) {
            let batch: Vec<ShareRow> = batch.iter().map(as_appended).collect();
            while journal.append(&[], &batch).is_err() {
                sealer.step(batch[0].arrival_us).expect("seal");
            }
        }
        let last_us = rows.last().map_or(0, |row| row.arrival_us);
        drop(journal);
        sealer.drain(last_us).expect("drain");
    }
}

/// The row as it came over the ring, with the counters of its run alone.
fn as_appended(row: &LoggedRow) -> ShareRow {
    ShareRow {
        worker: row.worker,
        work: row.work,
        extranonce2: row.extranonce2,
        arrival_us: row.arrival_us,
        session: row.session as u32,
        job: row.job as u32,
        nonce: row.nonce,
        ntime: row.ntime,
        version: row.version,
        share_difficulty: row.share_difficulty,
        latency_us: row.latency_us,
        status: row.status,
        flags: row.flags,
        net: 0,
        coin: row.coin,
    }
}
