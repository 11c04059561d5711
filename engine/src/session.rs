//! One request as a server runs it: a session of its own, with its database and settings, and one statement in it.
use crate::exception::{Exception, code};
use crate::library::{Answer, Connection, Library};
use crate::statement::{Insert, is_name, literal};
use std::path::Path;

/// Where and how a statement runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Current database; empty for `default`.
    pub database: String,
    /// Settings and query parameters (`param_...`), in their order.
    pub settings: Vec<(String, String)>,
    /// Format of the result where the statement names none.
    pub format: String,
    /// Nothing may be changed: `readonly` 2, as a server does for GET.
    pub read_only: bool,
}

/// A statement.
pub enum Statement<'a> {
    /// As it stands.
    Text(&'a [u8]),
    /// An INSERT with its data in a file.
    FromFile {
        /// The statement up to the name of its format.
        text: &'a str,
        /// Its parts.
        insert: Insert,
        /// The file, deleted by the caller.
        data: &'a Path,
    },
}

/// Runs `statement` in a session of its own.
///
/// # Errors
/// What the engine says, or what this front refuses.
pub fn run(library: &'static Library, environment: &Environment, statement: &Statement<'_>) -> Result<Answer, Exception> {
    let mut connection = connect(library)?;
    enter(&mut connection, environment)?;
    let format = if environment.format.is_empty() { "TabSeparated" } else { &environment.format };
    let answer = match statement {
        Statement::Text(text) => connection.query(text, format),
        Statement::FromFile { text, insert, data } => connection.query(&from_file(text, insert, data)?, format),
    };
    answer.map_err(Exception::of_library)
}

/// A connection.
///
/// # Errors
/// When the library gives none.
pub fn connect(library: &'static Library) -> Result<Connection, Exception> {
    library
        .connect()
        .ok_or_else(|| Exception::new(code::CANNOT_SCHEDULE_TASK, "the engine takes no further connection: it is shutting down"))
}

/// Gives a fresh connection its database and settings.
///
/// # Errors
/// What the engine says to a name or a value.
pub fn enter(connection: &mut Connection, environment: &Environment) -> Result<(), Exception> {
    let mut run = |text: String| connection.query(text.as_bytes(), "Null").map(drop).map_err(Exception::of_library);
    if !environment.database.is_empty() {
        run(format!("USE {}", quoted(&environment.database)))?;
    }
    // `readonly` locks the others, so it comes last.
    let (last, first): (Vec<_>, Vec<_>) = environment.settings.iter().partition(|(name, _)| name == "readonly");
    let mut set = String::new();
    for (name, value) in first.into_iter().chain(last) {
        if !is_name(name) {
            return Err(Exception::new(code::UNKNOWN_SETTING, format_args!("Unknown setting '{name}'")));
        }
        set.push_str(if set.is_empty() { "SET " } else { ", " });
        set.push_str(name);
        set.push_str(" = ");
        set.push_str(&literal(value));
    }
    if environment.read_only && !environment.settings.iter().any(|(name, value)| name == "readonly" && value != "0") {
        set.push_str(if set.is_empty() { "SET readonly = 2" } else { ", readonly = 2" });
    }
    if set.is_empty() { Ok(()) } else { run(set) }
}

fn quoted(identifier: &str) -> String {
    format!("`{}`", identifier.replace('\\', "\\\\").replace('`', "\\`"))
}

/// The INSERT that reads `data`. The whole body is in the file by then, so a body cut on its way never reaches the engine.
fn from_file(text: &str, insert: &Insert, data: &Path) -> Result<Vec<u8>, Exception> {
    let data = data.to_str().ok_or_else(|| Exception::new(code::CANNOT_WRITE_TO_FILE, "the spool folder's name is not UTF-8"))?;
    let (head, tail) = (&text[..insert.source_at], &text[insert.source_at..insert.end]);
    Ok(format!("{head}FROM INFILE {} COMPRESSION 'none' {tail}", literal(data)).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Kind, kind};

    #[test]
    fn the_file_stands_before_settings_and_format() {
        let text = "INSERT INTO t (a) SETTINGS b = 1 FORMAT Native";
        let Ok(Kind::Insert(insert)) = kind(text.as_bytes()) else { panic!("an insert") };
        assert_eq!(
            String::from_utf8(from_file(text, &insert, Path::new("/d/it's")).expect("UTF-8")).expect("UTF-8"),
            "INSERT INTO t (a) FROM INFILE '/d/it\\'s' COMPRESSION 'none' SETTINGS b = 1 FORMAT Native"
        );
    }
}
