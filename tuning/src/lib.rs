//! Host tuning: what the machine should look like under a pool, checked, planned, applied and taken back.
//!
//! Each [`HostStage`] knows one kernel setting. `check` needs no privilege and changes nothing; `plan` names the exact
//! writes; [`apply`] records every old value in a state file **before** the first write; [`revert`] restores them and
//! removes the file. Changes are data ([`Change`]), so applying and reverting are written once for all stages.
//!
//! All paths go through [`Host::root`], so that the tests run on recorded `/sys` and `/proc` trees (`tests/trees`).
//!
//! Two rules hold for every stage. A limit in `/proc/sys` is only ever raised, never lowered, except by `revert` back to
//! what it was. And what a write cannot reach (the file limit of a later login, a container's seccomp profile, a hardening
//! switch that somebody set on purpose) is said as an instruction instead of being pretended away.
//!
//! The writes last until the next boot: run `otedama tune apply` from a unit at boot to keep them.

mod report;
mod stages;
mod state;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use report::{ChangeReport, Outcome, Report, table};
pub use stages::{Governor, IoUring, NOFILE_SLACK, Nofile, SOMAXCONN_MIN, Somaxconn, TransparentHugePages};
pub use state::{Entry, STATE_DEFAULT, State};

/// The machine under the stages: a root folder that holds `sys/` and `proc/`, and what the pool asks of it.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/` on a real machine; a recorded tree in tests.
    pub root: PathBuf,
    /// Miner connections that the server is to hold (`stratum.max_connections`); decides the file limit needed.
    pub connections_max: u64,
}

impl Host {
    /// The machine whose `sys` and `proc` stand under `root`, for the default of 10,000 connections.
    pub fn new(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into(), connections_max: 10_000 }
    }

    /// The same machine for another number of connections.
    pub fn with_connections(mut self, connections_max: u64) -> Host {
        self.connections_max = connections_max;
        self
    }

    /// Where `path` (absolute, as the kernel names it) stands under the root.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The file's text without the white space at its ends; `None` where there is no such file.
    ///
    /// # Errors
    /// Any failure but "not found" and "not a directory".
    pub fn read(&self, path: &str) -> io::Result<Option<String>> {
        match fs::read(self.at(path)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What a stage found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be: a finding (exit code 1).
    Differs,
    /// This host has no such setting (a virtual machine without cpufreq, say); nothing to do.
    NotAvailable,
    /// It cannot be told from here; the note says how to find out. Not a finding.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Ok => "ok",
            Verdict::Differs => "differs",
            Verdict::NotAvailable => "not available here",
            Verdict::Unknown => "cannot be told",
        })
    }
}

/// The result of one `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the stage.
    pub stage: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// The value now, in a few words.
    pub current: String,
    /// The value wanted, in a few words.
    pub required: String,
    /// Why it matters, or what to do about it.
    pub note: String,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// A write that `apply` does and `revert` takes back.
    Write {
        /// Name of the stage.
        stage: &'static str,
        /// Absolute path as the kernel names it.
        path: String,
        /// The value now, in the form that can be written back.
        from: String,
        /// The value to write.
        to: String,
    },
    /// What no write of ours can do: the operator's instruction, one command or file line an element.
    Manual {
        /// Name of the stage.
        stage: &'static str,
        /// What to do, in one sentence.
        what: String,
        /// The lines or commands themselves.
        lines: Vec<String>,
    },
}

impl Change {
    /// Name of the stage that asks for it.
    pub fn stage(&self) -> &'static str {
        match self {
            Change::Write { stage, .. } | Change::Manual { stage, .. } => stage,
        }
    }

    /// The change as shell: the exact write, or the instruction as comments above its lines.
    pub fn shell(&self) -> String {
        match self {
            Change::Write { path, to, .. } => format!("echo {to} > {path}"),
            Change::Manual { what, lines, .. } => {
                let mut out = format!("# by hand: {what}");
                for line in lines {
                    out.push_str("\n#   ");
                    out.push_str(line);
                }
                out
            }
        }
    }
}

/// One kernel setting. Stateless: everything comes from the [`Host`].
pub trait HostStage {
    /// Name in tables, JSON and the state file.
    const NAME: &'static str;

    /// How the setting stands. Needs no privilege and changes nothing.
    fn check(host: &Host) -> Finding;

    /// What would have to change; empty where `check` has no finding. Changes nothing.
    fn plan(host: &Host) -> Vec<Change>;
}

/// A stage as a row of the list below.
struct StageEntry {
    name: &'static str,
    check: fn(&Host) -> Finding,
    plan: fn(&Host) -> Vec<Change>,
}

const fn entry<S: HostStage>() -> StageEntry {
    StageEntry { name: S::NAME, check: S::check, plan: S::plan }
}

/// Every stage, in the order of the tables.
const STAGES: [StageEntry; 5] =
    [entry::<Governor>(), entry::<TransparentHugePages>(), entry::<Nofile>(), entry::<Somaxconn>(), entry::<IoUring>()];

/// Names of all stages in their order.
pub fn stage_names() -> impl Iterator<Item = &'static str> {
    STAGES.iter().map(|stage| stage.name)
}

/// Checks every stage. Needs no privilege and changes nothing.
pub fn check(host: &Host) -> Vec<Finding> {
    STAGES.iter().map(|stage| (stage.check)(host)).collect()
}

/// What every stage would change. Changes nothing.
pub fn plan(host: &Host) -> Vec<Change> {
    STAGES.iter().flat_map(|stage| (stage.plan)(host)).collect()
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Tell how the host stands.
    Check,
    /// Print the exact writes.
    Plan,
    /// Record the old values, then write.
    Apply,
    /// Restore the recorded values.
    Revert,
}

impl std::str::FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Action, String> {
        match text {
            "check" => Ok(Action::Check),
            "plan" => Ok(Action::Plan),
            "apply" => Ok(Action::Apply),
            "revert" => Ok(Action::Revert),
            other => Err(format!("`{other}` is no tune action; use check, plan, apply or revert")),
        }
    }
}

/// How a run ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitFinding {
    /// 0: nothing differs; or the plan was printed.
    Clean,
    /// 1: something differs, or is left to be done by hand.
    Finding,
    /// 3: a write was refused by the system.
    Environment,
}

impl ExitFinding {
    /// The process exit code.
    pub const fn code(self) -> u8 {
        match self {
            ExitFinding::Clean => 0,
            ExitFinding::Finding => 1,
            ExitFinding::Environment => 3,
        }
    }
}

/// What stopped a run before it did anything to the host. All are exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The state file exists and cannot be read.
    #[error("reading the tune state {path} failed; run as root, or name another file with --state")]
    StateRead {
        /// The state file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The state file is not one of ours. Nothing was changed: it may hold the only copy of the old values.
    #[error("the tune state {path} does not parse ({reason}); nothing was changed; mend it or move it away")]
    StateMalformed {
        /// The state file.
        path: PathBuf,
        /// What does not parse.
        reason: String,
    },
    /// The state file cannot be written, so nothing was changed: a change that cannot be taken back is not made.
    #[error("recording the old values in {path} failed; run as root, or name another file with --state")]
    StateWrite {
        /// The state file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The report could not be printed.
    #[error("printing the report failed")]
    Output(#[source] io::Error),
}

impl TuneError {
    /// The process exit code: always 3, environment.
    pub const fn exit_code(&self) -> u8 {
        3
    }
}

/// Runs one action and prints its report to `out`: a table for people, or one JSON document and a line feed.
///
/// Exit codes: `check` 0 or 1; `plan` 0; `apply` 0, 1 where something stays to be done by hand, 3 where a write was refused
/// (the others are still tried); `revert` 0, 1 where a value had been changed by somebody else and was left, 3 where a
/// write was refused (its record is kept, so that a later revert can finish).
///
/// # Errors
/// [`TuneError`]: the state file or the output; the host was not changed then (but for [`TuneError::Output`], which comes last,
/// and a [`TuneError::StateWrite`] while tidying up the state after the writes).
pub fn tune(action: Action, host: &Host, state: &Path, json: bool, out: &mut dyn Write) -> Result<ExitFinding, TuneError> {
    let report = match action {
        Action::Check => Report::of_check(check(host)),
        Action::Plan => Report::of_plan(plan(host)),
        Action::Apply => apply(host, state)?,
        Action::Revert => revert(host, state)?,
    };
    let text = if json { report.json() } else { report.human(state) };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(TuneError::Output)?;
    Ok(report.exit)
}

/// Plans, records the old values in `state`, then writes; a second run keeps the oldest recorded values.
///
/// # Errors
/// As [`tune`].
pub fn apply(host: &Host, state: &Path) -> Result<Report, TuneError> {
    apply_with(host, state, &mut write_value)
}

/// Restores the values recorded in `state` and removes the file; without a file there is nothing to do.
///
/// # Errors
/// As [`tune`].
pub fn revert(host: &Host, state: &Path) -> Result<Report, TuneError> {
    revert_with(host, state, &mut write_value)
}

/// Raises this process' soft limit of open files to its hard one, which every process may do and which its children inherit.
/// `serve` calls it at start; nothing outlives the process.
///
/// Returns (soft limit before, soft limit now); `u64::MAX` stands for unlimited.
///
/// # Errors
/// The system's refusal.
pub fn raise_nofile_soft() -> io::Result<(u64, u64)> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current.unwrap_or(u64::MAX);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    if before < hard {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok((before, hard.max(before)))
}

/// How a value reaches the kernel: one write call, no creation. Replaced in tests to crash half-way.
type WriteValue<'a> = &'a mut dyn FnMut(&Path, &str) -> io::Result<()>;

fn write_value(path: &Path, value: &str) -> io::Result<()> {
    // No `create`: a missing setting must stay missing. Truncation does nothing in /sys and keeps recorded trees exact.
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(format!("{value}\n").as_bytes())
}

fn apply_with(host: &Host, path: &Path, write: WriteValue<'_>) -> Result<Report, TuneError> {
    let changes = plan(host);
    let mut state = State::load(path)?.unwrap_or_default();
    let known: Vec<String> = state.entries.iter().map(|e| e.path.clone()).collect();
    let mut writes = 0_usize;
    for change in &changes {
        if let Change::Write { stage, path, from, to } = change {
            state.record(stage, path, from, to);
            writes += 1;
        }
    }
    if writes > 0 {
        // Before the first write: after a crash at any point, revert knows every value that may have changed.
        state.save(path)?;
    }

    let mut reports = Vec::new();
    for change in changes {
        let outcome = match &change {
            Change::Manual { .. } => Outcome::ByHand,
            Change::Write { path, to, .. } => match write_and_read_back(host, path, to, write) {
                Ok(()) => Outcome::Done,
                Err(reason) => Outcome::Failed { reason },
            },
        };
        reports.push(ChangeReport { change, outcome });
    }

    // A write that was refused changed nothing. Its record must go, or a later revert would undo somebody else's work.
    let before = state.entries.len();
    for report in &reports {
        if let (Change::Write { path, .. }, Outcome::Failed { .. }) = (&report.change, &report.outcome)
            && !known.contains(path)
        {
            state.entries.retain(|entry| &entry.path != path || stages::value(host, path).is_none_or(|now| now != entry.old));
        }
    }
    if state.entries.len() != before {
        state.save_or_remove(path)?;
    }
    Ok(Report::of_apply(reports, check(host)))
}

fn revert_with(host: &Host, path: &Path, write: WriteValue<'_>) -> Result<Report, TuneError> {
    let Some(mut state) = State::load(path)? else {
        return Ok(Report::of_revert(Vec::new()));
    };
    let mut reports = Vec::new();
    let mut kept = Vec::new();
    for entry in state.entries.drain(..).rev() {
        let now = stages::read_value(host, &entry.path);
        let outcome = match &now {
            Err(e) => Outcome::Failed { reason: e.to_string() },
            Ok(None) => Outcome::Gone,
            Ok(Some(now)) if *now == entry.old => Outcome::AlreadyThere,
            Ok(Some(now)) if *now != entry.new => Outcome::ChangedSince { now: now.clone() },
            Ok(Some(_)) => match write_and_read_back(host, &entry.path, &entry.old, write) {
                Ok(()) => Outcome::Done,
                Err(reason) => Outcome::Failed { reason },
            },
        };
        let stage = stage_names().find(|name| *name == entry.stage).unwrap_or("of another release");
        let change = Change::Write { stage, path: entry.path.clone(), from: now.ok().flatten().unwrap_or_default(), to: entry.old.clone() };
        if matches!(outcome, Outcome::Failed { .. }) {
            kept.push(entry);
        }
        reports.push(ChangeReport { change, outcome });
    }
    kept.reverse();
    state.entries = kept;
    state.save_or_remove(path)?;
    Ok(Report::of_revert(reports))
}

/// Writes and then believes only what the kernel says it took.
fn write_and_read_back(host: &Host, path: &str, to: &str, write: WriteValue<'_>) -> Result<(), String> {
    write(&host.at(path), to).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => format!("{e}; run as root"),
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{e}; in a container, tune the host instead")
        }
        _ => e.to_string(),
    })?;
    match stages::value(host, path) {
        Some(now) if now == to => Ok(()),
        Some(now) => Err(format!("written, but the kernel kept {now}")),
        None => Err("written, but it cannot be read back".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// A tree with `cpus` governors, huge pages always, somaxconn 128: `cpus` + 3 writes.
    fn untuned(cpus: usize) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().expect("a folder");
        let host = Host::new(dir.path());
        let put = |path: &str, text: &str| {
            let path = host.at(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
        };
        for cpu in 0..cpus {
            put(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"), "powersave\n");
        }
        put("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
        put("/sys/kernel/mm/transparent_hugepage/defrag", "[always] defer defer+madvise madvise never\n");
        put("/proc/sys/net/core/somaxconn", "128\n");
        (dir, host)
    }

    fn values(host: &Host, cpus: usize) -> Vec<String> {
        let mut paths: Vec<String> = (0..cpus).map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")).collect();
        paths.push("/sys/kernel/mm/transparent_hugepage/enabled".to_owned());
        paths.push("/sys/kernel/mm/transparent_hugepage/defrag".to_owned());
        paths.push("/proc/sys/net/core/somaxconn".to_owned());
        paths.iter().map(|path| stages::value(host, path).expect("a value")).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_crash_at_any_write_of_apply_or_revert_is_undone_by_the_next_revert(
            cpus in 0_usize..5, apply_dies_at in 0_usize..9, again in any::<bool>(), revert_dies_at in 0_usize..9,
        ) {
            let (dir, host) = untuned(cpus);
            let state = dir.path().join("var/state.json");
            let before = values(&host, cpus);
            let dying = |limit: usize| {
                let mut writes = 0;
                move |path: &Path, value: &str| {
                    if writes == limit {
                        // Not `panic!`, whose hook would print a backtrace per case.
                        std::panic::resume_unwind(Box::new("killed"));
                    }
                    writes += 1;
                    write_value(path, value)
                }
            };
            let died = catch_unwind(AssertUnwindSafe(|| apply_with(&host, &state, &mut dying(apply_dies_at)).map(drop)));
            prop_assert_eq!(died.is_err(), apply_dies_at < cpus + 3);
            if again {
                apply(&host, &state).expect("a second apply");
            }
            let _ = catch_unwind(AssertUnwindSafe(|| revert_with(&host, &state, &mut dying(revert_dies_at)).map(drop)));
            revert(&host, &state).expect("a revert");
            prop_assert_eq!(values(&host, cpus), before);
            prop_assert!(!state.exists());
        }
    }

    #[test]
    fn the_old_values_are_on_disk_before_the_first_write() {
        let (dir, host) = untuned(1);
        let path = dir.path().join("state.json");
        let mut seen = 0;
        apply_with(&host, &path, &mut |file, value| {
            let state = State::load(&path).expect("it parses").expect("it is there");
            assert_eq!(state.entries.len(), 4);
            seen += 1;
            write_value(file, value)
        })
        .expect("applied");
        assert_eq!(seen, 4);
    }

    #[test]
    fn a_kernel_that_keeps_its_value_is_reported() {
        let (dir, host) = untuned(0);
        let report = apply_with(&host, &dir.path().join("s.json"), &mut |_, _| Ok(())).expect("ran");
        assert_eq!(report.exit, ExitFinding::Environment);
        assert!(report.changes.iter().any(|c| matches!(
            &c.outcome,
            Outcome::Failed { reason } if reason == "written, but the kernel kept always"
        )));
    }

    #[test]
    fn raising_the_soft_limit_reaches_the_hard_one() {
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let (_, now) = raise_nofile_soft().expect("raised");
        assert_eq!(now, hard);
        assert_eq!(raise_nofile_soft().expect("again"), (hard, hard));
    }
}
