//! Runs one command of a lane: bounded in time, its output read as it comes, its seconds taken.
use crate::Failure;
use crate::tally::{Reader, Show, Tally};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
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
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || BufReader::new(output).split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(line)));
    }
    let (mut left, mut looked) = (Left::default(), Instant::now());
    loop {
        let line = lines.recv_timeout(GLANCE);
        match &line {
            Ok(line) => match reader.line(&String::from_utf8_lossy(line)) {
                Show::Line(line) => println!("  {line}"),
                Show::Skip(why) => println!("  skipped: {why}"),
                Show::Nothing => {}
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        // It may have ended, and somebody whom it started holds its output open, silent or not. What was said is read to its end all the same.
        if line.is_err() || looked.elapsed() >= GLANCE {
            looked = Instant::now();
            if child.try_wait().is_ok_and(|status| status.is_some()) && left.end(child.id()) && line.is_err() {
                break;
            }
        }
    }
    let status = child.wait().map_err(|error| Failure::Environment(format!("{} was lost: {error}", step.words.join(" "))))?;
    if status.code() == Some(124) || status.code() == Some(137) {
        println!("  FAILED: stopped after its limit of {} s", step.limit.as_secs());
    } else if !status.success() {
        println!("  FAILED: {status}");
    }
    // What holds no output of the step is found here.
    while !left.end(child.id()) {
        std::thread::sleep(GLANCE);
    }
    for process in &left.killed {
        println!("  FAILED: left behind and killed: {process}");
    }
    let mut tally = reader.finish(status.success());
    tally.failed += left.killed.len() as u64;
    Ok(Done { tally, seconds: start.elapsed().as_secs_f64() })
}

/// How often a step is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How long what a step started may outlive it.
const GRACE: Duration = Duration::from_secs(5);

/// Processes of a step's group that are there although the step has ended: a server that a failed test did not stop would hold the output of CI open for ever.
#[derive(Default)]
struct Left {
    since: Option<Instant>,
    killed: Vec<String>,
}

impl Left {
    /// Looks at `group`, and kills what is in it once it has had its grace; true when nothing is left to wait for.
    fn end(&mut self, group: u32) -> bool {
        let living = members(group);
        let since = *self.since.get_or_insert_with(Instant::now);
        if living.is_empty() || since.elapsed() > 2 * GRACE {
            return living.is_empty() || !self.killed.is_empty();
        }
        if since.elapsed() > GRACE && self.killed.is_empty() {
            self.killed = living;
            let killed = Command::new("sh").args(["-c", "kill -s KILL -- \"-$1\"", "sh", &group.to_string()]).status();
            if let Err(error) = killed {
                println!("  group {group} cannot be killed: {error}");
            }
        }
        false
    }
}

/// The living processes of a group, as `pid command line` (proc(5): state, parent and group follow the name in parentheses).
fn members(group: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let group = group.to_string();
    processes
        .filter_map(|process| {
            let pid = process.file_name().into_string().ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
            let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, _parent, of) = (fields.next()?, fields.next()?, fields.next()?);
            if of != group || matches!(state, "Z" | "X") {
                return None;
            }
            let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            Some(format!("{pid} {}", String::from_utf8_lossy(&words).replace('\0', " ").trim_end()))
        })
        .collect()
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

    /// Seen in CI: a test failed and did not stop the server that it had started, and the run waited for its output until it was ended from outside.
    #[test]
    fn what_a_step_leaves_behind_is_named_and_ended_and_counts_as_a_failure() {
        for script in ["sleep 600 & echo said", "sleep 600 >/dev/null 2>&1 & echo said"] {
            let done = run(Path::new("."), &Step::new("x", &["sh", "-c", script], Duration::from_secs(60))).unwrap();
            assert_eq!(done.tally, Tally { passed: 0, failed: 1, skipped: 0 }, "{script}");
        }
        // One that goes on talking: a shell, and most of the time its sleep.
        let talks = "(while sleep 0.01; do echo; done) & echo said";
        let done = run(Path::new("."), &Step::new("x", &["sh", "-c", talks], Duration::from_secs(60))).unwrap();
        assert!((1..=2).contains(&done.tally.failed), "{:?}", done.tally);
        let done = run(Path::new("."), &Step::new("x", &["sh", "-c", "sleep 1 & echo said"], Duration::from_secs(60))).unwrap();
        assert_eq!(done.tally, Tally::default(), "it had ended by itself");
    }

    #[test]
    fn a_command_that_does_not_exist_is_a_failure() {
        let done = run(Path::new("."), &Step::new("x", &["no-such-command-here"], Duration::from_secs(20))).unwrap();
        assert_eq!(done.tally.failed, 1);
    }
}
