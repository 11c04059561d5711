//! `dimensions.log`: append-only records, each with a crc over its header and one over its payload, so that a torn tail, which a killed process leaves, is told from damage.
use crate::error::LogError;
use crate::folder::WriterLock;
use crate::records::{self, BlockRecord, DimensionEntry, JobRecord, RunRecord, kind};
use crate::storage::Storage;
use otedama_killpoint::pass;
use otedama_primitives::{Dimension, JobId};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Name of the file in the folder of the log.
pub const DIMENSIONS_FILE: &str = "dimensions.log";
/// Offset of the first record.
pub const DIMENSIONS_START: u64 = 16;

const FILE_MAGIC: [u8; 8] = *b"OTEDDIM\x01";
const RECORD_MAGIC: u32 = 0xD1E5_0EC0;
const RECORD_HEADER: usize = 24;
/// Largest payload that is believed: a job with a long coinbase is some kilobytes.
const PAYLOAD_MAX: u32 = 1 << 20;
/// Capacity that the buffer of records not yet durable keeps between two fsyncs.
const UNSYNCED_KEPT_BYTES: usize = 64 << 10;
/// Ids remembered to write each session and worker once; forgetting them costs repeated records, nothing else.
const SEEN_MAX: usize = 1 << 20;

fn file_header(epoch: u32) -> [u8; DIMENSIONS_START as usize] {
    let mut bytes = [0u8; DIMENSIONS_START as usize];
    bytes[0..8].copy_from_slice(&FILE_MAGIC);
    bytes[8..12].copy_from_slice(&epoch.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Layout: magic u32, kind u32, run prefix u32, payload bytes u32, crc32c of the payload, crc32c of the 20 bytes before; payload.
fn push_record(into: &mut Vec<u8>, kind: u32, run_prefix: u32, payload: &[u8]) {
    let start = into.len();
    for word in [RECORD_MAGIC, kind, run_prefix, payload.len() as u32, crc32c::crc32c(payload)] {
        into.extend_from_slice(&word.to_le_bytes());
    }
    let crc = crc32c::crc32c(into.get(start..).unwrap_or_default());
    into.extend_from_slice(&crc.to_le_bytes());
    into.extend_from_slice(payload);
}

struct RecordHeader {
    kind: u32,
    run_prefix: u32,
    payload_bytes: u32,
    payload_crc: u32,
}

fn record_header(bytes: &[u8]) -> Option<RecordHeader> {
    let header = bytes.first_chunk::<RECORD_HEADER>()?;
    let (words, _) = header.as_chunks::<4>();
    let word = |index: usize| words.get(index).map_or(0, |four| u32::from_le_bytes(*four));
    let sound = word(0) == RECORD_MAGIC && word(5) == crc32c::crc32c(&header[..20]) && word(3) <= PAYLOAD_MAX;
    sound.then(|| RecordHeader { kind: word(1), run_prefix: word(2), payload_bytes: word(3), payload_crc: word(4) })
}

/// What a walk over records meets.
enum Step {
    /// A record that ends at this offset of the buffer.
    Record { kind: u32, run_prefix: u32, payload: (usize, usize) },
    /// The buffer ends inside of a record: a torn tail, if the file ends here.
    Torn,
    /// Bytes that are no record.
    Damage,
}

fn step(bytes: &[u8]) -> Step {
    if bytes.len() < RECORD_HEADER {
        return Step::Torn;
    }
    let Some(header) = record_header(bytes) else { return Step::Damage };
    let end = RECORD_HEADER + header.payload_bytes as usize;
    let Some(payload) = bytes.get(RECORD_HEADER..end) else { return Step::Torn };
    if crc32c::crc32c(payload) != header.payload_crc {
        return Step::Damage;
    }
    Step::Record { kind: header.kind, run_prefix: header.run_prefix, payload: (RECORD_HEADER, end) }
}

/// Reads the dimension log from an offset on, in order. It holds no lock; a record that is being written at this moment is not seen.
pub struct DimensionReader {
    file: Option<BufReader<File>>,
    path: PathBuf,
    offset: u64,
    buffer: Vec<u8>,
    /// Start of unread bytes in `buffer`.
    at: usize,
    ended: bool,
}

impl DimensionReader {
    /// A reader of the log in `dir` that starts at `offset`, which is 0 or an end offset that an earlier reader gave. A folder without the file has no entries.
    pub fn from(dir: &Path, offset: u64) -> Result<Self, LogError> {
        let path = dir.join(DIMENSIONS_FILE);
        let mut reader = Self { file: None, offset: offset.max(DIMENSIONS_START), path, buffer: Vec::new(), at: 0, ended: false };
        let mut file = match File::open(&reader.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                reader.ended = true;
                return Ok(reader);
            }
            Err(error) => return Err(LogError::io("open", &reader.path)(error)),
        };
        let bytes = file.metadata().map_err(LogError::io("stat", &reader.path))?.len();
        if bytes < DIMENSIONS_START {
            // The header is written in one piece before anything names a dimension; a shorter file is a torn header.
            reader.ended = true;
            return Ok(reader);
        }
        let mut header = [0u8; DIMENSIONS_START as usize];
        file.read_exact(&mut header).map_err(LogError::io("read", &reader.path))?;
        let epoch = header.get(8..12).and_then(|four| four.first_chunk()).map_or(0, |four| u32::from_le_bytes(*four));
        if header != file_header(epoch) {
            return Err(LogError::damaged(&reader.path, "its header does not match its crc"));
        }
        if reader.offset > bytes {
            return Err(LogError::damaged(&reader.path, format!("it has {bytes} bytes, but {} were recorded before", reader.offset)));
        }
        file.seek(SeekFrom::Start(reader.offset)).map_err(LogError::io("seek in", &reader.path))?;
        reader.file = Some(BufReader::with_capacity(1 << 16, file));
        Ok(reader)
    }

    /// Offset behind the last entry given.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads on until the unread part has `bytes` bytes or the file ends.
    fn fill(&mut self, bytes: usize) -> Result<(), LogError> {
        if self.buffer.len() - self.at >= bytes {
            return Ok(());
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        if let Some(file) = self.file.as_mut() {
            let missing = (bytes.max(1 << 16) - self.buffer.len()) as u64;
            file.by_ref().take(missing).read_to_end(&mut self.buffer).map_err(LogError::io("read", &self.path))?;
        }
        Ok(())
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    fn next_entry(&mut self) -> Result<Option<(u64, DimensionEntry)>, LogError> {
        self.fill(RECORD_HEADER)?;
        if let Some(header) = record_header(self.unread()) {
            self.fill(RECORD_HEADER + header.payload_bytes as usize)?;
        }
        match step(self.unread()) {
            Step::Torn => Ok(None),
            // A file whose size survived a power cut and whose last bytes did not ends in zeros: as torn as a short one.
            Step::Damage if self.rest_is_blank()? => Ok(None),
            Step::Damage => {
                let start = self.offset;
                let skipped = self.resync()?;
                Err(LogError::damaged(&self.path, format!("{skipped} bytes from offset {start} on are no valid record")))
            }
            Step::Record { kind, run_prefix, payload: (from, to) } => {
                let entry = self.unread().get(from..to).and_then(|payload| records::decode(kind, run_prefix, payload));
                self.at += to;
                let start = self.offset;
                self.offset += to as u64;
                match entry {
                    Some(entry) => Ok(Some((self.offset, entry))),
                    None => {
                        Err(LogError::damaged(&self.path, format!("the record at offset {start} is of kind {kind} and does not decode")))
                    }
                }
            }
        }
    }

    /// Whether only zeros stand from here to the end of the file. Looks no further than the first other byte, and moves nothing.
    fn rest_is_blank(&self) -> Result<bool, LogError> {
        if self.unread().iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        let Ok(mut file) = File::open(&self.path) else { return Ok(false) };
        file.seek(SeekFrom::Start(self.offset)).map_err(LogError::io("seek in", &self.path))?;
        for byte in BufReader::new(file).bytes() {
            if byte.map_err(LogError::io("read", &self.path))? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Skips to the next valid record, or to the end.
    fn resync(&mut self) -> Result<u64, LogError> {
        let mut skipped = 0u64;
        loop {
            self.at += 1;
            self.offset += 1;
            skipped += 1;
            self.fill(RECORD_HEADER)?;
            if self.unread().len() < RECORD_HEADER {
                let rest = self.unread().len();
                self.at += rest;
                self.offset += rest as u64;
                return Ok(skipped + rest as u64);
            }
            if let Some(header) = record_header(self.unread()) {
                self.fill(RECORD_HEADER + header.payload_bytes as usize)?;
                if !matches!(step(self.unread()), Step::Damage) {
                    return Ok(skipped);
                }
            }
        }
    }
}

impl Iterator for DimensionReader {
    /// The offset behind the entry, and the entry. An error tells of damage; the next call goes on behind it.
    type Item = Result<(u64, DimensionEntry), LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.next_entry() {
            Ok(Some(entry)) => Some(Ok(entry)),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended |= matches!(error, LogError::Io { .. });
                Some(Err(error))
            }
        }
    }
}

/// The writing end of `dimensions.log`, shared by registry and sealer.
pub(crate) struct DimensionLog {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// Tier `disk`: runs, jobs and blocks are durable when they are recorded, as the rows that name them will be.
    syncs: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// End of what was written whole.
    end: u64,
    /// Written since the last fsync that succeeded: a failed fsync says nothing of these bytes, so they are written again before the next try.
    unsynced: Vec<u8>,
    sync_failed: bool,
    /// Records not yet written.
    pending: Vec<u8>,
    sessions: HashSet<u64>,
    workers: HashSet<u64>,
}

impl DimensionLog {
    /// Opens or creates the file for appending behind the last whole record; a torn tail is cut. `trusted` is an offset known to be a record's end.
    pub(crate) fn open(storage: Arc<dyn Storage>, dir: &Path, epoch: u32, trusted: u64, syncs: bool) -> Result<Self, LogError> {
        let path = dir.join(DIMENSIONS_FILE);
        let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let (file, end) = if bytes < DIMENSIONS_START {
            let file = storage.create(&path).map_err(LogError::io("create", &path))?;
            storage.write_all_at(&file, 0, &file_header(epoch)).map_err(LogError::io("write", &path))?;
            storage.fsync(&file).map_err(LogError::io("fsync", &path))?;
            (file, DIMENSIONS_START)
        } else {
            let start = if trusted <= bytes { trusted } else { 0 };
            let mut reader = DimensionReader::from(dir, start)?;
            let mut end = reader.offset();
            while let Some(entry) = reader.next() {
                // Damage with records behind it stays for verify to tell, and appending goes on behind all of it. Damage with none behind it, and behind all that segments
                // need, is a record that a power cut took a part of: torn, as a short one is.
                match entry {
                    Ok(_) => end = reader.offset(),
                    Err(LogError::Damaged { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(LogError::io("open", &path))?;
            if end < bytes {
                file.set_len(end).map_err(LogError::io("cut the torn tail of", &path))?;
            }
            (file, end)
        };
        let inner = Inner {
            file,
            end,
            unsynced: Vec::new(),
            sync_failed: false,
            pending: Vec::new(),
            sessions: HashSet::new(),
            workers: HashSet::new(),
        };
        Ok(Self { storage, path, syncs, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding it leaves whole records: `end` moves only after a complete write.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a session or worker of the journal, once per id; `flush` writes it.
    pub(crate) fn queue(&self, run_prefix: u32, dimension: &Dimension) {
        let Some(payload) = dimension.payload.get(..usize::from(dimension.len)) else { return };
        let mut inner = self.lock();
        let is_new = if let Some(session) = dimension.as_session() {
            inner.sessions.insert((u64::from(run_prefix) << 32) | u64::from(session.session))
        } else if let Some(worker) = dimension.as_worker() {
            inner.workers.insert(worker.worker.0)
        } else {
            // Net writes one only when it changes.
            dimension.as_version_mask().is_some()
        };
        if is_new {
            push_record(&mut inner.pending, u32::from(dimension.kind), run_prefix, payload);
        }
        if inner.sessions.len() > SEEN_MAX {
            inner.sessions.clear();
        }
        if inner.workers.len() > SEEN_MAX {
            inner.workers.clear();
        }
    }

    /// Writes a record at once: it survives the death of the process when this returns, and a power cut where `durable` and the tier say so.
    fn append(&self, kind: u32, run_prefix: u32, payload: &[u8], durable: bool) -> Result<(), LogError> {
        let mut inner = self.lock();
        let queued = inner.pending.len();
        push_record(&mut inner.pending, kind, run_prefix, payload);
        if let Err(error) = self.write_pending(&mut inner) {
            // Nothing of it counts: the caller is told and may try again.
            inner.pending.truncate(queued);
            return Err(error);
        }
        pass("dimensions.written");
        if durable && self.syncs { self.sync_locked(&mut inner).map(|_| ()) } else { Ok(()) }
    }

    fn write_pending(&self, inner: &mut Inner) -> Result<(), LogError> {
        if inner.pending.is_empty() {
            return Ok(());
        }
        self.storage.write_all_at(&inner.file, inner.end, &inner.pending).map_err(LogError::io("append to", &self.path))?;
        inner.end += inner.pending.len() as u64;
        let pending = std::mem::take(&mut inner.pending);
        inner.unsynced.extend_from_slice(&pending);
        Ok(())
    }

    /// Writes what is queued and makes everything durable; returns the end offset.
    pub(crate) fn sync(&self) -> Result<u64, LogError> {
        self.sync_locked(&mut self.lock())
    }

    fn sync_locked(&self, inner: &mut Inner) -> Result<u64, LogError> {
        self.write_pending(inner)?;
        if inner.unsynced.is_empty() {
            return Ok(inner.end);
        }
        if inner.sync_failed {
            let start = inner.end - inner.unsynced.len() as u64;
            self.storage.write_all_at(&inner.file, start, &inner.unsynced).map_err(LogError::io("rewrite", &self.path))?;
        }
        inner.sync_failed = true;
        self.storage.fsync(&inner.file).map_err(LogError::io("fsync", &self.path))?;
        inner.sync_failed = false;
        pass("dimensions.synced");
        // A reconnect storm leaves megabytes here that the next one may as well ask for again.
        if inner.unsynced.capacity() > UNSYNCED_KEPT_BYTES {
            inner.unsynced = Vec::new();
        }
        inner.unsynced.clear();
        Ok(inner.end)
    }

    /// Records that a job ended `us` microseconds after the epoch; durable with the next sync.
    pub(crate) fn job_end(&self, job: JobId, us: u64) -> Result<(), LogError> {
        self.append(kind::JOB_END, job.run().prefix(), &records::encode_job_end(job, us), false)
    }

    /// End of what was written, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.lock().end
    }
}

/// The control plane's handle: it records runs, jobs and blocks before they are published. Locks a mutex; never for a share core.
pub struct Registry {
    log: Arc<DimensionLog>,
    _lock: Arc<WriterLock>,
}

impl Registry {
    pub(crate) fn new(log: Arc<DimensionLog>, lock: Arc<WriterLock>) -> Self {
        Self { log, _lock: lock }
    }

    /// Records a boot. Survives the death of the process when it returns, as do all others here; durable against power loss when it returns in tier `disk`, else before
    /// a segment that needs it.
    pub fn run(&self, record: &RunRecord) -> Result<(), LogError> {
        self.log.append(kind::RUN, record.run.prefix(), &records::encode_run(record), true)
    }

    /// Records a job; call it before the job is published, and do not publish on an error: a row that names it would not resolve.
    pub fn job(&self, record: &JobRecord) -> Result<(), LogError> {
        self.log.append(kind::JOB, record.job.run().prefix(), &records::encode_job(record), true)
    }

    /// Records that a job ended `us` microseconds after the epoch. The next sync makes it durable: a new job's notify does not wait for it.
    pub fn job_end(&self, job: JobId, us: u64) -> Result<(), LogError> {
        self.log.job_end(job, us)
    }

    /// Records a block candidate or what became of it.
    pub fn block(&self, record: &BlockRecord) -> Result<(), LogError> {
        self.log.append(kind::BLOCK, record.job.run().prefix(), &records::encode_block(record), true)
    }

    /// Makes everything recorded so far durable against power loss.
    pub fn sync(&self) -> Result<(), LogError> {
        self.log.sync().map(|_| ())
    }
}
