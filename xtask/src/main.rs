//! The project's own commands: `cargo xtask test` runs every test lane and installs what a lane needs, `cargo xtask figures` measures what the docs
//! quote, `cargo xtask engine` fetches the SQL engine.
#![forbid(unsafe_code)]

mod asm;
mod engine;
mod figures;
mod install;
mod lanes;
mod measure;
mod scale;
mod step;
mod table;
mod tally;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask test [--lane quick|node|clickhouse|engine|faults]... [--long]
       cargo xtask figures pipeline|memory|start|kernels|drivers|parser|loadgen [--runs N] [--seconds N] [--no-build]
       cargo xtask figures network [--part workers|farm|hundred|million|latency|slowloris|flood|overload]... [--runs N] [--seconds N] [--no-build]
       cargo xtask figures log|outages [--runs N] [--seconds N] [--no-build]
       cargo xtask figures ship [--runs N] [--no-build]
       cargo xtask figures scan|sql [--rows N] [--runs N] [--no-build]
       cargo xtask figures day [--rows N] [--runs N] [--no-build]
       cargo xtask figures table [--check]
       cargo xtask engine [--into DIR]
       cargo xtask asm

test     runs the lanes (all without --lane) and installs a lane's Debian packages where they are missing.
         The last line is `N passed, N failed, N skipped`; --long takes the sizes of a release instead of those of CI.
figures  measures a topic on this machine and writes docs/figures/<topic>.json; `table` puts the figures into README.md,
         docs/figures.md, docs/kernels.md and, with what follows from them, docs/scale.md; with --check it only says whether they stand there already.

engine   builds otedama-engine and fetches libchdb (npm, 178 MB, version and sum in engine/libchdb.json), so that `otedama sql` answers without a server;
         both go to ~/.local/share/otedama/engine unless --into says otherwise.

asm      compiles the AVX-512 kernels and fails when their loops spill, call or do more than SHA-256 needs.

examples:
  cargo xtask test --lane quick
  cargo xtask figures pipeline --runs 5 --seconds 5
  cargo xtask figures day --rows 1000000";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test", rest @ ..] => lanes::Plan::parse(rest).and_then(|plan| lanes::run(&root(), &plan)),
        ["figures", "table"] => table::fill(&root()).map(|()| true),
        ["figures", "table", "--check"] => table::check(&root()),
        ["figures", topic, rest @ ..] => {
            figures::Request::parse(topic, rest).and_then(|request| figures::run(&root(), &request)).map(|()| true)
        }
        ["engine"] => engine::install(&root(), None).map(|()| true),
        ["engine", "--into", folder] => engine::install(&root(), Some(folder)).map(|()| true),
        ["asm"] => asm::run(&root()),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err(Failure::Usage("unknown command".to_owned())),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Usage(what)) => {
            eprintln!("{what}\n{USAGE}");
            ExitCode::from(2)
        }
        Err(Failure::Environment(what)) => {
            eprintln!("{what}");
            ExitCode::from(3)
        }
    }
}

/// Why a command did not run. Exit codes are those of the product: 2 usage, 3 environment; 1 is a finding.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// Something this machine lacks or refuses.
    Environment(String),
}

/// The workspace's folder: commands work from wherever they are called.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
