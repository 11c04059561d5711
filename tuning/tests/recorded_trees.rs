//! Check, plan, apply and revert on the host trees of `tests/trees`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use otedama_tuning::{Action, Change, ExitFinding, Finding, Host, TuneError, Verdict, check, plan, tune};

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a tree") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// A copy of a tree that may be written to, and a place for its state file.
struct Scratch {
    _dir: tempfile::TempDir,
    host: Host,
    state: PathBuf,
}

fn scratch(name: &str) -> Scratch {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().join("root");
    copy(&tree(name), &root);
    Scratch { host: Host::new(root), state: dir.path().join("var/lib/otedama/tune-state.json"), _dir: dir }
}

impl Scratch {
    fn run(&self, action: Action) -> (ExitFinding, serde_json::Value) {
        let mut out = Vec::new();
        let exit = tune(action, &self.host, &self.state, true, &mut out).expect("it runs");
        (exit, serde_json::from_slice(&out).expect("one document"))
    }

    fn human(&self, action: Action) -> String {
        let mut out = Vec::new();
        tune(action, &self.host, &self.state, false, &mut out).expect("it runs");
        String::from_utf8(out).expect("text")
    }

    fn get(&self, path: &str) -> String {
        self.host.read(path).expect("read").expect("present")
    }

    fn set(&self, path: &str, text: &str) {
        fs::write(self.host.at(path), text).expect("written");
    }
}

fn verdicts(findings: &[Finding]) -> Vec<(&str, Verdict)> {
    findings.iter().map(|f| (f.stage, f.verdict)).collect()
}

/// Every file under `root` with its text.
fn snapshot(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.push((path.clone(), fs::read(&path).expect("a file")));
            }
        }
    }
    all.sort();
    all
}

const GOVERNOR_10: &str = "/sys/devices/system/cpu/cpu10/cpufreq/scaling_governor";
const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";

#[test]
fn a_virtual_machine_is_clean_without_cpufreq() {
    let host = Host::new(tree("vm"));
    assert_eq!(
        verdicts(&check(&host)),
        [
            ("governor", Verdict::NotAvailable),
            ("huge_pages", Verdict::Ok),
            ("nofile", Verdict::Ok),
            ("somaxconn", Verdict::Ok),
            ("io_uring", Verdict::Ok),
        ]
    );
    assert_eq!(plan(&host), []);
}

#[test]
fn the_file_limit_is_judged_by_the_connections_wanted() {
    for (connections, verdict) in [(19_488, Verdict::Ok), (19_489, Verdict::Differs)] {
        let host = Host::new(tree("vm")).with_connections(connections);
        assert_eq!(check(&host)[2].verdict, verdict, "{connections}");
    }
    let changes = plan(&Host::new(tree("vm")).with_connections(50_000));
    let [Change::Manual { lines, .. }] = changes.as_slice() else {
        panic!("one instruction, not {changes:?}");
    };
    assert!(lines.iter().any(|line| line.contains("LimitNOFILE=50512")));
}

#[test]
fn untuned_metal_differs_everywhere_and_the_plan_names_the_exact_writes() {
    let s = scratch("metal");
    let findings = check(&s.host);
    assert!(findings.iter().all(|f| f.verdict == Verdict::Differs));
    assert_eq!(findings[0].current, "performance on 1, powersave on 1, schedutil on 2");
    let text = s.human(Action::Plan);
    let writes: Vec<&str> = text.lines().filter(|line| line.starts_with("echo")).collect();
    assert_eq!(
        writes,
        [
            "echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor   # now schedutil",
            "echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor   # now schedutil",
            "echo performance > /sys/devices/system/cpu/cpu10/cpufreq/scaling_governor   # now powersave",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled   # now always",
            "echo 4096 > /proc/sys/net/core/somaxconn   # now 128",
        ]
    );
    assert!(text.contains("#   systemd unit, [Service]:     LimitNOFILE=10512"));
    assert!(text.contains("#   echo 0 > /proc/sys/kernel/io_uring_disabled"));
}

#[test]
fn a_container_is_told_about_its_seccomp_filter_without_a_finding() {
    let s = scratch("container");
    let findings = check(&s.host);
    assert_eq!(findings[1].verdict, Verdict::Ok);
    assert_eq!(findings[4].verdict, Verdict::Unknown);
    assert!(findings[4].note.contains("--security-opt seccomp="));
    assert_eq!(s.run(Action::Check).0, ExitFinding::Clean);
}

#[test]
fn check_and_plan_change_nothing() {
    for name in ["vm", "metal", "container"] {
        let s = scratch(name);
        let before = snapshot(&s.host.root);
        s.run(Action::Check);
        s.run(Action::Plan);
        s.human(Action::Check);
        assert_eq!(snapshot(&s.host.root), before, "{name}");
        assert!(!s.state.exists());
    }
}

#[test]
fn apply_then_revert_restores_every_value_and_removes_the_state() {
    let s = scratch("metal");
    let (exit, report) = s.run(Action::Apply);
    // Two things stay to be done by hand: the file limit and io_uring.
    assert_eq!(exit, ExitFinding::Finding);
    assert_eq!(s.get(GOVERNOR_10), "performance");
    assert_eq!(s.get(THP), "madvise");
    assert_eq!(s.get(SOMAXCONN), "4096");
    assert_eq!(s.get("/proc/sys/kernel/io_uring_disabled"), "2");
    let differs = report["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|f| f["verdict"] == "differs")
        .map(|f| f["stage"].as_str().expect("a name"));
    assert_eq!(differs.collect::<Vec<_>>(), ["nofile", "io_uring"]);

    assert_eq!(s.run(Action::Revert).0, ExitFinding::Clean);
    assert_eq!(s.get(GOVERNOR_10), "powersave");
    assert_eq!(s.get(THP), "always");
    assert_eq!(s.get(SOMAXCONN), "128");
    assert!(!s.state.exists());
    assert_eq!(s.run(Action::Revert).0, ExitFinding::Clean);
}

#[test]
fn a_second_apply_keeps_the_oldest_values() {
    let s = scratch("metal");
    s.run(Action::Apply);
    let first = fs::read(&s.state).expect("a state");
    s.run(Action::Apply);
    assert_eq!(fs::read(&s.state).expect("a state"), first);
    // A daemon lowers it again; the value to come back to is still the first one.
    s.set(GOVERNOR_10, "ondemand\n");
    s.run(Action::Apply);
    assert_eq!(s.get(GOVERNOR_10), "performance");
    s.run(Action::Revert);
    assert_eq!(s.get(GOVERNOR_10), "powersave");
}

#[test]
fn a_sysctl_is_only_raised_and_a_value_that_somebody_else_set_is_left() {
    let s = scratch("metal");
    s.set(SOMAXCONN, "65535\n");
    s.run(Action::Apply);
    assert_eq!(s.get(SOMAXCONN), "65535");

    let s = scratch("metal");
    s.run(Action::Apply);
    s.set(SOMAXCONN, "8192\n");
    let (exit, report) = s.run(Action::Revert);
    assert_eq!(exit, ExitFinding::Finding);
    assert_eq!(s.get(SOMAXCONN), "8192");
    assert!(report.to_string().contains(r#""outcome":{"state":"changed_since","now":"8192"}"#));
    assert!(!s.state.exists());
}

#[test]
fn a_read_only_setting_fails_alone_and_leaves_no_record() {
    let s = scratch("metal");
    // A link to a file that the kernel lets nobody write, root included: permission bits would not stop a root test.
    let target = s.host.at(GOVERNOR_10);
    fs::remove_file(&target).expect("removed");
    symlink("/proc/sys/kernel/ostype", &target).expect("linked");
    let (exit, report) = s.run(Action::Apply);
    assert_eq!(exit, ExitFinding::Environment);
    assert_eq!(exit.code(), 3);
    let failed: Vec<&serde_json::Value> =
        report["changes"].as_array().expect("a list").iter().filter(|c| c["outcome"]["state"] == "failed").collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["path"], GOVERNOR_10);
    assert_eq!(s.get(THP), "madvise");
    let state = fs::read_to_string(&s.state).expect("a state");
    assert!(!state.contains(GOVERNOR_10));
    assert!(s.human(Action::Apply).contains("FAILED"));
}

#[test]
fn an_apply_where_every_write_fails_leaves_no_state_file() {
    let s = scratch("vm");
    let target = s.host.at(THP);
    fs::remove_file(&target).expect("removed");
    symlink("/proc/sys/kernel/ostype", &target).expect("linked");
    assert_eq!(s.run(Action::Apply).0, ExitFinding::Clean); // "Linux" is not `always`: nothing to do.
    let governor = s.host.at("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    fs::create_dir_all(governor.parent().expect("a parent")).expect("a folder");
    symlink("/proc/sys/kernel/ostype", &governor).expect("linked");
    assert_eq!(s.run(Action::Apply).0, ExitFinding::Environment);
    assert!(!s.state.exists());
}

#[test]
fn a_failed_restore_stays_recorded_for_the_next_revert() {
    let s = scratch("metal");
    s.run(Action::Apply);
    let target = s.host.at(GOVERNOR_10);
    fs::remove_file(&target).expect("removed");
    fs::create_dir(&target).expect("a folder where a file was cannot be read or written");
    assert_eq!(s.run(Action::Revert).0, ExitFinding::Environment);
    assert_eq!(s.get(SOMAXCONN), "128");
    fs::remove_dir(&target).expect("removed");
    s.set(GOVERNOR_10, "performance\n");
    assert_eq!(s.run(Action::Revert).0, ExitFinding::Clean);
    assert_eq!(s.get(GOVERNOR_10), "powersave");
    assert!(!s.state.exists());
}

#[test]
fn a_setting_gone_since_apply_is_no_obstacle() {
    let s = scratch("metal");
    s.run(Action::Apply);
    fs::remove_dir_all(s.host.at("/sys/devices/system/cpu/cpu10")).expect("taken offline");
    assert_eq!(s.run(Action::Revert).0, ExitFinding::Clean);
    assert!(!s.state.exists());
}

#[test]
fn a_revert_after_a_crash_between_record_and_writes_finishes_the_rest() {
    let s = scratch("metal");
    s.run(Action::Apply);
    // As if the process had died after the first write: all recorded, the others still old.
    s.set(GOVERNOR_10, "powersave\n");
    s.set(THP, "[always] madvise never\n");
    s.set(SOMAXCONN, "128\n");
    assert_eq!(s.run(Action::Revert).0, ExitFinding::Clean);
    assert_eq!(s.get("/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"), "schedutil");
    assert_eq!(s.get(SOMAXCONN), "128");
    assert!(!s.state.exists());
}

#[test]
fn an_empty_root_is_clean_or_unknown_and_never_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let host = Host::new(dir.path());
    let mut out = Vec::new();
    let state = dir.path().join("state.json");
    for action in [Action::Check, Action::Plan, Action::Apply, Action::Revert] {
        let exit = tune(action, &host, &state, false, &mut out).expect("it runs");
        assert_eq!(exit, ExitFinding::Clean, "{action:?}");
    }
    assert!(!state.exists());
}

#[test]
fn a_broken_state_file_stops_apply_and_revert_before_any_write() {
    let s = scratch("metal");
    fs::create_dir_all(s.state.parent().expect("a parent")).expect("a folder");
    let entry = |path: &str| format!(r#"{{"version":1,"entries":[{{"stage":"governor","path":"{path}","old":"a","new":"b"}}]}}"#);
    for text in [
        String::new(),
        "{\"version\":1,\"entr".to_owned(),
        r#"{"version":2,"entries":[]}"#.to_owned(),
        entry("/etc/passwd"),
        entry("/sys/../etc/passwd"),
        entry("/proc/1/mem"),
    ] {
        fs::write(&s.state, &text).expect("written");
        let before = snapshot(&s.host.root);
        for action in [Action::Apply, Action::Revert] {
            let error = tune(action, &s.host, &s.state, true, &mut Vec::new()).expect_err(&text);
            assert!(matches!(error, TuneError::StateMalformed { .. }), "{error}");
            assert_eq!(error.exit_code(), 3);
        }
        assert_eq!(snapshot(&s.host.root), before);
        assert_eq!(fs::read_to_string(&s.state).expect("kept"), text);
    }
}

#[test]
fn without_a_place_for_the_old_values_nothing_is_written() {
    let s = scratch("metal");
    let before = snapshot(&s.host.root);
    let state = s.host.root.join("proc/sys/net/core/somaxconn/state.json");
    let error = tune(Action::Apply, &s.host, &state, true, &mut Vec::new()).expect_err("refused");
    assert!(matches!(error, TuneError::StateWrite { .. } | TuneError::StateRead { .. }), "{error}");
    assert_eq!(snapshot(&s.host.root), before);
}

#[test]
fn a_driver_without_the_performance_governor_is_not_written_to() {
    let s = scratch("metal");
    for cpu in [0, 1, 2, 10] {
        s.set(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_available_governors"), "userspace powersave\n");
    }
    assert_eq!(check(&s.host)[0].verdict, Verdict::NotAvailable);
    assert!(plan(&s.host).iter().all(|c| c.stage() != "governor"));
}

#[test]
fn the_io_uring_switch_and_kernel_decide() {
    for (switch, release, seccomp, verdict) in [
        (Some("0"), "6.12.1", "0", Verdict::Ok),
        (Some("1"), "6.12.1", "0", Verdict::Differs),
        (Some("2"), "6.12.1", "2", Verdict::Differs),
        (Some("0"), "6.12.1", "2", Verdict::Unknown),
        (Some("9"), "6.12.1", "0", Verdict::Unknown),
        (None, "6.1.0-40", "0", Verdict::Ok),
        (None, "5.1.0", "0", Verdict::Ok),
        (None, "5.0.21", "0", Verdict::NotAvailable),
        (None, "4.19.0-27-amd64", "0", Verdict::NotAvailable),
        (None, "strange", "0", Verdict::Unknown),
    ] {
        let s = scratch("vm");
        let path = "/proc/sys/kernel/io_uring_disabled";
        match switch {
            Some(value) => s.set(path, value),
            None => fs::remove_file(s.host.at(path)).expect("removed"),
        }
        s.set("/proc/sys/kernel/osrelease", release);
        s.set("/proc/self/status", &format!("Seccomp:\t{seccomp}\n"));
        assert_eq!(check(&s.host)[4].verdict, verdict, "{switch:?} {release} {seccomp}");
    }
}

#[test]
fn the_table_lines_up_and_says_why() {
    let text = scratch("metal").human(Action::Check);
    let at = text.find("required").expect("a head");
    for line in text.lines().skip(1).take(5) {
        assert_eq!(line.as_bytes()[at - 1], b' ', "{line}");
        assert_ne!(line.as_bytes()[at], b' ', "{line}");
    }
    assert!(text.contains("\nsomaxconn: When a farm reconnects"));
}
