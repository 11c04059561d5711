//! What `otedama shares` costs per row over a large log, one JSON line per figure: `cargo run --release -p otedama-sharelog --example scan [-- ROWS [FOLDER]]`;
//! `cargo xtask figures scan` takes the median of several.
//!
//! The log is made first (85 bytes a row, in FOLDER or the folder for temporary files) and read once, so that the page cache has what it can hold.
use otedama_primitives::{RunId, ShareRow, ShareStatus};
use otedama_sharelog::scan::Filter;
use otedama_sharelog::shares::{Key, group_on};
use otedama_sharelog::{LogSettings, SealStep, ShareLog};
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

/// The share of this number: half of all come from a tenth of the workers, two in a hundred are stale.
fn share(number: u64) -> ShareRow {
    let (one, two) = (mixed(number), mixed(number ^ (1 << 63)));
    let worker = if one & 1 == 0 { two % (WORKERS / 10) } else { two % WORKERS };
    ShareRow {
        worker: mixed(worker ^ 77),
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
        layout: otedama_sharelog::Layout::Replayable,
        rolls_up_when_full: false,
    };
    let (mut journal, mut sealer, ..) = ShareLog::open(settings)?;
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
    let base = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let folder = base.join(format!("otedama-scan-{}", std::process::id()));
    make(&folder, rows)?;
    let outcome = measure(&folder, rows);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn measure(folder: &Path, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let last_half = Filter { since_us: Some(START_US + rows / 2 * SHARE_US), ..Filter::default() };
    let cases: [(&str, &[Key], Filter); 4] = [
        ("worker_minute", &[Key::Worker, Key::Minute], Filter::default()),
        ("worker", &[Key::Worker], Filter::default()),
        ("minute_status", &[Key::Minute, Key::Status], Filter::default()),
        ("worker_minute_last_half", &[Key::Worker, Key::Minute], last_half),
    ];
    // What the page cache can hold, it has from here on: every column of every segment.
    for entry in std::fs::read_dir(folder)? {
        std::io::copy(&mut std::fs::File::open(entry?.path())?, &mut std::io::sink())?;
    }
    let on = if folder.starts_with("/dev/shm") { "tmpfs" } else { "disk, page cache warm where it is large enough" };
    for (name, keys, filter) in cases {
        let taken = if filter.since_us.is_some() { rows - rows / 2 } else { rows };
        for threads in [1, cores] {
            let (began, spent) = (Instant::now(), cpu());
            let table = group_on(folder, keys, &filter, threads)?;
            let (wall, spent) = (began.elapsed(), cpu() - spent);
            assert_eq!((table.rows.iter().map(|row| row.shares).sum::<u64>(), table.damaged.len()), (taken, 0));
            let conditions = format!(
                "{rows} rows of which {taken} are taken, {WORKERS} workers, 100000 shares a second, {} groups, {threads} threads, a folder on {on}",
                table.rows.len()
            );
            let figure = |what: &str, time: Duration, counted: &str| {
                println!(
                    r#"{{"name":"group_{name}_{}_{what}_ns","value":{:.3},"unit":"ns/row","counted":"{counted}","conditions":"{conditions}"}}"#,
                    if threads == 1 { "one_thread" } else { "every_core" },
                    time.as_nanos() as f64 / taken as f64
                );
            };
            figure("cpu", spent, "CPU time of all threads, names and sorting included");
            figure("wall", wall, "wall time, names and sorting included");
            if cores == 1 {
                break;
            }
        }
    }
    Ok(())
}
