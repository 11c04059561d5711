//! Which memory stands on huge pages.
//!
//! A huge page saves look-ups in the page tables where memory is read at random, and costs its whole size where a part of it is touched. So the tables that are read
//! at random ask for them, and everything else is kept off them, whatever the host gives unasked.
use bytemuck::Zeroable;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a huge page where it is two megabytes, as on x86-64 and on arm64 with pages of 4 KiB; elsewhere the alignment is not needed and does no harm.
const HUGE_BYTES: usize = 2 << 20;

/// A fixed number of values, zero at first, on huge pages where the host has them. What was never touched takes no memory.
pub struct HugeSlice<T> {
    start: NonNull<T>,
    count: usize,
}

impl<T: Zeroable + Copy> HugeSlice<T> {
    fn layout(count: usize) -> Layout {
        let layout = Layout::array::<T>(count).and_then(|layout| layout.align_to(HUGE_BYTES));
        layout.expect("the caller's count is a constant of the code, some megabytes")
    }

    /// `count` zeros, at least one byte.
    #[expect(unsafe_code, reason = "the alignment of huge pages is asked of the allocator")]
    pub fn zeroed(count: usize) -> Self {
        let layout = Self::layout(count);
        assert!(layout.size() > 0, "an empty table is none");
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        let slice = Self { start, count };
        advise(slice.as_ptr().cast(), layout.size(), Advice::Huge);
        slice
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    #[inline(always)]
    #[expect(unsafe_code, reason = "memory of the allocator is read as what it holds")]
    fn deref(&self) -> &[T] {
        // SAFETY: allocated for `count` values, which were zero at first and may be; borrowed as this object is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T> DerefMut for HugeSlice<T> {
    #[inline(always)]
    #[expect(unsafe_code, reason = "memory of the allocator is written as what it holds")]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

impl<T> Drop for HugeSlice<T> {
    #[expect(unsafe_code, reason = "what the allocator gave goes back to it")]
    fn drop(&mut self) {
        let bytes = self.count * size_of::<T>();
        if let Ok(layout) = Layout::from_size_align(bytes, HUGE_BYTES.max(align_of::<T>())) {
            // SAFETY: the same size and alignment as in `zeroed`; the values own nothing.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T> std::fmt::Debug for HugeSlice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HugeSlice").field("count", &self.count).finish_non_exhaustive()
    }
}

#[expect(unsafe_code, reason = "the pointer is the object's own")]
// SAFETY: it owns its memory as a box does.
unsafe impl<T: Send> Send for HugeSlice<T> {}

#[expect(unsafe_code, reason = "the pointer is the object's own")]
// SAFETY: it lends its memory as a box does.
unsafe impl<T: Sync> Sync for HugeSlice<T> {}

/// Keeps what will be written here on small pages: it is filled bit by bit, and the rest of a huge page would stand empty.
pub fn keep_on_small_pages<T>(room: &mut [MaybeUninit<T>]) {
    advise(room.as_ptr().cast(), size_of_val(room), Advice::Small);
}

/// Keeps this process off huge pages except where it asks for them. Linux 6.18; before that a host whose setting is `always` gives them to all memory that is
/// not advised otherwise. Call it before there is much memory.
pub fn ask_for_huge_pages_alone() {
    #[cfg(target_os = "linux")]
    linux::disable_unless_advised();
}

#[derive(Clone, Copy)]
enum Advice {
    Huge,
    Small,
}

/// Advises the whole pages inside of `bytes` from `start` on. It is advice: what a host refuses costs speed or memory and nothing else.
fn advise(start: *const u8, bytes: usize, advice: Advice) {
    #[cfg(target_os = "linux")]
    linux::advise(start, bytes, advice);
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes, advice);
}

#[cfg(target_os = "linux")]
mod linux {
    use super::Advice;
    use rustix::mm;
    use rustix::param::page_size;

    /// From <linux/prctl.h>.
    const PR_THP_DISABLE_EXCEPT_ADVISED: libc::c_ulong = 1 << 1;

    #[expect(unsafe_code, reason = "the kernel is told about memory by its address")]
    pub(super) fn advise(start: *const u8, bytes: usize, advice: Advice) {
        let page = page_size();
        let before = start.align_offset(page);
        let inside = bytes.saturating_sub(before) / page * page;
        if inside == 0 {
            return;
        }
        let advice = match advice {
            Advice::Huge => mm::Advice::LinuxHugepage,
            Advice::Small => mm::Advice::LinuxNoHugepage,
        };
        // SAFETY: whole pages inside of one allocation; which pages they stand on changes nothing of what they hold.
        let _ = unsafe { mm::madvise(start.wrapping_add(before).cast_mut().cast(), inside, advice) };
    }

    #[expect(unsafe_code, reason = "neither std nor rustix has this flag of prctl")]
    pub(super) fn disable_unless_advised() {
        let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: numbers alone; older kernels refuse the flag.
        let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, PR_THP_DISABLE_EXCEPT_ADVISED, unused, unused) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_slice_is_zero_aligned_and_keeps_what_is_written() {
        let mut slice = HugeSlice::<[u64; 3]>::zeroed(1 << 18);
        assert_eq!(slice.as_ptr().align_offset(HUGE_BYTES), 0);
        assert!(slice.iter().all(|value| *value == [0; 3]));
        let last = slice.len() - 1;
        (slice[0], slice[last]) = ([1; 3], [2; 3]);
        assert_eq!((slice[0], slice[1], slice[last]), ([1; 3], [0; 3], [2; 3]));
        let moved = slice;
        assert_eq!(std::thread::spawn(move || moved[last]).join().expect("no panic"), [2; 3]);
    }

    /// Kilobytes of huge pages under the mapping that holds `address`, and its flags; None where the kernel does not tell.
    #[cfg(target_os = "linux")]
    fn mapping_of(address: usize) -> Option<(u64, String)> {
        let text = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut found = None;
        for line in text.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((Ok(start), Ok(end))) = range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))) {
                found = (start..end).contains(&address).then_some(0_u64);
            } else if let (Some(huge), Some(text)) = (&mut found, line.strip_prefix("AnonHugePages:")) {
                *huge = text.trim().strip_suffix(" kB")?.parse().ok()?;
            } else if let (Some(huge), Some(flags)) = (found, line.strip_prefix("VmFlags:")) {
                return Some((huge, flags.to_owned()));
            }
        }
        None
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn each_advice_reaches_the_kernel() {
        if std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_err() {
            eprintln!("skipped: this kernel was built without transparent huge pages");
            return;
        }
        let slice = HugeSlice::<u64>::zeroed(1 << 20);
        let Some((_, flags)) = mapping_of(slice.as_ptr().addr() + HUGE_BYTES) else { panic!("the kernel has no such mapping") };
        assert!(flags.split_whitespace().any(|flag| flag == "hg"), "{flags}");
        let mut small: Vec<u64> = Vec::with_capacity(1 << 20);
        keep_on_small_pages(small.spare_capacity_mut());
        let Some((huge, flags)) = mapping_of(small.as_ptr().addr() + (4 << 20)) else { panic!("the kernel has no such mapping") };
        assert!(flags.split_whitespace().any(|flag| flag == "nh"), "{flags}");
        assert_eq!(huge, 0);
    }
}
