//! THE page: every ring, every stage, every core. Ring ends are moved into stages: a wrong record type, an end used twice or an end left hanging is a compiler message.
//!
//! ```text
//!  net[i] ──net_validate──> validate[j] ──validate_log──> log ──log_net──> net[i]     shares and answers
//!  net[i] ──net_log──> log                                                            sessions and workers, before the rows that name them
//!  chain ──chain_validate──> validate[j]; then chain ──chain_net──> net[i]            jobs
//!  validate[j] ──validate_chain──> chain                                              block candidates
//!  net[i] ──net_stats──> stats ──stats_net──> net[i]                                  latency histograms, full and emptied
//! ```
use otedama_kernels::Isa;
use otedama_pipeline::driver::Driver;
use otedama_pipeline::fail_point::Pause;
use otedama_pipeline::metrics::{LogMetrics, NetMetrics, ValidateMetrics};
use otedama_pipeline::stages::{
    Append, BlockBell, Histograms, IN_FLIGHT, Log, LogPorts, Net, NetPorts, NetSettings, Validate, ValidatePorts, ValidatedJob,
};
use otedama_pipeline::{Cores, Full, Rx, Topology, Tx};
use otedama_primitives::{Answer, BlockCandidate, Clock, Dimension, Hash256, Submit, Verdict};
use otedama_stratum::v1::PublishedJob;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

/// Depths of the rings, printed by `otedama check`.
pub mod depth {
    /// Submits of one net to one validate lane.
    pub const NET_VALIDATE: usize = 1 << 14;
    /// Verdicts of one validate lane.
    pub const VALIDATE_LOG: usize = 1 << 14;
    /// Sessions and workers of one net.
    pub const NET_LOG: usize = 1 << 10;
    /// Block candidates of one validate lane.
    pub const VALIDATE_CHAIN: usize = 64;
    /// Jobs to one stage.
    pub const JOBS: usize = 64;
    /// Histograms that circulate between one net and stats.
    pub const HISTOGRAMS: usize = 2;
}

/// A latency histogram on its way.
pub type Latencies = Box<hdrhistogram::Histogram<u64>>;

/// What the control and stats cores hold of the share path.
pub struct ControlEnds {
    /// Jobs to the validate lanes: published here first.
    pub jobs_to_validate: Vec<Tx<Arc<ValidatedJob>>>,
    /// Jobs to the nets.
    pub jobs_to_net: Vec<Tx<Arc<PublishedJob>>>,
    /// Block candidates, one ring per validate lane.
    pub blocks: Vec<Rx<BlockCandidate>>,
    /// Full histograms, and the way back, one pair per net.
    pub latencies: Vec<(Rx<Latencies>, Tx<Latencies>)>,
    /// Counters of the nets.
    pub net_metrics: Vec<Arc<NetMetrics>>,
    /// Counters of the validate lanes.
    pub validate_metrics: Vec<Arc<ValidateMetrics>>,
    /// Counters of the log.
    pub log_metrics: Arc<LogMetrics>,
}

/// What one boot gives to its stages.
pub struct Boot<C> {
    /// The clock.
    pub clock: C,
    /// The hash kernel.
    pub isa: Isa,
    /// 64 random bits: hash seeds.
    pub seed: u64,
    /// Tier `memory`: answers are released before the append.
    pub answer_first: bool,
    /// Layout `full`: the hash of every share goes to the log.
    pub keeps_hashes: bool,
    /// Calls chain to the ring of block candidates.
    pub block_bell: BlockBell,
    /// Stages that stop for a while; none but in tests.
    pub fail_points: Vec<Pause>,
}

/// Lays the pipeline out over `cores`: one net per driver, one validate lane per entry, one log.
pub fn lay_out<D: Driver + 'static, A: Append + 'static, C: Clock>(
    cores: &Cores,
    drivers: Vec<D>,
    settings: &NetSettings,
    journal: A,
    boot: &Boot<C>,
) -> (Topology, ControlEnds) {
    let mut t = Topology::new(&[cores.control, cores.stats]).with_fail_points(boot.fail_points.clone());
    let (nets, lanes) = (cores.net.len(), cores.validate.len());
    assert_eq!(nets, drivers.len(), "one driver per net stage");
    let nets_running = Arc::new(AtomicUsize::new(nets));
    let validates_running = Arc::new(AtomicUsize::new(lanes));
    let next_session = Arc::new(AtomicU32::new(1));
    let log_full = Arc::new(AtomicBool::new(false));
    let mut ends = ControlEnds {
        jobs_to_validate: vec![],
        jobs_to_net: vec![],
        blocks: vec![],
        latencies: vec![],
        net_metrics: vec![],
        validate_metrics: vec![],
        log_metrics: Arc::default(),
    };
    let mut submits_of_lane: Vec<Vec<Rx<Submit>>> = (0..lanes).map(|_| vec![]).collect();
    let (mut all_answers, mut all_names, mut all_verdicts, mut all_hashes) = (vec![], vec![], vec![], vec![]);

    for (net, driver) in drivers.into_iter().enumerate() {
        let mut submits = vec![];
        for lane in cores.lanes_of_net(net) {
            //                                          record             name                                   depth                    when full
            let (submits_tx, submits_rx) = t.ring::<Submit>(format!("net_validate:{net}.{lane}"), depth::NET_VALIDATE, Full::Wait);
            submits.push(submits_tx);
            submits_of_lane[lane].push(submits_rx);
        }
        let (answers_tx, answers) = t.ring::<Answer>(format!("log_net:{net}"), IN_FLIGHT, Full::Never); // net's FIFO has this depth: asserted
        let (names, names_rx) = t.ring::<Dimension>(format!("net_log:{net}"), depth::NET_LOG, Full::Wait);
        let (jobs_tx, jobs) = t.ring::<Arc<PublishedJob>>(format!("chain_net:{net}"), depth::JOBS, Full::Wait);
        let (full, full_rx) = t.ring::<Latencies>(format!("net_stats:{net}"), depth::HISTOGRAMS, Full::Wait);
        let (mut empty_tx, empty) = t.ring::<Latencies>(format!("stats_net:{net}"), depth::HISTOGRAMS, Full::Wait);
        for _ in 0..depth::HISTOGRAMS {
            assert!(empty_tx.push(Histograms::empty()).is_ok(), "as many histograms circulate as the ring holds");
        }
        let metrics: Arc<NetMetrics> = Arc::default();
        all_answers.push(answers_tx);
        all_names.push(names_rx);
        ends.jobs_to_net.push(jobs_tx);
        ends.latencies.push((full_rx, empty_tx));
        ends.net_metrics.push(metrics.clone());
        let (next_session, nets_running, log_full) = (next_session.clone(), nets_running.clone(), log_full.clone());
        let latency = Histograms { full, empty };
        let ports = NetPorts { submits, answers, names, jobs, latency, metrics, next_session, nets_running, log_full };
        let settings = NetSettings { net: net as u8, ..settings.clone() };
        t.stage(format!("net:{net}"), Net::new(driver, boot.clock.clone(), settings, ports, boot.seed), cores.net[net]);
    }
    for (lane, submits) in submits_of_lane.into_iter().enumerate() {
        let (verdicts, verdicts_rx) = t.ring::<Verdict>(format!("validate_log:{lane}"), depth::VALIDATE_LOG, Full::Wait);
        // Beside validate_log, in the same order: it never fills before that ring does.
        let hashes = boot.keeps_hashes.then(|| t.ring::<Hash256>(format!("validate_log_hash:{lane}"), depth::VALIDATE_LOG, Full::Wait));
        let (hashes, hashes_rx) = hashes.unzip();
        let (blocks, blocks_rx) = t.ring::<BlockCandidate>(format!("validate_chain:{lane}"), depth::VALIDATE_CHAIN, Full::Flag); // full: chain takes it from the log
        let (jobs_tx, jobs) = t.ring::<Arc<ValidatedJob>>(format!("chain_validate:{lane}"), depth::JOBS, Full::Wait);
        let metrics: Arc<ValidateMetrics> = Arc::default();
        all_verdicts.push(verdicts_rx);
        all_hashes.extend(hashes_rx);
        ends.blocks.push(blocks_rx);
        ends.jobs_to_validate.push(jobs_tx);
        ends.validate_metrics.push(metrics.clone());
        let (nets_running, validates_running) = (nets_running.clone(), validates_running.clone());
        let block_bell = boot.block_bell.clone();
        let ports = ValidatePorts { submits, verdicts, hashes, blocks, block_bell, jobs, metrics, nets_running, validates_running };
        t.stage(format!("validate:{lane}"), Validate::new(boot.isa, boot.seed, ports), cores.validate[lane]);
    }
    let metrics = ends.log_metrics.clone();
    let ports = LogPorts {
        verdicts: all_verdicts,
        hashes: all_hashes,
        answers: all_answers,
        names: all_names,
        metrics,
        validates_running,
        answer_first: boot.answer_first,
        log_full,
    };
    t.stage("log", Log::new(journal, boot.clock.clone(), ports), cores.log);
    (t, ends)
}
