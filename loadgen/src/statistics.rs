//! Ratios of paired measurements and how sure they are.

/// A mean ratio with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Geometric mean of the ratios; NaN for none.
    pub ratio: f64,
    /// Lower end; 0 for a single pair.
    pub low: f64,
    /// Upper end; infinite for a single pair.
    pub high: f64,
    /// Pairs it stands on.
    pub pairs: usize,
    /// Pairs that it does not stand on, as one side alone had nothing: the first, and the second. No ratio shows how much slower a side is that stands still.
    pub silent: (usize, usize),
}

/// What an estimate says about two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The whole interval lies below 1 less the tolerance.
    Lower,
    /// The whole interval lies above 1 and the tolerance.
    Higher,
    /// Neither: a difference larger than the tolerance is not shown.
    None,
}

impl Finding {
    /// Key in the reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Higher => "higher",
            Self::None => "none",
        }
    }
}

impl Estimate {
    /// Geometric mean of `first / second` over the pairs, and its 95 % interval by Student's t over the logarithms. Pairs with a side that is not positive
    /// are left out.
    pub fn of_pairs(pairs: &[(f64, f64)]) -> Self {
        let logs: Vec<f64> = pairs
            .iter()
            .filter(|(one, two)| *one > 0.0 && *two > 0.0)
            .map(|(one, two)| (one / two).ln())
            .filter(|log| log.is_finite())
            .collect();
        let silent = |of: fn(&(f64, f64)) -> bool| pairs.iter().filter(|pair| of(pair)).count();
        let silent = (silent(|(one, two)| *one == 0.0 && *two > 0.0), silent(|(one, two)| *one > 0.0 && *two == 0.0));
        Self { silent, ..Self::of_logs(&logs) }
    }

    fn of_logs(logs: &[f64]) -> Self {
        let pairs = logs.len();
        if pairs == 0 {
            return Self { ratio: f64::NAN, low: f64::NAN, high: f64::NAN, pairs, silent: (0, 0) };
        }
        let mean = mean(logs);
        if pairs == 1 {
            return Self { ratio: mean.exp(), low: 0.0, high: f64::INFINITY, pairs, silent: (0, 0) };
        }
        let half = student_t(pairs - 1) * standard_error(logs, mean);
        Self { ratio: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp(), pairs, silent: (0, 0) }
    }

    /// Whether the sides differ by more than `tolerance` (0.01 is one per cent), as far as the interval tells. A side that had nothing in two pairs more than the
    /// other is the lower one, whatever it did in the rest: once may be a pause of the machine.
    pub fn finding(&self, tolerance: f64) -> Finding {
        let (first, second) = self.silent;
        if first >= second + 2 {
            Finding::Lower
        } else if second >= first + 2 {
            Finding::Higher
        } else if self.high < 1.0 - tolerance {
            Finding::Lower
        } else if self.low > 1.0 + tolerance {
            Finding::Higher
        } else {
            Finding::None
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn standard_error(values: &[f64], mean: f64) -> f64 {
    let count = values.len() as f64;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (variance / count).sqrt()
}

/// The middle value, or the mean of the two in the middle; None for no value.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len();
    match count {
        0 => None,
        _ if count % 2 == 1 => Some(sorted[count / 2]),
        _ => Some((sorted[count / 2 - 1] + sorted[count / 2]) / 2.0),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn the_interval_of_equal_ratios_is_that_ratio() {
        let estimate = Estimate::of_pairs(&[(2.0, 1.0), (4.0, 2.0), (0.2, 0.1)]);
        assert!((estimate.ratio - 2.0).abs() < 1e-9 && (estimate.low - 2.0).abs() < 1e-9 && (estimate.high - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_interval_is_the_textbook_one() {
        // Logs 0, 1, 2: mean 1, standard error 1/sqrt(3), t(2) = 4.303.
        let estimate = Estimate::of_logs(&[0.0, 1.0, 2.0]);
        let half = 4.303 / 3f64.sqrt();
        assert!((estimate.ratio.ln() - 1.0).abs() < 1e-9);
        assert!((estimate.low.ln() - (1.0 - half)).abs() < 1e-9 && (estimate.high.ln() - (1.0 + half)).abs() < 1e-9);
        let single = Estimate::of_logs(&[0.5]);
        assert_eq!((single.low, single.high, single.finding(0.0)), (0.0, f64::INFINITY, Finding::None));
    }

    #[test]
    fn sides_without_a_rate_leave_no_pair() {
        let none = Estimate::of_pairs(&[(0.0, 1.0), (1.0, 0.0), (f64::NAN, 1.0)]);
        assert!(none.pairs == 0 && none.ratio.is_nan() && none.finding(0.0) == Finding::None);
        let estimate = Estimate::of_pairs(&[(0.0, 1.0), (3.0, 1.0), (3.0, 1.0), (0.0, 2.0), (0.0, 0.0), (4.0, 0.0)]);
        assert_eq!((estimate.pairs, estimate.silent), (2, (2, 1)), "who stood still is told, as the ratio does not");
        let still = |pairs: &[(f64, f64)]| Estimate::of_pairs(&[pairs, &[(1.0, 1.0); 8]].concat()).finding(0.01);
        assert_eq!(still(&[(0.0, 1.0), (0.0, 1.0)]), Finding::Lower, "a server that stands still is no equal of one that does not");
        assert_eq!(still(&[(1.0, 0.0), (1.0, 0.0)]), Finding::Higher);
        assert_eq!(still(&[(0.0, 1.0), (1.0, 0.0), (0.0, 1.0)]), Finding::None, "pauses of the machine hit both");
    }

    #[test]
    fn quantiles_go_on_smoothly_past_the_table() {
        assert!((student_t(30) - 2.042).abs() < 1e-9);
        assert!((student_t(31) - 2.040).abs() < 4e-3);
        assert!(student_t(1_000_000) < 1.961);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (None, Some(2.0), Some(2.5)));
    }

    /// About normal with variance 1: twelve uniform numbers less six.
    fn bell(state: &mut u64) -> f64 {
        (0..12).map(|_| random::next(state) as f64 / u64::MAX as f64).sum::<f64>() - 6.0
    }

    /// Slices of a machine whose speed drifts by a third in each trial and whose slices scatter by 2 %, on two sides of which one is slower by `slower`.
    fn trial(state: &mut u64, slices: usize, slower: f64) -> Estimate {
        let drift = bell(state) * 0.3;
        let pairs: Vec<(f64, f64)> = (0..slices)
            .map(|slice| {
                let speed = (drift * slice as f64 / slices as f64).exp() * 1e6;
                (speed * (1.0 - slower) * (0.02 * bell(state)).exp(), speed * (0.02 * bell(state)).exp())
            })
            .collect();
        Estimate::of_pairs(&pairs)
    }

    #[test]
    fn on_a_drifting_machine_five_per_cent_is_found_and_nothing_is_found_where_nothing_is() {
        let mut state = 5;
        let trials = 400;
        let found = (0..trials).filter(|_| trial(&mut state, 20, 0.05).finding(0.01) == Finding::Lower).count();
        let cried = (0..trials).filter(|_| trial(&mut state, 20, 0.0).finding(0.01) != Finding::None).count();
        assert!(found * 100 >= trials * 99, "{found} of {trials}");
        assert!(cried * 100 <= trials, "{cried} of {trials}");
        // Without a tolerance the interval is a 95 % interval: about one in twenty lies beside the truth.
        let beside = (0..trials).filter(|_| trial(&mut state, 20, 0.0).finding(0.0) != Finding::None).count();
        assert!((4..=40).contains(&beside), "{beside} of {trials}");
    }
}
