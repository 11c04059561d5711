//! The sealer: reads the journal, writes segments, recycles files, keeps spares and applies retention. It runs on the control core, a bounded piece of work per step.
use crate::cold::{PackOrders, Packed, Packer, new_packer};
use crate::dimensions::DimensionLog;
use crate::ends::EarlierRuns;
use crate::error::LogError;
use crate::folder::{self, WriterLock, seg_of};
use crate::journal::JournalFile;
use crate::journal_format::{CELL, COMMITTED_END_OFFSET, Cell, FIRST_CELL, JournalHeader, Parsed, committed_end, parse, row_sequence};
use crate::layout::Layout;
use crate::log::{LogCounters, LogSettings, Trouble};
use crate::mapping::{MappedFile, memory_file};
use crate::segment::{LoggedRow, SEGMENT_ROWS_MAX, SegmentMeta, segment_name, utc_day};
use crate::segment_rows::SegmentRows;
use crate::segment_writer::DIRECT_FROM_BYTES;
use crate::storage::{Disk, Storage};
use crate::store::{self, meta_path, packed_path, plain_path};
use crate::sync::{DiskFile, SyncFile, Syncer, preamble};
use bytemuck::Zeroable;
use otedama_killpoint::pass;
use otedama_primitives::{Coin, ShareRow, ShareStatus, flags};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

/// Spare journal files wanted, those included that come back with the next segment.
const SPARES_WANTED: usize = 3;
/// Below this many spares a new file is made at once; above `SPARES_KEPT` a file that comes back is removed.
const SPARES_MIN: usize = 2;
const SPARES_KEPT: usize = 4;
/// Size of the first file of a run: 65,000 rows, by which time the sealer has made others.
const FIRST_FILE_BYTES: u64 = 4 << 20;
/// Room of the rings between journal and sealer: every journal file there is at once.
pub(crate) const FILES_MAX: usize = 64;
/// Cells read at a time.
const READ_CELLS: u32 = 1 << 14;
/// How often the folder is looked at for cursors and age.
const RETENTION_EVERY_US: u64 = 1_000_000;
/// A follower that is behind takes ten segments a second at the most: each that waits for it is worth a tenth of a second of rows in the next one, up to ten seconds.
const SEAL_LATER_PER_WAITING_US: u64 = 100_000;
const SEAL_LATER_US: u64 = 10_000_000;
/// So many waiting are no delay yet.
const WAITING_FEW: u64 = 10;
/// What a segment takes beside its values: headers and meta.
const SEGMENT_EXTRA_BYTES: u64 = 2 << 10;
/// Segments of a journal file beside those of so many rows as a segment takes: its end, the end of a day, the clock, want of room.
const SEGMENTS_EXTRA: u64 = 4;
/// `when_full = "rollup"`: so great a part of `max_bytes`, its last, takes sums alone.
const SUMS_PART: u64 = 8;
/// So long after a disk was full rows are not tried again: sums stay.
const SUMS_AFTER_FULL_US: u64 = 60_000_000;
/// Pause before a segment that could not be packed is tried again.
const PACK_AGAIN_US: u64 = 60_000_000;
/// Pause before a full disk is tried again.
const FULL_RETRY_US: u64 = 250_000;

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SealStep {
    /// Nothing was to do: sleep some milliseconds.
    Idle,
    /// Work was done and more may wait.
    Worked,
}

/// A journal file that the sealer reads, by pread: never through the mapping. In tier `disk` `file` is the memory that the log stage writes, and the sync thread writes the disk.
pub(crate) struct Source {
    pub(crate) header: JournalHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// First cell not read.
    pub(crate) cell: u32,
    /// Rows of the batch at `cell` that are taken already.
    pub(crate) taken: u32,
    /// The journal has left it, or never used it: what is committed is all there will be.
    pub(crate) finished: bool,
    /// Written by an earlier process: its tail may hold a commit behind the committed end.
    pub(crate) leftover: bool,
    pub(crate) damaged: bool,
    /// Of a leftover of tier `disk`: behind this cell nothing was acknowledged, and a hole is where a power cut ended the file.
    pub(crate) durable_end: Option<u32>,
    pub(crate) map: Option<MappedFile>,
    /// Tier `disk`: the file at `path`, held open for the sync thread.
    pub(crate) disk: Option<DiskFile>,
}

impl Source {
    fn committed_end(&self) -> Result<Option<u32>, LogError> {
        let mut word = [0u8; 8];
        self.file.read_exact_at(&mut word, COMMITTED_END_OFFSET as u64).map_err(LogError::io("read", &self.path))?;
        Ok(committed_end(u64::from_le_bytes(word), self.header.file_number).filter(|&end| end <= self.header.cells))
    }
}

/// What happens with a row that carries `flags::BLOCK`.
type BlockRowAction = Box<dyn FnMut(&LoggedRow) + Send>;

/// A sealed segment, as retention needs it.
struct Sealed {
    seg: u64,
    rows: u64,
    /// Of the block as it lies there, packed or not.
    block_bytes: u64,
    meta_bytes: u64,
    last_us: u64,
    /// When every cursor was first seen behind it.
    passed_us: Option<u64>,
    /// Not to be packed before this moment; `u64::MAX` where it is packed, or damaged.
    pack_from_us: u64,
}

/// Seals journal ranges into segments; see the module's head. Made by `ShareLog::open`.
pub struct Sealer<S: Storage = Disk> {
    storage: Arc<S>,
    settings: LogSettings,
    epoch: u32,
    counters: Arc<LogCounters>,
    dimensions: Arc<DimensionLog>,
    spares: rtrb::Producer<JournalFile>,
    full: rtrb::Consumer<JournalFile>,
    /// Tier `disk`: files on their way to the sync thread.
    sync_files: Option<rtrb::Producer<SyncFile>>,
    syncer: Option<Syncer<S>>,
    /// To be read, in order.
    sources: VecDeque<Source>,
    /// Read to the end, waiting for their rows to be sealed.
    read: VecDeque<Source>,
    next_file_number: u32,
    next_slot: u32,
    next_sequence: u32,
    /// Journal rows below are covered by segments.
    covered: u64,
    open: SegmentRows,
    opened_us: u64,
    /// The open segment must be sealed before another row is read.
    must_seal: bool,
    buffer: Vec<Cell>,
    sealed: VecDeque<Sealed>,
    sealed_loaded: bool,
    /// Segments that the slowest cursor has not passed.
    waiting: u64,
    sealed_bytes: u64,
    retention_us: u64,
    full_since_us: Option<u64>,
    /// When the disk was found full, last.
    last_full_us: Option<u64>,
    packing: Option<PackOrders>,
    on_block_row: Option<BlockRowAction>,
    /// Until the jobs that earlier runs left open have their ends.
    earlier: Option<EarlierRuns>,
    lock: Arc<WriterLock>,
}

/// What `ShareLog::open` hands to the sealer.
pub(crate) struct SealerParts<S: Storage> {
    pub(crate) storage: Arc<S>,
    pub(crate) settings: LogSettings,
    pub(crate) epoch: u32,
    pub(crate) counters: Arc<LogCounters>,
    pub(crate) dimensions: Arc<DimensionLog>,
    pub(crate) spares: rtrb::Producer<JournalFile>,
    pub(crate) full: rtrb::Consumer<JournalFile>,
    pub(crate) sync: Option<(rtrb::Producer<SyncFile>, Syncer<S>)>,
    pub(crate) leftovers: VecDeque<Source>,
    pub(crate) next_file_number: u32,
    pub(crate) next_slot: u32,
    pub(crate) next_sequence: u32,
    pub(crate) covered: u64,
    pub(crate) ends_from: u64,
    /// Bytes of segments and their metas.
    pub(crate) sealed_bytes: u64,
    pub(crate) lock: Arc<WriterLock>,
}

impl<S: Storage> Sealer<S> {
    pub(crate) fn new(parts: SealerParts<S>) -> Self {
        let (sync_files, syncer) = parts.sync.unzip();
        let earlier = EarlierRuns::new(parts.settings.run.prefix(), parts.ends_from, parts.dimensions.end());
        Self {
            storage: parts.storage,
            settings: parts.settings,
            epoch: parts.epoch,
            counters: parts.counters,
            dimensions: parts.dimensions,
            spares: parts.spares,
            full: parts.full,
            sync_files,
            syncer,
            sources: parts.leftovers,
            read: VecDeque::new(),
            next_file_number: parts.next_file_number,
            next_slot: parts.next_slot,
            next_sequence: parts.next_sequence,
            covered: parts.covered,
            open: SegmentRows::default(),
            opened_us: 0,
            must_seal: false,
            buffer: Vec::new(),
            sealed: VecDeque::new(),
            sealed_loaded: false,
            waiting: 0,
            sealed_bytes: parts.sealed_bytes,
            retention_us: 0,
            full_since_us: None,
            last_full_us: None,
            packing: None,
            on_block_row: None,
            earlier: Some(earlier),
            lock: parts.lock,
        }
    }

    /// Calls `action` with every row that carries `flags::BLOCK`, once per process: chain looks for candidates that did not reach it over their ring.
    pub fn on_block_row(&mut self, action: impl FnMut(&LoggedRow) + Send + 'static) {
        self.on_block_row = Some(Box::new(action));
    }

    /// The sync thread's work: Some once, in a log that was opened with `ShareLog::open_synced`. Without it nothing of that log is ever acknowledged.
    pub fn take_sync(&mut self) -> Option<Syncer<S>> {
        self.syncer.take()
    }

    /// The work of packing segments that every cursor has passed and whose last row is so old: once, for a thread of its own. Without it segments stay as they are.
    pub fn take_packer(&mut self, after_ms: u64) -> Option<Packer<S>> {
        if self.packing.is_some() {
            return None;
        }
        let (orders, packer) =
            new_packer(self.storage.clone(), &self.settings.dir, self.counters.clone(), self.lock.clone(), after_ms.saturating_mul(1000));
        self.packing = Some(orders);
        Some(packer)
    }

    /// The counters, shared with the stats page.
    pub fn counters(&self) -> &Arc<LogCounters> {
        &self.counters
    }

    /// Does one bounded piece of work: reads up to a megabyte of journal, or seals one segment, or makes one file ready. A full disk is no error: it shows in
    /// `LogCounters::log_full` and passes when space returns. After an error nothing is lost: call again after a pause.
    pub fn step(&mut self, now_us: u64) -> Result<SealStep, LogError> {
        let mut step = self.try_step(now_us);
        if let Err(error) = &step
            && error.is_disk_full()
        {
            self.full_since_us = Some(now_us);
            self.last_full_us = Some(now_us);
            self.counters.log_full.store(true, Relaxed);
            self.counters.trouble(Trouble::Sealing, Some(error));
            // Retention may free what is needed.
            step = self.retain(now_us).map(|()| SealStep::Idle);
        } else if step.is_ok() && self.full_since_us.is_none() {
            self.counters.trouble(Trouble::Sealing, None);
        }
        if let Err(error) = &step {
            self.counters.trouble(Trouble::Sealing, Some(error));
        }
        step
    }

    fn try_step(&mut self, now_us: u64) -> Result<SealStep, LogError> {
        self.receive();
        let mut worked = false;
        if self.must_seal || (self.open.rows() > 0 && (self.is_due(now_us) || self.holds_files_up())) {
            if self.waits_for_space(now_us) {
                return Ok(SealStep::Idle);
            }
            self.seal(now_us)?;
            worked = true;
        } else {
            worked |= self.read_some(now_us)?;
        }
        worked |= self.release()?;
        worked |= self.keep_spares(now_us)?;
        worked |= self.end_jobs_of_earlier_runs()?;
        self.hear_packer(now_us);
        if now_us.saturating_sub(self.retention_us) >= RETENTION_EVERY_US {
            self.retain(now_us)?;
        }
        Ok(if worked { SealStep::Worked } else { SealStep::Idle })
    }

    /// Seals everything that is committed. Call it when the log stage has stopped and its `Journal` is dropped or idle.
    pub fn drain(&mut self, now_us: u64) -> Result<(), LogError> {
        loop {
            self.receive();
            if self.must_seal {
                self.seal(now_us)?;
            }
            if !self.read_some(now_us)? {
                break;
            }
        }
        if self.open.rows() > 0 {
            self.seal(now_us)?;
        }
        self.dimensions.sync()?;
        self.release()?;
        while self.end_jobs_of_earlier_runs()? {}
        self.retain(now_us)
    }

    /// A piece of it, once no row of an earlier run waits for its segment. True while there is more.
    fn end_jobs_of_earlier_runs(&mut self) -> Result<bool, LogError> {
        let Some(earlier) = self.earlier.as_mut() else { return Ok(false) };
        if self.sources.iter().chain(&self.read).any(|source| source.leftover) {
            return Ok(false);
        }
        let more = earlier.step(&self.settings.dir, &self.dimensions)?;
        if !more {
            self.earlier = None;
        }
        Ok(more)
    }

    /// How long rows may wait for their segment: as set, or longer while a follower catches up. Segments sealed faster than it may take them would never end.
    fn seal_after_us(&self) -> u64 {
        let later_us = if self.waiting > WAITING_FEW { (self.waiting * SEAL_LATER_PER_WAITING_US).min(SEAL_LATER_US) } else { 0 };
        self.settings.seal_after_ms.saturating_mul(1000).max(later_us)
    }

    /// Whether the rows in hand are a segment by the clock. Where `max_bytes` is all but used up they wait for more: a meta for every few rows is what it has no room for. They
    /// do not where one segment is all there is, as it goes only when there is another.
    fn is_due(&self, now_us: u64) -> bool {
        now_us.saturating_sub(self.opened_us) >= self.seal_after_us()
            && (self.sealed.len() <= 1 || self.committed() + SEGMENT_EXTRA_BYTES <= self.settings.max_bytes)
    }

    /// Whether journal files wait for the rows in hand alone while another one has no room: those rows are a segment now, be they ever so few.
    fn holds_files_up(&self) -> bool {
        !self.read.is_empty() && !self.wants_no_spare() && !self.has_room_for(self.settings.journal_file_bytes)
    }

    fn waits_for_space(&self, now_us: u64) -> bool {
        self.full_since_us.is_some_and(|since| now_us.saturating_sub(since) < FULL_RETRY_US)
    }

    fn space_returned(&mut self) {
        self.full_since_us = None;
        self.look_if_full();
    }

    /// Takes back the files that the journal has filled.
    fn receive(&mut self) {
        // An abandoned ring is looked at before it is emptied: what comes out then is all there will ever be.
        let journal_gone = self.full.is_abandoned();
        while let Ok(file) = self.full.pop() {
            if let Some(source) = self.sources.iter_mut().find(|source| source.header.file_number == file.number) {
                source.finished = true;
                source.map = Some(file.map);
            }
        }
        if journal_gone {
            self.sources.iter_mut().for_each(|source| source.finished = true);
        }
        self.counters.journal_spares.store(self.spares_ready() as u64, Relaxed);
    }

    fn spares_ready(&self) -> usize {
        FILES_MAX.saturating_sub(self.spares.slots())
    }

    fn keep_spares(&mut self, now_us: u64) -> Result<bool, LogError> {
        // Making a file costs a page fault per 4 KiB: files that wait for their rows to be sealed count as spares, while there is no hurry.
        if self.wants_no_spare() || self.waits_for_space(now_us) || self.spares.is_abandoned() {
            return Ok(false);
        }
        if self.sources.len() + self.read.len() >= FILES_MAX - 1 || !self.sync_has_room() {
            return Ok(false);
        }
        if !self.has_room_for(self.settings.journal_file_bytes) {
            if now_us.saturating_sub(self.retention_us) >= FULL_RETRY_US {
                self.retain(now_us)?;
            }
            if !self.has_room_for(self.settings.journal_file_bytes) {
                self.look_if_full();
                return Ok(false);
            }
        }
        self.make_spare(None, self.settings.journal_file_bytes)?;
        self.space_returned();
        Ok(true)
    }

    fn wants_no_spare(&self) -> bool {
        let ready = self.spares_ready();
        ready >= SPARES_MIN && ready + self.read.len() >= SPARES_WANTED
    }

    /// Full by `max_bytes`: files are wanted, and have no room. Full by the disk until something could be written.
    fn look_if_full(&self) {
        let is_over_max = self.spares_ready() < SPARES_MIN && !self.has_room_for(self.settings.journal_file_bytes);
        self.counters.log_full.store(is_over_max || self.full_since_us.is_some(), Relaxed);
    }

    /// False while the sync thread is a ring of files behind.
    fn sync_has_room(&self) -> bool {
        self.sync_files.as_ref().is_none_or(|files| files.slots() > 0)
    }

    /// Makes the file that the journal begins with: a small one, as making it ready is most of the time that opening a log takes.
    pub(crate) fn make_first(&mut self) -> Result<(), LogError> {
        let bytes = self.settings.journal_file_bytes.min(FIRST_FILE_BYTES);
        // A log that nobody follows makes room by itself; one that waits for its follower would grow by a file with every start.
        if self.settings.has_cursor && !self.has_room_for(bytes) {
            self.look_if_full();
            return Ok(());
        }
        self.make_spare(None, bytes)
    }

    /// Makes a file ready and hands it to the journal: a new one, or `recycled`, which has this size, under its next number.
    fn make_spare(&mut self, recycled: Option<Source>, bytes: u64) -> Result<(), LogError> {
        let cells = u32::try_from(bytes / CELL as u64).unwrap_or(u32::MAX);
        let header = JournalHeader {
            file_number: self.next_file_number,
            run_prefix: self.settings.run.prefix(),
            epoch: self.epoch,
            cells,
            sealed: self.next_sequence - 1,
            has_hashes: self.settings.layout == Layout::Full,
        };
        let is_synced = self.sync_files.is_some();
        let is_new = recycled.is_none();
        let (path, file, map, disk) = match recycled {
            Some(source) if is_synced => {
                // The header goes to memory; the sync thread brings it to the file. What an earlier run left has no memory yet.
                let (memory, map, disk) = match source.disk {
                    Some(disk) => (source.file, source.map, disk),
                    None => (reserve_memory(&source.path, bytes)?, None, Arc::new(Mutex::new(source.file))),
                };
                write_header(&memory, &source.path, &header)?;
                (source.path, memory, map, Some(disk))
            }
            Some(source) => {
                self.storage
                    .write_all_at(&source.file, 0, &header.preamble())
                    .map_err(LogError::io("write the header of", &source.path))?;
                (source.path, source.file, source.map, None)
            }
            None => {
                // Under another name until it is whole: a journal file without a header is damage, never a moment of its making.
                let temporary = self.settings.dir.join(format!("journal-{:06}.tmp", self.next_slot));
                let path = temporary.with_extension("open");
                let made = self.new_file(&temporary, &path, &header, bytes);
                if made.is_err() {
                    // Best effort: the next recovery removes it as well.
                    let _ = self.storage.remove(&temporary);
                }
                let file = made?;
                self.next_slot += 1;
                if is_synced {
                    let memory = reserve_memory(&path, bytes)?;
                    write_header(&memory, &path, &header)?;
                    (path, memory, None, Some(Arc::new(Mutex::new(file))))
                } else {
                    (path, file, None, None)
                }
            }
        };
        if !is_new {
            pass("sealer.file_recycled");
        }
        let map = match map {
            Some(map) => map,
            None => MappedFile::map(&file, bytes as usize).map_err(LogError::io("map", &path))?,
        };
        if let (Some(files), Some(disk)) = (self.sync_files.as_mut(), &disk) {
            // Before the journal can have it: the sync thread never meets a position in a file that it does not know.
            let memory = file.try_clone().map_err(LogError::io("share the memory of", &path))?;
            let handed_over = files.push(SyncFile { header, memory, disk: disk.clone(), path: path.clone(), is_new });
            if handed_over.is_err() {
                return Err(LogError::damaged(&path, "more journal files than the sync thread has room for"));
            }
        }
        if self.spares.push(JournalFile { map, number: header.file_number, cells }).is_err() {
            return Err(LogError::damaged(&path, "more journal files than the ring has room for"));
        }
        self.next_file_number += 1;
        self.sources.push_back(Source {
            header,
            path,
            file,
            cell: FIRST_CELL,
            taken: 0,
            finished: false,
            leftover: false,
            damaged: false,
            durable_end: None,
            map: None,
            disk,
        });
        self.counters.journal_spares.store(self.spares_ready() as u64, Relaxed);
        Ok(())
    }

    fn new_file(&self, temporary: &Path, path: &Path, header: &JournalHeader, bytes: u64) -> Result<File, LogError> {
        let file = self.storage.create(temporary).map_err(LogError::io("create", temporary))?;
        self.storage.fallocate(&file, bytes).map_err(LogError::io("fallocate", temporary))?;
        pass("sealer.file_allocated");
        let is_synced = self.sync_files.is_some();
        let front = if is_synced { preamble(header, FIRST_CELL) } else { header.preamble() };
        self.storage.write_all_at(&file, 0, &front).map_err(LogError::io("write the header of", temporary))?;
        self.storage.fsync(&file).map_err(LogError::io("fsync", temporary))?;
        pass("sealer.file_synced");
        self.storage.rename(temporary, path).map_err(LogError::io("rename", temporary))?;
        if is_synced {
            // Rows in a file without its name would be acknowledged and, after a power cut, be removed as a temporary file.
            self.storage.sync_folder(&self.settings.dir).map_err(LogError::io("fsync", &self.settings.dir))?;
        }
        pass("sealer.file_renamed");
        Ok(file)
    }

    /// Reads committed batches of the oldest unread file into the open segment. True when anything was read.
    fn read_some(&mut self, now_us: u64) -> Result<bool, LogError> {
        let Some(source) = self.sources.front_mut() else { return Ok(false) };
        self.open.reserve().map_err(LogError::io("take memory for the rows of", &source.path))?;
        if source.header.run_prefix != self.open.run_prefix && self.open.rows() > 0 {
            // One segment, one run: `instance` is constant in it.
            self.must_seal = true;
            return Ok(true);
        }
        self.open.run_prefix = source.header.run_prefix;
        if self.open.rows() == 0 {
            self.open.layout = self.settings.layout;
        }

        let known_end = source.committed_end()?;
        let cells = source.header.cells;
        // A live file is read to its committed end. Of a leftover, commits behind the end count too: one where the process was killed between two stores,
        // more where a power cut kept later pages. With a damaged end, whatever is valid counts
        // (of a live file the next append makes the end good again).
        let limit = match known_end {
            Some(_) if source.leftover => cells,
            Some(end) => end,
            None if source.finished => {
                source.damaged = true;
                cells
            }
            None => source.cell,
        };
        if source.cell >= limit {
            return self.finish_front();
        }
        let length = (limit - source.cell).min(READ_CELLS) as usize;
        self.buffer.resize(READ_CELLS as usize, Cell::zeroed());
        let Some(buffer) = self.buffer.get_mut(..length) else { return Ok(false) };
        source
            .file
            .read_exact_at(bytemuck::cast_slice_mut(buffer), u64::from(source.cell) * CELL as u64)
            .map_err(LogError::io("read", &source.path))?;
        let reaches_limit = source.cell + length as u32 == limit;
        let mut at = 0usize;
        while let Some(cells_left) = buffer.get(at..).filter(|cells| !cells.is_empty()) {
            let batch = match parse(cells_left, source.header.file_number) {
                Parsed::Batch(batch) => batch,
                // More of it comes with the next read. A batch is smaller than the buffer, so that read starts with it.
                Parsed::Incomplete if !reaches_limit => break,
                Parsed::Incomplete | Parsed::Nothing => {
                    let end_is_here = known_end.is_some_and(|end| source.cell + at as u32 >= end);
                    if end_is_here {
                        source.cell = limit;
                        return self.finish_front();
                    }
                    let cell = source.cell + at as u32;
                    if source.durable_end.is_some_and(|durable| cell >= durable) {
                        // Here a power cut ended the file: nothing from here on was acknowledged, and what names the rows behind may have gone with the hole.
                        let cut = u64::from(known_end.unwrap_or(cell).saturating_sub(cell)) * CELL as u64;
                        self.counters.cut_bytes.fetch_add(cut, Relaxed);
                        source.cell = limit;
                        return self.finish_front();
                    }
                    // Damage below the committed end: go on at the next valid batch, keep the file for inspection.
                    source.damaged = true;
                    at += 1;
                    source.taken = 0;
                    continue;
                }
            };
            let batch_cells = 1 + batch.commit.cells();
            let batch_cell = source.cell + at as u32;
            let covered = self.covered.saturating_sub(row_sequence(source.header.file_number, batch.commit.first_row));
            let skip = u32::try_from(covered).unwrap_or(u32::MAX).max(source.taken).min(batch.commit.rows);
            if source.taken == 0 && (skip < batch.commit.rows || batch.commit.rows == 0) {
                for dimension in batch.dimension_records() {
                    self.dimensions.queue(source.header.run_prefix, &dimension);
                }
            }
            let rows = batch.rows.get(skip as usize..).unwrap_or_default();
            let room = (self.settings.segment_rows as usize).saturating_sub(self.open.rows());
            let day = if self.open.rows() > 0 { Some(utc_day(self.open.last_us)) } else { rows.first().map(|row| utc_day(row.arrival_us)) };
            let mut take = rows.len().min(room);
            if let Some(day) = day
                && rows.last().is_some_and(|row| utc_day(row.arrival_us) != day)
            {
                take = rows.iter().take(take).take_while(|row| utc_day(row.arrival_us) == day).count();
            }
            let taken_rows = rows.get(..take).unwrap_or_default();
            if take > 0 && self.open.rows() == 0 {
                self.opened_us = now_us;
                self.counters.oldest_unsealed_us.store(rows.first().map_or(0, |row| row.arrival_us), Relaxed);
            }
            let hashes = batch.hashes_from(skip as usize);
            if taken_rows.iter().all(is_of_this_release) {
                self.open.extend(taken_rows, hashes, source.header.file_number, batch.commit.first_row + skip, batch_cell + batch_cells);
            } else {
                let known: Vec<ShareRow> = taken_rows.iter().map(of_this_release).collect();
                self.open.extend(&known, hashes, source.header.file_number, batch.commit.first_row + skip, batch_cell + batch_cells);
            }
            if let Some(action) = self.on_block_row.as_mut() {
                for (index, row) in taken_rows.iter().enumerate().filter(|(_, row)| row.flags & flags::BLOCK != 0) {
                    let sequence = batch.commit.first_row + skip + index as u32;
                    action(&LoggedRow::expand(row, batch.hash(skip as usize + index), source.header.run_prefix, sequence));
                }
            }
            if take < rows.len() || self.open.is_full(self.settings.segment_rows) {
                self.must_seal = true;
            }
            if take < rows.len() {
                source.taken = skip + take as u32;
                break;
            }
            source.taken = 0;
            at += batch_cells as usize;
            if self.must_seal {
                break;
            }
        }
        source.cell += at as u32;
        pass("sealer.batch_read");
        Ok(true)
    }

    /// The front source is read to its end: put it aside when it is finished. True when it was.
    fn finish_front(&mut self) -> Result<bool, LogError> {
        let finished = self.sources.front().is_some_and(|source| source.finished);
        if finished && let Some(source) = self.sources.pop_front() {
            self.read.push_back(source);
        }
        Ok(finished)
    }

    /// Seals the open segment; the fsync order is the proof: dimensions, block, meta, rename of the meta, rename of the block (the commit point), folder.
    fn seal(&mut self, now_us: u64) -> Result<(), LogError> {
        let seg = (u64::from(self.epoch) << 32) | u64::from(self.next_sequence);
        if self.settings.rolls_up_when_full {
            self.load_sealed()?;
            // A try that failed behind the commit point may have been read by a follower: it stays what it is.
            if self.open.layout != Layout::Rollup
                && self.is_short_of_room(self.open.block_bytes(), now_us)
                && !plain_path(&self.settings.dir, seg).exists()
            {
                self.open.roll_up();
            }
        }
        let result = self.write_segment(seg);
        if result.is_err() {
            // Whatever stands there is written anew, into new files: after a failed fsync the old pages prove nothing.
            for extension in ["native.tmp", "meta.tmp"] {
                let _ = self.storage.remove(&self.settings.dir.join(format!("{}.{extension}", segment_name(seg))));
            }
            self.must_seal = true;
        }
        let (meta, meta_bytes) = result?;
        self.next_sequence += 1;
        if self.settings.layout != Layout::Rollup {
            let is_rolled_up = meta.layout == Layout::Rollup;
            self.counters.rolled_up.store(is_rolled_up, Relaxed);
            self.counters.shares_rolled_up.fetch_add(if is_rolled_up { meta.shares() } else { 0 }, Relaxed);
        }
        self.covered = meta.journal_end();
        self.open.clear();
        self.must_seal = false;
        self.counters.oldest_unsealed_us.store(0, Relaxed);
        if meta.run_prefix == self.settings.run.prefix() {
            self.counters.rows_sealed_of_run.fetch_add(u64::from(meta.rows), Relaxed);
        }
        self.counters.segments_sealed.fetch_add(1, Relaxed);
        self.counters.rows_sealed.fetch_add(u64::from(meta.rows), Relaxed);
        self.load_sealed()?;
        self.remember(&meta, meta_bytes);
        self.full_since_us = None;
        if self.wanted_bytes() > self.settings.max_bytes {
            // Before files come back: what has gone makes room for them.
            self.retain(now_us)?;
        }
        self.release()?;
        self.look_if_full();
        Ok(())
    }

    fn write_segment(&mut self, seg: u64) -> Result<(SegmentMeta, u64), LogError> {
        let dir = &self.settings.dir;
        let dimensions_end = self.dimensions.sync()?;
        pass("seal.dimensions_synced");
        let (native, meta_file) = (plain_path(dir, seg), meta_path(dir, seg));
        let native_tmp = dir.join(format!("{}.native.tmp", segment_name(seg)));
        let meta_tmp = dir.join(format!("{}.meta.tmp", segment_name(seg)));

        let is_large = self.open.block_bytes() >= DIRECT_FROM_BYTES;
        let created =
            if is_large { self.storage.create_direct(&native_tmp) } else { self.storage.create(&native_tmp).map(|file| (file, false)) };
        let (file, is_direct) = created.map_err(LogError::io("create", &native_tmp))?;
        pass("seal.native_created");
        let meta = self.open.write(&*self.storage, &file, &native_tmp, is_direct, seg, dimensions_end)?;
        pass("seal.native_written");
        self.storage.fsync(&file).map_err(LogError::io("fsync", &native_tmp))?;
        pass("seal.native_synced");
        let text = meta.encode();
        let file = self.storage.create(&meta_tmp).map_err(LogError::io("create", &meta_tmp))?;
        self.storage.write_all_at(&file, 0, &text).map_err(LogError::io("write", &meta_tmp))?;
        pass("seal.meta_written");
        self.storage.fsync(&file).map_err(LogError::io("fsync", &meta_tmp))?;
        pass("seal.meta_synced");
        self.storage.rename(&meta_tmp, &meta_file).map_err(LogError::io("rename", &meta_tmp))?;
        pass("seal.meta_renamed");
        self.storage.rename(&native_tmp, &native).map_err(LogError::io("rename", &native_tmp))?;
        pass("seal.native_renamed");
        self.storage.sync_folder(dir).map_err(LogError::io("fsync", dir))?;
        pass("seal.folder_synced");
        Ok((meta, text.len() as u64))
    }

    /// `when_full = "rollup"`: whether a segment of so many bytes more would use room that is for sums, beside the journal files that are to be there, or the disk was full a moment
    /// ago.
    fn is_short_of_room(&self, more_bytes: u64, now_us: u64) -> bool {
        let for_rows = self.settings.max_bytes - self.settings.max_bytes / SUMS_PART;
        let was_full = self.last_full_us.is_some_and(|full_us| now_us.saturating_sub(full_us) < SUMS_AFTER_FULL_US);
        let files = (1 + SPARES_WANTED as u64) * file_cost(&self.settings, self.settings.journal_file_bytes);
        was_full || self.sealed_bytes + self.dimensions.end() + more_bytes + files > for_rows
    }

    /// Frees journal files whose rows are all sealed: back to the journal under a new number, or removed.
    fn release(&mut self) -> Result<bool, LogError> {
        let mut released = false;
        while let Some(source) = self.read.front() {
            let number = source.header.file_number;
            if self.open.ranges.iter().any(|range| range.file == number) {
                break;
            }
            // Dimensions without rows of their own must be safe before their only copy goes.
            self.dimensions.sync()?;
            let Some(source) = self.read.pop_front() else { break };
            released = true;
            if source.damaged {
                let aside = source.path.with_extension("damaged");
                self.storage.rename(&source.path, &aside).map_err(LogError::io("set aside", &source.path))?;
                self.counters.journals_damaged.fetch_add(1, Relaxed);
                continue;
            }
            let same_size = u64::from(source.header.cells) * CELL as u64 == self.settings.journal_file_bytes;
            if same_size
                && self.has_room_for(self.settings.journal_file_bytes)
                && self.spares_ready() < SPARES_KEPT
                && !self.spares.is_abandoned()
                && self.sync_has_room()
            {
                self.make_spare(Some(source), self.settings.journal_file_bytes)?;
            } else {
                self.storage.remove(&source.path).map_err(LogError::io("remove", &source.path))?;
            }
        }
        Ok(released)
    }

    /// Takes what the packer has done, and gives it the next segment at once.
    fn hear_packer(&mut self, now_us: u64) {
        let Some((seg, packed)) = self.packing.as_mut().and_then(PackOrders::outcome) else { return };
        if let Some(sealed) = self.sealed.iter_mut().find(|sealed| sealed.seg == seg) {
            sealed.pack_from_us = match packed {
                Packed::Done(bytes) => {
                    // The meta is what it was.
                    let saved = sealed.block_bytes.saturating_sub(bytes);
                    sealed.block_bytes -= saved;
                    self.sealed_bytes -= saved;
                    u64::MAX
                }
                Packed::Later => now_us + PACK_AGAIN_US,
                Packed::Never => u64::MAX,
            };
        }
        self.order_packing(now_us);
    }

    /// Gives the packer the oldest segment that is cold, if it has none.
    fn order_packing(&mut self, now_us: u64) {
        let Some(packing) = self.packing.as_ref().filter(|packing| packing.in_hand.is_none()) else { return };
        let is_cold = |sealed: &&Sealed| {
            sealed.passed_us.is_some()
                && now_us >= sealed.pack_from_us
                && now_us.saturating_sub(sealed.last_us) >= packing.after_us
                && sealed.block_bytes > 0
        };
        let cold = self.sealed.iter().find(is_cold).map(|sealed| (sealed.seg, sealed.block_bytes));
        // Without room for a second form it waits: what is cold may be deleted as well.
        if let Some((seg, bytes)) = cold
            && self.committed() + bytes <= self.settings.max_bytes
            && let Some(packing) = self.packing.as_mut()
        {
            packing.order(seg, bytes);
        }
    }

    /// Bytes that the folder occupies.
    fn bytes(&self) -> u64 {
        let journals: u64 = self.sources.iter().chain(&self.read).map(|source| u64::from(source.header.cells) * CELL as u64).sum();
        self.sealed_bytes + journals + self.dimensions.end()
    }

    /// What the folder occupies when everything that has a place in it by now has come: unread cells of journal files as rows of segments, which lie there before the file is
    /// freed, the segment in hand, and the second form of one that is being packed.
    fn committed(&self) -> u64 {
        let unread: u64 = self.sources.iter().map(|source| u64::from(source.header.cells.saturating_sub(source.cell))).sum();
        self.bytes()
            + sealed_at_most(&self.settings, unread)
            + self.open.block_bytes()
            + (self.sources.len() + self.read.len()) as u64 * SEGMENTS_EXTRA * SEGMENT_EXTRA_BYTES
            + self.packing.as_ref().map_or(0, |packing| packing.in_hand_bytes)
    }

    /// What it occupies with the spare files that are still wanted.
    fn wanted_bytes(&self) -> u64 {
        let wanted = SPARES_WANTED.saturating_sub(self.spares_ready() + self.read.len()) as u64;
        self.committed() + wanted * file_cost(&self.settings, self.settings.journal_file_bytes)
    }

    fn has_room_for(&self, file_bytes: u64) -> bool {
        self.committed() + file_cost(&self.settings, file_bytes) <= self.settings.max_bytes
    }

    fn remember(&mut self, meta: &SegmentMeta, meta_bytes: u64) {
        if self.sealed.back().is_some_and(|last| last.seg == meta.seg) {
            return;
        }
        self.sealed_bytes += meta.native_bytes + meta_bytes;
        self.sealed.push_back(Sealed {
            seg: meta.seg,
            rows: u64::from(meta.rows),
            block_bytes: meta.native_bytes,
            meta_bytes,
            last_us: meta.last_us,
            passed_us: None,
            pack_from_us: 0,
        });
    }

    /// Reads what earlier processes sealed: once, in the background.
    fn load_sealed(&mut self) -> Result<(), LogError> {
        if self.sealed_loaded {
            return Ok(());
        }
        let listing = folder::list(&self.settings.dir)?;
        let mut sealed_bytes = 0;
        for (&key, files) in listing.segments.iter().filter(|(_, files)| files.has_block()) {
            let seg = seg_of(key);
            let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            let block = if files.native { plain_path(&self.settings.dir, seg) } else { packed_path(&self.settings.dir, seg) };
            let (block_bytes, meta_bytes) = (size(&block), size(&meta_path(&self.settings.dir, seg)));
            sealed_bytes += block_bytes + meta_bytes;
            // Damaged metas are for verify to tell; here such a segment is kept until max_bytes.
            let meta = if files.meta { store::read_meta(&self.settings.dir, seg).ok().flatten() } else { None };
            self.sealed.push_back(Sealed {
                seg,
                rows: meta.as_ref().map_or(0, |meta| u64::from(meta.rows)),
                block_bytes,
                meta_bytes,
                last_us: meta.as_ref().map_or(u64::MAX, |meta| meta.last_us),
                passed_us: None,
                pack_from_us: if files.native && meta.is_some() { 0 } else { u64::MAX },
            });
        }
        // Until now the sum of what was there when the log was opened.
        self.sealed_bytes = sealed_bytes;
        self.sealed_loaded = true;
        Ok(())
    }

    /// Deletes the oldest segments that are too old or too many, as far as every cursor has passed them. The newest always stays: its meta says which part of the
    /// journal is sealed, and its number what the next one is called.
    fn retain(&mut self, now_us: u64) -> Result<(), LogError> {
        self.retention_us = now_us;
        self.load_sealed()?;
        let listing = folder::list(&self.settings.dir)?;
        let passed = if self.settings.has_cursor {
            store::slowest_cursor(&self.settings.dir, &listing).map_or(0, |position| position.segment)
        } else {
            u32::MAX
        };
        for sealed in &mut self.sealed {
            if sealed.seg as u32 > passed {
                break;
            }
            sealed.passed_us.get_or_insert(now_us);
        }
        while self.sealed.len() > 1 {
            let Some(oldest) = self.sealed.front() else { break };
            let Some(passed_us) = oldest.passed_us else { break };
            let is_old = if self.settings.has_cursor {
                now_us.saturating_sub(passed_us) >= self.settings.keep_shipped_ms.saturating_mul(1000)
            } else {
                now_us.saturating_sub(oldest.last_us) >= self.settings.keep_ms.saturating_mul(1000)
            };
            if !is_old && self.wanted_bytes() <= self.settings.max_bytes {
                break;
            }
            let (seg, bytes) = (oldest.seg, oldest.block_bytes + oldest.meta_bytes);
            if self.packing.as_ref().is_some_and(|packing| packing.in_hand == Some(seg)) {
                // In a moment: the packer must not make a file of a segment that has gone.
                break;
            }
            let dir = &self.settings.dir;
            for path in [plain_path(dir, seg), packed_path(dir, seg), meta_path(dir, seg)] {
                match self.storage.remove(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(LogError::io("remove", &path)(error)),
                }
            }
            self.sealed.pop_front();
            self.sealed_bytes -= bytes;
            self.counters.segments_deleted.fetch_add(1, Relaxed);
        }
        self.order_packing(now_us);
        self.look_if_full();
        if self.settings.rolls_up_when_full && !self.is_short_of_room(0, now_us) {
            self.counters.rolled_up.store(false, Relaxed);
        }
        self.counters.bytes.store(self.bytes(), Relaxed);
        if self.settings.has_cursor {
            let shipped = self.sealed.iter().filter(|sealed| sealed.seg as u32 <= passed).count() as u64;
            self.counters.segments_shipped.store(shipped + self.counters.segments_deleted.load(Relaxed), Relaxed);
            let unshipped = self.sealed.iter().filter(|sealed| sealed.seg as u32 > passed).map(|sealed| sealed.rows).sum();
            self.counters.rows_unshipped.store(unshipped, Relaxed);
            self.waiting = self.sealed.iter().filter(|sealed| sealed.seg as u32 > passed).count() as u64;
        }
        Ok(())
    }
}

/// What so many cells of journal take in segments, at most: every one a row, in the largest layout that these settings may write.
fn sealed_at_most(settings: &LogSettings, cells: u64) -> u64 {
    let sums = if settings.rolls_up_when_full { Layout::Rollup.row_bytes() } else { 0 };
    cells * settings.layout.row_bytes().max(sums).max(CELL) as u64 + cells / u64::from(settings.segment_rows) * SEGMENT_EXTRA_BYTES
}

/// What a journal file takes until it is free again: itself, and the segments of its rows.
pub(crate) fn file_cost(settings: &LogSettings, bytes: u64) -> u64 {
    bytes + sealed_at_most(settings, bytes / CELL as u64) + SEGMENTS_EXTRA * SEGMENT_EXTRA_BYTES
}

/// The least `max_bytes` with which a log works: the file in use and the spares below which it counts as full have room, or with sums, every file that is wanted, before the last
/// part that is for them.
pub(crate) fn least_max_bytes(settings: &LogSettings) -> u64 {
    let file = file_cost(settings, settings.journal_file_bytes);
    if settings.rolls_up_when_full {
        ((1 + SPARES_WANTED as u64) * file).div_ceil(SUMS_PART - 1) * SUMS_PART
    } else {
        (1 + SPARES_MIN as u64) * file
    }
}

fn reserve_memory(path: &Path, bytes: u64) -> Result<File, LogError> {
    memory_file("otedama-journal", bytes).map_err(LogError::io("reserve memory for", path))
}

fn write_header(memory: &File, path: &Path, header: &JournalHeader) -> Result<(), LogError> {
    memory.write_all_at(&header.preamble(), 0).map_err(LogError::io("write the memory of", path))
}

/// True for a row whose enum columns this release can write.
pub(crate) fn is_of_this_release(row: &ShareRow) -> bool {
    row.status <= ShareStatus::Overload as u8 && row.coin == Coin::Bitcoin as u8
}

/// A row of a newer release, kept with the numbers that this one knows: losing it would be worse.
fn of_this_release(row: &ShareRow) -> ShareRow {
    let status = if row.status <= ShareStatus::Overload as u8 { row.status } else { ShareStatus::Overload as u8 };
    ShareRow { status, coin: Coin::Bitcoin as u8, ..*row }
}

const _: () = assert!(SEGMENT_ROWS_MAX as usize >= crate::journal_format::BATCH_ROWS_MAX);
