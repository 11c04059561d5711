//! Accepted shares take the memory that was there from the start, over any number of jobs: 10^6 shares, with OTEDAMA_LONG 10^8. Alone in its process, as it
//! measures the whole of it.
mod lane;

use lane::{Lane, PASS, share};
use otedama_pipeline::stages::{DUPLICATE_ENTRIES, DUPLICATE_PRESSURE, DUPLICATE_TABLE_BYTES, DUPLICATE_TABLES};
use otedama_primitives::{ShareStatus, Submit};
use std::sync::atomic::Ordering;

/// Anonymous memory of this process that is resident, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux 4.5 or later");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    kib << 10
}

/// Beside the tables: what an allocator and the jobs that come and go take.
const SLACK: usize = 4 << 20;

struct Flood {
    lane: Lane,
    number: u64,
    accepted: u64,
}

impl Flood {
    /// A pass of new shares of the newest job; how many of them found the table full.
    fn pass(&mut self) -> usize {
        let first = self.number;
        self.number += PASS as u64;
        let job = self.lane.newest;
        let batch: Vec<Submit> = (first..self.number).map(|number| share(job, number, 1)).collect();
        let mut full = 0;
        for verdict in self.lane.pass(&batch) {
            match verdict.status {
                status if status == ShareStatus::Accepted as u8 => self.accepted += 1,
                status if status == ShareStatus::Overload as u8 => full += 1,
                other => panic!("a new share at work 1 got status {other}"),
            }
        }
        full
    }

    fn is_under_pressure(&self) -> bool {
        self.lane.metrics.duplicate_table_newest_used.load(Ordering::Relaxed) >= DUPLICATE_PRESSURE as u64
    }
}

#[test]
fn accepted_shares_leave_memory_flat_over_job_changes() {
    let long = std::env::var_os("OTEDAMA_LONG").is_some();
    let shares: u64 = if long { 100_000_000 } else { 1_000_000 };
    let mut flood = Flood { lane: Lane::new(), number: 0, accepted: 0 };
    flood.lane.publish_job();
    let before = resident();

    // A chain that does not come up with a new job: the table fills, refuses what it cannot hold, and still knows all that it has.
    let mut full = 0;
    while full == 0 {
        full = flood.pass();
    }
    assert!(flood.is_under_pressure());
    assert_eq!(flood.accepted, DUPLICATE_ENTRIES as u64 / 16 * 15);
    let again: Vec<Submit> = (0..PASS as u64).map(|number| share(1, number, 1)).collect();
    assert!(flood.lane.pass(&again).iter().all(|verdict| verdict.status == ShareStatus::Duplicate as u8));

    // From here on with a new job at three quarters, as the control core asks for it.
    let (mut jobs_under_pressure, mut settled) = (0, None);
    flood.lane.publish_job();
    while flood.accepted < shares {
        assert_eq!(flood.pass(), 0, "a new job came in time");
        if flood.is_under_pressure() {
            jobs_under_pressure += 1;
            flood.lane.publish_job();
        }
        if settled.is_none() && jobs_under_pressure > DUPLICATE_TABLES {
            settled = Some(resident());
        }
    }
    let after = resident();
    assert!(jobs_under_pressure >= 1);
    assert!(after - before <= DUPLICATE_TABLES * DUPLICATE_TABLE_BYTES + SLACK, "{before} bytes before, {after} after");
    if long {
        let settled = settled.expect("every table was full once");
        assert!(after <= settled + SLACK, "{settled} bytes once every table had been filled, {after} at the end");
        println!("{before} bytes before, {settled} when every table had been filled, {after} after {} shares", flood.accepted);
    }
    assert_eq!(flood.lane.metrics.kernel_disagreed.load(Ordering::Relaxed), 0);
    let checked = flood.lane.metrics.share_crosschecked.load(Ordering::Relaxed);
    assert!(checked.abs_diff(flood.number / 4096) <= 1 + flood.number / 4096 / 50, "{checked} of {} were recomputed", flood.number);
}
