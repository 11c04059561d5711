//! Puts docs/figures/*.json between two marks of README.md (what sums up), docs/figures.md (all of it), docs/kernels.md (the kernels' grids) and docs/scale.md (what follows
//! from them): none of them quotes anything that was not measured by a committed command.
mod kernels;

use crate::{Failure, scale};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- figures: written by `cargo xtask figures table`, do not edit -->";
const END: &str = "<!-- figures: end -->";

/// Writes the tables into their pages.
pub fn fill(root: &Path) -> Result<(), Failure> {
    for Page { path, before, after } in pages(root)? {
        if before != after {
            std::fs::write(&path, after).map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))?;
            println!("wrote {}", path.display());
        }
    }
    Ok(())
}

/// Whether the pages have the tables that the files give.
pub fn check(root: &Path) -> Result<bool, Failure> {
    let mut same = true;
    for Page { path, before, after } in pages(root)? {
        if before != after {
            println!("{} differs from docs/figures: run cargo xtask figures table", path.display());
            same = false;
        }
    }
    Ok(same)
}

/// A page as it is and as it is to be.
struct Page {
    path: PathBuf,
    before: String,
    after: String,
}

fn pages(root: &Path) -> Result<Vec<Page>, Failure> {
    let mut topics = topics(&root.join("docs/figures"))?;
    let mut grid = Vec::new();
    for topic in &mut topics {
        // The rows of the kernels' grids have a page of their own.
        let (cells, rest): (Vec<Value>, Vec<Value>) = std::mem::take(&mut topic.entries).into_iter().partition(kernels::is_cell);
        topic.entries = rest;
        grid.extend(cells);
    }
    let lookup = |name: &str| topics.iter().flat_map(|topic| &topic.entries).find(|entry| entry["name"] == *name)?["value"].as_f64();
    let page = |name: &str, table: &str| {
        let path = root.join(name);
        let failed = |what: &dyn std::fmt::Display| Failure::Environment(format!("{}: {what}", path.display()));
        let before = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
        let after = replace(&before, table).ok_or_else(|| failed(&"the two marks of the figures table are missing"))?;
        Ok(Page { path: path.clone(), before, after })
    };
    Ok(vec![
        page("README.md", &headlines(&topics))?,
        page("docs/figures.md", &sections(&topics))?,
        page("docs/kernels.md", &kernels::grids(&grid))?,
        page("docs/scale.md", &scale::page(&lookup))?,
    ])
}

/// What one file holds.
struct Topic {
    name: String,
    entries: Vec<Value>,
}

/// Every entry of every file, file by file.
fn topics(folder: &Path) -> Result<Vec<Topic>, Failure> {
    let failed = |path: &Path, what: &dyn std::fmt::Display| Failure::Environment(format!("{}: {what}", path.display()));
    let mut files: Vec<_> = match std::fs::read_dir(folder) {
        Ok(folder) => {
            folder.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
        }
        Err(_) => Vec::new(),
    };
    files.sort();
    let mut topics = Vec::new();
    for file in files {
        let json = std::fs::read_to_string(&file).map_err(|error| failed(&file, &error))?;
        let value: Value = serde_json::from_str(&json).map_err(|error| failed(&file, &error))?;
        let entries = value.as_array().cloned().ok_or_else(|| failed(&file, &"is no list"))?;
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        topics.push(Topic { name, entries });
    }
    Ok(topics)
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

/// The figures that README shows, in its order, and what they mean there.
const HEADLINES: [(&str, &str); 36] = [
    ("pool_64x8_shares_per_cpu_s", "64 connections x 8 shares in flight, real proof of work, one core for the whole server"),
    ("pool_to_null_64x8_ratio", "the same, of a server that reads lines and answers true"),
    ("pool_64x64_shares_per_cpu_s", "64 x 64"),
    ("pool_to_null_64x64_ratio", "the same, of null"),
    ("pool_1000x1_shares_per_cpu_s", "1000 x 1: every share arrives alone"),
    ("pool_to_null_1000x1_ratio", "the same, of null"),
    ("frames_to_row_shares_per_s", "frames in memory to row, one core, no socket, every merkle root new"),
    ("latency_pool_us_p50", "latency at half of saturation, open loop, p50"),
    ("latency_pool_us_p999", "the same, p99.9"),
    ("farm_back_after_kill_s", "kill -9 under 200,000 workers: seconds until all are authorized again"),
    ("hundred_connection_bytes", "100,000 connections in one process: its memory for each"),
    ("hundred_p99_ratio", "p99 of 1,000 miners among 99,000 silent ones, to p99 without these"),
    ("million_resident_bytes", "1,000,000 connections in one process: its memory"),
    ("million_kernel_bytes", "the same: memory of the kernel for the sockets of both ends"),
    ("slowloris_honest_p99_ratio", "honest p99 beside 10,000 slowloris connections, to p99 without"),
    ("v1_share_vs_sha2", "a share's hashing, to the crate sha2"),
    ("v1_share_cycles", "a share's hashing: 300-byte coinbase, 12 merkle levels, header"),
    ("parser_template_cgminer_ns", "a submit line, known dialect"),
    ("parser_scanner_cgminer_ns", "a submit line, any dialect"),
    ("idle_connection_bytes", "memory of the process per idle connection"),
    ("journal_append_rows_per_s_batch_64", "rows into the journal, frames of facts in memory, one core"),
    ("seal_rows_per_s_batch_64", "rows from the journal into sealed and synced segments, one core"),
    ("encode_ship_ns", "a row from the journal to the socket of ClickHouse: sealed in the order of its table, read, sent"),
    ("debian_shipper_rows_per_s", "rows into ClickHouse 18.16 and its three roll-ups, end to end, client and server on two cores"),
    ("debian_shipper_to_insert_select_ratio", "the same, to the server's own `INSERT ... SELECT` of these rows"),
    ("engine_shipper_rows_per_s", "rows into a modern ClickHouse, the same"),
    ("engine_shipper_to_insert_select_ratio", "the same, to its own `INSERT ... SELECT`"),
    ("engine_shipper_4_in_flight_to_insert_select_ratio", "the same with `inserts_in_flight = 4`"),
    ("engine_disk_bytes_per_share_replayable", "a share on a modern ClickHouse's disk, layout `replayable`"),
    ("outage_away_p99_ratio", "p99 of submits while ClickHouse is away for half an hour of 1,000 shares/s, to p99 before"),
    ("outage_away_drained_ratio", "rows shipped per second afterwards, to rows that arrive meanwhile"),
    ("replay_shares_per_s_per_core", "`log replay`: every verdict again from the rows, one core"),
    ("group_minute_status_one_core_ns", "`otedama shares --by minute,status` over 10^8 rows: a row, one core"),
    ("group_worker_status_every_core_wall_ns", "the same `--by worker,status`, wall time on every core"),
    ("listening_ms", "from start to listening"),
    ("binary_bytes", "the binary"),
];

fn none_measured() -> String {
    "No figure has been measured yet: `cargo xtask figures pipeline`, then the other topics, then `table`.\n".to_owned()
}

/// What sums up: the headlines that have been measured, and where.
fn headlines(topics: &[Topic]) -> String {
    let found: Vec<(&Value, &str)> = HEADLINES
        .iter()
        .filter_map(|(name, meaning)| {
            let entry = topics.iter().flat_map(|topic| &topic.entries).find(|entry| entry["name"].as_str() == Some(name))?;
            Some((entry, *meaning))
        })
        .collect();
    if found.is_empty() {
        return none_measured();
    }
    let mut out = String::from("| | Median | Least to largest | Figure |\n|---|---:|---:|---|\n");
    for (entry, meaning) in &found {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {meaning} | {} {} | {} | `{}` |",
            plain(&entry["value"]),
            plain(&entry["unit"]),
            spread(entry),
            plain(&entry["name"])
        );
    }
    let mut machines: Vec<String> = found.iter().map(|(entry, _)| plain(&entry["cpu"])).collect();
    machines.sort();
    machines.dedup();
    let _ = writeln!(
        out,
        "\nMeasured on {}. Every figure with its conditions, command and commit: [docs/figures.md](docs/figures.md).",
        machines.join("; ")
    );
    out
}

/// All figures, a section for each topic.
fn sections(topics: &[Topic]) -> String {
    if topics.iter().all(|topic| topic.entries.is_empty()) {
        return none_measured();
    }
    topics
        .iter()
        .filter(|topic| !topic.entries.is_empty())
        .map(|topic| format!("\n## {}\n\n{}", topic.name, table(&topic.entries)))
        .collect()
}

fn spread(entry: &Value) -> String {
    entry["spread"].as_array().map_or(String::new(), |ends| ends.iter().map(plain).collect::<Vec<_>>().join(" to "))
}

fn table(entries: &[Value]) -> String {
    let mut out = String::from("| Figure | Median | Least to largest | Runs | Conditions |\n|---|---:|---:|---:|---|\n");
    // Figures of one run share their conditions, which are long: they stand once, below.
    let mut conditions: Vec<String> = Vec::new();
    for entry in entries {
        let condition = plain(&entry["conditions"]);
        let number = conditions.iter().position(|known| *known == condition).unwrap_or_else(|| {
            conditions.push(condition);
            conditions.len() - 1
        });
        let _ = writeln!(
            out,
            "| `{}` | {} {} | {} | {} | {} |",
            plain(&entry["name"]),
            plain(&entry["value"]),
            plain(&entry["unit"]),
            spread(entry),
            plain(&entry["runs"]),
            number + 1
        );
    }
    out.push_str("\nConditions:\n\n");
    for (index, condition) in conditions.iter().enumerate() {
        let _ = writeln!(out, "{}. {condition}", index + 1);
    }
    let _ = writeln!(out, "\nMeasured by {}.", origins(entries));
    out
}

/// A value as it stands in a cell: text without what ends a cell, numbers with their thousands set apart.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| grouped(&value.to_string()), |text| text.replace('|', "\\|"))
}

/// The commands that measured the entries, and where.
fn origins(entries: &[Value]) -> String {
    let mut origins: Vec<String> = entries
        .iter()
        .map(|entry| format!("`{}` on {}, commit {}", plain(&entry["command"]), plain(&entry["cpu"]), plain(&entry["commit"])))
        .collect();
    origins.sort();
    origins.dedup();
    origins.join("; ")
}

/// A number with its thousands set apart: 1235000 as 1,235,000. Text that is no number stays as it is.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    if !whole.bytes().all(|digit| digit.is_ascii_digit()) {
        return number.to_owned();
    }
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(rest) = rest.filter(|rest| *rest != "0") {
        out.push('.');
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_replaces_what_stands_between_the_marks_and_nothing_else() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let once = replace(&text, "new\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(replace(&once, "new\n").unwrap(), once);
        assert_eq!(replace("no marks", "new\n"), None);
    }

    #[test]
    fn every_figure_has_a_row_with_its_value_and_command() {
        let entry = json!({"name": "n", "value": 12.5, "unit": "ms", "runs": 3, "spread": [12.0, 13.0], "conditions": "a|b", "cpu": "c", "commit": "d", "command": "cargo xtask figures start"});
        let text = table(&[entry.clone(), entry]);
        assert_eq!(text.matches("| `n` | 12.5 ms | 12 to 13 | 3 | 1 |").count(), 2, "{text}");
        assert_eq!(text.matches("1. a\\|b\n").count(), 1, "{text}");
        assert!(text.contains("`cargo xtask figures start` on c, commit d"), "{text}");
    }

    #[test]
    fn the_first_page_has_the_headlines_in_their_order_and_the_other_all_by_topic() {
        let entry = |name: &str| json!({"name": name, "value": 7, "unit": "ms", "runs": 1, "spread": [7, 8], "conditions": "x", "cpu": "c", "commit": "d", "command": "e"});
        let topics = [
            Topic { name: "a".to_owned(), entries: vec![entry("binary_bytes"), entry("unknown")] },
            Topic { name: "b".to_owned(), entries: vec![entry("listening_ms")] },
            Topic { name: "empty".to_owned(), entries: vec![] },
        ];
        let first = headlines(&topics);
        let (at, then) = (first.find("`listening_ms`").unwrap(), first.find("`binary_bytes`").unwrap());
        assert!(at < then && !first.contains("unknown") && first.contains("Measured on c."), "{first}");
        let all = sections(&topics);
        assert!(all.contains("## a") && all.contains("`unknown`") && all.contains("## b") && !all.contains("## empty"), "{all}");
        assert!(headlines(&[]).contains("No figure") && sections(&[]).contains("No figure"));
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            ("1235000", "1,235,000"),
            ("999", "999"),
            ("1000", "1,000"),
            ("100.0", "100"),
            ("0.3012", "0.3012"),
            ("1234.5", "1,234.5"),
            ("null", "null"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
