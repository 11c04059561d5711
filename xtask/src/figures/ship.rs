//! The topics `ship` and `scan`: what the way to ClickHouse and the tables of `otedama shares` cost, and what a ClickHouse in trouble does to a pool.
use super::Bench;
use super::suites::{gather, joined, lines_of};
use crate::Failure;
use crate::{engine, install};
use serde_json::Value;
use std::process::Command;

/// Half an hour of this many shares a second is what an outage holds up, whatever its seconds.
const HELD_UP_PER_S: f64 = 1000.0;
const HALF_AN_HOUR_S: f64 = 1800.0;

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
        Ok(gathered.iter().map(|one| self.figure(&one.name, &one.values, &one.unit, &one.counted, &joined(&one.conditions))).collect())
    }

    /// The shipper's transport, end to end into the servers there are, a block candidate's way to a node, and the outages.
    pub(super) fn ship(&self) -> Result<Vec<Value>, Failure> {
        install::ensure(&install::CLICKHOUSE)?;
        let engine = if engine::is_fetched(self.root) { Some(engine::ensure(self.root)?) } else { None };
        let mut modern = Vec::new();
        if let Some(engine) = &engine {
            modern.push(("OTEDAMA_TEST_SERVER", "engine".to_owned()));
            modern.push(("OTEDAMA_ENGINE", engine.binary.to_string_lossy().into_owned()));
            modern.push(("OTEDAMA_LIBCHDB", engine.library.to_string_lossy().into_owned()));
        }
        let mut outages = modern.clone();
        outages.push(("OTEDAMA_FIGURES", "1".to_owned()));
        outages.push(("OTEDAMA_REQUIRE_CLICKHOUSE", "1".to_owned()));
        outages.push(("OTEDAMA_OUTAGE_SECONDS", self.request.seconds.to_string()));
        outages.push(("OTEDAMA_OUTAGE_RATE", (HELD_UP_PER_S * HALF_AN_HOUR_S / f64::from(self.request.seconds)).round().to_string()));
        let mut gathered = Vec::new();
        for run in 0..self.request.runs {
            let mut lines = self.example("otedama-shipper", "cost", &[])?;
            lines.push_str(&self.example("otedama-chain", "submit", &[])?);
            lines.push_str(&self.example("otedama-shipper", "rate", &[])?);
            if engine.is_some() {
                lines.push_str(&self.example("otedama-shipper", "rate", &modern)?);
            }
            let words = ["test", "--release", "--package", "otedama", "--test", "outages", "--", "--nocapture", "--test-threads", "1"];
            lines.push_str(&self.printed(&words, &outages)?);
            gather(&mut gathered, run, &lines)?;
            println!("run {run}: {} figures", gathered.len());
        }
        Ok(gathered.iter().map(|one| self.figure(&one.name, &one.values, &one.unit, &one.counted, &joined(&one.conditions))).collect())
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
