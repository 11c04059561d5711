//! The ends of jobs that died with their server. A process that is killed records none, so the next one in its folder does, once every row of it is sealed: a job ended with
//! the first job on a new parent behind it or, at the latest, with the last that the log shows of the process that served it.
use crate::dimensions::{DIMENSIONS_START, DimensionLog, DimensionReader};
use crate::error::LogError;
use crate::folder::{self, Listing, seg_of};
use crate::records::DimensionEntry;
use crate::store;
use otedama_primitives::{JobId, RunId};
use std::collections::BTreeMap;
use std::path::Path;

/// Dimension records read in one step of the sealer: some milliseconds.
const RECORDS_A_STEP: usize = 256;
/// How far before the newest sealed row reading begins, where segments say what stands there: jobs live for minutes.
const LOOK_BACK_US: u64 = 30 * 60_000_000;
/// So many jobs are more than are live at once. Where reading met fewer, it begins again at the first record.
const JOBS_ENOUGH: u32 = 16;
/// Segments looked at for the last row of an earlier run.
const SEGMENTS_LOOKED_AT: usize = 64;

/// Where in the dimension log the records begin that may name a job still open: the end that a segment of `LOOK_BACK_US` ago had. Reads some metas, by halving.
pub(crate) fn look_back(dir: &Path, listing: &Listing) -> u64 {
    let sealed: Vec<_> = listing.segments.iter().filter(|(_, files)| files.has_block() && files.meta).map(|(&key, _)| key).collect();
    let meta = |key: (u32, u32)| store::read_meta(dir, seg_of(key)).ok().flatten();
    let Some(newest) = sealed.last().and_then(|&key| meta(key)) else { return DIMENSIONS_START };
    let since_us = newest.last_us.saturating_sub(LOOK_BACK_US);
    let later = sealed.partition_point(|&key| meta(key).is_some_and(|meta| meta.last_us < since_us));
    later.checked_sub(1).and_then(|before| meta(*sealed.get(before)?)).map_or(DIMENSIONS_START, |meta| meta.dimensions_end)
}

/// A job without an end.
struct Open {
    created_us: u64,
    /// When a job on a new parent was made, which ended it.
    replaced_us: Option<u64>,
}

/// The search for open jobs of earlier runs, a piece of it at a time.
pub(crate) struct EarlierRuns {
    /// Run of this process, whose jobs are its own affair.
    own_prefix: u32,
    from: u64,
    until: u64,
    reader: Option<DimensionReader>,
    jobs_met: u32,
    /// Jobs without an end.
    open: BTreeMap<u64, Open>,
    /// Last moment of each run that records name.
    seen_us: BTreeMap<u32, u64>,
    is_read: bool,
}

impl EarlierRuns {
    /// A search in the records from `from` to `until`, which are ends of records.
    pub(crate) fn new(own_prefix: u32, from: u64, until: u64) -> Self {
        let from = if from <= until { from } else { DIMENSIONS_START };
        Self { own_prefix, from, until, reader: None, jobs_met: 0, open: BTreeMap::new(), seen_us: BTreeMap::new(), is_read: false }
    }

    /// Does a bounded piece of the work; false when all is done. Call it when no row of an earlier run waits in the journal.
    pub(crate) fn step(&mut self, dir: &Path, dimensions: &DimensionLog) -> Result<bool, LogError> {
        if !self.is_read {
            // What cannot be read is told by verify; jobs then stay open, and the next start tries again.
            return Ok(self.read_some(dir).unwrap_or(false));
        }
        self.add_last_rows(dir);
        while let Some((&job, open)) = self.open.first_key_value() {
            let job = JobId(job);
            let seen_us = self.seen_us.get(&job.run().prefix()).copied().unwrap_or(0);
            // A job without an end says 0: one that nothing followed ended after all.
            dimensions.job_end(job, open.replaced_us.unwrap_or(seen_us).max(open.created_us + 1))?;
            self.open.pop_first();
        }
        Ok(false)
    }

    fn read_some(&mut self, dir: &Path) -> Result<bool, LogError> {
        if self.reader.is_none() {
            self.reader = Some(DimensionReader::from(dir, self.from)?);
        }
        let Some(reader) = self.reader.as_mut() else { return Ok(false) };
        for _ in 0..RECORDS_A_STEP {
            if reader.offset() >= self.until {
                break;
            }
            let entry = match reader.next() {
                Some(Ok((_, entry))) => entry,
                Some(Err(LogError::Damaged { .. })) => continue,
                Some(Err(error)) => return Err(error),
                None => break,
            };
            let (run, us) = match entry {
                DimensionEntry::Run(record) => (record.run, record.started_us),
                DimensionEntry::Session { session, record } => (RunId::from_prefix((session.0 >> 32) as u32), record.started_us),
                DimensionEntry::Worker { session, record } => (RunId::from_prefix((session.0 >> 32) as u32), record.seen_us),
                DimensionEntry::VersionMask { session, record } => (RunId::from_prefix((session.0 >> 32) as u32), record.since_us),
                DimensionEntry::Job(record) => {
                    if record.job.run().prefix() != self.own_prefix {
                        self.jobs_met += 1;
                        if record.clean {
                            for open in self.open.range_mut(record.job.run().job(0).0..record.job.0).map(|(_, open)| open) {
                                open.replaced_us.get_or_insert(record.created_us);
                            }
                        }
                        self.open.insert(record.job.0, Open { created_us: record.created_us, replaced_us: None });
                    }
                    (record.job.run(), record.created_us)
                }
                DimensionEntry::JobEnd { job, us } => {
                    self.open.remove(&job.0);
                    (job.run(), us)
                }
                DimensionEntry::Block(record) => (record.job.run(), record.found_us),
            };
            let seen_us = self.seen_us.entry(run.prefix()).or_default();
            *seen_us = us.max(*seen_us);
        }
        let more = reader.offset() < self.until;
        if !more {
            self.reader = None;
            if self.jobs_met < JOBS_ENOUGH && self.from > DIMENSIONS_START {
                *self = Self::new(self.own_prefix, DIMENSIONS_START, self.until);
            } else {
                self.is_read = true;
            }
        }
        Ok(true)
    }

    /// The last row of each run with an open job counts as a moment of it.
    fn add_last_rows(&mut self, dir: &Path) {
        let mut wanted: Vec<u32> = self.open.keys().map(|&job| JobId(job).run().prefix()).collect();
        wanted.dedup();
        let Ok(listing) = folder::list(dir) else { return };
        for (&key, _) in listing.segments.iter().rev().take(SEGMENTS_LOOKED_AT) {
            if wanted.is_empty() {
                return;
            }
            let Ok(Some(meta)) = store::read_meta(dir, seg_of(key)) else { continue };
            if wanted.contains(&meta.run_prefix) {
                wanted.retain(|&run| run != meta.run_prefix);
                let seen_us = self.seen_us.entry(meta.run_prefix).or_default();
                *seen_us = meta.last_us.max(*seen_us);
            }
        }
    }
}
