//! Dimension records as rows of tab-separated text. Every table they go to is a Replacing table by key, so a record may be sent any number of times.
use crate::schema::{BLOCKS, JOBS, RUNS, SESSIONS, Table, WORKERS};
use otedama_primitives::{JobId, encode_hex};
use otedama_sharelog::{DimensionEntry, JobRecord};
use std::collections::BTreeMap;

/// Jobs kept to write the row of a job's end; a pool has at most 16 that are not long over.
const JOBS_KEPT: usize = 64;

/// Rows on their way to the tables.
#[derive(Default)]
pub(crate) struct DimensionRows {
    tables: [TableRows; 5],
    /// Ends of jobs whose record is no longer at hand: the server completes them from its own row.
    pub(crate) orphan_ends: Vec<(JobId, u64)>,
}

/// A table and the text of the rows for it.
pub(crate) type TableText = (&'static Table, String);

#[derive(Default)]
struct TableRows {
    text: String,
    rows: usize,
}

const TABLES: [&Table; 5] = [&RUNS, &SESSIONS, &WORKERS, &JOBS, &BLOCKS];

/// The jobs of the recent past, by number.
#[derive(Default)]
pub(crate) struct RecentJobs(BTreeMap<u64, JobRecord>);

impl RecentJobs {
    fn remember(&mut self, record: &JobRecord) {
        self.0.insert(record.job.0, record.clone());
        while self.0.len() > JOBS_KEPT {
            self.0.pop_first();
        }
    }
}

impl DimensionRows {
    /// Bytes of text held.
    pub(crate) fn bytes(&self) -> usize {
        self.tables.iter().map(|table| table.text.len()).sum()
    }

    /// True when there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.orphan_ends.is_empty() && self.tables.iter().all(|table| table.rows == 0)
    }

    /// The tables that have rows, with their text.
    pub(crate) fn into_parts(self) -> (Vec<TableText>, Vec<(JobId, u64)>) {
        let parts = TABLES.into_iter().zip(self.tables).filter(|(_, rows)| rows.rows > 0).map(|(table, rows)| (table, rows.text)).collect();
        (parts, self.orphan_ends)
    }

    fn row(&mut self, table: usize) -> RowWriter<'_> {
        let rows = &mut self.tables[table];
        rows.rows += 1;
        RowWriter { text: &mut rows.text, started: false }
    }

    /// Adds an entry; `end_offset` is the offset behind it in the log.
    pub(crate) fn add(&mut self, end_offset: u64, entry: &DimensionEntry, recent: &mut RecentJobs) {
        match entry {
            DimensionEntry::Run(run) => {
                let mut row = self.row(0);
                row.number(run.run.prefix()).number(u16::from(run.run.instance)).number(run.run.epoch);
                row.text(&run.pool).text(&run.build).text(&run.kernel).text(&run.driver).text(&run.tier).instant(run.started_us).end();
            }
            DimensionEntry::Session { session, record } => {
                let mut row = self.row(1);
                row.number(session.0).number(record.extranonce1).number(record.extranonce2_bytes).number(record.net);
                row.text(&record.peer).text(&record.agent).instant(record.started_us).end();
            }
            DimensionEntry::Worker { session, record } => {
                let account = record.name.split_once('.').map_or(record.name.as_str(), |(account, _)| account);
                let mut row = self.row(2);
                row.number(record.worker.0).text(&record.name).text(account).number(session.0).instant(record.seen_us).end();
            }
            // For replay alone: no table has it.
            DimensionEntry::VersionMask { .. } => {}
            DimensionEntry::Job(record) => {
                recent.remember(record);
                self.job(record, 0);
            }
            DimensionEntry::JobEnd { job, us } => match recent.0.remove(&job.0) {
                Some(record) => self.job(&record, *us),
                None => self.orphan_ends.push((*job, *us)),
            },
            DimensionEntry::Block(block) => {
                let mut row = self.row(4);
                row.number(block.job.0).text(&block.hash.to_string()).number(block.height).number(block.worker.0).number(block.session.0);
                row.text(block.status.label()).text(&block.reason).instant(block.found_us).number(end_offset).end();
            }
        }
    }

    fn job(&mut self, record: &JobRecord, ended_us: u64) {
        let mut branch = String::with_capacity(record.branch.len() * 64);
        for hash in &record.branch {
            branch.push_str(&encode_hex(&hash.0));
        }
        let mut row = self.row(3);
        row.number(record.job.0).number(record.wire_id).text(record.coin.label()).number(record.height).text(&record.prev_hash.to_string());
        row.number(record.version).number(record.nbits).number(record.ntime).number(record.ntime_min);
        row.text(&encode_hex(&record.coinbase_prefix)).text(&encode_hex(&record.coinbase_suffix)).text(&branch);
        row.number(record.extranonce2_bytes).text(&record.network_target.to_string()).number(u8::from(record.clean));
        row.instant(record.created_us).instant(ended_us).end();
    }
}

/// Writes one row of tab-separated text.
pub(crate) struct RowWriter<'a> {
    text: &'a mut String,
    started: bool,
}

impl<'a> RowWriter<'a> {
    /// A row at the end of `text`.
    pub(crate) fn new(text: &'a mut String) -> Self {
        Self { text, started: false }
    }

    fn field(&mut self) {
        if self.started {
            self.text.push('\t');
        }
        self.started = true;
    }

    /// A number.
    pub(crate) fn number(&mut self, value: impl std::fmt::Display) -> &mut Self {
        self.field();
        self.text.push_str(&value.to_string());
        self
    }

    /// Text, escaped as ClickHouse's TabSeparated wants it.
    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        self.field();
        for character in value.chars() {
            match character {
                '\\' => self.text.push_str("\\\\"),
                '\t' => self.text.push_str("\\t"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\0' => self.text.push_str("\\0"),
                other => self.text.push(other),
            }
        }
        self
    }

    /// A second, as a DateTime.
    pub(crate) fn second(&mut self, us: u64) -> &mut Self {
        self.field();
        self.text.push_str(&date_time(us / 1_000_000));
        self
    }

    /// Two columns: the second as a DateTime, and the microseconds within it.
    pub(crate) fn instant(&mut self, us: u64) -> &mut Self {
        self.second(us).number(us % 1_000_000)
    }

    /// Ends the row.
    pub(crate) fn end(&mut self) {
        self.text.push('\n');
    }
}

/// `YYYY-MM-DD hh:mm:ss` UTC of seconds since the epoch, held to what a DateTime stores (until 2106-02-07).
/// The civil calendar of days since the epoch is that of Howard Hinnant's `civil_from_days`.
pub(crate) fn date_time(seconds: u64) -> String {
    let seconds = seconds.min(u64::from(u32::MAX));
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month_day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{month_day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::{RunId, SessionRecord};

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Expected values from GNU date -u -d @N.
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_218_379, "2026-11-20 23:46:19"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (u64::MAX, "2106-02-07 06:28:15"),
        ] {
            assert_eq!(date_time(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_peer_cannot_write_a_second_field_or_row() {
        let record = SessionRecord {
            session: 1,
            extranonce1: 2,
            net: 0,
            extranonce2_bytes: 8,
            started_us: 1_795_218_379_000_005,
            peer: "127.0.0.1:1".into(),
            agent: "a\tb\nc\\N".into(),
        };
        let mut rows = DimensionRows::default();
        rows.add(0, &DimensionEntry::Session { session: RunId::new(1, 2).session(1), record }, &mut RecentJobs::default());
        let (parts, ends) = rows.into_parts();
        assert!(ends.is_empty());
        let text = &parts[0].1;
        assert_eq!(text.matches('\n').count(), 1);
        assert_eq!(text.matches('\t').count() + 1, SESSIONS.columns.len());
        assert!(text.ends_with("a\\tb\\nc\\\\N\t2026-11-20 23:46:19\t5\n"), "{text}");
    }
}
