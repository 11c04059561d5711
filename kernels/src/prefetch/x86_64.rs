//! `prefetcht0`, part of SSE and so of every x86-64 CPU.
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

#[inline(always)]
#[expect(unsafe_code, reason = "the intrinsic takes a pointer")]
pub fn prefetch<T>(place: &T) {
    // SAFETY: a prefetch reads nothing that the program can see and faults on no address; this one comes from a reference.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) }
}
