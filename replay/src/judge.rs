//! Rows judged again: what needs no memory of other rows by all threads side by side, then the duplicates in row order, each thread for its part of the keys.
use crate::facts::{END_SLACK_US, Facts, JobFacts, RAISED_US, SessionFacts};
use crate::report::{Difference, Kind, Report, Unjudged, segment_text};
use crate::tables::{Key, Shard, key, shard_of};
use otedama_kernels::sha256d::scalar;
use otedama_kernels::{BATCH, Isa, Judged, ShareBatch, judge};
use otedama_primitives::{Hash256, ShareStatus, Work, flags};
use otedama_sharelog::LoggedRow;
use std::collections::BTreeMap;

/// Rows to judge, and what holds for all of them.
pub(crate) struct Portion<'a> {
    pub(crate) rows: &'a [LoggedRow],
    /// Rows of earlier portions.
    pub(crate) before: u64,
    /// Rows that arrived before it are there for their shares alone.
    pub(crate) since_us: u64,
    pub(crate) isa: Isa,
    /// Rows were lost to damage, so that an original may be missing.
    pub(crate) is_damaged: bool,
}

/// What a row came to, as far as it can be said without other rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Alone {
    /// Not of the range, and of no further use.
    Passed,
    /// Before the range, accepted: a share that later rows may repeat.
    Remembered,
    /// Cannot be judged.
    Unjudged(Unjudged),
    /// A record is missing.
    Unresolved,
    /// Refused without a hash.
    Refused(ShareStatus),
    /// Hashed: at or under its own target, at or under the network's.
    Hashed { met: bool, block: bool },
}

/// The same with what the second pass needs.
#[derive(Clone, Copy)]
struct Found {
    alone: Alone,
    shard: u16,
    extranonce1: u32,
    /// As hashed.
    version: u32,
    share_difficulty: f32,
    /// The row has a hash, and it is another one.
    other_hash: bool,
}

const NOT_YET: Found = Found { alone: Alone::Passed, shard: 0, extranonce1: 0, version: 0, share_difficulty: 0.0, other_hash: false };

/// Judges a portion with `parts` threads; `shards` keep the accepted shares from portion to portion.
pub(crate) fn portion(portion: &Portion<'_>, facts: &Facts, parts: usize, shards: &mut [Shard], report: &mut Report) {
    let mut found = vec![NOT_YET; portion.rows.len()];
    let keepers = shards.len();
    let per_part = portion.rows.len().div_ceil(parts).max(1);
    let pieces = portion.rows.chunks(per_part).zip(found.chunks_mut(per_part));
    if parts == 1 {
        pieces.for_each(|(rows, found)| Hasher::new(portion, facts, keepers).judge(rows, found));
        for (shard, keys) in shards.iter_mut().enumerate() {
            report.add(compare(portion, facts, &found, shard, keys));
        }
        return;
    }
    std::thread::scope(|scope| {
        for (rows, found) in pieces {
            scope.spawn(move || Hasher::new(portion, facts, keepers).judge(rows, found));
        }
    });
    let found = &found;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            shards.iter_mut().enumerate().map(|(shard, keys)| scope.spawn(move || compare(portion, facts, found, shard, keys))).collect();
        for thread in threads {
            match thread.join() {
                Ok(part) => report.add(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
}

/// Rows of one job that wait for a batch.
struct Bucket<'a> {
    id: u64,
    job: &'a JobFacts,
    rows: [u32; BATCH],
    count: usize,
}

/// The first pass over a part of the rows.
struct Hasher<'a> {
    portion: &'a Portion<'a>,
    facts: &'a Facts,
    shards: usize,
    buckets: Vec<Bucket<'a>>,
    batch: Box<ShareBatch>,
    judged: Box<Judged>,
}

impl<'a> Hasher<'a> {
    fn new(portion: &'a Portion<'a>, facts: &'a Facts, shards: usize) -> Self {
        Self { portion, facts, shards, buckets: Vec::new(), batch: Box::default(), judged: Box::default() }
    }

    fn judge(&mut self, rows: &[LoggedRow], found: &mut [Found]) {
        for (index, row) in rows.iter().enumerate() {
            let (here, hashes) = self.before_the_hash(row);
            if let Some(slot) = found.get_mut(index) {
                *slot = here;
            }
            if let Some(job) = hashes {
                self.put(row.job, job, index as u32, rows, found);
            }
        }
        for index in 0..self.buckets.len() {
            self.hash(index, rows, found);
        }
    }

    /// What can be said before a hash is made, and the job whose kernel must make it.
    fn before_the_hash(&self, row: &LoggedRow) -> (Found, Option<&'a JobFacts>) {
        let session = self.facts.sessions.get(&row.session);
        let extranonce1 = session.map_or(0, |session| session.extranonce1);
        let mut found = Found { extranonce1, version: row.version, ..NOT_YET };
        let keep = |mut found: Found| {
            found.shard = shard_of(&key_of(row, &found), self.shards) as u16;
            found
        };
        // Lean rows and sums: what they were judged from is not there.
        if row.is_sum() || !row.layout.is_whole() {
            found.alone = Alone::Unjudged(Unjudged::NotKept);
            return (keep(found), None);
        }
        if row.arrival_us < self.portion.since_us {
            if row.status == ShareStatus::Accepted as u8 && session.is_some() {
                found.alone = Alone::Remembered;
            }
            return (keep(found), None);
        }
        let (alone, job) = match (session, self.alone(row, session, &mut found.version)) {
            (None, Some(Alone::Unjudged(reason))) => (Alone::Unjudged(reason), None),
            (None, _) => (Alone::Unresolved, None),
            (Some(_), Some(alone)) => (alone, None),
            (Some(_), None) => (Alone::Hashed { met: false, block: false }, self.facts.job(row.job)),
        };
        found.alone = alone;
        (keep(found), job)
    }

    /// The verdict of a row where it needs no hash; None where it does. Order as in the pool: worker, job live, ntime window, version bits.
    fn alone(&self, row: &LoggedRow, session: Option<&SessionFacts>, version: &mut u32) -> Option<Alone> {
        let Some(status) = ShareStatus::from_u8(row.status) else { return Some(Alone::Unjudged(Unjudged::StatusUnknown)) };
        let reason = match status {
            ShareStatus::Malformed => Some(Unjudged::Malformed),
            ShareStatus::Unauthorized => Some(Unjudged::Unauthorized),
            ShareStatus::Overload => Some(Unjudged::Overload),
            ShareStatus::Stale if row.job == 0 => Some(Unjudged::StaleJobUnknown),
            _ => None,
        };
        if let Some(reason) = reason {
            return Some(Alone::Unjudged(reason));
        }
        let Some(job) = self.facts.job(row.job) else { return Some(Alone::Unresolved) };
        if row.worker == 0 {
            return Some(Alone::Refused(ShareStatus::Unauthorized));
        }
        let is_stale = match (status, job.end_us) {
            (ShareStatus::Stale, None) => return Some(Alone::Unjudged(Unjudged::StaleEndUnrecorded)),
            (ShareStatus::Stale, Some(end_us)) => row.arrival_us.saturating_add(END_SLACK_US) >= end_us,
            (_, Some(end_us)) => row.arrival_us > end_us.saturating_add(END_SLACK_US),
            (_, None) => false,
        };
        if is_stale {
            return Some(Alone::Refused(ShareStatus::Stale));
        }
        // A window that had not moved on yet when the row was judged made more of them bad.
        let judged_us = if status == ShareStatus::BadTime { row.arrival_us.saturating_sub(RAISED_US) } else { row.arrival_us };
        if !(job.job.ntime_min..=job.job.ntime_max(judged_us)).contains(&row.ntime) {
            return Some(Alone::Refused(ShareStatus::BadTime));
        }
        let masks = session.map_or(&[][..], |session| session.masks_at(row.arrival_us));
        if status == ShareStatus::BadVersion {
            // Such a row has the bits as they were sent: merged into the job's version, some could not be told from it.
            let Some((_, mask)) = masks.last() else { return Some(Alone::Unjudged(Unjudged::MaskUnrecorded)) };
            if masks.iter().any(|(_, mask)| row.version & !mask != 0) {
                return Some(Alone::Refused(ShareStatus::BadVersion));
            }
            *version = (job.job.version & !mask) | row.version;
        } else if !masks.is_empty() && masks.iter().all(|(_, mask)| (row.version ^ job.job.version) & !mask != 0) {
            return Some(Alone::Refused(ShareStatus::BadVersion));
        }
        None
    }

    fn put(&mut self, id: u64, job: &'a JobFacts, row: u32, rows: &[LoggedRow], found: &mut [Found]) {
        // Newest jobs last, and most rows name the newest.
        let at = match self.buckets.iter().rposition(|bucket| bucket.id == id) {
            Some(at) => at,
            None => {
                self.buckets.push(Bucket { id, job, rows: [0; BATCH], count: 0 });
                self.buckets.len() - 1
            }
        };
        let Some(bucket) = self.buckets.get_mut(at) else { return };
        if let Some(slot) = bucket.rows.get_mut(bucket.count) {
            *slot = row;
            bucket.count += 1;
        }
        if bucket.count == BATCH {
            self.hash(at, rows, found);
        }
    }

    /// Hashes what waits in a bucket.
    fn hash(&mut self, at: usize, rows: &[LoggedRow], found: &mut [Found]) {
        let Some(bucket) = self.buckets.get_mut(at).filter(|bucket| bucket.count > 0) else { return };
        let batch = &mut *self.batch;
        for (lane, &index) in bucket.rows[..bucket.count].iter().enumerate() {
            let (Some(row), Some(found)) = (rows.get(index as usize), found.get(index as usize)) else { continue };
            batch.extranonce[lane] = bucket.job.extranonce(found.extranonce1, row.extranonce2);
            batch.version[lane] = found.version;
            batch.ntime[lane] = row.ntime;
            batch.nonce[lane] = row.nonce;
            batch.work[lane] = row.work.max(1);
        }
        batch.count = bucket.count as u32;
        judge(self.portion.isa, bucket.job.table(), batch, &mut self.judged);
        for (lane, &index) in bucket.rows[..bucket.count].iter().enumerate() {
            let Some(found) = found.get_mut(index as usize) else { continue };
            found.share_difficulty = self.judged.difficulty_of(lane);
            // Layout `full`. Zeros: nothing was hashed, or a run of another layout journaled the row.
            let recorded = rows.get(index as usize).map_or(Hash256::default(), |row| row.hash);
            found.other_hash = recorded != Hash256::default() && recorded != self.judged.hash_of(lane);
            found.alone = Alone::Hashed { met: self.judged.share_mask >> lane & 1 == 1, block: self.judged.network_mask >> lane & 1 == 1 };
        }
        bucket.count = 0;
    }
}

fn key_of(row: &LoggedRow, found: &Found) -> Key {
    key(row, found.extranonce1, found.version)
}

/// The second pass: the rows of one shard in order.
fn compare(portion: &Portion<'_>, facts: &Facts, found: &[Found], shard: usize, keys: &mut Shard) -> Report {
    let mut report = Report::default();
    for (index, (row, found)) in portion.rows.iter().zip(found).enumerate() {
        if usize::from(found.shard) != shard {
            continue;
        }
        let place = portion.before + index as u64;
        let verdict = match found.alone {
            Alone::Passed => continue,
            Alone::Remembered => {
                keys.insert(row.job, key_of(row, found));
                continue;
            }
            Alone::Unjudged(reason) => {
                report.rows += 1;
                unjudged(&mut report, reason);
                continue;
            }
            Alone::Unresolved => None,
            Alone::Refused(status) => Some(status),
            Alone::Hashed { met, block } => {
                let key = key_of(row, found);
                if keys.contains(row.job, &key) {
                    Some(ShareStatus::Duplicate)
                } else if met || block {
                    keys.insert(row.job, key);
                    Some(ShareStatus::Accepted)
                } else {
                    Some(ShareStatus::LowDifficulty)
                }
            }
        };
        report.rows += 1;
        let job = facts.job(row.job);
        let original_may_be_gone = || portion.is_damaged || job.is_some_and(|job| job.job.created_us < facts.rows_gone_before_us);
        if row.status == ShareStatus::Duplicate as u8
            && matches!(verdict, Some(ShareStatus::Accepted | ShareStatus::LowDifficulty))
            && original_may_be_gone()
        {
            unjudged(&mut report, Unjudged::OriginalGone);
            continue;
        }
        report.judged += 1;
        if let Some(count) = report.judged_by_status.get_mut(usize::from(row.status)) {
            *count += 1;
        }
        if verdict == Some(ShareStatus::Accepted) && row.status == ShareStatus::Accepted as u8 {
            report.work_credited += u128::from(row.work);
        }
        let block = matches!(found.alone, Alone::Hashed { block: true, .. });
        report.block_candidates += u64::from(block && verdict == Some(ShareStatus::Accepted));
        let kinds = differences(row, found, verdict, block, job);
        let mut first = None;
        for (kind, count) in Kind::ALL.into_iter().zip(&mut report.differences) {
            if kinds & (1 << kind as u8) != 0 {
                *count += 1;
                first = first.or(Some(kind));
            }
        }
        if let Some(kind) = first {
            report.rows_different += 1;
            if report.first.is_none() {
                report.first = Some(tell(place, row, found, verdict, kind, facts));
            }
        }
    }
    report
}

fn unjudged(report: &mut Report, reason: Unjudged) {
    if let Some(count) = report.unjudged.get_mut(reason as usize) {
        *count += 1;
    }
}

/// Bits of `Kind` for everything in which a row differs from its replay.
fn differences(row: &LoggedRow, found: &Found, verdict: Option<ShareStatus>, block: bool, job: Option<&JobFacts>) -> u8 {
    let bit = |kind: Kind, differs: bool| u8::from(differs) << kind as u8;
    let Some(verdict) = verdict else { return bit(Kind::Unresolved, true) };
    if row.status != verdict as u8 {
        return bit(Kind::Status, true);
    }
    let hashed = row.share_difficulty.to_bits() == found.share_difficulty.to_bits();
    let unhashed = row.share_difficulty.to_bits() == 0;
    let difficulty_fits = match verdict {
        ShareStatus::Accepted | ShareStatus::LowDifficulty => hashed,
        // A twin in the same batch is hashed before it is known.
        ShareStatus::Duplicate => hashed || unhashed,
        _ => unhashed,
    };
    let has_flag = row.flags & flags::BLOCK != 0;
    let wants_flag = block && verdict == ShareStatus::Accepted;
    let work_fits = job.is_none_or(|job| (1..=job.network_work).contains(&row.work));
    bit(Kind::ShareDifficulty, !difficulty_fits)
        | bit(Kind::Hash, found.other_hash)
        | bit(Kind::BlockFlag, has_flag != wants_flag)
        | bit(Kind::Work, !work_fits)
}

/// The first difference of a shard in full.
fn tell(place: u64, row: &LoggedRow, found: &Found, verdict: Option<ShareStatus>, kind: Kind, facts: &Facts) -> Difference {
    let label = |status: u8| ShareStatus::from_u8(status).map_or_else(|| status.to_string(), |status| status.label().to_owned());
    let job = facts.job(row.job);
    let mut inputs = BTreeMap::from([
        ("arrival_us", row.arrival_us.to_string()),
        ("worker", format!("{:016x}", row.worker)),
        ("session", format!("{:016x}", row.session)),
        ("job", format!("{:016x}", row.job)),
        ("extranonce1", format!("{:08x}", found.extranonce1)),
        ("extranonce2", format!("{:x}", row.extranonce2)),
        ("ntime", format!("{:08x}", row.ntime)),
        ("nonce", format!("{:08x}", row.nonce)),
        ("version", format!("{:08x}", found.version)),
        ("work", row.work.to_string()),
    ]);
    let mut why = String::new();
    if let Some(job) = job {
        let (least, most) = (job.job.ntime_min, job.job.ntime_max(row.arrival_us));
        inputs.insert("job_version", format!("{:08x}", job.job.version));
        inputs.insert("network_work", job.network_work.to_string());
        inputs.insert("ntime_window", format!("{least:08x}..={most:08x}"));
        if let Some(end_us) = job.end_us {
            inputs.insert("job_end_us", end_us.to_string());
        }
        if matches!(found.alone, Alone::Hashed { .. }) {
            let words =
                scalar::share_hash(job.table(), &job.extranonce(found.extranonce1, row.extranonce2), found.version, row.ntime, row.nonce);
            let mut bytes = [0u8; 32];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
                chunk.copy_from_slice(&word.to_be_bytes());
            }
            inputs.insert("hash", Hash256(bytes).to_string());
            inputs.insert("target", Work::new(row.work).target().to_string());
        }
        why = match verdict {
            Some(ShareStatus::Accepted) => ": the hash meets its target, and no earlier row has the share".to_owned(),
            Some(ShareStatus::LowDifficulty) => ": the hash is over the target of its work".to_owned(),
            Some(ShareStatus::Duplicate) => ": an earlier row has the same share accepted".to_owned(),
            Some(ShareStatus::BadTime) => ": ntime lies outside of the job's window".to_owned(),
            Some(ShareStatus::BadVersion) => ": bits are rolled that the session was not granted".to_owned(),
            Some(ShareStatus::Stale) => ": the job had ended".to_owned(),
            Some(ShareStatus::Unauthorized) => ": the row names no worker".to_owned(),
            _ => String::new(),
        };
    }
    let replay = match (verdict, kind) {
        (None, _) => "no record says what its session or its job is".to_owned(),
        (Some(_), Kind::Work) => "the work is 0, or more than the network's".to_owned(),
        (Some(status), _) => {
            let block = if matches!(found.alone, Alone::Hashed { block: true, .. }) { ", a block candidate" } else { "" };
            format!("{}{why}; share_difficulty {}{block}", status.label(), found.share_difficulty)
        }
    };
    let block = if row.flags & flags::BLOCK != 0 { ", a block candidate" } else { "" };
    Difference {
        segment: segment_text(row),
        row: place,
        seq: row.seq,
        kind,
        log: format!("{}; share_difficulty {}{block}", label(row.status), row.share_difficulty),
        replay,
        inputs,
    }
}
