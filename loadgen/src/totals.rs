//! What a run counts.
use hdrhistogram::Histogram;
use otedama_primitives::ShareStatus;
use std::sync::atomic::{AtomicU64, Ordering};

/// Judgements that were not what the rules say; kept in full up to `WRONG_KEPT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongAnswer {
    /// What was expected, and why.
    pub expected: String,
    /// The line that was sent.
    pub sent: String,
    /// The line that came back.
    pub answer: String,
}

/// Wrong answers that are kept with their lines.
pub const WRONG_KEPT: usize = 20;

/// Counts over a whole run, warm-up and drain included. Invariant once a run is over: submits = accepted + rejected + unanswered.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Submit lines written.
    pub submits: u64,
    /// Answered `true`.
    pub accepted: u64,
    /// Answered with an error, by wire code; code 0 stands for an answer without one.
    pub rejected: Vec<(i64, u64)>,
    /// Every answer whose cause is known, by the number of its `ShareStatus`.
    pub by_status: [u64; ShareStatus::ALL.len()],
    /// Submits whose connection broke or whose answer had not come when the drain ended.
    pub unanswered: u64,
    /// Answers that differ from what the rules say, answers to nothing, answers out of order.
    pub wrong: u64,
    /// The first of them.
    pub wrong_kept: Vec<WrongAnswer>,
    /// Refusals to protect the server; allowed, never wrong.
    pub overload: u64,
    /// Answered stale because a clean job crossed them on the wire; allowed, never wrong.
    pub crossed: u64,
    /// Connections that came up.
    pub connects: u64,
    /// Connections that broke.
    pub disconnects: u64,
}

impl Totals {
    /// Submits that have been answered.
    pub fn answered(&self) -> u64 {
        self.accepted + self.rejected_count()
    }

    /// Submits that were answered with an error.
    pub fn rejected_count(&self) -> u64 {
        self.rejected.iter().map(|(_, count)| count).sum()
    }

    /// Books one answer.
    pub fn count(&mut self, status: Option<ShareStatus>, code: i64) {
        if let Some(status) = status {
            self.by_status[status as usize] += 1;
        }
        if status == Some(ShareStatus::Accepted) {
            self.accepted += 1;
            return;
        }
        match self.rejected.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => {
                self.rejected.push((code, 1));
                self.rejected.sort_unstable();
            }
        }
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.submits += other.submits;
        self.accepted += other.accepted;
        for &(code, count) in &other.rejected {
            match self.rejected.iter_mut().find(|(known, _)| *known == code) {
                Some((_, sum)) => *sum += count,
                None => self.rejected.push((code, count)),
            }
        }
        self.rejected.sort_unstable();
        for (sum, count) in self.by_status.iter_mut().zip(other.by_status) {
            *sum += count;
        }
        self.unanswered += other.unanswered;
        self.wrong += other.wrong;
        self.overload += other.overload;
        self.crossed += other.crossed;
        self.connects += other.connects;
        self.disconnects += other.disconnects;
        let room = WRONG_KEPT.saturating_sub(self.wrong_kept.len());
        self.wrong_kept.extend(other.wrong_kept.iter().take(room).cloned());
    }
}

/// Latencies in microseconds, booked in runs of equal values: all answers of one read have one time of arrival.
#[derive(Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    value_us: u64,
    run: u64,
    /// Off outside of the measured window.
    pub recording: bool,
}

impl Default for Latencies {
    fn default() -> Self {
        // One minute at three digits: about 200 KB.
        let histogram = Histogram::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are in range");
        Self { histogram, value_us: 0, run: 0, recording: false }
    }
}

impl Latencies {
    /// Books one answer.
    #[inline]
    pub fn record(&mut self, value_us: u64) {
        if !self.recording {
            return;
        }
        if value_us != self.value_us {
            self.settle();
            self.value_us = value_us;
        }
        self.run += 1;
    }

    fn settle(&mut self) {
        self.histogram.saturating_record_n(self.value_us.max(1), self.run);
        self.run = 0;
    }

    /// The p50, p99, p99.9 and maximum in microseconds; zeros where nothing was recorded.
    pub fn quantiles(&mut self) -> Quantiles {
        self.settle();
        let at = |quantile| if self.histogram.is_empty() { 0 } else { self.histogram.value_at_quantile(quantile) };
        let max = if self.histogram.is_empty() { 0 } else { self.histogram.max() };
        Quantiles { p50: at(0.5), p99: at(0.99), p999: at(0.999), max }
    }
}

/// Latency of answers in microseconds, from the write of the submit to the read of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// Maximum.
    pub max: u64,
}

/// Counters that another thread may read while the farm runs. They are totals since the start and may trail the farm by one pass.
#[derive(Debug, Default)]
pub struct LiveCounters {
    /// Submit lines written.
    pub sent: AtomicU64,
    /// Answered `true`.
    pub accepted: AtomicU64,
    /// Every answer by the number of its `ShareStatus`.
    pub by_status: [AtomicU64; ShareStatus::ALL.len()],
    /// Submits that will never be answered.
    pub unanswered: AtomicU64,
    /// Answers that differ from what the rules say.
    pub wrong: AtomicU64,
    /// Connections that are authorized and have a job.
    pub ready: AtomicU64,
    /// Microseconds from the start of the farm to its first accepted share; 0 before.
    pub first_accepted_us: AtomicU64,
}

impl LiveCounters {
    /// Copies the totals. Relaxed throughout: each number stands for itself, nothing is published with it.
    pub fn publish(&self, totals: &Totals, ready: u64, elapsed_us: u64) {
        self.sent.store(totals.submits, Ordering::Relaxed);
        self.accepted.store(totals.accepted, Ordering::Relaxed);
        for (live, count) in self.by_status.iter().zip(totals.by_status) {
            live.store(count, Ordering::Relaxed);
        }
        self.unanswered.store(totals.unanswered, Ordering::Relaxed);
        self.wrong.store(totals.wrong, Ordering::Relaxed);
        self.ready.store(ready, Ordering::Relaxed);
        if totals.accepted > 0 && self.first_accepted_us.load(Ordering::Relaxed) == 0 {
            self.first_accepted_us.store(elapsed_us.max(1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_causes_are_counted_apart_and_sums_add_up() {
        let mut totals = Totals::default();
        totals.count(Some(ShareStatus::Accepted), 0);
        totals.count(Some(ShareStatus::BadTime), 20);
        totals.count(Some(ShareStatus::Malformed), 20);
        totals.count(None, 25);
        assert_eq!((totals.accepted, totals.rejected.clone()), (1, vec![(20, 2), (25, 1)]));
        let mut sum = totals.clone();
        sum.add(&totals);
        assert_eq!((sum.answered(), sum.rejected), (8, vec![(20, 4), (25, 2)]));
    }

    #[test]
    fn runs_of_equal_latencies_keep_their_weight() {
        let mut latencies = Latencies { recording: true, ..Latencies::default() };
        for _ in 0..98 {
            latencies.record(10);
        }
        latencies.record(500);
        latencies.record(500);
        let quantiles = latencies.quantiles();
        assert_eq!((quantiles.p50, quantiles.max), (10, 500));
        assert_eq!(quantiles.p99, 500);
    }
}
