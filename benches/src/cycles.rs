//! The measuring method: core cycles of short samples, all variants in turn.
//!
//! The time-stamp counter runs at a fixed rate and the core does not, so that each sample is preceded by a chain of dependent additions of known length:
//! one cycle each on every x86-64 and aarch64 core, whatever the clock does. A sample's ticks divided by the ticks of one such cycle are core cycles.
//! Samples are of some 60 us, because longer ones on a shared machine are interrupted too often, and the figure is their 2nd percentile.
//! Variants take turns sample by sample, never one whole series after the other: what disturbs the machine disturbs all of them.
use quanta::Clock;
use std::hint::black_box;

/// Samples of each variant when nobody asks for more.
pub const SAMPLES: usize = 400;
/// Length of a sample, in microseconds of the first estimate.
const SAMPLE_US: f64 = 60.0;
/// Steps of the calibration chain. Each is an addition and an exclusive or, so that no compiler can foretell the sum.
const CHAIN_STEPS: u32 = 4096;
/// Cycles that the chain takes: both operations of a step have a latency of one.
const CHAIN_CYCLES: f64 = CHAIN_STEPS as f64 * 2.0;
/// Chains before each sample and after it. The shortest counts: an interrupt makes a chain longer and the clock look slower than it is.
const CHAINS: usize = 2;

/// One thing to measure.
struct Variant<'a> {
    name: String,
    /// Units of work (shares, records) that one call does.
    units_per_call: u32,
    calls_per_sample: u32,
    call: Box<dyn FnMut() -> u64 + 'a>,
    cycles: Vec<f64>,
}

/// What was measured of one variant, in core cycles for each unit of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The name it was added under.
    pub name: String,
    /// 2nd percentile of the samples: the figure.
    pub cycles: f64,
    /// Median of the samples: how far the machine was from quiet.
    pub cycles_median: f64,
}

/// The variants that are measured side by side, and their results.
pub struct SideBySide<'a> {
    clock: Clock,
    variants: Vec<Variant<'a>>,
    checksum: u64,
    ticks_per_cycle: Vec<f64>,
}

impl<'a> SideBySide<'a> {
    /// Nothing to measure yet.
    pub fn new() -> Self {
        Self { clock: Clock::new(), variants: Vec::new(), checksum: 0, ticks_per_cycle: Vec::new() }
    }

    /// Adds a variant. `call` does `units_per_call` units of work and returns something that depends on all of it, so that none of it can be left out.
    pub fn add(&mut self, name: impl Into<String>, units_per_call: u32, call: impl FnMut() -> u64 + 'a) {
        assert!(units_per_call > 0, "a call without work has no cost for each unit");
        self.variants.push(Variant { name: name.into(), units_per_call, calls_per_sample: 1, call: Box::new(call), cycles: Vec::new() });
    }

    /// Takes `samples` samples of every variant in turn.
    pub fn run(&mut self, samples: usize) -> Vec<Measured> {
        for index in 0..self.variants.len() {
            self.size(index);
        }
        for _ in 0..samples {
            for index in 0..self.variants.len() {
                self.sample(index);
            }
        }
        self.variants
            .iter_mut()
            .map(|variant| {
                variant.cycles.sort_by(f64::total_cmp);
                Measured {
                    name: variant.name.clone(),
                    cycles: percentile(&variant.cycles, 2.0),
                    cycles_median: percentile(&variant.cycles, 50.0),
                }
            })
            .collect()
    }

    /// Clock of the core while it was measured, in MHz: the median over all samples.
    pub fn core_mhz(&mut self) -> f64 {
        self.ticks_per_cycle.sort_by(f64::total_cmp);
        let ticks_per_cycle = percentile(&self.ticks_per_cycle, 50.0);
        let ns = self.clock.delta_as_nanos(0, 1_000_000_000) as f64;
        1e9 / ns * 1e3 / ticks_per_cycle
    }

    /// The sum of everything that the calls returned.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Chooses how many calls make a sample, from the shortest of some warm calls.
    fn size(&mut self, index: usize) {
        let variant = &mut self.variants[index];
        let mut shortest_ns = u64::MAX;
        for _ in 0..8 {
            let start = self.clock.raw();
            self.checksum = self.checksum.wrapping_add((variant.call)());
            shortest_ns = shortest_ns.min(self.clock.delta_as_nanos(start, self.clock.raw()));
        }
        variant.calls_per_sample = calls_per_sample(shortest_ns as f64 / 1e3);
    }

    fn sample(&mut self, index: usize) {
        let variant = &mut self.variants[index];
        // The variant before has left its own code and data in the caches.
        let mut sum = (variant.call)();
        let mut chain = u64::MAX;
        for _ in 0..CHAINS {
            chain = chain.min(chain_ticks(&self.clock));
        }
        let start = self.clock.raw();
        for _ in 0..variant.calls_per_sample {
            sum = sum.wrapping_add((variant.call)());
        }
        let ticks = self.clock.raw().wrapping_sub(start);
        for _ in 0..CHAINS {
            chain = chain.min(chain_ticks(&self.clock));
        }
        self.checksum = self.checksum.wrapping_add(black_box(sum));
        let units = f64::from(variant.calls_per_sample) * f64::from(variant.units_per_call);
        variant.cycles.push(core_cycles(ticks, chain) / units);
        self.ticks_per_cycle.push(chain as f64 / CHAIN_CYCLES);
    }
}

/// Calls that fill a sample, when one takes `call_us`.
fn calls_per_sample(call_us: f64) -> u32 {
    // The clamp keeps the conversion in range; a call longer than a sample is a sample.
    (SAMPLE_US / call_us.max(1e-4)).round().clamp(1.0, 1e6) as u32
}

/// Ticks as core cycles, from the ticks that the chain took.
fn core_cycles(ticks: u64, chain: u64) -> f64 {
    ticks as f64 * CHAIN_CYCLES / chain.max(1) as f64
}

/// Ticks of one chain.
fn chain_ticks(clock: &Clock) -> u64 {
    let (addend, mask) = (black_box(0x9e37_79b9_7f4a_7c15_u64), black_box(0x5555_3333_0f0f_00ff_u64));
    let start = clock.raw();
    let mut value = black_box(start);
    for _ in 0..CHAIN_STEPS / 32 {
        for _ in 0..32 {
            value = value.wrapping_add(addend) ^ mask;
        }
    }
    black_box(value);
    clock.raw().wrapping_sub(start)
}

/// The value that `percent` of the sorted values do not exceed: the nearest rank, so that it is always one of them.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// Binds this thread to one core; the first that it may run on when none is named. Returns the core.
pub fn pin(core: Option<usize>) -> Result<usize, String> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).map_err(|error| format!("the cores of this process cannot be read: {error}"))?;
    let core = core.or_else(|| (0..CpuSet::MAX_CPU).find(|&core| allowed.is_set(core))).unwrap_or(0);
    if core >= CpuSet::MAX_CPU {
        return Err(format!("core {core} is beyond the {} that a set holds", CpuSet::MAX_CPU));
    }
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one)
        .map_err(|error| format!("this process may not run on core {core}: {error}; choose another with --core"))?;
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values_by_nearest_rank() {
        let values: Vec<f64> = (1..=400).map(f64::from).collect();
        assert_eq!(percentile(&values, 2.0), 8.0);
        assert_eq!(percentile(&values, 50.0), 200.0);
        assert_eq!(percentile(&values, 100.0), 400.0);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&[7.0], 2.0), 7.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50.0), 2.0);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn cycles_do_not_depend_on_how_fast_the_counter_ticks_beside_the_core() {
        // A core as fast as the counter, one of half its clock and one of twice: the same work has the same cycles.
        let chain = CHAIN_CYCLES as u64;
        assert_eq!(core_cycles(60_000, chain), 60_000.0);
        assert_eq!(core_cycles(120_000, 2 * chain), 60_000.0);
        assert_eq!(core_cycles(30_000, chain / 2), 60_000.0);
        assert!(core_cycles(1, 0).is_finite());
    }

    #[test]
    fn a_sample_is_about_sixty_microseconds_and_at_least_one_call() {
        assert_eq!(calls_per_sample(1.6), 38);
        assert_eq!(calls_per_sample(19.4), 3);
        assert_eq!(calls_per_sample(60.0), 1);
        assert_eq!(calls_per_sample(9_000.0), 1);
        assert_eq!(calls_per_sample(0.0), 600_000);
    }

    #[test]
    fn every_variant_is_measured_and_its_work_is_done() {
        let (mut short, mut long) = (0_u64, 0_u64);
        let mut bench = SideBySide::new();
        bench.add("short", 1, || {
            short += 1;
            1
        });
        bench.add("long", 4, || {
            long += 1;
            (0..400).fold(long, |value, step| black_box(value ^ step))
        });
        let measured = bench.run(3);
        assert_eq!(measured.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["short", "long"]);
        assert!(measured.iter().all(|one| one.cycles > 0.0 && one.cycles <= one.cycles_median), "{measured:?}");
        assert!(bench.checksum() > 0 && bench.core_mhz() > 0.0);
        drop(bench);
        // Sizing, and three samples of a warm call and at least one more.
        assert!(short >= 8 + 3 * 2 && long >= 8 + 3 * 2);
    }
}
