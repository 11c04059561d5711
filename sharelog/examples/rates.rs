//! What a row costs to append, seal, scan and verify, in nanoseconds of CPU time, one JSON line per figure: `cargo run --release -p otedama-sharelog --example rates [-- ROWS
//! [FOLDER]]`; `cargo xtask figures log` takes the median of several.
//!
//! CPU time of the one thread, so that neighbours on the machine do not count; waiting for the disk does not either. That thread does one thing at a time, so that each figure is of its own work. Append is measured with room in the journal: batches that had to wait for the sealer wait
//! outside of the clock. Figures of a run stand side by side; the machine's noise is the same for all.
use otedama_primitives::{Dimension, RunId, SessionRecord, ShareRow, WorkerId, WorkerRecord};
use otedama_sharelog::scan::{self, Filter};
use otedama_sharelog::{LogSettings, SealStep, ShareLog, shares, verify};
use std::time::{Duration, Instant};

/// CPU time of this thread, user and system.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Identities are hashes of names.
fn identity(worker: u64) -> u64 {
    worker.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let rows_wanted: u64 = arguments.next().map_or(Ok(4_194_304), |text| text.parse())?;
    let base = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    for batch in [1usize, 8, 64, 512] {
        let folder = base.join(format!("otedama-rates-{}-{batch}", std::process::id()));
        // Small batches cost more: fewer of them say as much.
        measure(&folder, batch, rows_wanted / if batch < 64 { 2 } else { 1 })?;
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

/// Rows before measuring: four segments, by when every journal file has been used.
const WARM_ROWS: u64 = 2_097_152;

fn measure(folder: &std::path::Path, batch: usize, rows_wanted: u64) -> Result<(), Box<dyn std::error::Error>> {
    const START_US: u64 = 1_795_248_000_000_000;
    let run = RunId::new(1, 1);
    let settings = LogSettings {
        dir: folder.to_path_buf(),
        pool: "rates".into(),
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
    let (mut journal, mut sealer, ..) = ShareLog::open(settings)?;
    let session = Dimension::session(&SessionRecord {
        session: 1,
        extranonce1: 1,
        net: 0,
        extranonce2_bytes: 8,
        started_us: START_US,
        peer: "127.0.0.1:1".into(),
        agent: "rates".into(),
    })?;
    let mut dimensions = vec![session];
    for worker in 1..=1000u64 {
        dimensions.push(Dimension::worker(&WorkerRecord {
            worker: WorkerId(identity(worker)),
            seen_us: START_US,
            session: 1,
            name: format!("worker.{worker}"),
        })?);
    }
    for records in dimensions.chunks(64) {
        journal.append(records, &[])?;
    }
    while sealer.step(START_US)? == SealStep::Worked {}

    let mut rows = vec![
        ShareRow {
            worker: 0,
            work: 4_295_032_833,
            extranonce2: 0,
            arrival_us: 0,
            session: 1,
            job: 0,
            nonce: 0,
            ntime: 1_795_248_000,
            version: 0x2000_0000,
            share_difficulty: 1.5,
            latency_us: 20,
            status: 0,
            flags: 0,
            net: 0,
            coin: 0,
        };
        batch
    ];
    let (mut appended, mut appending, mut reading, mut sealing) = (0u64, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut longest = Duration::ZERO;
    let steps = |sealer: &mut otedama_sharelog::Sealer,
                 us,
                 sealing: &mut Duration,
                 reading: &mut Duration|
     -> Result<bool, otedama_sharelog::LogError> {
        let before = sealer.counters().segments_sealed.load(std::sync::atomic::Ordering::Relaxed);
        let started = cpu();
        let worked = sealer.step(us)? == SealStep::Worked;
        let after = sealer.counters().segments_sealed.load(std::sync::atomic::Ordering::Relaxed);
        *(if after > before { sealing } else { reading }) += cpu() - started;
        Ok(worked)
    };
    // A pool that runs makes no journal file and grows no buffer: it uses what it has again. Rows until then are not measured.
    let mut unmeasured = 0;
    while appended < unmeasured + rows_wanted {
        if unmeasured == 0 && appended >= WARM_ROWS {
            unmeasured = appended;
            (appending, reading, sealing, longest) = Default::default();
        }
        // A quarter of a million rows at a time: the sealer's turn comes between.
        let stretch = cpu();
        let mut in_stretch = 0;
        while in_stretch < 1 << 18 && journal.room_cells() > batch {
            for row in &mut rows {
                row.nonce = appended as u32;
                row.worker = identity(1 + appended % 1000);
                row.arrival_us = START_US + appended;
                appended += 1;
            }
            let one = (appended.is_multiple_of(4096)).then(Instant::now);
            journal.append(&[], &rows)?;
            if let Some(one) = one {
                longest = longest.max(one.elapsed());
            }
            in_stretch += batch;
        }
        appending += cpu() - stretch;
        while steps(&mut sealer, START_US, &mut sealing, &mut reading)? {}
    }
    let started = cpu();
    sealer.drain(START_US)?;
    let drained = cpu() - started;

    let started = cpu();
    let scanned = scan::rows(folder, Filter::default())?.filter(|row| row.is_ok()).count() as u64;
    let scanning = cpu() - started;
    let started = cpu();
    let table = shares::group(folder, &[shares::Key::Worker, shares::Key::Minute], &Filter::default())?;
    let grouping = cpu() - started;
    let started = cpu();
    let report = verify::verify(folder, None)?;
    let verifying = cpu() - started;
    assert_eq!((scanned, report.rows, table.rows.iter().map(|row| row.shares).sum::<u64>()), (appended, appended, appended));
    assert_eq!(report.problems, Vec::<String>::new());
    let ns_of_all = |time: Duration| time.as_nanos() as f64 / appended as f64;
    let appended = appended - unmeasured;
    let ns = |time: Duration| time.as_nanos() as f64 / appended as f64;
    let conditions = format!(
        "{appended} rows in batches of {batch} after {WARM_ROWS} that are not measured, 1000 workers, one thread that does one thing at a time; a folder on {}",
        if folder.starts_with("/dev/shm") { "tmpfs" } else { "disk" }
    );
    let figure = |name: &str, value: f64, unit: &str, counted: &str| {
        println!(
            r#"{{"name":"{name}_batch_{batch}","value":{value:.2},"unit":"{unit}","counted":"{counted}","conditions":"{conditions}"}}"#
        );
    };
    let per_core = |time: Duration| appended as f64 / time.as_secs_f64();
    figure("journal_append_rows_per_s", per_core(appending), "rows/s per core", "rows made, appended and committed, per second of CPU");
    figure("journal_append_ns", ns(appending), "ns/row", "CPU time, rows made anew for each batch");
    figure("journal_append_longest_us", longest.as_micros() as f64, "us", "longest of every 4096th append, wall time");
    figure("seal_read_ns", ns(reading), "ns/row", "CPU time to read and check the journal and gather its rows");
    figure(
        "seal_write_ns",
        ns(sealing + drained),
        "ns/row",
        "CPU time to put rows in order, lay them out as columns, sum, write and fsync segments",
    );
    figure("seal_ns", ns(reading + sealing + drained), "ns/row", "CPU time from journal to sealed segment, fsync included");
    figure("seal_rows_per_s", per_core(reading + sealing + drained), "rows/s per core", "rows sealed per second of CPU");
    figure("scan_ns", ns_of_all(scanning), "ns/row", "CPU time to read every row, checksums included");
    figure("group_ns", ns_of_all(grouping), "ns/row", "CPU time of otedama shares --by worker,minute");
    figure("verify_ns", ns_of_all(verifying), "ns/row", "CPU time of otedama log verify");
    Ok(())
}
