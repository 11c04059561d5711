//! The test lanes. Each has its own needs, its seconds are printed, and what it cannot run here is counted as skipped with its reason.
use crate::Failure;
use crate::engine;
use crate::install::{self, output};
use crate::step::{self, Step};
use crate::tally::Tally;
use std::path::Path;
use std::time::{Duration, Instant};

/// A lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Everything that needs rustc and a C compiler alone.
    Quick,
    /// Bitcoin Core's engine as the referee.
    Node,
    /// Debian's ClickHouse.
    ClickHouse,
    /// A modern ClickHouse: libchdb behind engine/.
    Engine,
    /// Kills, cuts, fuzzing.
    Faults,
}

impl Lane {
    /// In the order they run.
    pub const ALL: [Self; 5] = [Self::Quick, Self::Node, Self::ClickHouse, Self::Engine, Self::Faults];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Node => "node",
            Self::ClickHouse => "clickhouse",
            Self::Engine => "engine",
            Self::Faults => "faults",
        }
    }
}

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    lanes: Vec<Lane>,
    long: bool,
    /// The lanes were not named: all of them run.
    all: bool,
}

impl Plan {
    /// From the command line.
    pub fn parse(words: &[&str]) -> Result<Self, Failure> {
        let mut plan = Self { lanes: Vec::new(), long: false, all: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--long" => plan.long = true,
                "--lane" => {
                    let name = words.next().ok_or_else(|| Failure::Usage("--lane wants a name".to_owned()))?;
                    let lane = Lane::ALL.into_iter().find(|lane| lane.name() == *name);
                    plan.lanes.push(lane.ok_or_else(|| Failure::Usage(format!("there is no lane {name}")))?);
                }
                other => return Err(Failure::Usage(format!("test does not know {other}"))),
            }
        }
        if plan.lanes.is_empty() {
            plan.lanes = Lane::ALL.to_vec();
            plan.all = true;
        }
        Ok(plan)
    }

    fn has(&self, lane: Lane) -> bool {
        self.lanes.contains(&lane)
    }
}

/// Wall time that all lanes together may take on two cores, without `--long`.
const BUDGET: Duration = Duration::from_secs(30 * 60);
/// Mutation per fuzz target.
const FUZZ_SECONDS: u32 = 60;
const FUZZ_SECONDS_LONG: u32 = 1800;

/// One line of the closing table.
struct Line {
    lane: &'static str,
    step: String,
    tally: Tally,
    seconds: f64,
}

struct Report<'a> {
    root: &'a Path,
    lines: Vec<Line>,
}

impl Report<'_> {
    fn step(&mut self, lane: Lane, step: &Step) -> Result<Tally, Failure> {
        let done = step::run(self.root, step)?;
        println!("  {}: {:.1} s, {}", step.name, done.seconds, done.tally.line());
        self.lines.push(Line { lane: lane.name(), step: step.name.clone(), tally: done.tally, seconds: done.seconds });
        Ok(done.tally)
    }

    fn skip(&mut self, lane: Lane, step: &str, why: &str) {
        println!("  skipped: {step}: {why}");
        self.lines.push(Line { lane: lane.name(), step: step.to_owned(), tally: Tally { skipped: 1, ..Tally::default() }, seconds: 0.0 });
    }
}

/// Runs the lanes of `plan` and prints the table; true when nothing failed.
pub fn run(root: &Path, plan: &Plan) -> Result<bool, Failure> {
    let start = Instant::now();
    let mut report = Report { root, lines: Vec::new() };
    for &lane in &plan.lanes {
        println!("== lane {}", lane.name());
        let outcome = match lane {
            Lane::Quick => quick(&mut report, plan.long),
            Lane::Node => node(&mut report, plan.long),
            Lane::ClickHouse => clickhouse(&mut report, plan.long),
            Lane::Engine => modern(&mut report, plan),
            Lane::Faults => faults(&mut report, plan),
        };
        if let Err(Failure::Environment(what) | Failure::Usage(what)) = outcome {
            // A lane that cannot start is a failure, never a pass; the other lanes still have their say.
            println!("  FAILED: {what}");
            report.lines.push(Line {
                lane: lane.name(),
                step: "prepare".to_owned(),
                tally: Tally { failed: 1, ..Tally::default() },
                seconds: 0.0,
            });
        }
    }
    let mut total = Tally::default();
    println!("\n{:<11} {:<44} {:>8} {:>7} {:>7} {:>8}", "lane", "step", "passed", "failed", "skipped", "seconds");
    for line in &report.lines {
        let Tally { passed, failed, skipped } = line.tally;
        println!("{:<11} {:<44} {passed:>8} {failed:>7} {skipped:>7} {:>8.1}", line.lane, line.step, line.seconds);
        total.add(line.tally);
    }
    for lane in &plan.lanes {
        let seconds: f64 = report.lines.iter().filter(|line| line.lane == lane.name()).map(|line| line.seconds).sum();
        println!("lane {:<11} {seconds:>8.1} s", lane.name());
    }
    let spent = start.elapsed();
    println!("all lanes {:.1} s of a budget of {} s", spent.as_secs_f64(), BUDGET.as_secs());
    if !plan.long && spent > BUDGET {
        println!("over the budget: see which step of the table grew");
    }
    println!("{}", total.line());
    Ok(total.failed == 0)
}

fn minutes(count: u64, long: bool) -> Duration {
    Duration::from_secs(60 * count * if long { 10 } else { 1 })
}

/// A cargo test step over test targets of these names. Of the whole workspace whatever they are: for one package alone cargo takes other features of what it depends on, and builds
/// most of it a second time.
fn targets_test(name: &str, targets: &[String], filters: &[&str], limit: Duration, long: bool) -> Step {
    let named = targets.iter().flat_map(|target| ["--test", target]);
    let selection: Vec<&str> = ["--workspace"].into_iter().chain(named).collect();
    cargo_test(name, &selection, filters, limit, long)
}

/// Names of the test targets in these folders whose source is one that `takes` says.
fn targets_in(root: &Path, folders: &[&str], takes: impl Fn(&str) -> bool) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for folder in folders {
        let failed = |error: std::io::Error| Failure::Environment(format!("{folder}: {error}"));
        for entry in std::fs::read_dir(root.join(folder)).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == "rs") && takes(&std::fs::read_to_string(&path).map_err(failed)?) {
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Tests that bring a ClickHouse.
fn server_targets(root: &Path) -> Result<Vec<String>, Failure> {
    targets_in(root, &["tests", "shipper/tests"], |source| source.lines().any(|line| line == "mod server;"))
}

/// A cargo test step: every test runs although one failed, and tests that pass may say what they skipped.
fn cargo_test(name: &str, selection: &[&str], filters: &[&str], limit: Duration, long: bool) -> Step {
    let head = ["cargo", "test", "--no-fail-fast"];
    let words: Vec<&str> =
        head.into_iter().chain(selection.iter().copied()).chain(["--", "--show-output"]).chain(filters.iter().copied()).collect();
    let step = Step::new(name, &words, limit);
    if long { step.with("OTEDAMA_LONG", "1") } else { step }
}

fn quick(report: &mut Report, long: bool) -> Result<(), Failure> {
    // Tests with a ClickHouse are those of its own lanes, also where one is installed already.
    let all = cargo_test("cargo test --workspace", &["--workspace"], &[], minutes(20, long), long).with("OTEDAMA_TEST_SERVER", "none");
    report.step(Lane::Quick, &all)?;
    // `auto` is io_uring where the host has it; the portable driver must do the same.
    let mio = ["hostile", "accounting"].map(str::to_owned);
    let mio = targets_test("otedama over mio", &mio, &[], minutes(10, long), long).with("OTEDAMA_LAYOUT__DRIVER", "mio");
    report.step(Lane::Quick, &mio)?;
    let own = std::env::current_exe().map_err(|error| Failure::Environment(format!("xtask does not know its own path: {error}")))?;
    let asm = Step::new("asm: what the compiler made of the kernels", &[&own.to_string_lossy(), "asm"], minutes(5, long));
    if report.step(Lane::Quick, &asm)?.failed == 0
        && let Some(line) = report.lines.last_mut()
    {
        line.tally.passed = 1;
    }
    Ok(())
}

fn node(report: &mut Report, long: bool) -> Result<(), Failure> {
    install::ensure(&install::NODE)?;
    // Its own target folder inside of its own workspace: CI caches it, and the engine's minutes of C++ are spent once.
    let target = report.root.join("regtest-node/target");
    let target = target.to_string_lossy().into_owned();
    let manifest = ["--release", "--manifest-path", "regtest-node/Cargo.toml", "--target-dir", &target];
    let tests = cargo_test("regtest-node: Core judges the pool's blocks", &manifest, &[], minutes(15, long), long);
    // Its integration tests need the binary, so cargo has built it.
    report.step(Lane::Node, &tests)?;
    let binary = format!("{target}/release/regtest-node");
    if !Path::new(&binary).exists() {
        return Err(Failure::Environment(format!("{binary} was not built, so the pool was not tested against it")));
    }
    let pool = targets_test("otedama against regtest-node", &["node".to_owned()], &["--include-ignored"], minutes(20, long), long);
    report.step(Lane::Node, &pool.with("OTEDAMA_REGTEST_NODE", binary)).map(drop)
}

fn clickhouse(report: &mut Report, long: bool) -> Result<(), Failure> {
    install::ensure(&install::CLICKHOUSE)?;
    let tests = targets_test("against ClickHouse", &server_targets(report.root)?, &["--include-ignored"], minutes(30, long), long);
    report.step(Lane::ClickHouse, &tests.with("OTEDAMA_TEST_SERVER", "debian").with("OTEDAMA_REQUIRE_CLICKHOUSE", "1")).map(drop)
}

/// The tests of the lane `clickhouse` against a modern engine, and those of engine/ itself. The library is 178 MB: it is fetched in long runs, or where the lane is named.
fn modern(report: &mut Report, plan: &Plan) -> Result<(), Failure> {
    if plan.all && !plan.long && !engine::is_fetched(report.root) {
        report.skip(Lane::Engine, "engine", "libchdb (178 MB) is fetched by `cargo xtask test --long`, or by `--lane engine`");
        return Ok(());
    }
    let engine = engine::ensure(report.root)?;
    let (binary, library) = (engine.binary.to_string_lossy().into_owned(), engine.library.to_string_lossy().into_owned());
    let against = |step: Step| {
        step.with("OTEDAMA_ENGINE", &*binary)
            .with("OTEDAMA_LIBCHDB", &*library)
            .with("OTEDAMA_TEST_SERVER", "engine")
            .with("OTEDAMA_REQUIRE_CLICKHOUSE", "1")
    };
    let target = report.root.join("engine/target").to_string_lossy().into_owned();
    let manifest = ["--release", "--manifest-path", "engine/Cargo.toml", "--target-dir", &target];
    report
        .step(Lane::Engine, &against(cargo_test("otedama-engine: libchdb over HTTP", &manifest, &[], minutes(10, plan.long), plan.long)))?;
    let tests =
        targets_test("against the engine", &server_targets(report.root)?, &["--include-ignored"], minutes(30, plan.long), plan.long);
    report.step(Lane::Engine, &against(tests)).map(drop)
}

fn faults(report: &mut Report, plan: &Plan) -> Result<(), Failure> {
    let long = plan.long;
    let mut kills = vec!["kill_points".to_owned()];
    // The lane `quick` has run all tests but those that are ignored there.
    if !plan.has(Lane::Quick) {
        // Kills, torn files, full disks: every test of the log, and by its name that of the pool's kills.
        let log = targets_in(report.root, &["sharelog/tests"], |_| true)?;
        report.step(Lane::Faults, &targets_test("kills and cuts", &log, &[], minutes(20, long), long))?;
        kills.extend(["log_replay", "replay"].map(str::to_owned));
    }
    let kills = targets_test("kills at named points", &kills, &["--include-ignored", "kill"], minutes(20, long), long);
    report.step(Lane::Faults, &kills)?;
    fuzz(report, long)
}

/// What `cargo fuzz` passes to the compiler: coverage counters and compare tracing for libFuzzer, with the address sanitizer.
const FUZZ_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1 --cfg fuzzing -Zsanitizer=address";

fn fuzz(report: &mut Report, long: bool) -> Result<(), Failure> {
    const MANIFEST: &str = "fuzz/Cargo.toml";
    let Ok(manifest) = std::fs::read_to_string(report.root.join(MANIFEST)) else {
        report.skip(Lane::Faults, "fuzz", "there is no fuzz/Cargo.toml");
        return Ok(());
    };
    let targets = fuzz_targets(&manifest);
    // Asked of rustc, because `cargo +nightly` would start to install a toolchain where rustup may.
    let host = output("rustup", &["run", "nightly", "rustc", "-vV"])
        .and_then(|said| said.lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)));
    let Some(host) = host else {
        for target in &targets {
            report.skip(Lane::Faults, &format!("fuzz {target}"), "there is no nightly toolchain (rustup toolchain install nightly)");
        }
        return Ok(());
    };
    let folder = report.root.join("target/fuzz");
    let folder = folder.to_string_lossy().into_owned();
    let build = [
        "rustup",
        "run",
        "nightly",
        "cargo",
        "build",
        "--release",
        "--bins",
        "--manifest-path",
        MANIFEST,
        "--target",
        &host,
        "--target-dir",
        &folder,
    ];
    let built = report.step(Lane::Faults, &Step::new("fuzz: build", &build, minutes(10, long)).with("RUSTFLAGS", FUZZ_FLAGS))?;
    if built.failed > 0 {
        return Ok(());
    }
    // One dictionary for all targets: the words of the protocol.
    let entries = std::fs::read_dir(report.root.join("fuzz")).into_iter().flatten().flatten();
    let dictionary = entries
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "dict"))
        .map(|path| format!("-dict={}", path.display()));
    for target in &targets {
        let binary = format!("{folder}/{host}/release/{target}");
        // What a run finds goes into a folder under target/: the committed corpus grows on purpose only.
        let found = format!("{folder}/found/{target}");
        let corpus = format!("fuzz/corpus/{target}");
        for path in [&found, &corpus] {
            std::fs::create_dir_all(report.root.join(path))
                .map_err(|error| Failure::Environment(format!("{path} cannot be made: {error}")))?;
        }
        let seconds = if long { FUZZ_SECONDS_LONG } else { FUZZ_SECONDS };
        let artifacts = format!("-artifact_prefix={folder}/{target}-");
        let time = format!("-max_total_time={seconds}");
        let mut words = vec![
            binary.as_str(),
            &time,
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=16384",
            "-print_final_stats=1",
            "-verbosity=0",
            &artifacts,
        ];
        words.extend(dictionary.as_deref());
        words.extend([found.as_str(), &corpus]);
        let step = Step::new(&format!("fuzz {target}: {seconds} s"), &words, Duration::from_secs(u64::from(seconds) + 120));
        let tally = report.step(Lane::Faults, &step)?;
        if tally.failed == 0 {
            // libFuzzer prints no test result: a target that came through is one pass.
            if let Some(line) = report.lines.last_mut() {
                line.tally.passed = 1;
            }
        }
    }
    Ok(())
}

/// The binaries of a fuzz manifest: the names in its `[[bin]]` tables.
fn fuzz_targets(manifest: &str) -> Vec<String> {
    let mut in_bin = false;
    let mut targets = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_bin = line == "[[bin]]";
        } else if in_bin && let Some(value) = line.strip_prefix("name").map(str::trim_start).and_then(|rest| rest.strip_prefix('=')) {
            targets.push(value.trim().trim_matches('"').to_owned());
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_every_lane_runs() {
        assert_eq!(Plan::parse(&[]), Ok(Plan { lanes: Lane::ALL.to_vec(), long: false, all: true }));
        assert_eq!(Plan::parse(&["--long", "--lane", "faults"]), Ok(Plan { lanes: vec![Lane::Faults], long: true, all: false }));
        for wrong in [&["--lane"][..], &["--lane", "fast"], &["--short"], &["quick"]] {
            assert!(matches!(Plan::parse(wrong), Err(Failure::Usage(_))), "{wrong:?}");
        }
    }

    #[test]
    fn fuzz_targets_are_the_bins_of_the_manifest() {
        let manifest = "[package]\nname = \"fuzz\"\n\n[[bin]]\nname = \"stratum_line\"\npath = \"x.rs\"\n[[bin]]\npath = \"y.rs\"\nname=\"dimension\"\n[profile.release]\nname = 1\n";
        assert_eq!(fuzz_targets(manifest), ["stratum_line", "dimension"]);
    }

    #[test]
    fn filters_stand_behind_the_dashes() {
        let step = targets_test("x", &["kill".to_owned(), "replay".to_owned()], &["kill"], Duration::from_secs(1), true);
        assert_eq!(step.words.join(" "), "cargo test --no-fail-fast --workspace --test kill --test replay -- --show-output kill");
        assert_eq!(step.env, [("OTEDAMA_LONG", "1".to_owned())]);
    }

    #[test]
    fn tests_with_a_server_are_known_by_their_source() {
        let targets = server_targets(&crate::root()).expect("the folders are there");
        let has = |name: &str| targets.iter().any(|target| target == name);
        assert!(["clickhouse", "outages", "book", "real", "repair"].into_iter().all(has), "{targets:?}");
        assert!(!["hostile", "wire", "mod"].into_iter().any(has), "{targets:?}");
    }
}
