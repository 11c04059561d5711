//! `otedama-engine`: a modern ClickHouse without a server. `serve` speaks HTTP; `query` runs statements and prints the result of the last.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use otedama_engine::http::{Settings, prepare_spool, serve};
use otedama_engine::library::Library;
use otedama_engine::session::{Environment, connect, enter};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::sync::watch;

const EXAMPLES: &str = "\
examples:
  otedama-engine serve --data data/engine --listen 127.0.0.1:8123
  printf 'SELECT version()' | otedama-engine query

The library is looked for at --library, then at OTEDAMA_LIBCHDB, then beside this program (libchdb.so); `cargo xtask engine` fetches it.
Exit codes: 0 ok, 1 a statement was refused, 2 usage, 3 environment.";

/// Stack of the threads that hand statements over: deeply nested SQL is parsed by recursion.
const STACK_BYTES: usize = 16 << 20;
/// Most text that `query` reads.
const SCRIPT_MAX_BYTES: u64 = 256 << 20;

#[derive(Parser, Debug)]
#[command(name = "otedama-engine", version, about = "A modern ClickHouse without a server.", after_help = EXAMPLES)]
struct Cli {
    /// libchdb.so.
    #[arg(long, value_name = "FILE", global = true, env = "OTEDAMA_LIBCHDB")]
    library: Option<PathBuf>,
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand, Debug)]
enum Commands {
    /// Serves ClickHouse's HTTP interface on a data folder until SIGTERM or SIGINT.
    ///
    /// Whoever may send statements may read every file that this process may read: it listens on loopback unless told otherwise.
    Serve {
        /// The data folder, made where it is missing. One process at a time.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Where to listen; port 0 takes a free one, which is printed.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8123")]
        listen: SocketAddr,
        /// The only user.
        #[arg(long, default_value = "default")]
        user: String,
        /// File whose first line is the user's password; without it there is none.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Most statements at work at once.
        #[arg(long, default_value_t = 16)]
        queries_max: usize,
        /// Largest body of an insert.
        #[arg(long, default_value_t = 1 << 30)]
        body_max_bytes: u64,
    },
    /// Runs statements from standard input, separated by NUL bytes, in one session, and prints the result of the last.
    Query {
        /// A data folder; without one everything is gone at the end.
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Current database of the last statement.
        #[arg(long, default_value = "")]
        database: String,
        /// Format of the result where the statement names none.
        #[arg(long, default_value = "TabSeparated")]
        format: String,
        /// A setting or, as param_NAME, a query parameter of the last statement; repeatable.
        #[arg(long = "set", value_name = "NAME=VALUE")]
        settings: Vec<String>,
    },
}

/// A failed command: what to say and the exit code.
struct Failure(u8, String);

impl Failure {
    fn environment(text: impl std::fmt::Display) -> Self {
        Self(3, text.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let library = library_path(cli.library);
    let outcome = match cli.command {
        Commands::Serve { data, listen, user, password_file, queries_max, body_max_bytes } => {
            password(password_file.as_deref()).and_then(|password| {
                let settings = Settings { user, password, spool: data.join("otedama-spool"), queries_max, body_max_bytes };
                run_server(&library, &data, listen, settings)
            })
        }
        Commands::Query { data, database, format, settings } => parse_settings(&settings)
            .and_then(|settings| run_script(&library, data.as_deref(), &Environment { database, settings, format, read_only: false })),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, text)) => {
            eprintln!("otedama-engine: {}", text.trim_end());
            ExitCode::from(code)
        }
    }
}

/// The file named, or the one beside this program.
fn library_path(named: Option<PathBuf>) -> PathBuf {
    named.unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap_or_default();
        own.parent().unwrap_or(Path::new(".")).join("libchdb.so")
    })
}

fn password(file: Option<&Path>) -> Result<String, Failure> {
    let Some(path) = file else { return Ok(String::new()) };
    let text = std::fs::read_to_string(path).map_err(|error| Failure::environment(format_args!("{}: {error}", path.display())))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn parse_settings(words: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let parse = |word: &String| match word.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Failure(2, format!("--set wants NAME=VALUE, not {word:?}"))),
    };
    words.iter().map(parse).collect()
}

/// The data folder, locked until the process ends.
fn claim(data: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::environment(format_args!("the data folder {}: {error}", data.display()));
    std::fs::create_dir_all(data).map_err(failed)?;
    let lock = File::create(data.join("otedama-engine.lock")).map_err(failed)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Failure::environment(format_args!("the data folder {} belongs to another otedama-engine that is running", data.display()))
    })?;
    Ok(lock)
}

fn run_server(library: &Path, data: &Path, listen: SocketAddr, settings: Settings) -> Result<(), Failure> {
    let _lock = claim(data)?;
    prepare_spool(&settings.spool).map_err(|error| Failure::environment(format_args!("{}: {error}", settings.spool.display())))?;
    let listener =
        std::net::TcpListener::bind(listen).map_err(|error| Failure::environment(format_args!("cannot listen on {listen}: {error}")))?;
    listener.set_nonblocking(true).map_err(Failure::environment)?;
    let library = Library::open(library, Some(data)).map_err(Failure::environment)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::environment(format_args!("starting an event loop failed: {error}")))?;
    let served = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let listener = tokio::net::TcpListener::from_std(listener).map_err(Failure::environment)?;
        let (mut term, mut int) = (
            signal(SignalKind::terminate()).map_err(Failure::environment)?,
            signal(SignalKind::interrupt()).map_err(Failure::environment)?,
        );
        let address = listener.local_addr().map_err(Failure::environment)?;
        println!("listening on http://{address}");
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            stop.send_replace(true);
        });
        serve(listener, library, settings, stopped).await;
        Ok(())
    });
    // Statements at work hold connections: they end first.
    drop(runtime);
    library.close();
    served
}

fn run_script(library: &Path, data: Option<&Path>, environment: &Environment) -> Result<(), Failure> {
    let _lock = data.map(claim).transpose()?;
    let mut script = Vec::new();
    std::io::stdin()
        .lock()
        .take(SCRIPT_MAX_BYTES)
        .read_to_end(&mut script)
        .map_err(|error| Failure::environment(format_args!("standard input: {error}")))?;
    let statements: Vec<&[u8]> = script.split(|byte| *byte == 0).filter(|text| !text.trim_ascii().is_empty()).collect();
    let Some((last, first)) = statements.split_last() else { return Err(Failure(2, "standard input has no statement".to_owned())) };
    let library = Library::open(library, data).map_err(Failure::environment)?;
    let outcome = (|| {
        let mut connection = connect(library).map_err(|error| Failure(3, error.text))?;
        for statement in first {
            connection.query(statement, "Null").map_err(|text| Failure(1, text))?;
        }
        enter(&mut connection, environment).map_err(|error| Failure(1, error.text))?;
        let answer = connection.query(last, &environment.format).map_err(|text| Failure(1, text))?;
        match std::io::stdout().lock().write_all(answer.as_ref()) {
            // `| head` is no error of ours.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Failure::environment(format_args!("standard output: {error}")))
            }
            _ => Ok(()),
        }
    })();
    library.close();
    outcome
}
