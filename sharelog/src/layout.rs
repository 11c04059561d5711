//! Row layouts: which columns a segment has. The journal keeps every field whatever the layout; the sealer chooses.
use serde::{Deserialize, Serialize};

const STATUS_TYPE: &str = "Enum8('accepted' = 0, 'stale' = 1, 'duplicate' = 2, 'low_difficulty' = 3, 'bad_time' = 4, 'bad_version' = 5, \
     'malformed' = 6, 'unauthorized' = 7, 'overload' = 8)";
const COIN_TYPE: &str = "Enum8('bitcoin' = 0)";

/// Name, ClickHouse type and bytes per row of every column that a layout can have. Types are of the subset that servers from 18.16 on take.
pub const COLUMNS: [(&str, &str, usize); 20] = [
    ("instance", "UInt16", 2),
    ("seg", "UInt64", 8),
    ("seq", "UInt32", 4),
    ("time", "DateTime", 4),
    ("us", "UInt32", 4),
    ("session", "UInt64", 8),
    ("worker", "UInt64", 8),
    ("job", "UInt64", 8),
    ("coin", COIN_TYPE, 1),
    ("status", STATUS_TYPE, 1),
    ("flags", "UInt8", 1),
    ("work", "UInt64", 8),
    ("share_difficulty", "Float32", 4),
    ("nonce", "UInt32", 4),
    ("ntime", "UInt32", 4),
    ("version", "UInt32", 4),
    ("extranonce2", "UInt64", 8),
    ("latency_us", "UInt32", 4),
    ("share_count", "UInt32", 4),
    ("hash", "FixedString(32)", 32),
];

const LEAN: [usize; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17];
const REPLAYABLE: [usize; 18] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];
const FULL: [usize; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19];
const ROLLUP: [usize; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];

/// Where a column lies in a block: bytes from its begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ColumnPlace {
    /// Its name and type begin; of the first column, the block.
    pub(crate) start: u64,
    /// Its first value begins.
    pub(crate) values: u64,
    /// Behind its last value.
    pub(crate) end: u64,
}

/// What the rows of a segment keep: `[log] row`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Without ntime, version and extranonce2.
    Lean,
    /// All that judging the share again needs.
    #[default]
    Replayable,
    /// `Replayable` with the hash.
    Full,
    /// Accepted shares summed by worker and second; refusals and block candidates as in `Replayable`.
    Rollup,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Self; 4] = [Self::Lean, Self::Replayable, Self::Full, Self::Rollup];

    /// Name in config, metas, figures and ClickHouse.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::Replayable => "replayable",
            Self::Full => "full",
            Self::Rollup => "rollup",
        }
    }

    /// Its columns, as indices into `COLUMNS`, in the order of the block.
    pub const fn columns(self) -> &'static [usize] {
        match self {
            Self::Lean => &LEAN,
            Self::Replayable => &REPLAYABLE,
            Self::Full => &FULL,
            Self::Rollup => &ROLLUP,
        }
    }

    /// Names of its columns, in the order of the block: the column list of an insert.
    pub fn column_names(self) -> impl Iterator<Item = &'static str> {
        self.columns().iter().filter_map(|&index| COLUMNS.get(index)).map(|column| column.0)
    }

    /// Bytes of a row over all of its columns.
    pub fn row_bytes(self) -> usize {
        self.columns().iter().filter_map(|&index| COLUMNS.get(index)).map(|column| column.2).sum()
    }

    /// Where the columns lie in a block of so many rows, in its order: every value has a fixed width.
    pub(crate) fn places(self, rows: u32) -> Vec<ColumnPlace> {
        let varint_bytes = |value: u64| u64::from((64 - (value | 1).leading_zeros()).div_ceil(7));
        let text_bytes = |text: &str| varint_bytes(text.len() as u64) + text.len() as u64;
        let mut places = Vec::with_capacity(self.columns().len());
        // The counts of columns and rows stand before the first column, and are taken with it.
        let (mut start, mut at) = (0, varint_bytes(self.columns().len() as u64) + varint_bytes(u64::from(rows)));
        for &(name, kind, width) in self.columns().iter().filter_map(|&index| COLUMNS.get(index)) {
            let values = at + text_bytes(name) + text_bytes(kind);
            at = values + u64::from(rows) * width as u64;
            places.push(ColumnPlace { start, values, end: at });
            start = at;
        }
        places
    }

    /// True where a row has all that its share's header was made of. Of `Rollup`, the rows that are no sums.
    pub const fn is_whole(self) -> bool {
        !matches!(self, Self::Lean)
    }

    pub(crate) fn is_replayable(&self) -> bool {
        *self == Self::Replayable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_has_the_columns_that_its_name_promises() {
        assert_eq!(Layout::ALL.map(Layout::row_bytes), [69, 85, 117, 89]);
        let has = |layout: Layout, name: &str| layout.column_names().any(|column| column == name);
        for layout in Layout::ALL {
            assert!(has(layout, "work") && has(layout, "latency_us"), "{layout:?}");
            assert_eq!(has(layout, "hash"), layout == Layout::Full, "{layout:?}");
            assert_eq!(has(layout, "share_count"), layout == Layout::Rollup, "{layout:?}");
            for column in ["ntime", "version", "extranonce2"] {
                assert_eq!(has(layout, column), layout.is_whole(), "{layout:?} {column}");
            }
            assert_eq!(serde_json::to_string(&layout).ok(), Some(format!("\"{}\"", layout.label())));
        }
    }
}
