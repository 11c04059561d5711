//! Cycles of the hashing kernels: whole V1 shares by instruction set, batch length and depth of the tree, headers alone, and `sha2` beside them.
use crate::cycles::{Measured, SideBySide};
use crate::figure::{Figure, Plan};
use crate::reference::{Reference, Varying};
use otedama_kernels::sha256d::scalar;
use otedama_kernels::{BATCH, Isa, JobTable, Judged, ShareBatch, judge, judge_headers};
use otedama_primitives::{Coin, Hash256, Job, JobId, Target};

/// Bytes of the measured coinbase, extranonce included.
const COINBASE_BYTES: usize = 300;
/// Bytes before the extranonce: it lies whole in the second block.
const PREFIX_BYTES: usize = 100;
/// Merkle levels of a block with some 3,000 transactions.
const LEVELS: usize = 12;
/// Batch lengths that are measured, BATCH among them.
const COUNTS: [usize; 14] = [1, 2, 3, 4, 5, 8, 12, 15, 16, 20, 24, 28, 29, BATCH];
/// Depths that are measured beside LEVELS.
const DEPTHS: [usize; 5] = [0, 1, 4, 8, 14];
/// Shares of each variant that are compared with the reference before the clock runs.
const CHECKED_SHARES: u64 = 64;

/// A job with a coinbase of COINBASE_BYTES and that many merkle levels.
pub fn job(levels: usize) -> Job {
    let filler = |seed: usize, len: usize| (0..len).map(|at| (at * 167 + seed * 91 + 13) as u8).collect::<Box<[u8]>>();
    Job {
        id: JobId(1),
        coin: Coin::Bitcoin,
        height: 1,
        prev_hash: Hash256(std::array::from_fn(|at| at as u8)),
        version: 0x2000_0000,
        nbits: 0x1702_1369,
        ntime: 1_795_000_000,
        ntime_min: 1_794_990_000,
        coinbase_prefix: filler(1, PREFIX_BYTES),
        coinbase_suffix: filler(2, COINBASE_BYTES - PREFIX_BYTES - 12),
        branch: (0..levels).map(|level| Hash256(std::array::from_fn(|at| (at * 31 + level * 7 + 5) as u8))).collect(),
        extranonce2_bytes: 8,
        network_target: Target::from_compact(0x1702_1369).unwrap_or(Target([0; 4])),
        clean: true,
        created_us: 0,
    }
}

/// The share of that number: its own extranonce2, nonce, version and time.
fn share(number: u64) -> Varying {
    let mut extranonce = [0xe1; 12];
    extranonce[4..].copy_from_slice(&number.to_be_bytes());
    Varying {
        extranonce,
        version: 0x2000_0000 | (number as u32 & 0xffff) << 13,
        ntime: 1_795_000_000 + (number as u32 & 0x3f),
        nonce: (number as u32).wrapping_mul(0x9e37_79b9),
    }
}

/// Fills the first `count` lanes with the shares from `number` on.
fn fill(batch: &mut ShareBatch, number: u64, count: usize) {
    batch.count = count as u32;
    for lane in 0..count {
        let share = share(number + lane as u64);
        batch.extranonce[lane][..12].copy_from_slice(&share.extranonce);
        (batch.version[lane], batch.ntime[lane], batch.nonce[lane]) = (share.version, share.ntime, share.nonce);
    }
}

/// A batch whose shares are judged at difficulty 1, as production does: the target is far from its edges.
fn batch() -> ShareBatch {
    ShareBatch { work: [1 << 32; BATCH], ..ShareBatch::default() }
}

/// Last words of the first `count` hashes, and the masks: they depend on every bit of the work.
fn digest_of(out: &Judged, count: usize) -> u64 {
    out.hash[7][..count]
        .iter()
        .fold(u64::from(out.share_mask) ^ u64::from(out.network_mask) << 32, |sum, &word| sum.wrapping_add(word.into()))
}

/// The first shares of a variant by kernel, by the scalar definition and by every form of the reference, headers over their roots too. Says which differs.
fn check(isa: Isa, job: &Job, count: usize) -> Result<(), String> {
    let (table, reference) = (JobTable::new(job), Reference::new(job));
    let (mut batch, mut whole) = (batch(), Judged::default());
    for number in (0..CHECKED_SHARES).step_by(count) {
        fill(&mut batch, number, count);
        judge(isa, &table, &batch, &mut whole);
        let mut headers = Judged { root: whole.root, ..Judged::default() };
        judge_headers(isa, &table, &batch, &mut headers);
        for lane in 0..count {
            let share = share(number + lane as u64);
            let words = scalar::share_hash(&table, &batch.extranonce[lane], share.version, share.ntime, share.nonce);
            let hash = Hash256(reference.naive(&share));
            let mut root = [0; 32];
            for (bytes, column) in root.as_chunks_mut::<4>().0.iter_mut().zip(&whole.root) {
                *bytes = column[lane].to_be_bytes();
            }
            let same = whole.hash_of(lane) == hash
                && headers.hash_of(lane) == hash
                && words == std::array::from_fn(|word| whole.hash[word][lane])
                && reference.midstate(&share) == hash.0
                && reference.compressed(&share) == hash.0
                && reference.header(root, &share) == hash.0
                && reference.header_compressed(root, &share) == hash.0;
            if !same {
                return Err(format!(
                    "{} differs from sha2 at share {lane} of {count}, {} levels: nothing is measured",
                    isa.label(),
                    job.branch.len()
                ));
            }
        }
    }
    Ok(())
}

fn whole_shares<'a>(isa: Isa, table: &'a JobTable, count: usize) -> impl FnMut() -> u64 + 'a {
    let (mut batch, mut out, mut number) = (batch(), Judged::default(), 0);
    move || {
        fill(&mut batch, number, count);
        number += count as u64;
        judge(isa, table, &batch, &mut out);
        digest_of(&out, count)
    }
}

fn headers<'a>(isa: Isa, table: &'a JobTable) -> impl FnMut() -> u64 + 'a {
    let (mut batch, mut out, mut number) = (batch(), Judged::default(), 0);
    fill(&mut batch, 0, BATCH);
    judge(isa, table, &batch, &mut out);
    move || {
        fill(&mut batch, number, BATCH);
        number += BATCH as u64;
        judge_headers(isa, table, &batch, &mut out);
        digest_of(&out, BATCH)
    }
}

/// Shares one after the other, BATCH to a call.
fn one_by_one(mut hash: impl FnMut(&Varying) -> [u8; 32]) -> impl FnMut() -> u64 {
    let mut number = 0;
    move || {
        (0..BATCH).fold(0, |sum: u64, _| {
            number += 1;
            let hash = hash(&share(number));
            sum.wrapping_add(u64::from_le_bytes([hash[24], hash[25], hash[26], hash[27], hash[28], hash[29], hash[30], hash[31]]))
        })
    }
}

/// What a row measures, so that names are made in one place.
fn batch_name(isa: Isa, count: usize) -> String {
    format!("v1_share_cycles_{}_n{count}", isa.label())
}

fn depth_name(isa: Isa, levels: usize) -> String {
    format!("v1_share_cycles_{}_levels{levels}", isa.label())
}

fn header_name(isa: Isa) -> String {
    format!("header_only_cycles_{}", isa.label())
}

const NAIVE: &str = "v1_share_cycles_sha2_naive";
const MIDSTATE: &str = "v1_share_cycles_sha2_midstate";
const COMPRESSED: &str = "v1_share_cycles_sha2_compress";
const HEADER: &str = "header_only_cycles_sha2";
const HEADER_COMPRESSED: &str = "header_only_cycles_sha2_compress";

/// Batch lengths of an instruction set: the portable one works share by share, whatever the length.
fn counts(isa: Isa) -> &'static [usize] {
    if isa == Isa::Portable { &[1, BATCH] } else { &COUNTS }
}

/// Measures everything side by side.
pub fn run(plan: Plan) -> Result<Vec<Figure>, String> {
    let isas = Isa::available();
    let best = isas.last().copied().unwrap_or(Isa::Portable);
    let full = job(LEVELS);
    let depths: Vec<(usize, Job)> = DEPTHS.into_iter().map(|levels| (levels, job(levels))).collect();
    for &isa in &isas {
        for &count in counts(isa) {
            check(isa, &full, count)?;
        }
        for (_, job) in &depths {
            check(isa, job, BATCH)?;
        }
    }
    let (table, reference) = (JobTable::new(&full), Reference::new(&full));
    let tables: Vec<(usize, JobTable)> = depths.iter().map(|(levels, job)| (*levels, JobTable::new(job))).collect();
    let mut bench = SideBySide::new();
    let units = BATCH as u32;
    bench.add(NAIVE, units, one_by_one(|share| reference.naive(share)));
    bench.add(MIDSTATE, units, one_by_one(|share| reference.midstate(share)));
    bench.add(COMPRESSED, units, one_by_one(|share| reference.compressed(share)));
    // Over a root that changes with the share: headers stay unlike each other, and nothing of them can be worked out once for all.
    bench.add(HEADER, units, one_by_one(|share| reference.header([share.nonce as u8; 32], share)));
    bench.add(HEADER_COMPRESSED, units, one_by_one(|share| reference.header_compressed([share.nonce as u8; 32], share)));
    for &isa in &isas {
        for &count in counts(isa) {
            bench.add(batch_name(isa, count), count as u32, whole_shares(isa, &table, count));
        }
        for (levels, table) in &tables {
            bench.add(depth_name(isa, *levels), units, whole_shares(isa, table, BATCH));
        }
        bench.add(header_name(isa), units, headers(isa, &table));
    }
    let measured = bench.run(plan.samples);
    let core_mhz = bench.core_mhz();
    eprintln!("core {} at {core_mhz:.0} MHz, checksum {:016x}", plan.core, bench.checksum());
    Ok(Report { measured, conditions: conditions(plan, best, &isas), core_mhz, best }.figures())
}

/// Family and model of the CPU: brand strings of virtual machines do not tell one generation from the next.
fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_else(|| "unknown".to_owned())
    };
    format!("family {} model {}", field("cpu family"), field("model"))
}

fn conditions(plan: Plan, best: Isa, isas: &[Isa]) -> String {
    let known: Vec<&str> = isas.iter().map(|isa| isa.label()).collect();
    let cuts = best.cuts().map_or_else(String::new, |(one, two)| format!(", 16 lanes from {one} shares and 2 x 16 from {two}"));
    format!(
        "one process on one pinned core, all variants in turn; {} samples of about 60 us each, calibrated by a dependent chain beside each sample, 2nd percentile; \
         {COINBASE_BYTES}-byte coinbase with the extranonce in its 2nd block, {LEVELS} merkle levels, batches of {BATCH}, unique extranonce2, unless the name says another; \
         every variant compared with sha2 first; this CPU: {}, {}, best {}{cuts}",
        plan.samples,
        cpu_model(),
        known.join(", "),
        best.label()
    )
}

/// The measured rows on their way to figures.
struct Report {
    measured: Vec<Measured>,
    conditions: String,
    core_mhz: f64,
    best: Isa,
}

impl Report {
    fn cycles(&self, name: &str) -> Option<f64> {
        self.measured.iter().find(|row| row.name == name).map(|row| row.cycles)
    }

    fn figure(&self, name: &str, value: f64, unit: &'static str, counted: &str) -> Figure {
        Figure { name: name.to_owned(), value, unit, counted: counted.to_owned(), conditions: self.conditions.clone() }
    }

    /// `reference` cycles by those of `name`; nothing where this CPU has not both.
    fn ratio(&self, name: &str, reference: &str, measured: &str, counted: &str) -> Option<Figure> {
        Some(self.figure(name, self.cycles(reference)? / self.cycles(measured)?, "ratio", counted))
    }

    fn figures(&self) -> Vec<Figure> {
        let best = batch_name(self.best, BATCH);
        let mut figures = Vec::new();
        if let Some(row) = self.measured.iter().find(|row| row.name == best) {
            figures.push(self.figure(
                "v1_share_cycles",
                row.cycles,
                "cycles/share",
                "core cycles of a whole V1 share, best instruction set",
            ));
            figures.push(self.figure(
                "v1_share_median_cycles",
                row.cycles_median,
                "cycles/share",
                "the same, median of the samples: how quiet the machine was",
            ));
            figures.push(self.figure(
                "v1_share_shares_per_s",
                self.core_mhz * 1e6 / row.cycles,
                "shares/s",
                "clock of the core, median over all samples, by v1_share_cycles; hashing alone, full work for every share",
            ));
        }
        let shani = Isa::choose("shani");
        figures.extend(
            [
                self.ratio(
                    "v1_share_vs_sha2",
                    MIDSTATE,
                    &best,
                    "cycles of sha2, a share at a time from a clone of the prepared hasher, by v1_share_cycles",
                ),
                self.ratio(
                    "v1_share_vs_sha2_compress",
                    COMPRESSED,
                    &best,
                    "cycles of sha2's bare compression function, a share at a time from a midstate, by v1_share_cycles",
                ),
                shani.and_then(|isa| {
                    self.ratio("v1_share_vs_sha2_shani", MIDSTATE, &batch_name(isa, BATCH), "as v1_share_vs_sha2, by SHA-NI alone")
                }),
                self.ratio("one_share_vs_sha2", MIDSTATE, &batch_name(self.best, 1), "as v1_share_vs_sha2, by a batch of one share"),
                self.ratio(
                    "one_share_vs_sha2_compress",
                    COMPRESSED,
                    &batch_name(self.best, 1),
                    "as v1_share_vs_sha2_compress, by a batch of one share",
                ),
                self.ratio(
                    "header_only_vs_sha2",
                    HEADER,
                    &header_name(self.best),
                    "cycles of sha2 digesting the header twice, by the kernel over known roots",
                ),
                self.ratio(
                    "header_only_vs_sha2_compress",
                    HEADER_COMPRESSED,
                    &header_name(self.best),
                    "cycles of sha2's bare compression function over the header, by the kernel over known roots",
                ),
            ]
            .into_iter()
            .flatten(),
        );
        figures.push(self.figure("core_mhz", self.core_mhz, "MHz", "clock of the core, median over all samples"));
        figures.extend(self.measured.iter().map(|row| self.figure(&row.name, row.cycles, "cycles/share", "core cycles of a share")));
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_share_is_the_one_that_the_docs_describe() {
        let job = job(LEVELS);
        assert_eq!(job.coinbase_bytes(), COINBASE_BYTES);
        let at = job.coinbase_prefix.len();
        assert!(at / 64 == 1 && (at + 11) / 64 == 1, "the extranonce lies in the second block");
        assert_eq!(job.branch.len(), 12);
        assert!(COUNTS.contains(&1) && COUNTS.contains(&BATCH) && !DEPTHS.contains(&LEVELS));
    }

    #[test]
    fn shares_of_a_batch_have_extranonces_of_their_own() {
        let mut batch = batch();
        fill(&mut batch, 250, BATCH);
        let distinct: std::collections::BTreeSet<_> = batch.extranonce.into_iter().collect();
        assert_eq!((distinct.len(), batch.count), (BATCH, BATCH as u32));
    }

    #[test]
    fn every_kernel_of_this_cpu_passes_the_check_before_measuring() {
        for isa in Isa::available() {
            for &count in counts(isa) {
                check(isa, &job(LEVELS), count).unwrap();
            }
        }
    }

    #[test]
    fn ratios_are_the_reference_by_the_kernel_and_missing_rows_make_no_figure() {
        let row = |name: &str, cycles| Measured { name: name.to_owned(), cycles, cycles_median: cycles + 1.0 };
        let best = Isa::Portable;
        let report = Report {
            measured: vec![row(MIDSTATE, 900.0), row(&batch_name(best, BATCH), 300.0), row(&batch_name(best, 1), 450.0)],
            conditions: String::new(),
            core_mhz: 3000.0,
            best,
        };
        let figures = report.figures();
        let value = |name: &str| figures.iter().find(|figure| figure.name == name).map(|figure| figure.value);
        assert_eq!(value("v1_share_cycles"), Some(300.0));
        assert_eq!(value("v1_share_median_cycles"), Some(301.0));
        assert_eq!(value("v1_share_shares_per_s"), Some(1e7));
        assert_eq!(value("v1_share_vs_sha2"), Some(3.0));
        assert_eq!(value("one_share_vs_sha2"), Some(2.0));
        assert_eq!(value("header_only_vs_sha2"), None);
        assert_eq!(value("v1_share_vs_sha2_compress"), None);
    }
}
