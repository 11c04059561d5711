//! `otedama log export`: rows of a share log for other tools, as Parquet or CSV. A log in use is read as of now, without its lock; memory is bounded by a row group.
#![forbid(unsafe_code)]

mod columns;
mod csv;
mod parquet_file;

pub use columns::Column;

use columns::Names;
use otedama_sharelog::scan::{self, Filter};
use otedama_sharelog::{DimensionEntry, LogError, LoggedRow};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// How rows are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Apache Parquet 2, Snappy.
    Parquet,
    /// Comma-separated values by RFC 4180, with a header line.
    Csv,
}

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct Order {
    /// Folder of the log.
    pub dir: PathBuf,
    /// Which rows.
    pub filter: Filter,
    /// Which columns, in order.
    pub columns: Vec<Column>,
    /// How.
    pub format: Format,
}

/// What was exported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// Rows written.
    pub rows: u64,
    /// Segments or records that could not be read and are missing: a sentence each.
    pub damaged: Vec<String>,
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The rows could not be written.
    #[error("{operation} {path}: {source}")]
    Write {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The rows could not be encoded.
    #[error("writing Parquet to {path} failed")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: parquet::errors::ParquetError,
    },
}

impl ExportError {
    /// Exit code of a command that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Log(error) => error.exit_code(),
            Self::Write { .. } | Self::Parquet { .. } => 3,
        }
    }

    /// True when the reader of the output has gone away.
    pub fn is_broken_pipe(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Exports into a file that appears under its name when it is whole and on the disk: written beside it first, synced, renamed.
pub fn to_file(order: &Order, path: &Path) -> Result<Exported, ExportError> {
    let failed = |operation: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| ExportError::Write { operation, path, source }
    };
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let file = File::create_new(&temporary).map_err(failed("create", &temporary))?;
    let finish = |exported: Exported| {
        file.sync_all().map_err(failed("fsync", &temporary))?;
        std::fs::rename(&temporary, path).map_err(failed("rename to", path))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("fsync", folder))?;
        Ok(exported)
    };
    let outcome = write(order, &file, &temporary).and_then(finish);
    if outcome.is_err() {
        // The error that led here says more than one of the clearing up.
        let _ = std::fs::remove_file(&temporary);
    }
    outcome
}

/// Exports to anything that takes bytes.
pub fn to_writer(order: &Order, out: impl Write + Send) -> Result<Exported, ExportError> {
    write(order, out, Path::new("standard output"))
}

fn write(order: &Order, out: impl Write + Send, path: &Path) -> Result<Exported, ExportError> {
    // Rows first, then what names them, which only grows.
    let rows = scan::rows(&order.dir, order.filter)?;
    let mut exported = Exported::default();
    let mut names = Names::default();
    if order.columns.contains(&Column::WorkerName) {
        exported.damaged = scan::records(&order.dir, |entry| {
            if let DimensionEntry::Worker { record, .. } = entry {
                names.insert(record.worker.0, record.name);
            }
        })?;
    }
    match order.format {
        Format::Csv => {
            let failed = |source| ExportError::Write { operation: "write", path: path.to_path_buf(), source };
            let mut out = BufWriter::with_capacity(1 << 16, out);
            csv::header(&mut out, &order.columns).map_err(failed)?;
            for row in rows {
                let Some(row) = keep(row, &mut exported)? else { continue };
                csv::row(&mut out, &order.columns, &row, &names).map_err(failed)?;
            }
            out.flush().map_err(failed)?;
        }
        Format::Parquet => {
            let failed = |source| ExportError::Parquet { path: path.to_path_buf(), source };
            let mut writer = parquet_file::Writer::new(out, &order.columns, names).map_err(failed)?;
            for row in rows {
                let Some(row) = keep(row, &mut exported)? else { continue };
                writer.push(row).map_err(failed)?;
            }
            writer.finish().map_err(failed)?;
        }
    }
    Ok(exported)
}

/// Counts a row, keeps the text of damage, passes on what kept the log from being read.
fn keep(row: Result<LoggedRow, LogError>, exported: &mut Exported) -> Result<Option<LoggedRow>, ExportError> {
    match row {
        Ok(row) => {
            exported.rows += 1;
            Ok(Some(row))
        }
        Err(error @ LogError::Damaged { .. }) => {
            exported.damaged.push(error.to_string());
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
