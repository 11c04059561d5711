//! Rows on their way from one pool server to its shard of ClickHouse, second by second: journal, sealer, segments, inserts, parts and their merges, with an outage in the middle.
//!
//! What it takes from the product: a segment holds at most 524,288 rows; it is sealed a second after its first row, or a tenth of a second later for every segment that waits
//! beyond ten, up to ten seconds; at most ten inserts a second; sealing goes before shipping on the one control core; a log that is full refuses shares. What it takes from
//! ClickHouse: an insert is a part; ten parts of a size become one of the next; above 1,000 parts of a partition inserts are slowed down, above 3,000 refused.
use std::collections::VecDeque;

const SEGMENT_ROWS_MAX: f64 = 524_288.0;
const INSERTS_PER_S_MAX: f64 = 10.0;
const SEAL_AFTER_S: f64 = 1.0;
const SEAL_LATER_PER_WAITING_S: f64 = 0.1;
const SEAL_LATER_S: f64 = 10.0;
const WAITING_FEW: usize = 10;
const PARTS_TO_DELAY: u64 = 1000;
const PARTS_TO_THROW: u64 = 3000;
/// Parts of a size that become one of the next.
const MERGED_AT_ONCE: u64 = 10;
/// Arrivals of a second differ from their mean by up to this part of it.
const NOISE: f64 = 0.1;
/// The outage begins by when merges have settled.
pub const OUTAGE_FROM_S: u64 = 1800;
/// A backlog that is still there so long after the outage is taken for one that stays.
const PATIENCE_S: u64 = 7 * 86_400;

/// One pool server, and the part of a shard that it has to itself.
#[derive(Clone, Copy, Debug)]
pub struct Plant {
    /// Shares a second that the server takes.
    pub shares_per_s: f64,
    /// Rows that a share makes: 1, or less where shares are summed.
    pub rows_per_share: f64,
    /// Bytes of sealed segments for each row.
    pub segment_row_bytes: f64,
    /// Nanoseconds of the control core to seal a share.
    pub seal_ns: f64,
    /// Nanoseconds of the control core to ship a row.
    pub ship_ns: f64,
    /// Nanoseconds of a ClickHouse core to insert a row, roll-ups included.
    pub insert_ns: f64,
    /// Nanoseconds of a ClickHouse core to merge a row once.
    pub merge_ns: f64,
    /// Cores of the shard that this server's rows have.
    pub shard_cores: f64,
    /// Other servers' inserts are in the same partition: parts grow by as many times.
    pub servers_per_shard: f64,
    /// Inserts in flight at once: each keeps one core of the shard busy at the most.
    pub in_flight: f64,
    /// `[log] max_bytes`.
    pub log_max_bytes: f64,
}

/// What came of it. Seconds are from the begin of the outage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Shares that came.
    pub arrived: f64,
    /// Shares refused as the log was full.
    pub refused: f64,
    /// Rows that the shard acknowledged.
    pub shipped_rows: f64,
    /// Rows of the shares that the log took and the shard has not.
    pub left_rows: f64,
    /// Most bytes of rows not yet shipped.
    pub log_peak_bytes: f64,
    /// When the log was full, if ever.
    pub full_after_s: Option<u64>,
    /// When nothing waited any more that the outage had held up; None where it never came to that.
    pub drained_after_s: Option<u64>,
    /// Most parts of a partition.
    pub parts_max: u64,
    /// Seconds in which the shard slowed inserts down.
    pub delayed_s: u64,
    /// Seconds in which it refused them.
    pub refused_inserts_s: u64,
}

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    /// From -1 to 1.
    fn swing(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
    }
}

/// Parts of the partition by how often they were merged: their number, and rows of one of them.
#[derive(Default)]
struct Parts {
    levels: Vec<(u64, f64)>,
    /// Core seconds that merges have been given and not used up.
    spent_s: f64,
}

impl Parts {
    fn count(&self) -> u64 {
        self.levels.iter().map(|(count, _)| count).sum()
    }

    fn add(&mut self, level: usize, count: u64, rows: f64) {
        if self.levels.len() <= level {
            self.levels.resize(level + 1, (0, 0.0));
        }
        if let Some((known, mean)) = self.levels.get_mut(level)
            && count > 0
        {
            *mean = (*mean * *known as f64 + rows * count as f64) / (*known + count) as f64;
            *known += count;
        }
    }

    /// Merges for so many core seconds, small parts first.
    fn merge(&mut self, core_s: f64, merge_ns: f64) {
        self.spent_s += core_s;
        while let Some(level) = self.levels.iter().position(|(count, _)| *count >= MERGED_AT_ONCE) {
            let Some((count, rows)) = self.levels.get_mut(level) else { return };
            let (merged_rows, cost_s) = (*rows * MERGED_AT_ONCE as f64, *rows * MERGED_AT_ONCE as f64 * merge_ns / 1e9);
            if cost_s > self.spent_s {
                return;
            }
            self.spent_s -= cost_s;
            *count -= MERGED_AT_ONCE;
            self.add(level + 1, 1, merged_rows);
        }
        // Cores without a merge to do keep nothing for later.
        self.spent_s = 0.0;
    }
}

/// Runs until what an outage of `outage_s` seconds held up has been shipped.
pub fn run(plant: &Plant, outage_s: u64, seed: u64) -> Outcome {
    let mut random = Random(seed);
    let (mut journal, mut open, mut open_s) = (0.0_f64, 0.0_f64, 0.0_f64);
    let mut segments: VecDeque<f64> = VecDeque::new();
    let mut queued = 0.0_f64;
    let mut parts = Parts::default();
    // A part of an insert that the time of a second did not suffice for.
    let mut insert_core_s = 0.0_f64;
    let mut inserts_left = 0.0_f64;
    let mut outcome = Outcome {
        arrived: 0.0,
        refused: 0.0,
        shipped_rows: 0.0,
        left_rows: 0.0,
        log_peak_bytes: 0.0,
        full_after_s: None,
        drained_after_s: None,
        parts_max: 0,
        delayed_s: 0,
        refused_inserts_s: 0,
    };
    let outage_end_s = OUTAGE_FROM_S + outage_s;
    // Rows that had arrived when the outage ended, all of them from then on: shipped in order, so it is over when so many are.
    let mut wanted_rows = f64::INFINITY;
    for second in 0..outage_end_s + PATIENCE_S {
        let since_s = second.saturating_sub(OUTAGE_FROM_S);
        let is_away = (OUTAGE_FROM_S..outage_end_s).contains(&second);

        let arriving = plant.shares_per_s * (1.0 + NOISE * random.swing());
        outcome.arrived += arriving;
        let waiting = journal * plant.rows_per_share + open + queued;
        if waiting * plant.segment_row_bytes >= plant.log_max_bytes {
            outcome.refused += arriving;
            outcome.full_after_s.get_or_insert(since_s);
        } else {
            journal += arriving;
        }

        // The control core: sealing first.
        let mut control_s = 1.0;
        let sealed = journal.min(control_s * 1e9 / plant.seal_ns);
        journal -= sealed;
        control_s -= sealed * plant.seal_ns / 1e9;
        open += sealed * plant.rows_per_share;
        open_s += 1.0;
        let later_s = if segments.len() > WAITING_FEW { segments.len() as f64 * SEAL_LATER_PER_WAITING_S } else { 0.0 };
        while open >= SEGMENT_ROWS_MAX {
            segments.push_back(SEGMENT_ROWS_MAX);
            (open, queued, open_s) = (open - SEGMENT_ROWS_MAX, queued + SEGMENT_ROWS_MAX, 0.0);
        }
        if open > 0.0 && open_s >= SEAL_AFTER_S.max(later_s.min(SEAL_LATER_S)) {
            segments.push_back(open);
            (queued, open, open_s) = (queued + open, 0.0, 0.0);
        }
        if second == outage_end_s {
            wanted_rows = outcome.shipped_rows + queued + open + journal * plant.rows_per_share;
        }

        let mut shard_s = plant.shard_cores;
        let count = parts.count();
        if !is_away && count >= PARTS_TO_THROW {
            outcome.refused_inserts_s += 1;
        } else if !is_away {
            // From none to a second for each insert.
            let delay_s = count.saturating_sub(PARTS_TO_DELAY) as f64 / (PARTS_TO_THROW - PARTS_TO_DELAY) as f64;
            outcome.delayed_s += u64::from(delay_s > 0.0);
            inserts_left = (inserts_left
                + INSERTS_PER_S_MAX.min(if delay_s > 0.0 { plant.in_flight / delay_s } else { INSERTS_PER_S_MAX }))
            .min(INSERTS_PER_S_MAX);
            let cores = plant.in_flight.min(plant.shard_cores);
            insert_core_s = (insert_core_s + cores).min(2.0 * cores.max(SEGMENT_ROWS_MAX * plant.insert_ns / 1e9));
            let mut control_core_s = control_s;
            while inserts_left >= 1.0 {
                let Some(&rows) = segments.front() else { break };
                let (here_s, there_s) = (rows * plant.ship_ns / 1e9, rows * plant.insert_ns / 1e9);
                if here_s > control_core_s || there_s > insert_core_s {
                    break;
                }
                segments.pop_front();
                (control_core_s, insert_core_s, inserts_left) = (control_core_s - here_s, insert_core_s - there_s, inserts_left - 1.0);
                queued -= rows;
                outcome.shipped_rows += rows;
                shard_s -= there_s;
                parts.add(0, plant.servers_per_shard.round() as u64, rows);
            }
            if segments.is_empty() {
                insert_core_s = 0.0;
            }
        }
        // The shard's other servers insert and merge as this one does: its cores are those that are left over for this server's rows.
        parts.merge(shard_s.max(0.0) * plant.servers_per_shard, plant.merge_ns);
        outcome.parts_max = outcome.parts_max.max(parts.count());
        let left = queued + open + journal * plant.rows_per_share;
        outcome.log_peak_bytes = outcome.log_peak_bytes.max(left * plant.segment_row_bytes);
        outcome.left_rows = left;
        if second >= outage_end_s && outcome.shipped_rows >= wanted_rows {
            outcome.drained_after_s = Some(second - outage_end_s);
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_S: u64 = 3600;

    fn plant() -> Plant {
        Plant {
            shares_per_s: 200_000.0,
            rows_per_share: 1.0,
            segment_row_bytes: 85.0,
            seal_ns: 40.0,
            ship_ns: 50.0,
            insert_ns: 500.0,
            merge_ns: 200.0,
            shard_cores: 4.0,
            servers_per_shard: 1.0,
            in_flight: 4.0,
            log_max_bytes: 1e15,
        }
    }

    #[test]
    fn every_share_is_shipped_refused_or_left() {
        for (shares_per_s, log_max_bytes, shard_cores) in
            [(200_000.0, 1e15, 4.0), (200_000.0, 20e9, 4.0), (900_000.0, 20e9, 0.2), (1000.0, 1e6, 1.0)]
        {
            let outcome = run(&Plant { shares_per_s, log_max_bytes, shard_cores, ..plant() }, HOUR_S, 1);
            let booked = outcome.shipped_rows + outcome.left_rows + outcome.refused;
            assert!((booked - outcome.arrived).abs() < outcome.arrived * 1e-9, "{outcome:?}");
            assert_eq!(outcome.refused > 0.0, outcome.full_after_s.is_some());
        }
    }

    #[test]
    fn an_outage_is_held_by_the_log_and_drained_by_what_the_shard_has_to_spare() {
        let outcome = run(&plant(), HOUR_S, 1);
        let held = 200_000.0 * 3600.0 * 85.0;
        assert!((outcome.log_peak_bytes / held - 1.0).abs() < 0.02, "{outcome:?}");
        assert_eq!((outcome.refused, outcome.full_after_s), (0.0, None));
        // Ten inserts a second of the segments of an outage, ten seconds of rows and more in each, leave the shard's cores to decide: four cores x 2 M rows/s take off 7.8 M a second.
        let drained_s = outcome.drained_after_s.expect("drained") as f64;
        let least_s = 200_000.0 * 3600.0 / (INSERTS_PER_S_MAX * SEGMENT_ROWS_MAX);
        assert!(drained_s >= least_s && drained_s < 4.0 * least_s, "{drained_s} against {least_s}");
        let slower = run(&Plant { shard_cores: 0.3, in_flight: 1.0, ..plant() }, HOUR_S, 1).drained_after_s.expect("drained") as f64;
        // 0.3 cores x 2 M rows/s ship 600,000 a second: three times the arrivals, and half of the outage to catch up.
        assert!((slower / 1200.0 - 1.0).abs() < 0.1, "{slower}");
    }

    #[test]
    fn a_shard_that_is_too_slow_never_drains_and_the_log_fills_when_its_bytes_say() {
        let outcome = run(&Plant { insert_ns: 30_000.0, log_max_bytes: 34e9, ..plant() }, HOUR_S, 1);
        assert!(outcome.drained_after_s.is_none() || outcome.refused > 0.0, "{outcome:?}");
        // 17 MB/s come, and before the outage 11.3 MB/s of them go.
        let full_s = outcome.full_after_s.expect("full") as f64;
        let at_begin = OUTAGE_FROM_S as f64 * (17e6 - 4.0 / 30_000e-9 * 85.0);
        assert!((full_s / ((34e9 - at_begin) / 17e6) - 1.0).abs() < 0.05, "{full_s}");
    }

    #[test]
    fn parts_stay_few_while_merges_have_cores_and_stop_the_inserts_where_they_have_none() {
        let well = run(&plant(), HOUR_S, 1);
        assert!(well.parts_max < PARTS_TO_DELAY && well.delayed_s == 0, "{well:?}");
        let starved = run(&Plant { merge_ns: 1e9, servers_per_shard: 4.0, ..plant() }, 60, 1);
        assert!(starved.parts_max >= PARTS_TO_THROW && starved.refused_inserts_s > 0 && starved.drained_after_s.is_none(), "{starved:?}");
    }

    #[test]
    fn the_same_seed_is_the_same_run_and_another_is_another() {
        let plant = Plant { log_max_bytes: 20e9, ..plant() };
        assert_eq!(run(&plant, HOUR_S, 7), run(&plant, HOUR_S, 7));
        assert_ne!(run(&plant, HOUR_S, 7), run(&plant, HOUR_S, 8));
    }

    #[test]
    fn sums_take_the_room_and_the_inserts_of_their_rows() {
        let rows = run(&plant(), HOUR_S, 1);
        let sums = run(&Plant { rows_per_share: 0.1, ..plant() }, HOUR_S, 1);
        assert!((sums.log_peak_bytes / rows.log_peak_bytes - 0.1).abs() < 0.01);
        assert!(sums.drained_after_s <= rows.drained_after_s);
    }
}
