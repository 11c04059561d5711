//! `otedama log replay`: every verdict of a share log that can be recomputed, recomputed from its own rows and dimension records alone.
//!
//! A row has what the miner sent, its session's record the extranonce1, its job's record the coinbase, the branch, the ntime window and the network target. So a row of
//! status accepted, duplicate, low_difficulty, bad_time or bad_version is judged again as the pool judged it, and the two verdicts are held side by side: status,
//! block flag, share difficulty bit for bit. What cannot be judged is counted by its reason, never passed over.
//!
//! **The work** of a row is what the row says: the difficulty of a session at a moment is in no record. Replay holds it against the hash (an accepted share meets
//! it) and against the network's (no share is judged at more).
//!
//! **Stale** is judged by the recorded end of the job, within [`END_SLACK_US`]: a net hears of an end a moment before or after it is recorded. The flags `late` and
//! `grace` hang on what a session had been sent and are not judged.
//!
//! **Memory**: the accepted shares of jobs that live, 24 bytes and the index each. A job takes at most 491,520 shares of each validate lane before the pool ends it, and
//! a job's shares are forgotten [`END_SLACK_US`] after its end or with its run.
#![forbid(unsafe_code)]

mod facts;
mod judge;
mod report;
mod tables;

pub use facts::END_SLACK_US;
pub use report::{Difference, Kind, Report, Unjudged};

use facts::Facts;
use judge::Portion;
use otedama_kernels::Isa;
use otedama_sharelog::scan::{self, Filter};
use otedama_sharelog::{Layout, LogError, LoggedRow};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use tables::Shard;

/// Rows judged at a time, 14 MiB of them; one more such portion is read meanwhile.
const PORTION_ROWS: usize = 1 << 17;
/// Rows under which more threads would cost more than they save.
const ROWS_PER_THREAD: usize = 1024;

/// What is to be replayed.
#[derive(Clone, Debug)]
pub struct Order {
    /// Folder of the log, in use or not.
    pub dir: PathBuf,
    /// Arrival at or after, microseconds since the epoch. Rows before it are read as far back as a job of the range goes, for the shares that may stand there.
    pub since_us: Option<u64>,
    /// Arrival before, microseconds since the epoch.
    pub until_us: Option<u64>,
    /// Threads that judge, at least 1; one more reads.
    pub threads: usize,
    /// The kernel.
    pub isa: Isa,
}

/// Judges a log again. An error means that it could not be read at all; whatever is wrong with it is in the report.
pub fn replay(order: &Order) -> Result<Report, LogError> {
    let mut report = Report::default();
    let since_us = match order.since_us {
        Some(since_us) => Some(Facts::read(&order.dir, &mut Report::default())?.oldest_job_at_us(since_us)),
        None => None,
    };
    // Rows first, then what resolves them, which only grows: right for a log in use, too.
    let rows = scan::rows(&order.dir, Filter { since_us, until_us: order.until_us, status: None })?;
    let mut facts = Facts::read(&order.dir, &mut report)?;
    let threads = order.threads.max(1);
    let mut shards: Vec<Shard> = (0..threads).map(|_| Shard::default()).collect();
    facts.rows_gone_before_us = oldest_row_us(&order.dir)?;

    std::thread::scope(|scope| {
        let (full, portions) = sync_channel::<(Vec<LoggedRow>, Vec<LogError>)>(1);
        scope.spawn(move || read(rows, |portion| full.send(portion).is_ok()));
        let mut before = 0;
        for (rows, damage) in portions {
            for error in damage {
                match error {
                    LogError::Damaged { .. } => report.problems.push(error.to_string()),
                    other => return Err(other),
                }
            }
            let parts = threads.min(rows.len() / ROWS_PER_THREAD).max(1);
            let portion = Portion {
                rows: &rows,
                before,
                since_us: order.since_us.unwrap_or(0),
                isa: order.isa,
                is_damaged: !report.problems.is_empty(),
            };
            report.segments_seen(&rows);
            judge::portion(&portion, &facts, parts, &mut shards, &mut report);
            before += rows.len() as u64;
            if let Some(last) = rows.last() {
                facts.forget_before(last, &mut shards);
            }
        }
        Ok(())
    })?;
    Ok(report)
}

/// Reads rows into portions until nobody takes them.
fn read(rows: scan::Rows, mut give: impl FnMut((Vec<LoggedRow>, Vec<LogError>)) -> bool) {
    let mut portion = Vec::with_capacity(PORTION_ROWS);
    let mut damage = Vec::new();
    for row in rows {
        match row {
            Ok(row) => portion.push(row),
            Err(error) => damage.push(error),
        }
        if portion.len() == PORTION_ROWS {
            let full = std::mem::replace(&mut portion, Vec::with_capacity(PORTION_ROWS));
            if !give((full, std::mem::take(&mut damage))) {
                return;
            }
        }
    }
    give((portion, damage));
}

/// Arrival of the oldest row before which the folder may lack some, because retention removed them or their layout keeps less; 0 where it lacks none.
fn oldest_row_us(dir: &Path) -> Result<u64, LogError> {
    let store = otedama_sharelog::store::SegmentStore::open(dir)?;
    let metas = store.readable()?.metas;
    let removed_us = metas.first().filter(|meta| meta.sequence() > 1).map_or(0, |meta| meta.first_us);
    // Lean rows and sums are there, but not as an original that could be known again.
    let summed_us = metas.iter().filter(|meta| meta.layout == Layout::Lean || meta.layout == Layout::Rollup).map(|meta| meta.last_us).max();
    Ok(removed_us.max(summed_us.map_or(0, |last_us| last_us.saturating_add(1_000_000))))
}
