//! Vardiff: the difficulty that gives a session the wanted number of shares a minute, learned from the shares it sends and from the time in which it sends none.
//!
//! Shares of a steady miner are a Poisson stream, so everything is counted in *expected shares*: `shares` that came against `expected`, the number that would
//! have come at the target rate. Their ratio is what the difficulty has to be multiplied by. Two questions are kept apart:
//!
//! - **Where is the rate?** A Gamma posterior (shares, expected) since the last change. The difficulty follows when the ratio differs from 1 by more than its own
//!   uncertainty and by more than a least step: few shares allow only large corrections, many allow small ones, and a settled session is left alone.
//! - **Has the rate changed?** Two likelihood-ratio sums (CUSUM, Page 1954), one for half of the rate and one for twice. Each remembers what came since it last
//!   stood at zero, the likeliest moment of the change; on an alarm that is all that the posterior keeps. Silence counts: time without shares is evidence.
//!
//! No clock, no allocation, no randomness: the caller passes the time in. An exponentially weighted average with the same rule for its steps was the other
//! candidate; `tests/vardiff.rs` keeps it and compares the two.
use otedama_primitives::{Difficulty, WorkerId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all sessions of a server aim at; from `[vardiff]`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Policy {
    shares_per_us: f64,
    least: Difficulty,
    most: Difficulty,
    /// Log-likelihoods at which half and twice the rate are believed.
    alarm_drop: f32,
    alarm_rise: f32,
}

impl Policy {
    /// `target_shares_per_minute` is what a session shall send, `least` and `most` the difficulties it may get. The network's difficulty is a limit of its own,
    /// kept by the session.
    pub fn new(target_shares_per_minute: f64, least: Difficulty, most: Difficulty) -> Self {
        // NaN and nonsense become one share in ten minutes.
        let target = target_shares_per_minute.max(0.1);
        // A false alarm comes once in so many shares: a session that sends more of them waits for more evidence, so that its false alarms per hour are no more.
        let alarm_drop = (ALARM_AT_8 + (target / 8.0).ln() as f32).clamp(ALARM_LEAST, ALARM_MOST);
        // The wire carries whole numbers from 1 up: the limits are the outermost ones within.
        let least = if least.get() > 1.0 { Difficulty::clamped(least.get().ceil()) } else { least };
        let most = if most.get() > 1.0 { Difficulty::clamped(most.get().floor()) } else { most };
        Self {
            shares_per_us: target / 60e6,
            least,
            most: if most < least { least } else { most },
            alarm_drop,
            alarm_rise: alarm_drop + ALARM_RISE_MORE,
        }
    }
}

impl Policy {
    /// The same aims at half of the share rate, `halvings` times over: while difficulties are doubled for the server's load.
    #[inline]
    #[must_use]
    pub fn slowed(&self, halvings: u8) -> Self {
        if halvings == 0 {
            return *self;
        }
        Self { shares_per_us: self.shares_per_us / f64::from(1_u32 << halvings.min(16)), ..*self }
    }
}

/// Log-likelihood at which half of the rate is believed, at a target of 8 shares a minute. Higher: fewer false alarms, later detection; the simulator fixed it.
const ALARM_AT_8: f32 = 6.5;
const ALARM_LEAST: f32 = 4.5;
const ALARM_MOST: f32 = 11.0;
/// Twice the rate needs more: a rise harms nobody for a minute, and shares that a stalled link held back look like one.
const ALARM_RISE_MORE: f32 = 2.0;
/// What the sessions of a server learn by.
#[derive(Clone, Debug)]
pub struct Learning {
    /// What they aim at.
    pub policy: Policy,
    /// Where they start.
    pub memory: Arc<Memory>,
}

/// Difficulties of workers that were here before, so that a miner that comes back starts where it left. One table for all nets, without a lock: an entry is one
/// word (32 bits of the worker's identity, 32 bits of the difficulty), four entries make a set, and a newcomer pushes out the oldest of its set.
#[derive(Debug)]
pub struct Memory {
    sets: Box<[[AtomicU64; Memory::WAYS]]>,
}

impl Memory {
    const WAYS: usize = 4;
    /// Workers that a server remembers.
    pub const WORKERS: usize = 1 << 18;
    /// Bytes of each.
    pub const ENTRY_BYTES: usize = size_of::<AtomicU64>();

    /// An empty table for `workers`, rounded up to a power of two.
    pub fn new(workers: usize) -> Self {
        let sets = workers.div_ceil(Self::WAYS).next_power_of_two();
        Self { sets: (0..sets).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect() }
    }

    /// The set of a worker, and its identity within.
    fn set(&self, worker: WorkerId) -> (&[AtomicU64; Self::WAYS], u64) {
        // A worker's number is a hash: any of its bits will do.
        let index = worker.0 as usize & (self.sets.len() - 1);
        (&self.sets[index], worker.0 >> 32)
    }

    /// The difficulty that a worker had when it was last here.
    pub fn recall(&self, worker: WorkerId) -> Option<Difficulty> {
        let (set, tag) = self.set(worker);
        // Relaxed: an entry is one word and stands for itself.
        let entry = set.iter().map(|entry| entry.load(Ordering::Relaxed)).find(|entry| *entry != 0 && entry >> 32 == tag)?;
        Some(Difficulty::clamped(f64::from(f32::from_bits(entry as u32))))
    }

    /// Remembers the difficulty of a worker. Where two nets do so at once an entry of the set may be lost or stand there twice: it is a starting point, no account.
    pub fn remember(&self, worker: WorkerId, difficulty: Difficulty) {
        let (set, tag) = self.set(worker);
        let mut moving = tag << 32 | u64::from((difficulty.get() as f32).to_bits());
        for entry in set {
            let before = entry.swap(moving, Ordering::Relaxed);
            if before == 0 || before >> 32 == tag {
                break;
            }
            moving = before;
        }
    }
}

/// Shares that the posterior remembers at most: older ones fade, so that slow drifts are followed.
const MEMORY_SHARES: f32 = 400.0;
/// Standard errors by which the ratio must differ from 1.
const BAND_ERRORS: f32 = 1.5;
/// Least change of the difficulty, as a natural logarithm: 17 %.
const BAND_LEAST: f32 = 0.16;
/// Shares before the difficulty rises: fewer say too little, and a lucky first share must not multiply it.
const SHARES_BEFORE_RISE: f32 = 4.0;
/// Shares that the prior is worth where none came: sets how long silence has to last before the difficulty falls.
const PRIOR_SHARES: f32 = 0.5;
/// Shares that a remembered difficulty, or the rate before an alarm, is worth beside the new evidence.
const CARRIED_SHARES: f32 = 8.0;
/// One step down divides by this at most: a miner that only paused must not come back to a flood.
const FALL_MAX: f32 = 8.0;
/// A look sooner than this after the last booking waits for the next: thousands of tiny waits would be lost in rounding.
const LOOK_LEAST_US: u64 = 500_000;
/// Expected shares of silence that one look books at most: a jump of the wall clock alone raises no alarm. Callers look every few seconds.
const LOOK_SHARES_MAX: f32 = 8.0;

/// A likelihood-ratio sum and what came since it stood at zero.
#[derive(Clone, Copy, Default, Debug)]
struct Cusum {
    sum: f32,
    shares: f32,
    expected: f32,
}

impl Cusum {
    /// Books `shares` in a time in which `predicted` were likely; the alternative is `factor` times the rate.
    fn add(&mut self, factor: f32, predicted: f32, shares: f32, expected: f32) {
        self.sum += shares * factor.ln() - (factor - 1.0) * predicted;
        if self.sum <= 0.0 {
            *self = Self::default();
        } else {
            self.shares += shares;
            self.expected += expected;
        }
    }
}

/// What is known about the share rate of one session. All counts are relative to the difficulty in force.
#[derive(Clone, Copy, Debug)]
pub struct Vardiff {
    /// Until when time has been booked.
    seen_us: u64,
    /// Shares since the last change, each weighted by its work over the work in force.
    shares: f32,
    /// Shares that the same time would have brought at the target rate.
    expected: f32,
    drop: Cusum,
    rise: Cusum,
}

const _: () = assert!(size_of::<Vardiff>() <= 40, "one of these is kept for every connection");

impl Vardiff {
    /// A miner of unknown hashrate, from `now_us` on.
    pub fn new(now_us: u64) -> Self {
        Self { seen_us: now_us, shares: 0.0, expected: 0.0, drop: Cusum::default(), rise: Cusum::default() }
    }

    /// A miner whose difficulty was learned before: the first shares correct it, they do not replace it.
    pub fn remembered(now_us: u64) -> Self {
        Self { shares: CARRIED_SHARES, expected: CARRIED_SHARES, ..Self::new(now_us) }
    }

    /// Books an accepted share. `weight` is the work it was judged at over the work of `current`, at most 1: shares that were still under way at an older,
    /// easier difficulty count for what they are worth. Returns the difficulty that the session should have, where that is another one.
    #[inline]
    pub fn on_share(&mut self, policy: &Policy, current: Difficulty, weight: f32, now_us: u64) -> Option<Difficulty> {
        self.book(policy, weight.clamp(0.0, 1.0), now_us);
        self.decide(policy, current)
    }

    /// Books time without a share; to be called every few seconds. Returns the difficulty that the session should have, where that is another one.
    #[inline]
    pub fn on_time(&mut self, policy: &Policy, current: Difficulty, now_us: u64) -> Option<Difficulty> {
        if now_us.saturating_sub(self.seen_us) < LOOK_LEAST_US {
            return None;
        }
        self.book(policy, 0.0, now_us);
        self.decide(policy, current)
    }

    /// Lets the time until `now_us` pass without counting it: there was nothing to mine.
    pub fn skip(&mut self, now_us: u64) {
        self.seen_us = self.seen_us.max(now_us);
    }

    /// Says that the difficulty went from `from` to `to`, for whatever reason: what was counted is put in terms of the new one.
    pub fn retargeted(&mut self, from: Difficulty, to: Difficulty) {
        self.expected *= (to.get() / from.get()) as f32;
        self.drop = Cusum::default();
        self.rise = Cusum::default();
    }

    /// True once enough shares have come for the difficulty in force to be worth remembering.
    pub fn is_settled(&self) -> bool {
        self.shares >= 1.5 * CARRIED_SHARES
    }

    fn book(&mut self, policy: &Policy, shares: f32, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.seen_us);
        self.seen_us = self.seen_us.max(now_us);
        let expected = ((elapsed_us as f64 * policy.shares_per_us) as f32).min(LOOK_SHARES_MAX);
        // Predictions are made before the share is looked at, from what came before the suspected change.
        let before_drop = self.before(&self.drop);
        let before_rise = self.before(&self.rise);
        self.drop.add(0.5, before_drop * expected, shares, expected);
        self.rise.add(2.0, before_rise * expected, shares, expected);
        self.shares += shares;
        self.expected += expected;
        if self.shares > MEMORY_SHARES {
            self.expected *= MEMORY_SHARES / self.shares;
            self.shares = MEMORY_SHARES;
        }
        let (alarm, before) = if self.drop.sum > policy.alarm_drop {
            (self.drop, before_drop)
        } else if self.rise.sum > policy.alarm_rise {
            (self.rise, before_rise)
        } else {
            return;
        };
        // A window that an alarm chose looks more extreme than it is: a few shares of the rate before temper it.
        let carried = CARRIED_SHARES.min(self.shares);
        self.shares = alarm.shares + carried;
        self.expected = alarm.expected + carried / before;
        self.drop = Cusum::default();
        self.rise = Cusum::default();
    }

    /// The ratio as it was before the window of a sum began.
    fn before(&self, window: &Cusum) -> f32 {
        ((self.shares - window.shares).max(0.0) + PRIOR_SHARES) / ((self.expected - window.expected).max(0.0) + PRIOR_SHARES)
    }

    fn decide(&self, policy: &Policy, current: Difficulty) -> Option<Difficulty> {
        let ratio = if self.shares >= SHARES_BEFORE_RISE {
            // Half a share less: a decision is mostly made when one has just come.
            (self.shares - 0.5) / self.expected.max(1e-7)
        } else {
            ((self.shares + PRIOR_SHARES) / (self.expected + PRIOR_SHARES)).min(1.0)
        };
        // Most shares end here: the logarithm is not worth taking.
        if (ratio - 1.0).abs() < 0.9 * BAND_LEAST {
            return None;
        }
        let band = (BAND_ERRORS / (self.shares + PRIOR_SHARES).sqrt()).max(BAND_LEAST);
        let outside = |ratio: f32| ratio.ln().abs() > band;
        if !outside(ratio) {
            return None;
        }
        let wanted = current.get() * f64::from(ratio.max(1.0 / FALL_MAX));
        let chosen = rounded(wanted).max(policy.least.get()).min(policy.most.get());
        // Where limits or whole numbers leave no worthwhile step, none is made.
        let step = (chosen / current.get()).ln().abs();
        (step > f64::from(BAND_LEAST) / 2.0).then(|| Difficulty::clamped(chosen))
    }
}

/// The nearest number with four significant bits (steps of 6 to 12 %): short on the wire, exact in any float of old firmware, and whole from 1 up.
fn rounded(difficulty: f64) -> f64 {
    if !(difficulty.is_finite() && difficulty > 0.0) {
        return difficulty;
    }
    let step = (difficulty.log2().floor() - 3.0).exp2();
    let step = if difficulty >= 1.0 { step.max(1.0) } else { step };
    (difficulty / step).round() * step
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clamped(value: f64) -> Difficulty {
        Difficulty::clamped(value)
    }

    #[test]
    fn difficulties_are_short_and_whole_from_one_up() {
        for (value, expected) in [
            (1024.0, 1024.0),
            (1100.0, 1152.0),
            (1.4, 1.0),
            (1.6, 2.0),
            (7.4, 7.0),
            (0.3, 0.3125),
            (0.97, 1.0),
            (4e9, 4_026_531_840.0),
            (f64::INFINITY, f64::INFINITY),
            (0.0, 0.0),
        ] {
            assert_eq!(rounded(value), expected, "{value}");
        }
    }

    #[test]
    fn silence_alone_lowers_and_one_share_never_raises() {
        let policy = Policy::new(8.0, clamped(1.0), clamped(4e9));
        let mut silent = Vardiff::new(0);
        let looked = (1..100).find_map(|look| silent.on_time(&policy, clamped(1024.0), look * 5_000_000).map(|to| (look, to)));
        let (look, to) = looked.expect("it falls");
        assert!((4..=8).contains(&look), "after about four expected shares, not {look} looks");
        assert_eq!(to.get(), 128.0);
        let mut lucky = Vardiff::new(0);
        assert_eq!(lucky.on_share(&policy, clamped(1024.0), 1.0, 1), None);
    }

    #[test]
    fn a_burst_at_the_start_jumps_at_once_to_the_order_of_the_hashrate() {
        let policy = Policy::new(8.0, clamped(1.0), clamped(4e9));
        let mut vardiff = Vardiff::new(0);
        // 1000 shares a second at difficulty 1024: ideal is 7500 times as much.
        let to = (1..).find_map(|share| vardiff.on_share(&policy, clamped(1024.0), 1.0, share * 1000).map(|to| (share, to)));
        let (share, to) = to.expect("it rises");
        assert_eq!(share, 4);
        assert!((0.5..2.0).contains(&(to.get() / 1024.0 / 7500.0)), "{to:?}");
    }

    #[test]
    fn a_jump_of_the_clock_moves_no_settled_session_by_more_than_two() {
        for per_minute in [8.0, 60.0, 600.0] {
            let policy = Policy::new(per_minute, clamped(1.0), clamped(4e9));
            let mut vardiff = Vardiff::remembered(0);
            let every_us = (60e6 / per_minute) as u64;
            let mut now_us = 0;
            for _ in 0..300 {
                now_us += every_us;
                assert_eq!(vardiff.on_share(&policy, clamped(1024.0), 1.0, now_us), None);
            }
            now_us += 3_600_000_000;
            for _ in 0..20 {
                now_us += every_us;
                let step = vardiff.on_share(&policy, clamped(1024.0), 1.0, now_us);
                assert!(step.is_none_or(|to| (512.0..=2048.0).contains(&to.get())), "{per_minute}: {step:?}");
            }
        }
    }

    #[test]
    fn whole_numbers_and_limits_do_not_make_it_swing() {
        // 1.41 is the geometric mean of 1 and 2; above `most` the rate is ten times the target for ever.
        for (ideal, start, most) in [(1.41, 1.0, 4e9), (1.41, 2.0, 4e9), (10_240.0, 1024.0, 1024.0), (0.1, 1.0, 4e9)] {
            let policy = Policy::new(60.0, clamped(1.0), clamped(most));
            let (mut vardiff, mut current, mut now_us, mut steps) = (Vardiff::new(0), clamped(start), 0, 0);
            for _ in 0..2000 {
                now_us += (current.get() / ideal * 1e6) as u64;
                if let Some(to) = vardiff.on_share(&policy, current, 1.0, now_us) {
                    vardiff.retargeted(current, to);
                    current = to;
                    steps += 1;
                }
            }
            assert!(steps <= 1, "{ideal} from {start}: {steps} steps");
        }
    }

    #[test]
    fn a_set_of_the_memory_keeps_its_last_four_workers() {
        let memory = Memory::new(8);
        // Two sets: odd and even workers.
        let worker = |tag: u64, set: u64| WorkerId(tag << 32 | set);
        for tag in 1..=5 {
            memory.remember(worker(tag, 0), clamped(tag as f64 * 1000.0));
        }
        memory.remember(worker(3, 0), clamped(7.0));
        assert_eq!(memory.recall(worker(1, 0)), None);
        assert_eq!(memory.recall(worker(3, 0)), Some(clamped(7.0)));
        assert_eq!(memory.recall(worker(5, 0)), Some(clamped(5000.0)));
        assert_eq!(memory.recall(worker(5, 1)), None);
        // Number 3 is the youngest now: two more push out 2 and 4.
        memory.remember(worker(6, 0), clamped(1.0));
        memory.remember(worker(7, 0), clamped(1.0));
        let known: Vec<u64> = (1..=7).filter(|&tag| memory.recall(worker(tag, 0)).is_some()).collect();
        assert_eq!(known, [3, 5, 6, 7]);
    }

    proptest! {
        /// Any shares at any times, any weights: what is asked for is within the limits, whole from one up, and never the difficulty in force.
        #[test]
        fn every_decision_is_within_the_limits(
            per_minute in prop_oneof![Just(0.1), Just(8.0), Just(6000.0), Just(f64::NAN)],
            least in prop_oneof![Just(1.0), Just(2.4e-10), 0.001..1000.0],
            most in prop_oneof![Just(4e9), 1.0..1e6],
            steps in prop::collection::vec((prop_oneof![Just(0u64), Just(1), 0..60_000_000u64, Just(u64::MAX / 2)], prop_oneof![Just(0f32), Just(1.0), 0f32..1.0, Just(f32::NAN)], any::<bool>()), 1..200),
        ) {
            let policy = Policy::new(per_minute, clamped(least), clamped(most));
            let (mut vardiff, mut current, mut now_us) = (Vardiff::new(0), clamped(1024.0), 0u64);
            for (elapsed_us, weight, share) in steps {
                now_us = now_us.saturating_add(elapsed_us);
                let decision = if share { vardiff.on_share(&policy, current, weight, now_us) } else { vardiff.on_time(&policy, current, now_us) };
                if let Some(to) = decision {
                    prop_assert!(to.get() >= clamped(least).get() && to.get() <= clamped(most.max(least.ceil())).get(), "{:?}", to);
                    prop_assert!(to.get() <= 1.0 || to.get().fract() == 0.0);
                    prop_assert!(to != current);
                    vardiff.retargeted(current, to);
                    current = to;
                }
            }
        }
    }
}
