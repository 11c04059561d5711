//! Extranonce1: four bytes that no two live sessions of a server share, and that no two sessions use under the same job.
use std::collections::{HashSet, VecDeque};

/// Bits of the counter; the 6 bits above are the index of the net stage.
const COUNTER_BITS: u32 = 26;
const COUNTER_MASK: u32 = (1 << COUNTER_BITS) - 1;

/// The extranonce1 values of one net stage: net 6 bits, counter 26 bits, as a big-endian number of the four wire bytes.
///
/// A value that a session gave back waits until the last job which the session could name has expired: the next session to get it
/// would otherwise find shares with headers that were credited before. At most `in_use_max` values are live or waiting, so memory is bounded.
#[derive(Debug)]
pub struct Extranonces {
    net: u8,
    next: u32,
    in_use_max: usize,
    in_use: HashSet<u32>,
    /// (newest job counter of the session, value), in the order of release.
    waiting: VecDeque<(u32, u32)>,
}

impl Extranonces {
    /// Net stages that can be told apart.
    pub const NETS_MAX: u8 = 64;

    /// The allocator of net stage `net` (its low 6 bits count). `in_use_max` bounds live and waiting values; about 24 bytes each.
    pub fn new(net: u8, in_use_max: usize) -> Self {
        let in_use_max = in_use_max.min(COUNTER_MASK as usize);
        Self { net: net % Self::NETS_MAX, next: 1, in_use_max, in_use: HashSet::new(), waiting: VecDeque::new() }
    }

    /// A value that no live session has and no unexpired job has seen; None when `in_use_max` are taken (refuse the connection).
    pub fn allocate(&mut self) -> Option<u32> {
        if self.in_use.len() >= self.in_use_max {
            return None;
        }
        // Fewer values are in use than there are, so the search ends; values come back roughly in the order they went out, so it is short.
        loop {
            let counter = self.next;
            self.next = if counter == COUNTER_MASK { 1 } else { counter + 1 };
            let value = (u32::from(self.net) << COUNTER_BITS) | counter;
            if self.in_use.insert(value) {
                return Some(value);
            }
        }
    }

    /// Gives `extranonce1` back. `newest_job_counter` is the newest job the session was sent (`Session::newest_job`), 0 for none: then it is free at once.
    pub fn release(&mut self, extranonce1: u32, newest_job_counter: u32) {
        debug_assert!(self.in_use.contains(&extranonce1), "released an extranonce1 that was not allocated");
        if newest_job_counter == 0 {
            self.in_use.remove(&extranonce1);
        } else {
            self.waiting.push_back((newest_job_counter, extranonce1));
        }
    }

    /// Frees what waited for jobs older than `oldest_live_job_counter` (`JobBook::oldest_live`).
    pub fn expire(&mut self, oldest_live_job_counter: u32) {
        // A value behind one with a newer job waits a little longer than it must; never shorter.
        while let Some(&(newest, value)) = self.waiting.front() {
            if newest >= oldest_live_job_counter {
                break;
            }
            self.waiting.pop_front();
            self.in_use.remove(&value);
        }
    }

    /// Values of live sessions and values that wait.
    pub fn in_use(&self) -> usize {
        self.in_use.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn the_net_stands_in_the_upper_six_bits() {
        let mut last = Extranonces::new(63, 10);
        assert_eq!(last.allocate().map(|value| value >> 26), Some(63));
        assert_eq!(Extranonces::new(0, 10).allocate(), Some(1));
    }

    #[test]
    fn a_value_is_free_only_when_its_newest_job_has_expired() {
        let mut values = Extranonces::new(1, 1);
        let first = values.allocate().expect("one is free");
        assert_eq!(values.allocate(), None);
        values.release(first, 7);
        values.expire(7);
        assert_eq!(values.allocate(), None, "job 7 is live");
        values.expire(8);
        assert!(values.allocate().is_some());
    }

    #[test]
    fn a_session_without_a_job_frees_its_value_at_once() {
        let mut values = Extranonces::new(1, 1);
        let first = values.allocate().expect("one is free");
        values.release(first, 0);
        assert!(values.allocate().is_some());
    }

    #[test]
    fn the_counter_wraps_past_values_in_use_and_skips_zero() {
        let mut values = Extranonces::new(2, 10);
        values.next = COUNTER_MASK;
        let last = values.allocate().expect("free");
        assert_eq!(last, (2 << 26) | COUNTER_MASK);
        assert_eq!(values.allocate(), Some((2 << 26) | 1));
        values.next = COUNTER_MASK;
        assert_eq!(values.allocate(), Some((2 << 26) | 2));
    }

    proptest! {
        #[test]
        fn no_two_sessions_that_can_name_the_same_job_share_a_value(
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..400),
        ) {
            let mut values = Extranonces::new(3, 12);
            // A tiny ring of counters makes reuse certain.
            let mut live: Vec<(u32, u32)> = Vec::new();
            let mut dead: HashMap<u32, u32> = HashMap::new();
            let (mut oldest, mut newest) = (1u32, 1u32);
            for (what, which) in steps {
                match what {
                    0 => {
                        values.next = 1 + values.next % 16;
                        if let Some(value) = values.allocate() {
                            prop_assert!(live.iter().all(|&(other, _)| other != value));
                            prop_assert!(dead.get(&value).is_none_or(|&job| job < oldest), "value {value} of a live job");
                            live.push((value, newest));
                        } else {
                            prop_assert_eq!(values.in_use(), 12);
                        }
                    }
                    1 if !live.is_empty() => {
                        let (value, job) = live.swap_remove(which.index(live.len()));
                        values.release(value, job);
                        dead.insert(value, job);
                    }
                    2 => {
                        newest += 1;
                        live.iter_mut().for_each(|entry| entry.1 = newest);
                    }
                    _ => {
                        oldest = newest;
                        values.expire(oldest);
                    }
                }
            }
        }
    }
}
