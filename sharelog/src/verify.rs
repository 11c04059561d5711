//! `otedama log verify`: proves that a log holds together, and that it holds what a load generator's ledger says it must.
use crate::content_hash::ContentHash;
use crate::dimensions::DimensionReader;
use crate::error::LogError;
use crate::folder::{self, seg_of};
use crate::id_map::{IdMap, IdSet, mix};
use crate::journal_scan::{JournalScan, read_journals};
use crate::ledger::{Ledger, RowFacts};
use crate::records::DimensionEntry;
use crate::scan::SEQ_DAMAGED;
use crate::segment::{JournalRange, LoggedRow, SegmentBlock, SegmentMeta, segment_name, utc_day};
use crate::store::{self, SegmentStore};
use otedama_primitives::ShareStatus;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::Path;

/// Problems that are told one by one; the rest is counted.
const PROBLEMS_TOLD: usize = 200;

/// What verify found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Sealed segments.
    pub segments: u64,
    /// Rows, sealed or not.
    pub rows: u64,
    /// Shares by status: rows, and what sums of layout `rollup` stand for.
    #[serde(serialize_with = "by_label")]
    pub by_status: [u64; 9],
    /// A sentence per finding; empty for a log that holds together.
    pub problems: Vec<String>,
    #[serde(skip)]
    untold: u64,
}

fn by_label<S: Serializer>(by_status: &[u64; 9], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(ShareStatus::ALL.into_iter().zip(by_status).map(|(status, rows)| (status.label(), rows)))
}

impl Report {
    /// True when nothing was found.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// `{"segments","rows","by_status":{status:n},"problems":[]}`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(crate) fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_TOLD {
            self.problems.push(text);
        } else {
            self.untold += 1;
        }
    }

    /// Keeps the text of damage, passes on what kept verify from looking.
    fn found<T>(&mut self, result: Result<T, LogError>) -> Result<Option<T>, LogError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(LogError::Damaged { path, what }) => {
                self.problem(format!("{}: {what}", file_name(&path)));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Bits of the difficulty of a hash, for rows whose layout has not all that made the hash: equal shares have equal hashes.
fn difficulty_bits(row: &LoggedRow) -> u64 {
    u64::from(row.share_difficulty.to_bits())
}

/// What resolves ids.
#[derive(Default)]
pub(crate) struct Resolver {
    /// Extranonce1 by session.
    pub(crate) sessions: IdMap<u64, u32>,
    pub(crate) workers: IdSet<u64>,
    pub(crate) worker_ids: std::collections::HashMap<String, u64>,
    /// Wire id by job.
    pub(crate) jobs: IdMap<u64, u32>,
}

impl Resolver {
    fn session(&mut self, id: u64, extranonce1: u32) {
        self.sessions.insert(id, extranonce1);
    }

    fn worker(&mut self, id: u64, name: String) {
        self.workers.insert(id);
        self.worker_ids.insert(name, id);
    }
}

struct RowChecks<'a> {
    resolver: &'a Resolver,
    ledger: Option<Ledger>,
    /// Fingerprints of accepted shares: one that stands twice was credited twice.
    accepted: Vec<u64>,
    /// Rows by (place, kind, id) that do not resolve.
    unresolved: BTreeMap<(String, &'static str, u64), u64>,
}

impl RowChecks<'_> {
    /// `is_whole`: the row has all that its share's header was made of.
    fn row(&mut self, report: &mut Report, place: &str, row: &LoggedRow, is_whole: bool) {
        report.rows += 1;
        match report.by_status.get_mut(usize::from(row.status)) {
            Some(count) => *count += u64::from(row.share_count),
            None => report.problem(format!("{place}: row {} has status {}, which this release does not know", row.seq, row.status)),
        }
        if row.is_sum() {
            if row.worker != 0 && !self.resolver.workers.contains(&row.worker) {
                self.miss(place, "worker", row.worker);
            }
            if let Some(ledger) = self.ledger.as_mut() {
                ledger.sum(row);
            }
            return;
        }
        let extranonce1 = self.resolver.sessions.get(&row.session).copied();
        let wire_id = self.resolver.jobs.get(&row.job).copied();
        if extranonce1.is_none() {
            self.miss(place, "session", row.session);
        }
        if row.worker != 0 && !self.resolver.workers.contains(&row.worker) {
            self.miss(place, "worker", row.worker);
        }
        if row.job != 0 && wire_id.is_none() {
            self.miss(place, "job", row.job);
        }
        if row.status == ShareStatus::Accepted as u8 {
            self.accepted.push(fingerprint(row, extranonce1, is_whole));
        }
        if let (Some(ledger), Some(extranonce1)) = (self.ledger.as_mut(), extranonce1) {
            ledger.row(&RowFacts { extranonce1, wire_id, row, is_whole });
        }
    }

    fn miss(&mut self, place: &str, kind: &'static str, id: u64) {
        if self.unresolved.len() < PROBLEMS_TOLD {
            *self.unresolved.entry((place.to_string(), kind, id)).or_default() += 1;
        } else if let Some(count) = self.unresolved.get_mut(&(place.to_string(), kind, id)) {
            *count += 1;
        }
    }
}

/// Job, extranonce1, extranonce2, ntime, nonce, version; and the difficulty's bits where a lean row lacks some of these.
type ShareKey = (u64, u64, u64, u32, u32, u32, u64);

/// The duplicate key of DESIGN section 3. A row of layout `lean` has a part of it; the difficulty of its hash stands in for the rest.
fn share_key(row: &LoggedRow, extranonce1: Option<u32>, is_whole: bool) -> ShareKey {
    let session = extranonce1.map_or(row.session, u64::from);
    let rest = if is_whole { 0 } else { difficulty_bits(row) };
    (row.job, session, row.extranonce2, row.ntime, row.nonce, row.version, rest)
}

/// `share_key` in 64 bits.
fn fingerprint(row: &LoggedRow, extranonce1: Option<u32>, is_whole: bool) -> u64 {
    let (job, session, extranonce2, ntime, nonce, version, rest) = share_key(row, extranonce1, is_whole);
    let words = [job, session, extranonce2, (u64::from(ntime) << 32) | u64::from(nonce), u64::from(version), rest];
    words.into_iter().fold(0, mix)
}

/// Verifies the log in `dir`, in use or not; with a ledger also that every entry has its row. An error means that verify could not look (no folder, no permission);
/// whatever is wrong with the log itself is in the report. Reads everything once; 8 bytes of memory per accepted row.
pub fn verify(dir: &Path, ledger: Option<&Path>) -> Result<Report, LogError> {
    let mut report = Report::default();
    // The order matters while the log is written: rows first, then what resolves them, which only grows.
    let journals = read_journals(dir, 0)?;
    let listing = folder::list(dir)?;
    let metas = segments(dir, &listing, &journals, &mut report)?;
    let covered = metas.last().map_or(0, |meta| meta.journal_end());
    let resolver = dimensions(dir, &journals, &metas, &mut report)?;
    folder_files(dir, &listing, &metas, &mut report)?;
    ranges(dir, &metas, &journals, &mut report)?;

    let ledger = match ledger {
        Some(path) => Some(Ledger::read(path, &resolver, &mut report)?),
        None => None,
    };
    let mut checks = RowChecks { resolver: &resolver, ledger, accepted: Vec::new(), unresolved: BTreeMap::new() };
    let store = SegmentStore::open(dir)?;
    let mut bytes = Vec::new();
    for meta in &metas {
        let read = store.read_native(meta, &mut bytes);
        if let Some(true) = report.found(read)? {
            report.segments += 1;
            segment(meta, &bytes, &mut checks, &mut report);
        }
    }
    for scan in &journals {
        let place = file_name(&scan.path);
        for problem in &scan.problems {
            report.problem(format!("{place}: {problem}"));
        }
        for (_, row) in scan.rows.iter().filter(|(sequence, _)| *sequence >= covered) {
            checks.row(&mut report, &place, row, true);
        }
    }

    for ((place, kind, id), rows) in std::mem::take(&mut checks.unresolved) {
        report.problem(format!("{place}: {rows} rows name {kind} {id:016x}, which no record resolves"));
    }
    let RowChecks { ledger, mut accepted, .. } = checks;
    accepted.sort_unstable();
    let twice: IdSet<u64> =
        accepted.windows(2).filter_map(|pair| pair.first().filter(|first| pair.last() == Some(first)).copied()).collect();
    drop(accepted);
    if !twice.is_empty() {
        doubled(dir, &metas, &journals, covered, &resolver, &twice, &mut report)?;
    }
    if let Some(ledger) = ledger {
        ledger.judge(&mut report);
    }
    if report.untold > 0 {
        let untold = report.untold;
        report.problems.push(format!("and {untold} more"));
    }
    Ok(report)
}

/// Which segments there are, and which should be.
fn segments(dir: &Path, listing: &folder::Listing, journals: &[JournalScan], report: &mut Report) -> Result<Vec<SegmentMeta>, LogError> {
    let mut metas: Vec<SegmentMeta> = Vec::new();
    let mut last_sequence = None;
    for (&key, _) in listing.segments.iter().filter(|(_, files)| files.has_block()) {
        if let Some(last) = last_sequence
            && key.0 > last + 1
        {
            report.problem(format!("segments {:08x} to {:08x} are missing (only the oldest may be gone)", last + 1, key.0 - 1));
        }
        last_sequence = Some(key.0);
        let read = store::read_meta(dir, seg_of(key));
        if let Some(Some(meta)) = report.found(read)? {
            metas.push(meta);
        }
    }
    let newest = last_sequence.unwrap_or(0);
    let sealed = journals.iter().filter_map(|scan| scan.header).map(|header| header.sealed).max().unwrap_or(0);
    if sealed > newest {
        report.problem(format!("segments {:08x} to {sealed:08x} are missing: a journal file was made when they were there", newest + 1));
    }
    for (&key, _) in listing.segments.iter().filter(|(key, files)| files.meta && !files.has_block() && key.0 > newest) {
        // A crash between the two renames leaves this; the rows are still in the journal then.
        let name = segment_name(seg_of(key));
        let read = store::read_meta(dir, seg_of(key));
        let in_journal = match read {
            Ok(Some(meta)) => meta
                .journal
                .iter()
                .all(|range| journals.iter().any(|scan| scan.header.is_some_and(|header| header.file_number == range.file))),
            Ok(None) => true,
            Err(_) => false,
        };
        if !in_journal && store::meta_path(dir, seg_of(key)).exists() {
            report.problem(format!("{name}.native is missing beside its .meta, and its rows are no longer in the journal"));
        }
    }
    Ok(metas)
}

/// Everything that resolves ids: the dimension log, and what still stands in the journal alone.
fn dimensions(dir: &Path, journals: &[JournalScan], metas: &[SegmentMeta], report: &mut Report) -> Result<Resolver, LogError> {
    let mut resolver = Resolver::default();
    for scan in journals {
        let prefix = scan.header.map_or(0, |header| u64::from(header.run_prefix)) << 32;
        for dimension in &scan.dimensions {
            if let Some(record) = dimension.as_session() {
                resolver.session(prefix | u64::from(record.session), record.extranonce1);
            } else if let Some(record) = dimension.as_worker() {
                resolver.worker(record.worker.0, record.name);
            } else if dimension.as_version_mask().is_none() {
                report.problem(format!("{}: a dimension record of kind {} does not decode", file_name(&scan.path), dimension.kind));
            }
        }
    }
    let opened = DimensionReader::from(dir, 0);
    if let Some(mut reader) = report.found(opened)? {
        for entry in reader.by_ref() {
            match report.found(entry)? {
                Some((_, DimensionEntry::Session { session, record })) => resolver.session(session.0, record.extranonce1),
                Some((_, DimensionEntry::Worker { record, .. })) => resolver.worker(record.worker.0, record.name),
                Some((_, DimensionEntry::Job(record))) => drop(resolver.jobs.insert(record.job.0, record.wire_id)),
                Some(_) | None => {}
            }
        }
        let end = reader.offset();
        for meta in metas.iter().filter(|meta| meta.dimensions_end > end).take(1) {
            report.problem(format!(
                "dimensions.log ends at {end}, but segment {} was sealed with {} bytes of it",
                meta.name, meta.dimensions_end
            ));
        }
    }
    Ok(resolver)
}

/// Epoch, cursors and what recovery set aside.
fn folder_files(dir: &Path, listing: &folder::Listing, metas: &[SegmentMeta], report: &mut Report) -> Result<(), LogError> {
    let epoch = folder::read_epoch(dir);
    if report.found(epoch)? == Some(None) && !metas.is_empty() {
        report.problem("the epoch file is missing".into());
    }
    // The root of an ext4 file system has a folder of its own.
    for name in listing.foreign.iter().filter(|name| *name != "lost+found") {
        report.problem(format!("{name} is not of the log: move it out of this folder"));
    }
    for path in &listing.set_aside {
        report.problem(format!("{} was set aside by recovery: parts of it are damaged; inspect it, then move it away", file_name(path)));
    }
    for name in &listing.cursors {
        let read = store::read_cursor(dir, name);
        let Some(Some(position)) = report.found(read)? else { continue };
        // Looked up after the cursor: a log in use seals, then its follower passes.
        let newest = folder::list(dir)?.segments.iter().rev().find(|(_, files)| files.has_block()).map_or(0, |(key, _)| key.0);
        if position.segment > newest {
            report.problem(format!("cursor {name} has passed segment {:08x}, but the newest is {newest:08x}", position.segment));
        }
    }
    Ok(())
}

/// The segments' parts of the journal must join without gap or overlap.
fn ranges(dir: &Path, metas: &[SegmentMeta], journals: &[JournalScan], report: &mut Report) -> Result<(), LogError> {
    let mut last: Option<JournalRange> = None;
    let mut last_sequence = 0;
    let mut sealed_to: BTreeMap<u32, u32> = BTreeMap::new();
    for meta in metas {
        let rows: u64 = meta.journal.iter().map(|range| u64::from(range.end - range.first)).sum();
        if rows != meta.shares() {
            report.problem(format!("{}.meta: {} rows, but its parts of the journal have {rows}", meta.name, meta.shares()));
        }
        // Behind a missing or unreadable segment nothing can be said of the join.
        if last_sequence + 1 != meta.sequence() {
            last = None;
        }
        for &range in &meta.journal {
            match last {
                Some(last) if range.file < last.file || (range.file == last.file && range.first < last.end) => {
                    report
                        .problem(format!("{}: rows {} of journal file {} on are sealed a second time", meta.name, range.first, range.file));
                }
                Some(last) if range.file == last.file && range.first > last.end => {
                    report.problem(format!(
                        "{}: rows {} to {} of journal file {} are in no segment",
                        meta.name, last.end, range.first, range.file
                    ));
                }
                Some(last) if range.file > last.file && range.first != 0 => {
                    report.problem(format!("{}: rows 0 to {} of journal file {} are in no segment", meta.name, range.first, range.file));
                }
                _ => {}
            }
            last = Some(range);
            sealed_to.insert(range.file, range.end);
        }
        last_sequence = meta.sequence();
    }
    let covered = last.map_or(0, |range| range.file);
    for scan in journals {
        let Some(header) = scan.header else { continue };
        let place = file_name(&scan.path);
        if let Some(&end) = sealed_to.get(&header.file_number) {
            // In tier `disk` rows are sealed from memory, and the file may be a sync behind.
            if u64::from(end) > scan.rows_in_file && scan.durable_end.is_none() {
                // A file in use has grown and been sealed since it was read: look again. A recycled one is gone.
                let again = read_journals(dir, u64::MAX)?;
                let again = again.iter().find(|again| again.header == Some(header));
                if let Some(rows) = again.map(|again| again.rows_in_file).filter(|&rows| rows < u64::from(end)) {
                    report.problem(format!("{place}: {rows} rows, but {end} of them are sealed"));
                }
            } else if header.file_number < covered && u64::from(end) < scan.rows_in_file {
                report.problem(format!("{place}: {} rows, but only {end} of them are sealed and the log has gone on", scan.rows_in_file));
            }
        } else if header.file_number < covered && scan.rows_in_file > 0 && metas.first().is_some_and(|meta| meta.sequence() == 1) {
            report.problem(format!("{place}: none of its {} rows is sealed and the log has gone on", scan.rows_in_file));
        }
    }
    Ok(())
}

fn segment(meta: &SegmentMeta, bytes: &[u8], checks: &mut RowChecks<'_>, report: &mut Report) {
    let place = format!("{}.native", meta.name);
    let mut hash = ContentHash::new();
    hash.update(bytes);
    if hash.finish() != meta.content_hash {
        report.problem(format!("{place}: its content hash does not match its meta"));
    }
    let block = match SegmentBlock::parse(bytes) {
        Ok(block) => block,
        Err(what) => return report.problem(format!("{place}: {what}")),
    };
    if block.layout() != meta.layout {
        report.problem(format!("{place}: layout {} where its meta has {}", block.layout().label(), meta.layout.label()));
    }
    if block.rows() as u64 != u64::from(meta.rows) {
        report.problem(format!("{place}: {} rows where its meta has {}", block.rows(), meta.rows));
    }
    let mut by_status = [0u64; 9];
    let (mut work, mut credited) = (0u128, 0u128);
    let mut last_us = 0;
    let (mut misplaced, mut backwards, mut other_day, mut other_instance, mut no_sum) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut arrivals = Vec::new();
    let in_order = block.arrivals(&mut arrivals);
    if !in_order {
        // Nothing is said of an order that nobody knows.
        report.problem(format!("{place}: {SEQ_DAMAGED}"));
    }
    for (index, &at) in arrivals.iter().enumerate() {
        let row = block.row(at as usize);
        misplaced += u64::from(row.seg != meta.seg || (in_order && row.seq as usize != index));
        backwards += u64::from(in_order && row.arrival_us < last_us);
        other_day += u64::from(utc_day(row.arrival_us) != utc_day(meta.first_us));
        other_instance += u64::from(u32::from(row.instance) != meta.run_prefix >> 24);
        last_us = row.arrival_us;
        if let Some(count) = by_status.get_mut(usize::from(row.status)) {
            *count += u64::from(row.share_count);
        }
        work += u128::from(row.work);
        if row.status == ShareStatus::Accepted as u8 {
            credited += u128::from(row.work);
        }
        let is_sound = if row.is_sum() { row.status == ShareStatus::Accepted as u8 && row.share_count > 0 } else { row.share_count == 1 };
        no_sum += u64::from(!is_sound);
        checks.row(report, &place, &row, block.layout().is_whole());
    }
    for (rows, what) in [
        (misplaced, "carry another segment or place than their own"),
        (backwards, "arrived before the row in front of them"),
        (other_day, "are of another UTC day"),
        (other_instance, "are of another instance"),
        (no_sum, "stand for a number of shares that they cannot stand for"),
    ] {
        if rows > 0 {
            report.problem(format!("{place}: {rows} rows {what}"));
        }
    }
    if by_status != meta.by_status || work != meta.work_sum || credited != meta.work_credited {
        report.problem(format!("{place}: its counts by status or sums of work are not those of its meta"));
    }
    let first_us = arrivals.first().map_or(meta.first_us, |&at| block.row(at as usize).arrival_us);
    if in_order && (first_us != meta.first_us || last_us != meta.last_us) {
        report.problem(format!("{place}: its first or last arrival is not that of its meta"));
    }
}

/// Second look at the accepted rows whose fingerprints met: equal shares are told, chance hits are not.
fn doubled(
    dir: &Path,
    metas: &[SegmentMeta],
    journals: &[JournalScan],
    covered: u64,
    resolver: &Resolver,
    twice: &IdSet<u64>,
    report: &mut Report,
) -> Result<(), LogError> {
    let mut seen: BTreeMap<ShareKey, Vec<String>> = BTreeMap::new();
    let mut look = |place: &str, row: &LoggedRow, is_whole: bool| {
        let extranonce1 = resolver.sessions.get(&row.session).copied();
        if row.status == ShareStatus::Accepted as u8 && !row.is_sum() && twice.contains(&fingerprint(row, extranonce1, is_whole)) {
            seen.entry(share_key(row, extranonce1, is_whole)).or_default().push(format!("{place} row {}", row.seq));
        }
    };
    let store = SegmentStore::open(dir)?;
    let mut bytes = Vec::new();
    for meta in metas {
        if let Ok(true) = store.read_native(meta, &mut bytes)
            && let Ok(block) = SegmentBlock::parse(&bytes)
        {
            (0..block.rows()).for_each(|row| look(&meta.name, &block.row(row), block.layout().is_whole()));
        }
    }
    for scan in journals {
        let place = file_name(&scan.path);
        scan.rows.iter().filter(|(sequence, _)| *sequence >= covered).for_each(|(_, row)| look(&place, row, true));
    }
    for (key, places) in seen.into_iter().filter(|(_, places)| places.len() > 1) {
        report.problem(format!(
            "one share is accepted {} times (job {:016x}, nonce {:08x}): {}",
            places.len(),
            key.0,
            key.4,
            places.join(", ")
        ));
    }
    Ok(())
}
