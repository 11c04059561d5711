//! A real share log in a temporary folder, with as many segments as a test asks for.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use otedama_primitives::{Coin, Dimension, Hash256, RunId, SessionRecord, ShareRow, ShareStatus, Target, WorkerId, WorkerRecord};
use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore};
use otedama_sharelog::{
    BlockRecord, BlockStatus, Disk, JobRecord, Journal, Layout, LogSettings, PackStep, Registry, RunRecord, Sealer, ShareLog,
};
use std::path::Path;
use std::sync::Arc;

pub const FIRST_US: u64 = 1_795_218_379_000_000;

pub struct Log {
    folder: tempfile::TempDir,
    journal: Journal,
    sealer: Sealer<Disk>,
    pub registry: Arc<Registry>,
    run: RunId,
    layout: Layout,
    rows: u64,
}

impl Log {
    /// An empty log: a run and its first job are recorded, nothing is sealed.
    pub fn new() -> Self {
        Self::of(Layout::Replayable)
    }

    /// As `new`, with rows of this layout.
    pub fn of(layout: Layout) -> Self {
        Self::behind(layout, 0)
    }

    /// As `of`, in a folder whose segments up to this one are gone, though somebody's cursor has passed them.
    pub fn behind(layout: Layout, passed: u32) -> Self {
        // In memory where there is such a place: the log fsyncs, and these tests are not about disks.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a temporary folder");
        if passed > 0 {
            let cursor = Cursor::open(folder.path(), "somebody").expect("a cursor");
            cursor.store(CursorPosition { segment: passed, dimensions: 0 }).expect("stored");
        }
        let run = RunId::new(7, 0x00ab_cdef);
        let settings = LogSettings {
            dir: folder.path().to_path_buf(),
            pool: "otedama".into(),
            run,
            segment_rows: 524_288,
            seal_after_ms: 600_000,
            max_bytes: 1 << 30,
            journal_file_bytes: 1 << 20,
            keep_ms: 1 << 40,
            keep_shipped_ms: 1 << 40,
            has_cursor: true,
            layout,
            rolls_up_when_full: false,
        };
        let (journal, sealer, registry, _) = ShareLog::open(settings).expect("the log opens");
        let log = Self { folder, journal, sealer, registry, run, layout, rows: 0 };
        log.registry
            .run(&RunRecord {
                run,
                started_us: FIRST_US,
                build: "test\tbuild".into(),
                kernel: "scalar".into(),
                driver: "mio".into(),
                tier: "process".into(),
                pool: "otedama".into(),
            })
            .expect("run");
        log.registry.job(&log.job(1)).expect("job");
        log
    }

    pub fn job(&self, counter: u32) -> JobRecord {
        JobRecord {
            job: self.run.job(counter),
            wire_id: 0xdead_0000 + counter,
            coin: Coin::Bitcoin,
            height: 900_000,
            prev_hash: Hash256([7; 32]),
            version: 0x2000_0000,
            nbits: 0x1d00_ffff,
            ntime: 1_795_218_379,
            ntime_min: 1_795_210_000,
            coinbase_prefix: vec![1, 2, 3],
            coinbase_suffix: vec![4, 5],
            branch: vec![Hash256([1; 32]), Hash256([2; 32])],
            extranonce2_bytes: 8,
            network_target: Target([1, 2, 3, 4]),
            clean: true,
            created_us: FIRST_US,
        }
    }

    pub fn block(&self, status: BlockStatus) -> BlockRecord {
        BlockRecord {
            job: self.run.job(1),
            height: 900_000,
            hash: Hash256([9; 32]),
            worker: WorkerId(1),
            session: self.run.session(1),
            found_us: FIRST_US,
            status,
            reason: String::new(),
        }
    }

    /// Appends `rows` rows of this work, with session and worker before them, and seals them as one segment.
    pub fn segment(&mut self, rows: u32, work: u64) {
        self.segment_of(rows, |number| row(number, work));
    }

    /// As `segment`, with rows made from their numbers in the log.
    pub fn segment_of(&mut self, rows: u32, row: impl Fn(u64) -> ShareRow) {
        let session = SessionRecord {
            session: 1,
            extranonce1: 0x0102_0304,
            net: 0,
            extranonce2_bytes: 8,
            started_us: FIRST_US,
            peer: "127.0.0.1:4000".into(),
            agent: "test\\agent\n".into(),
        };
        let worker = WorkerRecord { worker: WorkerId(1), seen_us: FIRST_US, session: 1, name: "account.rig1".into() };
        let mut dimensions = vec![Dimension::session(&session).expect("fits"), Dimension::worker(&worker).expect("fits")];
        let mut left = rows;
        while left > 0 {
            let count = left.min(512);
            while self.journal.room_cells() < 600 {
                self.sealer.step(FIRST_US).expect("the sealer makes room");
            }
            let batch: Vec<_> = (self.rows..self.rows + u64::from(count)).map(&row).collect();
            self.rows += u64::from(count);
            let hashes: Vec<_> = batch.iter().map(|row| Hash256([row.nonce as u8; 32])).collect();
            let hashes = if self.layout == Layout::Full { &hashes[..] } else { &[] };
            self.journal.append_hashed(&dimensions, &batch, hashes).expect("there is room");
            dimensions.clear();
            left -= count;
        }
        self.sealer.drain(FIRST_US).expect("sealed");
    }

    /// Appends a row per work, evenly over the minute, and seals them; arrival starts behind what was appended before.
    pub fn minute(&mut self, works: &[u64], minute_us: u64) {
        for (batch, chunk) in works.chunks(512).enumerate() {
            while self.journal.room_cells() < 600 {
                self.sealer.step(FIRST_US).expect("the sealer makes room");
            }
            let rows: Vec<_> = chunk
                .iter()
                .enumerate()
                .map(|(index, &work)| {
                    let position = (batch * 512 + index) as u64;
                    let row = row(self.rows, work);
                    self.rows += 1;
                    ShareRow {
                        arrival_us: minute_us + position * 60_000_000 / works.len() as u64,
                        status: ShareStatus::Accepted as u8,
                        ..row
                    }
                })
                .collect();
            self.journal.append(&[], &rows).expect("there is room");
        }
        self.sealer.drain(FIRST_US).expect("sealed");
    }

    /// Compresses every segment that the cursors have passed, whatever its age.
    pub fn pack(&mut self) {
        let mut packer = self.sealer.take_packer(0).expect("once");
        for now_us in (FIRST_US + 3_600_000_000..).step_by(2_000_000) {
            self.sealer.step(now_us).expect("step");
            if packer.step(|| true).expect("packed") != PackStep::Worked {
                break;
            }
        }
    }

    /// Writes what the sealer has not synced yet, such as records without a segment.
    pub fn sync(&self) {
        self.registry.sync().expect("synced");
    }

    /// Ends the writer; what it wrote stays as long as what this returns.
    pub fn close(self) -> tempfile::TempDir {
        self.folder
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> SegmentStore {
        SegmentStore::open(self.dir()).expect("the folder is there")
    }
}

/// The row of this number: three workers, one in ten stale.
pub fn row(number: u64, work: u64) -> ShareRow {
    ShareRow {
        worker: 1 + number % 3,
        work,
        extranonce2: number,
        arrival_us: FIRST_US + number * 100,
        session: 1,
        job: 1,
        nonce: number as u32,
        ntime: 1_795_218_379,
        version: 0x2000_0000,
        share_difficulty: 1.5,
        latency_us: 20,
        status: if number.is_multiple_of(10) { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
        flags: u8::from(number == 5),
        net: 0,
        coin: Coin::Bitcoin as u8,
    }
}
