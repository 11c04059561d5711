//! The ledger: one line for every submit and what the server said to it, so that a share log can be held against the outside world's memory.
//!
//! Line: `extranonce1 worker job extranonce2 ntime nonce version verdict`, fields as they were sent, `-` for one that does not decode.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// First line of every ledger.
pub const HEADER: &str = "# otedama ledger 1\n";

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 1 << 18;

/// Where ledger lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LedgerSink {
    /// Nowhere.
    #[default]
    None,
    /// Appended to a file, which is started if it is not there; several runs may append to one.
    File(PathBuf),
    /// Kept, and handed over with the summary.
    Memory,
}

/// Why the ledger cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the ledger {path}: {source}")]
pub struct LedgerError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    file: Option<(PathBuf, File)>,
    buffer: Vec<u8>,
}

impl Ledger {
    /// Opens what the sink names; None for `LedgerSink::None`.
    pub fn open(sink: &LedgerSink) -> Result<Option<Self>, LedgerError> {
        match sink {
            LedgerSink::None => Ok(None),
            LedgerSink::Memory => Ok(Some(Self { file: None, buffer: HEADER.into() })),
            LedgerSink::File(path) => Self::append_to(path).map(Some),
        }
    }

    fn append_to(path: &Path) -> Result<Self, LedgerError> {
        let failed = |operation| move |source| LedgerError { operation, path: path.to_owned(), source };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed("open"))?;
        let mut buffer = Vec::with_capacity(2 * BUFFER_BYTES);
        if file.metadata().map_err(failed("examine"))?.len() == 0 {
            buffer.extend_from_slice(HEADER.as_bytes());
        }
        Ok(Self { file: Some((path.to_owned(), file)), buffer })
    }

    /// Where the next line is to be written: the caller appends one whole line.
    pub fn line(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// True when enough lines have come together to be worth a write.
    pub fn is_full(&self) -> bool {
        self.file.is_some() && self.buffer.len() >= BUFFER_BYTES
    }

    /// Writes out what has been collected; a ledger in memory keeps it.
    pub fn flush(&mut self) -> Result<(), LedgerError> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        file.write_all(&self.buffer).map_err(|source| LedgerError { operation: "append to", path: path.clone(), source })?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes out the rest; the text of a ledger in memory.
    pub fn close(mut self) -> Result<Option<Vec<u8>>, LedgerError> {
        self.flush()?;
        Ok(self.file.is_none().then_some(self.buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_append_to_one_file_under_one_header() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = LedgerSink::File(folder.path().join("ledger"));
        for run in 0..2 {
            let mut ledger = Ledger::open(&sink).expect("open").expect("file");
            writeln!(ledger.line(), "run {run}").expect("memory");
            assert_eq!(ledger.close().expect("close"), None);
        }
        let text = std::fs::read_to_string(folder.path().join("ledger")).expect("read");
        assert_eq!(text, format!("{HEADER}run 0\nrun 1\n"));
    }

    #[test]
    fn a_ledger_in_memory_comes_back_whole() {
        let mut ledger = Ledger::open(&LedgerSink::Memory).expect("open").expect("memory");
        ledger.line().extend_from_slice(b"a\n");
        ledger.flush().expect("flush");
        assert_eq!(ledger.close().expect("close"), Some(format!("{HEADER}a\n").into_bytes()));
    }

    #[test]
    fn an_unwritable_ledger_names_its_path() {
        let error = Ledger::open(&LedgerSink::File("/proc/no/such".into())).expect_err("refused");
        assert!(error.to_string().contains("/proc/no/such"), "{error}");
    }
}
