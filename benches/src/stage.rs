//! The stages around the kernel: the validate stage between its rings beside the kernel alone, and the whole way from frames in memory to rows in the journal.
use crate::cycles::{SideBySide, percentile};
use crate::figure::{Figure, Plan};
use crate::frames::{self, Traffic};
use crate::kernels::job;
use otedama_kernels::{BATCH, Isa, JobTable, Judged, ShareBatch, judge, judge_headers};
use otedama_pipeline::metrics::ValidateMetrics;
use otedama_pipeline::ring::{Full, Rx, Tx, ring};
use otedama_pipeline::stages::{BlockBell, DUPLICATE_PRESSURE, DUPLICATE_TABLES, Validate, ValidatePorts, ValidatedJob};
use otedama_pipeline::{Regime, Stage};
use otedama_primitives::{BlockCandidate, Job, RunId, ShareStatus, Submit, Verdict};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Merkle levels of a block with some 3,000 transactions.
const LEVELS: usize = 12;
/// Shares of a pass.
const PASS: usize = 8 * BATCH;
/// Shares after which a job is replaced: as many as there are when chain asks for a new one. All tables of a lane take part.
const SHARES_PER_JOB: u64 = DUPLICATE_PRESSURE as u64;
/// Shares in the newest table when the clock starts. The samples of one run fill it further and seldom reach the next job, so that no figure is one of an
/// empty table.
const SHARES_BEFORE: u64 = SHARES_PER_JOB / 5 * 2;
/// Connections whose extranonces repeat where roots are known.
const MINERS: u64 = 64;

/// The job with that counter.
pub fn numbered_job(counter: u32) -> Job {
    Job { id: RunId::new(1, 2).job(counter), clean: counter == 1, ..job(LEVELS) }
}

/// A validate stage between rings that this thread fills and empties.
struct Lane {
    validate: Validate,
    submits: Tx<Submit>,
    verdicts: Rx<Verdict>,
    _blocks: Rx<BlockCandidate>,
    jobs: Tx<Arc<ValidatedJob>>,
    kept: Vec<Arc<ValidatedJob>>,
    newest: u32,
    live: u32,
    repeats_extranonces: bool,
    number: u64,
    shares: Vec<Submit>,
    judged: Vec<Verdict>,
}

impl Lane {
    fn new(isa: Isa, live: u32, repeats_extranonces: bool) -> Self {
        let (submits, submits_rx, _) = ring("net_validate", 1 << 14, Full::Wait);
        let (verdicts_tx, verdicts, _) = ring("validate_log", 1 << 14, Full::Wait);
        let (blocks_tx, blocks, _) = ring("validate_chain", 64, Full::Flag);
        let (jobs, jobs_rx, _) = ring("chain_validate", 64, Full::Wait);
        let ports = ValidatePorts {
            submits: vec![submits_rx],
            verdicts: verdicts_tx,
            hashes: None,
            blocks: blocks_tx,
            block_bell: BlockBell::silent(),
            jobs: jobs_rx,
            metrics: Arc::new(ValidateMetrics::default()),
            nets_running: Arc::new(AtomicUsize::new(1)),
            validates_running: Arc::new(AtomicUsize::new(1)),
        };
        let blank = Submit { work: 1, ntime: 1_795_000_000, version: 0x2000_0000, status: Submit::PENDING, ..bytemuck::Zeroable::zeroed() };
        Self {
            validate: Validate::new(isa, 0x5eed, ports),
            submits,
            verdicts,
            _blocks: blocks,
            jobs,
            kept: Vec::new(),
            newest: 0,
            live,
            repeats_extranonces,
            number: 0,
            shares: vec![blank; PASS],
            judged: vec![bytemuck::Zeroable::zeroed(); PASS],
        }
    }

    fn publish(&mut self) {
        self.newest += 1;
        let job = Arc::new(ValidatedJob::new(&numbered_job(self.newest)));
        if self.kept.len() > DUPLICATE_TABLES {
            self.kept.remove(0);
        }
        self.kept.push(job.clone());
        assert!(self.jobs.push(job).is_ok(), "the stage takes a job before the next comes");
    }

    /// Goes once through all tables, so that no page of them is touched for the first time while the clock runs, and on to SHARES_BEFORE.
    fn warm_up(&mut self) {
        while self.newest < DUPLICATE_TABLES as u32 + self.live
            || self.number < u64::from(self.newest - self.live) * SHARES_PER_JOB + SHARES_BEFORE
        {
            self.pass();
        }
    }

    /// One full pass: shares in, verdicts out. Shares of the live jobs take turns.
    fn pass(&mut self) -> u64 {
        while self.newest < self.live || self.number >= u64::from(self.newest + 1 - self.live) * SHARES_PER_JOB {
            self.publish();
        }
        for share in &mut self.shares {
            self.number += 1;
            share.job = self.newest - self.number as u32 % self.live;
            share.extranonce1 = (self.number % MINERS) as u32;
            share.extranonce2 = if self.repeats_extranonces { 7 } else { self.number };
            share.nonce = self.number as u32;
        }
        self.submits.push_all(&self.shares);
        assert_eq!(self.validate.step(), Regime::Processing);
        assert_eq!(self.verdicts.take_into(&mut self.judged), PASS, "a pass judges what it takes");
        let accepted = self.judged.iter().filter(|verdict| verdict.status == ShareStatus::Accepted as u8).count();
        assert_eq!(accepted, PASS, "every share is new and meets work 1");
        self.judged.iter().fold(0, |sum: u64, verdict| sum.wrapping_add(u64::from(verdict.share_difficulty.to_bits())))
    }
}

/// The kernel alone on full batches that lie ready.
fn kernel_alone(isa: Isa, table: &JobTable, known_roots: bool) -> impl FnMut() -> u64 {
    let mut batches = vec![ShareBatch { count: BATCH as u32, ..ShareBatch::default() }; PASS / BATCH];
    for (index, batch) in batches.iter_mut().enumerate() {
        for lane in 0..BATCH {
            let number = (index * BATCH + lane) as u64;
            batch.extranonce[lane][4..12].copy_from_slice(&number.to_be_bytes());
            batch.nonce[lane] = number as u32;
            batch.version[lane] = 0x2000_0000;
            batch.ntime[lane] = 1_795_000_000;
        }
    }
    let mut out = Judged::default();
    move || {
        batches.iter().fold(0, |sum: u64, batch| {
            if known_roots {
                judge_headers(isa, table, batch, &mut out);
            } else {
                judge(isa, table, batch, &mut out);
            }
            sum.wrapping_add(u64::from(out.hash[7][0]) + u64::from(out.share_mask))
        })
    }
}

/// Measures the stage beside its kernel, then the whole way.
pub fn run(plan: Plan) -> Result<Vec<Figure>, String> {
    let isa = Isa::choose("auto").ok_or("this CPU has no kernel")?;
    let table = JobTable::new(&numbered_job(1));
    let (mut one_job, mut two_jobs, mut known_roots) = (Lane::new(isa, 1, false), Lane::new(isa, 2, false), Lane::new(isa, 1, true));
    [&mut one_job, &mut two_jobs, &mut known_roots].into_iter().for_each(Lane::warm_up);
    let mut bench = SideBySide::new();
    let units = PASS as u32;
    bench.add("kernel", units, kernel_alone(isa, &table, false));
    bench.add("one job", units, || one_job.pass());
    bench.add("two jobs", units, || two_jobs.pass());
    bench.add("kernel, headers", units, kernel_alone(isa, &table, true));
    bench.add("known roots", units, || known_roots.pass());
    let measured = bench.run(plan.samples);
    let core_mhz = bench.core_mhz();
    eprintln!("core {} at {core_mhz:.0} MHz, checksum {:016x}", plan.core, bench.checksum());
    drop(bench);
    let cycles = |name: &str| measured.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.cycles);
    let conditions = format!(
        "one process on one pinned core, stage and kernel in turn; {} samples, 2nd percentile; kernel {}; passes of {PASS} shares from ring to ring, filling and \
         emptying the rings included; 300-byte coinbase, {LEVELS} merkle levels, unique extranonce2 unless the name says known roots, every share credited, \
         {DUPLICATE_TABLES} duplicate tables that change hands every {SHARES_PER_JOB} shares, as where chain asks for a new job, each used before and filled to \
         {SHARES_BEFORE} shares when the clock starts",
        plan.samples,
        isa.label()
    );
    let figure = |name: &str, value: f64, unit: &'static str, counted: &str| Figure {
        name: name.to_owned(),
        value,
        unit,
        counted: counted.to_owned(),
        conditions: conditions.clone(),
    };
    let mut figures = vec![
        figure(
            "validate_stage_vs_kernel",
            cycles("kernel") / cycles("one job"),
            "ratio",
            "cycles of the kernel alone on full batches by those of the stage, one job",
        ),
        figure("validate_stage_vs_kernel_two_jobs", cycles("kernel") / cycles("two jobs"), "ratio", "the same, shares of two jobs in turn"),
        figure(
            "validate_stage_vs_kernel_known_roots",
            cycles("kernel, headers") / cycles("known roots"),
            "ratio",
            "cycles of the header kernel alone by those of the stage, every root in its cache",
        ),
        figure("validate_stage_cycles", cycles("one job"), "cycles/share", "core cycles of a share in the stage, one job"),
        figure("validate_stage_cycles_two_jobs", cycles("two jobs"), "cycles/share", "the same, shares of two jobs in turn"),
        figure("validate_stage_cycles_known_roots", cycles("known roots"), "cycles/share", "the same, every root in the cache"),
        figure("validate_kernel_cycles", cycles("kernel"), "cycles/share", "core cycles of a share in the kernel alone"),
        figure("validate_kernel_cycles_known_roots", cycles("kernel, headers"), "cycles/share", "the same, headers over known roots"),
    ];
    for traffic in [Traffic::FullWork, Traffic::KnownRoots] {
        figures.extend(frames_to_row(plan, isa, traffic)?);
    }
    Ok(figures)
}

/// Shares a second on one core from frames in memory to rows in the journal.
fn frames_to_row(plan: Plan, isa: Isa, traffic: Traffic) -> Result<Vec<Figure>, String> {
    let mut rounds = frames::run(plan.core, isa, traffic, DUPLICATE_TABLES, (plan.samples / 4).max(4))?;
    rounds.sort_by(|a, b| a.total_ns().total_cmp(&b.total_ns()));
    // The round of the 10th percentile, whole: its parts add up.
    let totals: Vec<f64> = rounds.iter().map(frames::Round::total_ns).collect();
    let quiet = percentile(&totals, 10.0);
    let round = rounds.iter().find(|round| round.total_ns() == quiet).ok_or("no round was measured")?;
    let (suffix, work) = match traffic {
        Traffic::FullWork => ("", "unique extranonce2, so that no root is known"),
        Traffic::KnownRoots => ("_known_roots", "only the nonce changes, so that every root is known"),
    };
    let conditions = format!(
        "one process, all stages in turn on one pinned core, the sealer on another; {} rounds of {} shares, the round of the 10th percentile; kernel {}; {work}; \
         {} connections that send {} submits a read, 300-byte coinbase, {LEVELS} merkle levels, journal in a temporary folder, every share credited, \
         a new job every {} shares",
        rounds.len(),
        frames::ROUND,
        isa.label(),
        frames::CONNECTIONS,
        frames::SUBMITS_PER_READ,
        frames::ROUND * frames::ROUNDS_PER_JOB,
    );
    let figure = |name: &str, value: f64, unit: &'static str, counted: &str| Figure {
        name: format!("{name}{suffix}"),
        value,
        unit,
        counted: counted.to_owned(),
        conditions: conditions.clone(),
    };
    let per_s = |total_ns: f64| 1e9 / total_ns;
    Ok(vec![
        figure(
            "frames_to_row_shares_per_s",
            per_s(quiet),
            "shares/s",
            "Stratum V1 lines in memory to rows in the journal and answers written, one core",
        ),
        figure(
            "frames_to_row_median_shares_per_s",
            per_s(percentile(&totals, 50.0)),
            "shares/s",
            "the same, median of the rounds: how quiet the machine was",
        ),
        figure(
            "frames_to_row_cores_for_10m",
            1e7 / per_s(quiet),
            "cores",
            "10 million shares a second by frames_to_row_shares_per_s, without sockets and the kernel's network stack",
        ),
        figure("frames_to_row_net_ns", round.net_ns, "ns/share", "of it in net: lines parsed, sessions, places, answers written"),
        figure("frames_to_row_validate_ns", round.validate_ns, "ns/share", "of it in validate"),
        figure("frames_to_row_log_ns", round.log_ns, "ns/share", "of it in log and journal"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_credits_every_share_over_job_changes() {
        for repeats in [false, true] {
            let mut lane = Lane::new(Isa::Portable, 2, repeats);
            lane.number = SHARES_PER_JOB - PASS as u64;
            for _ in 0..3 {
                lane.pass();
            }
            assert_eq!(lane.newest, 3);
        }
    }
}
