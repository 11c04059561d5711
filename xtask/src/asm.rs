//! `cargo xtask asm`: reads the code that the compiler made of the AVX-512 kernels. A spill, an instruction too many or a call out of the target-feature context
//! costs up to twenty times the speed and breaks no test.
//!
//! What SHA-256 needs (FIPS 180-4, in rotates, ternary logic and sums) is known, and so is what kernels/src/sha256d/lanes.rs has of it: the loops of every function,
//! and between them the sixteen rounds in a row that begin a half-constant block. All of a function is looked at:
//! * every innermost loop is one of three kinds, has exactly the operations of its kind, and there are as many of each kind as the source has;
//! * every 512-bit operation of the whole function is counted by its class. There may be as many as the source has, less those that have only constants to work on
//!   (`Kernel::folded`), which the compiler does ahead; an operation of no known class, such as the left shift of a rotate made of shifts, is one too many;
//! * stores and loads are bounded in the loops by kind, where eight rounds that write no schedule need no store at all, and between the loops;
//! * nothing is called but memcpy, memset and what panics.
//!
//! Each time, the listing is also spoilt in several ways, and the check fails when it lets one pass.
use crate::Failure;
use std::ops::{Add, Mul, RangeInclusive};
use std::path::Path;
use std::process::Command;

/// Operations on 512-bit registers by class.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Operations {
    rotates: u32,
    /// To the right.
    shifts: u32,
    /// Of three operands.
    logic: u32,
    /// Those of a constant may be an exclusive or (of the top bit) or a subtraction.
    sums: u32,
    /// Bytes swapped and words put into their places, of what miners send.
    inputs: u32,
    /// Of no class that the kernels have.
    others: u32,
}

impl Add for Operations {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            rotates: self.rotates + other.rotates,
            shifts: self.shifts + other.shifts,
            logic: self.logic + other.logic,
            sums: self.sums + other.sums,
            inputs: self.inputs + other.inputs,
            others: self.others + other.others,
        }
    }
}

impl Mul<Operations> for u32 {
    type Output = Operations;
    fn mul(self, one: Operations) -> Operations {
        Operations {
            rotates: self * one.rotates,
            shifts: self * one.shifts,
            logic: self * one.logic,
            sums: self * one.sums,
            inputs: self * one.inputs,
            others: self * one.others,
        }
    }
}

impl Operations {
    fn classes(self) -> [(&'static str, u32); 6] {
        [
            ("rotates", self.rotates),
            ("right shifts", self.shifts),
            ("ternary logic", self.logic),
            ("sums", self.sums),
            ("byte swaps and ors", self.inputs),
            ("operations of no known class", self.others),
        ]
    }

    fn total(self) -> u32 {
        self.classes().into_iter().map(|(_, number)| number).sum()
    }

    /// What lies outside of `least` to `most`, in words.
    fn outside(self, least: Self, most: Self) -> Vec<String> {
        let bounds = least.classes().into_iter().zip(most.classes()).map(|((_, least), (_, most))| least..=most);
        let found = self.classes().into_iter().zip(bounds).filter(|((_, number), bounds)| !bounds.contains(number));
        found.map(|((class, number), bounds)| format!("{number} {class}, expected {}", said(&bounds))).collect()
    }
}

fn said(bounds: &RangeInclusive<u32>) -> String {
    if bounds.start() == bounds.end() { bounds.start().to_string() } else { format!("{} to {}", bounds.start(), bounds.end()) }
}

const NONE: Operations = Operations { rotates: 0, shifts: 0, logic: 0, sums: 0, inputs: 0, others: 0 };
/// A round: two big sigmas of three rotates and an exclusive or of three, choose, majority; of seven numbers and into two words six sums.
const ROUND: Operations = Operations { rotates: 6, logic: 4, sums: 6, ..NONE };
/// K and W of a round put together, where the table has not done it.
const ROUND_WORD: Operations = Operations { sums: 1, ..NONE };
/// A word of the schedule: two small sigmas of two rotates, a shift and an exclusive or of three; the sum of four.
const SCHEDULE_WORD: Operations = Operations { rotates: 4, shifts: 2, logic: 2, sums: 3, ..NONE };
/// What a half-constant block has to do for W16 to W31: 8 small sigmas 0 and 14 small sigmas 1, the rest of them is in the table; sums of 16 table words, 22 sigmas, W16.
const HALF_SCHEDULE: Operations = Operations { rotates: 44, shifts: 22, logic: 22, sums: 39, ..NONE };
/// The state before a compression added to the one after it.
const FEED_FORWARD: Operations = Operations { sums: 8, ..NONE };

/// What a compression from the initial state leaves to be done ahead: of round 0 all but W + constant, into two words; of rounds 1 to 3 the sum of K and h.
const FOLDED_INITIAL: Operations = Operations { rotates: 6, logic: 4, sums: 8, ..NONE };
/// Words of `HALF_PADDING_32` and `HALF_PADDING_80` that are zero and need no sum: 10 and 12 of 16.
const FOLDED_PADDING: Operations = Operations { sums: 10 + 12, ..NONE };
/// W4 to W7 of a header's second block are constants: their small sigmas, their K + W, six sums of the schedule.
const FOLDED_HEADER_END: Operations = Operations { rotates: 8, shifts: 4, logic: 4, sums: 4 + 6, ..NONE };
/// W2 of it, the network's bits, is the same in all lanes: its small sigma and its K + W may be done on one number.
const FOLDED_HEADER_BITS: Operations = Operations { rotates: 2, shifts: 1, logic: 1, sums: 1, ..NONE };

/// The kinds of innermost loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Eight rounds with the schedule words of eight later ones.
    Scheduled,
    /// Eight rounds that read their words.
    Rounds,
    /// Eight rounds over constants.
    Uniform,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Scheduled, Self::Rounds, Self::Uniform];

    /// Of 16 lanes.
    fn operations(self) -> Operations {
        8 * match self {
            Self::Scheduled => ROUND + ROUND_WORD + SCHEDULE_WORD,
            Self::Rounds => ROUND + ROUND_WORD,
            Self::Uniform => ROUND,
        }
    }
}

/// A function where shares are hashed.
struct Kernel {
    /// The end of its name.
    name: &'static str,
    /// Of 16 lanes, that it works on.
    groups: u32,
    /// Loops in its source by `Kind::ALL`. The first two make a compression together.
    loops: [u32; 3],
    /// Compressions of half-constant blocks, whose first sixteen rounds stand in a row.
    halves: u32,
    /// Words from miners, by 16 lanes: four of the extranonce, or version, time and nonce.
    inputs: u32,
    /// Operations on constants, by 16 lanes.
    folded: fn() -> Operations,
}

fn folded_roots() -> Operations {
    FOLDED_INITIAL
}

fn folded_headers() -> Operations {
    FOLDED_INITIAL + FOLDED_PADDING + FOLDED_HEADER_END + FOLDED_HEADER_BITS
}

/// Roots: extranonce blocks, the rest of the coinbase, half of a node or of a hash, a node's padding. Headers: the first block, the second, the hash.
const KERNELS: [Kernel; 4] = [
    Kernel { name: "roots_2x16", groups: 2, loops: [2, 2, 2], halves: 1, inputs: 4, folded: folded_roots },
    Kernel { name: "headers_2x16", groups: 2, loops: [3, 3, 0], halves: 2, inputs: 3, folded: folded_headers },
    Kernel { name: "roots_16", groups: 1, loops: [2, 2, 2], halves: 1, inputs: 4, folded: folded_roots },
    Kernel { name: "headers_16", groups: 1, loops: [3, 3, 0], halves: 2, inputs: 3, folded: folded_headers },
];

impl Kernel {
    /// One group alone leaves room to the compiler, which takes it: it unrolls the two turns of `Kind::Rounds`, and it adds h to d and to the rest of a round apart,
    /// a sum more for each round off the longest path. Two groups fill the CPU: there neither may be.
    fn alone(&self) -> bool {
        self.groups == 1
    }

    /// Fewest and most operations of a loop.
    fn operations_of(&self, kind: Kind) -> (Operations, Operations) {
        let least = self.groups * kind.operations();
        (least, least + Operations { sums: if self.alone() { 8 } else { 0 }, ..NONE })
    }

    /// Most stores and loads of a loop, constants not counted: the eight words that it writes; the eight or sixteen that it reads. Two states and their schedule
    /// do not fit 32 registers: eight spills a group and twelve reloads are borne there; one group has room, and so have rounds alone.
    fn memory_of(&self, kind: Kind) -> (u32, u32) {
        let groups = self.groups;
        match kind {
            Kind::Scheduled if self.alone() => (8, 16),
            Kind::Scheduled => ((8 + 8) * groups, (16 + 12) * groups),
            Kind::Rounds => (0, 8 * groups),
            Kind::Uniform => (0, 0),
        }
    }

    /// Fewest and most operations of the whole function, of which `unrolled` loops of `Kind::Rounds` stand twice in a row.
    fn operations(&self, unrolled: u32) -> (Operations, Operations) {
        let [scheduled, rounds, uniform] = self.loops;
        let rounds = rounds + unrolled;
        let written = scheduled * Kind::Scheduled.operations()
            + rounds * Kind::Rounds.operations()
            + uniform * Kind::Uniform.operations()
            + self.halves * (16 * ROUND + 8 * ROUND_WORD + HALF_SCHEDULE)
            + (scheduled + uniform) * FEED_FORWARD
            + Operations { inputs: self.inputs, ..NONE };
        let twice = if self.alone() { 8 * (scheduled + rounds + uniform) + 16 * self.halves } else { 0 };
        let folded = (self.folded)();
        let least = Operations {
            rotates: written.rotates - folded.rotates,
            shifts: written.shifts - folded.shifts,
            logic: written.logic - folded.logic,
            sums: written.sums - folded.sums,
            ..written
        };
        (self.groups * least, self.groups * written + Operations { sums: twice, ..NONE })
    }

    /// Most stores and loads between the loops. Stores: the schedule zeroed and its first block, inputs, the state before every compression, 24 words of every half
    /// and as many spills as it has rounds, the result. Loads: inputs and what they are put into, the states again, the words of the halves and as many reloads,
    /// words of unrolled rounds.
    fn memory_between(&self, unrolled: u32) -> (u32, u32) {
        let compressions = self.loops[0] + self.loops[2];
        let stores = 64 + 16 + self.inputs + 8 * compressions + (24 + 16) * self.halves + 8;
        let loads = 2 * self.inputs + 8 + 8 * compressions + (16 + 16) * self.halves + 16 * unrolled;
        (self.groups * stores, self.groups * loads)
    }
}

/// What a stretch of code does with 512-bit registers.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Counted {
    operations: Operations,
    stores: u32,
    /// Of whole registers; a constant for all lanes is none.
    loads: u32,
    /// Rounds on shorter registers.
    narrow: u32,
    calls: u32,
}

/// What became of a function.
struct Judged {
    /// What is wrong, in words.
    problems: Vec<String>,
    /// What it has, in words.
    summary: String,
}

/// Compiles the kernels as the release has them and judges them; false when one is worse than it may be.
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
    for kernel in &KERNELS {
        let name = kernel.name;
        let Some(body) = function(&text, name) else {
            println!("FAILED: {name} is not in {}: was it inlined or renamed?", file.display());
            good = false;
            continue;
        };
        let judged = judge(kernel, &body);
        println!("{name}: {}", judged.summary);
        for problem in &judged.problems {
            println!("FAILED: {name}: {problem}");
        }
        good &= judged.problems.is_empty();
        // Code that is bad already proves nothing.
        for (what, spoilt) in spoilt(kernel, &body).into_iter().filter(|_| judged.problems.is_empty()) {
            if judge(kernel, &spoilt.iter().map(String::as_str).collect::<Vec<_>>()).problems.is_empty() {
                println!("FAILED: {name}: the check itself lets pass {what}");
                good = false;
            }
        }
    }
    if !good {
        println!("{}", advice(&file));
    }
    Ok(good)
}

/// Where to look when the code is not as expected.
fn advice(file: &Path) -> String {
    let compiler = Command::new("rustc").arg("--version").output().map_or_else(
        |error| format!("rustc, of unknown version ({error})"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    format!(
        "The code is in {}, made by {compiler}; the loops end in a jump back to their label. After a change of the kernels: is everything #[inline(always)] \
         below the functions of avx512.rs, and no closure or `map` on the way? After a change of the source's loops or blocks: KERNELS in xtask/src/asm.rs says \
         what the source has. After a change of the compiler alone: run `cargo xtask figures kernels` with both. If v1_share_cycles is no worse, the compiler only \
         folds, unrolls or spills in another way: widen the bound in xtask/src/asm.rs and say why beside it",
        file.display()
    )
}

/// Judges the lines of a function.
fn judge(kernel: &Kernel, body: &[&str]) -> Judged {
    let mut problems = Vec::new();
    let ranges = loops(body);
    let mut kinds = [0; 3];
    let mut worst_scheduled = Counted::default();
    let mut worst_rounds = Counted::default();
    for &(start, end) in &ranges {
        let found = count(&body[start..end]);
        if found.calls > 0 {
            problems.push(format!("a loop calls {} functions: something fell out of the target features", found.calls));
        }
        let Some(kind) = kind_of(kernel, found) else {
            problems.push(format!("a loop is of no known kind: {:?}, {} operations on short registers", found.operations, found.narrow));
            continue;
        };
        kinds[kind as usize] += 1;
        match kind {
            Kind::Scheduled if found.operations.total() >= worst_scheduled.operations.total() => worst_scheduled = found,
            Kind::Rounds if found.operations.total() >= worst_rounds.operations.total() => worst_rounds = found,
            _ => {}
        }
        let (least, most) = kernel.operations_of(kind);
        problems.extend(found.operations.outside(least, most).into_iter().map(|problem| format!("a loop ({kind:?}) has {problem}")));
        let (stores, loads) = kernel.memory_of(kind);
        if found.stores > stores {
            problems.push(format!("a loop ({kind:?}) stores {} vectors, more than {stores}: it spills", found.stores));
        }
        if found.loads > loads {
            problems.push(format!("a loop ({kind:?}) loads {} vectors, more than {loads}: it reloads what was spilt", found.loads));
        }
    }
    let unrolled = if kernel.alone() { kernel.loops[1].saturating_sub(kinds[1]) } else { 0 };
    for (kind, (&expected, &found)) in Kind::ALL.iter().zip(kernel.loops.iter().zip(&kinds)) {
        if found + if *kind == Kind::Rounds { unrolled } else { 0 } != expected {
            problems.push(format!(
                "{found} loops of kind {kind:?}, expected {expected}: one fell out of the target features, was unrolled or copied"
            ));
        }
    }
    let whole = count(body);
    let (least, most) = kernel.operations(unrolled);
    problems.extend(whole.operations.outside(least, most).into_iter().map(|problem| format!("the function has {problem}")));
    if whole.narrow > 0 {
        problems.push(format!("the function has {} operations on short registers", whole.narrow));
    }
    for callee in body.iter().filter_map(|line| callee(line)).filter(|callee| !may_be_called(callee)) {
        problems.push(format!("the function calls {callee}: something fell out of the target features"));
    }
    let between: Vec<&str> =
        (0..body.len()).filter(|&at| !ranges.iter().any(|&(start, end)| (start..end).contains(&at))).map(|at| body[at]).collect();
    let (found, (stores, loads)) = (count(&between), kernel.memory_between(unrolled));
    if found.stores > stores {
        problems.push(format!("{} vectors are stored between the loops, more than {stores}: the code spills", found.stores));
    }
    if found.loads > loads {
        problems.push(format!("{} vectors are loaded between the loops, more than {loads}: the code reloads what was spilt", found.loads));
    }
    let compression = if kernel.alone() || kinds[1] == 0 {
        String::new()
    } else {
        let operations = 6 * worst_scheduled.operations + 2 * worst_rounds.operations;
        format!(
            "a compression takes {} per 16 lanes (least: {}), ",
            operations.total() / kernel.groups + FEED_FORWARD.total(),
            (6 * Kind::Scheduled.operations() + 2 * Kind::Rounds.operations() + FEED_FORWARD).total()
        )
    };
    let summary = format!(
        "{} + {} + {} loops; {compression}the function has {} vector operations ({}); {} spills at most in a loop, {} stores between loops (of {stores})",
        kinds[0],
        kinds[1],
        kinds[2],
        whole.operations.total(),
        said(&(least.total()..=most.total())),
        worst_scheduled.stores.saturating_sub(8 * kernel.groups),
        found.stores
    );
    Judged { problems, summary }
}

/// Rotates tell whether a schedule is written; loads tell rounds that read their words from rounds over constants.
fn kind_of(kernel: &Kernel, found: Counted) -> Option<Kind> {
    let rotates = found.operations.rotates;
    // A few rotates more or less do not make a loop another one: they are a problem of their kind.
    let near = |kind: Kind| rotates.abs_diff(kernel.groups * kind.operations().rotates) <= 8;
    if near(Kind::Scheduled) {
        Some(Kind::Scheduled)
    } else if near(Kind::Rounds) {
        Some(if found.loads >= 8 * kernel.groups { Kind::Rounds } else { Kind::Uniform })
    } else {
        None
    }
}

/// Lines of the function whose mangled name has `name`, with its length before it.
fn function<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mangled = format!("{}{name}", name.len());
    let mut lines = text.lines().skip_while(|line| !(line.starts_with('_') && line.ends_with(':') && line.contains(&mangled)));
    lines.next()?;
    Some(lines.take_while(|line| line.trim() != ".cfi_endproc").collect())
}

/// Loops that hold no other loop: where they begin and where they jump back.
fn innermost(body: &[&str]) -> Vec<(usize, usize)> {
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
    ranges.iter().copied().filter(|&range| !ranges.iter().any(|&other| holds(range, other))).collect()
}

/// The innermost loops that compute. The others are jumps back to a block that the compiler has put out of its order.
fn loops(body: &[&str]) -> Vec<(usize, usize)> {
    let computes = |found: Counted| Operations { inputs: 0, ..found.operations } != NONE || found.narrow > 0;
    innermost(body).into_iter().filter(|&(start, end)| computes(count(&body[start..end]))).collect()
}

/// Instruction and operands, without the comment.
fn parted(line: &str) -> (&str, &str) {
    let line = line.split('#').next().unwrap_or_default().trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(instruction, operands)| (instruction, operands.trim()))
}

/// The function that a line calls, or jumps to as its last act.
fn callee(line: &str) -> Option<&str> {
    let (instruction, operands) = parted(line);
    let target = operands.trim_start_matches('*');
    match instruction {
        "call" | "callq" => Some(target),
        // A register is a jump table's.
        "jmp" | "jmpq" if !target.starts_with(".L") && !target.starts_with('%') => Some(target),
        _ => None,
    }
}

/// Memory moved or set, and panics: those never come back.
fn may_be_called(callee: &str) -> bool {
    let name = callee.split(['@', '(']).next().unwrap_or_default();
    ["memcpy", "memset", "memmove"].contains(&name) || (name.starts_with('_') && name.contains("4core") && name.contains("panic"))
}

fn count(lines: &[&str]) -> Counted {
    let mut found = Counted::default();
    for line in lines {
        let (instruction, operands) = parted(line);
        found.calls += u32::from(callee(line).is_some());
        let Some(operation) = instruction.strip_prefix('v') else { continue };
        let class = match operation {
            "prord" | "prold" => Some(&mut found.operations.rotates),
            "psrld" => Some(&mut found.operations.shifts),
            "pternlogd" | "pternlogq" => Some(&mut found.operations.logic),
            "paddd" | "psubd" | "pxord" => Some(&mut found.operations.sums),
            "pord" | "porq" | "pshufb" => Some(&mut found.operations.inputs),
            _ => None,
        };
        if !operands.contains("%zmm") {
            found.narrow += u32::from(class.is_some());
            continue;
        }
        let constant = operation.contains("broadcast") || operands.contains("{1to");
        let memory = operands.contains('(');
        match class {
            Some(class) => *class += 1,
            None if operation.starts_with("mov") || operation.contains("broadcast") => {}
            None => found.operations.others += 1,
        }
        if memory && operation.starts_with("mov") && operands.starts_with("%zmm") {
            found.stores += 1;
        } else if memory && !constant {
            found.loads += 1;
        }
    }
    found
}

/// The function spoilt in every way that the check is there for, each with its name.
fn spoilt(kernel: &Kernel, body: &[&str]) -> Vec<(&'static str, Vec<String>)> {
    let owned = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
    // Lines `from..to` replaced.
    let replaced = |from: usize, to: usize, by: &[&str]| [owned(&body[..from]), owned(by), owned(&body[to..])].concat();
    let shifted = ["\tvpsrld\t$7, %zmm1, %zmm2", "\tvpslld\t$25, %zmm1, %zmm3", "\tvpord\t%zmm2, %zmm3, %zmm1"];
    let ranges = loops(body);
    let looped = |at: usize| ranges.iter().any(|&(start, end)| (start..=end).contains(&at));
    let is = |at: usize, operation: &str| parted(body[at]).0.starts_with(operation) && body[at].contains("%zmm");
    let mut all = vec![
        ("a call out of the target features", replaced(1, 1, &["\tcallq\tfallen_out"])),
        ("a jump out of the target features", replaced(body.len(), body.len(), &["\tjmp\tfallen_out"])),
    ];
    if let Some(at) = (0..body.len()).find(|&at| !looped(at) && is(at, "vpro")) {
        all.push(("a rotate between the loops made of shifts", replaced(at, at + 1, &shifted)));
    }
    if let Some(at) = (0..body.len()).find(|&at| !looped(at) && is(at, "vpaddd")) {
        all.push(("a sum in shorter registers", replaced(at, at + 1, &["\tvpaddd\t%ymm1, %ymm2, %ymm3", "\tvpaddd\t%ymm4, %ymm5, %ymm6"])));
    }
    for &(start, end) in &ranges {
        let found = count(&body[start..end]);
        let Some(kind) = kind_of(kernel, found) else { continue };
        all.push(("a loop fallen out of the target features", replaced(start, end + 1, &["\tcallq\tfallen_out"])));
        all.push(("a loop that is not there", replaced(start, end + 1, &["\tcallq\tmemset@PLT"])));
        if let Some(at) = (start..end).find(|&at| is(at, "vpro")) {
            all.push(("a rotate in a loop made of shifts", replaced(at, at + 1, &shifted)));
            all.push(("a rotate in a loop done twice", replaced(at, at, &[body[at]])));
        }
        let (stores, loads) = kernel.memory_of(kind);
        let over = |most: u32, found: u32| (most + 1).saturating_sub(found) as usize;
        all.push(("a spill", replaced(start + 1, start + 1, &vec!["\tvmovdqa64\t%zmm3, 64(%rsp)"; over(stores, found.stores)])));
        all.push(("a reload", replaced(start + 1, start + 1, &vec!["\tvmovdqa64\t64(%rsp), %zmm3"; over(loads, found.loads)])));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rustc 1.95 made of `roots_2x16`: labels, jumps, calls and vector instructions, those of a kind between two jumps put together with their number.
    const ROOTS: &str = include_str!("asm/roots_2x16.txt");
    /// The same with `compress_uniform(state, &ROUNDS_PADDING_64)` of lanes.rs in an `#[inline(never)]` function without target features: the padding block of
    /// every merkle level takes 145 to 297 calls there, and nothing in this function is slow.
    const ROOTS_FALLEN_OUT: &str = include_str!("asm/roots_2x16_fallen_out.txt");

    /// The lines that a record stands for.
    fn lines(record: &str) -> Vec<String> {
        let line = |line: &str| match line.split_once(' ') {
            Some((number, instruction)) => {
                vec![format!("\t{}", instruction.replacen(' ', "\t", 1)); number.parse().expect("a number before the instruction")]
            }
            None => vec![line.to_owned()],
        };
        record.lines().flat_map(line).collect()
    }

    fn judged(kernel: &Kernel, lines: &[String]) -> Vec<String> {
        judge(kernel, &lines.iter().map(String::as_str).collect::<Vec<_>>()).problems
    }

    fn has(problems: &[String], words: &str) -> bool {
        problems.iter().any(|problem| problem.contains(words))
    }

    #[test]
    fn the_recorded_code_passes() {
        assert_eq!(judged(&KERNELS[0], &lines(ROOTS)), [""; 0]);
        let owned = lines(ROOTS);
        let body: Vec<&str> = owned.iter().map(String::as_str).collect();
        let summary = judge(&KERNELS[0], &body).summary;
        assert!(summary.starts_with("2 + 2 + 2 loops; a compression takes 1624 per 16 lanes (least: 1624)"), "{summary}");
    }

    #[test]
    fn a_padding_block_that_fell_out_of_the_target_features_is_found_three_times_over() {
        let problems = judged(&KERNELS[0], &lines(ROOTS_FALLEN_OUT));
        assert!(has(&problems, "the function calls _ZN15otedama_kernels7sha256d5lanes10fallen_out"), "{problems:?}");
        assert!(has(&problems, "1 loops of kind Uniform, expected 2"), "{problems:?}");
        assert!(has(&problems, "876 rotates, expected 972 to 984"), "{problems:?}");
    }

    #[test]
    fn every_way_of_spoiling_the_recorded_code_is_found_and_named() {
        let owned = lines(ROOTS);
        let body: Vec<&str> = owned.iter().map(String::as_str).collect();
        let found: Vec<_> = spoilt(&KERNELS[0], &body).into_iter().map(|(what, lines)| (what, judged(&KERNELS[0], &lines))).collect();
        // Four of the function, six of each of its six loops.
        assert_eq!(found.len(), 4 + 6 * 6);
        for (what, problems) in &found {
            let words = match *what {
                "a call out of the target features" | "a jump out of the target features" | "a loop fallen out of the target features" => {
                    "the function calls fallen_out"
                }
                "a rotate between the loops made of shifts" => "971 rotates, expected 972 to 984",
                "a rotate in a loop made of shifts" => "1 operations of no known class, expected 0",
                "a rotate in a loop done twice" => "rotates, expected",
                "a sum in shorter registers" => "2 operations on short registers",
                "a loop that is not there" => "expected 2: one fell out",
                "a spill" => "it spills",
                "a reload" => "it reloads",
                other => panic!("{other} has no words"),
            };
            assert!(has(problems, words), "{what}: {problems:?}");
        }
    }

    #[test]
    fn one_store_is_too_many_in_rounds_that_write_no_schedule() {
        for kind in [Kind::Rounds, Kind::Uniform] {
            assert!(KERNELS.iter().all(|kernel| kernel.memory_of(kind).0 == 0), "{kind:?}");
        }
        let owned = lines(ROOTS);
        let body: Vec<&str> = owned.iter().map(String::as_str).collect();
        for (start, end) in loops(&body) {
            let kind = kind_of(&KERNELS[0], count(&body[start..end])).expect("six loops of known kinds");
            let mut spilt = owned.clone();
            spilt.insert(start + 1, "\tvmovdqa64\t%zmm3, 64(%rsp)".to_owned());
            assert_eq!(has(&judged(&KERNELS[0], &spilt), "it spills"), kind != Kind::Scheduled, "{kind:?}");
        }
    }

    #[test]
    fn an_instruction_counts_once_by_what_it_does() {
        let counted = |line: &str| count(&[line]);
        let operations = |operations: Operations| Counted { operations, ..Counted::default() };
        assert_eq!(counted("\tvpaddd\t%zmm1, %zmm2, %zmm3  # sums"), operations(Operations { sums: 1, ..NONE }));
        assert_eq!(counted("\tvpaddd\t(%rax,%rdx,4){1to16}, %zmm2, %zmm3"), operations(Operations { sums: 1, ..NONE }));
        assert_eq!(counted("\tvpaddd\t64(%rsp), %zmm2, %zmm3"), Counted { loads: 1, ..operations(Operations { sums: 1, ..NONE }) });
        assert_eq!(counted("\tvpslld\t$7, %zmm2, %zmm3"), operations(Operations { others: 1, ..NONE }));
        assert_eq!(counted("\tvpaddd\t%ymm1, %ymm2, %ymm3"), Counted { narrow: 1, ..Counted::default() });
        assert_eq!(counted("\tvmovdqa64\t%zmm3, -64(%rsp,%rax)"), Counted { stores: 1, ..Counted::default() });
        assert_eq!(counted("\tvmovups\t64(%rsp), %zmm3"), Counted { loads: 1, ..Counted::default() });
        for nothing in [
            "\tvmovdqa64\t%zmm3, %zmm4",
            "\tvpbroadcastd\t4(%rax), %zmm1",
            "\tvxorps\t%xmm1, %xmm1, %xmm1",
            ".LBB1_2:",
            "\taddq\t$8, %rax",
            "",
        ] {
            assert_eq!(counted(nothing), Counted::default(), "{nothing}");
        }
    }

    #[test]
    fn memory_and_panics_may_be_called_and_tail_jumps_are_calls() {
        for line in [
            "\tcallq\tmemset@PLT",
            "\tcallq\t*memcpy@GOTPCREL(%rip)",
            "\tcallq\t*_RNvNtCsg_4core9panicking18panic_bounds_check@GOTPCREL(%rip)",
        ] {
            assert!(callee(line).is_some_and(may_be_called), "{line}");
        }
        for line in [
            "\tcallq\tmemset_of_another_kind",
            "\tcallq\t_RNv4core6splat",
            "\tjmp\t_ZN5other5panicE",
            "\tjmpq\t*splat@GOTPCREL(%rip)",
            "\tcallq\t*%rax",
        ] {
            assert!(callee(line).is_some_and(|callee| !may_be_called(callee)), "{line}");
        }
        for line in ["\tjmp\t.LBB1_2", "\tjmpq\t*%rax", "\tjne\t.LBB1_2", "\tretq"] {
            assert_eq!(callee(line), None, "{line}");
        }
    }

    #[test]
    fn only_the_named_function_is_read_and_only_its_innermost_loops() {
        let text = "_ZN7kernels10roots_2x1617habcE:\n\tpushq\t%rbp\n.LBB0_1:\n\tcallq\tmemset\n.LBB0_2:\n\tnop\n\tjb\t.LBB0_2\n\tjne\t.LBB0_1\n\
                    \tjmp\t.LBB0_9\n.LBB0_9:\n\tretq\n\t.cfi_endproc\n\tvpaddd\t%zmm0, %zmm0, %zmm0\n";
        let body = function(text, "roots_2x16").expect("it is there");
        assert_eq!((body.len(), innermost(&body)), (10, vec![(3, 5)]));
        assert_eq!(function(text, "headers_2x16"), None);
    }

    #[test]
    fn a_compression_has_the_least_operations_that_sha_256_can_have() {
        let looped = 6 * Kind::Scheduled.operations() + 2 * Kind::Rounds.operations() + FEED_FORWARD;
        let written = 64 * (ROUND + ROUND_WORD) + 48 * SCHEDULE_WORD + FEED_FORWARD;
        assert_eq!((looped, looped.total()), (written, 1624));
    }
}
