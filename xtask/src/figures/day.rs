//! The topic `day`: the log of a day made with real hashes, and everything that can be done with it: verified, judged again, summed, exported, shipped, queried.
use super::{Bench, SERVER_CORE, number};
use crate::Failure;
use crate::engine;
use crate::measure::{self, Scratch};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

impl Bench<'_> {
    pub(super) fn day(&self) -> Result<Vec<Value>, Failure> {
        let scratch = Scratch::new(self.root, "day")?;
        let dir = scratch.path().join("log");
        let log = dir.to_string_lossy().into_owned();
        let wanted = self.request.rows.to_string();
        let made = measure::last_json(&self.examples.join("day"), &[&log, &wanted], SERVER_CORE)?;
        println!("made: {made}");
        let rows = number(&made, "rows")?;
        let conditions = format!(
            "{wanted} shares of 24 hours, {} jobs of 12 merkle levels, {} sessions, works of 1 to 8 hashes, every status; segments of 524,288 rows, page cache as it is",
            made["jobs"], made["sessions"]
        );
        let mut figures = vec![
            self.figure("generate_s", &[number(&made, "seconds")?], "s", "wall time to hash, append and seal on one core", &conditions),
            self.figure("native_bytes_per_row", &[bytes_of(&dir, "native")? / rows], "bytes", "sealed segments over rows", &conditions),
        ];
        let mut add = |name: &str, values: &[f64], unit: &str, counted: &str| {
            figures.push(self.figure(name, values, unit, counted, &conditions));
        };

        let (seconds, report) = self.timed(&["log", "verify", "--json", "--dir", &log])?;
        same(&report, "rows", &made, "rows")?;
        same(&report, "by_status", &made, "by_status")?;
        add("verify_s", &[seconds], "s", "otedama log verify, clean");

        let (mut per_core, mut per_cpu_s, mut all_s) = (vec![], vec![], vec![]);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        for _ in 0..self.request.runs {
            let one = measure::last_json(&self.otedama, &["log", "replay", "--json", "--dir", &log], SERVER_CORE)?;
            println!("replay: {one}");
            for report in [&one, &self.timed(&["log", "replay", "--json", "--threads", &threads, "--dir", &log])?.1] {
                same(report, "rows", &made, "rows")?;
                same(report, "work_credited", &made, "work_credited")?;
                same(report, "block_candidates", &made, "blocks")?;
                if report["identical"] != Value::Bool(true) {
                    return Err(Failure::Environment(format!("the replay differs: {report}")));
                }
                all_s.push(number(report, "wall_s")?);
            }
            all_s.remove(all_s.len() - 2);
            per_core.push(number(&one, "judged")? / number(&one, "wall_s")?);
            per_cpu_s.push(number(&one, "judged_per_cpu_s")?);
        }
        let counted = "rows judged again, all identical, per second of wall time, reader and judge on one core";
        add("replay_shares_per_s_per_core", &per_core, "shares/s", counted);
        add("replay_shares_per_cpu_s", &per_cpu_s, "shares/CPU-s", "the same per second of CPU");
        add("replay_s", &all_s, "s", &format!("otedama log replay --threads {threads}, identical"));

        for (name, by) in [("worker", "worker"), ("status_hour", "status,hour")] {
            let (seconds, table) = self.timed(&["shares", "--dir", &log, "--by", by, "--format", "json"])?;
            let sum: u64 = table.as_array().into_iter().flatten().filter_map(|row| row["shares"].as_u64()).sum();
            if sum as f64 != rows {
                return Err(Failure::Environment(format!("otedama shares --by {by} has {sum} rows of {rows}")));
            }
            add(&format!("shares_by_{name}_s"), &[seconds], "s", &format!("otedama shares --by {by}"));
        }
        for kind in ["parquet", "csv"] {
            let path = scratch.path().join(format!("day.{kind}"));
            let started = Instant::now();
            let said = self.said(&["log", "export", "--dir", &log, "--out", &path.to_string_lossy()])?;
            let seconds = started.elapsed().as_secs_f64();
            if !said.starts_with(&format!("rows {rows}, ")) {
                return Err(Failure::Environment(format!("the export has other rows than the log: {said}")));
            }
            let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len()) as f64;
            add(&format!("export_{kind}_s"), &[seconds], "s", &format!("otedama log export --format {kind}, every column of the log"));
            add(&format!("export_{kind}_bytes_per_row"), &[bytes / rows], "bytes", "the file over its rows");
            // Gigabytes that nothing below needs.
            let _ = std::fs::remove_file(&path);
        }
        self.shipped(&log, &made, &mut figures, &conditions)?;
        Ok(figures)
    }

    /// Into Debian's server, and into the modern engine where it has been fetched.
    fn shipped(&self, log: &str, made: &Value, figures: &mut Vec<Value>, conditions: &str) -> Result<(), Failure> {
        crate::install::ensure(&crate::install::CLICKHOUSE)?;
        let modern = if engine::is_fetched(self.root) { Some(self.modern()?) } else { None };
        let servers = [("debian", Some(Vec::new())), ("engine", modern.map(Vec::from))];
        for (server, variables) in servers {
            let Some(variables) = variables else {
                println!("SKIP: there is no modern engine: `cargo xtask engine` fetches it");
                continue;
            };
            let mut command = Command::new(self.examples.join("ship_log"));
            command.arg(log).env("OTEDAMA_TEST_SERVER", server).envs(variables);
            let result = measure::last_json_of(command, &[0])?;
            println!("{server}: {result}");
            same(&result, "rows", made, "rows")?;
            same(&result, "work_credited", made, "work_credited")?;
            let conditions = format!("{conditions}; {} on loopback, both cores", result["version"].as_str().unwrap_or("unknown"));
            let seconds = number(&result, "ship_s")?;
            let rate = number(made, "rows")? / seconds;
            let counted = "from the first insert to the last acknowledgement; count and credited work on the server are those of the log, reconcile is clean";
            figures.push(self.figure(&format!("ship_{server}_s"), &[seconds], "s", counted, &conditions));
            figures.push(self.figure(&format!("ship_{server}_rows_per_s"), &[rate], "rows/s", counted, &conditions));
            for (name, ms) in result["query_ms"].as_object().into_iter().flatten() {
                if let Some(ms) = ms.as_f64() {
                    figures.push(self.figure(
                        &format!("query_{server}_{name}_ms"),
                        &[ms],
                        "ms",
                        "one SELECT, request to answer",
                        &conditions,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Runs the product to its end: its standard output.
    fn said(&self, arguments: &[&str]) -> Result<String, Failure> {
        super::suites::lines_of(&self.otedama, arguments)
    }

    /// The same of a command that prints JSON, with its seconds.
    fn timed(&self, arguments: &[&str]) -> Result<(f64, Value), Failure> {
        let started = Instant::now();
        let text = self.said(arguments)?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{}: {seconds:.2} s", arguments.join(" "));
        let value = serde_json::from_str(&text).map_err(|error| Failure::Environment(format!("{}: {error}", arguments.join(" "))))?;
        Ok((seconds, value))
    }
}

/// One count that two reports must have alike.
fn same(report: &Value, key: &str, made: &Value, as_made: &str) -> Result<(), Failure> {
    if report[key] == made[as_made] {
        return Ok(());
    }
    Err(Failure::Environment(format!("{key} is {}, but {} were made", report[key], made[as_made])))
}

/// Bytes of the files of a folder with this extension.
fn bytes_of(dir: &Path, extension: &str) -> Result<f64, Failure> {
    let failed = |error: std::io::Error| Failure::Environment(format!("{}: {error}", dir.display()));
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|kind| kind == extension) {
            bytes += std::fs::metadata(&path).map_err(failed)?.len();
        }
    }
    Ok(bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_count_that_differs_is_no_measurement() {
        let made = json!({"rows": 7, "work_credited": "9"});
        assert!(same(&json!({"rows": 7}), "rows", &made, "rows").is_ok());
        assert!(same(&json!({"rows": 8}), "rows", &made, "rows").is_err());
        assert!(same(&json!({"work_credited": 9}), "work_credited", &made, "work_credited").is_err());
    }
}
