//! Vardiff in simulated time: Poisson shares of a hashrate schedule, thousands of seeds, bounds on convergence, detection, jitter.
//!
//! `OTEDAMA_LONG=1 cargo test --release -p otedama-stratum --test vardiff -- --nocapture` runs 10^4 seeds a case and prints every figure, those of the
//! exponentially weighted average beside it.
use otedama_primitives::{Coin, DIFFICULTY_MAX, Difficulty, Hash256, Job, RunId, Submit, Target};
use otedama_stratum::v1::{Context, Event, JobBook, PublishedJob, Seat, Session, Settings};
use otedama_stratum::vardiff::{Learning, Memory, Policy, Vardiff};
use std::collections::VecDeque;
use std::sync::Arc;

const START_US: u64 = 1_700_000_000_000_000;
const MINUTE_US: u64 = 60_000_000;
const HOUR_US: u64 = 60 * MINUTE_US;
/// The server looks at a silent session this often.
const LOOK_US: u64 = 5_000_000;

fn seeds() -> u64 {
    if std::env::var_os("OTEDAMA_LONG").is_some() { 10_000 } else { 300 }
}

/// splitmix64: a seed is a whole run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with mean 1.
    fn wait(&mut self) -> f64 {
        -self.unit().ln()
    }
}

/// A rule that sets difficulty.
trait Rule: Sized {
    fn start(per_minute: f64, now_us: u64) -> Self;
    fn remembered(per_minute: f64, now_us: u64) -> Self;
    fn on_share(&mut self, policy: &Policy, current: Difficulty, weight: f32, now_us: u64) -> Option<Difficulty>;
    fn on_time(&mut self, policy: &Policy, current: Difficulty, now_us: u64) -> Option<Difficulty>;
    fn retargeted(&mut self, from: Difficulty, to: Difficulty);
}

impl Rule for Vardiff {
    fn start(_: f64, now_us: u64) -> Self {
        Vardiff::new(now_us)
    }
    fn remembered(_: f64, now_us: u64) -> Self {
        Vardiff::remembered(now_us)
    }
    fn on_share(&mut self, policy: &Policy, current: Difficulty, weight: f32, now_us: u64) -> Option<Difficulty> {
        Vardiff::on_share(self, policy, current, weight, now_us)
    }
    fn on_time(&mut self, policy: &Policy, current: Difficulty, now_us: u64) -> Option<Difficulty> {
        Vardiff::on_time(self, policy, current, now_us)
    }
    fn retargeted(&mut self, from: Difficulty, to: Difficulty) {
        Vardiff::retargeted(self, from, to);
    }
}

/// The candidate that lost: the same bands around an exponentially weighted average of `MEMORY` shares.
struct Average<const MEMORY: u32, const ERRORS_PERCENT: u32> {
    per_minute: f64,
    seen_us: u64,
    shares: f64,
    expected: f64,
}

impl<const MEMORY: u32, const ERRORS_PERCENT: u32> Average<MEMORY, ERRORS_PERCENT> {
    fn book(&mut self, weight: f64, now_us: u64) {
        let expected = (now_us - self.seen_us) as f64 * self.per_minute / 60e6;
        self.seen_us = now_us;
        let keep = (-expected / f64::from(MEMORY)).exp();
        self.shares = self.shares * keep + weight;
        self.expected = self.expected * keep + expected;
        if self.shares > f64::from(MEMORY) {
            self.expected *= f64::from(MEMORY) / self.shares;
            self.shares = f64::from(MEMORY);
        }
    }

    fn decide(&self, current: Difficulty) -> Option<Difficulty> {
        let ratio = if self.shares >= 4.0 {
            (self.shares - 0.5) / self.expected.max(1e-7)
        } else {
            ((self.shares + 0.5) / (self.expected + 0.5)).min(1.0)
        };
        let band = (f64::from(ERRORS_PERCENT) / 100.0 / (self.shares + 0.5).sqrt()).max(0.16);
        let wanted = (current.get() * ratio.max(1.0 / 8.0)).clamp(1e-9, DIFFICULTY_MAX);
        let wanted = if wanted >= 1.0 { wanted.round() } else { wanted };
        (ratio.ln().abs() > band && (wanted / current.get()).ln().abs() > 0.08).then(|| Difficulty::clamped(wanted))
    }
}

impl<const MEMORY: u32, const ERRORS_PERCENT: u32> Rule for Average<MEMORY, ERRORS_PERCENT> {
    fn start(per_minute: f64, now_us: u64) -> Self {
        Self { per_minute, seen_us: now_us, shares: 0.0, expected: 0.0 }
    }
    fn remembered(per_minute: f64, now_us: u64) -> Self {
        Self { per_minute, seen_us: now_us, shares: 4.0, expected: 4.0 }
    }
    fn on_share(&mut self, _: &Policy, current: Difficulty, weight: f32, now_us: u64) -> Option<Difficulty> {
        self.book(f64::from(weight), now_us);
        self.decide(current)
    }
    fn on_time(&mut self, _: &Policy, current: Difficulty, now_us: u64) -> Option<Difficulty> {
        self.book(0.0, now_us);
        self.decide(current)
    }
    fn retargeted(&mut self, from: Difficulty, to: Difficulty) {
        self.expected *= to.get() / from.get();
    }
}

/// One miner and the rule that sets its difficulty. The miner hears of a retarget `latency_us` later and sends at the old difficulty until then.
struct Simulation<R> {
    rule: R,
    policy: Policy,
    per_minute: f64,
    random: Random,
    now_us: f64,
    look_us: f64,
    hashrate: f64,
    /// As set by the server.
    difficulty: Difficulty,
    /// As known to the miner, and when it changes.
    mined: Difficulty,
    heard: Option<(f64, Difficulty)>,
    latency_us: f64,
    shares: u64,
    retargets: u64,
}

impl<R: Rule> Simulation<R> {
    fn new(seed: u64, per_minute: f64, least: f64, difficulty: f64, hashrate: f64) -> Self {
        let policy = Policy::new(per_minute, Difficulty::clamped(least), Difficulty::clamped(DIFFICULTY_MAX));
        let difficulty = Difficulty::clamped(difficulty);
        Self {
            rule: R::start(per_minute, START_US),
            policy,
            per_minute,
            random: Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            now_us: 0.0,
            look_us: LOOK_US as f64,
            hashrate,
            difficulty,
            mined: difficulty,
            heard: None,
            latency_us: 0.0,
            shares: 0,
            retargets: 0,
        }
    }

    /// A session whose difficulty is right and known well.
    fn settled(seed: u64, per_minute: f64, hashrate: f64) -> Self {
        let mut simulation = Self::new(seed, per_minute, 1e-9, 1.0, hashrate);
        let ideal = simulation.ideal();
        simulation.difficulty = Difficulty::clamped(ideal);
        simulation.mined = simulation.difficulty;
        simulation.rule = R::remembered(per_minute, START_US);
        simulation.run(2 * HOUR_US, |_| true);
        simulation.retargets = 0;
        simulation.shares = 0;
        simulation
    }

    /// The difficulty that gives the target rate.
    fn ideal(&self) -> f64 {
        self.hashrate * 60.0 / self.per_minute * 65535.0 / 2f64.powi(48)
    }

    fn error(&self) -> f64 {
        self.difficulty.get() / self.ideal()
    }

    fn take(&mut self, decision: Option<Difficulty>) {
        if let Some(difficulty) = decision {
            self.rule.retargeted(self.difficulty, difficulty);
            self.difficulty = difficulty;
            self.heard = Some((self.now_us + self.latency_us, difficulty));
            self.retargets += 1;
        }
    }

    /// Runs for `span_us`, or until `go_on`, asked after every share and look, says no. The time spent, microseconds.
    fn run(&mut self, span_us: u64, mut go_on: impl FnMut(&Self) -> bool) -> u64 {
        let begun = self.now_us;
        let end = begun + span_us as f64;
        while self.now_us < end {
            let rate_per_us = self.hashrate / self.mined.work().hashes() as f64 / 1e6;
            let share_us = self.now_us + self.random.wait() / rate_per_us;
            let heard_us = self.heard.map_or(f64::INFINITY, |(at, _)| at);
            let next = share_us.min(self.look_us).min(heard_us).min(end);
            self.now_us = next;
            let now = START_US + next as u64;
            if next == heard_us {
                // Exponential waits have no memory, so the next one may be drawn anew.
                if let Some((_, difficulty)) = self.heard.take() {
                    self.mined = difficulty;
                }
                continue;
            }
            if next == share_us {
                self.shares += 1;
                let weight = (self.mined.work().hashes() as f64 / self.difficulty.work().hashes() as f64).min(1.0);
                let decision = self.rule.on_share(&self.policy, self.difficulty, weight as f32, now);
                self.take(decision);
            } else if next == self.look_us {
                self.look_us += LOOK_US as f64;
                let decision = self.rule.on_time(&self.policy, self.difficulty, now);
                self.take(decision);
            } else {
                break;
            }
            if !go_on(self) {
                break;
            }
        }
        (self.now_us - begun) as u64
    }
}

fn quantile(sorted: &mut [f64], q: f64) -> f64 {
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

/// Cold start: shares and seconds until the rate is within 25 % of the target: median and 99th percentile over the seeds.
struct Cold {
    shares: [f64; 2],
    seconds: [f64; 2],
    /// Share of the seeds that are within 25 % after half an hour more.
    stays: f64,
    retargets: f64,
}

fn cold<R: Rule>(per_minute: f64, hashrate: f64, latency_us: f64) -> Cold {
    let (mut shares, mut seconds, mut stays, mut retargets) = (Vec::new(), Vec::new(), 0, 0);
    for seed in 0..seeds() {
        let mut simulation = Simulation::<R>::new(seed, per_minute, 1e-9, 1024.0, hashrate);
        simulation.latency_us = latency_us;
        let took = simulation.run(HOUR_US, |now| !(0.8..=1.25).contains(&now.error()));
        shares.push(simulation.shares as f64);
        seconds.push(took as f64 / 1e6);
        simulation.run(HOUR_US / 2, |_| true);
        retargets += simulation.retargets;
        stays += u64::from((0.8..=1.25).contains(&simulation.error()));
    }
    let count = seeds() as f64;
    Cold {
        shares: [quantile(&mut shares, 0.5), quantile(&mut shares, 0.99)],
        seconds: [quantile(&mut seconds, 0.5), quantile(&mut seconds, 0.99)],
        stays: stays as f64 / count,
        retargets: retargets as f64 / count,
    }
}

/// A change of the hashrate by `factor` at a settled session: share of the seeds whose difficulty has gone at least half of the way within five minutes, and
/// minutes until then, median and 99th percentile.
fn change<R: Rule>(per_minute: f64, factor: f64) -> (f64, [f64; 2]) {
    let (mut found, mut minutes) = (0, Vec::new());
    for seed in 0..seeds() {
        let mut simulation = Simulation::<R>::settled(seed, per_minute, 1e14);
        let midway = simulation.ideal() * factor.sqrt();
        simulation.hashrate *= factor;
        let took = simulation.run(HOUR_US, |now| (now.difficulty.get() > midway) != (factor > 1.0));
        found += u64::from(took < 5 * MINUTE_US);
        minutes.push(took as f64 / MINUTE_US as f64);
    }
    (found as f64 / seeds() as f64, [quantile(&mut minutes, 0.5), quantile(&mut minutes, 0.99)])
}

/// Constant hashrate, settled: retargets an hour, share of time more than 25 % off, spread (standard deviation of ln difficulty), alarms an hour (more than 40 % off).
struct Jitter {
    retargets_per_hour: f64,
    off: f64,
    spread: f64,
    alarms_per_hour: f64,
}

fn jitter<R: Rule>(per_minute: f64) -> Jitter {
    let hours = 4;
    let (mut retargets, mut off, mut squares, mut looks, mut alarms) = (0, 0u64, 0.0, 0u64, 0u64);
    for seed in 0..seeds() {
        let mut simulation = Simulation::<R>::settled(seed, per_minute, 1e14);
        let mut far = false;
        for _ in 0..hours * 60 {
            simulation.run(MINUTE_US, |_| true);
            let error = simulation.error();
            looks += 1;
            off += u64::from(!(0.8..=1.25).contains(&error));
            squares += error.ln().powi(2);
            let was = std::mem::replace(&mut far, !(0.6..=1.67).contains(&error));
            alarms += u64::from(far && !was);
        }
        retargets += simulation.retargets;
    }
    let total_hours = (seeds() * hours) as f64;
    Jitter {
        retargets_per_hour: retargets as f64 / total_hours,
        off: off as f64 / looks as f64,
        spread: (squares / looks as f64).sqrt(),
        alarms_per_hour: alarms as f64 / total_hours,
    }
}

fn report<R: Rule>(name: &str) {
    for per_minute in [8.0, 60.0] {
        println!("{name} at {per_minute} a minute");
        for (hashrate, latency_us) in [(1e9, 5e4), (1e12, 5e4), (1e14, 0.0), (1e15, 5e4), (1e18, 0.0), (1e18, 5e4)] {
            let c = cold::<R>(per_minute, hashrate, latency_us);
            println!(
                "  cold {hashrate:.0e} H/s latency {latency_us} us: shares p50 {:.0} p99 {:.0}, seconds p50 {:.1} p99 {:.1}, within 25 % later {:.3}, retargets {:.1}",
                c.shares[0], c.shares[1], c.seconds[0], c.seconds[1], c.stays, c.retargets
            );
        }
        for factor in [0.5, 0.25, 2.0] {
            let (found, minutes) = change::<R>(per_minute, factor);
            println!("  hashrate x{factor}: found in 5 min {found:.4}, minutes p50 {:.2} p99 {:.2}", minutes[0], minutes[1]);
        }
        let j = jitter::<R>(per_minute);
        println!(
            "  steady: {:.2} retargets/h, {:.4} of time over 25 % off, spread {:.3}, {:.3} far excursions/h",
            j.retargets_per_hour, j.off, j.spread, j.alarms_per_hour
        );
    }
}

fn is_long() -> bool {
    std::env::var_os("OTEDAMA_LONG").is_some()
}

#[test]
fn every_figure_beside_those_of_the_averages() {
    if is_long() {
        report::<Vardiff>("posterior");
        report::<Average<24, 250>>("average of 24");
        report::<Average<60, 250>>("average of 60");
    } else {
        println!("skipped: OTEDAMA_LONG=1 prints the figures of 10^4 seeds");
    }
}

#[test]
fn from_one_gigahash_to_one_exahash_the_difficulty_is_right_within_few_shares() {
    for per_minute in [8.0, 60.0] {
        for hashrate in [1e9, 1e12, 1e15, 1e18] {
            let c = cold::<Vardiff>(per_minute, hashrate, 0.0);
            assert!(c.shares[0] <= 30.0 && c.shares[1] <= 400.0, "{hashrate:e} at {per_minute}: shares {:?}", c.shares);
            assert!(c.seconds[0] <= 100.0, "{hashrate:e} at {per_minute}: seconds {:?}", c.seconds);
            assert!(c.stays >= 0.93, "{hashrate:e} at {per_minute}: {} within 25 % half an hour later", c.stays);
        }
    }
}

/// Most of the shares at the start are under way before the miner hears of its new difficulty: 50 ms of 1 EH/s at 1024 are 11,000 of them. They change nothing.
#[test]
fn shares_under_way_during_a_retarget_do_not_mislead() {
    let c = cold::<Vardiff>(8.0, 1e18, 5e4);
    assert!(c.shares[0] <= 15_000.0 && c.shares[1] <= 25_000.0 && c.seconds[0] <= 100.0, "{:?} {:?}", c.shares, c.seconds);
    assert!(c.stays >= 0.93, "{}", c.stays);
}

#[test]
fn a_drop_of_half_is_found_within_minutes() {
    let (found, minutes) = change::<Vardiff>(60.0, 0.5);
    assert!(found >= 0.98 && minutes[0] <= 1.5, "60 a minute: {found} {minutes:?}");
    let (found, minutes) = change::<Vardiff>(8.0, 0.5);
    assert!(found >= 0.60 && minutes[0] <= 5.0, "8 a minute: {found} {minutes:?}");
    let (found, minutes) = change::<Vardiff>(8.0, 0.25);
    assert!(found >= 0.82 && minutes[0] <= 3.5, "to a quarter at 8 a minute: {found} {minutes:?}");
}

#[test]
fn a_rise_to_twice_is_found_within_minutes() {
    let (found, minutes) = change::<Vardiff>(60.0, 2.0);
    assert!(found >= 0.98 && minutes[0] <= 1.0, "60 a minute: {found} {minutes:?}");
    let (found, minutes) = change::<Vardiff>(8.0, 2.0);
    assert!(found >= 0.84 && minutes[0] <= 4.0, "8 a minute: {found} {minutes:?}");
}

#[test]
fn a_steady_miner_is_left_alone() {
    for per_minute in [8.0, 60.0] {
        let j = jitter::<Vardiff>(per_minute);
        assert!(j.retargets_per_hour <= 1.0, "{per_minute} a minute: {} retargets an hour", j.retargets_per_hour);
        assert!(j.off <= 0.05 && j.spread <= 0.15, "{per_minute} a minute: {} of the time off, spread {}", j.off, j.spread);
        assert!(j.alarms_per_hour <= 0.25, "{per_minute} a minute: {} far excursions an hour", j.alarms_per_hour);
    }
}

/// Why the posterior is shipped: it finds more drops than the average that is about as quiet, and is off for less of the time.
#[test]
fn the_average_finds_fewer_drops_and_is_off_for_longer() {
    let (posterior, average) = (change::<Vardiff>(8.0, 0.5).0, change::<Average<24, 250>>(8.0, 0.5).0);
    assert!(posterior > average + 0.05, "{posterior} {average}");
    let (posterior, average) = (jitter::<Vardiff>(60.0), jitter::<Average<24, 250>>(60.0));
    assert!(posterior.off < average.off && posterior.retargets_per_hour < average.retargets_per_hour);
}

/// A server's session and an honest miner whose hashrate swings: what the server writes reaches the miner up to 20 s late, and what the miner has in hand it
/// finishes at the difficulty it was told for it. One in three miners applies a new difficulty to what it has in hand, too, as some firmware does.
struct Table {
    settings: Settings,
    book: JobBook,
    session: Session,
    random: Random,
    now_us: u64,
    /// Lines under way to the miner.
    wire: VecDeque<(u64, String)>,
    /// The job that is mined, and the one before: id and difficulty.
    mined: (String, f64),
    before: (String, f64),
    /// As of the last set_difficulty.
    told: f64,
    hasty: bool,
    next_job: u32,
    retargets: u64,
    judged: u64,
}

impl Table {
    fn new(seed: u64) -> Self {
        let policy = Policy::new(60.0, Difficulty::clamped(1.0), Difficulty::clamped(DIFFICULTY_MAX));
        let memory = Arc::new(Memory::new(4));
        let settings = Settings { learning: Some(Learning { policy, memory }), ..Settings::default() };
        let session = Session::new(Seat { session: 1, extranonce1: 1, net: 0 }, &settings);
        let nothing = (String::new(), 0.0);
        let mut table = Self {
            settings,
            book: JobBook::new(),
            session,
            random: Random(seed),
            now_us: START_US,
            wire: VecDeque::new(),
            mined: nothing.clone(),
            before: nothing,
            told: 0.0,
            hasty: seed.is_multiple_of(3),
            next_job: 1,
            retargets: 0,
            judged: 0,
        };
        table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
        table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
        table
    }

    fn with_session<T>(&mut self, act: impl FnOnce(&mut Session, &Context<'_>, &mut Vec<u8>) -> T) -> T {
        let mut out = Vec::new();
        let context = Context { settings: &self.settings, jobs: &self.book, now_us: self.now_us, peer: None };
        let came = act(&mut self.session, &context, &mut out);
        let out = String::from_utf8(out).expect("ASCII");
        self.retargets += u64::from(out.contains("set_difficulty"));
        // One write arrives as one.
        if !out.is_empty() {
            let late_us = (self.random.unit().powi(4) * 20e6) as u64;
            let at = self.wire.back().map_or(0, |(at, _)| *at).max(self.now_us + late_us);
            self.wire.push_back((at, out));
        }
        came
    }

    fn say(&mut self, line: &str) -> Event {
        self.with_session(|session, context, out| session.on_line(context, line.as_bytes(), out))
    }

    fn publish(&mut self, clean: bool) {
        let job = Job {
            id: RunId::new(1, 2).job(self.next_job),
            coin: Coin::Bitcoin,
            height: 1,
            prev_hash: Hash256([0; 32]),
            version: 0x2000_0000,
            nbits: 0x1702_5ced,
            ntime: (self.now_us / 1_000_000) as u32,
            ntime_min: 0,
            coinbase_prefix: Box::new([]),
            coinbase_suffix: Box::new([]),
            branch: Box::new([]),
            extranonce2_bytes: 8,
            network_target: Target::from_compact(0x1702_5ced).expect("a target"),
            clean,
            created_us: self.now_us,
        };
        self.next_job += 1;
        let job = Arc::new(PublishedJob::new(job, 0x7fff_fff0));
        self.book.publish(Arc::clone(&job));
        self.with_session(|session, context, out| session.notify(context, &job, false, out));
    }

    fn hear(&mut self) {
        while let Some((_, text)) = self.wire.pop_front_if(|(at, _)| *at <= self.now_us) {
            for line in text.lines() {
                let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
                match value["method"].as_str() {
                    Some("mining.set_difficulty") => self.told = value["params"][0].as_f64().expect("a number"),
                    Some("mining.notify") => {
                        let id = value["params"][0].as_str().expect("an id").to_owned();
                        self.before = std::mem::replace(&mut self.mined, (id, self.told));
                        if self.hasty {
                            self.before.1 = self.told;
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// An honest share of this job, found at this difficulty.
    fn share(&mut self, (job, difficulty): (String, f64)) {
        let line = format!(
            "{{\"id\":3,\"method\":\"mining.submit\",\"params\":[\"rig.1\",\"{job}\",\"0000000000000001\",\"{:08x}\",\"00000001\"]}}",
            self.now_us / 1_000_000
        );
        let Event::Share(submit, _) = self.say(&line) else { panic!("{line} is no share") };
        if submit.status != Submit::PENDING {
            return;
        }
        self.judged += 1;
        let found = Difficulty::clamped(difficulty).work().hashes();
        assert!(submit.work <= found, "a share of {job} found at work {found} is judged at {}: refused as low difficulty", submit.work);
        let told = self.session.told_work();
        self.with_session(|session, context, out| session.on_share(context, told, out));
    }
}

#[test]
fn a_swinging_hashrate_costs_no_honest_share() {
    let retargets = if is_long() { 100_000 } else { 2_000 };
    let (mut total, mut judged) = (0, 0);
    for seed in 1.. {
        let mut table = Table::new(seed);
        table.publish(true);
        let (mut job_us, mut look_us, mut swing_us) = (table.now_us + 30_000_000, table.now_us + 1_000_000, table.now_us);
        let mut hashrate = 1e12;
        while table.now_us < START_US + 4 * HOUR_US {
            if table.now_us >= swing_us {
                hashrate = 1e12 * 2f64.powf((table.random.unit() - 0.5) * 16.0);
                swing_us = table.now_us + (table.random.unit() * 300e6) as u64;
            }
            let difficulty = table.mined.1.max(1.0);
            let wait_us = table.random.wait() * Difficulty::clamped(difficulty).work().hashes() as f64 / hashrate * 1e6;
            let heard_us = table.wire.front().map_or(u64::MAX, |(at, _)| *at);
            let share_us = if table.mined.0.is_empty() { u64::MAX } else { table.now_us.saturating_add(wait_us as u64 + 1) };
            table.now_us = share_us.min(job_us).min(look_us).min(heard_us.max(table.now_us)).min(swing_us.max(table.now_us + 1));
            table.hear();
            if table.now_us == share_us {
                // One share in ten was in hand when the job changed.
                let held = if table.random.unit() < 0.1 && !table.before.0.is_empty() { table.before.clone() } else { table.mined.clone() };
                table.share(held);
            }
            if table.now_us >= job_us {
                job_us += 30_000_000;
                let clean = table.random.unit() < 0.05;
                table.publish(clean);
            }
            if table.now_us >= look_us {
                look_us += 1_000_000;
                table.with_session(|session, context, out| session.on_time(context, out));
            }
        }
        total += table.retargets;
        judged += table.judged;
        if total >= retargets {
            break;
        }
    }
    println!("{judged} honest shares through {total} retargets, none refused as low difficulty");
    assert!(judged > total);
}
