//! `otedama log export`: rows for other tools.
use crate::{Failure, LogArg, RangeArg, chain_of, dir_of, print};
use clap::ValueEnum;
use otedama_export::{Column, ExportError, Format, Order, to_file, to_writer};
use otedama_sharelog::scan::Filter;
use std::path::{Path, PathBuf};

const HELP: &str = "\
Columns are those of the log, with the arrival as one, ts (microseconds, UTC); worker_name and hash (layout full) where --columns asks for them.
Parquet: Snappy, unsigned numbers as such, ts TIMESTAMP(MICROS, UTC), work DECIMAL(20, 0), whose sums stay exact. CSV: RFC 4180, ts in ISO 8601.
A log in use is read as of now; a file appears under its name when it is whole.

examples:
  otedama log export --config otedama.toml --since 1d --out shares.parquet
  otedama log export --dir data/log --since 2026-11-20 --until 2026-11-21 --format csv --columns ts,worker_name,status,work --out - | gzip > day.csv.gz

Exit codes: 0 ok, 1 a damaged segment is missing from the export, 2 usage, 3 environment.";

#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct ExportArgs {
    #[command(flatten)]
    log: LogArg,
    #[command(flatten)]
    range: RangeArg,
    /// parquet or csv; without it as the name of FILE says.
    #[arg(long)]
    format: Option<Kind>,
    /// Columns, comma separated; without it those of the log.
    #[arg(long, value_name = "A,B")]
    columns: Option<String>,
    /// The file, or - for standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Parquet,
    Csv,
}

impl Kind {
    fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "parquet" => Some(Self::Parquet),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

pub fn run(args: &ExportArgs) -> Result<u8, Failure> {
    let kind = args.format.or_else(|| Kind::of_name(&args.out));
    let kind = kind.ok_or_else(|| Failure::usage("--format parquet or --format csv: the name of --out does not say which"))?;
    let columns = match &args.columns {
        Some(text) => Column::parse_list(text).map_err(|error| Failure::usage(format!("--columns: {error}")))?,
        None => Column::of_the_log(),
    };
    let (since_us, until_us) = args.range.moments()?;
    let order = Order {
        dir: dir_of(&args.log)?,
        filter: Filter { since_us, until_us, status: None },
        columns,
        format: match kind {
            Kind::Parquet => Format::Parquet,
            Kind::Csv => Format::Csv,
        },
    };
    let failed = |error: ExportError| Failure(error.exit_code(), chain_of(&error));
    let is_stdout = args.out.as_os_str() == "-";
    let exported = if is_stdout {
        match to_writer(&order, std::io::stdout()) {
            // `| head` has what it wanted.
            Err(error) if error.is_broken_pipe() => return Ok(0),
            outcome => outcome.map_err(failed)?,
        }
    } else {
        to_file(&order, &args.out).map_err(failed)?
    };
    for damaged in &exported.damaged {
        eprintln!("warning: {damaged}");
    }
    if is_stdout {
        eprintln!("rows {}", exported.rows);
    } else {
        let bytes = std::fs::metadata(&args.out).map_or(0, |metadata| metadata.len());
        print(&format!("rows {}, bytes {bytes}, {}", exported.rows, args.out.display()))?;
    }
    Ok(u8::from(!exported.damaged.is_empty()))
}
