//! `otedama sql`: a statement or a recipe of docs/sql, answered by the configured ClickHouse; without one by the SQL engine over the log's own segments; without that, the
//! one command that fetches it.
use crate::{Failure, load_from, print, wiring};
use otedama_sharelog::store::hold_forms;
use otedama_shipper::{SinkError, error_code, local_tables, recipes};
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const EXAMPLES: &str = "\
examples:
  otedama sql                                       lists the recipes
  otedama sql hashrate_by_worker since=1d --format csv
  otedama sql 'SELECT status, count() FROM shares GROUP BY status'
  otedama sql --dir data/log 'SELECT sum(work) FROM shares'

Tables: shares workers sessions jobs blocks runs segments, roll-ups worker_minute worker_hour pool_minute, view shares_named; `otedama schema` prints their columns.
Over the log's own segments, what has not been sealed yet is not there. Exit codes: 0 ok, 1 answered, but a segment is damaged, 2 the statement or the config is wrong, 3 no answer.";

/// Longest statement read from standard input.
const STATEMENT_MAX_BYTES: u64 = 16 << 20;

/// `otedama sql`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SqlArgs {
    /// A statement, the name of a recipe, or - for a statement from standard input; without one the recipes are listed.
    statement: Option<String>,
    /// Parameters of a recipe.
    #[arg(value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// pretty, tsv, csv, json (an object a line), or any format of ClickHouse; pretty on a terminal, else tsv.
    #[arg(long)]
    format: Option<String>,
    /// Prints the statement instead of running it.
    #[arg(long)]
    show: bool,
    /// Asks the log's own segments, although a ClickHouse is configured.
    #[arg(long)]
    local: bool,
    /// Asks the segments of this share log.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// The config file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command; the exit code is 0 or that of the failure.
pub fn run(args: &SqlArgs) -> Result<u8, Failure> {
    let Some(word) = &args.statement else {
        print(&format!("{}\nRun one: otedama sql NAME [NAME=VALUE]... --format pretty|csv|json\n", recipes::list()))?;
        return Ok(0);
    };
    let statement = statement(word, &args.parameters)?;
    if args.show {
        print(&statement)?;
        return Ok(0);
    }
    let format = format(args.format.as_deref(), std::io::stdout().is_terminal())?;
    let config = load_from(args.config.as_deref())?;
    let database = config.clickhouse.database.clone();
    match wiring::shipper_settings(&config) {
        Some(settings) if !args.local && args.dir.is_none() => ask_server(&settings, &statement, &format),
        _ => ask_engine(args.dir.as_deref().unwrap_or(&config.log.dir), &database, &statement, &format),
    }
}

/// The statement that `word` stands for: itself, a recipe with its parameters, or what standard input holds.
fn statement(word: &str, parameters: &[String]) -> Result<String, Failure> {
    let is_name = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if (word == "-" || !is_name)
        && let Some(parameter) = parameters.first()
    {
        return Err(Failure::usage(format!("{parameter:?}: only recipes take parameters; quote a statement as one word")));
    }
    if word == "-" {
        let mut text = String::new();
        let read = std::io::stdin().lock().take(STATEMENT_MAX_BYTES).read_to_string(&mut text);
        read.map_err(|error| Failure::environment(format!("reading a statement from standard input failed: {error}")))?;
        return Ok(text);
    }
    if !is_name {
        return Ok(word.to_owned());
    }
    let name = word.replace('-', "_");
    let Some(recipe) = recipes::find(&name) else {
        return Err(Failure::usage(format!("{word:?} is neither a statement nor the name of a recipe; `otedama sql` lists them")));
    };
    let values: Result<Vec<_>, _> = parameters
        .iter()
        .map(|parameter| match parameter.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(Failure::usage(format!("{parameter:?}: a parameter is NAME=VALUE"))),
        })
        .collect();
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
    recipe.bind(&values?, now_us).map_err(|error| Failure::usage(error.to_string()))
}

/// ClickHouse's name of a format.
fn format(asked: Option<&str>, terminal: bool) -> Result<String, Failure> {
    let name = match asked {
        None if terminal => "PrettyCompact",
        None | Some("tsv") => "TabSeparated",
        Some("pretty") => "PrettyCompact",
        Some("csv") => "CSVWithNames",
        Some("json") => "JSONEachRow",
        Some(other) if !other.is_empty() && other.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => other,
        Some(other) => {
            return Err(Failure::usage(format!("--format {other:?}: pretty, tsv, csv, json, or the name of a format of ClickHouse")));
        }
    };
    Ok(name.to_owned())
}

/// The exit code for what a server answered: 2 where the statement is at fault, 3 for everything else.
fn exit_code(code: u32) -> u8 {
    match code {
        // Arguments and types (27 and 6 a text that does not parse, 42 to 44, 53, 70), names (46, 47, 50, 56, 60, 63, 73, 81, 115), syntax and aggregates (36, 62, 184, 215, 207, 179),
        // parameters (456, 457), writing where only reading is allowed (164).
        6
        | 27
        | 36
        | 38
        | 41..=44
        | 46
        | 47
        | 50
        | 53
        | 56
        | 60
        | 62
        | 63
        | 70
        | 72
        | 73
        | 81
        | 115
        | 164
        | 179
        | 184
        | 207
        | 215
        | 352
        | 403
        | 456
        | 457 => 2,
        _ => 3,
    }
}

fn ask_server(settings: &otedama_shipper::ShipperSettings, statement: &str, format: &str) -> Result<u8, Failure> {
    let sink = settings.sink().with_setting("database", &settings.database);
    let mut out = std::io::stdout().lock();
    let mut broken = None;
    let asked = sink.stream(statement, format, |piece| {
        out.write_all(piece).map_err(|error| {
            let text = SinkError::Mismatch(format!("writing to standard output failed: {error}"));
            broken = Some(error.kind());
            text
        })
    });
    match crate::event_loop()?.block_on(asked) {
        // A reader that has gone away (`| head`) is not an error of ours.
        Err(_) if broken == Some(ErrorKind::BrokenPipe) => Ok(0),
        Err(SinkError::Refused { code, text }) => Err(Failure(exit_code(code), text)),
        Err(error) => Err(Failure::environment(error.to_string())),
        Ok(()) => Ok(0),
    }
}

fn ask_engine(dir: &Path, database: &str, statement: &str, format: &str) -> Result<u8, Failure> {
    let engine = find_engine(&EnginePlaces::of_this_process()).ok_or_else(|| {
        Failure::environment(
            "no ClickHouse is configured ([clickhouse] url), and the SQL engine that answers without one has not been fetched. In the project's folder:\n  \
             cargo xtask engine\nfetches it once (178 MB). `otedama shares` sums the log without it.",
        )
    })?;
    let failed = |what: &str, error: std::io::Error| Failure::environment(format!("{what} failed: {error}"));
    let folder = tempfile::tempdir().map_err(|error| failed("making a temporary folder", error))?;
    // Until the engine has ended: it names the files itself.
    let _forms = hold_forms(dir)?;
    let tables = local_tables(dir, database, folder.path())?;
    for damaged in &tables.damaged {
        eprintln!("warning: {damaged}");
    }
    let mut script = tables.statements.join("\0");
    script.push('\0');
    script.push_str(statement);
    let mut child = Command::new(&engine)
        .args(["query", "--database", database, "--format", format, "--data"])
        .arg(folder.path().join("engine"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&format!("starting {}", engine.display()), error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may refuse before it has read everything; what it says then stands on its standard error.
        if let Err(error) = stdin.write_all(script.as_bytes())
            && error.kind() != ErrorKind::BrokenPipe
        {
            return Err(failed("handing the statement to otedama-engine", error));
        }
    }
    let done = child.wait_with_output().map_err(|error| failed("waiting for otedama-engine", error))?;
    if done.status.success() {
        return Ok(u8::from(!tables.damaged.is_empty()));
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.trim().strip_prefix("otedama-engine: ").unwrap_or(said.trim());
    match done.status.code() {
        Some(1) => Err(Failure(exit_code(error_code(said)), said.to_owned())),
        Some(_) => Err(Failure::environment(said)),
        None => Err(Failure::environment(format!("otedama-engine was ended by a signal ({}); {said}", done.status))),
    }
}

/// Where the engine may be.
struct EnginePlaces {
    /// `OTEDAMA_ENGINE`: when set, the only place.
    named: Option<PathBuf>,
    /// The folder of this program.
    beside: Option<PathBuf>,
    /// `XDG_DATA_HOME`, or `~/.local/share`.
    data_home: Option<PathBuf>,
}

impl EnginePlaces {
    fn of_this_process() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            named: variable("OTEDAMA_ENGINE"),
            beside: std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned)),
            data_home: variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share"))),
        }
    }
}

fn find_engine(places: &EnginePlaces) -> Option<PathBuf> {
    if let Some(named) = &places.named {
        return named.is_file().then(|| named.clone());
    }
    let beside = places.beside.iter().map(|folder| folder.join("otedama-engine"));
    let installed = places.data_home.iter().map(|folder| folder.join("otedama/engine/otedama-engine"));
    beside.chain(installed).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(outcome: Result<String, Failure>) -> String {
        match outcome {
            Err(Failure(2, text)) => text,
            Err(Failure(code, text)) => panic!("exit code {code}: {text}"),
            Ok(text) => panic!("{text}"),
        }
    }

    #[test]
    fn a_word_is_a_recipe_and_several_are_a_statement() {
        assert_eq!(statement("SELECT 1", &[]).ok().as_deref(), Some("SELECT 1"));
        let name = recipes::RECIPES.first().expect("a recipe").name;
        assert!(statement(name, &[]).is_ok() || refusal(statement(name, &[])).contains("needs"), "{name}");
        assert!(refusal(statement("no-such-recipe", &[])).contains("neither a statement nor the name of a recipe"));
        assert!(refusal(statement("SELECT 1", &["a=1".into()])).contains("only recipes take parameters"));
        assert!(refusal(statement(name, &["x".into()])).contains("NAME=VALUE"));
        assert!(refusal(statement(name, &["no_such_parameter=1".into()])).contains("no_such_parameter"));
    }

    #[test]
    fn formats_have_short_names_and_nothing_else_slips_in() {
        assert_eq!(format(None, true).ok().as_deref(), Some("PrettyCompact"));
        assert_eq!(format(None, false).ok().as_deref(), Some("TabSeparated"));
        assert_eq!(format(Some("csv"), true).ok().as_deref(), Some("CSVWithNames"));
        assert_eq!(format(Some("Parquet"), false).ok().as_deref(), Some("Parquet"));
        for wrong in ["", "a b", "CSV SETTINGS", "x;y"] {
            assert!(format(Some(wrong), false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_exit_code_tells_a_wrong_statement_from_a_server_in_trouble() {
        assert_eq!([62, 60, 47, 53].map(exit_code), [2; 4]);
        assert_eq!([0, 241, 252, 159, 516].map(exit_code), [3; 5]);
    }

    #[test]
    fn the_engine_is_looked_for_where_it_is_named_else_beside_else_in_the_data_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = |named: Option<&str>| EnginePlaces {
            named: named.map(|name| folder.path().join(name)),
            beside: Some(folder.path().join("bin")),
            data_home: Some(folder.path().join("share")),
        };
        assert_eq!(find_engine(&places(None)), None);
        let installed = folder.path().join("share/otedama/engine/otedama-engine");
        std::fs::create_dir_all(installed.parent().expect("a parent")).expect("made");
        std::fs::write(&installed, "").expect("written");
        assert_eq!(find_engine(&places(None)), Some(installed));
        let beside = folder.path().join("bin/otedama-engine");
        std::fs::create_dir_all(beside.parent().expect("a parent")).expect("made");
        std::fs::write(&beside, "").expect("written");
        assert_eq!(find_engine(&places(None)), Some(beside));
        // What is named and not there is not replaced by another one.
        assert_eq!(find_engine(&places(Some("mine"))), None);
        std::fs::write(folder.path().join("mine"), "").expect("written");
        assert_eq!(find_engine(&places(Some("mine"))), Some(folder.path().join("mine")));
    }
}
