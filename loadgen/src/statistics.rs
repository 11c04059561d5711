//! Ratios of paired measurements and how sure they are.

/// A middle ratio with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The middle of the ratios, by their logarithms; NaN for none.
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
    /// The pseudomedian of `first / second` over the pairs, by the logarithms, and its 95 % interval: Hodges and Lehmann's estimate with Wilcoxon's signed ranks, as
    /// a slice in which the machine was away for a while says much about the machine and little about the sides (Hollander, Wolfe, Chicken, Nonparametric
    /// Statistical Methods, 3.1 to 3.3). Below six pairs ranks give no such interval: geometric mean and Student's t. Pairs with a side that is not
    /// positive are left out.
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
        if pairs < RANKED_FROM {
            let half = STUDENT_T[pairs - 2] * standard_error(logs, mean);
            return Self { ratio: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp(), pairs, silent: (0, 0) };
        }
        let blocks = blocks(logs);
        let averages = walsh_averages(&blocks);
        let beside = signed_rank_beside(blocks.len());
        let (low, high) = (averages[beside].exp(), averages[averages.len() - 1 - beside].exp());
        Self { ratio: median(&averages).unwrap_or(f64::NAN).exp(), low, high, pairs, silent: (0, 0) }
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

/// Pairs from which signed ranks have a 95 % interval.
const RANKED_FROM: usize = 6;
/// The 97.5 % quantile of Student's t for 1 to 4 degrees of freedom.
const STUDENT_T: [f64; RANKED_FROM - 2] = [12.706, 4.303, 3.182, 2.776];
/// Values that are ranked at most: their averages by twos are half of its square.
const RANKED_MAX: usize = 400;

/// The values, or where they are very many, the means of neighbours.
fn blocks(values: &[f64]) -> Vec<f64> {
    values.chunks(values.len().div_ceil(RANKED_MAX)).map(mean).collect()
}

/// The means of every two values and of each with itself, sorted.
fn walsh_averages(values: &[f64]) -> Vec<f64> {
    let mut averages: Vec<f64> =
        values.iter().enumerate().flat_map(|(at, one)| values[at..].iter().map(move |two| (one + two) / 2.0)).collect();
    averages.sort_unstable_by(f64::total_cmp);
    averages
}

/// The largest sum of signed ranks of `count` values that chance alone does not go beyond in 2.5 % of all cases.
fn signed_rank_beside(count: usize) -> usize {
    // By how many of all 2^count choices of signs each sum comes about.
    let mut chances = vec![0.0; count * (count + 1) / 2 + 1];
    chances[0] = 1.0;
    for rank in 1..=count {
        for sum in (0..chances.len()).rev() {
            let with = if sum >= rank { chances[sum - rank] } else { 0.0 };
            chances[sum] = (chances[sum] + with) / 2.0;
        }
    }
    let mut beyond = 0.0;
    let first = chances.iter().position(|chance| {
        beyond += chance;
        beyond > 0.025
    });
    first.unwrap_or(0).saturating_sub(1)
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
    fn ranks_have_the_bounds_of_the_tables() {
        // Wilcoxon's table, two-sided 5 %: the largest sum that is significant.
        let table = [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (16, 29), (20, 52), (25, 89), (30, 137), (50, 434)];
        assert_eq!(table.map(|(count, _)| (count, signed_rank_beside(count))), table);
    }

    #[test]
    fn one_slice_without_the_machine_moves_the_middle_little_and_very_many_pairs_are_no_trouble() {
        let mut pairs = vec![(0.95, 1.0); 19];
        pairs.push((9.0, 1.0));
        let estimate = Estimate::of_pairs(&pairs);
        assert!((estimate.ratio - 0.95).abs() < 1e-9 && estimate.finding(0.01) == Finding::Lower, "{estimate:?}");
        let estimate = Estimate::of_pairs(&vec![(0.95, 1.0); 100_001]);
        assert!((estimate.ratio - 0.95).abs() < 1e-9 && estimate.pairs == 100_001);
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
