//! `otedama shares`: rows summed by keys, straight from the log.
use crate::dimensions::DimensionReader;
use crate::error::LogError;
use crate::group_by;
use crate::id_map::{IdMap, IdSet};
use crate::records::DimensionEntry;
use crate::scan::{Filter, Snapshot, snapshot};
use crate::segment::LoggedRow;
use crate::store::{Readable, SegmentStore};
use crate::utc::{day_text, utc_text};
use otedama_primitives::ShareStatus;
use std::path::Path;

/// What rows are summed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// Worker, shown by name.
    Worker,
    /// Minute of arrival, UTC.
    Minute,
    /// Hour of arrival, UTC.
    Hour,
    /// Day of arrival, UTC.
    Day,
    /// Status.
    Status,
    /// Session, 16 hex digits; zeros for sums of layout `rollup`, which are of a worker.
    Session,
    /// Job, 16 hex digits.
    Job,
    /// Coin.
    Coin,
}

impl Key {
    /// Every key.
    pub const ALL: [Self; 8] = [Self::Worker, Self::Minute, Self::Hour, Self::Day, Self::Status, Self::Session, Self::Job, Self::Coin];

    /// Name on the command line and of the column.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Status => "status",
            Self::Session => "session",
            Self::Job => "job",
            Self::Coin => "coin",
        }
    }

    #[inline]
    pub(crate) fn of(self, row: &LoggedRow) -> u64 {
        match self {
            Self::Worker => row.worker,
            Self::Minute => row.arrival_us / 60_000_000,
            Self::Hour => row.arrival_us / 3_600_000_000,
            Self::Day => row.arrival_us / 86_400_000_000,
            Self::Status => u64::from(row.status),
            Self::Session => row.session,
            Self::Job => row.job,
            Self::Coin => u64::from(row.coin),
        }
    }

    fn text(self, value: u64, names: &IdMap<u64, String>) -> String {
        match self {
            Self::Worker if value == 0 => "(unauthorized)".into(),
            Self::Worker => names.get(&value).cloned().unwrap_or_else(|| format!("{value:016x}")),
            Self::Minute => utc_text(value * 60),
            Self::Hour => utc_text(value * 3600),
            Self::Day => day_text(value),
            Self::Status => {
                u8::try_from(value).ok().and_then(ShareStatus::from_u8).map_or_else(|| value.to_string(), |status| status.label().into())
            }
            Self::Session | Self::Job => format!("{value:016x}"),
            Self::Coin if value == 0 => "bitcoin".into(),
            Self::Coin => value.to_string(),
        }
    }
}

/// Reads `worker,minute`. The error is a sentence for the user.
pub fn parse_by(text: &str) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let known = || Key::ALL.map(Key::label).join(", ");
        let key = Key::ALL.into_iter().find(|key| key.label() == part).ok_or_else(|| format!("no key {part:?}; there are {}", known()))?;
        if keys.contains(&key) {
            return Err(format!("key {part:?} stands twice"));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Reads `90s`, `15m`, `1h`, `7d` as the moment that long before `now_us`.
pub(crate) fn parse_since(text: &str, now_us: u64) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no span of time: write a whole number and s, m, h or d, as in 1h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    Ok(now_us.saturating_sub(number.saturating_mul(seconds * 1_000_000)))
}

/// Reads `status=accepted`.
pub fn parse_where(text: &str) -> Result<ShareStatus, String> {
    let labels = || ShareStatus::ALL.map(ShareStatus::label).join(", ");
    let label = text.strip_prefix("status=").ok_or_else(|| format!("{text:?} is not of the form status=accepted"))?;
    ShareStatus::from_label(label).ok_or_else(|| format!("no status {label:?}; there are {}", labels()))
}

/// Sums of one combination of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupRow {
    /// One text per key.
    pub keys: Vec<String>,
    /// Shares: rows, and what sums stand for.
    pub shares: u64,
    /// Work judged, in expected hashes.
    pub work: u128,
    /// Work of accepted rows.
    pub credited: u128,
}

/// Rows summed by keys, sorted by key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// The keys, in order of columns.
    pub by: Vec<Key>,
    /// The sums.
    pub rows: Vec<GroupRow>,
    /// Segments that could not be read and are missing from the sums: a sentence each.
    pub damaged: Vec<String>,
}

/// Sums the rows of the log in `dir` that `filter` takes, on every core that this process may use. Each key may stand once.
pub fn group(dir: &Path, by: &[Key], filter: &Filter) -> Result<Table, LogError> {
    group_on(dir, by, filter, std::thread::available_parallelism().map_or(1, usize::from))
}

/// As `group`, on so many threads at the most; one segment is for one of them.
pub fn group_on(dir: &Path, by: &[Key], filter: &Filter, threads: usize) -> Result<Table, LogError> {
    match by.len() {
        0 => group_by(dir, &[], by, filter, threads),
        1 => group_by(dir, &first_of::<1>(by), by, filter, threads),
        2 => group_by(dir, &first_of::<2>(by), by, filter, threads),
        3 => group_by(dir, &first_of::<3>(by), by, filter, threads),
        4 => group_by(dir, &first_of::<4>(by), by, filter, threads),
        _ => group_by(dir, &first_of::<8>(by), by, filter, threads),
    }
}

/// The keys as an array; missing ones repeat the first, which changes no group.
fn first_of<const N: usize>(by: &[Key]) -> [Key; N] {
    std::array::from_fn(|index| by.get(index).or(by.first()).copied().unwrap_or(Key::Coin))
}

fn group_by<const N: usize>(dir: &Path, keys: &[Key; N], by: &[Key], filter: &Filter, threads: usize) -> Result<Table, LogError> {
    let Snapshot { readable: Readable { metas, damaged: unknown }, unsealed } = snapshot(dir)?;
    let store = SegmentStore::open(dir)?;
    let wanted: Vec<_> = metas.iter().filter(|meta| filter.may_take(meta)).collect();
    let (mut groups, unusable) = group_by::segments(&store, &wanted, keys, filter, threads)?;
    let unknown = unknown.into_iter().filter(|damaged| filter.may_take_damaged(damaged)).map(|damaged| damaged.error.to_string());
    let damaged: Vec<String> = unknown.chain(unusable).collect();
    for row in unsealed.iter().filter(|row| filter.takes(row)) {
        groups.add_row(&group_by::keys_of(keys, row), row);
    }

    let mut sorted: Vec<_> = groups.into_groups().collect();
    let place = by.iter().position(|key| *key == Key::Worker);
    let workers: IdSet<u64> =
        place.map(|place| sorted.iter().filter_map(|(values, _)| values.get(place)).copied().collect()).unwrap_or_default();
    let names = if place.is_some() { worker_names(dir, &workers)? } else { IdMap::default() };
    match by.first() {
        Some(Key::Worker) => {
            let ranks = ranks_by_name(workers, &names);
            sorted.sort_unstable_by_key(|(values, _)| (values.first().and_then(|worker| ranks.get(worker)).copied(), *values));
        }
        _ => sorted.sort_unstable_by_key(|(values, _)| *values),
    }
    let rows: Vec<GroupRow> = sorted
        .into_iter()
        .map(|(values, sums)| GroupRow {
            keys: by.iter().zip(values).map(|(key, value)| key.text(value, &names)).collect(),
            shares: sums.shares,
            work: sums.work,
            credited: sums.credited,
        })
        .collect();
    Ok(Table { by: by.to_vec(), rows, damaged })
}

/// Place of each worker in the order of their names, so that a million groups are sorted by numbers.
fn ranks_by_name(workers: IdSet<u64>, names: &IdMap<u64, String>) -> IdMap<u64, u32> {
    let mut by_name: Vec<(String, u64)> = workers.into_iter().map(|worker| (Key::Worker.text(worker, names), worker)).collect();
    by_name.sort_unstable();
    (0..).zip(by_name).map(|(rank, (_, worker))| (worker, rank)).collect()
}

/// Name by worker id: from `dimensions.log`, and from the journal where that does not know all of `workers`. Reading the journal takes as long as the rows of a small log.
fn worker_names(dir: &Path, workers: &IdSet<u64>) -> Result<IdMap<u64, String>, LogError> {
    let mut names: IdMap<u64, String> = IdMap::default();
    add_recorded_names(dir, &mut names)?;
    if workers.iter().any(|worker| *worker != 0 && !names.contains_key(worker)) {
        for scan in crate::journal_scan::read_journals(dir, u64::MAX)? {
            names.extend(scan.dimensions.iter().filter_map(|dimension| dimension.as_worker()).map(|record| (record.worker.0, record.name)));
        }
        // What has moved from the one to the other meanwhile.
        add_recorded_names(dir, &mut names)?;
    }
    Ok(names)
}

fn add_recorded_names(dir: &Path, names: &mut IdMap<u64, String>) -> Result<(), LogError> {
    for entry in DimensionReader::from(dir, 0)? {
        match entry {
            Ok((_, DimensionEntry::Worker { record, .. })) => drop(names.insert(record.worker.0, record.name)),
            Ok(_) | Err(LogError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Table {
    fn header(&self) -> Vec<&'static str> {
        self.by.iter().map(|key| key.label()).chain(["shares", "work", "credited"]).collect()
    }

    /// Columns for people: keys to the left, numbers to the right, thousands apart.
    pub fn to_text(&self) -> String {
        let mut lines: Vec<Vec<String>> = vec![self.header().into_iter().map(str::to_owned).collect()];
        lines.extend(self.rows.iter().map(|row| {
            let numbers = [u128::from(row.shares), row.work, row.credited].map(grouped);
            row.keys.iter().cloned().chain(numbers).collect()
        }));
        let mut widths = vec![0; self.by.len() + 3];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in &lines {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(index, (cell, &width))| if index < self.by.len() { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
                .collect();
            text.push_str(&cells.join("  "));
            text.push('\n');
        }
        text
    }

    /// Comma-separated values with a header line; fields with a comma or quote are quoted (RFC 4180).
    pub fn to_csv(&self) -> String {
        let mut text = self.header().join(",");
        text.push('\n');
        for row in &self.rows {
            for key in &row.keys {
                if key.contains([',', '"', '\n', '\r']) {
                    text.push_str(&format!("\"{}\",", key.replace('"', "\"\"")));
                } else {
                    text.push_str(key);
                    text.push(',');
                }
            }
            text.push_str(&format!("{},{},{}\n", row.shares, row.work, row.credited));
        }
        text
    }

    /// A JSON list of objects. `work` and `credited` are decimal texts: they pass 2^53 soon and 2^64 later.
    pub fn to_json(&self) -> String {
        let rows: Vec<serde_json::Value> = self
            .rows
            .iter()
            .map(|row| {
                let mut object = serde_json::Map::new();
                for (key, value) in self.by.iter().zip(&row.keys) {
                    object.insert(key.label().into(), value.clone().into());
                }
                object.insert("shares".into(), row.shares.into());
                object.insert("work".into(), row.work.to_string().into());
                object.insert("credited".into(), row.credited.to_string().into());
                object.into()
            })
            .collect();
        serde_json::Value::from(rows).to_string()
    }
}

/// A number with its thousands apart: 1,234,567.
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_parse_or_say_what_is_wrong() {
        assert_eq!(parse_by("worker, minute"), Ok(vec![Key::Worker, Key::Minute]));
        assert_eq!(parse_by(""), Ok(vec![]));
        assert!(parse_by("worker,worker").is_err());
        assert!(parse_by("wroker").expect_err("typo").contains("worker"));
        assert_eq!(parse_since("1h", 4_000_000_000), Ok(400_000_000));
        assert_eq!(parse_since("9d", 5), Ok(0));
        for wrong in ["", "h", "1", "1y", "-1h", "1µ", "99999999999999999999s"] {
            assert!(parse_since(wrong, 0).is_err(), "{wrong}");
        }
        assert_eq!(parse_where("status=stale"), Ok(ShareStatus::Stale));
        assert!(parse_where("status=ok").is_err());
        assert!(parse_where("stale").is_err());
    }

    #[test]
    fn a_table_for_people_has_its_numbers_under_each_other() {
        let row = |worker: &str, work: u128| GroupRow { keys: vec![worker.into(), "stale".into()], shares: 7, work, credited: 0 };
        let by = vec![Key::Worker, Key::Status];
        let table = Table { by: by.clone(), rows: vec![row("a.b", 999), row("grube.rig1", u128::MAX)], damaged: vec![] };
        let lines = [
            "worker      status  shares                                                 work  credited",
            "a.b         stale        7                                                  999         0",
            "grube.rig1  stale        7  340,282,366,920,938,463,463,374,607,431,768,211,455         0",
        ];
        assert_eq!(table.to_text().lines().collect::<Vec<_>>(), lines);
        assert_eq!(Table { by, rows: vec![], damaged: vec![] }.to_text(), "worker  status  shares  work  credited\n");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let row = GroupRow { keys: vec!["a,b".into()], shares: 1, work: u128::MAX, credited: 0 };
        let table = Table { by: vec![Key::Worker], rows: vec![row], damaged: vec![] };
        assert_eq!(table.to_csv(), format!("worker,shares,work,credited\n\"a,b\",1,{},0\n", u128::MAX));
        assert_eq!(table.to_json(), format!(r#"[{{"worker":"a,b","shares":1,"work":"{}","credited":"0"}}]"#, u128::MAX));
    }
}
