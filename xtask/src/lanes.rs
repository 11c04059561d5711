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
            Lane::Faults => faults(&mut report, plan.long),
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

/// A cargo test step: every test runs although one failed, and tests that pass may say what they skipped.
fn cargo_test(name: &str, selection: &[&str], filters: &[&str], limit: Duration, long: bool) -> Step {
    let head = ["cargo", "test", "--no-fail-fast"];
    let words: Vec<&str> =
        head.into_iter().chain(selection.iter().copied()).chain(["--", "--show-output"]).chain(filters.iter().copied()).collect();
    let step = Step::new(name, &words, limit);
    if long { step.with("OTEDAMA_LONG", "1") } else { step }
}

fn quick(report: &mut Report, long: bool) -> Result<(), Failure> {
    report.step(Lane::Quick, &cargo_test("cargo test --workspace", &["--workspace"], &[], minutes(20, long), long))?;
    // `auto` is io_uring where the host has it; the portable driver must do the same.
    let mio = ["--package", "otedama", "--test", "hostile", "--test", "accounting"];
    let mio = cargo_test("otedama over mio", &mio, &[], minutes(10, long), long).with("OTEDAMA_LAYOUT__DRIVER", "mio");
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
    let pool =
        cargo_test("otedama against regtest-node", &["--package", "otedama"], &["--include-ignored", "node"], minutes(20, long), long)
            .with("OTEDAMA_REGTEST_NODE", binary);
    filtered(report, Lane::Node, &pool, "node")
}

fn clickhouse(report: &mut Report, long: bool) -> Result<(), Failure> {
    install::ensure(&install::CLICKHOUSE)?;
    let shipper = cargo_test("otedama-shipper against ClickHouse", &["--package", "otedama-shipper"], &[], minutes(20, long), long);
    report.step(Lane::ClickHouse, &shipper.with("OTEDAMA_REQUIRE_CLICKHOUSE", "1"))?;
    let pool =
        cargo_test("otedama against ClickHouse", &["--package", "otedama"], &["--include-ignored", "clickhouse"], minutes(20, long), long);
    filtered(report, Lane::ClickHouse, &pool.with("OTEDAMA_REQUIRE_CLICKHOUSE", "1"), "clickhouse")
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
    let shipper =
        cargo_test("otedama-shipper against the engine", &["--package", "otedama-shipper"], &[], minutes(20, plan.long), plan.long);
    report.step(Lane::Engine, &against(shipper))?;
    let filters = ["--include-ignored", "clickhouse", "engine"];
    let pool = cargo_test("otedama against the engine", &["--package", "otedama"], &filters, minutes(20, plan.long), plan.long);
    filtered(report, Lane::Engine, &against(pool), "clickhouse or engine")
}

fn faults(report: &mut Report, long: bool) -> Result<(), Failure> {
    // The glob takes every integration test of the crate: kills, torn files, full disks.
    let log =
        cargo_test("otedama-sharelog: kills and cuts", &["--package", "otedama-sharelog", "--test", "*"], &[], minutes(20, long), long);
    report.step(Lane::Faults, &log)?;
    let pool = cargo_test("otedama: kills", &["--package", "otedama"], &["--include-ignored", "kill", "crash"], minutes(20, long), long);
    filtered(report, Lane::Faults, &pool, "kill or crash")?;
    fuzz(report, long)
}

/// Runs a step that selects tests by name; no such test is a skip that is counted, because a filter that matches nothing always passes.
fn filtered(report: &mut Report, lane: Lane, step: &Step, named: &str) -> Result<(), Failure> {
    if report.step(lane, step)? == Tally::default() {
        report.skip(lane, &step.name, &format!("no test is named {named}"));
    }
    Ok(())
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
        let step = cargo_test("x", &["--package", "otedama"], &["kill"], Duration::from_secs(1), true);
        assert_eq!(step.words.join(" "), "cargo test --no-fail-fast --package otedama -- --show-output kill");
        assert_eq!(step.env, [("OTEDAMA_LONG", "1".to_owned())]);
    }
}
