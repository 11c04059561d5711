//! The tables of a server over the segments of a share log, for an engine on a laptop without a server: the statements that make them.
//!
//! `shares` is a view over the `.native` and `.native.zst` files as they lie on the disk, and a roll-up is a view with the very SELECT that fills its table on a server, so that recipes run
//! the same. Dimension tables are made and filled, because queries read them under FINAL; they are small. Rows that are still in the journal are not there: a log without
//! ClickHouse seals by rows or after 10 minutes.
use crate::dimension::RecentJobs;
use crate::schema::{self, Flavour, SEGMENTS, SHARES, Table, identifier, literal};
use crate::ship::{job_end_sql, read_dimensions, segment_rows};
use otedama_sharelog::store::{Readable, SegmentStore};
use otedama_sharelog::{DIMENSIONS_FILE, DIMENSIONS_START, LogError};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What makes the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalTables {
    /// Statements, in the order to run them.
    pub statements: Vec<String>,
    /// Segments that `shares` reads.
    pub segments: usize,
    /// Rows in them.
    pub rows: u64,
    /// Segments whose metas are damaged: a sentence each. `shares` has their rows, `segments` has nothing of them.
    pub damaged: Vec<String>,
}

/// The tables of `database` over the log in `dir`; the text of dimension records is written into the folder `into`, which has to last until the statements have run. Of a log in
/// use the caller holds `otedama_sharelog::store::hold_forms` until then: a segment that is packed meanwhile would be met twice, or not at all.
///
/// # Errors
/// When the log cannot be read or the folder not be written.
pub fn local_tables(dir: &Path, database: &str, into: &Path) -> Result<LocalTables, LogError> {
    let io = |operation: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| LogError::Io { operation, path, source }
    };
    let dir = dir.canonicalize().map_err(io("find the share log", dir))?;
    let Readable { metas, damaged } = SegmentStore::open(&dir)?.readable()?;
    let metas: Vec<_> = metas.into_iter().map(Arc::new).collect();
    let mut statements = tables(database, &source(&dir, metas.is_empty() && damaged.is_empty()));
    let mut fill = |table: &Table, number: usize, text: &str| {
        let path = into.join(format!("{}-{number}.tsv", table.name));
        std::fs::write(&path, text).map_err(io("write the records of a table to", &path))?;
        statements.push(format!(
            "INSERT INTO {}.{} {} FROM INFILE {} FORMAT TabSeparated",
            identifier(database),
            identifier(table.name),
            table.column_list(),
            literal(&path.to_string_lossy())
        ));
        Ok::<_, LogError>(())
    };
    let mut ends = Vec::new();
    if dir.join(DIMENSIONS_FILE).exists() {
        let (mut jobs, mut from, mut number) = (RecentJobs::default(), DIMENSIONS_START, 0);
        loop {
            let (rows, offset) = read_dimensions(&dir, from, None, &mut jobs)?;
            if rows.is_empty() {
                break;
            }
            let (parts, job_ends) = rows.into_parts();
            for (table, text) in parts {
                fill(table, number, &text)?;
            }
            ends.extend(job_ends);
            (from, number) = (offset, number + 1);
        }
    }
    if !metas.is_empty() {
        fill(&SEGMENTS, 0, &segment_rows(&metas, schema::VERSION))?;
    }
    statements.extend(ends.into_iter().map(|(job, us)| job_end_sql(database, job.0, us)));
    Ok(LocalTables {
        statements,
        segments: metas.len(),
        rows: metas.iter().map(|meta| u64::from(meta.rows)).sum(),
        damaged: damaged.iter().map(|damaged| damaged.error.to_string()).collect(),
    })
}

/// The table function that reads the segments, and what it must leave out.
fn source(dir: &Path, empty: bool) -> String {
    let structure: Vec<_> = SHARES.columns.iter().map(|column| format!("{} {}", column.name, schema::wire_kind(column))).collect();
    let structure = literal(&structure.join(", "));
    if empty {
        return format!("null({structure})");
    }
    let names = || std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let packed: Vec<String> = names().filter(|name| name.ends_with(".native.zst")).collect();
    let files: PathBuf = dir.join(if packed.is_empty() { "*.native" } else { "*.{native,native.zst}" });
    let read = format!("file({}, 'Native', {structure})", literal(&files.to_string_lossy()));
    // A packer that was killed leaves both forms of a segment: the plain one is the segment.
    let twice: Vec<String> =
        packed.iter().filter(|name| dir.join(name.trim_end_matches(".zst")).exists()).map(|name| literal(name)).collect();
    if twice.is_empty() { read } else { format!("{read}\nWHERE _file NOT IN ({})", twice.join(", ")) }
}

/// A modern server's DDL with `shares` over `source`, and every roll-up a view instead of a table that a view fills.
fn tables(database: &str, source: &str) -> Vec<String> {
    const VIEW: &str = "CREATE MATERIALIZED VIEW IF NOT EXISTS ";
    let ddl = schema::ddl(&Flavour::Single, database, schema::KEEP_DAYS);
    // `VIEW name TO target AS SELECT ...`
    let filled = |statement: &str| {
        let (_, rest) = statement.strip_prefix(VIEW)?.split_once(" TO ")?;
        let (target, select) = rest.split_once(" AS\n")?;
        Some((target.to_owned(), select.to_owned()))
    };
    let targets: Vec<String> = ddl.iter().filter_map(|statement| filled(statement)).map(|(target, _)| target).collect();
    let shares = format!("{}.{}", identifier(database), identifier(SHARES.name));
    let makes = |statement: &str, table: &str| {
        statement
            .strip_prefix("CREATE TABLE IF NOT EXISTS ")
            .is_some_and(|rest| rest.strip_prefix(table).is_some_and(|rest| rest.starts_with('\n')))
    };
    let mut statements = Vec::new();
    for statement in &ddl {
        if makes(statement, &shares) {
            let (declared, selected) = shares_columns();
            statements.push(format!("CREATE VIEW {shares}\n(\n{declared}\n) AS\nSELECT {selected}\nFROM {source}"));
        } else if let Some((target, select)) = filled(statement) {
            let table = ddl.iter().find(|statement| makes(statement, &target));
            let declared = table.and_then(|table| columns_of(table)).unwrap_or_default();
            statements.push(format!("CREATE VIEW {target}\n(\n{declared}\n) AS\n{select}"));
        } else if !targets.iter().any(|target| makes(statement, target)) {
            statements.push(statement.clone());
        }
    }
    statements
}

/// The column lines of a CREATE TABLE, with their comments and without codecs, which a view has not.
fn columns_of(statement: &str) -> Option<String> {
    let (_, rest) = statement.split_once("\n(\n")?;
    let (columns, _) = rest.split_once("\n)\n")?;
    let plain = |line: &str| match line.split_once(" CODEC(") {
        Some((line_, _)) => format!("{line_}{}", if line.ends_with(',') { "," } else { "" }),
        None => line.to_owned(),
    };
    Some(columns.lines().map(plain).collect::<Vec<_>>().join("\n"))
}

/// The columns of `shares` as its table has them, declared and selected: `work` wide enough for a bare sum, and `ts`.
fn shares_columns() -> (String, String) {
    let (mut declared, mut selected) = (String::new(), String::new());
    for column in SHARES.columns {
        let (name, work) = (column.name, schema::is_work(column));
        // Infallible: writing to a String.
        let _ = writeln!(declared, "    `{name}` {} COMMENT {},", if work { "UInt128" } else { column.kind }, literal(column.comment));
        let _ = match name {
            _ if work => write!(selected, "toUInt128({name}) AS {name}, "),
            // 0 where the layout of the segment has no such column: a row is one share then.
            "share_count" => write!(selected, "greatest({name}, toUInt32(1)) AS {name}, "),
            _ => write!(selected, "{name}, "),
        };
    }
    declared.push_str("    `ts` DateTime64(6, 'UTC') COMMENT 'time and us in one'");
    selected.push_str("toDateTime64(time, 6, 'UTC') + toIntervalMicrosecond(us) AS ts");
    (declared, selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_laptop_has_every_table_of_a_server_and_no_materialized_view() {
        let server = schema::ddl(&Flavour::Single, "o`x", schema::KEEP_DAYS);
        let local = tables("o`x", "file('x')");
        let name = |statement: &String| -> Option<String> {
            let rest =
                statement.strip_prefix("CREATE TABLE IF NOT EXISTS ").or_else(|| statement.strip_prefix("CREATE VIEW IF NOT EXISTS "));
            let rest = rest.or_else(|| statement.strip_prefix("CREATE VIEW "))?;
            Some(rest.split([' ', '\n']).next().unwrap_or_default().to_owned())
        };
        let of = |statements: &[String]| {
            let mut names: Vec<_> = statements.iter().filter_map(name).collect();
            names.sort();
            names
        };
        assert_eq!(of(&local), of(&server));
        assert!(local.iter().all(|statement| !statement.contains("MATERIALIZED") && !statement.contains("SummingMergeTree")), "{local:#?}");
        let roll_up = local
            .iter()
            .find(|statement| statement.starts_with("CREATE VIEW `o\\`x`.`worker_minute`\n(\n    `worker` UInt64 COMMENT '"))
            .expect("a view");
        assert!(
            roll_up.contains("\n) AS\nSELECT ") && roll_up.contains("sum(work) AS work") && roll_up.contains("FROM `o\\`x`.`shares`"),
            "{roll_up}"
        );
    }

    #[test]
    fn the_view_has_the_columns_of_the_table_and_reads_those_of_the_wire() {
        let (declared, selected) = shares_columns();
        assert_eq!(declared.matches(" COMMENT '").count(), SHARES.columns.len() + 1, "every column and ts: {declared}");
        assert_eq!(
            selected.matches(", ").count(),
            SHARES.columns.len() + 3,
            "ts has two commas of its own and share_count one: {selected}"
        );
        assert!(selected.contains("toUInt128(work) AS work"));
        let read = source(Path::new("/l'og"), false);
        assert!(read.starts_with("file('/l\\'og/*.native', 'Native', 'instance UInt16, ") && read.contains("work UInt64"), "{read}");
        assert!(source(Path::new("/"), true).starts_with("null('instance UInt16"));
    }

    #[test]
    fn a_segment_in_two_forms_is_read_once() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["1-1.native", "1-2.native.zst", "1-2.meta", "1-3.native.zst.tmp"] {
            std::fs::write(folder.path().join(name), "").expect("write");
        }
        let read = source(folder.path(), false);
        assert!(read.contains("/*.{native,native.zst}'") && read.ends_with(')') && !read.contains("WHERE"), "{read}");
        std::fs::write(folder.path().join("1-1.native.zst"), "").expect("write");
        assert!(source(folder.path(), false).ends_with(")\nWHERE _file NOT IN ('1-1.native.zst')"));
    }
}
