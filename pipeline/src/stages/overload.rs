//! When a net stage is overloaded, and what it does about it.
//!
//! **Load is measured by one thing: how long bytes wait in sockets before they are read.** A core that is busy all the time is not overloaded while every byte is
//! read within milliseconds, and a full ring is how backpressure works; both end, where they last, in bytes that wait. A round is the time between two polls of
//! the driver: all that is readable at a poll is read before the next one. So the oldest unread byte came after the poll before the last one, and [`Unread`]
//! keeps those two times. It needs no clock reading per socket and nothing from the driver.
//!
//! **The measures**, in this order, each only when the ones before did not suffice: the door is shut; the difficulty of the busiest sessions is doubled, again and
//! again up to x64; the sessions with the worst accepted/refused ratio are closed. [`Load`] decides when, by the limit and with half of it as the way back;
//! [`Sweep`] decides whom, from one walk over all connections.

/// Doublings of the difficulty at most: x64.
pub const DOUBLINGS_MAX: u8 = 6;
/// While bytes wait too long, a further measure is taken after this.
const STEP_US: u64 = 1_000_000;
/// Once bytes wait for less than half of the limit, a measure is taken back after this.
const CALM_US: u64 = 2_000_000;
/// The last measure, which ends connections, is taken back sooner.
const CALM_CLOSING_US: u64 = 200_000;
/// A session with fewer refusals than this in one sweep, or fewer than one in sixteen, is not closed for them.
const REFUSED_LEAST: u32 = 8;

/// How old the oldest unread bytes may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unread {
    /// When the sockets were asked for the last time, and the time before.
    polled_us: u64,
    polled_before_us: u64,
    /// True once everything that was readable at the last poll has been read, and nothing was.
    all_read: bool,
    /// The largest age at which bytes were read since the last look.
    read_at_us: u64,
}

impl Unread {
    /// All that was readable at the last poll has been read, and the sockets are asked again.
    pub fn polled(&mut self, now_us: u64) {
        *self = Self { polled_us: now_us, polled_before_us: self.polled_us, all_read: false, ..*self };
    }

    /// The poll just now found nothing.
    pub fn nothing_waits(&mut self) {
        *self = Self { polled_before_us: self.polled_us, all_read: true, ..*self };
    }

    /// A poll that waits for the first byte has ended.
    pub fn waited(&mut self, now_us: u64) {
        *self = Self { polled_us: now_us, polled_before_us: now_us, all_read: false, ..*self };
    }

    /// Bytes are read: their wait is remembered for the next look.
    pub fn read(&mut self, now_us: u64) {
        self.read_at_us = self.read_at_us.max(self.age_us(now_us));
    }

    /// Microseconds for which the oldest bytes have waited at most: of those that are unread, and of those that were read since the last look.
    pub fn look(&mut self, now_us: u64) -> u64 {
        self.age_us(now_us).max(std::mem::take(&mut self.read_at_us))
    }

    /// Microseconds for which the oldest unread bytes have waited at most; 0 where there are none.
    fn age_us(&self, now_us: u64) -> u64 {
        if self.all_read { 0 } else { now_us.saturating_sub(self.polled_before_us) }
    }
}

/// Which measures are in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Measures {
    /// No connection is accepted.
    pub door_shut: bool,
    /// Doublings of the difficulty that a busy session may have, 0 to `DOUBLINGS_MAX`.
    pub doublings: u8,
    /// The sessions with the worst ratio of accepted to refused shares are closed.
    pub closing: bool,
}

impl Measures {
    /// How far it has come, for the metric: 0 none, 1 door shut, 2 to 7 difficulty x2 to x64, 8 closing.
    pub fn step(&self) -> u8 {
        u8::from(self.door_shut) + self.doublings + u8::from(self.closing)
    }
}

/// Takes and takes back measures.
#[derive(Clone, Debug)]
pub struct Load {
    within_us: u64,
    measures: Measures,
    /// When a measure was last taken or taken back.
    moved_us: u64,
    /// Since when bytes have waited for less than half of the limit.
    calm_since_us: Option<u64>,
}

impl Load {
    /// `within_us`: bytes are to be read within this; `u64::MAX` for no measures at all.
    pub fn new(within_us: u64) -> Self {
        Self { within_us, measures: Measures::default(), moved_us: 0, calm_since_us: None }
    }

    /// What is in force.
    pub fn measures(&self) -> Measures {
        self.measures
    }

    /// Looks at the age of the oldest unread bytes; to be called every few milliseconds. True when the measures have changed.
    pub fn observe(&mut self, now_us: u64, unread_us: u64) -> bool {
        let before = self.measures;
        let now = &mut self.measures;
        if unread_us > self.within_us {
            self.calm_since_us = None;
            if !now.door_shut {
                now.door_shut = true;
            } else if now_us.saturating_sub(self.moved_us) >= STEP_US {
                if now.doublings < DOUBLINGS_MAX {
                    now.doublings += 1;
                } else {
                    now.closing = true;
                }
            }
        } else if unread_us <= self.within_us / 2 {
            // Step by step, last come first gone.
            let since_us = *self.calm_since_us.get_or_insert(now_us);
            if now.closing {
                now.closing = now_us.saturating_sub(since_us) < CALM_CLOSING_US;
            } else if now_us.saturating_sub(since_us.max(self.moved_us)) >= CALM_US {
                if now.doublings > 0 {
                    now.doublings -= 1;
                } else {
                    now.door_shut = false;
                }
            }
        } else {
            self.calm_since_us = None;
        }
        let moved = self.measures != before;
        if moved {
            self.moved_us = now_us;
        }
        moved
    }
}

/// What one connection did since the last sweep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// Shares answered accepted.
    pub accepted: u32,
    /// Shares and lines that were refused for what they were.
    pub refused: u32,
}

impl Heard {
    /// Order of magnitude of what it sent: 0 for nothing, else 1 + log2, 31 at most.
    fn magnitude(self) -> usize {
        (u32::BITS - self.accepted.saturating_add(self.refused).leading_zeros()).min(31) as usize
    }

    /// Sixteenths of it that were refused, 0 to 16; 0 as well where too few were to judge by.
    fn badness(self) -> usize {
        if self.refused < REFUSED_LEAST {
            return 0;
        }
        let (refused, all) = (u64::from(self.refused), u64::from(self.refused) + u64::from(self.accepted));
        (refused * 16 / all) as usize
    }
}

/// What is to be done with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Nothing.
    Leave,
    /// Its difficulty gets so many doublings.
    Double(u8),
    /// It is closed.
    Close,
}

/// Walks begin this long after one another at least: what a miner sends in less says little.
pub const WALK_US: u64 = 1_000_000;

/// One walk after another over all connections, a bounded number of them at a time: each walk measures what the next one acts on.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Shares and refusals by the magnitude of their connection.
    by_magnitude: [u64; 32],
    /// Connections by badness.
    by_badness: [u64; 17],
    /// From the walk before: the busiest are those from this magnitude up, and the worst those from this badness up. None: not known yet, or nobody is.
    busiest_from: Option<usize>,
    worst_from: Option<usize>,
}

impl Sweep {
    /// Judges one connection, which has `doublings` now.
    pub fn visit(&mut self, heard: Heard, doublings: u8, measures: Measures) -> Act {
        let (magnitude, badness) = (heard.magnitude(), heard.badness());
        self.by_magnitude[magnitude] += u64::from(heard.accepted) + u64::from(heard.refused);
        self.by_badness[badness] += 1;
        if measures.closing && self.worst_from.is_some_and(|from| badness >= from) {
            return Act::Close;
        }
        if doublings > measures.doublings {
            return Act::Double(measures.doublings);
        }
        if doublings < measures.doublings && self.busiest_from.is_some_and(|from| magnitude >= from) {
            return Act::Double(doublings + 1);
        }
        Act::Leave
    }

    /// The end of a walk. The busiest of the next one are the fewest orders of magnitude, from the top, that sent at least half of everything; the worst are those
    /// of the highest badness that anybody has.
    pub fn end(&mut self) {
        let all: u64 = self.by_magnitude.iter().sum();
        let mut sent = 0;
        let busiest = (1..self.by_magnitude.len()).rev().find(|&magnitude| {
            sent += self.by_magnitude[magnitude];
            2 * sent >= all
        });
        let worst = (1..self.by_badness.len()).rev().find(|&badness| self.by_badness[badness] > 0);
        *self = Self { busiest_from: busiest.filter(|_| all > 0), worst_from: worst, ..Self::default() };
    }

    /// Forgets everything: what connections count is of another time by now.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT_US: u64 = 250_000;
    const TICK_US: u64 = 5_000;

    /// Ages seen one tick after another; the measures after each.
    fn play(load: &mut Load, now_us: &mut u64, age_us: u64, ticks: u64) -> Vec<Measures> {
        let mut seen = vec![];
        for _ in 0..ticks {
            *now_us += TICK_US;
            if load.observe(*now_us, age_us) {
                seen.push(load.measures());
            }
        }
        seen
    }

    #[test]
    fn unread_bytes_are_no_older_than_two_rounds_and_none_wait_where_a_poll_found_none() {
        let mut unread = Unread::default();
        unread.waited(1_000);
        unread.polled(2_000);
        unread.nothing_waits();
        assert_eq!(unread.age_us(9_000), 0);
        // Found readable at 10,000: it came after the poll at 2,000, which had found nothing.
        unread.polled(10_000);
        assert_eq!(unread.age_us(10_500), 8_500);
        // The next poll may find what came right after the one at 10,000.
        unread.polled(14_000);
        assert_eq!(unread.age_us(14_000), 4_000);
        assert_eq!(unread.age_us(20_000), 10_000);
        unread.polled(20_000);
        assert_eq!(unread.age_us(20_000), 6_000);
        unread.read(20_100);
        unread.nothing_waits();
        assert_eq!(unread.age_us(99_000), 0);
        // What was read in between was old when it was read; it is told once.
        assert_eq!((unread.look(99_000), unread.look(99_000)), (6_100, 0));
        // A poll that blocks ends with the first byte.
        unread.waited(120_000);
        assert_eq!(unread.age_us(120_010), 10);
    }

    #[test]
    fn measures_come_in_order_and_go_back_in_the_other() {
        let (mut load, mut now_us) = (Load::new(LIMIT_US), 0);
        let steps: Vec<u8> = play(&mut load, &mut now_us, LIMIT_US + 1, 2_000).iter().map(Measures::step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 8], "door, six doublings, closing; then nothing more");
        assert_eq!(load.measures(), Measures { door_shut: true, doublings: DOUBLINGS_MAX, closing: true });
        // In between nothing moves, however long it lasts.
        assert_eq!(play(&mut load, &mut now_us, LIMIT_US, 10_000), []);
        let back = play(&mut load, &mut now_us, LIMIT_US / 2, 10_000);
        assert_eq!(back.iter().map(Measures::step).collect::<Vec<_>>(), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert!(back[..7].iter().all(|measures| measures.door_shut), "the door opens last");
    }

    #[test]
    fn a_short_stall_shuts_the_door_and_raises_nothing() {
        let (mut load, mut now_us) = (Load::new(LIMIT_US), 0);
        let seen = play(&mut load, &mut now_us, 3 * LIMIT_US, 100);
        assert_eq!(seen, [Measures { door_shut: true, ..Measures::default() }]);
        assert_eq!(play(&mut load, &mut now_us, 0, 1_000), [Measures::default()]);
    }

    #[test]
    fn without_a_limit_there_are_no_measures() {
        let (mut load, mut now_us) = (Load::new(u64::MAX), 0);
        assert_eq!(play(&mut load, &mut now_us, u64::MAX, 1_000), []);
    }

    /// Runs walks over connections of fixed rates; doublings of each afterwards, and whether it is still there.
    fn walk(rates: &[Heard], measures: Measures, walks: usize) -> Vec<(u8, bool)> {
        let mut sweep = Sweep::default();
        let mut state = vec![(0, true); rates.len()];
        for _ in 0..walks {
            for (heard, (doublings, open)) in rates.iter().zip(&mut state) {
                if !*open {
                    continue;
                }
                match sweep.visit(*heard, *doublings, measures) {
                    Act::Leave => {}
                    Act::Double(to) => *doublings = to,
                    Act::Close => *open = false,
                }
            }
            sweep.end();
        }
        state
    }

    #[test]
    fn the_busiest_are_doubled_and_quiet_miners_are_left_alone() {
        let quiet = Heard { accepted: 3, refused: 0 };
        let busy = Heard { accepted: 5_000, refused: 0 };
        let mut rates = vec![quiet; 100];
        rates[17] = busy;
        let measures = Measures { door_shut: true, doublings: 2, closing: false };
        let after = walk(&rates, measures, 4);
        assert_eq!(after[17], (2, true), "one a walk, up to what the measures say");
        assert!(after.iter().enumerate().all(|(at, state)| at == 17 || *state == (0, true)));
        // Where all are alike all are the busiest.
        assert!(walk(&[busy; 10], measures, 4).iter().all(|state| *state == (2, true)));
        // Nobody who says nothing is.
        assert!(walk(&[Heard::default(); 10], measures, 4).iter().all(|state| *state == (0, true)));
    }

    #[test]
    fn doublings_go_back_with_the_measures() {
        let mut sweep = Sweep::default();
        let measures = Measures { door_shut: true, doublings: 3, closing: false };
        assert_eq!(sweep.visit(Heard::default(), 6, measures), Act::Double(3));
        assert_eq!(sweep.visit(Heard::default(), 3, measures), Act::Leave);
        assert_eq!(sweep.visit(Heard::default(), 1, Measures::default()), Act::Double(0));
    }

    #[test]
    fn the_worst_ratio_goes_first_and_who_was_refused_nothing_stays() {
        let measures = Measures { door_shut: true, doublings: DOUBLINGS_MAX, closing: true };
        let honest = Heard { accepted: 1_000, refused: 7 };
        let half = Heard { accepted: 500, refused: 500 };
        let junk = Heard { accepted: 0, refused: 900 };
        let rates = [honest, half, junk, honest];
        // The first walk knows nobody.
        assert!(walk(&rates, measures, 1).iter().all(|(_, open)| *open));
        assert_eq!(walk(&rates, measures, 2).iter().map(|(_, open)| *open).collect::<Vec<_>>(), [true, true, false, true]);
        assert_eq!(walk(&rates, measures, 9).iter().map(|(_, open)| *open).collect::<Vec<_>>(), [true, false, false, true]);
    }

    proptest! {
        /// Any ages at any times: measures come in their order, never more than one at a time, and what is in force is always a prefix of the order.
        #[test]
        fn measures_are_always_a_prefix_of_the_order(
            ages in prop::collection::vec((prop_oneof![Just(0), Just(LIMIT_US / 2), Just(LIMIT_US / 2 + 1), Just(LIMIT_US), Just(LIMIT_US + 1), Just(u64::MAX)], prop_oneof![Just(0), Just(1), Just(STEP_US - 1), Just(STEP_US), Just(CALM_US), Just(u64::MAX / 64)]), 1..64),
        ) {
            let (mut load, mut now_us, mut before) = (Load::new(LIMIT_US), 0u64, 0u8);
            for (age_us, elapsed_us) in ages {
                now_us = now_us.saturating_add(elapsed_us);
                let moved = load.observe(now_us, age_us);
                let measures = load.measures();
                prop_assert!(measures.doublings == 0 || measures.door_shut);
                prop_assert!(!measures.closing || measures.doublings == DOUBLINGS_MAX);
                prop_assert_eq!(moved, measures.step() != before);
                prop_assert!(measures.step() <= before + 1, "one measure at a time");
                prop_assert!(age_us <= LIMIT_US || measures.step() >= before, "nothing is taken back under load");
                before = measures.step();
            }
        }
    }
}
