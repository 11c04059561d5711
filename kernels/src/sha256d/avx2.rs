//! AVX2, 8 lanes: for CPUs without SHA-NI, where it beats hashing share by share as soon as there are two.
#![expect(unsafe_code, reason = "vector intrinsics; SAFETY comments say what holds")]
use super::lanes::{Lanes, headers, roots};
use super::{JobTable, Judged, ShareBatch, compare::compare, scalar};
use crate::BATCH;
use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_or_si256, _mm256_set_epi64x, _mm256_set1_epi32,
    _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_xor_si256,
};

/// 8 lanes. Made only inside of this file's functions, which have the target features.
#[derive(Clone, Copy)]
struct Ymm(__m256i);

impl Ymm {
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: reached only through this file's `#[target_feature]` functions, whose callers have checked the CPU.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: as in `xor`.
        Self(unsafe { _mm256_and_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn shift_right<const BITS: i32>(self) -> Self {
        // SAFETY: as in `xor`.
        Self(unsafe { _mm256_srli_epi32::<BITS>(self.0) })
    }

    /// `LEFT` is 32 - `RIGHT`: constants cannot be computed from constants here.
    #[inline(always)]
    fn rotate_right<const RIGHT: i32, const LEFT: i32>(self) -> Self {
        const { assert!(RIGHT + LEFT == 32) };
        // SAFETY: as in `xor`.
        self.shift_right::<RIGHT>().or(Self(unsafe { _mm256_slli_epi32::<LEFT>(self.0) }))
    }
}

impl Lanes for Ymm {
    const COUNT: usize = 8;

    #[inline(always)]
    fn splat(word: u32) -> Self {
        // SAFETY: as in `xor`.
        Self(unsafe { _mm256_set1_epi32(word.cast_signed()) })
    }

    #[inline(always)]
    fn load(column: &[u32; BATCH], first: usize) -> Self {
        let lanes: &[u32] = &column[first..first + Self::COUNT];
        // SAFETY: as in `xor`; the slice has 32 readable bytes.
        Self(unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn store(self, column: &mut [u32; BATCH], first: usize) {
        let lanes: &mut [u32] = &mut column[first..first + Self::COUNT];
        // SAFETY: as in `xor`; the slice has 32 writable bytes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as in `xor`.
        Self(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: as in `xor`.
        Self(unsafe { _mm256_or_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        // SAFETY: as in `xor`.
        let order =
            unsafe { _mm256_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203, 0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203) };
        // SAFETY: as in `xor`.
        Self(unsafe { _mm256_shuffle_epi8(self.0, order) })
    }

    #[inline(always)]
    fn big_sigma0(self) -> Self {
        self.rotate_right::<2, 30>().xor(self.rotate_right::<13, 19>()).xor(self.rotate_right::<22, 10>())
    }

    #[inline(always)]
    fn big_sigma1(self) -> Self {
        self.rotate_right::<6, 26>().xor(self.rotate_right::<11, 21>()).xor(self.rotate_right::<25, 7>())
    }

    #[inline(always)]
    fn sigma0(self) -> Self {
        self.rotate_right::<7, 25>().xor(self.rotate_right::<18, 14>()).xor(self.shift_right::<3>())
    }

    #[inline(always)]
    fn sigma1(self) -> Self {
        self.rotate_right::<17, 15>().xor(self.rotate_right::<19, 13>()).xor(self.shift_right::<10>())
    }

    #[inline(always)]
    fn choose(e: Self, f: Self, g: Self) -> Self {
        e.and(f.xor(g)).xor(g)
    }

    #[inline(always)]
    fn majority(a: Self, b: Self, c: Self) -> Self {
        a.xor(b).and(b.xor(c)).xor(b)
    }
}

#[target_feature(enable = "avx2")]
fn roots_8(job: &JobTable, extranonce: &[[u32; BATCH]; 4], first: usize, out: &mut Judged) {
    roots::<Ymm, 1>(job, extranonce, first, out);
}

#[target_feature(enable = "avx2")]
fn headers_8(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
    headers::<Ymm, 1>(job, batch, first, out);
}

/// Judges a batch. A single share is hashed by the scalar kernel.
#[target_feature(enable = "avx2")]
pub(super) fn judge(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    if batch.count == 1 {
        return scalar::judge(job, batch, out);
    }
    let mut extranonce = [[0; BATCH]; 4];
    job.extranonce_columns(batch, &mut extranonce);
    for first in (0..batch.count as usize).step_by(Ymm::COUNT) {
        roots_8(job, &extranonce, first, out);
    }
    judge_headers(job, batch, out);
}

/// Judges a batch by its roots.
#[target_feature(enable = "avx2")]
pub(super) fn judge_headers(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    if batch.count == 1 {
        return scalar::judge_headers(job, batch, out);
    }
    for first in (0..batch.count as usize).step_by(Ymm::COUNT) {
        headers_8(job, batch, first, out);
    }
    compare(job, batch, out);
}
