//! Every row of a log in order of arrival: sealed segments, then what is committed in the journal but not sealed. No lock; a log in use is read as of now.
use crate::dimensions::DimensionReader;
use crate::error::LogError;
use crate::journal_scan::read_journals;
use crate::records::{self, DimensionEntry};
use crate::segment::{LoggedRow, SegmentBlock, SegmentMeta};
use crate::store::{DamagedMeta, Readable, SegmentStore};
use otedama_primitives::ShareStatus;
use std::collections::VecDeque;
use std::path::Path;

/// What is wrong with a segment whose rows cannot be put in order.
pub(crate) const SEQ_DAMAGED: &str = "the seq of its rows are not 0, 1, 2 and so on, each once";
/// Rows decoded at a time.
const CHUNK_ROWS: usize = 4096;

/// Which rows are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Arrival at or after, microseconds since the epoch.
    pub since_us: Option<u64>,
    /// Arrival before, microseconds since the epoch.
    pub until_us: Option<u64>,
    /// This status only.
    pub status: Option<ShareStatus>,
}

impl Filter {
    /// True for a row that is wanted.
    #[inline]
    pub fn takes(&self, row: &LoggedRow) -> bool {
        self.takes_time(row.arrival_us) && self.status.is_none_or(|status| row.status == status as u8)
    }

    /// True for a moment that is wanted, microseconds since the epoch.
    #[inline]
    pub(crate) fn takes_time(&self, arrival_us: u64) -> bool {
        self.since_us.is_none_or(|since| arrival_us >= since) && self.until_us.is_none_or(|until| arrival_us < until)
    }

    /// True when every row of the segment arrived at a moment that is wanted.
    pub(crate) fn takes_every_time(&self, meta: &SegmentMeta) -> bool {
        self.takes_time(meta.first_us) && self.takes_time(meta.last_us)
    }

    /// False when no row of the segment can be wanted.
    pub fn may_take(&self, meta: &SegmentMeta) -> bool {
        self.since_us.is_none_or(|since| meta.last_us >= since)
            && self.until_us.is_none_or(|until| meta.first_us < until)
            && self.status.is_none_or(|status| meta.by_status.get(status as usize).is_none_or(|&rows| rows > 0))
    }

    /// False when no row of a segment whose meta is damaged can be wanted, as far as its neighbours tell.
    pub(crate) fn may_take_damaged(&self, damaged: &DamagedMeta) -> bool {
        self.since_us.is_none_or(|since| damaged.until_us >= since) && self.until_us.is_none_or(|until| damaged.since_us < until)
    }
}

/// Rows of a log; see `rows`.
pub struct Rows {
    store: SegmentStore,
    filter: Filter,
    /// Segments that are left out, told first.
    damaged: VecDeque<LogError>,
    metas: VecDeque<SegmentMeta>,
    unsealed: VecDeque<LoggedRow>,
    bytes: Vec<u8>,
    /// Places of the rows in `bytes`, by arrival.
    arrivals: Vec<u32>,
    next_row: usize,
    chunk: VecDeque<LoggedRow>,
}

/// The rows of the log in `dir` that `filter` takes. A segment with a damaged block or meta gives one error and is left out; the scan goes on behind it.
pub fn rows(dir: &Path, filter: Filter) -> Result<Rows, LogError> {
    let Snapshot { readable: Readable { metas, damaged }, unsealed } = snapshot(dir)?;
    Ok(Rows {
        store: SegmentStore::open(dir)?,
        filter,
        damaged: damaged.into_iter().filter(|damaged| filter.may_take_damaged(damaged)).map(|damaged| damaged.error).collect(),
        metas: metas.into_iter().filter(|meta| filter.may_take(meta)).collect(),
        unsealed: unsealed.into_iter().filter(|row| filter.takes(row)).collect(),
        bytes: Vec::new(),
        arrivals: Vec::new(),
        next_row: 0,
        chunk: VecDeque::new(),
    })
}

/// A log as of one moment.
pub(crate) struct Snapshot {
    pub(crate) readable: Readable,
    /// The journal's rows that no segment covers.
    pub(crate) unsealed: Vec<LoggedRow>,
}

/// Segments, and the journal's rows that they do not cover. The journal is read first: a row sealed in between is then in both and dropped from the journal's side.
pub(crate) fn snapshot(dir: &Path) -> Result<Snapshot, LogError> {
    let store = SegmentStore::open(dir)?;
    let covered = |readable: &Readable| readable.metas.last().map_or(0, SegmentMeta::journal_end);
    let journals = read_journals(dir, covered(&store.readable()?))?;
    let readable = store.readable()?;
    let covered = covered(&readable);
    let unsealed =
        journals.into_iter().flat_map(|scan| scan.rows).filter(|(sequence, _)| *sequence >= covered).map(|(_, row)| row).collect();
    Ok(Snapshot { readable, unsealed })
}

/// Gives every dimension record of the log in `dir` to `take`, sealed or not; one that stands in journal and dimension log comes twice. Returns a sentence for each
/// piece of damage. To resolve rows of a log in use, read the rows first: what names them only grows.
pub fn records(dir: &Path, mut take: impl FnMut(DimensionEntry)) -> Result<Vec<String>, LogError> {
    let mut damage = Vec::new();
    for scan in read_journals(dir, u64::MAX)? {
        let Some(header) = scan.header else { continue };
        for dimension in &scan.dimensions {
            match records::of_dimension(header.run_prefix, dimension) {
                Some(entry) => take(entry),
                None => damage.push(format!("{}: a dimension record of kind {} does not decode", scan.path.display(), dimension.kind)),
            }
        }
    }
    for entry in DimensionReader::from(dir, 0)? {
        match entry {
            Ok((_, entry)) => take(entry),
            Err(error @ LogError::Damaged { .. }) => damage.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(damage)
}

impl Rows {
    fn fill(&mut self) -> Result<bool, LogError> {
        if let Some(error) = self.damaged.pop_front() {
            return Err(error);
        }
        loop {
            let rest = self.arrivals.get(self.next_row..).unwrap_or_default();
            if !rest.is_empty() {
                // Taking the columns apart costs some hundred nanoseconds, once per chunk.
                if let Ok(block) = SegmentBlock::parse(&self.bytes) {
                    let filter = self.filter;
                    let places = rest.iter().take(CHUNK_ROWS);
                    self.chunk.extend(places.map(|&place| block.row(place as usize)).filter(|row| filter.takes(row)));
                }
                self.next_row += CHUNK_ROWS;
                if !self.chunk.is_empty() {
                    return Ok(true);
                }
                continue;
            }
            let Some(meta) = self.metas.pop_front() else { return Ok(false) };
            self.arrivals.clear();
            self.next_row = 0;
            if self.store.read_native(&meta, &mut self.bytes)? {
                let block = SegmentBlock::parse(&self.bytes).map_err(|what| LogError::damaged(&self.store.native_path(&meta), what))?;
                if !block.arrivals(&mut self.arrivals) {
                    self.arrivals.clear();
                    return Err(LogError::damaged(&self.store.native_path(&meta), SEQ_DAMAGED));
                }
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<LoggedRow, LogError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(row) = self.chunk.pop_front() {
            return Some(Ok(row));
        }
        match self.fill() {
            Ok(true) => self.chunk.pop_front().map(Ok),
            Ok(false) => self.unsealed.pop_front().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }
}
