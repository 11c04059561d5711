//! The log against the server, segment by segment.
use crate::ShipperSettings;
use crate::dimension::date_time;
use crate::schema::{SHARES, identifier, literal};
use crate::ship::instance_of;
use crate::sink::{Sink, SinkError};
use otedama_sharelog::LogError;
use otedama_sharelog::store::{Cursor, SegmentStore};
use serde::Serialize;
use std::collections::HashMap;
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
    /// The server's answer is not what was asked for.
    #[error("the server answered the count of rows by segment with {0:?}")]
    Answer(String),
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
}

impl ReconcileReport {
    /// True when nothing is missing and nothing doubled: exit code 0.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.doubled.is_empty() && self.rows_log == self.rows_server
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
    let metas = SegmentStore::open(dir)?.segments()?;
    let mut report = ReconcileReport::default();
    let (Some(first_us), Some(last_us)) = (metas.iter().map(|meta| meta.first_us).min(), metas.iter().map(|meta| meta.last_us).max())
    else {
        return Ok(report);
    };
    // `shares` reads the whole cluster where there is one. The bounds in time leave other days unread.
    let sql = format!(
        "SELECT instance, seg, count() FROM {}.{} WHERE time >= toDateTime({}, 'UTC') AND time <= toDateTime({}, 'UTC') GROUP BY instance, seg FORMAT TabSeparated",
        identifier(&settings.database),
        identifier(SHARES.name),
        literal(&date_time(first_us / 1_000_000)),
        literal(&date_time(last_us / 1_000_000))
    );
    let text = sink.query(&sql).await?;
    let mut on_server = HashMap::new();
    for line in text.lines() {
        let mut numbers = line.split('\t').map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(instance)), Some(Ok(seg)), Some(Ok(rows))) => on_server.insert((instance, seg), rows),
            _ => return Err(ReconcileError::Answer(line.chars().take(200).collect())),
        };
    }
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
