//! The analyst's book: the queries of docs/sql, embedded, with their parameters bound on this side.
//!
//! A recipe is one SELECT that runs on 18.16 as well as on modern servers, behind a header of comments:
//!
//! ```sql
//! -- name: what it shows, in a line
//! -- question: the question it answers
//! -- param since DateTime = 1d: start of the span
//! -- answer: how to read the result
//! ```
//!
//! A parameter stands in the text as `{since:DateTime}`, which is how modern servers and their client take parameters too. 18.16 has none, so `Recipe::bind` puts checked
//! literals in their place and the server sees a plain statement.
use crate::dimension::date_time;
use crate::schema::literal;
use std::fmt::Write;

/// A query of the book.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Its name: that of its file in docs/sql, without the ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

/// A parameter of a recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parameter {
    /// Its name, as in `name=value`.
    pub name: &'static str,
    /// How its value is read.
    pub kind: Kind,
    /// The value it has unless another is given; None where one must be given.
    pub default: Option<&'static str>,
    /// What it is for.
    pub meaning: &'static str,
}

/// Type of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A moment, UTC: `2026-11-20 23:00:00` or a part of it from the left down to the day, `now`, `90s`, `15m`, `6h`, `7d` (so long ago), `today`, `yesterday` (their starts).
    DateTime,
    /// Any text.
    String,
    /// A whole number from 0 to 2^64 - 1.
    UInt64,
    /// A finite number.
    Float64,
}

impl Kind {
    /// Its name in a recipe, which is its type on the server.
    pub const fn label(self) -> &'static str {
        match self {
            Self::DateTime => "DateTime",
            Self::String => "String",
            Self::UInt64 => "UInt64",
            Self::Float64 => "Float64",
        }
    }

    const ALL: [Self; 4] = [Self::DateTime, Self::String, Self::UInt64, Self::Float64];
}

/// Why values cannot be bound. The text is a sentence for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BindError {
    /// A value for a parameter that the recipe has not.
    #[error("{recipe} has no parameter {name:?}; it has {known}")]
    Unknown {
        /// The recipe.
        recipe: &'static str,
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A parameter without default and without value.
    #[error("{recipe} needs {name}=..., {meaning}")]
    Missing {
        /// The recipe.
        recipe: &'static str,
        /// The parameter.
        name: &'static str,
        /// What it is for.
        meaning: &'static str,
    },
    /// A value that is not of the parameter's type.
    #[error("{name}={value}: {expected}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// The value given.
        value: String,
        /// What a value looks like.
        expected: &'static str,
    },
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        /// Every recipe, by name.
        pub const RECIPES: &[Recipe] = &[$(Recipe { name: $name, text: include_str!(concat!("../../docs/sql/", $name, ".sql")) }),*];
    };
}

recipes![
    "answer_time",
    "arrival_bursts",
    "best_shares",
    "blocks_found",
    "day_complete",
    "duplicate_probes",
    "firmware",
    "flapping_sessions",
    "hash_uniformity",
    "hashrate_by_worker",
    "hashrate_of_pool",
    "job_lifetimes",
    "late_and_grace",
    "luck",
    "nonce_coverage",
    "ntime_skew",
    "pplns_weights",
    "refusals_over_time",
    "rollup_check",
    "server_runs",
    "share_explained",
    "share_rehashed",
    "silent_workers",
    "stale_after_block",
    "top_workers",
    "vardiff_history",
    "version_rolling",
    "withholding_test",
    "worker_day",
    "worker_shares",
];

/// The recipe of this name.
pub fn find(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

/// One line per recipe: its name and what it shows.
pub fn list() -> String {
    let mut text = String::new();
    for recipe in RECIPES {
        // Infallible: writing to a String.
        let _ = writeln!(text, "{:<20} {}", recipe.name, recipe.title());
    }
    text
}

impl Recipe {
    /// Lines of the header, without their dashes.
    fn header(&self) -> impl Iterator<Item = &'static str> {
        self.text.lines().map_while(|line| line.strip_prefix("-- "))
    }

    /// The text behind `label: ` and on the lines that continue it.
    fn entry(&self, label: &str) -> String {
        let mut lines = self.header().skip_while(|line| !line.strip_prefix(label).is_some_and(|rest| rest.starts_with(": ")));
        let mut text = lines.next().and_then(|line| line.split_once(": ")).map_or(String::new(), |(_, text)| text.to_owned());
        for line in lines.map_while(|line| line.strip_prefix("  ")) {
            text.push(' ');
            text.push_str(line.trim_start());
        }
        text
    }

    /// What it shows, in a line.
    pub fn title(&self) -> String {
        self.entry(self.name)
    }

    /// The question it answers.
    pub fn question(&self) -> String {
        self.entry("question")
    }

    /// How to read its result.
    pub fn answer(&self) -> String {
        self.entry("answer")
    }

    /// Its parameters, in the order of its header.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parse = |line: &'static str| {
            let (declaration, meaning) = line.strip_prefix("param ")?.split_once(": ")?;
            let (typed, default) = declaration.split_once(" = ").map_or((declaration, None), |(typed, default)| (typed, Some(default)));
            let (name, kind) = typed.split_once(' ')?;
            let kind = Kind::ALL.into_iter().find(|known| known.label() == kind)?;
            // `''` is the empty text: a bare nothing would be easy to overlook in the header.
            let default = default.map(|text| if text == "''" { "" } else { text });
            Some(Parameter { name, kind, default, meaning })
        };
        self.header().filter_map(parse).collect()
    }

    /// The statement with `values` (name, value) and else the defaults in place of its parameters, without its header. `now_us`, microseconds since the epoch, is what spans
    /// such as `1d` end at.
    ///
    /// # Errors
    /// A name the recipe has not, a value that is missing or not of its type.
    pub fn bind(&self, values: &[(String, String)], now_us: u64) -> Result<String, BindError> {
        let parameters = self.parameters();
        if let Some((name, _)) = values.iter().find(|(name, _)| parameters.iter().all(|parameter| parameter.name != name)) {
            let known = if parameters.is_empty() {
                "none".to_owned()
            } else {
                parameters.iter().map(|parameter| parameter.name).collect::<Vec<_>>().join(", ")
            };
            return Err(BindError::Unknown { recipe: self.name, name: name.clone(), known });
        }
        let mut sql = self.statement().to_owned();
        for parameter in parameters {
            let given = values.iter().rev().find(|(name, _)| name == parameter.name).map(|(_, value)| value.as_str());
            let value = given.or(parameter.default).ok_or(BindError::Missing {
                recipe: self.name,
                name: parameter.name,
                meaning: parameter.meaning,
            })?;
            let bound = bound(parameter.kind, value, now_us).map_err(|expected| BindError::Value {
                name: parameter.name,
                value: value.to_owned(),
                expected,
            })?;
            // A value may hold what looks like another parameter; it stands in quotes by then, where nothing is replaced.
            sql = replace_outside_literals(&sql, &format!("{{{}:{}}}", parameter.name, parameter.kind.label()), &bound);
        }
        Ok(sql)
    }

    /// The statement alone, with its parameters as they stand, without header and closing semicolon.
    pub fn statement(&self) -> &'static str {
        let header: usize = self.text.split_inclusive('\n').take_while(|line| line.starts_with("--")).map(str::len).sum();
        self.text[header..].trim().trim_end_matches(';').trim_end()
    }
}

/// Replaces `place` by `with` wherever it does not stand within a quoted literal.
fn replace_outside_literals(sql: &str, place: &str, with: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    let mut quoted = false;
    while let Some(character) = rest.chars().next() {
        if !quoted && rest.starts_with(place) {
            out.push_str(with);
            rest = &rest[place.len()..];
            continue;
        }
        let mut length = character.len_utf8();
        if quoted && character == '\\' {
            // The escaped character goes with its backslash, a quote above all.
            length += rest[length..].chars().next().map_or(0, char::len_utf8);
        } else if character == '\'' {
            quoted = !quoted;
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// The literal of a value, or what a value should look like.
fn bound(kind: Kind, value: &str, now_us: u64) -> Result<String, &'static str> {
    match kind {
        Kind::String => Ok(literal(value)),
        // Bare: LIMIT takes a number and no expression on 18.16.
        Kind::UInt64 => value.parse::<u64>().map(|number| number.to_string()).map_err(|_| "a whole number from 0 to 2^64 - 1"),
        Kind::Float64 => match value.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(format!("toFloat64({number:?})")),
            _ => Err("a finite number"),
        },
        Kind::DateTime => {
            let seconds = moment(value, now_us / 1_000_000).ok_or(
                "a moment in UTC: 2026-11-20 23:00:00 (or less of it, down to the day), now, today, yesterday, or 90s, 15m, 6h, 7d ago",
            )?;
            Ok(format!("toDateTime({}, 'UTC')", literal(&date_time(seconds))))
        }
    }
}

/// Seconds since the epoch of a moment as users write it.
fn moment(text: &str, now_s: u64) -> Option<u64> {
    const DAY: u64 = 86_400;
    let text = text.trim();
    match text {
        "now" => return Some(now_s),
        "today" => return Some(now_s - now_s % DAY),
        "yesterday" => return Some((now_s - now_s % DAY).saturating_sub(DAY)),
        _ => {}
    }
    for (unit, seconds) in [('s', 1), ('m', 60), ('h', 3600), ('d', DAY)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<u64>().ok().map(|number| now_s.saturating_sub(number.saturating_mul(seconds)));
        }
    }
    let text = text.trim_end_matches('Z').replace('T', " ");
    let (day, clock) = text.split_once(' ').unwrap_or((&text, "00:00:00"));
    let digits = |text: &str, length: usize| {
        (text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<u64>().ok()).flatten()
    };
    let mut parts = day.split('-');
    let (year, month, day_of_month) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let mut parts = clock.split(':');
    let hour = digits(parts.next()?, 2)?;
    let minute = parts.next().map_or(Some(0), |part| digits(part, 2))?;
    let second = parts.next().map_or(Some(0), |part| digits(part, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 || !(1970..=2105).contains(&year) {
        return None;
    }
    // Days since the epoch, the inverse of `civil_from_days`; a day that the calendar has not comes back as another one.
    let (shifted_year, shifted_month) = if month > 2 { (year, month.checked_sub(3)?) } else { (year - 1, month + 9) };
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let day_of_year = (153 * shifted_month + 2) / 5 + day_of_month.checked_sub(1)?;
    let days = (era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year).checked_sub(719_468)?;
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    date_time(seconds).starts_with(day).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_795_218_379_000_000;

    #[test]
    fn every_recipe_has_a_whole_header_and_uses_exactly_its_parameters() {
        assert!(RECIPES.len() >= 20, "{}", RECIPES.len());
        assert!(RECIPES.is_sorted_by(|a, b| a.name < b.name), "by name");
        for recipe in RECIPES {
            for (label, text) in [("title", recipe.title()), ("question", recipe.question()), ("answer", recipe.answer())] {
                assert!(text.len() > 15, "{}: {label} is {text:?}", recipe.name);
            }
            assert!(recipe.question().ends_with('?'), "{}: {}", recipe.name, recipe.question());
            let declared = recipe.header().filter(|line| line.starts_with("param ")).count();
            let parameters = recipe.parameters();
            assert_eq!(parameters.len(), declared, "{}: a parameter's line cannot be read", recipe.name);
            let statement = recipe.statement();
            assert!(statement.starts_with("SELECT") && !statement.contains(';') && !statement.contains("FORMAT"), "{}", recipe.name);
            for parameter in &parameters {
                let place = format!("{{{}:{}}}", parameter.name, parameter.kind.label());
                assert!(statement.contains(&place), "{}: {place} is not used", recipe.name);
                assert!(parameter.meaning.len() > 5, "{}: {}", recipe.name, parameter.name);
            }
            let values: Vec<_> = parameters
                .iter()
                .filter(|parameter| parameter.default.is_none())
                .map(|parameter| (parameter.name.to_owned(), "1".to_owned()))
                .collect();
            let sql = recipe.bind(&values, NOW_US).expect("defaults are of their types");
            assert!(!sql.contains('{') && !sql.contains("--"), "{}: {sql}", recipe.name);
        }
    }

    #[test]
    fn the_folder_and_the_table_name_the_same_recipes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sql");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .expect("docs/sql")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .filter_map(|name| name.strip_suffix(".sql").map(str::to_owned))
            .collect();
        files.sort();
        assert_eq!(files, RECIPES.iter().map(|recipe| recipe.name).collect::<Vec<_>>());
    }

    #[test]
    fn values_are_bound_as_literals_and_nothing_in_them_is_read_again() {
        const RECIPE: Recipe = Recipe {
            name: "x",
            text: "-- x: title\n-- param a String = '': one\n-- param b String: two\n-- param n UInt64 = 7: three\nSELECT {a:String}, {b:String}, {n:UInt64}, '{n:UInt64}';\n",
        };
        let value = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            RECIPE.bind(&[value("a", "{b:String}"), value("b", "it's \\ {n:UInt64}")], NOW_US).as_deref(),
            Ok("SELECT '{b:String}', 'it\\'s \\\\ {n:UInt64}', 7, '{n:UInt64}'")
        );
        assert_eq!(RECIPE.bind(&[value("b", "")], NOW_US).as_deref(), Ok("SELECT '', '', 7, '{n:UInt64}'"));
        assert!(matches!(RECIPE.bind(&[], NOW_US), Err(BindError::Missing { name: "b", .. })));
        assert!(matches!(RECIPE.bind(&[value("c", "1")], NOW_US), Err(BindError::Unknown { .. })));
        for wrong in ["", "-1", "1.5", "1)", "18446744073709551616"] {
            assert!(matches!(RECIPE.bind(&[value("b", ""), value("n", wrong)], NOW_US), Err(BindError::Value { .. })), "{wrong}");
        }
    }

    #[test]
    fn moments_are_read_in_utc_or_refused() {
        let now = NOW_US / 1_000_000;
        // Expected values from GNU date -u -d.
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29 12:34:56", 951_827_696),
            ("2026-11-20 23:46:19", now),
            ("2026-11-20T23:46:19Z", now),
            ("2026-11-20 23:46", now - 19),
            ("2026-11-20 23", now - 46 * 60 - 19),
            ("2100-03-01", 4_107_542_400),
            ("now", now),
            ("today", 1_795_132_800),
            ("yesterday", 1_795_046_400),
            ("90s", now - 90),
            ("15m", now - 900),
            ("1d", now - 86_400),
        ] {
            assert_eq!(moment(text, now), Some(seconds), "{text}");
        }
        for text in [
            "",
            "d",
            "-1d",
            "1w",
            "2026-02-30",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "2026-1-1",
            "2026-11-20 24:00",
            "2026-11-20 1:00",
            "1969-12-31",
            "x",
        ] {
            assert_eq!(moment(text, now), None, "{text}");
        }
    }
}
