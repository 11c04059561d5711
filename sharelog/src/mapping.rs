//! The one place of this crate with `unsafe`: a shared mapping of a preallocated file.
use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A writable shared mapping of a whole journal file. The file is fallocated to at least this size and never truncated while mapped, so a store never meets SIGBUS.
pub(crate) struct MappedFile {
    map: MmapMut,
}

/// A file of memory alone, with all its pages reserved. Tier `disk` maps this in place of the journal file: a store into a page of a real file that is just being
/// written back takes a page fault and may wait for the file system's own journal, and no share core waits for a disk.
pub(crate) fn memory_file(name: &str, bytes: u64) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    Ok(file.into())
}

impl MappedFile {
    /// Maps the first `bytes` of `file` (fallocated before) and faults every page in for writing.
    pub(crate) fn map(file: &File, bytes: usize) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "mapping a file shared is unsafe by signature")]
        // SAFETY: the file lies in a folder flocked by this process, which alone writes it and never truncates a mapped file; readers use pread.
        let map = unsafe { MmapOptions::new().len(bytes).map_mut(file) }?;
        let mut mapped = Self { map };
        mapped.prefault();
        Ok(mapped)
    }

    /// Makes every page present and writable, so that no append takes a fault for a fresh page.
    fn prefault(&mut self) {
        // MADV_POPULATE_WRITE is of Linux 5.14; before it one store per page does the same.
        if self.map.advise(Advice::PopulateWrite).is_err() {
            for page in self.map.chunks_mut(4096) {
                if let Some(byte) = page.first_mut() {
                    let value = std::hint::black_box(*byte);
                    *byte = std::hint::black_box(value);
                }
            }
        }
    }

    /// The mapped bytes.
    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Stores a little-endian word at byte `offset` (a multiple of 8) after everything written before it: Release.
    /// Pairs with the page cache read of a reader (pread), which checks a CRC, and with the kernel's copy of the page after a kill.
    #[inline]
    pub(crate) fn store_release(&mut self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.map.len());
        let word = self.map.as_mut_ptr().wrapping_add(offset).cast::<u64>();
        #[expect(unsafe_code, reason = "an atomic view of a mapped word")]
        // SAFETY: the word lies inside of the mapping (asserted), is aligned as mappings are page aligned, and `&mut self` excludes other accesses of this process.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.store(value.to_le(), Ordering::Release);
    }
}
