//! What `otedama shares` costs per row over a large log, one JSON line per figure: `cargo run --release -p otedama-sharelog --example scan [-- ROWS [RUNS [FOLDER]]]`;
//! `cargo xtask figures scan` takes the median of the runs.
//!
//! The log is made once (69 bytes a row: layout `lean`, which has all that a sum reads), in FOLDER or the folder for temporary files, every segment a file with rows of its own.
use otedama_primitives::{Dimension, RunId, ShareRow, ShareStatus, WorkerId, WorkerRecord};
use otedama_sharelog::scan::Filter;
use otedama_sharelog::shares::{Key, group_on};
use otedama_sharelog::{BATCH_DIMENSIONS_MAX, Layout, LogSettings, SealStep, ShareLog};
use rustix::fs::{Advice, fadvise, statvfs};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::{Duration, Instant};

const START_US: u64 = 1_795_248_000_000_000;
/// A farm of 10,000 workers at 100,000 shares a second.
const WORKERS: u64 = 10_000;
const SHARE_US: u64 = 10;

/// CPU time of all threads of this process, user and system.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A number that looks random, the same for the same input (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The id of the worker of this number.
fn identity(worker: u64) -> WorkerId {
    WorkerId(mixed(worker ^ 77))
}

/// The share of this number: half of all come from a tenth of the workers, two in a hundred are stale.
fn share(number: u64) -> ShareRow {
    let (one, two) = (mixed(number), mixed(number ^ (1 << 63)));
    let worker = if one & 1 == 0 { two % (WORKERS / 10) } else { two % WORKERS };
    ShareRow {
        worker: identity(worker).0,
        work: 1 << (36 + mixed(worker) % 8),
        extranonce2: number,
        arrival_us: START_US + number * SHARE_US,
        session: 1 + worker as u32,
        job: 1 + (number / 3_000_000) as u32,
        nonce: (one >> 32) as u32,
        ntime: 1_795_248_000,
        version: 0x2000_0000,
        share_difficulty: 1.5,
        latency_us: 20,
        status: if one.is_multiple_of(50) { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
        flags: 0,
        net: 0,
        coin: 0,
    }
}

fn make(folder: &Path, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    let settings = LogSettings {
        dir: folder.to_path_buf(),
        pool: "scan".into(),
        run: RunId::new(1, 1),
        segment_rows: 524_288,
        seal_after_ms: 600_000,
        max_bytes: 1 << 40,
        journal_file_bytes: 32 << 20,
        keep_ms: u64::MAX,
        keep_shipped_ms: 0,
        has_cursor: false,
        layout: Layout::Lean,
        rolls_up_when_full: false,
    };
    let (mut journal, mut sealer, ..) = ShareLog::open(settings)?;
    for first in (0..WORKERS).step_by(BATCH_DIMENSIONS_MAX) {
        let last = (first + BATCH_DIMENSIONS_MAX as u64).min(WORKERS);
        let names: Result<Vec<Dimension>, _> = (first..last)
            .map(|worker| {
                let name = format!("account{:02}.rig{:03}", worker / 1000, worker % 1000);
                Dimension::worker(&WorkerRecord { worker: identity(worker), seen_us: START_US, session: 1 + worker as u32, name })
            })
            .collect();
        journal.append(&names?, &[])?;
    }
    let mut made = 0;
    while made < rows {
        let end = (made + 512).min(rows);
        let batch: Vec<ShareRow> = (made..end).map(share).collect();
        while journal.room_cells() <= batch.len() {
            sealer.step(START_US)?;
        }
        journal.append(&[], &batch)?;
        made = end;
        if made.is_multiple_of(1 << 18) {
            while sealer.step(START_US)? == SealStep::Worked {}
        }
    }
    sealer.drain(START_US)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let rows: u64 = arguments.next().map_or(Ok(10_000_000), |text| text.parse())?;
    let runs: usize = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let base = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let disk = statvfs(&base)?;
    let wanted = rows * Layout::Lean.row_bytes() as u64 + (1 << 30);
    if disk.f_bavail * disk.f_frsize < wanted {
        return Err(format!("{} has no room for {} MB: name another folder", base.display(), wanted / 1_000_000).into());
    }
    let folder = base.join(format!("otedama-scan-{}", std::process::id()));
    let outcome = make(&folder, rows).and_then(|()| (0..runs).try_for_each(|_| measure(&folder, rows)));
    std::fs::remove_dir_all(&folder)?;
    outcome
}

/// Takes the log out of the page cache.
fn forget(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let file = std::fs::File::open(entry?.path())?;
        // Pages that are still to be written cannot be dropped.
        file.sync_data()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn measure(folder: &Path, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let last_half = Filter { since_us: Some(START_US + rows / 2 * SHARE_US), ..Filter::default() };
    let refused = Filter { status: Some(ShareStatus::Stale), ..Filter::default() };
    let all = Filter::default();
    let cases: [(&str, &[Key], &Filter); 9] = [
        ("status", &[Key::Status], &all),
        ("minute", &[Key::Minute], &all),
        ("minute_status", &[Key::Minute, Key::Status], &all),
        ("worker", &[Key::Worker], &all),
        ("worker_status", &[Key::Worker, Key::Status], &all),
        ("worker_minute", &[Key::Worker, Key::Minute], &all),
        ("worker_job", &[Key::Worker, Key::Job], &all),
        ("worker_of_stale", &[Key::Worker], &refused),
        ("worker_minute_last_half", &[Key::Worker, Key::Minute], &last_half),
    ];
    for (name, keys, filter) in cases {
        let scanned = if filter.since_us.is_some() { rows - rows / 2 } else { rows };
        let run = |threads: usize| -> Result<(Duration, Duration, usize), Box<dyn std::error::Error>> {
            let (began, spent) = (Instant::now(), cpu());
            let table = group_on(folder, keys, filter, threads)?;
            let (wall, spent) = (began.elapsed(), cpu() - spent);
            assert_eq!(table.damaged, Vec::<String>::new());
            let shares: u64 = table.rows.iter().map(|row| row.shares).sum();
            assert!(
                if filter.status.is_none() { shares == scanned } else { (1..scanned).contains(&shares) },
                "{shares} shares of {scanned}"
            );
            Ok((wall, spent, table.rows.len()))
        };
        let print = |what: &str, time: Duration, groups: usize, threads: usize, cache: &str, counted: &str| {
            println!(
                r#"{{"name":"group_{name}_{what}_ns","value":{:.3},"unit":"ns/row","counted":"{counted}","conditions":"{scanned} rows of {WORKERS} workers at 100000 shares a second in segments of 524288, {groups} groups, {threads} threads, {cache}"}}"#,
                time.as_nanos() as f64 / scanned as f64
            );
        };
        if name == "worker_status" {
            forget(folder)?;
            let (wall, _, groups) = run(cores)?;
            print("cold_wall", wall, groups, cores, "no page in the cache", "wall time, names and sorting included");
        }
        // From here on the page cache has the columns of this case.
        run(cores)?;
        let cache = "page cache warm";
        let (wall, _, groups) = run(1)?;
        print("one_core", wall, groups, 1, cache, "wall time of one thread, names and sorting included");
        let (wall, spent, groups) = run(cores)?;
        print("every_core_wall", wall, groups, cores, cache, "wall time, names and sorting included");
        print("every_core_cpu", spent, groups, cores, cache, "CPU time of all threads, names and sorting included");
    }
    Ok(())
}
