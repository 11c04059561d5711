//! Honest miners beside attackers, and more load than the server can take.
use super::{IDLY, Load, PATIENCE, Part, Sheet, bar, latency, whole};
use crate::Failure;
use crate::figures::{Bench, LOAD_CORE, SERVER_CORE, Server, number};
use crate::measure::{self, Process, Scratch, median};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const HONEST: u32 = 100;
const HONEST_SHARES_PER_S: u32 = 5_000;
const SLOWLORIS: u32 = 10_000;
/// Connects that are under way at the same time.
const FLOOD: u32 = 512;
/// Seconds from which on the overload is the long one, of a minute.
const LONG_FROM_S: u32 = 5;

/// An attacker on the generator's core.
struct Attack {
    process: Process,
    _scratch: Scratch,
}

impl Attack {
    /// `beside`: honest miners are measured on the same core, and the attacker gets what they leave.
    fn start(bench: &Bench<'_>, part: Part, server: &Server, seconds: u32, beside: bool) -> Result<Self, Failure> {
        let scratch = Scratch::new(bench.root, &format!("{}-attack", part.name()))?;
        let (abuse, connections) = if part == Part::Flood { ("connect-flood", FLOOD) } else { ("slowloris", SLOWLORIS) };
        let words = format!("run --target {} --abuse {abuse} --connections {connections} --seconds {seconds} --json", server.stratum);
        let loadgen = bench.loadgen.to_string_lossy();
        let mut arguments = if beside { IDLY.to_vec() } else { Vec::new() };
        arguments.push(&loadgen);
        arguments.extend(words.split(' '));
        let process = Process::start(Path::new(arguments[0]), &arguments[1..], LOAD_CORE, &scratch.path().join("attack.txt"))?;
        Ok(Self { process, _scratch: scratch })
    }

    /// Ends it; what it reports.
    fn stopped(self) -> Result<Value, Failure> {
        self.process.signal("TERM");
        self.ended(PATIENCE)
    }

    fn ended(self, limit: Duration) -> Result<Value, Failure> {
        let Self { process, _scratch } = self;
        let log = _scratch.path().join("attack.txt");
        process.wait(limit)?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let line = said.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(line).map_err(|error| Failure::Environment(format!("the attack has no result ({error})\n{}", said.trim_end())))
    }
}

impl Bench<'_> {
    /// Latency of honest miners with an attack and without, in turns on one server.
    pub(super) fn attacked(&self, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        let part = sheet.part;
        let server = self.server(part.name(), SLOWLORIS + 5_000, "auto")?;
        let seconds = self.request.seconds;
        let mut alone_per_s = Vec::new();
        if part == Part::Flood {
            for _ in 0..self.request.runs.min(3) {
                let report = Attack::start(self, part, &server, seconds, false)?.ended(PATIENCE)?;
                println!("the flood alone: {report}");
                alone_per_s.push(number(&report, "connects_per_s")?);
            }
            self.wait_open(&server, |open| open == 0.0)?;
        }
        let (mut p99, mut p50, mut attacks_per_s, mut held) = ([vec![], vec![]], [vec![], vec![]], vec![], vec![]);
        let mut bytes = Vec::new();
        for run in 0..self.request.runs {
            for turn in 0..2 {
                let side = (run + turn) % 2;
                let before = measure::resident_bytes(server.process.pid())? as f64;
                let attack = if side == 1 { Some(Attack::start(self, part, &server, 3_600, true)?) } else { None };
                if attack.is_some() && part == Part::Slowloris {
                    self.wait_open(&server, |open| open >= f64::from(SLOWLORIS))?;
                    // Before honest shares touch tables of the server for the first time.
                    bytes.push((measure::resident_bytes(server.process.pid())? as f64 - before) / f64::from(SLOWLORIS));
                }
                let words = format!(
                    "--target {} --connections {HONEST} --rate {HONEST_SHARES_PER_S} --seconds {seconds} --warmup 1 --seed {}",
                    server.stratum,
                    run + 1
                );
                let result = whole(Load::start(self, part.name(), &words)?.result(PATIENCE)?)?;
                println!("run {run}: {} {result}", ["honest alone", "honest under attack"][side]);
                p99[side].push(latency(&result, "p99")?);
                p50[side].push(latency(&result, "p50")?);
                if let Some(attack) = attack {
                    held.push(number(&measure::get_json(server.stats, "/api/stats")?["connections"], "open")?);
                    let report = attack.stopped()?;
                    println!("run {run}: {report}");
                    attacks_per_s.push(number(&report, "connects_per_s")?);
                    if number(&report, "closed_by_server")? > 0.0 {
                        println!("the server closed {} connections of the attacker", report["closed_by_server"]);
                    }
                    self.wait_open(&server, |open| open == 0.0)?;
                }
            }
        }
        let attack = if part == Part::Flood {
            "connects and resets without end from the same core, at the lowest priority"
        } else {
            "10,000 connections that send a byte a second and never end a line, from the same core"
        };
        sheet.conditions = format!(
            "{HONEST} honest connections, open loop at {HONEST_SHARES_PER_S} shares/s, {seconds} s after 1 s of warm-up; {attack}; limits per address and for unauthorized connections off, so that every attacker gets a session; loopback, server on core {SERVER_CORE}, all clients on core {LOAD_CORE}"
        );
        server.process.stop()?;
        if part == Part::Flood {
            sheet.add(
                "alone_connects_per_s",
                &alone_per_s,
                "connects/s",
                "connects that one core generates against this server, nothing else beside",
            );
            sheet.add("beside_connects_per_s", &attacks_per_s, "connects/s", "connects beside the honest farm, its set-up included");
        } else {
            sheet.add(
                "connection_bytes",
                &bytes,
                "bytes",
                "growth of RssAnon from before the attack until all its connections are open, per connection",
            );
            sheet.add("held_connections", &held, "connections", "open at the end of each run under attack");
        }
        let [alone, attacked] = &p99;
        sheet.add("honest_alone_us_p50", &p50[0], "us", "from the time a share was due to its answer read");
        sheet.add("honest_alone_us_p99", alone, "us", "from the time a share was due to its answer read");
        sheet.add("honest_attacked_us_p50", &p50[1], "us", "the same under attack");
        sheet.add(
            "honest_attacked_us_p99",
            attacked,
            "us",
            "the same under attack; no honest connection broke, every share was answered, or this would be no figure",
        );
        let ratios: Vec<f64> = attacked.iter().zip(alone).map(|(attacked, alone)| attacked / alone).collect();
        sheet.add("honest_p99_ratio", &ratios, "ratio", "p99 under attack to p99 alone, within one pair of runs");
        bar("honest p99 under attack to p99 alone", median(&ratios), None, Some(2.0));
        Ok(())
    }

    fn wait_open(&self, server: &Server, enough: impl Fn(f64) -> bool) -> Result<(), Failure> {
        let since = Instant::now();
        loop {
            let stats = measure::get_json(server.stats, "/api/stats")?;
            if enough(number(&stats["connections"], "open")?) {
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                return Err(Failure::Environment(format!("the server's connections stay as they are: {stats}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Three times saturation, with a node that takes blocks: the test of overload measures, and asserts what must hold.
    pub(super) fn overload(&self, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        let long = self.request.seconds >= LONG_FROM_S;
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--profile", "ci", "--test", "overload", "--", "--nocapture", "three_times"]).current_dir(self.root);
        cargo.env_remove("OTEDAMA_LONG");
        if long {
            cargo.env("OTEDAMA_LONG", "1");
        }
        let done = cargo.stderr(std::process::Stdio::inherit()).output();
        let done = done.map_err(|error| Failure::Environment(format!("cargo test cannot be started: {error}")))?;
        let text = String::from_utf8_lossy(&done.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("figures: "));
        let seen: Option<Value> = line.and_then(|line| serde_json::from_str(line).ok()).filter(|_| done.status.success());
        let seen =
            seen.ok_or_else(|| Failure::Environment(format!("the test of overload ended with {}\n{}", done.status, text.trim_end())))?;
        println!("{seen}");
        sheet.conditions = format!(
            "64 connections, open loop at three times the shares/s of the closed loop x 64, {} s; loopback, share path on core 0, control core, node and loadgen, this one at the least priority, on the last core; profile ci (release without fat LTO), kernel portable and 255 transactions in the template, as one core of loadgen does not make three times what the others judge; node of an easy network, one hash in 8,192 is a block",
            seen["seconds"]
        );
        for (name, unit, counted) in [
            ("saturation_shares_per_s", "shares/s", "closed loop with 64 shares in flight on each connection"),
            ("offered_shares_per_s", "shares/s", "three times that"),
            ("sent_shares", "shares", "written by the generator"),
            (
                "held_back_shares",
                "shares",
                "due while their connection had 4,096 in flight: the server was behind, and its miners had to wait",
            ),
            ("accepted_shares", "shares", "credited"),
            ("unanswered_shares", "shares", "of connections that the server closed, or still unread at the end"),
            ("disconnects", "connections", "closed by the server, the last measure against overload"),
            ("rss_first_bytes", "bytes", "RssAnon when the overload began"),
            ("rss_last_bytes", "bytes", "RssAnon at its end"),
            ("rss_most_bytes", "bytes", "largest RssAnon meanwhile; the duplicate tables are touched as jobs come and go"),
            ("unread_us_most", "us", "longest that bytes waited in sockets"),
            ("step_most", "step", "highest measure taken: 1 door shut, 2 to 7 difficulty x2 to x64, 8 closing"),
            ("candidates", "blocks", "block candidates in the log whose submitblock the node saw"),
            ("submit_us_p50", "us", "candidate read from its socket to the first byte of submitblock at the node"),
            ("submit_us_p999", "us", "the same"),
            ("submit_us_max", "us", "the same"),
        ] {
            sheet.add(name, &[number(&seen, name)?], unit, counted);
        }
        let refused = seen["refused"].as_object().ok_or_else(|| Failure::Environment(format!("no refusals by reason: {seen}")))?;
        for (reason, count) in refused {
            sheet.add(
                &format!("refused_{reason}"),
                &[count.as_f64().unwrap_or(f64::NAN)],
                "shares",
                "refused by this reason, as the generator was told",
            );
        }
        bar("candidates from read to submitblock, p99.9, us", number(&seen, "submit_us_p999")?, None, Some(2_000.0));
        Ok(())
    }
}
