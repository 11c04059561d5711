//! `otedama shares`: the log summed by keys.
use crate::{Failure, LogArg, RangeArg, dir_of, print};
use clap::ValueEnum;
use otedama_sharelog::scan::Filter;
use otedama_sharelog::shares::{group, parse_by, parse_where};
use std::io::IsTerminal;

const HELP: &str = "\
One line per combination of keys: shares, their work in expected hashes (exact), and of it what was accepted and is credited.
Times are UTC; an hour's work over 3600 is its hashes per second. A log in use is read as of now. `otedama sql` answers more.

examples:
  otedama shares --config otedama.toml --by worker,minute --since 1h --format csv
  otedama shares --dir data/log --by hour,status --since 2026-11-20 --until 2026-11-21
  otedama shares --dir data/log --by worker --where status=stale --since 7d

Exit codes: 0 ok, 1 a damaged segment is missing from the sums, 2 usage, 3 environment.";

#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct SharesArgs {
    #[command(flatten)]
    log: LogArg,
    /// Keys, comma separated: worker, minute, hour, day, status, session, job, coin.
    #[arg(long, value_name = "A,B", default_value = "worker,hour")]
    by: String,
    #[command(flatten)]
    range: RangeArg,
    /// Only this status: status=accepted.
    #[arg(long = "where", value_name = "status=S")]
    filter: Option<String>,
    /// table for people, csv and json for programs; without it a table on a terminal, else csv.
    #[arg(long)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
}

pub fn run(args: &SharesArgs) -> Result<u8, Failure> {
    let by = parse_by(&args.by).map_err(|error| Failure::usage(format!("--by: {error}")))?;
    let (since_us, until_us) = args.range.moments()?;
    let status = args.filter.as_deref().map(parse_where).transpose().map_err(|error| Failure::usage(format!("--where: {error}")))?;
    let table = group(&dir_of(&args.log)?, &by, &Filter { since_us, until_us, status })?;
    for damaged in &table.damaged {
        eprintln!("warning: {damaged}");
    }
    if table.rows.is_empty() {
        eprintln!("the log has no share of what was asked for");
    }
    let is_terminal = std::io::stdout().is_terminal();
    print(&match args.format.unwrap_or(if is_terminal { Format::Table } else { Format::Csv }) {
        Format::Table => table.to_text(),
        Format::Csv => table.to_csv(),
        Format::Json => table.to_json(),
    })?;
    Ok(u8::from(!table.damaged.is_empty()))
}
