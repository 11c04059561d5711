//! A sealed segment: `NAME.native` is exactly one ClickHouse Native block, `NAME.meta` says what stands in it and which part of the journal it covers.
use crate::journal_format::row_sequence;
use crate::layout::{COLUMNS, Layout};
use otedama_primitives::{Hash256, ShareRow};
use serde::{Deserialize, Serialize};

/// Most rows of a segment: one insert, one block, one part on the server.
pub const SEGMENT_ROWS_MAX: u32 = 524_288;

/// One row with full ids, as it stands in ClickHouse. What its segment's layout has not is zero.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct LoggedRow {
    /// `[pool] instance` of the run.
    pub instance: u16,
    /// Segment: directory epoch << 32 | sequence; 0 while the row is unsealed.
    pub seg: u64,
    /// Place by arrival in the segment; while unsealed, in the journal file.
    pub seq: u32,
    /// Arrival, microseconds since the epoch: columns `time` and `us`.
    pub arrival_us: u64,
    /// Full session number; 0 in a sum.
    pub session: u64,
    /// Worker identity; 0 when unauthorized.
    pub worker: u64,
    /// Full job number; 0 when the job named was unknown.
    pub job: u64,
    /// Number of the `Coin`.
    pub coin: u8,
    /// Number of the `ShareStatus`.
    pub status: u8,
    /// Bits of `flags`.
    pub flags: u8,
    /// Work it was judged at.
    pub work: u64,
    /// Difficulty of the hash.
    pub share_difficulty: f32,
    /// Header nonce.
    pub nonce: u32,
    /// Header time.
    pub ntime: u32,
    /// Header version as hashed.
    pub version: u32,
    /// As a big-endian number of its wire bytes.
    pub extranonce2: u64,
    /// Bytes read to append; the mean of a sum.
    pub latency_us: u32,
    /// Shares that the row stands for: 1, or more in a sum of layout `rollup`.
    pub share_count: u32,
    /// Hash of the header; zeros where nothing was hashed, and in every layout but `full`.
    pub hash: Hash256,
    /// Layout of its segment; while unsealed the default, as a row has all but perhaps the hash then.
    pub layout: Layout,
}

impl LoggedRow {
    /// True for a row that stands for accepted shares of one worker and second.
    #[inline]
    pub fn is_sum(&self) -> bool {
        self.layout == Layout::Rollup && self.session == 0
    }

    /// The full row of a journal row.
    pub(crate) fn expand(row: &ShareRow, hash: Hash256, run_prefix: u32, sequence: u32) -> Self {
        Self {
            instance: (run_prefix >> 24) as u16,
            seg: 0,
            seq: sequence,
            arrival_us: row.arrival_us,
            session: full_id(run_prefix, row.session),
            worker: row.worker,
            job: full_id(run_prefix, row.job),
            coin: row.coin,
            status: row.status,
            flags: row.flags,
            work: row.work,
            share_difficulty: row.share_difficulty,
            nonce: row.nonce,
            ntime: row.ntime,
            version: row.version,
            extranonce2: row.extranonce2,
            latency_us: row.latency_us,
            share_count: 1,
            hash,
            layout: Layout::default(),
        }
    }
}

/// Counter 0 is "none" and stays 0 in full.
#[inline]
pub(crate) fn full_id(run_prefix: u32, counter: u32) -> u64 {
    if counter == 0 { 0 } else { (u64::from(run_prefix) << 32) | u64::from(counter) }
}

/// Days since the epoch: the partition of a row.
#[inline]
pub(crate) fn utc_day(arrival_us: u64) -> u64 {
    arrival_us / 86_400_000_000
}

/// A part of one journal file: rows `first..end`, by index in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JournalRange {
    /// Number of the journal file.
    pub file: u32,
    /// First row.
    pub first: u32,
    /// Behind the last row.
    pub end: u32,
    /// Cell behind the batch of the last row.
    pub cell: u32,
}

#[inline]
pub(crate) fn reversed(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes.reverse();
    bytes
}

/// `{epoch:08x}-{sequence:08x}`.
pub fn segment_name(seg: u64) -> String {
    format!("{:08x}-{:08x}", seg >> 32, seg & 0xffff_ffff)
}

/// The segment number in a name without extension.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let (epoch, sequence) = name.split_once('-')?;
    let number = |text: &str| (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok()).flatten();
    let seg = (u64::from(number(epoch)?) << 32) | u64::from(number(sequence)?);
    (segment_name(seg) == name).then_some(seg)
}

/// What `NAME.meta` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentMeta {
    /// Name without extension.
    pub name: String,
    /// Directory epoch << 32 | sequence.
    pub seg: u64,
    /// What its rows keep.
    pub layout: Layout,
    /// Rows, 1 to `SEGMENT_ROWS_MAX`.
    pub rows: u32,
    /// Shares by status number: rows, but for sums.
    pub by_status: [u64; 9],
    /// Sum of `work` over all rows.
    pub work_sum: u128,
    /// Sum of `work` over accepted rows.
    pub work_credited: u128,
    /// Arrival of the first row, microseconds since the epoch.
    pub first_us: u64,
    /// Arrival of the last row.
    pub last_us: u64,
    /// Size of the `.native` file.
    pub native_bytes: u64,
    /// crc32c of the `.native` file.
    pub crc32c: u32,
    /// XXH64 of the `.native` file: the last part of the deduplication token.
    pub content_hash: u64,
    /// Offset in `dimensions.log` up to which entries must be shipped before this segment.
    pub dimensions_end: u64,
    /// Instance << 24 | boot epoch of the run whose rows these are.
    pub run_prefix: u32,
    /// Which parts of the journal are covered, in order.
    pub journal: Vec<JournalRange>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaText {
    version: u32,
    seg: u64,
    /// Missing in segments of earlier releases, which knew one layout.
    #[serde(default, skip_serializing_if = "Layout::is_replayable")]
    layout: Layout,
    rows: u32,
    by_status: [u64; 9],
    /// Decimal text: beyond what JSON readers keep exact.
    work_sum: String,
    work_credited: String,
    first_us: u64,
    last_us: u64,
    native_bytes: u64,
    crc32c: u32,
    content_hash: String,
    dimensions_end: u64,
    run_prefix: u32,
    journal: Vec<JournalRange>,
}

impl SegmentMeta {
    /// Position of the segment in the folder, from 1.
    pub fn sequence(&self) -> u32 {
        self.seg as u32
    }

    /// Shares that the rows stand for.
    pub fn shares(&self) -> u64 {
        self.by_status.iter().sum()
    }

    /// Behind the last journal row covered: journal file << 32 | row.
    pub fn journal_end(&self) -> u64 {
        self.journal.last().map_or(0, |range| row_sequence(range.file, range.end))
    }

    /// The text of the file: one line of JSON, one line with its crc32c.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = MetaText {
            version: if self.layout.is_replayable() { 1 } else { 2 },
            seg: self.seg,
            layout: self.layout,
            rows: self.rows,
            by_status: self.by_status,
            work_sum: self.work_sum.to_string(),
            work_credited: self.work_credited.to_string(),
            first_us: self.first_us,
            last_us: self.last_us,
            native_bytes: self.native_bytes,
            crc32c: self.crc32c,
            content_hash: format!("{:016x}", self.content_hash),
            dimensions_end: self.dimensions_end,
            run_prefix: self.run_prefix,
            journal: self.journal.clone(),
        };
        let mut bytes = serde_json::to_vec(&text).unwrap_or_default();
        bytes.push(b'\n');
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
        bytes
    }

    /// Reads the text of a file named `name`; the error is what is wrong with it.
    pub(crate) fn decode(name: &str, bytes: &[u8]) -> Result<Self, String> {
        let split = bytes.len().checked_sub("crc32c 00000000\n".len()).ok_or("it is shorter than a meta")?;
        let (json, line) = bytes.split_at(split);
        if line != format!("crc32c {:08x}\n", crc32c::crc32c(json)).as_bytes() {
            return Err("its crc does not match".into());
        }
        let text: MetaText = serde_json::from_slice(json).map_err(|error| format!("it does not parse: {error}"))?;
        let meta = Self {
            name: segment_name(text.seg),
            seg: text.seg,
            layout: text.layout,
            rows: text.rows,
            by_status: text.by_status,
            work_sum: text.work_sum.parse().map_err(|_| "work_sum is no number")?,
            work_credited: text.work_credited.parse().map_err(|_| "work_credited is no number")?,
            first_us: text.first_us,
            last_us: text.last_us,
            native_bytes: text.native_bytes,
            crc32c: text.crc32c,
            content_hash: u64::from_str_radix(&text.content_hash, 16).map_err(|_| "content_hash is no number")?,
            dimensions_end: text.dimensions_end,
            run_prefix: text.run_prefix,
            journal: text.journal,
        };
        if !(1..=2).contains(&text.version) {
            return Err(format!("meta version {} is of another release", text.version));
        }
        if meta.name != name {
            return Err(format!("it describes segment {}", meta.name));
        }
        if meta.journal.iter().any(|range| range.end < range.first) {
            return Err("a journal range ends before it starts".into());
        }
        Ok(meta)
    }
}

/// A decoded block: the columns as they lie in the bytes of the file.
pub struct SegmentBlock<'a> {
    rows: usize,
    layout: Layout,
    /// As in `COLUMNS`; empty where the layout has none.
    columns: [&'a [u8]; COLUMNS.len()],
}

impl<'a> SegmentBlock<'a> {
    /// Takes a `.native` file apart. The error says what does not fit: column order, names and types are exactly those of one layout.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut rest = bytes;
        let columns_here = take_varint(&mut rest).ok_or("no column count")?;
        let rows = take_varint(&mut rest).ok_or("no row count")?;
        if rows == 0 || rows > u64::from(SEGMENT_ROWS_MAX) {
            return Err(format!("{rows} rows"));
        }
        let mut outcome = Err(format!("{columns_here} columns, as no layout has"));
        for layout in Layout::ALL.into_iter().filter(|layout| layout.columns().len() as u64 == columns_here) {
            outcome = Self::parse_as(layout, rows as usize, rest);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn parse_as(layout: Layout, rows: usize, mut rest: &'a [u8]) -> Result<Self, String> {
        let mut columns = [&[][..]; COLUMNS.len()];
        for &index in layout.columns() {
            let Some((slot, (name, kind, width))) = columns.get_mut(index).zip(COLUMNS.get(index)) else { continue };
            for wanted in [name, kind] {
                let text = take_text(&mut rest).ok_or_else(|| format!("the header of column {name} is cut"))?;
                if text != wanted.as_bytes() {
                    return Err(format!("{:?} where {wanted:?} was expected", String::from_utf8_lossy(text)));
                }
            }
            let (column, behind) = rest.split_at_checked(rows * width).ok_or_else(|| format!("column {name} is cut"))?;
            *slot = column;
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(format!("{} bytes behind the block", rest.len()));
        }
        Ok(Self { rows, layout, columns })
    }

    /// What its rows keep.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows of the block.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Where its rows lie by arrival: the `i`-th that arrived at `into[i]`. Rows lie by worker, their `seq` counts arrivals; false where one does not, which is damage, and
    /// they are given as they lie.
    pub fn arrivals(&self, into: &mut Vec<u32>) -> bool {
        const NONE: u32 = u32::MAX;
        into.clear();
        into.resize(self.rows, NONE);
        for row in 0..self.rows {
            match into.get_mut(u32::from_le_bytes(self.get(2, row)) as usize) {
                Some(place) if *place == NONE => *place = row as u32,
                _ => {
                    into.clear();
                    into.extend(0..self.rows as u32);
                    return false;
                }
            }
        }
        true
    }

    #[inline]
    fn get<const WIDTH: usize>(&self, column: usize, row: usize) -> [u8; WIDTH] {
        self.columns
            .get(column)
            .and_then(|bytes| bytes.get(row * WIDTH..))
            .and_then(|bytes| bytes.first_chunk())
            .copied()
            .unwrap_or([0; WIDTH])
    }

    /// The row that lies at `row`; a default row beyond the end.
    #[inline]
    pub fn row(&self, row: usize) -> LoggedRow {
        let u32_at = |column| u32::from_le_bytes(self.get(column, row));
        let u64_at = |column| u64::from_le_bytes(self.get(column, row));
        let u8_at = |column| u8::from_le_bytes(self.get(column, row));
        LoggedRow {
            instance: u16::from_le_bytes(self.get(0, row)),
            seg: u64_at(1),
            seq: u32_at(2),
            arrival_us: u64::from(u32_at(3)) * 1_000_000 + u64::from(u32_at(4)),
            session: u64_at(5),
            worker: u64_at(6),
            job: u64_at(7),
            coin: u8_at(8),
            status: u8_at(9),
            flags: u8_at(10),
            work: u64_at(11),
            share_difficulty: f32::from_le_bytes(self.get(12, row)),
            nonce: u32_at(13),
            ntime: u32_at(14),
            version: u32_at(15),
            extranonce2: u64_at(16),
            latency_us: u32_at(17),
            share_count: if self.layout == Layout::Rollup { u32_at(18) } else { 1 },
            layout: self.layout,
            hash: if self.layout == Layout::Full { Hash256(reversed(self.get(19, row))) } else { Hash256::default() },
        }
    }
}

pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(bytes)?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(text)
}
