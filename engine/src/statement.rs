//! As much SQL as the front must understand: where the statement of an `INSERT ... FORMAT x` ends and its data begin, whether there is a second statement, and which FORMAT
//! a statement names. Quotes, comments and brackets are stepped over as ClickHouse's lexer does; everything else is left to ClickHouse's own parser.

/// An INSERT whose data stand behind its FORMAT, in the text or in the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insert {
    /// Offset at which `FROM INFILE '...'` belongs: before SETTINGS, else before FORMAT.
    pub source_at: usize,
    /// Offset behind the name of the format: the end of the statement.
    pub end: usize,
    /// Offset of the first byte of data.
    pub data_at: usize,
}

/// What a text is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `INSERT ... FORMAT x` with data of that format.
    Insert(Insert),
    /// Anything else, with the format of its result where it names one.
    Other {
        /// `FORMAT x` at its end.
        format: Option<String>,
    },
}

/// What the front refuses without asking the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A second statement behind a semicolon.
    #[error("Syntax error (Multi-statements are not allowed)")]
    SecondStatement,
    /// A server writes no files on behalf of its clients.
    #[error("INTO OUTFILE is not allowed over HTTP: redirect the result on the client's side")]
    IntoOutfile,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Word { start: usize, end: usize },
    Semicolon,
    Open,
    Close,
    Else,
}

/// Splits a text into words, brackets and the rest; quotes and comments are one token or none.
struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl Lexer<'_> {
    fn skip_quoted(&mut self, quote: u8) {
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            if byte == b'\\' {
                self.at += 1;
            } else if byte == quote {
                // A doubled quote goes on as a second literal, which ends at the same place.
                return;
            }
        }
    }

    fn skip_to(&mut self, end: &[u8]) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.windows(end.len()).position(|window| window == end).map_or(rest.len(), |position| position + end.len());
    }

    /// `$tag$ ... $tag$`; a lone dollar is nothing.
    fn skip_heredoc(&mut self) {
        let rest = &self.text[self.at..];
        let tag = rest[1..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
        if rest.get(tag + 1) == Some(&b'$') {
            let tag = rest[..tag + 2].to_vec();
            self.at += tag.len();
            self.skip_to(&tag);
        } else {
            self.at += 1;
        }
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let rest = self.text.get(self.at..)?;
            let byte = *rest.first()?;
            match byte {
                _ if byte.is_ascii_whitespace() || byte == 0x0b => self.at += 1,
                b'-' if rest.starts_with(b"--") => self.skip_to(b"\n"),
                b'#' if rest.starts_with(b"# ") || rest.starts_with(b"#!") => self.skip_to(b"\n"),
                b'/' if rest.starts_with(b"/*") => {
                    self.at += 2;
                    self.skip_to(b"*/");
                }
                b'\'' | b'"' | b'`' => {
                    self.skip_quoted(byte);
                    return Some(Token::Else);
                }
                b'$' => {
                    self.skip_heredoc();
                    return Some(Token::Else);
                }
                _ if byte.is_ascii_alphanumeric() || byte == b'_' => {
                    let start = self.at;
                    self.at += rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
                    return Some(Token::Word { start, end: self.at });
                }
                _ => {
                    self.at += 1;
                    return Some(match byte {
                        b';' => Token::Semicolon,
                        b'(' | b'[' | b'{' => Token::Open,
                        b')' | b']' | b'}' => Token::Close,
                        _ => Token::Else,
                    });
                }
            }
        }
    }
}

/// What `text` is. `text` may go on as binary data behind an INSERT's FORMAT: nothing behind that is looked at.
///
/// # Errors
/// Texts that a server refuses whatever they mean.
pub fn kind(text: &[u8]) -> Result<Kind, Refusal> {
    let mut lexer = Lexer { text, at: 0 };
    let is = |start: usize, end: usize, word: &str| text[start..end].eq_ignore_ascii_case(word.as_bytes());
    let mut depth = 0_usize;
    let mut first = true;
    // An INSERT that has not come to its VALUES, SELECT or FORMAT yet.
    let mut inserting = false;
    let mut settings_at = None;
    let mut after_into = false;
    let mut format = None;
    while let Some(token) = lexer.next() {
        let came_after_into = std::mem::take(&mut after_into);
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            Token::Semicolon if depth == 0 => {
                return if lexer.next().is_some() { Err(Refusal::SecondStatement) } else { Ok(Kind::Other { format }) };
            }
            Token::Word { start, end } if depth == 0 => {
                if first {
                    inserting = is(start, end, "INSERT");
                } else if inserting && ["SELECT", "WITH", "WATCH", "INFILE"].iter().any(|word| is(start, end, word)) {
                    inserting = false;
                } else if inserting && is(start, end, "VALUES") {
                    // Inline data: brackets, quotes and commas, which ClickHouse reads from the text itself.
                    return Ok(Kind::Other { format: None });
                } else if inserting && is(start, end, "SETTINGS") {
                    settings_at.get_or_insert(start);
                } else if is(start, end, "OUTFILE") && came_after_into {
                    return Err(Refusal::IntoOutfile);
                } else if is(start, end, "FORMAT") {
                    let Some(Token::Word { start: name, end: name_end }) = lexer.next() else { continue };
                    if inserting {
                        return Ok(Kind::Insert(Insert {
                            source_at: settings_at.unwrap_or(start),
                            end: name_end,
                            data_at: data_at(text, name_end),
                        }));
                    }
                    format = Some(String::from_utf8_lossy(&text[name..name_end]).into_owned());
                } else {
                    after_into = is(start, end, "INTO");
                }
            }
            _ => {}
        }
        first = false;
    }
    Ok(Kind::Other { format })
}

/// Where the data of an INSERT begin: behind blanks, one semicolon and at most one line end.
fn data_at(text: &[u8], format_end: usize) -> usize {
    let blanks = |mut at: usize| {
        while matches!(text.get(at), Some(b' ' | b'\t' | 0x0c)) {
            at += 1;
        }
        at
    };
    let mut at = blanks(format_end);
    if text.get(at) == Some(&b';') {
        at = blanks(at + 1);
    }
    if text.get(at) == Some(&b'\r') {
        at += 1;
    }
    if text.get(at) == Some(&b'\n') {
        at += 1;
    }
    at
}

/// Quotes a string literal.
pub fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for character in text.chars() {
        match character {
            '\\' | '\'' => {
                quoted.push('\\');
                quoted.push(character);
            }
            '\0' => quoted.push_str("\\0"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// True for what may stand as the name of a setting.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn insert(text: &str) -> (&str, &str, &str) {
        match kind(text.as_bytes()) {
            Ok(Kind::Insert(insert)) => (&text[..insert.source_at], &text[insert.source_at..insert.end], &text[insert.data_at..]),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn format(text: &str) -> Option<String> {
        match kind(text.as_bytes()) {
            Ok(Kind::Other { format }) => format,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_insert_is_cut_behind_its_format() {
        assert_eq!(insert("INSERT INTO `a`.`t` (x, y) FORMAT Native"), ("INSERT INTO `a`.`t` (x, y) ", "FORMAT Native", ""));
        assert_eq!(
            insert("insert into t settings a = 1, b='FORMAT x' format TSV\n1\t2\n"),
            ("insert into t ", "settings a = 1, b='FORMAT x' format TSV", "1\t2\n")
        );
        assert_eq!(insert("/* FORMAT */ INSERT INTO t -- FORMAT CSV\nFORMAT JSONEachRow {\"a\":1}").2, "{\"a\":1}");
        assert_eq!(insert("INSERT INTO `FORMAT x` FORMAT Native ;\n\n").2, "\n", "only one line end is the statement's");
        assert_eq!(insert("INSERT INTO t (format) FORMAT CSV\r\n1").2, "1");
    }

    #[test]
    fn data_behind_the_format_are_not_read_as_sql() {
        let text = b"INSERT INTO t FORMAT Native\n\x02;'\xff(INTO OUTFILE".as_slice();
        let Ok(Kind::Insert(found)) = kind(text) else { panic!("an insert") };
        assert_eq!(&text[found.data_at..found.data_at + 2], b"\x02;");
    }

    #[test]
    fn inserts_that_bring_their_own_data_are_left_alone() {
        for text in [
            "INSERT INTO t VALUES (1, 'a;b'), (2, 'FORMAT CSV')",
            "INSERT INTO t SELECT 1 FORMAT CSV",
            "INSERT INTO t WITH 1 AS a SELECT a",
            "INSERT INTO t FROM INFILE 'x' FORMAT Native",
            "INSERT INTO t (a) VALUES (1);(2)",
        ] {
            assert!(matches!(kind(text.as_bytes()), Ok(Kind::Other { .. })), "{text}");
        }
    }

    #[test]
    fn the_format_of_a_result_is_found_behind_everything_quoted() {
        assert_eq!(format("SELECT 1 FORMAT JSON"), Some("JSON".into()));
        assert_eq!(format("SELECT 'FORMAT CSV', \"FORMAT\", `a``b` /* FORMAT X */ FROM (SELECT 1 FORMAT TSV) -- FORMAT Y"), None);
        assert_eq!(format("SELECT $q$ it's ; FORMAT CSV $q$ format TabSeparated SETTINGS a = 1;  \n-- end"), Some("TabSeparated".into()));
        assert_eq!(format("SELECT formatDateTime(now(), 'x'), format('{}', 1)"), None);
        assert_eq!(format("SELECT 'it''s; ' , 'a\\'; b'"), None);
        assert_eq!(format(""), None);
    }

    #[test]
    fn a_second_statement_and_an_outfile_are_refused() {
        assert_eq!(kind(b"SELECT 1; SELECT 2"), Err(Refusal::SecondStatement));
        assert_eq!(kind(b"SELECT ';' ; /* more */ DROP TABLE t"), Err(Refusal::SecondStatement));
        assert!(kind(b"SELECT ';' ; /* more */ -- and more").is_ok());
        assert_eq!(kind(b"SELECT 1 INTO  /* x */ outfile 'a'"), Err(Refusal::IntoOutfile));
        assert!(kind(b"SELECT outfile, 'INTO OUTFILE' FROM t").is_ok());
        assert!(kind(b"INSERT INTO outfile_of_mine VALUES (1)").is_ok());
    }

    #[test]
    fn literals_cannot_end_early_and_names_are_names() {
        assert_eq!(literal("a'b\\c\0"), "'a\\'b\\\\c\\0'");
        assert!(is_name("async_insert") && is_name("_a.b9"));
        for wrong in ["", "1a", "a b", "a=1", "a'", "a;b", "é"] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_point_outside(text in proptest::collection::vec(prop_oneof![
            Just(b"INSERT ".to_vec()), Just(b" FORMAT ".to_vec()), Just(b"'".to_vec()), Just(b"$".to_vec()), Just(b"$a$".to_vec()), Just(b"\\".to_vec()),
            Just(b"/*".to_vec()), Just(b"--".to_vec()), Just(b";".to_vec()), Just(b"(".to_vec()), Just(b")".to_vec()), Just(b"\n".to_vec()),
            Just(b"SETTINGS ".to_vec()), Just(b"INTO ".to_vec()), proptest::collection::vec(any::<u8>(), 0..4)
        ], 0..20)) {
            let text = text.concat();
            if let Ok(Kind::Insert(insert)) = kind(&text) {
                prop_assert!(insert.source_at <= insert.end && insert.end <= insert.data_at && insert.data_at <= text.len());
            }
        }

        #[test]
        fn a_literal_is_one_token_whatever_it_quotes(text in "[ -~]{0,12}|.{0,12}") {
            let sql = format!("SELECT {} FORMAT Native", literal(&text));
            prop_assert_eq!(kind(sql.as_bytes()), Ok(Kind::Other { format: Some("Native".into()) }));
        }
    }
}
