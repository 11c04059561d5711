//! `otedama reconcile --repair` against a real server, an old or a modern one: whatever was lost, halved or doubled there, every row is there once afterwards, and in the roll-ups.
mod log;
mod running;
mod server;

use log::Log;
use otedama_sharelog::SegmentMeta;
use otedama_sharelog::store::{SegmentStore, lock_resending};
use otedama_shipper::{ReconcileReport, RepairReport, ShipperSettings, reconcile, repair};
use running::{Running, settings};
use server::{LossyProxy, Server};
use std::path::Path;
use std::time::Duration;

const ROLL_UPS: [&str; 3] = ["worker_minute", "worker_hour", "pool_minute"];
const WORK: u64 = u64::MAX / 1000;

async fn shipped(server: &Server, segments: u32, rows: u32) -> Log {
    let mut log = Log::new();
    for _ in 0..segments {
        log.segment(rows, WORK);
    }
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(u64::from(segments)).await;
    run.end().await;
    log
}

fn clean(segments: u64, rows: u64) -> ReconcileReport {
    ReconcileReport { segments, rows_log: rows, rows_server: rows, ..ReconcileReport::default() }
}

fn metas(dir: &Path) -> Vec<SegmentMeta> {
    SegmentStore::open(dir).expect("store").segments().expect("segments")
}

/// ALTER is done when its rows are gone.
fn delete(server: &Server, table: &str, condition: &str) {
    server.query(&format!("ALTER TABLE otedama.{table} DELETE WHERE {condition}"));
    for _ in 0..1500 {
        if server.query(&format!("SELECT count() FROM otedama.{table} WHERE {condition}")) == "0\n" {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the rows are still there");
}

/// Every row once, in the table and in every roll-up, under every key that the roll-up has.
fn exact(server: &Server, rows: u64) {
    let work = (u128::from(WORK) * u128::from(rows)).to_string();
    assert_eq!(server.query("SELECT count(), sum(toDecimal128(work, 0)) FROM otedama.shares").trim(), format!("{rows}\t{work}"));
    let twice = "SELECT count() FROM (SELECT seg, seq FROM otedama.shares GROUP BY seg, seq HAVING count() != 1)";
    assert_eq!(server.query(twice).trim(), "0");
    for roll_up in ROLL_UPS {
        let sums = server.query(&format!("SELECT sum(shares), sum(work) FROM otedama.{roll_up}"));
        assert_eq!(sums.trim(), format!("{rows}\t{work}"), "{roll_up}");
    }
    for (column, roll_up) in
        [("worker", "worker_minute"), ("status", "pool_minute"), ("worker", "worker_hour"), ("status", "worker_minute")]
    {
        let of_rows = server.query(&format!("SELECT {column}, count() FROM otedama.shares GROUP BY {column} ORDER BY {column}"));
        assert_eq!(
            server.query(&format!("SELECT {column}, sum(shares) FROM otedama.{roll_up} GROUP BY {column} ORDER BY {column}")),
            of_rows
        );
    }
}

async fn repaired(settings: &ShipperSettings, dir: &Path, allow_delete: bool) -> RepairReport {
    repair(settings, dir, allow_delete).await.expect("repaired")
}

#[tokio::test]
async fn what_is_missing_halved_or_doubled_is_there_once_afterwards() {
    let Some(server) = Server::start("what_is_missing_halved_or_doubled_is_there_once_afterwards") else { return };
    let log = shipped(&server, 5, 100).await;
    let folder = log.close();
    let metas = metas(folder.path());
    let settings = settings(server.url());
    delete(&server, "shares", &format!("seg = {}", metas[1].seg));
    delete(&server, "shares", &format!("seg = {} AND seq >= 50", metas[2].seg));
    let body = std::fs::read(folder.path().join(format!("{}.native", metas[3].name))).expect("the segment");
    server.post("query=INSERT%20INTO%20otedama.shares%20FORMAT%20Native", &body).expect("sent by hand");

    // Without leave to delete: what is missing as a whole is sent, the rest is named with its statement.
    let careful = repaired(&settings, folder.path(), false).await;
    assert_eq!(careful.shipped_again, [metas[1].name.clone()]);
    assert!(careful.deleted.is_empty() && careful.rebuilt.is_empty());
    assert_eq!(careful.after.missing, [metas[2].name.clone()]);
    assert_eq!(careful.after.doubled, [metas[3].name.clone()]);
    for meta in &metas[2..4] {
        let left = careful.left.iter().find(|left| left.what.contains(&meta.name)).expect("named");
        assert_eq!(left.statements, [format!("ALTER TABLE `otedama`.`shares` DELETE WHERE instance = 7 AND seg = {}", meta.seg)]);
    }
    assert_eq!(server.query("SELECT count() FROM otedama.shares").trim(), "550", "two whole ones, one sent again, one halved, one doubled");

    let report = repaired(&settings, folder.path(), true).await;
    assert_eq!((&report.deleted, &report.shipped_again), (&vec![metas[2].name.clone(), metas[3].name.clone()], &report.deleted));
    assert_eq!(report.left, []);
    assert_eq!(report.rebuilt.len(), 3, "the views saw every insert and no deletion: {:?}", report.rebuilt);
    assert_eq!(report.after, clean(5, 500));
    exact(&server, 500);

    // A second one finds nothing to do.
    let again = repaired(&settings, folder.path(), true).await;
    assert_eq!(again, RepairReport { before: clean(5, 500), after: clean(5, 500), ..RepairReport::default() });
    exact(&server, 500);
}

#[tokio::test]
async fn a_server_that_was_set_up_anew_gets_every_row_and_every_name() {
    let Some(server) = Server::start("a_server_that_was_set_up_anew_gets_every_row_and_every_name") else { return };
    let folder = shipped(&server, 4, 300).await.close();
    server.query("DROP DATABASE otedama");
    // Lost answers on the way change nothing.
    let proxy = LossyProxy::start(server.address(), 2);
    let report = repaired(&settings(proxy.url()), folder.path(), false).await;
    assert!(proxy.counts().1 >= 1, "no answer was lost");
    assert_eq!((report.shipped_again.len(), report.left.len()), (4, 0), "{report:?}");
    assert_eq!(report.after, clean(4, 1200));
    exact(&server, 1200);
    for (column, table) in [("session", "sessions"), ("worker", "workers"), ("job", "jobs")] {
        let known =
            format!("SELECT count() FROM otedama.shares WHERE worker = 1 AND {column} NOT IN (SELECT {column} FROM otedama.{table})");
        assert_eq!(server.query(&known).trim(), "0", "{table}");
    }
    assert_eq!(server.query("SELECT count(), sum(rows) FROM otedama.segments FINAL").trim(), "4\t1200");
}

#[tokio::test]
async fn sums_that_a_roll_up_lacks_or_has_twice_are_made_again() {
    let Some(server) = Server::start("sums_that_a_roll_up_lacks_or_has_twice_are_made_again") else { return };
    let folder = shipped(&server, 3, 200).await.close();
    let settings = settings(server.url());
    delete(&server, "pool_minute", "status = 'stale'");
    // Of the same size, under another key: totals alone would not tell.
    server.query(
        "INSERT INTO otedama.worker_hour (worker, hour, coin, status, shares, work) SELECT 99, hour, coin, status, shares, work FROM otedama.worker_hour WHERE worker = 1 AND status = 'stale'",
    );
    delete(&server, "worker_hour", "worker = 1 AND status = 'stale'");
    let careful = repaired(&settings, folder.path(), false).await;
    assert_eq!((careful.left.len(), careful.rebuilt.len()), (2, 0), "{:?}", careful.left);
    let report = repaired(&settings, folder.path(), true).await;
    let mut rebuilt: Vec<_> = report.rebuilt.iter().map(|hours| hours.roll_up).collect();
    rebuilt.sort_unstable();
    assert_eq!((rebuilt, report.left.len()), (vec!["pool_minute", "worker_hour"], 0));
    assert_eq!(report.after, clean(3, 600));
    exact(&server, 600);
    assert_eq!(server.query("SELECT sum(block_candidates), sum(latency_us_sum) FROM otedama.pool_minute").trim(), "1\t12000");
    // The same hours a second time: their rows are those of the first repair, and must not be taken for a repetition of it.
    delete(&server, "pool_minute", "status = 'stale'");
    repaired(&settings, folder.path(), true).await;
    exact(&server, 600);
}

#[tokio::test]
async fn an_hour_that_rows_are_still_written_into_waits_and_two_repairs_never_run_at_once() {
    let Some(server) = Server::start("an_hour_that_rows_are_still_written_into_waits_and_two_repairs_never_run_at_once") else { return };
    let mut log = shipped(&server, 2, 100).await;
    let settings = settings(server.url());
    delete(&server, "pool_minute", "status = 'stale'");
    let report = repaired(&settings, log.dir(), true).await;
    assert!(report.rebuilt.is_empty());
    assert!(report.left.len() == 1 && report.left[0].what.contains("still written"), "{:?}", report.left);
    log.segment(100, WORK);
    let folder = log.close();
    let report = repaired(&settings, folder.path(), true).await;
    assert!(report.left.len() == 1 && report.left[0].what.contains("still written"), "one segment is not shipped: {:?}", report.left);
    let run = Running::start(settings.clone(), SegmentStore::open(folder.path()).expect("store"));
    run.until_shipped(1).await;
    run.end().await;
    {
        let _other = lock_resending(folder.path()).expect("lock").expect("free");
        let busy = repair(&settings, folder.path(), true).await.expect_err("busy").to_string();
        assert!(busy.contains("otedama reconcile"), "{busy}");
    }
    let report = repaired(&settings, folder.path(), true).await;
    assert_eq!((report.rebuilt.len(), report.left.len()), (1, 0), "{report:?}");
    assert_eq!(reconcile(&settings, folder.path()).await.expect("reconciled"), clean(3, 300));
    exact(&server, 300);
}
