//! The topic `sql`: every recipe of the analyst's book over generated shares, on Debian's ClickHouse and on libchdb where it has been fetched.
use super::Bench;
use crate::Failure;
use crate::measure::median;
use crate::{engine, install};
use serde_json::Value;
use std::process::{Command, Stdio};

/// Rows that the recipes run on unless told otherwise.
pub(super) const ROWS: u32 = 10_000_000;

impl Bench<'_> {
    /// Milliseconds of each recipe; writes docs/sql/README.md and its pictures as well.
    pub(super) fn sql(&self) -> Result<Vec<Value>, Failure> {
        install::ensure(&install::CLICKHOUSE)?;
        let page = self.root.join("docs/sql").to_string_lossy().into_owned();
        let mut figures = self.recipes("recipe_ms_", "recipes_ms", &["--page", &page], &[])?;
        if engine::is_fetched(self.root) {
            let engine = engine::ensure(self.root)?;
            let variables = [
                ("OTEDAMA_TEST_SERVER", "engine".to_owned()),
                ("OTEDAMA_ENGINE", engine.binary.to_string_lossy().into_owned()),
                ("OTEDAMA_LIBCHDB", engine.library.to_string_lossy().into_owned()),
            ];
            figures.extend(self.recipes("recipe_modern_ms_", "recipes_modern_ms", &[], &variables)?);
        } else {
            println!("libchdb is not here: `cargo xtask engine` fetches it, and then the recipes run on it too");
        }
        Ok(figures)
    }

    /// One figure per recipe on one server, and one over all of them.
    fn recipes(&self, prefix: &str, over_all: &str, words: &[&str], variables: &[(&str, String)]) -> Result<Vec<Value>, Failure> {
        let (rows, times) = (self.request.rows.to_string(), self.request.runs.to_string());
        let output = Command::new("cargo")
            .args(["run", "--release", "--package", "otedama-shipper", "--example", "analyst", "--", "--rows", &rows, "--times", &times])
            .args(words)
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .current_dir(self.root)
            .stderr(Stdio::inherit())
            .output();
        let output = output.ok().filter(|output| output.status.success());
        let output = output.ok_or_else(|| Failure::Environment("cargo run --example analyst failed".to_owned()))?;
        let mut figures = Vec::new();
        let mut medians = Vec::new();
        let mut conditions = String::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let recipe = Recipe::parse(line, self.request.runs)?;
            conditions = format!(
                "ClickHouse {} on loopback, {rows} generated shares of 26 hours, request to answer, page cache warm, every run over all rows that the recipe's span has",
                recipe.server
            );
            medians.push(median(&recipe.ms));
            figures.push(self.figure(&format!("{prefix}{}", recipe.name), &recipe.ms, "ms", "wall time of one SELECT", &conditions));
        }
        let counted = format!("medians of {} recipes", medians.len());
        figures.push(self.figure(over_all, &medians, "ms", &counted, &conditions));
        Ok(figures)
    }
}

/// What the example prints of one recipe.
#[derive(Debug, PartialEq)]
struct Recipe {
    name: String,
    server: String,
    ms: Vec<f64>,
}

impl Recipe {
    /// A recipe without an answer, or with fewer runs than asked for, is no result.
    fn parse(line: &str, runs: usize) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::Environment(format!("the example printed {line:?}: {what}"));
        let value: Value = serde_json::from_str(line).map_err(|_| wrong("no JSON"))?;
        let text = |key: &str| value[key].as_str().map(str::to_owned).ok_or_else(|| wrong(key));
        let ms: Vec<f64> = value["runs"].as_array().map(|runs| runs.iter().filter_map(Value::as_f64).collect()).unwrap_or_default();
        if ms.len() != runs {
            return Err(wrong("another number of runs"));
        }
        if value["answers"].as_u64().is_none_or(|answers| answers == 0) {
            return Err(wrong("no row in the answer"));
        }
        Ok(Self { name: text("recipe")?, server: text("server")?, ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_that_answers_nothing_is_no_measurement() {
        let line = |answers: u32, runs: &str| format!(r#"{{"recipe":"luck","runs":{runs},"answers":{answers},"server":"18.16.1"}}"#);
        let good = Recipe::parse(&line(3, "[1.5,2]"), 2).unwrap();
        assert_eq!(good, Recipe { name: "luck".into(), server: "18.16.1".into(), ms: vec![1.5, 2.0] });
        assert!(Recipe::parse(&line(0, "[1.5,2]"), 2).is_err());
        assert!(Recipe::parse(&line(3, "[1.5]"), 2).is_err());
        assert!(Recipe::parse("warming up", 2).is_err());
    }
}
