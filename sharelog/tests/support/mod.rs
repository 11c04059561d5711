//! What the tests of this crate share: settings, rows, a run's dimension records.
#![allow(dead_code, reason = "each test binary uses a part of it")]
use otedama_primitives::{Coin, Hash256, Target};
use otedama_primitives::{Dimension, RunId, SessionRecord, ShareRow, WorkerId, WorkerRecord};
use otedama_sharelog::{JobRecord, Journal, LogSettings, Registry, RunRecord, SealStep, Sealer, Storage};
use std::path::Path;

/// 2026-11-21 08:00:00 UTC.
pub const NOON_US: u64 = 1_795_248_000_000_000;

pub fn settings(dir: &Path, boot: u32) -> LogSettings {
    LogSettings {
        dir: dir.to_path_buf(),
        pool: "test".into(),
        run: RunId::new(3, boot),
        segment_rows: 1000,
        seal_after_ms: 600_000,
        max_bytes: 1 << 40,
        journal_file_bytes: 256 << 10,
        keep_ms: u64::MAX,
        keep_shipped_ms: 0,
        has_cursor: false,
        layout: otedama_sharelog::Layout::Replayable,
        rolls_up_when_full: false,
    }
}

/// Row `index` of a run: its nonce is its index, everything else is made from it.
pub fn row(index: u32) -> ShareRow {
    ShareRow {
        worker: WORKER,
        work: u64::MAX - u64::from(index),
        extranonce2: u64::from(index) << 20,
        arrival_us: NOON_US + u64::from(index) * 10,
        session: 1,
        job: 1,
        nonce: index,
        ntime: 1_795_248_000,
        version: 0x2000_0000,
        share_difficulty: index as f32,
        latency_us: index % 100,
        status: (index % 9) as u8,
        flags: (index % 8) as u8,
        net: 0,
        coin: 0,
    }
}

pub const WORKER: u64 = 77;

pub fn session(counter: u32) -> Dimension {
    Dimension::session(&SessionRecord {
        session: counter,
        extranonce1: 0x0100_0000 | counter,
        net: 0,
        extranonce2_bytes: 8,
        started_us: NOON_US,
        peer: "127.0.0.1:4000".into(),
        agent: "test/1".into(),
    })
    .expect("fits")
}

pub fn worker(id: u64, name: &str) -> Dimension {
    Dimension::worker(&WorkerRecord { worker: WorkerId(id), seen_us: NOON_US, session: 1, name: name.into() }).expect("fits")
}

pub fn job(run: RunId, counter: u32) -> JobRecord {
    JobRecord {
        job: run.job(counter),
        wire_id: counter.wrapping_add(run.epoch),
        coin: Coin::Bitcoin,
        height: 900_000,
        prev_hash: Hash256([7; 32]),
        version: 0x2000_0000,
        nbits: 0x1d00_ffff,
        ntime: 1_795_248_000,
        ntime_min: 1_795_240_000,
        coinbase_prefix: vec![1, 2, 3],
        coinbase_suffix: vec![4, 5],
        branch: vec![Hash256([1; 32])],
        extranonce2_bytes: 8,
        network_target: Target([1, 2, 3, 4]),
        clean: true,
        created_us: NOON_US,
    }
}

pub fn run_record(run: RunId) -> RunRecord {
    RunRecord {
        run,
        started_us: NOON_US,
        build: "test".into(),
        kernel: "scalar".into(),
        driver: "none".into(),
        tier: "process".into(),
        pool: "test".into(),
    }
}

/// Records run and job 1, and appends session 1 and the worker.
pub fn begin(settings: &LogSettings, registry: &Registry, journal: &mut Journal) {
    registry.run(&run_record(settings.run)).expect("run");
    registry.job(&job(settings.run, 1)).expect("job");
    journal.append(&[session(1), worker(WORKER, "alice.rig1")], &[]).expect("room");
}

/// Steps until the sealer has nothing to do.
pub fn settle<S: Storage>(sealer: &mut Sealer<S>, now_us: u64) {
    while sealer.step(now_us).expect("step") == SealStep::Worked {}
}

/// Every row of the log as (run prefix, nonce), sorted.
pub fn nonces(dir: &Path) -> Vec<(u32, u32)> {
    let mut nonces: Vec<_> = otedama_sharelog::scan::rows(dir, otedama_sharelog::scan::Filter::default())
        .expect("scan")
        .map(|row| row.expect("sound segment"))
        .map(|row| ((row.session >> 32) as u32, row.nonce))
        .collect();
    nonces.sort_unstable();
    nonces
}

/// Copies the files of a folder, as a crash at this moment would leave them.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
    }
}
