//! Hashes against targets: the top 64 bits decide, unless they are equal.
use super::{JobTable, Judged, ShareBatch};
use crate::BATCH;
use otedama_primitives::Work;

/// Sets both masks from `out.hash`.
///
/// The top 64 bits of a share's target are floor((2^64 - 1) / W), exact for every work W: the target is floor(2^256 / W) - 1. A tie, one share in 2^64 / W, is
/// decided by all 256 bits.
#[inline(always)]
pub(super) fn compare(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    let count = batch.count as usize;
    let mut top = [0u64; BATCH];
    for ((top, high), low) in top.iter_mut().zip(&out.hash[7]).zip(&out.hash[6]) {
        *top = u64::from(high.swap_bytes()) << 32 | u64::from(low.swap_bytes());
    }
    let mut target_top = [0u64; BATCH];
    let mut known = (1, u64::MAX);
    for (target_top, &work) in target_top.iter_mut().zip(&batch.work).take(count) {
        // Most sessions share one work: a division is saved.
        if work != known.0 {
            known = (work, u64::MAX / work.max(1));
        }
        *target_top = known.1;
    }
    let network_top = job.network_target.0[3];
    let (mut share_mask, mut network_mask, mut ties) = (0u32, 0u32, 0u32);
    for (share, (top, target_top)) in top.iter().zip(&target_top).enumerate() {
        share_mask |= u32::from(top < target_top) << share;
        network_mask |= u32::from(*top < network_top) << share;
        ties |= u32::from(top == target_top || *top == network_top) << share;
    }
    let real = u32::MAX >> (BATCH - count);
    out.share_mask = share_mask & real;
    out.network_mask = network_mask & real;
    if ties & real != 0 {
        break_ties(job, batch, out, ties & real);
    }
}

#[cold]
#[inline(never)]
fn break_ties(job: &JobTable, batch: &ShareBatch, out: &mut Judged, mut ties: u32) {
    while ties != 0 {
        let share = ties.trailing_zeros() as usize;
        ties &= ties - 1;
        let hash = out.hash_of(share);
        let bit = 1 << share;
        out.share_mask = out.share_mask & !bit | u32::from(Work::new(batch.work[share]).target().is_met_by(&hash)) << share;
        out.network_mask = out.network_mask & !bit | u32::from(job.network_target.is_met_by(&hash)) << share;
    }
}
