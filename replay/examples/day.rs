//! Makes the log of a day: `cargo run --release -p otedama-replay --example day -- FOLDER [ROWS] [SEED]`. `cargo xtask figures day` measures what can be done with it.
//!
//! ROWS is 86,400,000 without one: a thousand shares a second. The last line is JSON with the counts and the seconds.
#[path = "../tests/day/mod.rs"]
mod day;

use otedama_primitives::ShareStatus;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(dir) = arguments.next() else {
        eprintln!("usage: day FOLDER [ROWS] [SEED]");
        return ExitCode::from(2);
    };
    let mut number = |default: u64| arguments.next().map_or(Some(default), |text| text.parse().ok());
    let (Some(rows), Some(seed)) = (number(86_400_000), number(1)) else {
        eprintln!("ROWS and SEED are whole numbers");
        return ExitCode::from(2);
    };
    let plan = day::Plan { seed, ..day::Plan::new(Path::new(&dir), rows) };
    let started = Instant::now();
    match day::make(&plan) {
        Ok(made) => {
            let by_status: serde_json::Map<_, _> =
                ShareStatus::ALL.iter().zip(made.by_status).map(|(status, rows)| (status.label().to_owned(), rows.into())).collect();
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "{}",
                serde_json::json!({
                    "rows": made.rows, "by_status": by_status, "work_credited": made.work_credited.to_string(), "blocks": made.blocks,
                    "jobs": made.jobs, "sessions": made.sessions, "seconds": seconds
                })
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(3)
        }
    }
}
