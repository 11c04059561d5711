//! A segment's `.native` file, read column by column with pread: what a sum does not need is never touched, and a disk that fails is an error, not a signal.
use crate::layout::{COLUMNS, Layout};
use crate::segment::SegmentMeta;
use rustix::fs::Advice;
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes in which the header of a column fits: a name and a type, an enum with all its values at the longest.
const HEADER_BYTES: usize = 1024;

/// The columns that groups and filters read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Time,
    Us,
    Session,
    Worker,
    Job,
    Coin,
    Status,
    Work,
}

impl Column {
    const ALL: [Self; 8] = [Self::Time, Self::Us, Self::Session, Self::Worker, Self::Job, Self::Coin, Self::Status, Self::Work];

    const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Us => "us",
            Self::Session => "session",
            Self::Worker => "worker",
            Self::Job => "job",
            Self::Coin => "coin",
            Self::Status => "status",
            Self::Work => "work",
        }
    }

    /// Bytes of a value.
    const fn width(self) -> usize {
        match self {
            Self::Coin | Self::Status => 1,
            Self::Time | Self::Us => 4,
            Self::Session | Self::Worker | Self::Job | Self::Work => 8,
        }
    }
}

/// A `.native` file whose columns are known by their place.
pub(crate) struct ColumnFile {
    file: File,
    /// Offset of the first value, by `Column`.
    offsets: [u64; Column::ALL.len()],
}

impl ColumnFile {
    /// Finds the columns of a segment. None where the file is not a block of `meta.rows` rows of known columns, or cannot be read: whoever reads it whole tells what it is.
    pub(crate) fn open(path: &Path, meta: &SegmentMeta) -> Option<Self> {
        if meta.layout == Layout::Rollup {
            // Few rows, which stand for several shares each.
            return None;
        }
        let file = File::open(path).ok()?;
        if file.metadata().ok()?.len() != meta.native_bytes {
            return None;
        }
        let mut bytes = [0u8; HEADER_BYTES];
        let mut read = |offset: u64| {
            let length = (meta.native_bytes.saturating_sub(offset) as usize).min(HEADER_BYTES);
            file.read_exact_at(bytes.get_mut(..length)?, offset).ok()?;
            Some(bytes)
        };
        let head = read(0)?;
        let mut rest = head.as_slice();
        let columns = crate::segment::take_varint(&mut rest)?;
        let rows = crate::segment::take_varint(&mut rest)?;
        if rows != u64::from(meta.rows) || columns > 2 * COLUMNS.len() as u64 {
            return None;
        }
        let mut offset = (head.len() - rest.len()) as u64;
        let mut offsets = [None; Column::ALL.len()];
        for _ in 0..columns {
            let header = read(offset)?;
            let mut rest = header.as_slice();
            let name = crate::segment::take_text(&mut rest)?;
            let kind = crate::segment::take_text(&mut rest)?;
            // A column that this module does not know may change what a row stands for.
            let (name, _, width) =
                COLUMNS.iter().find(|(known, of_kind, _)| known.as_bytes() == name && of_kind.as_bytes() == kind).copied()?;
            offset += (header.len() - rest.len()) as u64;
            if let Some((slot, _)) = offsets.iter_mut().zip(Column::ALL).find(|(_, column)| column.name() == name) {
                *slot = Some(offset);
            }
            offset += rows * width as u64;
        }
        if offset != meta.native_bytes {
            return None;
        }
        let mut known = [0u64; Column::ALL.len()];
        for (known, offset) in known.iter_mut().zip(offsets) {
            *known = offset?;
        }
        Some(Self { file, offsets: known })
    }

    /// Has the system read the columns of `rows` rows ahead, all at once: rows are asked for in pieces of several columns in turn, which looks to it like a random walk.
    pub(crate) fn read_ahead(&self, columns: impl Iterator<Item = Column>, rows: usize) {
        for column in columns {
            let offset = self.offsets.get(column as usize).copied().unwrap_or_default();
            let bytes = (rows * column.width()) as u64;
            if !self.is_cached(offset, bytes) {
                // Advice: what the file system does not take up costs time alone.
                let _ = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(bytes), Advice::WillNeed);
            }
        }
    }

    /// Whether a part of the file is in the page cache, judged by some places of it: advice walks over every page, and would cost more than a sum in memory.
    fn is_cached(&self, offset: u64, bytes: u64) -> bool {
        (0..=4).all(|quarter| {
            let at = offset + (bytes - bytes.min(1)) * quarter / 4;
            let mut byte = [0];
            matches!(preadv2(&self.file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT), Ok(1))
        })
    }

    /// Reads the values of rows from `row` on.
    pub(crate) fn read<T: bytemuck::Pod>(&self, column: Column, row: usize, into: &mut [T]) -> std::io::Result<()> {
        let offset = self.offsets.get(column as usize).copied().unwrap_or(u64::MAX);
        self.file.read_exact_at(bytemuck::cast_slice_mut(into), offset + (row * size_of::<T>()) as u64)
    }
}
