//! `cargo xtask asm`: reads the code that the compiler made of the AVX-512 kernels. A spill, an instruction too many or a call out of the target-feature context
//! costs up to twenty times the speed and breaks no test.
use crate::Failure;
use std::path::Path;
use std::process::Command;

/// The functions where shares are hashed, by the end of their names.
const FUNCTIONS: [&str; 2] = ["roots_2x16", "headers_2x16"];
/// Groups of 16 lanes that these functions work on.
const GROUPS: u32 = 2;
/// Vector operations of one compression per 16 lanes: 64 rounds of 17, 48 schedule words of 11, 8 sums (FIPS 180-4 in rotates, ternary logic and sums).
const COMPRESSION: u32 = 64 * 17 + 48 * 11 + 8;
/// Of eight rounds with the schedule words of eight later ones, of eight rounds that read theirs, of eight rounds over constants.
const SCHEDULED: u32 = 8 * (17 + 11);
const ROUNDS: u32 = 8 * 17;
const UNIFORM: u32 = 8 * 16;
/// Stores of a scheduled loop: eight words for every group, and as many spills at most.
const STORES_MAX: u32 = 2 * 8 * GROUPS;

/// What an innermost loop does with 512-bit registers.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Loop {
    /// Sums, rotates, shifts, ternary logic.
    operations: u32,
    stores: u32,
    calls: u32,
    /// The same operations on shorter registers.
    narrow: u32,
}

/// Compiles the kernels as the release has them and judges their loops; false when one is worse than it may be.
pub fn run(root: &Path) -> Result<bool, Failure> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: asm: this machine has no AVX-512 to compile for");
        return Ok(true);
    }
    let folder = root.join("target/asm");
    let file = folder.join("kernels.s");
    std::fs::create_dir_all(&folder).map_err(|error| Failure::Environment(format!("{}: {error}", folder.display())))?;
    // Without LTO, as that leaves only bitcode of a library; it changes nothing inside of a function.
    let status = Command::new("cargo")
        .args(["rustc", "--release", "--package", "otedama-kernels", "--lib", "--config", "profile.release.lto=false", "--target-dir"])
        .arg(&folder)
        .args(["--", "--emit"])
        .arg(format!("asm={}", file.display()))
        .current_dir(root)
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(Failure::Environment("cargo rustc of the kernels failed".to_owned()));
    }
    let text = std::fs::read_to_string(&file).map_err(|error| Failure::Environment(format!("{}: {error}", file.display())))?;
    let mut good = true;
    for name in FUNCTIONS {
        let Some(body) = function(&text, name) else {
            println!("FAILED: {name} is not in {}: was it inlined or renamed?", file.display());
            good = false;
            continue;
        };
        let loops: Vec<Loop> = innermost(&body).into_iter().filter(|found| found.operations + found.narrow >= UNIFORM).collect();
        let problems = problems(&loops);
        for problem in &problems {
            println!("FAILED: {name}: {problem}");
        }
        good &= problems.is_empty();
        let scheduled = loops.iter().filter(|found| found.operations >= SCHEDULED * GROUPS);
        let spilled = scheduled.clone().map(|found| found.stores.saturating_sub(8 * GROUPS)).max().unwrap_or(0);
        let operations = scheduled.map(|found| found.operations).max().unwrap_or(0);
        let compression = (6 * operations + 2 * ROUNDS * GROUPS) / GROUPS + 8;
        println!(
            "{name}: {} loops; a compression takes {compression} vector operations per 16 lanes (least: {COMPRESSION}); \
             at most {spilled} spills beside {operations} operations",
            loops.len()
        );
    }
    Ok(good)
}

/// What is wrong with the loops of a function, in words.
fn problems(loops: &[Loop]) -> Vec<String> {
    let mut problems = Vec::new();
    if !loops.iter().any(|found| found.operations >= SCHEDULED * GROUPS) {
        problems.push(format!("no loop has the {} operations of eight rounds and their schedule: was it unrolled?", SCHEDULED * GROUPS));
    }
    for found in loops {
        let kinds = [SCHEDULED * GROUPS, ROUNDS * GROUPS, UNIFORM * GROUPS];
        // Up to one in fifty more is the compiler's liberty: a sum done twice, a constant made anew.
        if !kinds.iter().any(|&least| (least..=least + least / 50).contains(&found.operations)) {
            problems.push(format!("a loop has {} vector operations, expected {kinds:?}", found.operations));
        }
        if found.stores > STORES_MAX {
            problems.push(format!("a loop stores {} vectors, more than {STORES_MAX}: it spills", found.stores));
        }
        if found.calls > 0 {
            problems.push(format!("a loop calls {} functions: something fell out of the target features", found.calls));
        }
        if found.narrow > 0 {
            problems.push(format!("a loop has {} operations on short registers", found.narrow));
        }
    }
    problems
}

/// Lines of the function whose mangled name has `name`, with its length before it.
fn function<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mangled = format!("{}{name}", name.len());
    let mut lines = text.lines().skip_while(|line| !(line.starts_with('_') && line.ends_with(':') && line.contains(&mangled)));
    lines.next()?;
    Some(lines.take_while(|line| line.trim() != ".cfi_endproc").collect())
}

/// Loops that hold no other loop.
fn innermost(body: &[&str]) -> Vec<Loop> {
    let label = |line: &str| line.strip_suffix(':').filter(|label| label.starts_with(".L")).map(str::to_owned);
    let mut ranges = Vec::new();
    for (end, line) in body.iter().enumerate() {
        let mut words = line.split_whitespace();
        let (Some(jump), Some(to)) = (words.next(), words.next()) else { continue };
        if !jump.starts_with('j') {
            continue;
        }
        if let Some(start) = body[..end].iter().position(|line| label(line).as_deref() == Some(to)) {
            ranges.push((start, end));
        }
    }
    let holds = |outer: (usize, usize), inner: (usize, usize)| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1;
    ranges.iter().filter(|&&range| !ranges.iter().any(|&other| holds(range, other))).map(|&(start, end)| count(&body[start..end])).collect()
}

fn count(lines: &[&str]) -> Loop {
    let mut found = Loop::default();
    for line in lines {
        let line = line.trim();
        let (operation, operands) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if ["vpaddd", "vprord", "vprold", "vpsrld", "vpternlogd"].contains(&operation) {
            if operands.contains("zmm") { found.operations += 1 } else { found.narrow += 1 }
        } else if operation.starts_with("vmov") && operands.trim().starts_with("%zmm") && operands.contains('(') {
            found.stores += 1;
        } else if operation.starts_with("call") {
            found.calls += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AT&T syntax, as rustc emits it: a function with a loop in a loop.
    fn assembly(extra: &str) -> String {
        let operations = "\tvpaddd\t%zmm1, %zmm2, %zmm3\n\tvpternlogd\t$150, %zmm1, %zmm2, %zmm3\n".repeat(224);
        let stores = "\tvmovdqa64\t%zmm3, 64(%rsp)\n".repeat(20);
        format!(
            "_ZN7kernels10roots_2x1617habcE:\n\tpushq\t%rbp\n.LBB0_1:\n\tcallq\tmemset\n.LBB0_2:\n{operations}{stores}{extra}\tjb\t.LBB0_2\n\
             \tvpaddd\t%zmm1, %zmm2, %zmm3\n\tjne\t.LBB0_1\n\tjmp\t.LBB0_9\n.LBB0_9:\n\tretq\n\t.cfi_endproc\n\tvpaddd\t%zmm0, %zmm0, %zmm0\n"
        )
    }

    fn judged(extra: &str) -> Vec<String> {
        let text = assembly(extra);
        problems(&innermost(&function(&text, "roots_2x16").unwrap()))
    }

    #[test]
    fn the_innermost_loop_is_counted_and_good_code_passes() {
        let text = assembly("");
        let loops = innermost(&function(&text, "roots_2x16").unwrap());
        assert_eq!(loops, [Loop { operations: 448, stores: 20, calls: 0, narrow: 0 }]);
        assert_eq!(judged(""), [""; 0]);
        assert_eq!(function(&text, "headers_2x16"), None);
    }

    #[test]
    fn spills_calls_short_registers_and_waste_are_found() {
        assert!(judged(&"\tvmovdqu64\t%zmm3, (%rsp)\n".repeat(13))[0].contains("spills"));
        assert!(judged("\tcallq\tsplat\n")[0].contains("target features"));
        assert!(judged("\tvpaddd\t%ymm1, %ymm2, %ymm3\n")[0].contains("short registers"));
        assert!(judged(&"\tvprord\t$7, %zmm1, %zmm1\n".repeat(20))[0].contains("468 vector operations"));
        assert!(problems(&[])[0].contains("no loop"));
    }

    #[test]
    fn a_compression_has_the_least_operations_that_sha_256_can_have() {
        assert_eq!(COMPRESSION, 1624);
        assert_eq!(6 * SCHEDULED + 2 * ROUNDS + 8, COMPRESSION);
    }
}
