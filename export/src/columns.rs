//! The columns of an export: those of the log, with the two parts of the arrival as one, and the worker's name.
use otedama_primitives::{Coin, Hash256, ShareStatus};
use otedama_sharelog::{IdMap, LoggedRow};

/// Worker names by id.
pub(crate) type Names = IdMap<u64, String>;

/// A column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// Arrival, microseconds, UTC: `time` and `us` of the log.
    Ts,
    /// `[pool] instance` of the run.
    Instance,
    /// Segment; 0 while the row is unsealed.
    Seg,
    /// Row in the segment.
    Seq,
    /// Session.
    Session,
    /// Worker identity.
    Worker,
    /// `account.worker`; empty for a worker that no record names. Not in the log's rows: only where it is asked for.
    WorkerName,
    /// Job.
    Job,
    /// Coin.
    Coin,
    /// Verdict.
    Status,
    /// Bits: 1 block candidate, 2 late, 4 grace, 8 by way of the log.
    Flags,
    /// Work judged at, in expected hashes.
    Work,
    /// Difficulty of the hash.
    ShareDifficulty,
    /// Header nonce.
    Nonce,
    /// Header time.
    Ntime,
    /// Header version.
    Version,
    /// Extranonce2.
    Extranonce2,
    /// Bytes read to append; the mean of a sum.
    LatencyUs,
    /// Shares that the row stands for: more than 1 in sums of layout `rollup`.
    ShareCount,
    /// Hash of the header as explorers show it, empty where the row has none: only where it is asked for.
    Hash,
}

/// A value as it is written.
pub(crate) enum Cell<'a> {
    /// Of 32 bits at most.
    Small(u32),
    Large(u64),
    /// Work: a decimal number in Parquet, so that sums stay exact.
    Work(u64),
    Float(f32),
    Text(&'a str),
    /// Microseconds since the epoch.
    Time(u64),
    /// Empty for zeros.
    Hash(Hash256),
}

impl Column {
    /// Every column.
    pub const ALL: [Self; 20] = [
        Self::Ts,
        Self::Instance,
        Self::Seg,
        Self::Seq,
        Self::Session,
        Self::Worker,
        Self::WorkerName,
        Self::Job,
        Self::Coin,
        Self::Status,
        Self::Flags,
        Self::Work,
        Self::ShareDifficulty,
        Self::Nonce,
        Self::Ntime,
        Self::Version,
        Self::Extranonce2,
        Self::LatencyUs,
        Self::ShareCount,
        Self::Hash,
    ];

    /// The columns of the log's own rows, in their order, but for the hash, which is half of a row.
    pub fn of_the_log() -> Vec<Self> {
        Self::ALL.into_iter().filter(|column| !matches!(column, Self::WorkerName | Self::Hash)).collect()
    }

    /// Reads `ts,worker_name,status,work`. The error is a sentence for the user.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut columns = Vec::new();
        for part in text.split(',').map(str::trim) {
            let known = || Self::ALL.map(Self::name).join(", ");
            let column = Self::ALL.into_iter().find(|column| column.name() == part);
            let column = column.ok_or_else(|| format!("no column {part:?}; there are {}", known()))?;
            if columns.contains(&column) {
                return Err(format!("column {part:?} stands twice"));
            }
            columns.push(column);
        }
        Ok(columns)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.described().0
    }

    /// Name, and type in Parquet's schema language.
    pub(crate) const fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::Ts => ("ts", "INT64 ts (TIMESTAMP(MICROS,true))"),
            Self::Instance => ("instance", "INT32 instance (INTEGER(16,false))"),
            Self::Seg => ("seg", "INT64 seg (INTEGER(64,false))"),
            Self::Seq => ("seq", "INT32 seq (INTEGER(32,false))"),
            Self::Session => ("session", "INT64 session (INTEGER(64,false))"),
            Self::Worker => ("worker", "INT64 worker (INTEGER(64,false))"),
            Self::WorkerName => ("worker_name", "BYTE_ARRAY worker_name (STRING)"),
            Self::Job => ("job", "INT64 job (INTEGER(64,false))"),
            Self::Coin => ("coin", "BYTE_ARRAY coin (STRING)"),
            Self::Status => ("status", "BYTE_ARRAY status (STRING)"),
            Self::Flags => ("flags", "INT32 flags (INTEGER(8,false))"),
            Self::Work => ("work", "FIXED_LEN_BYTE_ARRAY (9) work (DECIMAL(20,0))"),
            Self::ShareDifficulty => ("share_difficulty", "FLOAT share_difficulty"),
            Self::Nonce => ("nonce", "INT32 nonce (INTEGER(32,false))"),
            Self::Ntime => ("ntime", "INT32 ntime (INTEGER(32,false))"),
            Self::Version => ("version", "INT32 version (INTEGER(32,false))"),
            Self::Extranonce2 => ("extranonce2", "INT64 extranonce2 (INTEGER(64,false))"),
            Self::LatencyUs => ("latency_us", "INT32 latency_us (INTEGER(32,false))"),
            Self::ShareCount => ("share_count", "INT32 share_count (INTEGER(32,false))"),
            Self::Hash => ("hash", "BYTE_ARRAY hash (STRING)"),
        }
    }

    /// What a row has in it.
    #[inline]
    pub(crate) fn of<'a>(self, row: &LoggedRow, names: &'a Names) -> Cell<'a> {
        match self {
            Self::Ts => Cell::Time(row.arrival_us),
            Self::Instance => Cell::Small(u32::from(row.instance)),
            Self::Seg => Cell::Large(row.seg),
            Self::Seq => Cell::Small(row.seq),
            Self::Session => Cell::Large(row.session),
            Self::Worker => Cell::Large(row.worker),
            Self::WorkerName => Cell::Text(names.get(&row.worker).map_or("", String::as_str)),
            Self::Job => Cell::Large(row.job),
            Self::Coin => Cell::Text(if row.coin == Coin::Bitcoin as u8 { Coin::Bitcoin.label() } else { "unknown" }),
            Self::Status => Cell::Text(ShareStatus::from_u8(row.status).map_or("unknown", ShareStatus::label)),
            Self::Flags => Cell::Small(u32::from(row.flags)),
            Self::Work => Cell::Work(row.work),
            Self::ShareDifficulty => Cell::Float(row.share_difficulty),
            Self::Nonce => Cell::Small(row.nonce),
            Self::Ntime => Cell::Small(row.ntime),
            Self::Version => Cell::Small(row.version),
            Self::Extranonce2 => Cell::Large(row.extranonce2),
            Self::LatencyUs => Cell::Small(row.latency_us),
            Self::ShareCount => Cell::Small(row.share_count),
            Self::Hash => Cell::Hash(row.hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_columns_parse_or_say_what_is_wrong() {
        assert_eq!(Column::parse_list("ts, work"), Ok(vec![Column::Ts, Column::Work]));
        assert_eq!(Column::parse_list(&Column::ALL.map(Column::name).join(",")), Ok(Column::ALL.to_vec()));
        assert!(Column::parse_list("ts,ts").is_err());
        assert!(Column::parse_list("").is_err());
        assert!(Column::parse_list("time").expect_err("two columns in the log, one here").contains("ts"));
    }
}
