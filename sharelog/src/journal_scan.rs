//! Reading journal files from outside, while they may be written: for the scanner, verify and inspect.
use crate::error::LogError;
use crate::folder;
use crate::journal_format::{
    BATCH_CELLS_MAX, CELL, COMMITTED_END_OFFSET, Cell, DURABLE_END_OFFSET, FIRST_CELL, JournalHeader, Parsed, committed_end, durable_end,
    parse, row_sequence,
};
use crate::segment::LoggedRow;
use bytemuck::Zeroable;
use otedama_primitives::Dimension;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One journal file as it was found.
pub(crate) struct JournalScan {
    pub(crate) path: PathBuf,
    /// None where the header does not hold.
    pub(crate) header: Option<JournalHeader>,
    /// The stored committed end; None where its check fails.
    pub(crate) committed_end: Option<u32>,
    /// Of a file of tier `disk`: behind this cell nothing is acknowledged yet, and a hole is where a power cut ended the file.
    pub(crate) durable_end: Option<u32>,
    pub(crate) batches: u64,
    /// Cell behind the last batch.
    pub(crate) end_cell: u32,
    /// Journal sequence and row, above the sequence asked for.
    pub(crate) rows: Vec<(u64, LoggedRow)>,
    /// Rows found, those below the sequence asked for included.
    pub(crate) rows_in_file: u64,
    pub(crate) dimensions: Vec<Dimension>,
    pub(crate) problems: Vec<String>,
}

/// Reads every journal file of a folder, in order of file number; rows below journal sequence `covered` are counted but not kept.
/// A file that is recycled meanwhile is left out: its rows are in segments by then.
pub(crate) fn read_journals(dir: &Path, covered: u64) -> Result<Vec<JournalScan>, LogError> {
    let mut files = Vec::new();
    for path in folder::list(dir)?.journals {
        match File::open(&path) {
            Ok(file) => {
                let before = front(&file, &path)?;
                let number = JournalHeader::decode(&before).map_or(u32::MAX, |header| header.file_number);
                files.push((number, path, file, before));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(LogError::io("open", &path)(error)),
        }
    }
    // The newest first: of a log in use, what is read of a file is then never newer than what is read of the files before it.
    files.sort_by_key(|(number, ..)| std::cmp::Reverse(*number));
    let mut scans = Vec::new();
    for (_, path, file, before) in files {
        let scan = read_journal(&file, &path, covered)?;
        if before == front(&file, &path)? {
            scans.push(scan);
        }
    }
    scans.reverse();
    Ok(scans)
}

fn front(file: &File, path: &Path) -> Result<Vec<u8>, LogError> {
    let mut bytes = vec![0u8; CELL];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64).map_err(LogError::io("read", path))? {
            0 => break,
            taken => filled += taken,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn read_journal(file: &File, path: &Path, covered: u64) -> Result<JournalScan, LogError> {
    // Batches behind the committed end are rare (a kill between two stores, or a power cut): the part read grows only when it has some.
    let mut margin = BATCH_CELLS_MAX;
    loop {
        let (scan, limit) = read_part(file, path, covered, margin)?;
        let cells = scan.header.map_or(0, |header| header.cells);
        if limit >= cells || scan.end_cell.saturating_add(BATCH_CELLS_MAX) <= limit {
            return Ok(scan);
        }
        margin = margin.saturating_mul(4);
    }
}

/// Reads up to `margin` cells behind the committed end; gives also the cell where it stopped reading.
fn read_part(file: &File, path: &Path, covered: u64, margin: u32) -> Result<(JournalScan, u32), LogError> {
    let mut scan = JournalScan {
        path: path.to_path_buf(),
        header: None,
        committed_end: None,
        durable_end: None,
        batches: 0,
        end_cell: FIRST_CELL,
        rows: Vec::new(),
        rows_in_file: 0,
        dimensions: Vec::new(),
        problems: Vec::new(),
    };
    let bytes = file.metadata().map_err(LogError::io("stat", path))?.len();
    let header = match JournalHeader::decode(&front(file, path)?) {
        Ok(header) => header,
        Err(problem) => {
            scan.problems.push(problem.to_string());
            return Ok((scan, u32::MAX));
        }
    };
    scan.header = Some(header);
    let cells_here = u32::try_from(bytes / CELL as u64).unwrap_or(u32::MAX);
    if cells_here < header.cells {
        scan.problems.push(format!("it has {bytes} bytes instead of {}", u64::from(header.cells) * CELL as u64));
    }
    let cells = header.cells.min(cells_here);
    if cells <= FIRST_CELL {
        return Ok((scan, u32::MAX));
    }
    let mut word = [0u8; 8];
    file.read_exact_at(&mut word, COMMITTED_END_OFFSET as u64).map_err(LogError::io("read", path))?;
    scan.committed_end = committed_end(u64::from_le_bytes(word), header.file_number);
    file.read_exact_at(&mut word, DURABLE_END_OFFSET as u64).map_err(LogError::io("read", path))?;
    scan.durable_end = durable_end(u64::from_le_bytes(word), header.file_number);
    if scan.committed_end.is_none() {
        scan.problems.push("the word with its committed end does not match its check".into());
    }
    let limit = scan.committed_end.map_or(cells, |end| end.saturating_add(margin).min(cells));
    let mut buffer = vec![Cell::zeroed(); limit.saturating_sub(FIRST_CELL) as usize];
    file.read_exact_at(bytemuck::cast_slice_mut(&mut buffer), FIRST_CELL as u64 * CELL as u64).map_err(LogError::io("read", path))?;
    let mut at = 0usize;
    let mut bad_from = None;
    while let Some(rest) = buffer.get(at..).filter(|rest| !rest.is_empty()) {
        let cell = FIRST_CELL + at as u32;
        match parse(rest, header.file_number) {
            Parsed::Batch(batch) => {
                if let Some(from) = bad_from.take() {
                    scan.problems.push(format!("cells {from} to {cell} hold no valid batch"));
                }
                scan.dimensions.extend(batch.dimension_records());
                for (index, row) in batch.rows.iter().enumerate() {
                    let number = batch.commit.first_row + index as u32;
                    let sequence = row_sequence(header.file_number, number);
                    if sequence >= covered {
                        scan.rows.push((sequence, LoggedRow::expand(row, batch.hash(index), header.run_prefix, number)));
                    }
                }
                if scan.rows_in_file != u64::from(batch.commit.first_row) {
                    scan.problems.push(format!(
                        "the batch at cell {cell} starts at row {} instead of {}",
                        batch.commit.first_row, scan.rows_in_file
                    ));
                }
                scan.rows_in_file = u64::from(batch.commit.first_row) + u64::from(batch.commit.rows);
                scan.batches += 1;
                at += 1 + batch.commit.cells() as usize;
                scan.end_cell = FIRST_CELL + at as u32;
            }
            Parsed::Incomplete | Parsed::Nothing => {
                if scan.committed_end.is_some_and(|end| cell >= end) {
                    break;
                }
                if scan.durable_end.is_some_and(|durable| cell >= durable) {
                    return Ok((scan, u32::MAX));
                }
                if scan.committed_end.is_some() {
                    bad_from.get_or_insert(cell);
                }
                at += 1;
            }
        }
    }
    if let Some(from) = bad_from {
        scan.problems.push(format!("cells {from} to {} hold no valid batch", scan.committed_end.unwrap_or(limit)));
    }
    if let Some(end) = scan.committed_end
        && scan.end_cell < end
        && bad_from.is_none()
    {
        scan.problems.push(format!("its batches end at cell {} before the committed end {end}", scan.end_cell));
    }
    let limit = if limit == cells { u32::MAX } else { limit };
    Ok((scan, limit))
}
