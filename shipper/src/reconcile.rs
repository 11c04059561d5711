//! The log against the server, segment by segment.
use crate::ShipperSettings;
use crate::dimension::date_time;
use crate::schema::{ROLL_UPS, SHARES, VERSION, count_shares, identifier, literal};
use crate::ship::{instance_of, rows_by_segment};
use crate::sink::{Sink, SinkError};
use otedama_sharelog::store::{Cursor, Readable, SegmentStore};
use otedama_sharelog::{LogError, SegmentMeta};
use serde::Serialize;
use std::path::Path;

/// Why a reconciliation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The server cannot be asked.
    #[error(transparent)]
    Server(#[from] SinkError),
}

/// What a reconciliation found. `segments`, `rows_log` and `rows_server` are of the segments in the folder that have been shipped or whose rows are on the server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ReconcileReport {
    /// Segments compared.
    pub segments: u64,
    /// Their rows in the log.
    pub rows_log: u64,
    /// Their rows on the server.
    pub rows_server: u64,
    /// Shipped segments of which the server lacks rows.
    pub missing: Vec<String>,
    /// Segments of which the server has too many rows.
    pub doubled: Vec<String>,
    /// Segments that the shipper has still to send; no finding.
    pub unshipped: u64,
    /// Segments that could not be compared, as their metas are damaged: a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// Roll-ups whose rows or work are not those of `shares`, in the hours of these segments.
    pub roll_ups: Vec<&'static str>,
}

impl ReconcileReport {
    /// True when nothing is missing, doubled or damaged and every roll-up agrees: exit code 0.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty()
            && self.missing.is_empty()
            && self.doubled.is_empty()
            && self.rows_log == self.rows_server
            && self.roll_ups.is_empty()
    }
}

/// Compares the segments in `dir` with the server.
///
/// # Errors
/// When log or server cannot be read.
pub async fn reconcile(settings: &ShipperSettings, dir: &Path) -> Result<ReconcileReport, ReconcileError> {
    reconcile_with(&settings.sink(), settings, dir).await
}

/// As `reconcile`, with a transport of your own.
///
/// # Errors
/// When log or server cannot be read.
pub async fn reconcile_with<S: Sink>(sink: &S, settings: &ShipperSettings, dir: &Path) -> Result<ReconcileReport, ReconcileError> {
    // The cursor first: what it has passed was acknowledged before the rows are counted.
    // Opening a cursor registers it, which is for the shipper to do, not for a reader.
    let passed = if dir.join("cursor-shipper").exists() { Cursor::open(dir, "shipper")?.load()?.segment } else { 0 };
    let Readable { metas, damaged } = SegmentStore::open(dir)?.readable()?;
    let mut report =
        ReconcileReport { damaged: damaged.iter().map(|damaged| damaged.error.to_string()).collect(), ..ReconcileReport::default() };
    if metas.is_empty() {
        return Ok(report);
    }
    // `shares` reads the whole cluster where there is one.
    let on_server = rows_by_segment(sink, settings, SHARES.name, metas.iter()).await?;
    report.roll_ups = wrong_roll_ups(sink, settings, &metas).await?;
    for meta in metas {
        let rows = u64::from(meta.rows);
        let found = on_server.get(&(u64::from(instance_of(&meta)), meta.seg)).copied().unwrap_or_default();
        if meta.sequence() > passed && found == 0 {
            report.unshipped += 1;
            continue;
        }
        report.segments += 1;
        report.rows_log += rows;
        report.rows_server += found;
        if found < rows {
            report.missing.push(meta.name);
        } else if found > rows {
            report.doubled.push(meta.name);
        }
    }
    Ok(report)
}

/// Tries before a difference counts: an insert that is under way is in `shares` a moment before it is in the last roll-up.
const ROLL_UP_TRIES: u32 = 5;
const HOUR_S: u64 = 3600;

/// The roll-ups that do not sum up to `shares` over the hours of these segments. Both sides are the server's: rows of other instances count on both.
async fn wrong_roll_ups<S: Sink>(sink: &S, settings: &ShipperSettings, metas: &[SegmentMeta]) -> Result<Vec<&'static str>, SinkError> {
    let (first_us, last_us) = metas.iter().fold((u64::MAX, 0), |(first, last), meta| (first.min(meta.first_us), last.max(meta.last_us)));
    let hour = |us: u64| us / 1_000_000 / HOUR_S * HOUR_S;
    let moment = |seconds: u64| format!("toDateTime({}, 'UTC')", literal(&date_time(seconds)));
    let (since, until) = (moment(hour(first_us)), moment(hour(last_us) + HOUR_S));
    // Tables of an earlier version count rows, as they hold no sums.
    let sql = format!(
        "SELECT count() FROM system.columns WHERE database = {} AND table = {} AND name = 'share_count' FORMAT TabSeparated",
        literal(&settings.database),
        literal(SHARES.name)
    );
    let count = count_shares(if sink.query(&sql).await?.trim() == "0" { 1 } else { VERSION });
    let mut wrong = Vec::new();
    for roll_up in ROLL_UPS {
        let table = |name: &str| format!("{}.{}", identifier(&settings.database), identifier(name));
        let column = roll_up.time_column();
        let sql = format!(
            "SELECT min(n) = max(n) AND min(w) = max(w) FROM (SELECT {count} AS n, sum(toDecimal128(work, 0)) AS w FROM {} WHERE time >= {since} AND time < {until} \
             UNION ALL SELECT sum(shares) AS n, sum(toDecimal128(work, 0)) AS w FROM {} WHERE {column} >= {since} AND {column} < {until}) FORMAT TabSeparated",
            table(SHARES.name),
            table(roll_up.name)
        );
        for left in (0..ROLL_UP_TRIES).rev() {
            if sink.query(&sql).await?.trim() == "1" {
                break;
            }
            if left == 0 {
                wrong.push(roll_up.name);
            } else {
                tokio::time::sleep(settings.pace.look_every).await;
            }
        }
    }
    Ok(wrong)
}
