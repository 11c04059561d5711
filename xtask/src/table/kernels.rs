//! The kernels' figures as grids: a hundred rows of one number each are no table that anybody reads.
use super::{origins, plain};
use serde_json::Value;
use std::fmt::Write as _;

/// Where a figure stands in the grids, read from its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell<'a> {
    /// `v1_share_cycles_<kernel>_n<shares>`
    Batch { kernel: &'a str, shares: u32 },
    /// `v1_share_cycles_<kernel>_levels<levels>`
    Depth { kernel: &'a str, levels: u32 },
    /// `header_only_cycles_<kernel>`, `sha2` and its bare compression function among them.
    Header { kernel: &'a str },
    /// `v1_share_cycles_sha2_<form>`
    Sha2 { form: &'a str },
}

/// Levels of the tree in the grid by batch length.
const LEVELS: u32 = 12;
/// Shares of a batch in the grid by depth.
const BATCH: u32 = 32;

fn cell(name: &str) -> Option<Cell<'_>> {
    if let Some(kernel) = name.strip_prefix("header_only_cycles_") {
        return Some(Cell::Header { kernel });
    }
    let rest = name.strip_prefix("v1_share_cycles_")?;
    if let Some(form) = rest.strip_prefix("sha2_") {
        return Some(Cell::Sha2 { form });
    }
    let (kernel, size) = rest.rsplit_once('_')?;
    if let Some(levels) = size.strip_prefix("levels") {
        return Some(Cell::Depth { kernel, levels: levels.parse().ok()? });
    }
    Some(Cell::Batch { kernel, shares: size.strip_prefix('n')?.parse().ok()? })
}

fn name_of(entry: &Value) -> &str {
    entry["name"].as_str().unwrap_or_default()
}

/// Whether this figure has its place in the grids, and none in README.
pub fn is_cell(entry: &Value) -> bool {
    cell(name_of(entry)).is_some()
}

/// The grids of docs/kernels.md.
pub fn grids(entries: &[Value]) -> String {
    if entries.is_empty() {
        return "No kernel has been measured yet: `cargo xtask figures kernels`, then `cargo xtask figures table`.\n".to_owned();
    }
    let cells: Vec<(Cell<'_>, String)> = entries.iter().filter_map(|entry| Some((cell(name_of(entry))?, plain(&entry["value"])))).collect();
    let value =
        |wanted: &Cell<'_>| cells.iter().find(|(cell, _)| cell == wanted).map_or_else(|| "-".to_owned(), |(_, value)| value.clone());
    let mut kernels: Vec<&str> = Vec::new();
    let (mut shares, mut levels) = (Vec::new(), vec![LEVELS]);
    for (cell, _) in &cells {
        match cell {
            Cell::Batch { kernel, shares: count } => {
                kernels.push(kernel);
                shares.push(*count);
            }
            Cell::Depth { levels: count, .. } => levels.push(*count),
            Cell::Header { .. } | Cell::Sha2 { .. } => {}
        }
    }
    // In the order of their first row, which is from the plainest to the best.
    let mut seen = Vec::new();
    kernels.retain(|kernel| {
        !seen.contains(kernel) && {
            seen.push(*kernel);
            true
        }
    });
    for sizes in [&mut shares, &mut levels] {
        sizes.sort_unstable();
        sizes.dedup();
    }

    let mut out = format!("Core cycles for each whole V1 share, {LEVELS} merkle levels, by the number of shares in the batch:\n\n");
    grid(&mut out, "Shares", &kernels, &shares, |kernel, &shares| value(&Cell::Batch { kernel, shares }));
    let _ = writeln!(out, "\nCore cycles for each whole V1 share, batches of {BATCH}, by the depth of the merkle tree:\n");
    grid(&mut out, "Levels", &kernels, &levels, |kernel, &levels| {
        if levels == LEVELS { value(&Cell::Batch { kernel, shares: BATCH }) } else { value(&Cell::Depth { kernel, levels }) }
    });
    out.push_str("\nCore cycles for each header over a known merkle root, batches of 32:\n\n");
    let headers: Vec<&str> =
        cells.iter().filter_map(|(cell, _)| if let Cell::Header { kernel } = cell { Some(*kernel) } else { None }).collect();
    grid(&mut out, "", &headers, &["header"], |kernel, _| value(&Cell::Header { kernel }));
    out.push_str("\nThe `sha2` crate, a whole V1 share at a time, in core cycles:\n\n");
    let forms: Vec<&str> = cells.iter().filter_map(|(cell, _)| if let Cell::Sha2 { form } = cell { Some(*form) } else { None }).collect();
    grid(&mut out, "", &forms, &["share"], |form, _| value(&Cell::Sha2 { form }));
    let mut conditions: Vec<String> = entries.iter().map(|entry| plain(&entry["conditions"])).collect();
    conditions.dedup();
    let _ = writeln!(out, "\nConditions: {}.\n\nMeasured by {}.", conditions.join("; "), origins(entries));
    out
}

/// One grid: a column for each name, a row for each size.
fn grid<R: std::fmt::Display>(out: &mut String, corner: &str, columns: &[&str], rows: &[R], value: impl Fn(&str, &R) -> String) {
    let heads: Vec<String> = columns.iter().map(|column| format!("`{column}`")).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "| {corner} | {} |\n|---:|{}", heads.join(" | "), "---:|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<String> = columns.iter().map(|column| value(column, row)).collect();
        let _ = writeln!(out, "| {row} | {} |", cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_say_where_a_figure_stands() {
        for (name, wanted) in [
            ("v1_share_cycles_avx512x2_n32", Some(Cell::Batch { kernel: "avx512x2", shares: 32 })),
            ("v1_share_cycles_shani_levels0", Some(Cell::Depth { kernel: "shani", levels: 0 })),
            ("v1_share_cycles_sha2_midstate", Some(Cell::Sha2 { form: "midstate" })),
            ("header_only_cycles_sha2_compress", Some(Cell::Header { kernel: "sha2_compress" })),
            ("v1_share_cycles", None),
            ("v1_share_median_cycles", None),
            ("v1_share_vs_sha2", None),
            ("validate_stage_vs_kernel", None),
            ("v1_share_cycles_shani_nx", None),
        ] {
            assert_eq!(cell(name), wanted, "{name}");
        }
    }

    #[test]
    fn the_grids_have_a_row_for_each_size_and_a_dash_for_what_was_not_measured() {
        let entry =
            |name: &str, value: f64| json!({"name": name, "value": value, "conditions": "d", "command": "m", "cpu": "c", "commit": "e"});
        let text = grids(&[
            entry("v1_share_cycles_sha2_midstate", 7484.0),
            entry("header_only_cycles_sha2", 521.0),
            entry("v1_share_cycles_portable_n1", 7000.0),
            entry("v1_share_cycles_portable_n32", 6900.0),
            entry("v1_share_cycles_shani_n2", 3215.0),
            entry("v1_share_cycles_shani_n32", 2518.0),
            entry("v1_share_cycles_shani_levels4", 1012.0),
            entry("header_only_cycles_shani", 244.0),
        ]);
        for row in [
            "| Shares | `portable` | `shani` |\n|---:|---:|---:|\n| 1 | 7,000 | - |\n| 2 | - | 3,215 |\n| 32 | 6,900 | 2,518 |\n",
            "| Levels | `portable` | `shani` |\n|---:|---:|---:|\n| 4 | - | 1,012 |\n| 12 | 6,900 | 2,518 |\n",
            "| header | 521 | 244 |\n",
            "| share | 7,484 |\n",
            "Conditions: d.\n\nMeasured by `m` on c, commit e.\n",
        ] {
            assert!(text.contains(row), "{row}\nis not in\n{text}");
        }
        assert!(grids(&[]).contains("No kernel"));
    }
}
