//! Junk takes no memory: what is refused leaves no trace in the duplicate tables. 10^5 shares, with OTEDAMA_LONG 10^7.
mod lane;

use lane::{Lane, PASS, share};
use otedama_primitives::{ShareStatus, Submit};
use std::sync::atomic::Ordering;

#[test]
fn junk_leaves_the_duplicate_tables_empty() {
    let shares: u64 = if std::env::var_os("OTEDAMA_LONG").is_some() { 10_000_000 } else { 100_000 };
    let mut lane = Lane::new();
    let mut by_status = [0u64; 256];
    let mut sent = 0;
    while sent < shares {
        if sent.is_multiple_of(PASS as u64 * 20) {
            lane.publish_job();
        }
        let batch: Vec<Submit> = (0..PASS as u64)
            .map(|index| {
                let number = sent + index;
                // No hash meets this work but one in 2^64.
                let junk = share(lane.newest, number, u64::MAX);
                match number % 8 {
                    // A twin of the one before.
                    0 if index > 0 => share(lane.newest, number - 1, u64::MAX),
                    1 => Submit { job: lane.newest.saturating_sub(12), ..junk },
                    2 => Submit { status: ShareStatus::BadTime as u8, ..junk },
                    // One root, so that the cache serves it.
                    3 => Submit { extranonce1: 1, extranonce2: 1, ..junk },
                    _ => junk,
                }
            })
            .collect();
        lane.pass(&batch).iter().for_each(|verdict| by_status[usize::from(verdict.status)] += 1);
        sent += PASS as u64;
    }
    let count = |status: ShareStatus| by_status[status as usize];
    assert_eq!(count(ShareStatus::Stale), sent / 8);
    assert_eq!(count(ShareStatus::BadTime), sent / 8);
    assert_eq!(count(ShareStatus::LowDifficulty), sent / 8 * 6, "a share that was refused has no duplicate");
    // The gauge is that of the fullest of all tables.
    assert_eq!(lane.metrics.duplicate_table_used.load(Ordering::Relaxed), 0);
    assert_eq!(lane.metrics.kernel_disagreed.load(Ordering::Relaxed), 0);
}
