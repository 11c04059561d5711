//! One command's worth of load: set-up, warm-up, measured windows, drain, and what came of it.
use crate::cpu::{self, ProcessClock};
use crate::engine::{Engine, EngineConfig, EngineError};
use crate::ledger::LedgerSink;
use crate::totals::{Quantiles, Totals};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Length of one turn when two targets take turns.
const TURN: Duration = Duration::from_millis(500);
/// How long answers are waited for once nothing more is sent.
const DRAIN: Duration = Duration::from_secs(3);
/// The same between two turns.
const DRAIN_TURN: Duration = Duration::from_millis(250);
/// Share of the time above which a thread counts as never idle.
const BUSY: f64 = 0.95;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The farm.
    pub engine: EngineConfig,
    /// Length of a measured window.
    pub window: Duration,
    /// Load before the first window.
    pub warmup: Duration,
    /// Measured windows, at least 1.
    pub repeat: u32,
    /// Stop after so many submits, warm-up included.
    pub shares: Option<u64>,
    /// The server's process, whose CPU time is read around each window.
    pub server_pid: Option<u32>,
    /// A second server to take turns with, and its process.
    pub against: Option<(SocketAddr, Option<u32>)>,
    /// How long connections may take until all are ready.
    pub set_up_limit: Duration,
}

/// One measured stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window {
    /// Wall time.
    pub seconds: f64,
    /// Answers that came.
    pub answered: u64,
    /// CPU time of the server, where its process is known.
    pub server_cpu_s: Option<f64>,
    /// CPU time of the farm's thread.
    pub client_cpu_s: f64,
    /// Time in which the farm waited for the server.
    pub blocked_s: f64,
}

impl Window {
    /// Answers per second.
    pub fn shares_per_s(&self) -> f64 {
        ratio(self.answered as f64, self.seconds).unwrap_or(0.0)
    }

    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.answered += other.answered;
        self.server_cpu_s = match (self.server_cpu_s, other.server_cpu_s) {
            (Some(one), Some(two)) => Some(one + two),
            (one, two) => one.or(two),
        };
        self.client_cpu_s += other.client_cpu_s;
        self.blocked_s += other.blocked_s;
    }
}

/// Rates of two targets that took turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairing {
    /// Pairs of turns.
    pub pairs: usize,
    /// `cpu` when rates are shares per CPU-second of the servers, `wall` when they are shares per second.
    pub per: &'static str,
    /// Target over the other: geometric mean of the pairs' ratios.
    pub ratio: f64,
    /// Its 95 % interval (Student's t over the logarithms); infinite for a single pair.
    pub interval: (f64, f64),
    /// All turns of the other target.
    pub against: Window,
}

/// What came of a run.
#[derive(Debug)]
pub struct RunReport {
    /// The order.
    pub config: RunConfig,
    /// Counts over the whole run.
    pub totals: Totals,
    /// Each measured window; with `against` all turns of the target as one.
    pub windows: Vec<Window>,
    /// Latencies within the windows.
    pub latency_us: Quantiles,
    /// Time from the start until every connection was ready.
    pub set_up_s: f64,
    /// Text of a ledger that was kept in memory.
    pub ledger: Option<Vec<u8>>,
    /// With `against`.
    pub pairing: Option<Pairing>,
    /// What went wrong last, `none` if nothing did.
    pub trouble: String,
}

fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| of / to)
}

struct Mark {
    at: Instant,
    answered: u64,
    server_cpu_s: Option<f64>,
    client_cpu_s: f64,
    blocked: Duration,
}

impl Mark {
    fn now(engine: &Engine, server: Option<ProcessClock>) -> Self {
        Self {
            at: Instant::now(),
            answered: engine.shared.totals.answered(),
            server_cpu_s: server.and_then(|server| server.seconds()),
            client_cpu_s: cpu::thread_seconds(),
            blocked: engine.blocked(),
        }
    }

    /// From here to now. A server that was killed and started again within has another process: its CPU time is then unknown.
    fn window(&self, engine: &Engine, server: Option<ProcessClock>) -> Window {
        let server_now = server.and_then(|server| server.seconds());
        Window {
            seconds: self.at.elapsed().as_secs_f64(),
            answered: engine.shared.totals.answered() - self.answered,
            server_cpu_s: self.server_cpu_s.zip(server_now).map(|(from, to)| to - from),
            client_cpu_s: cpu::thread_seconds() - self.client_cpu_s,
            blocked_s: (engine.blocked() - self.blocked).as_secs_f64(),
        }
    }
}

/// Runs the farm to its end. The stop flag ends it early, with a drain and a report.
pub fn run(config: RunConfig, stop: &AtomicBool) -> Result<RunReport, EngineError> {
    let started = Instant::now();
    let mut engine = Engine::new(config.engine.clone())?;
    let server = config.server_pid.map(ProcessClock::new).transpose()?;
    engine.set_up(config.set_up_limit, false, stop)?;
    let mut other = match config.against {
        None => None,
        Some((target, pid)) => {
            let mut other = Engine::new(EngineConfig { target, ledger: LedgerSink::None, ..config.engine.clone() })?;
            other.set_up(config.set_up_limit, false, stop)?;
            Some((other, pid.map(ProcessClock::new).transpose()?))
        }
    };
    let set_up_s = started.elapsed().as_secs_f64();
    eprintln!("ready: {} connections to {} in {set_up_s:.2} s", engine.ready(), config.engine.target);
    engine.shared.submits_left = config.shares.unwrap_or(u64::MAX);

    let mut windows = Vec::new();
    let mut pairing = None;
    match &mut other {
        None => {
            engine.pump(Instant::now() + config.warmup, stop)?;
            for _ in 0..config.repeat.max(1) {
                if engine.shared.submits_left == 0 || stop.load(Ordering::Relaxed) {
                    break;
                }
                let mark = Mark::now(&engine, server);
                engine.shared.latencies.recording = true;
                engine.pump(mark.at + config.window, stop)?;
                engine.shared.latencies.recording = false;
                windows.push(mark.window(&engine, server));
            }
        }
        Some((other, other_server)) => {
            let (own, taken) = take_turns(&config, (&mut engine, server), (other, *other_server), stop)?;
            windows.push(own);
            pairing = Some(taken);
        }
    }
    engine.drain(DRAIN)?;
    let trouble = engine.trouble().to_owned();
    let ledger = engine.finish()?;
    let latency_us = engine.shared.latencies.quantiles();
    let mut totals = engine.shared.totals.clone();
    if let Some((mut other, _)) = other {
        other.drain(DRAIN)?;
        other.finish()?;
        // The line is the target's; a wrong answer of the other is still worth an alarm.
        totals.wrong += other.shared.totals.wrong;
        totals.wrong_kept.extend(other.shared.totals.wrong_kept);
    }
    Ok(RunReport { config, totals, windows, latency_us, set_up_s, ledger, pairing, trouble })
}

/// Turns of half a second, A B B A, so that a drift of the machine hits both alike.
fn take_turns(
    config: &RunConfig,
    (engine, server): (&mut Engine, Option<ProcessClock>),
    (other, other_server): (&mut Engine, Option<ProcessClock>),
    stop: &AtomicBool,
) -> Result<(Window, Pairing), EngineError> {
    let turn = |engine: &mut Engine, server| -> Result<Window, EngineError> {
        let mark = Mark::now(engine, server);
        engine.shared.latencies.recording = true;
        engine.pump(mark.at + TURN, stop)?;
        engine.drain(DRAIN_TURN)?;
        engine.shared.latencies.recording = false;
        Ok(mark.window(engine, server))
    };
    let warmup = config.warmup.div_f64(2.0);
    for engine in [&mut *engine, &mut *other] {
        engine.pump(Instant::now() + warmup, stop)?;
        engine.drain(DRAIN_TURN)?;
    }
    let total = config.window.as_secs_f64() * f64::from(config.repeat.max(1));
    let pairs = ((total / (2.0 * TURN.as_secs_f64())).ceil() as usize).max(1);
    let (mut own_sum, mut other_sum, mut logs) = (Window::default(), Window::default(), Vec::new());
    let by_cpu = server.is_some() && other_server.is_some();
    for pair in 0..pairs {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (own, others) = if pair % 2 == 0 {
            let own = turn(engine, server)?;
            (own, turn(other, other_server)?)
        } else {
            let others = turn(other, other_server)?;
            (turn(engine, server)?, others)
        };
        own_sum.add(&own);
        other_sum.add(&others);
        let rate = |window: &Window| {
            if by_cpu { window.server_cpu_s.and_then(|cpu| ratio(window.answered as f64, cpu)) } else { Some(window.shares_per_s()) }
        };
        if let (Some(one), Some(two)) = (rate(&own), rate(&others))
            && one > 0.0
            && two > 0.0
        {
            logs.push((one / two).ln());
        }
    }
    let (ratio, interval) = mean_of_logs(&logs);
    Ok((own_sum, Pairing { pairs: logs.len(), per: if by_cpu { "cpu" } else { "wall" }, ratio, interval, against: other_sum }))
}

/// Geometric mean and its 95 % interval.
fn mean_of_logs(logs: &[f64]) -> (f64, (f64, f64)) {
    if logs.is_empty() {
        return (f64::NAN, (f64::NAN, f64::NAN));
    }
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    if logs.len() == 1 {
        return (mean.exp(), (0.0, f64::INFINITY));
    }
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = student_t(logs.len() - 1) * (variance / count).sqrt();
    (mean.exp(), ((mean - half).exp(), (mean + half).exp()))
}

/// The 97.5 % quantile of Student's t; past the table the normal one with its first correction (Abramowitz and Stegun 26.7.5).
fn student_t(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
        2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    const NORMAL: f64 = 1.959_964;
    match TABLE.get(freedom.wrapping_sub(1)) {
        Some(&value) => value,
        None => NORMAL + (NORMAL.powi(3) + NORMAL) / (4.0 * freedom as f64),
    }
}

impl RunReport {
    /// All windows as one.
    pub fn measured(&self) -> Window {
        let mut sum = Window::default();
        for window in &self.windows {
            sum.add(window);
        }
        sum
    }

    /// Median over the windows of answers per second.
    pub fn shares_per_s(&self) -> f64 {
        let mut rates: Vec<f64> = self.windows.iter().map(Window::shares_per_s).collect();
        rates.sort_unstable_by(f64::total_cmp);
        match rates.len() {
            0 => 0.0,
            count if count % 2 == 1 => rates[count / 2],
            count => (rates[count / 2 - 1] + rates[count / 2]) / 2.0,
        }
    }

    /// True when the figure is the generator's and not the server's: the farm's thread waited for the server in less than 5 % of the measured time,
    /// and the server, where its CPU time is known, used less than 95 % of one core.
    pub fn is_generator_limited(&self) -> bool {
        let measured = self.measured();
        let farm_is_busy = measured.seconds > 0.0 && measured.blocked_s < (1.0 - BUSY) * measured.seconds;
        let server_is_busy = measured.server_cpu_s.is_some_and(|cpu| cpu >= BUSY * measured.seconds);
        farm_is_busy && !server_is_busy
    }

    /// True when the server broke the rules: a wrong answer, or a submit without an answer where no connection was expected to break.
    pub fn is_finding(&self) -> bool {
        self.totals.wrong > 0 || (self.totals.unanswered > 0 && !self.config.engine.reconnect)
    }

    /// The last line of `--json`. Counts are of the whole run, warm-up and drain included; rates, CPU times and latencies of the measured windows alone.
    pub fn json(&self) -> Value {
        let measured = self.measured();
        let behaviour = &self.config.engine.behaviour;
        let answered = measured.answered as f64;
        let rejected: serde_json::Map<String, Value> =
            self.totals.rejected.iter().map(|(code, count)| (code.to_string(), (*count).into())).collect();
        json!({
            "schema": 1,
            "mode": behaviour.mode.label(),
            "connections": self.config.engine.connections,
            "depth": behaviour.depth,
            "rate": Value::Null,
            "seconds": rounded(measured.seconds, 3),
            "seed": behaviour.seed,
            "submits": self.totals.submits,
            "accepted": self.totals.accepted,
            "rejected": rejected,
            "unanswered": self.totals.unanswered,
            "wrong": self.totals.wrong,
            "shares_per_s": rounded(self.shares_per_s(), 1),
            "server_shares_per_cpu_s": measured.server_cpu_s.and_then(|cpu| ratio(answered, cpu)).map(|rate| rounded(rate, 1)),
            "server_cpu_us_per_share": measured.server_cpu_s.and_then(|cpu| ratio(cpu * 1e6, answered)).map(|time| rounded(time, 4)),
            "client_cpu_us_per_share": ratio(measured.client_cpu_s * 1e6, answered).map(|time| rounded(time, 4)),
            "generator_limited": self.is_generator_limited(),
            "latency_us": self.latency_us,
        })
    }

    /// A line of its own for the pair, where there is one.
    pub fn pairing_json(&self) -> Option<Value> {
        let pairing = self.pairing.as_ref()?;
        let (target, _) = self.config.against?;
        Some(json!({
            "schema": 1,
            "against": target.to_string(),
            "pairs": pairing.pairs,
            "per": pairing.per,
            "ratio": rounded(pairing.ratio, 4),
            "ratio_low": rounded(pairing.interval.0, 4),
            "ratio_high": rounded(pairing.interval.1, 4),
            "against_shares_per_s": rounded(pairing.against.shares_per_s(), 1),
            "against_shares_per_cpu_s": pairing.against.server_cpu_s.and_then(|cpu| ratio(pairing.against.answered as f64, cpu)).map(|rate| rounded(rate, 1)),
        }))
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let measured = self.measured();
        let (engine, totals) = (&self.config.engine, &self.totals);
        // Writing to a String cannot fail.
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<22} {value}");
        };
        row(
            "target",
            format!("{} · {} · {} x {}", engine.target, engine.behaviour.mode.label(), engine.connections, engine.behaviour.depth),
        );
        row("connections", format!("{} came up, {} broke (last trouble: {})", totals.connects, totals.disconnects, self.trouble));
        row(
            "submits",
            format!(
                "{} = {} accepted + {} rejected + {} unanswered",
                totals.submits,
                totals.accepted,
                totals.rejected_count(),
                totals.unanswered
            ),
        );
        for status in otedama_primitives::ShareStatus::ALL.into_iter().skip(1) {
            if totals.by_status[status as usize] > 0 {
                row(&format!("  {}", status.label()), format!("{} (code {})", totals.by_status[status as usize], status.wire_code()));
            }
        }
        row(
            "wrong",
            format!("{} (allowed besides: {} stale by a crossing job, {} overload)", totals.wrong, totals.crossed, totals.overload),
        );
        for (index, window) in self.windows.iter().enumerate() {
            let server = window
                .server_cpu_s
                .and_then(|cpu| ratio(window.answered as f64, cpu))
                .map_or(String::new(), |rate| format!(", {rate:.0} per server CPU-second"));
            row(&format!("window {}", index + 1), format!("{:.2} s, {:.0} shares/s{server}", window.seconds, window.shares_per_s()));
        }
        if let Some(time) = ratio(measured.client_cpu_s * 1e6, measured.answered as f64) {
            let limited = if self.is_generator_limited() { "; the GENERATOR is the limit, not the server" } else { "" };
            row(
                "client",
                format!("{time:.3} us CPU per share, waiting {:.0} % of the time{limited}", 100.0 * measured.blocked_s / measured.seconds),
            );
        }
        let latency = self.latency_us;
        row("latency us", format!("p50 {} p99 {} p99.9 {} max {}", latency.p50, latency.p99, latency.p999, latency.max));
        if let (Some(pairing), Some((target, _))) = (&self.pairing, self.config.against) {
            let per = if pairing.per == "cpu" { "shares per server CPU-second" } else { "shares/s" };
            row(
                "paired",
                format!(
                    "{:.3} x {target} in {per} (95 % interval {:.3} to {:.3}, {} pairs)",
                    pairing.ratio, pairing.interval.0, pairing.interval.1, pairing.pairs
                ),
            );
        }
        for wrong in &totals.wrong_kept {
            let _ = writeln!(text, "WRONG expected {}\n  sent   {}\n  answer {}", wrong.expected, wrong.sent, wrong.answer);
        }
        text
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_equal_ratios_is_that_ratio() {
        let (ratio, (low, high)) = mean_of_logs(&[2f64.ln(); 5]);
        assert!((ratio - 2.0).abs() < 1e-9 && (low - 2.0).abs() < 1e-9 && (high - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_interval_is_the_textbook_one() {
        // Logs 0, 1, 2: mean 1, standard error 1/sqrt(3), t(2) = 4.303.
        let (ratio, (low, high)) = mean_of_logs(&[0.0, 1.0, 2.0]);
        let half = 4.303 / 3f64.sqrt();
        assert!((ratio.ln() - 1.0).abs() < 1e-9);
        assert!((low.ln() - (1.0 - half)).abs() < 1e-9 && (high.ln() - (1.0 + half)).abs() < 1e-9);
        assert_eq!(mean_of_logs(&[0.5]).1, (0.0, f64::INFINITY));
    }

    #[test]
    fn quantiles_go_on_smoothly_past_the_table() {
        assert!((student_t(30) - 2.042).abs() < 1e-9);
        assert!((student_t(31) - 2.040).abs() < 4e-3);
        assert!(student_t(1_000_000) < 1.961);
    }
}
