//! Does the comparison find what is there, and nothing where nothing is? Trials between two null servers, of which one may burn CPU time.
use crate::engine::{EngineConfig, EngineError};
use crate::run::{RunConfig, run};
use crate::session::Behaviour;
use crate::statistics::{Estimate, Finding};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One series of trials.
#[derive(Clone, Debug)]
pub struct TrialOrder {
    /// Trials of each kind.
    pub trials: u32,
    /// What the burning server burns, per cent.
    pub burn_percent: f64,
    /// Length of a trial.
    pub length: Duration,
    /// Connections to each server.
    pub connections: usize,
    /// Shares in flight on each.
    pub depth: usize,
    /// Differences up to this are no finding.
    pub tolerance: f64,
    /// Core of the servers; None leaves them to the kernel.
    pub server_core: Option<usize>,
}

/// Why a trial failed.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// No null server.
    #[error("cannot start a null server: {0}")]
    Start(#[from] std::io::Error),
    /// It did not say where it listens.
    #[error("the null server said {0:?} instead of its address")]
    Address(String),
    /// The run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A signal came.
    #[error("stopped within trial {0}")]
    Stopped(u32),
}

/// A null server in a process of its own; ends when dropped.
struct NullProcess {
    child: Child,
    address: SocketAddr,
}

impl Drop for NullProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl NullProcess {
    fn start(loadgen: &Path, burn_percent: f64, core: Option<usize>) -> Result<Self, TrialError> {
        let mut command = Command::new(loadgen);
        command.args(["null", "--listen", "127.0.0.1:0", "--burn-percent", &burn_percent.to_string()]);
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line.trim().strip_prefix("listening on ").and_then(|text| text.parse().ok());
        match address {
            Some(address) => Ok(Self { child, address }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(TrialError::Address(line))
            }
        }
    }
}

/// One trial: a server that burns against one that does not, both new.
pub fn trial(order: &TrialOrder, loadgen: &Path, burn_percent: f64, seed: u64, stop: &AtomicBool) -> Result<Estimate, TrialError> {
    // Which process is started first must not matter either.
    let burning_first = seed.is_multiple_of(2);
    let early = NullProcess::start(loadgen, if burning_first { burn_percent } else { 0.0 }, order.server_core)?;
    let late = NullProcess::start(loadgen, if burning_first { 0.0 } else { burn_percent }, order.server_core)?;
    let (burning, plain) = if burning_first { (&early, &late) } else { (&late, &early) };
    let behaviour = Behaviour { depth: order.depth, seed, ..Behaviour::default() };
    let engine = EngineConfig { connections: order.connections, behaviour, ..EngineConfig::new(burning.address) };
    let report = run(
        RunConfig {
            window: order.length,
            server_pid: Some(burning.child.id()),
            against: Some((plain.address, Some(plain.child.id()))),
            tolerance: order.tolerance,
            ..RunConfig::new(engine)
        },
        stop,
    )?;
    Ok(report.pairing.map_or(Estimate::of_pairs(&[]), |pairing| pairing.estimate))
}

/// What a series found.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TrialOutcome {
    /// Trials of each kind.
    pub trials: u32,
    /// Of those with a burn, where it was found.
    pub found: u32,
    /// Of those without, where a difference was claimed.
    pub cried_wolf: u32,
    /// The paired ratio of each trial with a burn.
    pub burnt_ratios: Vec<f64>,
    /// The same of those without.
    pub equal_ratios: Vec<f64>,
}

impl TrialOutcome {
    /// The bar: 19 of 20 found, 1 of 20 claimed.
    pub fn is_met(&self) -> bool {
        self.found * 20 >= self.trials * 19 && self.cried_wolf * 20 <= self.trials
    }
}

/// The whole series; `say` gets a line for each trial.
pub fn series(order: &TrialOrder, loadgen: &Path, stop: &AtomicBool, mut say: impl FnMut(&str)) -> Result<TrialOutcome, TrialError> {
    let mut outcome = TrialOutcome { trials: order.trials, ..TrialOutcome::default() };
    for number in 0..order.trials {
        for burn_percent in [order.burn_percent, 0.0] {
            let estimate = trial(order, loadgen, burn_percent, u64::from(number) + 1, stop)?;
            // Relaxed: the flag carries no data. What was cut short is no trial.
            if stop.load(Ordering::Relaxed) {
                return Err(TrialError::Stopped(number + 1));
            }
            let finding = estimate.finding(order.tolerance);
            if burn_percent > 0.0 {
                outcome.found += u32::from(finding == Finding::Lower);
                outcome.burnt_ratios.push(estimate.ratio);
            } else {
                outcome.equal_ratios.push(estimate.ratio);
                outcome.cried_wolf += u32::from(finding != Finding::None);
            }
            say(&format!(
                "trial {:>3}, burn {burn_percent:>4} %: ratio {:.4} ({:.4} to {:.4}), finding {}",
                number + 1,
                estimate.ratio,
                estimate.low,
                estimate.high,
                finding.label()
            ));
        }
    }
    Ok(outcome)
}
