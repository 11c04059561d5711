//! What rows are judged by: sessions and jobs, from the log's own records.
use crate::report::Report;
use crate::tables::Shard;
use otedama_kernels::JobTable;
use otedama_primitives::{Job, RunId, Target};
use otedama_sharelog::{DimensionEntry, IdMap, JobRecord, LogError, LoggedRow, scan};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// A job may be named by an accepted row this long after its recorded end, and by a stale one this long before it; after it its shares are forgotten. Every net
/// hears of an end within a pass, but a thread may be stopped in between.
pub const END_SLACK_US: u64 = 10_000_000;

/// The journal raises an arrival that would go back: the moment that a row was judged at may lie a little before the one it has.
pub(crate) const RAISED_US: u64 = 1_000_000;

/// Merkle levels that a block can have: the kernels' limit, past which a record is taken for damaged.
const BRANCH_MAX: usize = 32;

/// What is known of a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionFacts {
    pub(crate) extranonce1: u32,
    /// Version bits that it might roll, since when; empty where no record says.
    pub(crate) masks: Vec<(u64, u32)>,
}

impl SessionFacts {
    /// The masks that may have been in force when a row was judged that arrived at `arrival_us`, the likeliest last; empty where no record says.
    pub(crate) fn masks_at(&self, arrival_us: u64) -> &[(u64, u32)] {
        let behind = self.masks.partition_point(|(since_us, _)| *since_us <= arrival_us);
        let from = self.masks.partition_point(|(since_us, _)| since_us.saturating_add(RAISED_US) <= arrival_us).saturating_sub(1);
        self.masks.get(from..behind).unwrap_or_default()
    }
}

/// What is known of a job.
pub(crate) struct JobFacts {
    pub(crate) job: Job,
    /// None while it lives, and where it was never recorded.
    pub(crate) end_us: Option<u64>,
    /// Work of the network target: no share of it is judged at more.
    pub(crate) network_work: u64,
    /// Bits by which extranonce2 is short of eight bytes.
    extranonce2_shift: u32,
    table: OnceLock<JobTable>,
}

impl JobFacts {
    /// None where the record makes no job that can be hashed.
    fn of(record: JobRecord) -> Option<Self> {
        if !(1..=8).contains(&record.extranonce2_bytes) || record.branch.len() > BRANCH_MAX || record.network_target == Target([0; 4]) {
            return None;
        }
        let network_work = record.network_target.work().hashes();
        let extranonce2_shift = 8 * (8 - u32::from(record.extranonce2_bytes));
        let job = Job {
            id: record.job,
            coin: record.coin,
            height: record.height,
            prev_hash: record.prev_hash,
            version: record.version,
            nbits: record.nbits,
            ntime: record.ntime,
            ntime_min: record.ntime_min,
            coinbase_prefix: record.coinbase_prefix.into(),
            coinbase_suffix: record.coinbase_suffix.into(),
            branch: record.branch.into(),
            extranonce2_bytes: record.extranonce2_bytes,
            network_target: record.network_target,
            clean: record.clean,
            created_us: record.created_us,
        };
        Some(Self { job, end_us: None, network_work, extranonce2_shift, table: OnceLock::new() })
    }

    /// Its tables, made when a row first names it.
    pub(crate) fn table(&self) -> &JobTable {
        self.table.get_or_init(|| JobTable::new(&self.job))
    }

    /// Extranonce1 and 2 as they stand in the coinbase, zeros behind them.
    #[inline]
    pub(crate) fn extranonce(&self, extranonce1: u32, extranonce2: u64) -> [u8; 16] {
        let words = (u128::from(extranonce1) << 96) | (u128::from(extranonce2 << self.extranonce2_shift) << 32);
        words.to_be_bytes()
    }
}

/// Sessions and jobs of a log.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) sessions: IdMap<u64, SessionFacts>,
    pub(crate) jobs: IdMap<u64, JobFacts>,
    /// Start of each run by its prefix: a later run of the folder ends every job of the ones before.
    runs: BTreeMap<u32, u64>,
    /// Rows before this may have been removed by retention; 0 where none were.
    pub(crate) rows_gone_before_us: u64,
}

impl Facts {
    /// Reads every record of the folder; damage goes into the report.
    pub(crate) fn read(dir: &Path, report: &mut Report) -> Result<Self, LogError> {
        let mut facts = Self::default();
        let mut ends = Vec::new();
        let mut bad_jobs = Vec::new();
        let damage = scan::records(dir, |entry| match entry {
            DimensionEntry::Run(record) => drop(facts.runs.insert(record.run.prefix(), record.started_us)),
            DimensionEntry::Session { session, record } => {
                facts.sessions.entry(session.0).or_default().extranonce1 = record.extranonce1;
            }
            DimensionEntry::Job(record) => {
                let id = record.job;
                match JobFacts::of(record) {
                    Some(job) => drop(facts.jobs.insert(id.0, job)),
                    None => bad_jobs.push(id),
                }
            }
            DimensionEntry::VersionMask { session, record } => {
                facts.sessions.entry(session.0).or_default().masks.push((record.since_us, record.mask));
            }
            DimensionEntry::JobEnd { job, us } => ends.push((job, us)),
            DimensionEntry::Worker { .. } | DimensionEntry::Block(_) => {}
        })?;
        for session in facts.sessions.values_mut() {
            // Stable: of one moment the later record holds. What stands in the journal and in the dimension log comes twice.
            session.masks.sort_by_key(|(since_us, _)| *since_us);
            session.masks.dedup();
        }
        for (job, us) in ends {
            if let Some(job) = facts.jobs.get_mut(&job.0) {
                job.end_us = Some(us);
            }
        }
        report.problems.extend(damage);
        report.problems.extend(bad_jobs.into_iter().map(|job| format!("the record of job {job} makes no job that can be hashed")));
        Ok(facts)
    }

    /// When the oldest job began whose shares may stand in rows from `since_us` on.
    pub(crate) fn oldest_job_at_us(&self, since_us: u64) -> u64 {
        let lives = |job: &JobFacts| {
            let run_ended = || {
                let started = self.runs.get(&job.job.id.run().prefix()).copied().unwrap_or(0);
                self.runs.values().copied().filter(|&other| other > started).min()
            };
            let end_us = job.end_us.or_else(run_ended).unwrap_or(u64::MAX);
            end_us.saturating_add(END_SLACK_US) >= since_us
        };
        self.jobs.values().filter(|job| lives(job)).map(|job| job.job.created_us).fold(since_us, u64::min)
    }

    /// Frees what no later row can need: tables and shares of jobs that ended well before `row`, or with an earlier run.
    pub(crate) fn forget_before(&mut self, row: &LoggedRow, shards: &mut [Shard]) {
        let run = (row.session >> 32) as u32;
        let jobs = &mut self.jobs;
        let mut keeps = |job: u64| {
            let Some(facts) = jobs.get_mut(&job) else { return false };
            let same_run = facts.job.id.run() == RunId::from_prefix(run);
            let keeps = same_run && facts.end_us.is_none_or(|end_us| end_us.saturating_add(END_SLACK_US) >= row.arrival_us);
            if !keeps {
                facts.table = OnceLock::new();
            }
            keeps
        };
        shards.iter_mut().for_each(|shard| shard.keep(&mut keeps));
    }

    pub(crate) fn job(&self, id: u64) -> Option<&JobFacts> {
        self.jobs.get(&id)
    }
}
