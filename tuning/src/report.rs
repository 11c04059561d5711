//! What a run prints: a table for people, one JSON document for scripts.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::{Action, Change, ExitFinding, Finding, Verdict};

/// What came of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    /// Only planned.
    Planned,
    /// Written, and read back.
    Done,
    /// Left to the operator.
    ByHand,
    /// Revert found the old value in place: the write had never happened, or somebody had taken it back.
    AlreadyThere,
    /// Revert found the file gone (a core taken offline, say): nothing to restore.
    Gone,
    /// Revert found a value that is neither the old one nor ours, and left it.
    ChangedSince {
        /// The value found.
        now: String,
    },
    /// The system refused the write, or kept another value.
    Failed {
        /// Why, in the system's words.
        reason: String,
    },
}

/// One change and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangeReport {
    /// The change.
    #[serde(flatten)]
    pub change: Change,
    /// What came of it.
    pub outcome: Outcome,
}

/// One run's result; serialises to the `--json` document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was asked for.
    pub action: Action,
    /// How it ended.
    pub exit: ExitFinding,
    /// How every stage stands (check), or stands afterwards (apply); else empty.
    pub findings: Vec<Finding>,
    /// Changes with their outcomes (plan, apply, revert).
    pub changes: Vec<ChangeReport>,
}

fn exit_of(findings: &[Finding]) -> ExitFinding {
    if findings.iter().any(|f| f.verdict == Verdict::Differs) { ExitFinding::Finding } else { ExitFinding::Clean }
}

fn exit_of_changes(changes: &[ChangeReport]) -> ExitFinding {
    let worst = changes.iter().map(|c| match c.outcome {
        Outcome::Failed { .. } => ExitFinding::Environment,
        Outcome::ByHand | Outcome::ChangedSince { .. } => ExitFinding::Finding,
        _ => ExitFinding::Clean,
    });
    worst.max().unwrap_or(ExitFinding::Clean)
}

impl Report {
    pub(crate) fn of_check(findings: Vec<Finding>) -> Report {
        Report { action: Action::Check, exit: exit_of(&findings), findings, changes: Vec::new() }
    }

    pub(crate) fn of_plan(changes: Vec<Change>) -> Report {
        let changes = changes.into_iter().map(|change| ChangeReport { change, outcome: Outcome::Planned });
        Report { action: Action::Plan, exit: ExitFinding::Clean, findings: Vec::new(), changes: changes.collect() }
    }

    pub(crate) fn of_apply(changes: Vec<ChangeReport>, findings: Vec<Finding>) -> Report {
        Report { action: Action::Apply, exit: exit_of_changes(&changes).max(exit_of(&findings)), findings, changes }
    }

    pub(crate) fn of_revert(changes: Vec<ChangeReport>) -> Report {
        Report { action: Action::Revert, exit: exit_of_changes(&changes), findings: Vec::new(), changes }
    }

    /// The report as one JSON document with a line feed.
    pub fn json(&self) -> String {
        // Strings, numbers and lists only: there is nothing in a report that could fail to serialise.
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The report for people; `state` is named where it holds old values.
    pub fn human(&self, state: &Path) -> String {
        let mut out = String::new();
        for report in &self.changes {
            let line = report.change.shell();
            let _ = match (&report.change, &report.outcome) {
                (Change::Write { from, .. }, Outcome::Planned) => {
                    writeln!(out, "{line}   # now {from}")
                }
                (_, Outcome::Planned | Outcome::ByHand) => writeln!(out, "{line}"),
                (_, Outcome::Done) => writeln!(out, "{line}   # done"),
                (_, Outcome::AlreadyThere) => {
                    writeln!(out, "{line}   # already so")
                }
                (_, Outcome::Gone) => {
                    writeln!(out, "{line}   # gone: nothing to restore")
                }
                (_, Outcome::ChangedSince { now }) => writeln!(out, "{line}   # left: somebody set {now} since; run this line to restore"),
                (_, Outcome::Failed { reason }) => {
                    writeln!(out, "{line}   # FAILED: {reason}")
                }
            };
        }
        let wrote = self.changes.iter().any(|c| c.outcome == Outcome::Done);
        match self.action {
            Action::Check => {}
            Action::Plan if self.changes.is_empty() => out.push_str("# nothing to change\n"),
            Action::Plan => {
                out.push_str("# writes last until the next boot; `otedama tune apply` does them and records the old values\n");
            }
            Action::Apply if wrote => {
                let _ = writeln!(
                    out,
                    "# old values are in {}; `otedama tune revert` restores them; the writes last until the next boot",
                    state.display()
                );
            }
            Action::Apply if self.changes.is_empty() => out.push_str("# nothing to change\n"),
            Action::Apply => {}
            Action::Revert if self.changes.is_empty() => {
                let _ = writeln!(out, "# nothing to revert: {} does not exist", state.display());
            }
            Action::Revert if self.changes.iter().any(|c| matches!(c.outcome, Outcome::Failed { .. })) => {
                let _ = writeln!(out, "# what failed stays recorded in {}; run revert again", state.display());
            }
            Action::Revert => {
                let _ = writeln!(out, "# {} removed", state.display());
            }
        }
        if !self.findings.is_empty() {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&table(&self.findings));
        }
        out
    }
}

/// Findings as a table with a note under each row that has one.
pub fn table(findings: &[Finding]) -> String {
    let head = ["stage", "state", "current", "required"];
    let rows: Vec<[String; 4]> =
        findings.iter().map(|f| [f.stage.to_owned(), f.verdict.to_string(), f.current.clone(), f.required.clone()]).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(head[column].len())
    };
    let widths = [width(0), width(1), width(2)];
    let mut out = String::new();
    let mut line = |a: &str, b: &str, c: &str, d: &str| {
        let [wa, wb, wc] = widths;
        let _ = writeln!(out, "{a:<wa$}  {b:<wb$}  {c:<wc$}  {d}");
    };
    line(head[0], head[1], head[2], head[3]);
    for [a, b, c, d] in &rows {
        line(a, b, c, d);
    }
    for finding in findings.iter().filter(|f| !f.note.is_empty()) {
        let _ = write!(out, "\n{}: {}\n", finding.stage, finding.note);
    }
    out
}
