//! Counts what `cargo test` prints.

/// Tests by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed; a command that failed without naming a test counts as one.
    pub failed: u64,
    /// Ignored by libtest, or said by themselves to have been skipped.
    pub skipped: u64,
}

impl Tally {
    /// The closing line.
    pub fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }

    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What one line of output means for the reader of a lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Show<'a> {
    /// Print it.
    Line(&'a str),
    /// A test passed over something, and says why.
    Skip(&'a str),
    /// Output of tests that passed: of no interest.
    Nothing,
}

/// Reads the output of `cargo test -- --show-output` line by line.
#[derive(Debug, Default)]
pub struct Reader {
    tally: Tally,
    /// Skips that tests said aloud: libtest counts those tests as passed.
    said_skipped: u64,
    in_successes: bool,
}

impl Reader {
    /// Takes a line and says what to print. A test that cannot run here prints `skipped: why` or `SKIP 1: why`: it has passed for libtest, and is counted as skipped.
    pub fn line<'a>(&mut self, line: &'a str) -> Show<'a> {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            self.tally.passed += count(counts, "passed");
            self.tally.failed += count(counts, "failed");
            self.tally.skipped += count(counts, "ignored");
            return Show::Line(line);
        }
        if let Some(why) = skip_reason(line) {
            self.said_skipped += 1;
            return Show::Skip(why);
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ => {}
        }
        let passed = line.starts_with("test ") && line.ends_with(" ... ok");
        let building = ["Compiling ", "Downloaded ", "Downloading "].iter().any(|word| line.trim_start().starts_with(word));
        if self.in_successes || passed || building || line.trim().is_empty() { Show::Nothing } else { Show::Line(line) }
    }

    /// The counts, given whether the command itself succeeded.
    pub fn finish(mut self, success: bool) -> Tally {
        self.tally.passed = self.tally.passed.saturating_sub(self.said_skipped);
        self.tally.skipped += self.said_skipped;
        if !success && self.tally.failed == 0 {
            self.tally.failed = 1;
        }
        self.tally
    }
}

/// Why a test says that it was skipped. A line past libtest's capture may stand behind `test name ... `.
fn skip_reason(line: &str) -> Option<&str> {
    let said = line.split_once(" ... ").map_or(line, |(_, said)| said).trim_start();
    if let Some(why) = said.strip_prefix("skipped: ") {
        return Some(why);
    }
    let (number, why) = said.strip_prefix("SKIP ")?.split_once(": ")?;
    number.bytes().all(|digit| digit.is_ascii_digit()).then_some(why)
}

/// The number before `word` in `ok. 14 passed; 0 failed; ...`.
fn count(counts: &str, word: &str) -> u64 {
    counts.split(['.', ';']).filter_map(|part| part.trim().strip_suffix(word)).find_map(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
   Compiling otedama v0.1.0
     Running unittests src/main.rs

running 4 tests
test a ... ok
test b ... ok
test c ... ignored, needs an hour
test d ... FAILED

successes:

---- a stdout ----
skipped: no ClickHouse here
    noise

successes:
    a

failures:

---- d stdout ----
thread 'd' panicked

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s

test result: ok. 14 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.03s
";

    fn read(output: &str, success: bool) -> (Tally, Vec<String>) {
        let mut reader = Reader::default();
        let shown = output
            .lines()
            .filter_map(|line| match reader.line(line) {
                Show::Line(line) => Some(line.to_owned()),
                Show::Skip(why) => Some(format!("SKIP {why}")),
                Show::Nothing => None,
            })
            .collect();
        (reader.finish(success), shown)
    }

    #[test]
    fn results_of_all_binaries_are_summed_and_a_said_skip_is_no_pass() {
        let (tally, _) = read(OUTPUT, false);
        assert_eq!(tally, Tally { passed: 15, failed: 1, skipped: 2 });
        assert_eq!(tally.line(), "15 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn what_failed_is_shown_and_what_passed_is_not() {
        let (_, shown) = read(OUTPUT, false);
        for line in ["thread 'd' panicked", "test d ... FAILED", "test c ... ignored, needs an hour", "SKIP no ClickHouse here"] {
            assert!(shown.iter().any(|have| have == line), "{line} is not in {shown:?}");
        }
        for line in ["    noise", "test a ... ok", "   Compiling otedama v0.1.0"] {
            assert!(shown.iter().all(|have| have != line), "{line} is in {shown:?}");
        }
    }

    #[test]
    fn both_ways_to_say_a_skip_are_read() {
        assert_eq!(skip_reason("  skipped: no engine"), Some("no engine"));
        assert_eq!(skip_reason("SKIP 12: ship: no server"), Some("ship: no server"));
        assert_eq!(skip_reason("test ship ... SKIP 1: no server"), Some("no server"));
        for other in ["test it ... ok", "skipped 3 lines", "SKIP it: now", "SKIPPED 1: x", "test result: ok. 1 passed"] {
            assert_eq!(skip_reason(other), None, "{other}");
        }
    }

    #[test]
    fn a_command_that_fails_without_a_test_is_one_failure() {
        assert_eq!(read("error: could not compile `x`\n", false).0.failed, 1);
        assert_eq!(read("error: could not compile `x`\n", true).0.failed, 0);
        assert_eq!(read(OUTPUT, false).0.failed, 1, "the failure that was named is not counted twice");
    }
}
