//! One page of `otedama top`: what changed between two readings, laid out for 80 columns and 24 rows. Nothing here touches a terminal or a socket.
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Columns that a page is made for; more are left blank.
pub const WIDTH: usize = 80;
/// Rows that a page is made for; more show more stages and rings.
pub const HEIGHT: usize = 24;
/// Columns of the table of stages.
const STAGES_WIDTH: usize = 40;
/// Statuses of refused shares, as `/api/stats` names them.
const REASONS: [&str; 8] = ["stale", "duplicate", "low_difficulty", "bad_time", "bad_version", "malformed", "unauthorized", "overload"];
/// Regimes of a stage, as `/metrics` names them.
const REGIMES: [&str; 4] = ["processing", "backpressure", "housekeeping", "caught_up"];
/// Rings in which a fixed number of records go round: full is how they are.
const CIRCULATING: [&str; 2] = ["net_stats", "stats_net"];

/// How a line is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Bold.
    Head,
    /// Dim.
    Soft,
    /// Green.
    Good,
    /// Yellow.
    Warn,
    /// Red.
    Bad,
}

/// One row of the page: printable ASCII, no longer than the page is wide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// What it says.
    pub text: String,
    /// How it is shown.
    pub tone: Tone,
}

impl Line {
    /// A line; what is not printable ASCII becomes `?`, so that nothing a server says moves the cursor.
    pub fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        let printable = |ch: char| if ch == ' ' || ch.is_ascii_graphic() { ch } else { '?' };
        Self { text: text.as_ref().chars().map(printable).collect(), tone }
    }
}

/// What the endpoint said at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    stats: Value,
    status: Value,
    /// Samples of `/metrics` by name and labels, as they stand there.
    samples: BTreeMap<String, f64>,
}

impl Reading {
    /// The answers of `/api/stats`, `/api/status` and `/metrics`.
    pub fn new(stats: Value, status: Value, metrics: &str) -> Self {
        let sample = |line: &str| -> Option<(String, f64)> {
            let (name, value) = line.rsplit_once(' ')?;
            (!line.starts_with('#')).then(|| Some((name.to_owned(), value.parse().ok()?)))?
        };
        Self { stats, status, samples: metrics.lines().filter_map(sample).collect() }
    }

    fn count(&self, pointer: &str) -> f64 {
        self.stats.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0)
    }

    fn word(&self, pointer: &str) -> &str {
        self.stats.pointer(pointer).and_then(Value::as_str).unwrap_or("-")
    }

    fn metric(&self, name: &str) -> f64 {
        self.samples.get(name).copied().unwrap_or(0.0)
    }

    fn regime(&self, stage: &str, regime: &str) -> f64 {
        self.metric(&format!("otedama_stage_regime_seconds_total{{stage=\"{stage}\",regime=\"{regime}\"}}"))
    }
}

/// One stage over the time between two readings.
struct StageShare {
    name: String,
    core: u64,
    /// Parts of the time, 0 to 1, in the order of `REGIMES`.
    parts: [f64; 4],
}

/// One ring now.
struct Ring {
    name: String,
    depth: u64,
    used: u64,
}

/// Two readings, and what lies between.
pub struct Page {
    now: Reading,
    window_s: f64,
    received_per_s: f64,
    accepted_per_s: f64,
    refused_per_s: [f64; 8],
    stages: Vec<StageShare>,
    rings: Vec<Ring>,
}

impl Page {
    /// The page of `now`. Where `before` is of an earlier run of the server, or the same reading, rates are those since the start.
    pub fn between(before: &Reading, now: &Reading) -> Self {
        let uptime = |reading: &Reading| reading.count("/uptime_s");
        let is_one_run = uptime(before) < uptime(now) && before.count("/shares/received") <= now.count("/shares/received");
        let window_s = if is_one_run { uptime(now) - uptime(before) } else { uptime(now) }.max(1e-3);
        let grown = |value: &dyn Fn(&Reading) -> f64| (value(now) - if is_one_run { value(before) } else { 0.0 }).max(0.0);
        let rate = |pointer: &str| grown(&|reading| reading.count(pointer)) / window_s;
        let stages = now.stats["stages"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|stage| {
            let name = stage["name"].as_str().unwrap_or("-").to_owned();
            let seconds = REGIMES.map(|regime| grown(&|reading| reading.regime(&name, regime)));
            // Of the wall clock, as stages on one core take turns: what the others do is idle time of this one.
            let mut parts = seconds.map(|spent| (spent / window_s).min(1.0));
            parts[3] = (1.0 - parts[0] - parts[1] - parts[2]).max(0.0);
            StageShare { core: stage["core"].as_u64().unwrap_or(0), parts, name }
        });
        let rings = now.stats["rings"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|ring| Ring {
            name: ring["name"].as_str().unwrap_or("-").to_owned(),
            depth: ring["depth"].as_u64().unwrap_or(0),
            used: ring["used"].as_u64().unwrap_or(0),
        });
        Self {
            window_s,
            received_per_s: rate("/shares/received"),
            accepted_per_s: rate("/shares/accepted"),
            refused_per_s: REASONS.map(|reason| rate(&format!("/shares/rejected/{reason}"))),
            stages: stages.collect(),
            rings: rings.collect(),
            now: now.clone(),
        }
    }

    /// The page as one JSON object: rates and regimes of the window, then the server's own answers.
    pub fn to_json(&self) -> Value {
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        let refused: serde_json::Map<String, Value> =
            REASONS.iter().zip(self.refused_per_s).map(|(reason, rate)| ((*reason).to_owned(), json!(rounded(rate)))).collect();
        let stages: Vec<Value> = self
            .stages
            .iter()
            .map(|stage| {
                let [processing, backpressure, housekeeping, caught_up] = stage.parts.map(rounded);
                json!({ "name": stage.name, "core": stage.core, "processing": processing, "backpressure": backpressure,
                    "housekeeping": housekeeping, "caught_up": caught_up })
            })
            .collect();
        json!({
            "window_s": rounded(self.window_s),
            "received_per_s": rounded(self.received_per_s),
            "accepted_per_s": rounded(self.accepted_per_s),
            "refused_per_s": refused,
            "stages": stages,
            "overload": {
                "unread_oldest_us": self.now.metric("otedama_net_unread_oldest_us"),
                "step": self.now.metric("otedama_net_overload_step"),
                "sessions_doubled": self.now.metric("otedama_net_session_doubled"),
            },
            "sockets": {
                "polls_failed": self.now.metric("otedama_net_poll_failed_total"),
                "receives_unbuffered": self.now.metric("otedama_net_receive_unbuffered_total"),
            },
            "stats": self.now.stats,
            "status": self.now.status,
        })
    }

    /// The page for a screen of this size: no line longer than `width`, no more than `height` lines. From 80 x 24 on, numbers are whole; what the tables have no
    /// row for is counted.
    pub fn lines(&self, width: usize, height: usize) -> Vec<Line> {
        let mut lines = self.head();
        let rows = height.saturating_sub(lines.len() + 1).max(1);
        let left = self.stage_rows(rows);
        let right = self.ring_rows(rows);
        lines.push(Line::new(format!("{:<STAGES_WIDTH$}{}", "STAGE        CORE  BUSY  WAIT HOUSE  IDLE", RING_TITLE), Tone::Head));
        for row in 0..left.len().max(right.len()) {
            let (stage, is_waiting) = left.get(row).cloned().unwrap_or_default();
            let (ring, is_full) = right.get(row).cloned().unwrap_or_default();
            let tone = if is_waiting || is_full { Tone::Warn } else { Tone::Plain };
            lines.push(Line::new(format!("{stage:<STAGES_WIDTH$}  {ring}"), tone));
        }
        clipped(lines, width, height)
    }

    fn head(&self) -> Vec<Line> {
        let now = &self.now;
        let status = |key: &str| now.status.get(key).and_then(Value::as_str).unwrap_or("-");
        let listed = |key: &str| -> Vec<&str> {
            now.status.get(key).and_then(Value::as_array).map_or_else(Vec::new, |all| all.iter().filter_map(Value::as_str).collect())
        };
        let practice = if now.word("/chain") == "practice" { "PRACTICE  " } else { "" };
        let word = status("status");
        let health_tone = match word {
            "ok" => Tone::Good,
            "degraded" => Tone::Warn,
            _ => Tone::Bad,
        };
        let mut why = listed("reasons");
        why.extend(listed("degraded"));
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
        let count = |pointer: &str| short(now.count(pointer));
        let refused = |reasons: &[&str]| {
            reasons.iter().fold("refused".to_owned(), |mut text, reason| {
                // Writing to a String cannot fail.
                let _ = write!(text, "  {reason} {}", count(&format!("/shares/rejected/{reason}")));
                text
            })
        };
        let accepted = now.count("/shares/accepted");
        let judged = accepted + REASONS.iter().map(|reason| now.count(&format!("/shares/rejected/{reason}"))).sum::<f64>();
        let accepted_percent = if judged > 0.0 { 100.0 * accepted / judged } else { 100.0 };
        let height = now.status.get("height").and_then(Value::as_u64).map_or("-".to_owned(), |height| height.to_string());
        let template = now.status.get("template_age_s").and_then(Value::as_f64).map_or("none yet".to_owned(), |age_s| age(age_s) + " old");
        let latency = |key: &str| micros(now.count(&format!("/latency_us/{key}")));
        let (overload, load_tone) = match now.metric("otedama_net_overload_step") as u32 {
            0 => ("no overload".to_owned(), Tone::Plain),
            1 => ("OVERLOAD: no new connections".to_owned(), Tone::Warn),
            step @ 2..=7 => (
                format!("OVERLOAD: {} sessions at up to x{}", short(now.metric("otedama_net_session_doubled")), 1 << (step - 1)),
                Tone::Warn,
            ),
            _ => ("OVERLOAD: the worst sessions are closed".to_owned(), Tone::Bad),
        };
        let house = match (now.word("/clickhouse/state"), now.word("/clickhouse/last_error")) {
            (state, "" | "-") => format!("clickhs  {state}"),
            (state, error) => format!("clickhs  {state}: {error}"),
        };
        let mut lines = vec![Line::new(
            format!(
                "{} {}  {practice}up {}  driver {} kernel {} ack {}",
                cut(status("pool"), 16),
                cut(status("version"), 12),
                age(now.count("/uptime_s")),
                cut(now.word("/driver"), 5),
                cut(now.word("/kernel"), 10),
                cut(now.word("/ack"), 7)
            ),
            Tone::Head,
        )];
        lines.extend(wrapped(&format!("{word}{why}"), health_tone));
        let plain = |text: String| Line::new(text, Tone::Plain);
        lines.extend([
            plain(format!(
                "shares   {}/s, accepted {}/s; {} since the start, {accepted_percent:.2} % accepted",
                short(self.received_per_s),
                short(self.accepted_per_s),
                count("/shares/received")
            )),
            plain(format!("latency  p50 {}  p99 {}  p99.9 {}  max {}", latency("p50"), latency("p99"), latency("p999"), latency("max"))),
            Line::new(format!("load     unread for {} at most  {overload}", micros(now.metric("otedama_net_unread_oldest_us"))), load_tone),
            plain(format!(
                "net      {} connections, {} accepted, {} refused; {} lines refused",
                count("/connections/open"),
                count("/connections/accepted"),
                count("/connections/refused"),
                count("/lines_refused")
            )),
        ]);
        let (polls_failed, unbuffered) = (now.metric("otedama_net_poll_failed_total"), now.metric("otedama_net_receive_unbuffered_total"));
        if polls_failed + unbuffered > 0.0 {
            let tone = if polls_failed > 0.0 { Tone::Warn } else { Tone::Plain };
            let text = format!("sockets  {} polls failed, {} receives found no buffer", short(polls_failed), short(unbuffered));
            lines.push(Line::new(text, tone));
        }
        lines.extend([
            plain(refused(&["stale", "duplicate", "low_difficulty", "overload"])),
            plain(refused(&["bad_time", "bad_version", "malformed", "unauthorized"])),
            plain(format!("chain    {}  height {height}  template {template}", cut(now.word("/chain"), 16))),
            plain(format!(
                "blocks   {} found  {} accepted  {} superseded  {} rejected",
                count("/blocks/found"),
                count("/blocks/accepted"),
                count("/blocks/superseded"),
                count("/blocks/rejected")
            )),
            plain(format!(
                "log      {} on disk, {} segments, {} shipped, {} rows unshipped",
                bytes(now.count("/log/bytes")),
                count("/log/segments_sealed"),
                count("/log/segments_shipped"),
                count("/log/rows_unshipped")
            )),
        ]);
        lines.extend(wrapped(&house, if now.word("/clickhouse/state") == "retrying" { Tone::Warn } else { Tone::Plain }));
        lines
    }

    /// Rows of the table of stages, and whether that stage waits for the next one. Where there are more than rows, the busiest are shown.
    fn stage_rows(&self, rows: usize) -> Vec<(String, bool)> {
        let mut order: Vec<usize> = (0..self.stages.len()).collect();
        let left_out = self.stages.len().saturating_sub(rows);
        if left_out > 0 {
            let load = |index: &usize| self.stages[*index].parts[3];
            order.sort_by(|one, two| load(one).total_cmp(&load(two)));
            order.truncate(rows - 1);
            order.sort_unstable();
        }
        let mut text: Vec<(String, bool)> = order
            .into_iter()
            .map(|index| {
                let stage = &self.stages[index];
                let [processing, backpressure, housekeeping, caught_up] = stage.parts.map(percent);
                let row = format!(
                    "{:<13}{:>4} {processing:>5} {backpressure:>5} {housekeeping:>5} {caught_up:>5}",
                    cut(&stage.name, 12),
                    stage.core
                );
                (row, stage.parts[1] > 0.05)
            })
            .collect();
        if left_out > 0 {
            text.push((format!("and {} less busy", left_out + 1), false));
        }
        text
    }

    /// Rows of the table of rings, and whether that ring is nearly full. Where there are more than rows, the fullest are shown.
    fn ring_rows(&self, rows: usize) -> Vec<(String, bool)> {
        let fill = |ring: &Ring| ring.used as f64 / ring.depth.max(1) as f64;
        let mut order: Vec<usize> = (0..self.rings.len()).collect();
        let left_out = self.rings.len().saturating_sub(rows);
        if left_out > 0 {
            order.sort_by(|one, two| fill(&self.rings[*two]).total_cmp(&fill(&self.rings[*one])));
            order.truncate(rows - 1);
            order.sort_unstable();
        }
        let mut text: Vec<(String, bool)> = order
            .into_iter()
            .map(|index| {
                let ring = &self.rings[index];
                let row = format!(
                    "{:<19}{:>5} {:>5} {:>4}",
                    cut(&ring.name, 18),
                    short(ring.used as f64),
                    short(ring.depth as f64),
                    percent(fill(ring))
                );
                (row, fill(ring) > 0.8 && !CIRCULATING.iter().any(|name| ring.name.starts_with(name)))
            })
            .collect();
        if left_out > 0 {
            text.push((format!("and {} less full", left_out + 1), false));
        }
        text
    }
}

/// Title of the table of rings.
const RING_TITLE: &str = "  RING                USED DEPTH FULL";

/// What is shown while the server does not answer: why, and the last page there was.
pub fn away(last: Option<&Page>, why: &str, since: Duration, width: usize, height: usize) -> Vec<Line> {
    let mut lines = vec![Line::new(format!("server away for {}; asked again every second, q ends", age(since.as_secs_f64())), Tone::Bad)];
    lines.extend(wrapped(why, Tone::Bad));
    if let Some(page) = last {
        let rows = height.saturating_sub(lines.len());
        lines.extend(page.lines(width, rows).into_iter().map(|line| Line { tone: Tone::Soft, ..line }));
    }
    clipped(lines, width, height)
}

/// A text of any length on one line, or on two.
fn wrapped(text: &str, tone: Tone) -> Vec<Line> {
    let mut first = Line::new(cut(text, 2 * WIDTH), tone);
    if first.text.len() <= WIDTH {
        return vec![first];
    }
    let rest = first.text.split_off(WIDTH);
    vec![first, Line { text: rest, tone }]
}

/// Lines that fit the screen.
fn clipped(mut lines: Vec<Line>, width: usize, height: usize) -> Vec<Line> {
    lines.truncate(height);
    for line in &mut lines {
        line.text.truncate(width);
    }
    lines
}

/// At most so many characters; the last of them are dots where some are left out.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(2)).chain("..".chars()).collect()
}

/// A count in at most five characters.
fn short(value: f64) -> String {
    if value < 9_999.5 {
        return format!("{value:.0}");
    }
    let (mut scaled, mut letter) = (value / 1e3, "k");
    for next in ["M", "G", "T", "P", "E"] {
        if scaled < 999.5 {
            break;
        }
        (scaled, letter) = (scaled / 1e3, next);
    }
    if scaled < 99.95 { format!("{scaled:.1}{letter}") } else { format!("{scaled:.0}{letter}") }
}

fn micros(us: f64) -> String {
    match us {
        us if us >= 1.2e8 => age(us / 1e6),
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e4 => format!("{:.1} ms", us / 1e3),
        us => format!("{us:.0} us"),
    }
}

fn bytes(value: f64) -> String {
    for (unit, name) in [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if value >= unit as f64 {
            return format!("{:.1} {name}", value / unit as f64);
        }
    }
    format!("{value:.0} B")
}

fn percent(part: f64) -> String {
    format!("{:.0}%", 100.0 * part)
}

fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests;
