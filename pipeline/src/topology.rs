//! Builds the pipeline: rings by name, stages on cores, one run loop per core.
use crate::fail_point::{Pause, Paused};
use crate::metrics::RegimeNs;
use crate::ring::{Full, RingInfo, Rx, Tx, ring};
use crate::stage::{Idle, Seat, Stage, run};
use crate::sys::pin_to_core;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Which cores the stages and the control plane run on. One entry per stage; an entry may repeat a core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cores {
    /// One net stage per entry.
    pub net: Vec<usize>,
    /// One validate stage per entry.
    pub validate: Vec<usize>,
    /// The log stage.
    pub log: usize,
    /// Chain, sealer, shipper.
    pub control: usize,
    /// The stats endpoint.
    pub stats: usize,
}

/// Why a layout cannot run.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// `[layout]` names a core that this process may not use.
    #[error("[layout] {stage} wants core {core}, but this process may run on cores {allowed:?}; choose among those")]
    NoSuchCore {
        /// Stage that wants it.
        stage: &'static str,
        /// The core.
        core: usize,
        /// What there is.
        allowed: Vec<usize>,
    },
    /// A stage without a core.
    #[error("[layout] {0} names no core; give at least one")]
    NoCore(&'static str),
    /// More lanes than the records have room for.
    #[error("[layout] {stage} has {count} stages, at most {max} are supported")]
    TooManyLanes {
        /// Stage kind.
        stage: &'static str,
        /// Asked for.
        count: usize,
        /// Supported.
        max: usize,
    },
    /// A thread could not be started.
    #[error("could not start thread {name}")]
    Spawn {
        /// Its name.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Net stages at most: the extranonce1 has 6 bits for them.
pub const NETS_MAX: usize = 64;
/// Validate stages at most.
pub const VALIDATES_MAX: usize = 64;

impl Cores {
    /// The layout for `allowed` cores. Two or fewer: the share path on the first, the rest on the last. Three and four: control and stats share one; more: one each,
    /// and what is left over becomes net and validate lanes in equal parts, net first, as one share per packet costs net far more than validate.
    pub fn auto(allowed: &[usize]) -> Self {
        let first = allowed.first().copied().unwrap_or(0);
        let last = allowed.last().copied().unwrap_or(0);
        match allowed {
            [] | [_] | [_, _] => Self { net: vec![first], validate: vec![first], log: first, control: last, stats: last },
            [net, validate_and_log, rest] => {
                Self { net: vec![*net], validate: vec![*validate_and_log], log: *validate_and_log, control: *rest, stats: *rest }
            }
            [net, validate, log, rest] => Self { net: vec![*net], validate: vec![*validate], log: *log, control: *rest, stats: *rest },
            [lanes @ .., log, control, stats] => {
                let lanes = &lanes[..lanes.len().min(NETS_MAX)];
                let (net, validate) = lanes.split_at(lanes.len().div_ceil(2));
                Self { net: net.to_vec(), validate: validate.to_vec(), log: *log, control: *control, stats: *stats }
            }
        }
    }

    /// Refuses cores that do not exist and empty or oversized lists.
    pub fn check(&self, allowed: &[usize]) -> Result<(), TopologyError> {
        let exists = |stage: &'static str, core: usize| {
            if allowed.contains(&core) { Ok(()) } else { Err(TopologyError::NoSuchCore { stage, core, allowed: allowed.to_vec() }) }
        };
        for (stage, list, max) in [("net", &self.net, NETS_MAX), ("validate", &self.validate, VALIDATES_MAX)] {
            if list.is_empty() {
                return Err(TopologyError::NoCore(stage));
            }
            if list.len() > max {
                return Err(TopologyError::TooManyLanes { stage, count: list.len(), max });
            }
            list.iter().try_for_each(|&core| exists(stage, core))?;
        }
        exists("log", self.log)?;
        exists("control", self.control)?;
        exists("stats", self.stats)
    }

    /// Validate lanes that net `net` feeds. J <= N: net i feeds i mod J. J > N: net i owns {j : j mod N = i}.
    pub fn lanes_of_net(&self, net: usize) -> Vec<usize> {
        let (nets, validates) = (self.net.len(), self.validate.len());
        if validates <= nets { vec![net % validates] } else { (0..validates).filter(|lane| lane % nets == net).collect() }
    }
}

/// A pipeline under construction.
#[derive(Default)]
pub struct Topology {
    rings: Vec<RingInfo>,
    seats: BTreeMap<usize, Vec<Seat>>,
    shared_cores: Vec<usize>,
    pauses: Vec<Pause>,
}

/// What is known of a running stage.
#[derive(Clone, Debug)]
pub struct StageInfo {
    /// `net:0`.
    pub name: String,
    /// Its core.
    pub core: usize,
    /// Where its time goes.
    pub regimes: Arc<RegimeNs>,
}

impl Topology {
    /// An empty one; loops on `shared_cores` never spin, as other threads live there.
    pub fn new(shared_cores: &[usize]) -> Self {
        Self { shared_cores: shared_cores.to_vec(), ..Self::default() }
    }

    /// Stages that stop for a while, for tests. Before any stage is put on a core.
    pub fn with_fail_points(self, pauses: Vec<Pause>) -> Self {
        Self { pauses, ..self }
    }

    /// A ring of `depth` records; its ends are to be moved into stages.
    pub fn ring<T>(&mut self, name: impl Into<String>, depth: usize, full: Full) -> (Tx<T>, Rx<T>) {
        let (tx, rx, info) = ring(name, depth, full);
        self.rings.push(info);
        (tx, rx)
    }

    /// Puts a stage on a core; the stages of a core run in the order they were put there.
    pub fn stage(&mut self, name: impl Into<String>, stage: impl Stage + 'static, core: usize) {
        let name = name.into();
        let mut stage: Box<dyn Stage> = Box::new(stage);
        if let Some(pause) = self.pauses.iter().find(|pause| pause.stage == name) {
            stage = Box::new(Paused::new(stage, pause.clone()));
        }
        self.seats.entry(core).or_default().push(Seat { name, stage, regimes: Arc::default() });
    }

    /// Starts one pinned thread per core.
    pub fn start(self) -> Result<Running, TopologyError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut stages = Vec::new();
        let waiters = |seats: &[Seat]| seats.iter().filter(|seat| seat.stage.can_wait()).count();
        let waiters_in_all: usize = self.seats.values().map(|seats| waiters(seats)).sum();
        for (core, mut seats) in self.seats {
            // Another net's shares reach a loop over rings, which wake nobody.
            let may_block = waiters(&seats) == 1 && (seats.len() == 1 || waiters_in_all == 1);
            for seat in &seats {
                stages.push(StageInfo { name: seat.name.clone(), core, regimes: seat.regimes.clone() });
            }
            let idle = if self.shared_cores.contains(&core) || available_cores() == 1 { Idle::Sleep } else { Idle::Spin };
            let name = seats.iter().map(|seat| seat.name.as_str()).collect::<Vec<_>>().join("+");
            let stop = stop.clone();
            let spawned = std::thread::Builder::new().name(name.clone()).spawn(move || {
                // A refused pin costs speed, not shares: containers may forbid it.
                if let Err(error) = pin_to_core(core) {
                    eprintln!("warning: could not pin to core {core}: {error}; running unpinned");
                }
                run(&mut seats, idle, may_block, &stop);
            });
            threads.push(spawned.map_err(|source| TopologyError::Spawn { name, source })?);
        }
        Ok(Running { rings: self.rings, stages, stop, threads })
    }
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A running pipeline.
#[derive(Debug)]
pub struct Running {
    /// Every ring.
    pub rings: Vec<RingInfo>,
    /// Every stage.
    pub stages: Vec<StageInfo>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Tells the stages to take no new work. Release pairs with the Acquire in the run loop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits until every stage has drained; true when no stage panicked.
    pub fn join(&mut self) -> bool {
        self.stop();
        // Every thread is waited for, also behind one that panicked.
        let ended: Vec<bool> = self.threads.drain(..).map(|thread| thread.join().is_ok()).collect();
        ended.into_iter().all(|ok| ok)
    }

    /// True while every stage thread lives.
    pub fn is_alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_layouts_follow_the_number_of_cores() {
        let two = Cores::auto(&[0, 1]);
        assert_eq!(two, Cores { net: vec![0], validate: vec![0], log: 0, control: 1, stats: 1 });
        assert_eq!(Cores::auto(&[3]), Cores { net: vec![3], validate: vec![3], log: 3, control: 3, stats: 3 });
        let eight = Cores::auto(&[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(eight, Cores { net: vec![0, 1, 2], validate: vec![3, 4], log: 5, control: 6, stats: 7 });
        for count in 1..100 {
            let allowed: Vec<_> = (0..count).collect();
            Cores::auto(&allowed).check(&allowed).expect("auto layouts are valid");
        }
    }

    #[test]
    fn every_validate_lane_has_a_net_and_no_two_nets_share_one_when_there_are_more_lanes() {
        for nets in 1..6 {
            for validates in 1..6 {
                let cores = Cores { net: vec![0; nets], validate: vec![0; validates], log: 0, control: 0, stats: 0 };
                let mut fed = vec![0; validates];
                for net in 0..nets {
                    let lanes = cores.lanes_of_net(net);
                    assert!(!lanes.is_empty());
                    lanes.into_iter().for_each(|lane| fed[lane] += 1);
                }
                assert!(fed.iter().all(|&count| count >= 1), "{nets} nets, {validates} validates: {fed:?}");
                if validates > nets {
                    assert!(fed.iter().all(|&count| count == 1));
                }
            }
        }
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused_by_name() {
        let cores = Cores { net: vec![0], validate: vec![9], log: 0, control: 0, stats: 0 };
        let error = cores.check(&[0, 1]).expect_err("core 9");
        assert_eq!(error.to_string(), "[layout] validate wants core 9, but this process may run on cores [0, 1]; choose among those");
    }
}
