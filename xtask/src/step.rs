//! Runs one command of a lane: bounded in time, its output read as it comes, its seconds taken.
use crate::Failure;
use crate::tally::{Reader, Show, Tally};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One command.
pub struct Step {
    /// What it does, for the table.
    pub name: String,
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables beside those of the caller.
    pub env: Vec<(&'static str, String)>,
    /// It is killed after this long, with all it started.
    pub limit: Duration,
}

impl Step {
    /// A step from words.
    pub fn new(name: &str, words: &[&str], limit: Duration) -> Self {
        Self { name: name.to_owned(), words: words.iter().map(|word| (*word).to_owned()).collect(), env: Vec::new(), limit }
    }

    /// Adds a variable.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }
}

/// What became of a step.
pub struct Done {
    /// Tests counted in its output.
    pub tally: Tally,
    /// Wall time.
    pub seconds: f64,
}

/// Runs `step` in `dir` and prints what is worth reading.
pub fn run(dir: &Path, step: &Step) -> Result<Done, Failure> {
    println!("$ {}{}", step.env.iter().map(|(name, value)| format!("{name}={value} ")).collect::<String>(), step.words.join(" "));
    let start = Instant::now();
    // `timeout` makes a process group and ends all of it: a hung server that a test started goes as well. The shell joins both outputs in their order.
    let mut child = Command::new("sh")
        .args(["-c", "exec \"$@\" 2>&1", "sh", "timeout", "--kill-after=20"])
        .arg(step.limit.as_secs().to_string())
        .args(&step.words)
        .envs(step.env.iter().map(|(name, value)| (name, value)))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::Environment(format!("{} cannot be started: {error}", step.words.join(" "))))?;
    let mut reader = Reader::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            match reader.line(&line) {
                Show::Line(line) => println!("  {line}"),
                Show::Skip(why) => println!("  skipped: {why}"),
                Show::Nothing => {}
            }
        }
    }
    let status = child.wait().map_err(|error| Failure::Environment(format!("{} was lost: {error}", step.words.join(" "))))?;
    if status.code() == Some(124) || status.code() == Some(137) {
        println!("  FAILED: stopped after its limit of {} s", step.limit.as_secs());
    } else if !status.success() {
        println!("  FAILED: {status}");
    }
    Ok(Done { tally: reader.finish(status.success()), seconds: start.elapsed().as_secs_f64() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_both_streams_is_counted() {
        let script = "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured'; echo 'skipped: because' >&2";
        let done = run(Path::new("."), &Step::new("x", &["sh", "-c", script], Duration::from_secs(20))).unwrap();
        assert_eq!(done.tally, Tally { passed: 2, failed: 0, skipped: 2 });
    }

    #[test]
    fn a_step_over_its_limit_is_ended_and_counts_as_a_failure() {
        let done = run(Path::new("."), &Step::new("x", &["sleep", "600"], Duration::from_secs(1))).unwrap();
        assert_eq!(done.tally.failed, 1);
    }

    #[test]
    fn a_command_that_does_not_exist_is_a_failure() {
        let done = run(Path::new("."), &Step::new("x", &["no-such-command-here"], Duration::from_secs(20))).unwrap();
        assert_eq!(done.tally.failed, 1);
    }
}
