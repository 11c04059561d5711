//! What replay found, as people and scripts read it.
use otedama_primitives::ShareStatus;
use otedama_sharelog::{LoggedRow, segment_name};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What differs between a row and its replay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The verdict.
    Status,
    /// The flag of a block candidate.
    BlockFlag,
    /// The difficulty of the hash.
    ShareDifficulty,
    /// The hash itself, in layout `full`.
    Hash,
    /// The work: 0, or more than the network's.
    Work,
    /// No record says what the row's session or job is.
    Unresolved,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Status, Self::BlockFlag, Self::ShareDifficulty, Self::Hash, Self::Work, Self::Unresolved];

    /// Name in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::BlockFlag => "block_flag",
            Self::ShareDifficulty => "share_difficulty",
            Self::Hash => "hash",
            Self::Work => "work",
            Self::Unresolved => "unresolved",
        }
    }
}

/// Why a row cannot be judged again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unjudged {
    /// Malformed: what was sent did not decode, so the row does not have it.
    Malformed,
    /// Unauthorized: which workers a connection had at a moment is in no record.
    Unauthorized,
    /// Overload: it hangs on how full the server was.
    Overload,
    /// Stale, and the job that the miner named was unknown.
    StaleJobUnknown,
    /// Stale, and the end of its job is in no record: the run was killed, or the job lives.
    StaleEndUnrecorded,
    /// Bad version in a log whose records do not say which bits a session might roll.
    MaskUnrecorded,
    /// Duplicate, and the row of its original may be among those that retention removed or that are damaged.
    OriginalGone,
    /// A status that this release does not know.
    StatusUnknown,
    /// The layout of its segment does not keep what it was judged from: a lean row, or a sum.
    NotKept,
}

impl Unjudged {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Unauthorized,
        Self::Overload,
        Self::StaleJobUnknown,
        Self::StaleEndUnrecorded,
        Self::MaskUnrecorded,
        Self::OriginalGone,
        Self::StatusUnknown,
        Self::NotKept,
    ];

    /// Name in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::Overload => "overload",
            Self::StaleJobUnknown => "stale_job_unknown",
            Self::StaleEndUnrecorded => "stale_end_unrecorded",
            Self::MaskUnrecorded => "version_mask_unrecorded",
            Self::OriginalGone => "original_gone",
            Self::StatusUnknown => "status_unknown",
            Self::NotKept => "not_kept",
        }
    }
}

/// The first row whose replay differs.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Difference {
    /// Its segment, or `unsealed`.
    pub segment: String,
    /// Row of all rows replayed, from 0.
    pub row: u64,
    /// Its place in the segment, or in its journal file while unsealed.
    pub seq: u32,
    /// What differs.
    pub kind: Kind,
    /// What the log says.
    pub log: String,
    /// What replay says, and why.
    pub replay: String,
    /// What both were judged from.
    pub inputs: BTreeMap<&'static str, String>,
}

/// What replay found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Segments that rows came from.
    pub segments: u64,
    /// Rows of the range.
    pub rows: u64,
    /// Rows that were judged again.
    pub judged: u64,
    /// Those by the status that the log has.
    #[serde(serialize_with = "by_status")]
    pub judged_by_status: [u64; 9],
    /// Rows that were not, by reason.
    #[serde(serialize_with = "by_reason")]
    pub unjudged: [u64; Unjudged::ALL.len()],
    /// Work of accepted rows whose replay accepts them too, in expected hashes.
    #[serde(serialize_with = "as_text")]
    pub work_credited: u128,
    /// Hashes of the rows that are at or under the network target.
    pub block_candidates: u64,
    /// Rows whose replay differs.
    pub rows_different: u64,
    /// Differences by kind; a row can have several.
    #[serde(serialize_with = "by_kind")]
    pub differences: [u64; Kind::ALL.len()],
    /// The first of them.
    pub first: Option<Difference>,
    /// What kept rows or records from being read: a sentence each.
    pub problems: Vec<String>,
    #[serde(skip)]
    last_segment: Option<u64>,
}

fn by_status<S: Serializer>(counts: &[u64; 9], serializer: S) -> Result<S::Ok, S::Error> {
    serializer
        .collect_map(ShareStatus::ALL.into_iter().zip(counts).filter(|(_, rows)| **rows > 0).map(|(status, rows)| (status.label(), rows)))
}

fn by_reason<S: Serializer>(counts: &[u64; Unjudged::ALL.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer
        .collect_map(Unjudged::ALL.into_iter().zip(counts).filter(|(_, rows)| **rows > 0).map(|(reason, rows)| (reason.label(), rows)))
}

fn by_kind<S: Serializer>(counts: &[u64; Kind::ALL.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Kind::ALL.into_iter().zip(counts).filter(|(_, rows)| **rows > 0).map(|(kind, rows)| (kind.label(), rows)))
}

/// Decimal text: sums of work pass 2^53 soon and 2^64 later.
fn as_text<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// Name of the place of a row.
pub(crate) fn segment_text(row: &LoggedRow) -> String {
    if row.seg == 0 { "unsealed".into() } else { segment_name(row.seg) }
}

impl Report {
    /// True when every row that can be judged again came out as the log has it, and all of them could be read.
    pub fn is_identical(&self) -> bool {
        self.rows_different == 0 && self.problems.is_empty()
    }

    /// Rows that could not be judged again.
    pub fn unjudged_rows(&self) -> u64 {
        self.unjudged.iter().sum()
    }

    pub(crate) fn segments_seen(&mut self, rows: &[LoggedRow]) {
        for row in rows.iter().filter(|row| row.seg != 0) {
            if self.last_segment != Some(row.seg) {
                self.last_segment = Some(row.seg);
                self.segments += 1;
            }
        }
    }

    /// Adds what a thread found in a part of the rows.
    pub(crate) fn add(&mut self, part: Self) {
        self.rows += part.rows;
        self.judged += part.judged;
        self.work_credited += part.work_credited;
        self.block_candidates += part.block_candidates;
        self.rows_different += part.rows_different;
        let pairs = |into: &mut [u64], from: &[u64]| into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
        pairs(&mut self.judged_by_status, &part.judged_by_status);
        pairs(&mut self.unjudged, &part.unjudged);
        pairs(&mut self.differences, &part.differences);
        if let Some(found) = part.first
            && self.first.as_ref().is_none_or(|first| found.row < first.row)
        {
            self.first = Some(found);
        }
    }

    /// As people read it.
    pub fn to_text(&self) -> String {
        let mut text =
            format!("segments {}, rows {}, judged again {}, not judged {}\n", self.segments, self.rows, self.judged, self.unjudged_rows());
        // Writing into a String does not fail.
        for (status, rows) in ShareStatus::ALL.iter().zip(self.judged_by_status).filter(|(_, rows)| *rows > 0) {
            let _ = writeln!(text, "  {:<24} {rows}", status.label());
        }
        for (reason, rows) in Unjudged::ALL.iter().zip(self.unjudged).filter(|(_, rows)| *rows > 0) {
            let _ = writeln!(text, "  not judged: {:<12} {rows}", reason.label());
        }
        let _ = writeln!(text, "work credited {}, block candidates {}", self.work_credited, self.block_candidates);
        for problem in &self.problems {
            let _ = writeln!(text, "problem: {problem}");
        }
        for (kind, rows) in Kind::ALL.iter().zip(self.differences).filter(|(_, rows)| *rows > 0) {
            let _ = writeln!(text, "different: {:<13} {rows}", kind.label());
        }
        if let Some(first) = &self.first {
            let _ = writeln!(
                text,
                "first difference: segment {} seq {} (row {} of all), {}\n  log:    {}\n  replay: {}",
                first.segment,
                first.seq,
                first.row,
                first.kind.label(),
                first.log,
                first.replay
            );
            for (name, value) in &first.inputs {
                let _ = writeln!(text, "  {name:<18} {value}");
            }
        }
        text.push_str(if self.is_identical() { "identical\n" } else { "NOT identical\n" });
        text
    }
}
