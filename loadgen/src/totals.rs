//! What a run counts.
use hdrhistogram::Histogram;
use otedama_primitives::ShareStatus;
use std::sync::atomic::{AtomicU64, Ordering};

/// Judgements that were not what the rules say; kept in full up to `WRONG_KEPT`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
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
    /// Open loop: shares of the schedule that were never written, because their connection was down or had its window full.
    pub missed: u64,
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
        self.missed += other.missed;
        let room = WRONG_KEPT.saturating_sub(self.wrong_kept.len());
        self.wrong_kept.extend(other.wrong_kept.iter().take(room).cloned());
    }
}

/// Longest latency that is told apart from longer ones, microseconds: one hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// An empty histogram of microseconds at three digits, about 200 KB.
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds are in range")
}

/// Latencies in microseconds, booked in runs of equal values: all answers of one read have one time of arrival.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    value_us: u64,
    run: u64,
    /// Whether shares that are sent now belong to the measured window.
    pub recording: bool,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { histogram: empty_histogram(), value_us: 0, run: 0, recording: false }
    }
}

impl Latencies {
    /// Books one answer.
    #[inline]
    pub fn record(&mut self, value_us: u64) {
        if value_us != self.value_us {
            self.settle();
            self.value_us = value_us;
        }
        self.run += 1;
    }

    fn settle(&mut self) {
        // A count of zero would still move minimum and maximum.
        if self.run > 0 {
            self.histogram.saturating_record_n(self.value_us.max(1), self.run);
            self.run = 0;
        }
    }

    /// Everything that was booked so far.
    pub fn histogram(&mut self) -> &Histogram<u64> {
        self.settle();
        &self.histogram
    }

    /// Hands over what was booked so far and starts over.
    pub fn take(&mut self) -> Histogram<u64> {
        self.settle();
        std::mem::replace(&mut self.histogram, empty_histogram())
    }

    /// Percentiles of what was booked so far.
    pub fn quantiles(&mut self) -> Quantiles {
        Quantiles::of(self.histogram())
    }
}

/// Latency of answers in microseconds. Closed loop: from the write of the submit to the read of its answer. Open loop: from the time at which the schedule
/// wanted the share to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// 99.99 %.
    pub p9999: u64,
    /// 99.999 %.
    pub p99999: u64,
    /// Maximum.
    pub max: u64,
}

impl Quantiles {
    /// Of a histogram of microseconds; zeros where nothing was booked.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), p9999: at(0.9999), p99999: at(0.99999), max: histogram.max() }
    }

    /// Names and values, in the order of the percentiles.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("p99.99", self.p9999),
            ("p99.999", self.p99999),
            ("max", self.max),
        ]
    }
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
        let mut latencies = Latencies::default();
        for _ in 0..98 {
            latencies.record(10);
        }
        latencies.record(500);
        latencies.record(500);
        let quantiles = latencies.quantiles();
        assert_eq!((quantiles.p50, quantiles.max), (10, 500));
        assert_eq!(quantiles.p99, 500);
        assert_eq!(latencies.histogram().min(), 10);
        assert_eq!((latencies.take().len(), latencies.take().max()), (100, 0));
    }
}
