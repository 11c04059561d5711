//! Memory for a segment: at addresses that the disk itself can write from and read to, and on huge pages where there is much of it.
use memmap2::{Advice, MmapMut};
use otedama_primitives::ShareRow;
use std::io;

/// Addresses, lengths and offsets of direct reads and writes are multiples of this: the largest logical block of disks.
pub(crate) const ALIGN: usize = 4096;
/// So much of a mapping's front stays on small pages, as the segments of a small pool need no more. Behind it rows lie in any order, and a look-up in the page tables
/// for each of them would cost more than its copy.
const SMALL_PAGES_BYTES: usize = 2 << 20;

/// Memory of this process alone, zeros at first. What was never touched takes none.
fn map(bytes: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes)?;
    if bytes > SMALL_PAGES_BYTES {
        // A kernel without huge pages: slower, no failure.
        let _ = map.advise_range(Advice::HugePage, SMALL_PAGES_BYTES, bytes - SMALL_PAGES_BYTES);
    }
    Ok(map)
}

/// Bytes at an address that is a multiple of 4096, kept for the next ones: every fresh page costs a fault.
#[derive(Default)]
pub struct AlignedBytes {
    map: Option<MmapMut>,
    used: usize,
}

impl AlignedBytes {
    /// Room for so many bytes, with what was there before in it.
    pub(crate) fn room(&mut self, bytes: usize) -> io::Result<&mut [u8]> {
        self.used = 0;
        if self.map.as_ref().is_none_or(|map| map.len() < bytes) {
            self.map = None;
            self.map = Some(map(bytes.next_power_of_two().max(ALIGN))?);
        }
        self.used = bytes;
        Ok(self.map.as_mut().and_then(|map| map.get_mut(..bytes)).unwrap_or_default())
    }

    /// Keeps the first so many of them.
    pub(crate) fn keep(&mut self, bytes: usize) {
        self.used = self.used.min(bytes);
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        self.map.as_ref().and_then(|map| map.get(..self.used)).unwrap_or_default()
    }
}

/// Rows one behind the other, with room for those of a whole segment from the first on: growing would copy what is there again and again.
#[derive(Default)]
pub(crate) struct RowMemory {
    map: Option<MmapMut>,
    rows: usize,
}

impl RowMemory {
    /// Takes room for so many rows at the first call.
    pub(crate) fn reserve(&mut self, rows: usize) -> io::Result<()> {
        if self.map.is_none() {
            self.map = Some(map(rows.max(1) * size_of::<ShareRow>())?);
        }
        Ok(())
    }

    /// Adds rows, for which there is room.
    pub(crate) fn extend(&mut self, rows: &[ShareRow]) {
        let from = self.rows;
        if let Some(to) = self.memory_mut().get_mut(from..from + rows.len()) {
            to.copy_from_slice(rows);
            self.rows += rows.len();
        }
    }

    /// Forgets the rows; those that are not written over can be asked for still.
    pub(crate) fn clear(&mut self) {
        self.rows = 0;
    }

    /// What stands at a place, of a row or of one that was there before `clear`.
    pub(crate) fn remembered(&self, at: usize) -> Option<ShareRow> {
        self.memory().get(at).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// The rows.
    pub(crate) fn as_slice(&self) -> &[ShareRow] {
        self.memory().get(..self.rows).unwrap_or_default()
    }

    /// The rows, to be changed.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [ShareRow] {
        let rows = self.rows;
        self.memory_mut().get_mut(..rows).unwrap_or_default()
    }

    fn memory(&self) -> &[ShareRow] {
        self.map.as_deref().map(bytemuck::cast_slice).unwrap_or_default()
    }

    fn memory_mut(&mut self) -> &mut [ShareRow] {
        self.map.as_deref_mut().map(bytemuck::cast_slice_mut).unwrap_or_default()
    }
}
