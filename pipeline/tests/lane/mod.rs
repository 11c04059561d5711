//! A validate lane between rings that the test holds the other ends of.
use bytemuck::Zeroable;
use otedama_kernels::{BATCH, Isa};
use otedama_pipeline::metrics::ValidateMetrics;
use otedama_pipeline::ring::{Full, Rx, Tx, ring};
use otedama_pipeline::stages::{BlockBell, Validate, ValidatePorts, ValidatedJob};
use otedama_pipeline::{Regime, Stage};
use otedama_primitives::{BlockCandidate, Coin, Hash256, Job, RunId, Submit, Target, Verdict};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Shares that one step takes.
pub const PASS: usize = 8 * BATCH;
/// Jobs whose tables the test keeps, so that the lane never frees one.
const KEPT: usize = 32;

pub struct Lane {
    validate: Validate,
    submits: Tx<Submit>,
    verdicts: Rx<Verdict>,
    _blocks: Rx<BlockCandidate>,
    jobs: Tx<Arc<ValidatedJob>>,
    kept: VecDeque<Arc<ValidatedJob>>,
    pub newest: u32,
    pub metrics: Arc<ValidateMetrics>,
    judged: Vec<Verdict>,
}

impl Lane {
    /// A lane on the best kernel of this CPU.
    pub fn new() -> Self {
        let (submits, submits_rx, _) = ring("net_validate", 1024, Full::Wait);
        let (verdicts_tx, verdicts, _) = ring("validate_log", 1024, Full::Wait);
        let (blocks_tx, blocks, _) = ring("validate_chain", 64, Full::Flag);
        let (jobs, jobs_rx, _) = ring("chain_validate", 64, Full::Wait);
        let metrics = Arc::new(ValidateMetrics::default());
        let ports = ValidatePorts {
            submits: vec![submits_rx],
            verdicts: verdicts_tx,
            hashes: None,
            blocks: blocks_tx,
            block_bell: BlockBell::silent(),
            jobs: jobs_rx,
            metrics: metrics.clone(),
            nets_running: Arc::new(AtomicUsize::new(1)),
            validates_running: Arc::new(AtomicUsize::new(1)),
        };
        let isa = Isa::choose("auto").expect("every CPU has a kernel");
        Self {
            validate: Validate::new(isa, 7, ports),
            submits,
            verdicts,
            _blocks: blocks,
            jobs,
            kept: VecDeque::new(),
            newest: 0,
            metrics,
            judged: vec![Verdict::zeroed(); PASS],
        }
    }

    /// A job with a short coinbase and no other transaction, on a network of difficulty 1.
    pub fn publish_job(&mut self) {
        self.newest += 1;
        let job = Arc::new(ValidatedJob::new(&Job {
            id: RunId::new(1, 2).job(self.newest),
            coin: Coin::Bitcoin,
            height: 1,
            prev_hash: Hash256([9; 32]),
            version: 0x2000_0000,
            nbits: 0x1d00_ffff,
            ntime: 1_700_000_000,
            ntime_min: 1_700_000_000,
            coinbase_prefix: self.newest.to_be_bytes().into(),
            coinbase_suffix: Box::default(),
            branch: Box::default(),
            extranonce2_bytes: 8,
            network_target: Target::from_compact(0x1d00_ffff).expect("difficulty 1"),
            clean: false,
            created_us: 0,
        }));
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(job.clone());
        assert!(self.jobs.push(job).is_ok(), "the lane takes jobs at every step");
        self.validate.step();
    }

    /// One pass over up to `PASS` shares; their verdicts in order.
    pub fn pass(&mut self, shares: &[Submit]) -> &[Verdict] {
        self.submits.push_all(shares);
        assert_eq!(self.validate.step(), Regime::Processing);
        self.validate.housekeeping();
        let judged = &mut self.judged[..shares.len()];
        assert_eq!(self.verdicts.take_into(judged), shares.len(), "a pass judges what it takes");
        judged
    }
}

/// A share of that number: its own extranonce2 and nonce.
pub fn share(job: u32, number: u64, work: u64) -> Submit {
    Submit {
        job,
        work,
        extranonce1: number as u32 % 64,
        extranonce2: number,
        nonce: (number as u32).wrapping_mul(0x9e37_79b9),
        ntime: 1_700_000_000,
        version: 0x2000_0000,
        status: Submit::PENDING,
        ..Submit::zeroed()
    }
}
