//! What a share takes on disk in each row layout, plain and packed, and what packing and unpacking it takes, as one JSON line per figure: `cargo run --release -p otedama-sharelog --example bytes [-- SHARES_PER_S WORKERS SECONDS [FOLDER]]`;
//! `cargo xtask figures log` keeps them.
//!
//! The shares are those of a farm: every worker as likely as any other, 1 in 100 refused, nonces, hashes and extranonces without a pattern, four version bits rolled. Bytes are of
//! `.native` or `.native.zst` and `.meta` together, per share and not per row, so that sums stand beside rows. Times are of the thread's CPU, reading and writing files included.
use otedama_primitives::{Dimension, Hash256, RunId, SessionRecord, ShareRow, ShareStatus, WorkerId, WorkerRecord};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{Layout, LogSettings, PackStep, SealStep, ShareLog, verify};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;

const START_US: u64 = 1_795_248_000_000_000;

/// A number that looks random, the same for the same input (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Nanoseconds of CPU that this thread has used.
fn cpu_ns() -> u64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

struct Farm {
    shares_per_s: u64,
    workers: u64,
    seconds: u64,
}

impl Farm {
    fn share(&self, number: u64) -> (ShareRow, Hash256) {
        let (one, two) = (mixed(number * 2), mixed(number * 2 + 1));
        let is_refused = one.is_multiple_of(100);
        let mut hash = [0u8; 32];
        for (word, bytes) in hash.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&mixed(one ^ word as u64).to_le_bytes());
        }
        // Difficulty 1024 and above: 42 bits of zeros.
        hash[27..].fill(0);
        let row = ShareRow {
            worker: mixed(1 + two % self.workers),
            work: 4_398_113_619_968,
            extranonce2: number / self.workers,
            arrival_us: START_US + number * 1_000_000 / self.shares_per_s,
            session: 1 + (two % self.workers) as u32,
            job: 1 + (number / self.shares_per_s / 30) as u32,
            nonce: one as u32,
            ntime: ((START_US / 1_000_000) + number / self.shares_per_s) as u32,
            version: 0x2000_0000 | (((one >> 32) as u32 & 0xf) << 13),
            share_difficulty: 1024.0 / ((two >> 40) as f32 / (1u64 << 24) as f32).max(1e-6),
            latency_us: 10 + (one >> 58) as u32,
            status: if is_refused { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
            flags: 0,
            net: 0,
            coin: 0,
        };
        (row, Hash256(hash))
    }

    fn measure(&self, folder: &Path, layout: Layout) -> Result<(), Box<dyn std::error::Error>> {
        let settings = LogSettings {
            dir: folder.to_path_buf(),
            pool: "bytes".into(),
            run: RunId::new(1, 1),
            segment_rows: 524_288,
            seal_after_ms: 600_000,
            max_bytes: 1 << 40,
            journal_file_bytes: 32 << 20,
            keep_ms: 1 << 45,
            keep_shipped_ms: 0,
            has_cursor: false,
            layout,
            rolls_up_when_full: false,
        };
        let (mut journal, mut sealer, ..) = ShareLog::open(settings)?;
        let mut packer = sealer.take_packer(1000).ok_or("no packer")?;
        let mut names = Vec::new();
        for worker in 1..=self.workers {
            let session = worker as u32;
            names.push(Dimension::session(&SessionRecord {
                session,
                extranonce1: session,
                net: 0,
                extranonce2_bytes: 8,
                started_us: START_US,
                peer: "127.0.0.1:1".into(),
                agent: "bytes".into(),
            })?);
            let record = WorkerRecord { worker: WorkerId(mixed(worker)), seen_us: START_US, session, name: format!("farm.rig{worker}") };
            names.push(Dimension::worker(&record)?);
        }
        let shares = self.shares_per_s * self.seconds;
        let (mut rows, mut hashes) = (Vec::new(), Vec::new());
        for first in (0..shares).step_by(512) {
            while journal.room_cells() < 2048 {
                sealer.step(START_US)?;
            }
            for records in std::mem::take(&mut names).chunks(64) {
                journal.append(records, &[])?;
                while sealer.step(START_US)? == SealStep::Worked {}
            }
            rows.clear();
            hashes.clear();
            for number in first..shares.min(first + 512) {
                let (row, hash) = self.share(number);
                rows.push(row);
                hashes.push(hash);
            }
            journal.append_hashed(&[], &rows, if layout == Layout::Full { &hashes } else { &[] })?;
        }
        drop(journal);
        sealer.drain(START_US)?;
        let store = SegmentStore::open(folder)?;
        let (mut raw, mut rows, mut counted) = (0u64, 0u64, 0u64);
        for meta in store.segments()? {
            let native = store.native_path(&meta);
            raw += native.metadata()?.len() + native.with_extension("meta").metadata()?.len();
            rows += u64::from(meta.rows);
            counted += meta.shares();
        }
        let report = verify::verify(folder, None)?;
        assert_eq!((counted, report.by_status.iter().sum::<u64>()), (shares, shares), "every share is in a row or a sum");
        let conditions =
            format!("{} shares/s of {} workers for {} s, 1 in 100 refused, {rows} rows", self.shares_per_s, self.workers, self.seconds);
        let label = layout.label();
        let shape = format!("{}_per_s_{}_workers", self.shares_per_s, self.workers);
        println!(
            r#"{{"name":"segment_bytes_per_share_{label}_{shape}","value":{:.3},"unit":"B/share","counted":"bytes of .native and .meta files per share","conditions":"{conditions}"}}"#,
            raw as f64 / shares as f64
        );
        println!(
            r#"{{"name":"segment_rows_per_share_{label}_{shape}","value":{:.5},"unit":"rows/share","counted":"rows of the segments over the shares that they stand for","conditions":"{conditions}"}}"#,
            rows as f64 / shares as f64
        );
        // An hour later everything is cold. The order is there before the packer looks, so nothing waits in its time.
        let (mut pack_ns, mut packed_segments) = (0, 0);
        for now_us in (START_US + 3_600_000_000..).step_by(2_000_000) {
            while sealer.step(now_us)? == SealStep::Worked {}
            let before = cpu_ns();
            if packer.step(|| true)? != PackStep::Worked {
                break;
            }
            pack_ns += cpu_ns() - before;
            packed_segments += 1;
        }
        let (mut packed, mut unpack_ns, mut block) = (0u64, 0, Vec::new());
        for meta in store.segments()? {
            let file = store.native_path(&meta).with_extension("native.zst");
            packed += file.metadata()?.len() + store.native_path(&meta).with_extension("meta").metadata()?.len();
            let before = cpu_ns();
            assert!(store.read_native(&meta, &mut block)?, "it is there");
            unpack_ns += cpu_ns() - before;
            packed_segments -= 1;
        }
        assert_eq!(packed_segments, 0, "every segment is packed once");
        println!(
            r#"{{"name":"cold_segment_bytes_per_share_{label}_{shape}","value":{:.3},"unit":"B/share","counted":"bytes of .native.zst and .meta files per share","conditions":"{conditions}"}}"#,
            packed as f64 / shares as f64
        );
        for (name, ns, counted) in [
            ("pack", pack_ns, "CPU time of the packer per row: read, compress, write, read back and compare, sync"),
            ("unpack", unpack_ns, "CPU time per row to read a cold segment into memory, checksums included"),
        ] {
            println!(
                r#"{{"name":"cold_segment_{name}_ns_per_row_{label}_{shape}","value":{:.1},"unit":"ns/row","counted":"{counted}","conditions":"{conditions}"}}"#,
                ns as f64 / rows as f64
            );
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).map(|text| text.parse::<u64>()).transpose();
    let base = arguments.get(3).map_or_else(std::env::temp_dir, Into::into);
    let farms = match (number(0)?, number(1)?, number(2)?) {
        (Some(shares_per_s), Some(workers), Some(seconds)) => vec![(shares_per_s, workers, seconds)],
        // What rows take hangs on nothing; what sums take, on the shares of a worker in a second.
        _ => vec![(100_000, 1000, 10), (100_000, 10_000, 10), (1_000_000, 10_000, 2)],
    };
    for (shares_per_s, workers, seconds) in farms {
        for layout in Layout::ALL {
            let folder = base.join(format!("otedama-bytes-{}-{}", std::process::id(), layout.label()));
            let measured = Farm { shares_per_s, workers, seconds }.measure(&folder, layout);
            std::fs::remove_dir_all(&folder)?;
            measured?;
        }
    }
    Ok(())
}
