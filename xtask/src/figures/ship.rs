//! The topics `ship`, `outages` and `scan`: what the way to ClickHouse and the tables of `otedama shares` cost, and what a ClickHouse in trouble does to a pool.
use super::Bench;
use super::suites::{Gathered, gather, joined, lines_of};
use crate::Failure;
use crate::{engine, install};
use serde_json::Value;
use std::process::Command;

/// Half an hour of this many shares a second is what the absence of a server holds up, whatever its seconds.
const HELD_UP_PER_S: f64 = 1000.0;
const HALF_AN_HOUR_S: f64 = 1800.0;
/// The other troubles last so long: every insert of the time meets them.
const TROUBLE_SECONDS: u32 = 12;
/// The test of a server that is away.
const AWAY: &str = "clickhouse_that_is_away";

impl Bench<'_> {
    /// `otedama shares` over so many rows.
    pub(super) fn scan(&self) -> Result<Vec<Value>, Failure> {
        // The log is made once: at its usual size that takes longer than all runs over it.
        let (rows, runs) = (self.request.rows.to_string(), self.request.runs);
        let lines = lines_of(&self.examples.join("scan"), &[&rows, &runs.to_string()])?;
        let lines: Vec<&str> = lines.lines().collect();
        let mut gathered = Vec::new();
        for (run, lines) in lines.chunks(lines.len().div_ceil(runs).max(1)).enumerate() {
            gather(&mut gathered, run, &lines.join("\n"))?;
        }
        Ok(self.figures(&gathered))
    }

    /// The client's side from the journal to the socket, end to end into both servers, what a share takes on their disks, and a block candidate's way to a node.
    pub(super) fn ship(&self) -> Result<Vec<Value>, Failure> {
        install::ensure(&install::CLICKHOUSE)?;
        let modern = self.modern()?;
        let mut gathered = Vec::new();
        for run in 0..self.request.runs {
            let mut lines = self.example("otedama-shipper", "cost", &[])?;
            lines.push_str(&self.example("otedama-chain", "submit", &[])?);
            lines.push_str(&self.example("otedama-shipper", "rate", &[])?);
            lines.push_str(&self.example("otedama-shipper", "rate", &modern)?);
            lines.push_str(&self.example("otedama-shipper", "table", &[])?);
            lines.push_str(&self.example("otedama-shipper", "table", &modern)?);
            gather(&mut gathered, run, &lines)?;
            println!("run {run}: {} figures", gathered.len());
        }
        Ok(self.figures(&gathered))
    }

    /// A pool whose ClickHouse is in trouble, under load all the while.
    pub(super) fn outages(&self) -> Result<Vec<Value>, Failure> {
        install::ensure(&install::CLICKHOUSE)?;
        let rate = (HELD_UP_PER_S * HALF_AN_HOUR_S / f64::from(self.request.seconds)).round();
        let variables = |seconds: u32| {
            [
                ("OTEDAMA_FIGURES", "1".to_owned()),
                ("OTEDAMA_REQUIRE_CLICKHOUSE", "1".to_owned()),
                ("OTEDAMA_OUTAGE_SECONDS", seconds.to_string()),
                ("OTEDAMA_OUTAGE_RATE", rate.to_string()),
            ]
        };
        let words = ["test", "--release", "--package", "otedama", "--test", "outages", "--", "--nocapture", "--test-threads", "1"];
        let mut gathered = Vec::new();
        for run in 0..self.request.runs {
            let mut lines = self.printed(&[&words[..], &[AWAY]].concat(), &variables(self.request.seconds))?;
            let seconds = self.request.seconds.min(TROUBLE_SECONDS);
            lines.push_str(&self.printed(&[&words[..], &["--skip", AWAY]].concat(), &variables(seconds))?);
            gather(&mut gathered, run, &lines)?;
            println!("run {run}: {} figures", gathered.len());
        }
        Ok(self.figures(&gathered))
    }

    fn figures(&self, gathered: &[Gathered]) -> Vec<Value> {
        gathered.iter().map(|one| self.figure(&one.name, &one.values, &one.unit, &one.counted, &joined(&one.conditions))).collect()
    }

    /// What tells an example to take the modern engine, which is fetched where it is missing.
    pub(super) fn modern(&self) -> Result<[(&'static str, String); 3], Failure> {
        let engine = engine::ensure(self.root)?;
        Ok([
            ("OTEDAMA_TEST_SERVER", "engine".to_owned()),
            ("OTEDAMA_ENGINE", engine.binary.to_string_lossy().into_owned()),
            ("OTEDAMA_LIBCHDB", engine.library.to_string_lossy().into_owned()),
        ])
    }

    fn example(&self, package: &str, name: &str, variables: &[(&str, String)]) -> Result<String, Failure> {
        self.printed(&["run", "--release", "--package", package, "--example", name], variables)
    }

    /// The figures among the lines that cargo's program prints.
    fn printed(&self, words: &[&str], variables: &[(&str, String)]) -> Result<String, Failure> {
        let said = format!("cargo {}", words.join(" "));
        println!("{said}");
        let done = Command::new("cargo")
            .args(words)
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .current_dir(self.root)
            .output()
            .map_err(|error| Failure::Environment(format!("{said}: {error}")))?;
        let output = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() {
            return Err(Failure::Environment(format!("{said}: {}\n{output}{}", done.status, String::from_utf8_lossy(&done.stderr))));
        }
        Ok(figures_among(&output))
    }
}

/// Lines that are figures: the harness of tests prints its own between them, and begins a line that a test goes on with.
fn figures_among(output: &str) -> String {
    output.lines().filter_map(|line| line.find("{\"").map(|at| format!("{}\n", &line[at..]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_between_the_lines_of_a_test_harness() {
        let output = "running 2 tests\ntest one ... {\"name\":\"a\"}\n{\"name\":\"b\"}\nok\n\ntest result: ok. 2 passed\n";
        assert_eq!(figures_among(output), "{\"name\":\"a\"}\n{\"name\":\"b\"}\n");
        assert_eq!(figures_among("nothing"), "");
    }
}
