//! A writer is killed again and again on one folder: every row that it acknowledged is there exactly once, and every row resolves.
//!
//! The child is this test binary, told by an environment variable to write. It appends batches of random sizes and writes, after each, how many rows stand to standard
//! output, as a pool releases answers; a second thread seals meanwhile, a third packs what is sealed. 40 kills; 1000 with OTEDAMA_LONG=1.
mod support;
use otedama_primitives::{RunId, ShareRow, ShareStatus};
use otedama_sharelog::{LogSettings, PackStep, ShareLog, verify::verify};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::*;

const CHILD_DIR: &str = "OTEDAMA_KILL_TEST_DIR";
const CHILD_BOOT: &str = "OTEDAMA_KILL_TEST_BOOT";

fn kill_settings(dir: &Path, boot: u32) -> LogSettings {
    LogSettings { segment_rows: 3000, seal_after_ms: 3, journal_file_bytes: 128 << 10, ..settings(dir, boot) }
}

/// A small generator: the test needs variety, not quality. Source: xorshift64, Marsaglia 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Not a test of its own: the body of the child process. Without the variable it returns at once.
#[test]
fn child_writes_until_killed() {
    let (Ok(dir), Ok(boot)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_BOOT)) else { return };
    let boot: u32 = boot.parse().expect("boot");
    let settings = kill_settings(Path::new(&dir), boot);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    registry.run(&run_record(settings.run)).expect("run");
    let mut packer = sealer.take_packer(0).expect("packer");
    std::thread::spawn(move || while packer.step(|| true).expect("pack") != PackStep::Ended {});
    std::thread::spawn(move || {
        let started = Instant::now();
        loop {
            sealer.step(NOON_US + started.elapsed().as_micros() as u64).expect("step");
            std::thread::yield_now();
        }
    });
    let mut random = Random(u64::from(boot).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut acknowledged = std::io::stdout();
    acknowledged.write_all(b"\nREADY").expect("pipe");
    let (mut nonce, mut sessions, mut jobs) = (0u32, 0u32, 0u32);
    loop {
        if jobs == 0 || random.below(20) == 0 {
            jobs += 1;
            registry.job(&job(settings.run, jobs)).expect("job");
        }
        let mut dimensions = Vec::new();
        if sessions == 0 || random.below(4) == 0 {
            for _ in 0..=random.below(5) {
                sessions += 1;
                dimensions.push(session(sessions));
                dimensions.push(worker(u64::from(boot) << 32 | u64::from(sessions), &format!("worker.{boot}.{sessions}")));
            }
        }
        let size = [1, 1, 3, 64, 512][random.below(5) as usize];
        let rows: Vec<_> = (nonce..nonce + size)
            .map(|nonce| ShareRow {
                session: sessions,
                worker: u64::from(boot) << 32 | u64::from(sessions),
                job: jobs,
                status: if nonce % 5 == 0 { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
                ..row(nonce)
            })
            .collect();
        while journal.append(&dimensions, &rows).is_err() {
            std::thread::yield_now();
        }
        nonce += size;
        acknowledged.write_all(&nonce.to_le_bytes()).expect("pipe");
    }
}

#[test]
fn every_acknowledged_row_survives_every_kill_exactly_once() {
    let kills = if std::env::var_os("OTEDAMA_LONG").is_some() { 1000 } else { 40 };
    let folder = tempfile::tempdir().expect("folder");
    let mut random = Random(0x00C0_FFEE);
    // Rows acknowledged by run prefix.
    let mut acknowledged: BTreeMap<u32, u32> = BTreeMap::new();
    let mut killed_while_writing = 0;
    for boot in 1..=kills {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "child_writes_until_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, folder.path())
            .env(CHILD_BOOT, boot.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("child");
        // The pipe is emptied all the time: a child that waits for the reader would die at the same place each time.
        let mut pipe = child.stdout.take().expect("pipe");
        let (ready_tx, ready) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut chunk = [0u8; 4096];
            let mut told = false;
            while let Ok(taken @ 1..) = pipe.read(&mut chunk) {
                seen.extend_from_slice(&chunk[..taken]);
                if !told && seen.windows(6).any(|window| window == b"\nREADY") {
                    told = ready_tx.send(()).is_ok();
                }
            }
            seen
        });
        ready.recv_timeout(Duration::from_secs(30)).expect("the child opened the log");
        std::thread::sleep(Duration::from_micros(1000 + random.below(29_000)));
        child.kill().expect("SIGKILL");
        let status = child.wait().expect("wait");
        assert_eq!(status.code(), None, "the child died by the signal, not by itself: {status}");
        let seen = reader.join().expect("reader");
        let start = seen.windows(6).position(|window| window == b"\nREADY").expect("ready") + 6;
        let last = seen[start..].chunks_exact(4).next_back().map(|four| u32::from_le_bytes(four.try_into().expect("four")));
        if let Some(rows) = last {
            acknowledged.insert(RunId::new(3, boot).prefix(), rows);
            killed_while_writing += 1;
        }
        if boot % (kills / 4) == 0 {
            // As a crash left it, unsealed tail and all.
            check(folder.path(), &acknowledged);
        }
    }
    assert!(killed_while_writing > kills / 2, "{killed_while_writing} of {kills} kills met a writer");

    let (journal, mut sealer, ..) = ShareLog::open(kill_settings(folder.path(), kills + 1)).expect("open");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    check(folder.path(), &acknowledged);
    let report = verify(folder.path(), None).expect("verify");
    let names = std::fs::read_dir(folder.path()).expect("list").map(|entry| entry.expect("entry").file_name());
    let packed = names.filter(|name| name.to_string_lossy().ends_with(".native.zst")).count();
    assert!(packed > 10, "the packer came to {packed} segments");
    println!(
        "{kills} kills, {} rows acknowledged, {} in the log, {packed} segments packed",
        acknowledged.values().map(|&rows| u64::from(rows)).sum::<u64>(),
        report.rows
    );
}

/// Every run has rows 0..n, each once, n at least what was acknowledged; the whole log verifies.
fn check(dir: &Path, acknowledged: &BTreeMap<u32, u32>) {
    assert_eq!(verify(dir, None).expect("verify").problems, Vec::<String>::new());
    let mut runs: BTreeMap<u32, u32> = BTreeMap::new();
    for (run, nonce) in nonces(dir) {
        let expected = runs.entry(run).or_default();
        assert_eq!(nonce, *expected, "run {run:08x}: a row is missing or stands twice");
        *expected += 1;
    }
    for (run, rows) in acknowledged {
        assert!(runs.get(run).is_some_and(|found| found >= rows), "run {run:08x}: {rows} rows acknowledged, {:?} found", runs.get(run));
    }
}
