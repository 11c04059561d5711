//! ClickHouse's exceptions: the code in their words, and the HTTP status that a server answers them with.
use std::fmt;

/// A statement that failed, in ClickHouse's words: `Code: 60. DB::Exception: ...`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    /// ClickHouse's number, such as 60 for UNKNOWN_TABLE; 0 when its words name none.
    pub code: u32,
    /// Its words.
    pub text: String,
}

/// Codes that this front gives itself. The numbers are ClickHouse's (src/Common/ErrorCodes.cpp).
pub mod code {
    /// A request that makes no sense.
    pub const BAD_ARGUMENTS: u32 = 36;
    /// What this front does not do.
    pub const NOT_IMPLEMENTED: u32 = 48;
    /// More than one statement, or text that is no SQL.
    pub const SYNTAX_ERROR: u32 = 62;
    /// A parameter that is no name of a setting.
    pub const UNKNOWN_SETTING: u32 = 115;
    /// The spool of a body.
    pub const CANNOT_WRITE_TO_FILE: u32 = 75;
    /// A body over the bound.
    pub const QUERY_IS_TOO_LARGE: u32 = 261;
    /// No thread or connection for it.
    pub const CANNOT_SCHEDULE_TASK: u32 = 439;
    /// The same query_id is at work.
    pub const QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING: u32 = 216;
    /// Wrong user or password.
    pub const AUTHENTICATION_FAILED: u32 = 516;
}

impl Exception {
    /// One of our own, in the form of ClickHouse's.
    pub fn new(code: u32, text: impl fmt::Display) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {text}") }
    }

    /// One of libchdb's.
    pub fn of_library(text: String) -> Self {
        Self { code: code_of(&text), text }
    }

    /// The status that ClickHouse's HTTP interface answers it with, as far as clients tell statuses apart; the code is what they should go by.
    pub fn status(&self) -> u16 {
        match self.code {
            // REQUIRED_PASSWORD
            194 => 401,
            // UNKNOWN_USER, WRONG_PASSWORD, AUTHENTICATION_FAILED
            192 | 193 | 516 => 403,
            // CANNOT_PARSE_TEXT, _ESCAPE_SEQUENCE, _QUOTED_STRING, ILLEGAL_COLUMN, DUPLICATE_COLUMN, BAD_ARGUMENTS, CANNOT_PARSE_DATE, _DATETIME, TYPE_MISMATCH, SYNTAX_ERROR,
            // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE, CANNOT_PARSE_NUMBER, UNKNOWN_ELEMENT_IN_AST, TOO_DEEP_AST, TOO_BIG_AST
            6 | 25 | 26 | 27 | 36 | 38 | 41 | 44 | 15 | 53 | 62 | 69 | 72 | 144 | 167 | 168 => 400,
            // UNKNOWN_FUNCTION, _IDENTIFIER, _TYPE, _STORAGE, _TABLE, _AGGREGATE_FUNCTION, _FORMAT, _QUERY, _DATABASE, _SETTING, _DATABASE_ENGINE
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 336 => 404,
            // TIMEOUT_EXCEEDED
            159 => 408,
            // QUERY_IS_TOO_LARGE
            261 => 413,
            // NOT_IMPLEMENTED
            48 => 501,
            // SOCKET_TIMEOUT, CANNOT_OPEN_FILE, CANNOT_SCHEDULE_TASK
            76 | 209 | 439 => 503,
            _ => 500,
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Exception {}

/// The number behind the first `Code: `; 0 when there is none.
fn code_of(text: &str) -> u32 {
    let Some((_, rest)) = text.split_once("Code: ") else { return 0 };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read_from_the_librarys_words() {
        let of = |text: &str| Exception::of_library(text.to_owned()).code;
        assert_eq!(of("Code: 60. DB::Exception: Unknown table expression identifier 'x'. (UNKNOWN_TABLE)"), 60);
        assert_eq!(of("Code: 27. DB::Exception: Cannot parse input: Code: 62. x"), 27);
        for text in ["", "Code: ", "Code: x", "it crashed", "Code: 99999999999"] {
            assert_eq!(of(text), 0, "{text}");
        }
    }

    #[test]
    fn ours_look_like_theirs() {
        let ours = Exception::new(code::SYNTAX_ERROR, "why");
        assert_eq!(ours.text, "Code: 62. DB::Exception: why");
        assert_eq!(Exception::of_library(ours.text.clone()), ours);
        assert_eq!((ours.status(), Exception::new(516, "").status(), Exception::new(60, "").status()), (400, 403, 404));
        assert_eq!((Exception::new(252, "").status(), Exception::new(0, "").status()), (500, 500));
    }
}
