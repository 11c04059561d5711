//! Puts docs/figures/*.json into README.md and docs/kernels.md, between two marks: neither quotes anything that was not measured by a committed command.
mod kernels;

use crate::Failure;
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
    let entries = entries(&root.join("docs/figures"))?;
    // README has what sums up; the rows of the kernels' grids have a page of their own.
    let (grid, mut rest): (Vec<Value>, Vec<Value>) = entries.into_iter().partition(kernels::is_cell);
    // So have the recipes, one by one: docs/sql, which their own command writes.
    rest.retain(|entry| !entry["name"].as_str().is_some_and(|name| name.starts_with("recipe_ms_")));
    let page = |name: &str, table: &str| {
        let path = root.join(name);
        let failed = |what: &dyn std::fmt::Display| Failure::Environment(format!("{}: {what}", path.display()));
        let before = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
        let after = replace(&before, table).ok_or_else(|| failed(&"the two marks of the figures table are missing"))?;
        Ok(Page { path: path.clone(), before, after })
    };
    Ok(vec![page("README.md", &table(&rest))?, page("docs/kernels.md", &kernels::grids(&grid))?])
}

/// Every entry of every file, file by file.
fn entries(folder: &Path) -> Result<Vec<Value>, Failure> {
    let failed = |path: &Path, what: &dyn std::fmt::Display| Failure::Environment(format!("{}: {what}", path.display()));
    let mut files: Vec<_> = match std::fs::read_dir(folder) {
        Ok(folder) => {
            folder.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
        }
        Err(_) => Vec::new(),
    };
    files.sort();
    let mut entries = Vec::new();
    for file in files {
        let json = std::fs::read_to_string(&file).map_err(|error| failed(&file, &error))?;
        let value: Value = serde_json::from_str(&json).map_err(|error| failed(&file, &error))?;
        entries.extend(value.as_array().cloned().ok_or_else(|| failed(&file, &"is no list"))?);
    }
    Ok(entries)
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

fn table(entries: &[Value]) -> String {
    if entries.is_empty() {
        return "No figure has been measured yet: `cargo xtask figures pipeline`, then `memory`, `start`, `kernels`, `parser` and `table`.\n"
            .to_owned();
    }
    let mut out = String::from("| Figure | Median | Least to largest | Runs | Conditions |\n|---|---:|---:|---:|---|\n");
    // Figures of one run share their conditions, which are long: they stand once, below.
    let mut conditions: Vec<String> = Vec::new();
    for entry in entries {
        let spread = entry["spread"].as_array().map_or(String::new(), |ends| ends.iter().map(plain).collect::<Vec<_>>().join(" to "));
        let condition = plain(&entry["conditions"]);
        let number = conditions.iter().position(|known| *known == condition).unwrap_or_else(|| {
            conditions.push(condition);
            conditions.len() - 1
        });
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| `{}` | {} {} | {spread} | {} | {} |",
            plain(&entry["name"]),
            plain(&entry["value"]),
            plain(&entry["unit"]),
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
        assert!(table(&[]).contains("No figure"));
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
