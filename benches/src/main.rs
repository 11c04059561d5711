//! Benchmarks of what runs per share. `cargo run --release -p benches -- kernels` prints one JSON line for each figure;
//! `cargo xtask figures kernels` and `cargo xtask figures parser` run it several times and write docs/figures/.
#![forbid(unsafe_code)]

mod cycles;
mod figure;
mod frames;
mod kernels;
mod parser;
mod reference;
mod stage;

use figure::{Figure, Plan};
use std::process::ExitCode;

type Suite = fn(Plan) -> Result<Vec<Figure>, String>;

/// Every suite by its name, in the order they run.
const SUITES: [(&str, Suite); 3] = [("kernels", kernels::run), ("stage", stage::run), ("parser", parser::run)];

const USAGE: &str = "\
usage: benches [SUITE]... [--core N] [--samples N]

Measures every suite without a name. --core pins to that core (default: the first allowed one),
--samples takes that many samples of each variant (default: 400).";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["help" | "--help" | "-h"] = words.as_slice() {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let request = match parse(&words) {
        Ok(request) => request,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match measure(&request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::from(3)
        }
    }
}

fn measure(request: &Request) -> Result<(), String> {
    let core = cycles::pin(request.core)?;
    for (_, suite) in &request.suites {
        for figure in suite(Plan { core, samples: request.samples })? {
            println!("{}", figure.line());
        }
    }
    Ok(())
}

/// The command line.
struct Request {
    suites: Vec<(&'static str, Suite)>,
    core: Option<usize>,
    samples: usize,
}

fn parse(words: &[&str]) -> Result<Request, String> {
    let mut request = Request { suites: Vec::new(), core: None, samples: cycles::SAMPLES };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut number = || words.next().and_then(|value| value.parse::<usize>().ok()).filter(|value| *value <= 1_000_000);
        match word {
            "--core" => request.core = Some(number().ok_or("--core wants a number")?),
            "--samples" => request.samples = number().filter(|samples| *samples > 0).ok_or("--samples wants 1 to 1000000")?,
            name => {
                let suite = SUITES.into_iter().find(|(known, _)| *known == name);
                request.suites.push(suite.ok_or_else(|| format!("there is no suite {name}"))?);
            }
        }
    }
    if request.suites.is_empty() {
        request.suites = SUITES.to_vec();
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_every_suite_runs() {
        let request = parse(&["--samples", "5", "--core", "1"]).unwrap();
        assert_eq!((request.suites.len(), request.samples, request.core), (SUITES.len(), 5, Some(1)));
        assert_eq!(parse(&["kernels"]).unwrap().suites[0].0, "kernels");
        for wrong in [&["speed"][..], &["--core"], &["--samples", "0"], &["--samples", "x"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
