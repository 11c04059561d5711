//! What came of a run: a table for people, one line for scripts, files for later.
use crate::run::{Lateness, Pairing, RunConfig, Window, ratio};
use crate::statistics::{Finding, median};
use crate::totals::{Quantiles, Totals};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use otedama_primitives::ShareStatus;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Share of the time above which a thread counts as never idle.
const BUSY: f64 = 0.95;
/// An open loop is late when more than one share in a hundred leaves so many microseconds after its time.
const LATE_US: u64 = 1_000;
/// Shares of the schedule, one in so many, that may stay behind.
const BEHIND_ONE_IN: u64 = 1_000;

/// What came of a run.
#[derive(Debug)]
pub struct RunReport {
    /// The order.
    pub config: RunConfig,
    /// Counts over the whole run.
    pub totals: Totals,
    /// Each measured window; with `against` all turns of the target as one.
    pub windows: Vec<Window>,
    /// Latencies of the shares that left within the windows, microseconds.
    pub histogram: Histogram<u64>,
    /// Of an open loop.
    pub lateness: Option<Lateness>,
    /// Time from the start until every connection was ready.
    pub set_up_s: f64,
    /// For each time that connections broke, on purpose or not: seconds until every worker was authorized again; see `Engine::outages_s`.
    pub outages_s: Vec<f64>,
    /// Text of a ledger that was kept in memory.
    pub ledger: Option<Vec<u8>>,
    /// With `against`.
    pub pairing: Option<Pairing>,
    /// What went wrong last, `none` if nothing did.
    pub trouble: String,
    /// Processes that made the load.
    pub processes: usize,
}

/// Files that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}")]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// The folder of `--out`, held from before the run: what cannot be written, or is being written by somebody else, is said before the load and not after it.
#[derive(Debug)]
pub struct OutFolder {
    path: PathBuf,
    /// Locked as long as it is open; the lock goes with the process.
    _lock: File,
}

impl OutFolder {
    /// Makes the folder if it is not there, and holds it.
    pub fn hold(path: &Path) -> Result<Self, WriteError> {
        let failed = |source: io::Error| WriteError { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock = File::open(path).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            failed(if error == rustix::io::Errno::WOULDBLOCK { io::Error::other("another loadgen is writing there") } else { error.into() })
        })?;
        let folder = Self { path: path.to_owned(), _lock: lock };
        // A name that no reader looks for.
        write(path, ".probe", b"")?;
        std::fs::remove_file(path.join(".probe")).map_err(failed)?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
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

    /// Percentiles of the latency.
    pub fn latency_us(&self) -> Quantiles {
        Quantiles::of(&self.histogram)
    }

    /// Median over the windows of answers per second.
    pub fn shares_per_s(&self) -> f64 {
        median(&self.windows.iter().map(Window::shares_per_s).collect::<Vec<_>>()).unwrap_or(0.0)
    }

    fn is_open_loop(&self) -> bool {
        self.config.engine.rate_shares_per_s > 0.0
    }

    /// Why the figures are the generator's and not the server's; None when they are the server's.
    pub fn limited_by_generator(&self) -> Option<String> {
        let measured = self.measured();
        if let Some(lateness) = &self.lateness {
            if lateness.behind * BEHIND_ONE_IN > self.totals.submits {
                return Some(format!("{} shares were due and never left: this core does not make the rate", lateness.behind));
            }
            let late = lateness.histogram.value_at_quantile(0.99);
            if !lateness.histogram.is_empty() && late > LATE_US {
                return Some(format!("one share in a hundred left {late} us or more after its time"));
            }
        }
        let busy = measured.seconds > 0.0 && measured.blocked_s < (1.0 - BUSY) * measured.seconds;
        // A closed loop keeps both busy when the server is the limit.
        let server_is_busy = measured.server_cpu_s.is_some_and(|cpu| cpu >= BUSY * measured.seconds) && !self.is_open_loop();
        (busy && !server_is_busy).then(|| "its core was never idle".to_owned())
    }

    /// True when a figure is the generator's.
    pub fn is_generator_limited(&self) -> bool {
        self.limited_by_generator().is_some()
    }

    /// True when the server broke the rules: a wrong answer, or a submit without an answer where no connection was expected to break.
    pub fn is_finding(&self) -> bool {
        self.totals.wrong > 0 || (self.totals.unanswered > 0 && !self.config.engine.reconnect)
    }

    /// The last line of `--json`. Counts are of the whole run, warm-up and drain included; rates, CPU times and latencies of the measured windows alone.
    pub fn json(&self) -> Value {
        self.json_of(&self.totals, &self.measured(), self.shares_per_s(), &self.latency_us())
    }

    fn json_of(&self, totals: &Totals, measured: &Window, shares_per_s: f64, latency_us: &Quantiles) -> Value {
        let behaviour = &self.config.engine.behaviour;
        let answered = measured.answered as f64;
        let rejected: serde_json::Map<String, Value> =
            totals.rejected.iter().map(|(code, count)| (code.to_string(), (*count).into())).collect();
        let depth = if self.is_open_loop() { Value::Null } else { behaviour.depth.into() };
        let rate = if self.is_open_loop() { self.config.engine.rate_shares_per_s.into() } else { Value::Null };
        json!({
            "schema": 1,
            "mode": behaviour.mode.label(),
            "connections": self.config.engine.connections,
            "depth": depth,
            "rate": rate,
            "seconds": rounded(measured.seconds, 3),
            "seed": behaviour.seed,
            "submits": totals.submits,
            "accepted": totals.accepted,
            "rejected": rejected,
            "unanswered": totals.unanswered,
            "wrong": totals.wrong,
            "shares_per_s": rounded(shares_per_s, 1),
            "server_shares_per_cpu_s": measured.shares_per_cpu_s().map(|rate| rounded(rate, 1)),
            "server_cpu_us_per_share": measured.server_cpu_s.and_then(|cpu| ratio(cpu * 1e6, answered)).map(|time| rounded(time, 4)),
            "client_cpu_us_per_share": ratio(measured.client_cpu_s * 1e6, answered).map(|time| rounded(time, 4)),
            "generator_limited": self.is_generator_limited(),
            "latency_us": latency_us,
        })
    }

    /// A line of its own for the pair, where there is one.
    pub fn pairing_json(&self) -> Option<Value> {
        let pairing = self.pairing.as_ref()?;
        let estimate = &pairing.estimate;
        let differences = pairing.differences();
        let pairs: Vec<Value> = pairing.pairs.iter().map(|(one, two)| json!([rounded(*one, 1), rounded(*two, 1)])).collect();
        let rounds: Vec<Value> = pairing.rounds.iter().map(|(one, two)| json!({"latency_us": one, "against_latency_us": two})).collect();
        Some(json!({
            "schema": 1,
            "against": pairing.target.to_string(),
            "pairs": estimate.pairs,
            "pairs_silent": pairing.estimate_wall.silent.0,
            "against_pairs_silent": pairing.estimate_wall.silent.1,
            "per": pairing.per,
            "ratio": rounded(estimate.ratio, 4),
            "ratio_low": rounded(estimate.low, 4),
            "ratio_high": rounded(estimate.high, 4),
            "tolerance": self.config.tolerance,
            "finding": estimate.finding(self.config.tolerance).label(),
            "ratio_wall": rounded(pairing.estimate_wall.ratio, 4),
            "against_wrong": pairing.totals.wrong,
            "against_shares_per_s": rounded(pairing.against.shares_per_s(), 1),
            "against_shares_per_cpu_s": pairing.against.shares_per_cpu_s().map(|rate| rounded(rate, 1)),
            "latency_us_more": {"p50": differences.map(|(p50, _, _)| p50), "p99": differences.map(|(_, p99, _)| p99), "p999": differences.map(|(_, _, p999)| p999)},
            "rates": pairs,
            "rounds": rounds,
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
        let load = if self.is_open_loop() {
            format!("{} connections, open loop at {} shares/s", engine.connections, engine.rate_shares_per_s)
        } else {
            format!("{} x {}", engine.connections, engine.behaviour.depth)
        };
        row("target", format!("{} · {} · {load}", engine.target, engine.behaviour.mode.label()));
        row(
            "connections",
            format!("{} came up in {:.2} s, {} broke (last trouble: {})", totals.connects, self.set_up_s, totals.disconnects, self.trouble),
        );
        if let Some(text) = self.outages_text() {
            row("outages", text);
        }
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
        for status in ShareStatus::ALL.into_iter().skip(1) {
            if totals.by_status[status as usize] > 0 {
                row(&format!("  {}", status.label()), format!("{} (code {})", totals.by_status[status as usize], status.wire_code()));
            }
        }
        let named: u64 = totals.by_status.iter().skip(1).sum();
        if named < totals.rejected_count() {
            let codes: Vec<String> = totals.rejected.iter().map(|(code, count)| format!("{code}: {count}")).collect();
            row("  by code", codes.join(", "));
        }
        row(
            "wrong",
            format!("{} (allowed besides: {} stale by a crossing job, {} overload)", totals.wrong, totals.crossed, totals.overload),
        );
        if totals.missed > 0 {
            row("missed", format!("{} scheduled shares had no connection to leave by", totals.missed));
        }
        for (index, window) in self.windows.iter().enumerate() {
            let server = window.shares_per_cpu_s().map_or(String::new(), |rate| format!(", {rate:.0} per server CPU-second"));
            row(&format!("window {}", index + 1), format!("{:.2} s, {:.0} shares/s{server}", window.seconds, window.shares_per_s()));
        }
        if let Some(time) = ratio(measured.client_cpu_s * 1e6, measured.answered as f64) {
            let of = if self.processes > 1 { format!(" in {} processes", self.processes) } else { String::new() };
            row(
                "generator",
                format!("{time:.3} us CPU per share{of}, waiting {:.0} % of the time", 100.0 * measured.blocked_s / measured.seconds),
            );
        }
        if let Some(reason) = self.limited_by_generator() {
            row("WARNING", format!("the generator is the limit, not the server: {reason}"));
        }
        let from = if self.is_open_loop() { "from the time a share was due" } else { "from the write of a share" };
        row("latency us", from.to_owned());
        let latency = self.latency_us().named();
        row("", latency.iter().map(|(name, _)| format!("{name:>9}")).collect());
        row("  target", latency.iter().map(|(_, value)| format!("{value:>9}")).collect());
        if let Some(pairing) = &self.pairing {
            let others = Quantiles::of(&pairing.histogram).named();
            row("  against", others.iter().map(|(_, value)| format!("{value:>9}")).collect());
            let (target, estimate) = (pairing.target, &pairing.estimate);
            let per = if pairing.per == "cpu" { "shares per server CPU-second" } else { "shares/s" };
            let others_rate = pairing.against.shares_per_cpu_s().map_or(String::new(), |rate| format!(", {rate:.0} per server CPU-second"));
            let wrong = match pairing.totals.wrong {
                0 => String::new(),
                wrong => format!("; {wrong} wrong answers, not held against the target"),
            };
            row("against", format!("{:.2} s, {:.0} shares/s{others_rate}{wrong}", pairing.against.seconds, pairing.against.shares_per_s()));
            row(
                "paired",
                format!(
                    "{:.4} x {target} in {per} (95 % interval {:.4} to {:.4}, {} pairs of half a second)",
                    estimate.ratio, estimate.low, estimate.high, estimate.pairs
                ),
            );
            for (silent, who) in [(pairing.estimate_wall.silent.0, self.config.engine.target), (pairing.estimate_wall.silent.1, target)] {
                if silent > 0 {
                    row("WARNING", format!("{who} answered nothing in {silent} more pairs, which no ratio can count"));
                }
            }
            let tolerance = 100.0 * self.config.tolerance;
            row(
                "",
                match estimate.finding(self.config.tolerance) {
                    Finding::Lower => format!("LOWER by more than {tolerance} %"),
                    Finding::Higher => format!("higher by more than {tolerance} %"),
                    Finding::None => format!("no difference of more than {tolerance} % is shown"),
                },
            );
            if pairing.rounds.len() > 1 {
                for (index, (one, two)) in pairing.rounds.iter().enumerate() {
                    row(
                        &format!("  round {}", index + 1),
                        format!("p50 {} - {}, p99 {} - {}, p99.9 {} - {} us", one.p50, two.p50, one.p99, two.p99, one.p999, two.p999),
                    );
                }
            }
            if let Some((p50, p99, p999)) = pairing.differences() {
                row("  median of more", format!("p50 {p50:+} us, p99 {p99:+} us, p99.9 {p999:+} us"));
            }
        }
        for wrong in &totals.wrong_kept {
            let _ = writeln!(text, "WRONG expected {}\n  sent   {}\n  answer {}", wrong.expected, wrong.sent, wrong.answer);
        }
        text
    }

    fn outages_text(&self) -> Option<String> {
        let median = median(&self.outages_s)?;
        let longest = self.outages_s.iter().fold(0.0, |longest: f64, &outage| longest.max(outage));
        Some(format!(
            "{} times connections broke; every worker of all {} authorized again after {median:.3} s (median), {longest:.3} s at most",
            self.outages_s.len(),
            self.config.engine.connections
        ))
    }

    /// Writes result.json, latency.hgrm, latency.hdr and wrong.txt into `folder`, and with `against` the other target's into `folder/against`.
    pub fn write_out(&self, folder: &Path) -> Result<(), WriteError> {
        let mut result = self.json();
        // Both halves of an interleaved run carry one number, by which they are known to belong together.
        let run = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let interleaved: Value = if self.pairing.is_some() { run.into() } else { Value::Null };
        if let Some(object) = result.as_object_mut() {
            let by_status: serde_json::Map<String, Value> = ShareStatus::ALL
                .into_iter()
                .map(|status| (status.label().to_owned(), self.totals.by_status[status as usize].into()))
                .collect();
            object.insert("by_status".into(), by_status.into());
            object.insert("windows_shares_per_s".into(), self.windows.iter().map(|window| window.shares_per_s()).collect());
            object.insert("set_up_s".into(), self.set_up_s.into());
            object.insert("outages_s".into(), self.outages_s.clone().into());
            object.insert("connects".into(), self.totals.connects.into());
            object.insert("disconnects".into(), self.totals.disconnects.into());
            object.insert("missed".into(), self.totals.missed.into());
            object.insert("processes".into(), self.processes.into());
            object.insert("target".into(), self.config.engine.target.to_string().into());
            object.insert("generator_limit".into(), self.limited_by_generator().into());
            object.insert("generator_late_us".into(), self.lateness.as_ref().map(|late| json!(Quantiles::of(&late.histogram))).into());
            object.insert("paired".into(), self.pairing_json().unwrap_or_default());
            object.insert("interleaved".into(), interleaved.clone());
        }
        write(folder, "result.json", format!("{result:#}\n").as_bytes())?;
        write_histogram(folder, &self.histogram, self.measured().seconds)?;
        let wrong: String = self
            .totals
            .wrong_kept
            .iter()
            .map(|wrong| format!("expected {}\nsent   {}\nanswer {}\n\n", wrong.expected, wrong.sent, wrong.answer))
            .collect();
        write(folder, "wrong.txt", wrong.as_bytes())?;
        let Some(pairing) = &self.pairing else { return Ok(()) };
        let folder = folder.join("against");
        let latency_us = Quantiles::of(&pairing.histogram);
        let mut result = self.json_of(&pairing.totals, &pairing.against, pairing.against.shares_per_s(), &latency_us);
        if let Some(object) = result.as_object_mut() {
            object.insert("target".into(), pairing.target.to_string().into());
            object.insert("interleaved".into(), interleaved);
        }
        write(&folder, "result.json", format!("{result:#}\n").as_bytes())?;
        write_histogram(&folder, &pairing.histogram, pairing.against.seconds)
    }
}

impl Pairing {
    /// Median over the rounds of how much more latency the target has than the other, microseconds: p50, p99, p99.9. None where nothing was sent.
    pub fn differences(&self) -> Option<(f64, f64, f64)> {
        let of = |pick: fn(&Quantiles) -> u64| {
            let values: Vec<f64> = self.rounds.iter().map(|(one, two)| pick(one) as f64 - pick(two) as f64).collect();
            median(&values)
        };
        (!self.histogram.is_empty()).then_some(())?;
        Some((of(|quantiles| quantiles.p50)?, of(|quantiles| quantiles.p99)?, of(|quantiles| quantiles.p999)?))
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    let path = folder.join(name);
    // Under another name first: a full disk leaves what an earlier run wrote, and never half a file.
    let part = folder.join(format!("{name}.part"));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&part, bytes)).and_then(|()| std::fs::rename(&part, &path));
    written.map_err(|source| {
        // Perhaps it was never made.
        let _ = std::fs::remove_file(&part);
        WriteError { path, source }
    })
}

fn write_histogram(folder: &Path, histogram: &Histogram<u64>, seconds: f64) -> Result<(), WriteError> {
    write(folder, "latency.hgrm", hgrm(histogram).as_bytes())?;
    write(folder, "latency.hdr", interval_log(histogram, seconds).as_bytes())
}

/// The histogram as an HdrHistogram interval log with one interval, values in microseconds, V2 deflated: what HdrHistogram's tools read.
pub fn interval_log(histogram: &Histogram<u64>, seconds: f64) -> String {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    // Writing to a Vec cannot fail, and every histogram here fits the format.
    let written = IntervalLogWriterBuilder::new()
        .add_comment("latency of shares, microseconds")
        .begin_log_with(&mut bytes, &mut serializer)
        .map(|mut log| log.write_histogram(histogram, Duration::ZERO, Duration::from_secs_f64(seconds.max(0.0)), None::<Tag<'_>>));
    debug_assert!(matches!(written, Ok(Ok(()))));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The histogram of an interval log; None where the text is none.
pub fn read_interval_log(text: &str) -> Option<Histogram<u64>> {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let mut sum: Option<Histogram<u64>> = None;
    for entry in IntervalLogIterator::new(text.as_bytes()) {
        if let LogEntry::Interval(interval) = entry.ok()? {
            let bytes = base64_decoded(interval.encoded_histogram())?;
            let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut io::Cursor::new(bytes)).ok()?;
            match &mut sum {
                Some(sum) => sum.add(histogram).ok()?,
                None => sum = Some(histogram),
            }
        }
    }
    sum
}

fn base64_decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0u32);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// The percentile distribution as text, values in microseconds: what HdrHistogram's plotters read.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    // Writing to a String cannot fail.
    let mut total = 0;
    for step in histogram.iter_quantiles(5) {
        total += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let inverse = if quantile < 1.0 { format!("{:14.2}", 1.0 / (1.0 - quantile)) } else { format!("{:>14}", "Infinity") };
        let _ = writeln!(text, "{:12.3} {quantile:14.12} {total:10} {inverse}", step.value_iterated_to() as f64);
    }
    let _ = writeln!(text, "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]", histogram.mean(), histogram.stdev());
    let _ = writeln!(text, "#[Max     = {:12.3}, Total count    = {:12}]", histogram.max() as f64, histogram.len());
    let _ = writeln!(text, "#[Buckets = {:12}, SubBuckets     = {:12}]", histogram.buckets(), 2048);
    text
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::totals::empty_histogram;

    #[test]
    fn a_histogram_survives_its_log() {
        let mut histogram = empty_histogram();
        for value in 1..5000u64 {
            histogram.saturating_record(value * value);
        }
        let text = interval_log(&histogram, 10.0);
        assert!(text.contains("HISTF"), "V2 deflated: {text}");
        let back = read_interval_log(&text).expect("log");
        assert_eq!((back.len(), back.max(), Quantiles::of(&back)), (histogram.len(), histogram.max(), Quantiles::of(&histogram)));
        assert!(read_interval_log("0.0,1.0,1.0,nonsense").is_none());
    }

    #[test]
    fn the_distribution_ends_with_everything_and_never_falls() {
        let mut histogram = empty_histogram();
        for value in [10, 10, 10, 500, 100_000] {
            histogram.saturating_record(value);
        }
        let text = hgrm(&histogram);
        let rows: Vec<Vec<&str>> =
            text.lines().skip(2).filter(|line| !line.starts_with('#')).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.last().expect("rows")[2..], ["5", "Infinity"], "{text}");
        let values: Vec<f64> = rows.iter().map(|row| row[0].parse().expect("value")).collect();
        assert!(values.is_sorted() && values.len() > 5, "{text}");
        assert!(text.contains("Total count    =            5"), "{text}");
    }
}
