//! How long a log of a gigabyte keeps the pool from listening, one JSON line per figure: `cargo run --release -p otedama-sharelog --example recovery [-- MIB [FOLDER]]`.
//!
//! Two logs: one of sealed segments, and one of journal files alone, as a sealer that fell a gigabyte behind would leave them. What is timed is `ShareLog::open`, all that stands
//! between a start and listening; the rows of the second log are sealed afterwards, beside the running pool, and that is timed as well.
use otedama_primitives::{Dimension, RunId, SessionRecord, ShareRow, WorkerId, WorkerRecord};
use otedama_sharelog::{LogSettings, SealStep, ShareLog, verify};
use std::path::Path;
use std::time::Instant;

const START_US: u64 = 1_795_248_000_000_000;
const FILE_BYTES: u64 = 32 << 20;
const BATCH: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let bytes: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())? << 20;
    let base = arguments.next().map_or_else(std::env::temp_dir, Into::into).join(format!("otedama-recovery-{}", std::process::id()));
    let outcome = measure(&base, bytes);
    std::fs::remove_dir_all(&base)?;
    outcome
}

fn settings(dir: &Path, boot: u32) -> LogSettings {
    LogSettings {
        dir: dir.to_path_buf(),
        pool: "recovery".into(),
        run: RunId::new(1, boot),
        segment_rows: 524_288,
        seal_after_ms: 600_000,
        max_bytes: 1 << 40,
        journal_file_bytes: FILE_BYTES,
        keep_ms: u64::MAX,
        keep_shipped_ms: 0,
        has_cursor: false,
        layout: otedama_sharelog::Layout::Replayable,
        rolls_up_when_full: false,
    }
}

fn measure(base: &Path, bytes: u64) -> Result<(), Box<dyn std::error::Error>> {
    let (sealed, unsealed) = (base.join("sealed"), base.join("unsealed"));
    std::fs::create_dir_all(&unsealed)?;
    let rows = write(&sealed, &unsealed, bytes)?;

    let started = Instant::now();
    let (journal, sealer, ..) = ShareLog::open(settings(&sealed, 2))?;
    figure("reopen_sealed_ms", started.elapsed().as_secs_f64() * 1e3, "ms", "ShareLog::open, wall time", &size_of(&sealed)?);
    drop((journal, sealer));

    let conditions = size_of(&unsealed)?;
    let started = Instant::now();
    let (journal, mut sealer, ..) = ShareLog::open(settings(&unsealed, 2))?;
    figure("reopen_unsealed_ms", started.elapsed().as_secs_f64() * 1e3, "ms", "ShareLog::open, wall time", &conditions);
    let started = Instant::now();
    drop(journal);
    sealer.drain(START_US)?;
    let counted = "from open to everything sealed, wall time; the pool listens meanwhile";
    figure("seal_unsealed_ms", started.elapsed().as_secs_f64() * 1e3, "ms", counted, &conditions);
    let report = verify::verify(&unsealed, None)?;
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.rows > rows / 2, "{} of {rows} rows", report.rows);
    Ok(())
}

fn figure(name: &str, value: f64, unit: &str, counted: &str, conditions: &str) {
    println!(r#"{{"name":"{name}","value":{value:.3},"unit":"{unit}","counted":"{counted}","conditions":"{conditions}"}}"#);
}

/// What stands in a folder, in words.
fn size_of(dir: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let (mut segments, mut journals, mut bytes) = (0, 0, 0);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        bytes += entry.metadata()?.len();
        segments += u32::from(name.ends_with(".native"));
        journals += u32::from(name.ends_with(".open"));
    }
    Ok(format!("a log of {} MiB: {segments} segments, {journals} journal files; warm in the page cache", bytes >> 20))
}

/// Writes `bytes` of segments, and keeps a copy of every journal file that was filled on the way until there are as many bytes of those.
fn write(dir: &Path, copies: &Path, bytes: u64) -> Result<u64, Box<dyn std::error::Error>> {
    let (mut journal, mut sealer, ..) = ShareLog::open(settings(dir, 1))?;
    let session = Dimension::session(&SessionRecord {
        session: 1,
        extranonce1: 1,
        net: 0,
        extranonce2_bytes: 8,
        started_us: START_US,
        peer: "127.0.0.1:1".into(),
        agent: "recovery".into(),
    })?;
    let worker = Dimension::worker(&WorkerRecord { worker: WorkerId(7), seen_us: START_US, session: 1, name: "worker.1".into() })?;
    journal.append(&[session, worker], &[])?;
    let (mut rows, mut copied, mut file) = (0u64, 0u64, 0u64);
    while rows * 85 < bytes || copied < bytes {
        let batch: Vec<ShareRow> = (rows..rows + BATCH as u64)
            .map(|row| ShareRow {
                worker: 7,
                work: 4_295_032_833,
                extranonce2: row,
                arrival_us: START_US + row,
                session: 1,
                job: 0,
                nonce: row as u32,
                ntime: 1_795_248_000,
                version: 0x2000_0000,
                share_difficulty: 1.5,
                latency_us: 20,
                status: 1,
                flags: 0,
                net: 0,
                coin: 0,
            })
            .collect();
        while journal.append(&[], &batch).is_err() {
            sealer.step(START_US)?;
        }
        rows += BATCH as u64;
        if journal.position() >> 32 != file {
            // The file before is full, and this thread has not let the sealer read it yet.
            if file > 0 && copied < bytes {
                copied += copy_journal(dir, copies, file as u32)?;
            }
            file = journal.position() >> 32;
            while sealer.step(START_US)? == SealStep::Worked {}
        }
    }
    drop(journal);
    sealer.drain(START_US)?;
    std::fs::copy(dir.join("dimensions.log"), copies.join("dimensions.log"))?;
    Ok(rows)
}

/// Copies the journal file of this number under a name of its own. Its number stands at byte 12 of its header.
fn copy_journal(dir: &Path, copies: &Path, number: u32) -> Result<u64, Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "open") {
            let mut front = [0u8; 16];
            std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(&path)?, &mut front, 0)?;
            if front.ends_with(&number.to_le_bytes()) {
                return Ok(std::fs::copy(&path, copies.join(format!("journal-{number:06}.open")))?);
            }
        }
    }
    Err(format!("journal file {number} is not in {}", dir.display()).into())
}
