//! Cold segments: a block that is read rarely is kept as `NAME.native.zst`, which ClickHouse's `file` function and `zstd -d` take by its suffix. Its `.meta` stays as it is.
//!
//! The file is one zstd frame with the block's bytes, then one skippable frame with a checksum of all bytes in front of it: a frame has bits that no decoder looks at, and a
//! flipped one would go unseen. Readers of zstd step over it.
//!
//! The packer reads a sealed block, writes the packed one beside it under another name, reads that back against the `.meta`, syncs, renames, syncs the folder, and only then removes the
//! plain one. Where a crash leaves both, the plain one is the segment, and the next writer of the folder removes the other. It runs on a thread of its own, which
//! nothing waits for but the deletion of the very segment that it has in hand.
use crate::error::LogError;
use crate::folder::WriterLock;
use crate::log::{LogCounters, Trouble};
use crate::segment::{SegmentMeta, segment_name};
use crate::storage::{Disk, Storage};
use crate::store::{self, packed_path, plain_path};
use otedama_killpoint::pass;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::time::Duration;

/// Level 1: higher ones take twice the time for some percent, as nonces and extranonces have no pattern to find.
const LEVEL: i32 = 1;
/// Bytes read and written at a time.
const PIECE_BYTES: usize = 1 << 18;
/// Magic and length of the skippable frame at the end. Source: RFC 8878, section 3.1.2.
const SEAL_HEADER: [u8; 8] = [0x5E, 0x2A, 0x4D, 0x18, 8, 0, 0, 0];
/// What the skippable frame holds: this, then a crc32c.
const SEAL_TAG: [u8; 4] = *b"OTED";
const SEAL_BYTES: usize = 16;
/// How long the packer waits for an order, and between two looks at whether readers let segments change their form.
const WAIT: Duration = Duration::from_millis(100);
const FORMS_TRIES: u32 = 10;

/// The end of a packed file: a skippable frame with the crc32c of what is in front of it.
fn seal(crc32c: u32) -> [u8; SEAL_BYTES] {
    let mut bytes = [0u8; SEAL_BYTES];
    bytes[..8].copy_from_slice(&SEAL_HEADER);
    bytes[8..12].copy_from_slice(&SEAL_TAG);
    bytes[12..].copy_from_slice(&crc32c.to_le_bytes());
    bytes
}

/// Takes a packed file apart into `into`, which it empties first. The error says what is wrong with it; nothing is taken on trust, `block_bytes` from the `.meta` bounds the result.
pub(crate) fn unpack(packed: &[u8], block_bytes: u64, into: &mut Vec<u8>) -> Result<(), String> {
    into.clear();
    let (frame, end) = packed.split_last_chunk::<SEAL_BYTES>().ok_or("it is shorter than a packed segment")?;
    if *end != seal(crc32c::crc32c(frame)) {
        return Err("its crc does not match".into());
    }
    let bytes = usize::try_from(block_bytes).unwrap_or(usize::MAX).min(1 << 28);
    into.reserve(bytes);
    let mut unpacker = zstd::bulk::Decompressor::new().map_err(|error| format!("no zstd: {error}"))?;
    unpacker.decompress_to_buffer(frame, into).map_err(|error| format!("it does not unpack: {error}"))?;
    Ok(())
}

/// Writes through `Storage`, in order, and counts and sums what it wrote.
struct Sink<'a, S: Storage> {
    storage: &'a S,
    file: &'a File,
    written: u64,
    crc32c: u32,
}

impl<S: Storage> Write for Sink<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.storage.write_all_at(self.file, self.written, bytes)?;
        self.written += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What became of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packed {
    /// The segment has so many bytes in its `.native.zst` now.
    Done(u64),
    /// It could not be done now: another time.
    Later,
    /// It is damaged, which `verify` tells; it stays as it is.
    Never,
}

/// The sealer's end: it knows which segments are cold.
pub(crate) struct PackOrders {
    orders: SyncSender<u64>,
    outcomes: Receiver<(u64, Packed)>,
    /// The segment that the packer has in hand: it is not to be deleted.
    pub(crate) in_hand: Option<u64>,
    /// Bytes of its block; 0 where there is none.
    pub(crate) in_hand_bytes: u64,
    /// Segments are packed when their last row is so old.
    pub(crate) after_us: u64,
}

impl PackOrders {
    /// Gives the packer a segment; one at a time.
    pub(crate) fn order(&mut self, seg: u64, bytes: u64) {
        if self.in_hand.is_none() && self.orders.try_send(seg).is_ok() {
            (self.in_hand, self.in_hand_bytes) = (Some(seg), bytes);
        }
    }

    /// What became of the last order, once.
    pub(crate) fn outcome(&mut self) -> Option<(u64, Packed)> {
        let outcome = match self.outcomes.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            // The packer has ended, and with it whatever it had in hand.
            Err(TryRecvError::Disconnected) => self.in_hand.map(|seg| (seg, Packed::Later)),
        };
        if outcome.is_some() {
            (self.in_hand, self.in_hand_bytes) = (None, 0);
        }
        outcome
    }
}

/// What a step of the packer did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PackStep {
    /// No segment is to be packed: a tenth of a second has passed.
    Idle,
    /// A segment was packed, or left as it is.
    Worked,
    /// The log is closed: nothing will come any more.
    Ended,
}

/// Packs cold segments; see the module's head. Taken by `Sealer::take_packer`, run on a thread of its own and of low priority, as packing takes hundreds of nanoseconds a row.
pub struct Packer<S: Storage = Disk> {
    storage: Arc<S>,
    dir: PathBuf,
    counters: Arc<LogCounters>,
    orders: Receiver<u64>,
    outcomes: Sender<(u64, Packed)>,
    _lock: Arc<WriterLock>,
}

/// The two ends: for the sealer and for the thread.
pub(crate) fn new_packer<S: Storage>(
    storage: Arc<S>,
    dir: &Path,
    counters: Arc<LogCounters>,
    lock: Arc<WriterLock>,
    after_us: u64,
) -> (PackOrders, Packer<S>) {
    let (orders, incoming) = std::sync::mpsc::sync_channel(1);
    let (told, outcomes) = std::sync::mpsc::channel();
    let packer = Packer { storage, dir: dir.to_path_buf(), counters, orders: incoming, outcomes: told, _lock: lock };
    (PackOrders { orders, outcomes, in_hand: None, in_hand_bytes: 0, after_us }, packer)
}

impl<S: Storage> Packer<S> {
    /// Waits a moment for a segment and packs it. `goes_on` is asked between pieces: where it says no, what was begun is removed, and the segment stays as it is. An
    /// error leaves it as it is too; it is tried again after a pause.
    pub fn step(&mut self, goes_on: impl Fn() -> bool) -> Result<PackStep, LogError> {
        let seg = match self.orders.recv_timeout(WAIT) {
            Ok(seg) => seg,
            Err(RecvTimeoutError::Timeout) => return Ok(PackStep::Idle),
            Err(RecvTimeoutError::Disconnected) => return Ok(PackStep::Ended),
        };
        let outcome = self.pack(seg, &goes_on);
        if !matches!(outcome, Ok(Packed::Done(_))) {
            // Best effort: the next recovery removes it as well.
            let _ = self.storage.remove(&temporary_path(&self.dir, seg));
        }
        let told = match &outcome {
            Ok(packed) => *packed,
            Err(LogError::Damaged { .. }) => Packed::Never,
            Err(_) => Packed::Later,
        };
        self.counters.trouble(Trouble::Packing, outcome.as_ref().err());
        // A sealer that has gone needs no answer.
        let _ = self.outcomes.send((seg, told));
        outcome.map(|_| PackStep::Worked)
    }

    fn pack(&mut self, seg: u64, goes_on: &impl Fn() -> bool) -> Result<Packed, LogError> {
        let dir = &self.dir;
        let Some(meta) = store::read_meta(dir, seg)? else { return Ok(Packed::Never) };
        let (plain, packed, temporary) = (plain_path(dir, seg), packed_path(dir, seg), temporary_path(dir, seg));
        if store::lock_forms_to_change(dir)?.is_none() {
            return Ok(Packed::Later);
        }
        let file = self.storage.create(&temporary).map_err(LogError::io("create", &temporary))?;
        pass("cold.created");
        let Some(bytes) = write_packed(&*self.storage, &meta, &plain, &file, &temporary, goes_on)? else {
            return Ok(Packed::Later);
        };
        pass("cold.written");
        // The plain one is the only copy that there is: what takes its place is proved first.
        let mut block = Vec::new();
        store::read_packed(&temporary, &meta, &mut block)?;
        drop(block);
        self.storage.fsync(&file).map_err(LogError::io("fsync", &temporary))?;
        pass("cold.synced");
        // Readers that name files themselves, as SQL engines do, must meet one form, not both or none.
        let Some(_forms) = self.forms(goes_on)? else { return Ok(Packed::Later) };
        self.storage.rename(&temporary, &packed).map_err(LogError::io("rename", &temporary))?;
        pass("cold.renamed");
        if let Err(error) = self.storage.sync_folder(dir) {
            // The plain one stays: without the other it is the only form again.
            let _ = self.storage.remove(&packed);
            return Err(LogError::io("fsync", dir)(error));
        }
        pass("cold.folder_synced");
        self.storage.remove(&plain).map_err(LogError::io("remove", &plain))?;
        pass("cold.plain_removed");
        self.counters.segments_packed.fetch_add(1, Relaxed);
        self.counters.packed_away_bytes.fetch_add(meta.native_bytes.saturating_sub(bytes), Relaxed);
        Ok(Packed::Done(bytes))
    }

    /// Waits a little until nobody holds the forms of segments as they are. Not for long: until then the segment cannot be deleted either.
    fn forms(&self, goes_on: &impl Fn() -> bool) -> Result<Option<File>, LogError> {
        for _ in 0..FORMS_TRIES {
            if let Some(lock) = store::lock_forms_to_change(&self.dir)? {
                return Ok(Some(lock));
            }
            if !goes_on() {
                break;
            }
            std::thread::sleep(WAIT);
        }
        Ok(None)
    }
}

fn temporary_path(dir: &Path, seg: u64) -> PathBuf {
    dir.join(format!("{}.native.zst.tmp", segment_name(seg)))
}

/// Packs the block at `plain` into `file`; gives its bytes, or None where `goes_on` said no. A block that is not what `meta` says is damaged.
fn write_packed<S: Storage>(
    storage: &S,
    meta: &SegmentMeta,
    plain: &Path,
    file: &File,
    temporary: &Path,
    goes_on: &impl Fn() -> bool,
) -> Result<Option<u64>, LogError> {
    let written = || LogError::io("write", temporary);
    let mut source = File::open(plain).map_err(LogError::io("open", plain))?;
    let bytes = source.metadata().map_err(LogError::io("stat", plain))?.len();
    if bytes != meta.native_bytes {
        return Err(LogError::damaged(plain, format!("{bytes} bytes where its meta has {}", meta.native_bytes)));
    }
    let mut packer = zstd::stream::write::Encoder::new(Sink { storage, file, written: 0, crc32c: 0 }, LEVEL).map_err(written())?;
    packer.include_checksum(true).map_err(written())?;
    // Stands in the frame: whoever unpacks it knows how much room it takes.
    packer.set_pledged_src_size(Some(bytes)).map_err(written())?;
    let mut piece = vec![0u8; PIECE_BYTES];
    let (mut left, mut crc32c) = (bytes, 0);
    while left > 0 {
        if !goes_on() {
            return Ok(None);
        }
        let piece = piece.get_mut(..left.min(PIECE_BYTES as u64) as usize).unwrap_or_default();
        source.read_exact(piece).map_err(LogError::io("read", plain))?;
        crc32c = crc32c::crc32c_append(crc32c, piece);
        packer.write_all(piece).map_err(written())?;
        left -= piece.len() as u64;
    }
    if crc32c != meta.crc32c {
        return Err(LogError::damaged(plain, "its crc does not match"));
    }
    let mut sink = packer.finish().map_err(written())?;
    let seal = seal(sink.crc32c);
    sink.write_all(&seal).map_err(written())?;
    Ok(Some(sink.written))
}
