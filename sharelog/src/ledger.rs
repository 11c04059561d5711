//! The load generator's ledger: what miners sent and were told. Verify holds the log against it.
use crate::error::LogError;
use crate::id_map::IdSet;
use crate::segment::LoggedRow;
use crate::verify::{Report, Resolver};
use otedama_primitives::ShareStatus;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

const FIRST_LINE: &str = "# otedama ledger 1";

/// A row with what its ids resolve to.
pub(crate) struct RowFacts<'a> {
    pub(crate) extranonce1: u32,
    /// None when the job named was unknown.
    pub(crate) wire_id: Option<u32>,
    pub(crate) row: &'a LoggedRow,
    /// False for a row of layout `lean`, which has neither ntime nor version nor extranonce2.
    pub(crate) is_whole: bool,
}

/// Everything that a submit carries, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Share {
    extranonce1: u32,
    wire_id: u32,
    extranonce2: u64,
    ntime: u32,
    nonce: u32,
    version: u32,
    worker: u64,
}

/// What a refusal is matched by. A share refused before its job or worker was known has a row without them, so these are left out for such statuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Refusal {
    /// Judged on all of its fields.
    Whole(Share, ShareStatus),
    /// Refused on the way: job, version and worker may be missing in the row.
    Fields { extranonce1: u32, extranonce2: u64, ntime: u32, nonce: u32, status: ShareStatus },
    /// Some field did not decode.
    Session { extranonce1: u32, status: ShareStatus },
}

/// What a row of layout `lean` tells of an accepted share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct LeanShare {
    extranonce1: u32,
    wire_id: u32,
    nonce: u32,
    worker: u64,
}

impl LeanShare {
    fn of(share: &Share) -> Self {
        Self { extranonce1: share.extranonce1, wire_id: share.wire_id, nonce: share.nonce, worker: share.worker }
    }
}

/// What a row of layout `lean` tells of a refused one.
type LeanRefusal = (u32, u32, ShareStatus);

#[derive(Clone, Copy, Default)]
struct Credits {
    accepted: u32,
    unanswered: u32,
    rows: u32,
}

#[derive(Clone, Copy, Default)]
struct Refusals {
    wanted: u32,
    rows: u32,
}

/// A ledger and the rows counted against it.
pub(crate) struct Ledger {
    credits: HashMap<Share, Credits>,
    refusals: HashMap<Refusal, Refusals>,
    /// Rows of layout `lean`.
    lean_credits: HashMap<LeanShare, u32>,
    lean_refusals: HashMap<LeanRefusal, u32>,
    /// Accepted shares that sums stand for, by worker.
    summed: HashMap<u64, u64>,
    extranonces: IdSet<u32>,
    /// Accepted rows that no entry explains.
    unexplained: Vec<Share>,
    unexplained_rows: u64,
    /// Every session of the log is in the ledger, so that every accepted row must be.
    is_complete: bool,
    /// The same of sessions without rows: a sum does not say whose rows it stands for.
    knows_every_session: bool,
}

fn hex32(text: &str) -> Option<u32> {
    (1..=8).contains(&text.len()).then(|| u32::from_str_radix(text, 16).ok()).flatten().filter(|_| !text.starts_with('+'))
}

/// The job behind a name: 8 digits, and 2 more where it was sent again, at another difficulty, under a name and an ntime of its own.
fn job_name(text: &str) -> Option<u32> {
    match text.len() {
        10 => {
            text.get(..8).filter(|_| text.get(8..).is_some_and(|sending| hex32(sending).is_some_and(|sending| sending > 0))).and_then(hex32)
        }
        _ => hex32(text),
    }
}

fn hex64(text: &str) -> Option<u64> {
    (1..=16).contains(&text.len()).then(|| u64::from_str_radix(text, 16).ok()).flatten().filter(|_| !text.starts_with('+'))
}

fn refusal(share: &Share, status: ShareStatus) -> Refusal {
    let Share { extranonce1, extranonce2, ntime, nonce, .. } = *share;
    match status {
        ShareStatus::Accepted | ShareStatus::Duplicate | ShareStatus::LowDifficulty | ShareStatus::BadTime => {
            Refusal::Whole(*share, status)
        }
        ShareStatus::Stale | ShareStatus::Unauthorized | ShareStatus::BadVersion | ShareStatus::Overload => {
            Refusal::Fields { extranonce1, extranonce2, ntime, nonce, status }
        }
        ShareStatus::Malformed => Refusal::Session { extranonce1, status },
    }
}

impl Ledger {
    /// Reads a ledger. Lines that do not parse are problems; a last line without its end is what a killed writer leaves and is skipped.
    pub(crate) fn read(path: &Path, resolver: &Resolver, report: &mut Report) -> Result<Self, LogError> {
        let file = std::fs::File::open(path).map_err(LogError::io("open", path))?;
        let mut ledger = Self {
            credits: HashMap::new(),
            refusals: HashMap::new(),
            lean_credits: HashMap::new(),
            lean_refusals: HashMap::new(),
            summed: HashMap::new(),
            extranonces: IdSet::default(),
            unexplained: Vec::new(),
            unexplained_rows: 0,
            is_complete: true,
            knows_every_session: false,
        };
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = Vec::new();
        let mut number = 0u64;
        loop {
            line.clear();
            number += 1;
            if reader.read_until(b'\n', &mut line).map_err(LogError::io("read", path))? == 0 || line.last() != Some(&b'\n') {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if number == 1 && text != FIRST_LINE {
                report.problem(format!("the ledger does not start with {FIRST_LINE:?}"));
            }
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if ledger.entry(text, resolver).is_none() {
                report.problem(format!("line {number} of the ledger does not parse: {text:?}"));
            }
        }
        ledger.knows_every_session = resolver.sessions.values().all(|extranonce1| ledger.extranonces.contains(extranonce1));
        Ok(ledger)
    }

    /// `extranonce1 worker job extranonce2 ntime nonce version verdict`; the worker's name may hold blanks.
    fn entry(&mut self, text: &str, resolver: &Resolver) -> Option<()> {
        let (extranonce1, rest) = text.split_once(' ')?;
        let mut fields = rest.rsplitn(7, ' ');
        let verdict = fields.next()?;
        let version = hex32(fields.next()?);
        let nonce = hex32(fields.next()?);
        let ntime = hex32(fields.next()?);
        let extranonce2 = hex64(fields.next()?);
        let wire_id = job_name(fields.next()?);
        let worker = fields.next()?.trim();
        let extranonce1 = hex32(extranonce1)?;
        self.extranonces.insert(extranonce1);
        let worker = resolver.worker_ids.get(worker).copied().unwrap_or(0);
        let share = || {
            Some(Share {
                extranonce1,
                wire_id: wire_id?,
                extranonce2: extranonce2?,
                ntime: ntime?,
                nonce: nonce?,
                version: version?,
                worker,
            })
        };
        if verdict == "unanswered" {
            if let Some(share) = share() {
                self.credits.entry(share).or_default().unanswered += 1;
            }
            return Some(());
        }
        match (ShareStatus::from_label(verdict)?, share()) {
            (ShareStatus::Accepted, share) => self.credits.entry(share?).or_default().accepted += 1,
            // What is refused because the log is full is the one refusal that it cannot hold.
            (ShareStatus::Overload, _) => {}
            (status, Some(share)) => self.refusals.entry(refusal(&share, status)).or_default().wanted += 1,
            (status, None) => self.refusals.entry(Refusal::Session { extranonce1, status }).or_default().wanted += 1,
        }
        Some(())
    }

    pub(crate) fn row(&mut self, facts: &RowFacts<'_>) {
        let row = facts.row;
        if !self.extranonces.contains(&facts.extranonce1) {
            self.is_complete = false;
            return;
        }
        let share = Share {
            extranonce1: facts.extranonce1,
            wire_id: facts.wire_id.unwrap_or(0),
            extranonce2: row.extranonce2,
            ntime: row.ntime,
            nonce: row.nonce,
            version: row.version,
            worker: row.worker,
        };
        let Some(status) = ShareStatus::from_u8(row.status) else { return };
        if !facts.is_whole {
            if status == ShareStatus::Accepted {
                *self.lean_credits.entry(LeanShare::of(&share)).or_default() += 1;
                return;
            }
            *self.lean_refusals.entry((facts.extranonce1, row.nonce, status)).or_default() += 1;
        }
        if status == ShareStatus::Accepted {
            match self.credits.get_mut(&share) {
                Some(credits) => credits.rows += 1,
                None => {
                    self.unexplained_rows += 1;
                    if self.unexplained.len() < 100 {
                        self.unexplained.push(share);
                    }
                }
            }
            return;
        }
        // A malformed share is matched by its session alone.
        if (facts.is_whole || status == ShareStatus::Malformed)
            && let Some(refusals) = self.refusals.get_mut(&refusal(&share, status))
        {
            refusals.rows += 1;
        }
        // Entries with a field that did not decode are counted per session, whatever the row has.
        let by_session = Refusal::Session { extranonce1: facts.extranonce1, status };
        if status != ShareStatus::Malformed
            && let Some(refusals) = self.refusals.get_mut(&by_session)
        {
            refusals.rows += 1;
        }
    }

    /// A sum of layout `rollup`.
    pub(crate) fn sum(&mut self, row: &LoggedRow) {
        *self.summed.entry(row.worker).or_default() += u64::from(row.share_count);
    }

    /// Finds the rows of what the whole rows left over: first in lean rows, by the fields that these have, then in sums, by worker. Gives what nothing accounts for.
    fn settle(&mut self, report: &mut Report) -> Vec<Share> {
        let mut missing = Vec::new();
        let mut by_worker: HashMap<u64, (Vec<Share>, u64)> = HashMap::new();
        let mut left_over: Vec<(Share, bool)> = self
            .credits
            .iter()
            .filter(|(_, credits)| credits.rows == 0)
            .flat_map(|(share, credits)| [(*share, true, credits.accepted), (*share, false, credits.unanswered)])
            .filter(|(_, _, wanted)| *wanted > 0)
            .map(|(share, must, _)| (share, must))
            .collect();
        // What must be there takes its rows before what may be there.
        left_over.sort_by_key(|(_, must)| !must);
        for (share, must) in left_over {
            match self.lean_credits.get_mut(&LeanShare::of(&share)).filter(|rows| **rows > 0) {
                Some(rows) => *rows -= 1,
                None => {
                    let (wanted, possible) = by_worker.entry(share.worker).or_default();
                    if must { wanted.push(share) } else { *possible += 1 }
                }
            }
        }
        for (share, rows) in self.lean_credits.iter().filter(|(_, rows)| **rows > 0) {
            self.unexplained_rows += u64::from(*rows);
            let LeanShare { extranonce1, wire_id, nonce, worker } = *share;
            self.unexplained.push(Share { extranonce1, wire_id, extranonce2: 0, ntime: 0, nonce, version: 0, worker });
        }
        for (worker, (wanted, possible)) in by_worker {
            let summed = self.summed.remove(&worker).unwrap_or_default();
            if summed < wanted.len() as u64 {
                if summed > 0 {
                    report.problem(format!(
                        "missing: of worker {worker:016x} the ledger has {} accepted shares without a row of their own, the log's sums stand for {summed}",
                        wanted.len()
                    ));
                } else {
                    missing.extend(wanted);
                }
            } else if summed > wanted.len() as u64 + possible && self.knows_every_session {
                report.problem(format!(
                    "of worker {worker:016x} the log's sums stand for {summed} accepted shares, the ledger has {} without a row of their own and {possible} unanswered",
                    wanted.len()
                ));
            }
        }
        for (worker, summed) in self.summed.iter().filter(|_| self.knows_every_session) {
            report.problem(format!(
                "of worker {worker:016x} the log's sums stand for {summed} accepted shares that the ledger does not know"
            ));
        }
        for (refusal, refusals) in self.refusals.iter_mut().filter(|(_, refusals)| refusals.rows < refusals.wanted) {
            let key = match *refusal {
                Refusal::Whole(Share { extranonce1, nonce, .. }, status) | Refusal::Fields { extranonce1, nonce, status, .. } => {
                    (extranonce1, nonce, status)
                }
                Refusal::Session { .. } => continue,
            };
            if let Some(rows) = self.lean_refusals.get_mut(&key) {
                let taken = (*rows).min(refusals.wanted - refusals.rows);
                *rows -= taken;
                refusals.rows += taken;
            }
        }
        missing
    }

    pub(crate) fn judge(mut self, report: &mut Report) {
        let told = |share: &Share| {
            format!(
                "extranonce1 {:08x} job {:08x} extranonce2 {:x} ntime {:08x} nonce {:08x} version {:08x} worker {:016x}",
                share.extranonce1, share.wire_id, share.extranonce2, share.ntime, share.nonce, share.version, share.worker
            )
        };
        for share in self.settle(report) {
            report.problem(format!("missing: the ledger has a share accepted, the log has no row: {}", told(&share)));
        }
        for (share, credits) in &self.credits {
            if credits.accepted > 1 {
                report.problem(format!("the ledger has one share accepted {} times: {}", credits.accepted, told(share)));
            }
            if credits.rows > 1 {
                report.problem(format!("doubled: {} accepted rows of one share: {}", credits.rows, told(share)));
            }
        }
        for (refusal, refusals) in self.refusals.iter().filter(|(_, refusals)| refusals.rows < refusals.wanted) {
            report.problem(format!("the ledger has {} refusals where the log has {} rows: {refusal:?}", refusals.wanted, refusals.rows));
        }
        if self.is_complete && self.unexplained_rows > 0 {
            for share in &self.unexplained {
                report.problem(format!("the log has an accepted row that the ledger does not know: {}", told(share)));
            }
            let more = self.unexplained_rows - self.unexplained.len() as u64;
            if more > 0 {
                report.problem(format!("{more} more accepted rows that the ledger does not know"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_sent_again_is_the_job() {
        assert_eq!(
            (job_name("edaf445d"), job_name("edaf445d01"), job_name("edaf445dff")),
            (Some(0xedaf_445d), Some(0xedaf_445d), Some(0xedaf_445d))
        );
        assert_eq!(job_name("1f"), Some(0x1f), "other servers' ids may be short");
        for wrong in ["", "-", "edaf445d00", "edaf445d1", "edaf445d+1", "edaf445dxy", "edaf445d010", "+daf445d01", "edaf44\u{e9}01"] {
            assert_eq!(job_name(wrong), None, "{wrong}");
        }
    }
}
