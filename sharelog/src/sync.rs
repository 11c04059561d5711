//! The sync thread of tier `disk`: copies what the log stage appended from memory to the journal files, makes it durable, and says how far it came.
//!
//! The log stage writes to memory alone, so that nothing a disk does reaches a share core. One round copies everything that is there and ends with one fdatasync, however many
//! rows it is: under load the rounds grow, not the wait. Files are finished in order: of a file nothing is written before the one in front of it is durable to its end, and
//! a recycled file carries its new header before any row of its new life. After a power cut the journal is thus whole up to one place, which is never before the
//! last row that was acknowledged.
//!
//! After a failed write or sync nothing is known of that file, and it is never synced again: what it holds, still whole in memory, goes into a new file that takes its place.
use crate::error::LogError;
use crate::folder::WriterLock;
use crate::journal_format::{
    CELL, COMMITTED_END_OFFSET, DURABLE_END_OFFSET, FIRST_CELL, JournalHeader, PREAMBLE, committed_end, committed_end_word,
    durable_end_word,
};
use crate::log::{LogCounters, Trouble};
use crate::storage::{Disk, Storage};
use otedama_killpoint::pass;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;
/// Durable positions on their way to the log stage. It takes all of them in every pass; when it is late, the newest stands for those that found no room.
const TOLD_MAX: usize = 64;

/// What log stage and sync thread share beside the ring.
#[derive(Debug, Default)]
struct Shared {
    /// Position behind the last batch appended. Release by the log stage pairs with the Acquire of the sync thread: the batch's bytes come before it.
    appended: AtomicU64,
    failing: AtomicBool,
}

/// The log stage's end.
pub(crate) struct JournalSync {
    shared: Arc<Shared>,
    durable: rtrb::Consumer<u64>,
    durable_to: u64,
}

impl JournalSync {
    #[inline]
    pub(crate) fn appended(&self, position: u64) {
        self.shared.appended.store(position, Ordering::Release);
    }

    #[inline]
    pub(crate) fn durable_position(&mut self) -> u64 {
        while let Ok(position) = self.durable.pop() {
            self.durable_to = position;
        }
        self.durable_to
    }

    pub(crate) fn is_failing(&self) -> bool {
        // Relaxed: a state, nothing is read through it.
        self.shared.failing.load(Ordering::Relaxed)
    }
}

/// The file on disk that takes a journal file's bytes. The sync thread exchanges it when a sync failed; the sealer only keeps it open.
pub(crate) type DiskFile = Arc<Mutex<File>>;

/// A journal file as the sync thread gets it from the sealer, before the journal can write to it.
pub(crate) struct SyncFile {
    pub(crate) header: JournalHeader,
    /// What the log stage writes.
    pub(crate) memory: File,
    pub(crate) disk: DiskFile,
    pub(crate) path: PathBuf,
    /// The file on disk carries this header already.
    pub(crate) is_new: bool,
}

/// What a step of the sync thread did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncStep {
    /// Nothing is waiting: sleep a moment.
    Idle,
    /// A round was made and more may wait.
    Synced,
    /// The same, after this error: what the failed file held is in a new one.
    Replaced(String),
}

/// Makes the journal durable; see the module's head. Taken by `Sealer::take_sync`, run on a thread of its own.
pub struct Syncer<S: Storage = Disk> {
    storage: Arc<S>,
    dir: PathBuf,
    shared: Arc<Shared>,
    counters: Arc<LogCounters>,
    incoming: rtrb::Consumer<SyncFile>,
    /// In order of number; the first is the one being synced.
    files: VecDeque<SyncFile>,
    /// First cell of the front file that is not durable; 0 while its header is not.
    cell: u32,
    /// Why the front file failed: it is to be replaced before anything else.
    replace_cause: Option<String>,
    told: rtrb::Producer<u64>,
    durable_to: u64,
    told_to: u64,
    buffer: Vec<u8>,
    _lock: Arc<WriterLock>,
}

/// The ends of a new sync thread: for the journal, for the sealer, and the thread's own.
pub(crate) fn new_sync<S: Storage>(
    storage: Arc<S>,
    dir: &Path,
    counters: Arc<LogCounters>,
    lock: Arc<WriterLock>,
    files_max: usize,
) -> (JournalSync, rtrb::Producer<SyncFile>, Syncer<S>) {
    let shared: Arc<Shared> = Arc::default();
    let (told, durable) = rtrb::RingBuffer::new(TOLD_MAX);
    let (outgoing, incoming) = rtrb::RingBuffer::new(files_max);
    let syncer = Syncer {
        storage,
        dir: dir.to_path_buf(),
        shared: shared.clone(),
        counters,
        incoming,
        files: VecDeque::new(),
        cell: 0,
        replace_cause: None,
        told,
        durable_to: 0,
        told_to: 0,
        buffer: vec![0; PIECE],
        _lock: lock,
    };
    (JournalSync { shared, durable, durable_to: 0 }, outgoing, syncer)
}

fn lock(file: &Mutex<File>) -> MutexGuard<'_, File> {
    // A file handle is whole whatever happened to its last user.
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Storage> Syncer<S> {
    /// Makes everything durable that is appended at this moment, and tells the log stage. An error means that nothing more was acknowledged: call again after a pause;
    /// the next step writes to a new file.
    pub fn step(&mut self) -> Result<SyncStep, LogError> {
        let target = self.shared.appended.load(Ordering::Acquire);
        // Behind the position: the sealer hands a file to this thread before the journal can have it.
        while let Ok(file) = self.incoming.pop() {
            self.files.push_back(file);
        }
        let mut replaced = None;
        if self.durable_to < target {
            let started = Instant::now();
            let round = self.round(target);
            // Relaxed: a state for the door and the health page.
            self.shared.failing.store(round.is_err(), Ordering::Relaxed);
            self.counters.trouble(Trouble::Syncing, round.as_ref().err());
            if round.is_err() {
                self.counters.syncs_failed.fetch_add(1, Ordering::Relaxed);
            }
            replaced = round?;
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
            let spent_us = started.elapsed().as_micros() as u64;
            self.counters.sync_us.fetch_add(spent_us, Ordering::Relaxed);
            self.counters.sync_us_max.fetch_max(spent_us, Ordering::Relaxed);
            self.durable_to = target;
            pass("sync.synced");
        } else if self.told_to == self.durable_to {
            return Ok(SyncStep::Idle);
        }
        if self.told.push(self.durable_to).is_ok() {
            self.told_to = self.durable_to;
            pass("sync.told");
        }
        Ok(replaced.map_or(SyncStep::Synced, SyncStep::Replaced))
    }

    /// Gives the error of a file that was replaced.
    fn round(&mut self, target: u64) -> Result<Option<String>, LogError> {
        let last = (target >> 32) as u32;
        let mut replaced = None;
        while let Some(front) = self.files.front() {
            let end = if front.header.file_number == last {
                Some(target as u32)
            } else {
                let mut word = [0u8; 8];
                front
                    .memory
                    .read_exact_at(&mut word, COMMITTED_END_OFFSET as u64)
                    .map_err(LogError::io("read the memory of", &front.path))?;
                // None: its rows are all in segments, and the memory has another number by now.
                committed_end(u64::from_le_bytes(word), front.header.file_number)
            };
            if let Some(end) = end
                && (end > self.cell.max(FIRST_CELL) || self.replace_cause.is_some())
            {
                replaced = self.sync_front(end)?.or(replaced);
            }
            if self.files.front().is_some_and(|front| front.header.file_number == last) {
                return Ok(replaced);
            }
            self.files.pop_front();
            self.cell = 0;
            self.replace_cause = None;
        }
        // The journal writes to no file that was not handed over first.
        Err(LogError::damaged(&self.dir, format!("the sync thread does not know journal file {last}")))
    }

    /// Makes the front file durable up to cell `end`; gives the error after which it was replaced.
    fn sync_front(&mut self, end: u32) -> Result<Option<String>, LogError> {
        if self.replace_cause.is_none() {
            let Err(error) = self.write_front(end) else { return Ok(None) };
            self.replace_cause = Some(error.to_string());
        }
        self.replace_front(end)?;
        self.counters.journals_replaced.fetch_add(1, Ordering::Relaxed);
        Ok(self.replace_cause.take())
    }

    fn write_front(&mut self, end: u32) -> Result<(), LogError> {
        let Some(front) = self.files.front() else { return Ok(()) };
        let disk = lock(&front.disk);
        if self.cell == 0 {
            if !front.is_new {
                let preamble = preamble(&front.header, FIRST_CELL);
                self.storage.write_all_at(&disk, 0, &preamble).map_err(LogError::io("write the header of", &front.path))?;
                self.storage.fdatasync(&disk).map_err(LogError::io("fdatasync", &front.path))?;
                pass("sync.header_written");
            }
            self.cell = FIRST_CELL;
        }
        copy(&*self.storage, front, &disk, self.cell, end, &mut self.buffer)?;
        pass("sync.cells_written");
        let ends = ends(front.header.file_number, end, self.cell);
        self.storage.write_all_at(&disk, COMMITTED_END_OFFSET as u64, &ends).map_err(LogError::io("write the end of", &front.path))?;
        pass("sync.end_written");
        self.storage.fdatasync(&disk).map_err(LogError::io("fdatasync", &front.path))?;
        self.cell = end;
        // On its way to the disk with the next round. Without it damage to the last round of a file would look like what a power cut leaves.
        let word = durable_end_word(front.header.file_number, end);
        self.storage
            .write_all_at(&disk, DURABLE_END_OFFSET as u64, &word.to_le_bytes())
            .map_err(LogError::io("write the end of", &front.path))
    }

    /// Writes the front file anew from memory and puts it in the place of the failed one.
    fn replace_front(&mut self, end: u32) -> Result<(), LogError> {
        let Some(front) = self.files.front() else { return Ok(()) };
        let temporary = front.path.with_extension("tmp");
        let made = self.storage.create(&temporary).map_err(LogError::io("create", &temporary)).and_then(|file| {
            let bytes = u64::from(front.header.cells) * CELL as u64;
            self.storage.fallocate(&file, bytes).map_err(LogError::io("fallocate", &temporary))?;
            self.storage.write_all_at(&file, 0, &preamble(&front.header, end)).map_err(LogError::io("write the header of", &temporary))?;
            copy(&*self.storage, front, &file, FIRST_CELL, end, &mut self.buffer)?;
            self.storage.fsync(&file).map_err(LogError::io("fsync", &temporary))?;
            self.storage.rename(&temporary, &front.path).map_err(LogError::io("rename", &temporary))?;
            self.storage.sync_folder(&self.dir).map_err(LogError::io("fsync", &self.dir))?;
            Ok(file)
        });
        if made.is_err() {
            // Best effort: the next recovery removes it as well. It is made anew, never synced a second time.
            let _ = self.storage.remove(&temporary);
        }
        *lock(&front.disk) = made?;
        self.cell = end;
        Ok(())
    }
}

/// The words of cell 1.
fn ends(file_number: u32, committed: u32, durable: u32) -> [u8; 16] {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&committed_end_word(file_number, committed).to_le_bytes());
    bytes[8..].copy_from_slice(&durable_end_word(file_number, durable).to_le_bytes());
    bytes
}

/// Header and both ends of a file that is durable up to `end`.
pub(crate) fn preamble(header: &JournalHeader, end: u32) -> [u8; PREAMBLE] {
    let mut bytes = header.preamble();
    if let Some(words) = bytes.get_mut(CELL..CELL + 16) {
        words.copy_from_slice(&ends(header.file_number, end, end));
    }
    bytes
}

/// Copies cells `from..to` from memory to `disk`.
fn copy<S: Storage>(storage: &S, file: &SyncFile, disk: &File, from: u32, to: u32, buffer: &mut [u8]) -> Result<(), LogError> {
    let (mut at, end) = (u64::from(from) * CELL as u64, u64::from(to) * CELL as u64);
    while at < end {
        let piece = buffer.get_mut(..(end - at).min(PIECE as u64) as usize).unwrap_or_default();
        if piece.is_empty() {
            return Err(LogError::io("copy to", &file.path)(io::ErrorKind::WriteZero.into()));
        }
        file.memory.read_exact_at(piece, at).map_err(LogError::io("read the memory of", &file.path))?;
        storage.write_all_at(disk, at, piece).map_err(LogError::io("write", &file.path))?;
        at += piece.len() as u64;
    }
    Ok(())
}
