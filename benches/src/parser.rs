//! Nanoseconds of a line: the three tiers of the Stratum V1 parser, each down to decoded fields, beside serde_json into a borrowed struct and `memchr` alone.
use crate::cycles::SideBySide;
use crate::figure::{Figure, Plan};
use otedama_primitives::{WorkerId, WorkerName, hex_word};
use otedama_stratum::v1::claim::Claim;
use otedama_stratum::v1::template::{Shape, Shapes};
use otedama_stratum::v1::workers::Workers;
use otedama_stratum::v1::{lines, scan, slow};
use serde::Deserialize;

/// Distinct lines of each dialect: more than a branch predictor learns by heart, few enough for the second-level cache.
const LINES: u32 = 4096;
/// Lines of a call.
const LINES_PER_CALL: u32 = 512;
/// Workers that a proxy interleaves.
const PROXY_WORKERS: u32 = 50;

/// How a miner writes a submit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Cgminer,
    EspMiner,
    Cpuminer,
}

impl Dialect {
    const ALL: [Self; 3] = [Self::Cgminer, Self::EspMiner, Self::Cpuminer];

    fn name(self) -> &'static str {
        match self {
            Self::Cgminer => "cgminer",
            Self::EspMiner => "esp_miner",
            Self::Cpuminer => "cpuminer",
        }
    }

    /// The submit of that number: its own id, extranonce2, nonce and, in ESP-Miner's six params, version bits.
    fn line(self, number: u32, worker: &str) -> String {
        let (extranonce2, nonce) = (u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15), number.wrapping_mul(0x85eb_ca6b));
        match self {
            Self::Cgminer => format!(
                r#"{{"params": ["{worker}", "00000002", "{extranonce2:016x}", "6b49d201", "{nonce:08x}"], "id": {number}, "method": "mining.submit"}}"#
            ),
            Self::EspMiner => format!(
                r#"{{"id":{number},"method":"mining.submit","params":["{worker}","00000002","{extranonce2:016x}","6b49d201","{nonce:08x}","00{:02x}e000"]}}"#,
                number & 0xff
            ),
            Self::Cpuminer => format!(
                r#"{{"method": "mining.submit", "params": ["{worker}", "00000002", "{extranonce2:016x}", "6b49d201", "{nonce:08x}"], "id":{number}}}"#
            ),
        }
    }
}

/// Lines as they lie in a read buffer, in pieces of one call.
struct Lines {
    pieces: Vec<Vec<u8>>,
    next: usize,
    bytes_per_line: usize,
}

impl Lines {
    fn new(dialect: Dialect, workers: u32) -> Self {
        let pieces: Vec<Vec<u8>> = (0..LINES / LINES_PER_CALL)
            .map(|piece| {
                (0..LINES_PER_CALL)
                    .flat_map(|line| {
                        let number = piece * LINES_PER_CALL + line;
                        // Shares come in no order of workers.
                        format!("{}\n", dialect.line(number, &worker(number.wrapping_mul(0x9e37_79b1) >> 8, workers))).into_bytes()
                    })
                    .collect()
            })
            .collect();
        let bytes_per_line = pieces.iter().map(Vec::len).sum::<usize>() / LINES as usize;
        Self { pieces, next: 0, bytes_per_line }
    }

    /// The lines of the next call.
    fn piece(&mut self) -> &[u8] {
        self.next = (self.next + 1) % self.pieces.len();
        &self.pieces[self.next]
    }
}

fn worker(number: u32, of: u32) -> String {
    format!("bc1qexampleexampleexampleexample00000.rig{}", number % of)
}

fn table(workers: u32) -> Workers {
    let mut table = Workers::default();
    for number in 0..workers {
        let text = worker(number, workers);
        if let Ok(name) = WorkerName::new(text.as_bytes()) {
            table.add(&name, WorkerId(u64::from(number) + 1));
        }
    }
    table
}

/// Depends on every field, so that none of them can be left undecoded.
fn fold(claim: &Claim) -> u64 {
    let Claim { id, worker, job, extranonce2, ntime, nonce, rolled, .. } = claim;
    let words = [ntime.unwrap_or(0), nonce.unwrap_or(0), rolled.flatten().unwrap_or(0), job.map_or(0, |(job, _)| job)];
    let sum = words.into_iter().fold(0u64, |sum, word| sum.wrapping_mul(3).wrapping_add(u64::from(word)));
    sum ^ worker.map_or(0, |worker| worker.0) ^ extranonce2.unwrap_or(0) ^ id.map_or(0, |id| id.as_bytes().len() as u64)
}

/// Calls `each` with every line of a piece, found by `memchr`.
fn each_line(bytes: &[u8], mut each: impl FnMut(&[u8]) -> u64) -> u64 {
    let (mut at, mut sum) = (0, 0u64);
    while let Some(length) = memchr::memchr(b'\n', &bytes[at..]) {
        sum = sum.wrapping_add(each(&bytes[at..at + length]));
        at += length + 1;
    }
    sum
}

fn by_template(bytes: &[u8], shapes: &mut Shapes, number: otedama_stratum::v1::template::ShapeNumber, workers: &Workers) -> u64 {
    let (mut at, mut sum) = (0, 0u64);
    while let Some((used, claim)) = shapes.read(number, &bytes[at..], workers, 8) {
        sum = sum.wrapping_add(fold(&claim));
        at += used;
    }
    assert_eq!(at, bytes.len(), "every line matches the shape of the first");
    sum
}

fn by_scanner(bytes: &[u8], workers: &Workers) -> u64 {
    each_line(bytes, |line| scan::scan(lines::trim(line)).as_ref().map_or(0, |request| fold(&Claim::of(request, workers, 8))))
}

fn by_slow_tier(bytes: &[u8], workers: &Workers) -> u64 {
    each_line(bytes, |line| slow::parse(lines::trim(line)).map_or(0, |parsed| fold(&Claim::of(&parsed.request(), workers, 8))))
}

/// What serde_json is fastest at: known keys, borrowed strings, nothing else allowed.
#[derive(Deserialize)]
struct Strict<'a> {
    id: u32,
    method: &'a str,
    #[serde(borrow)]
    params: Vec<&'a str>,
}

fn by_serde_json(bytes: &[u8], workers: &Workers) -> u64 {
    each_line(bytes, |line| {
        let Ok(strict) = serde_json::from_slice::<Strict<'_>>(line) else { return 0 };
        let [worker, job, extranonce2, ntime, nonce, version @ ..] = strict.params.as_slice() else { return 0 };
        let word = |text: &str| text.as_bytes().first_chunk::<8>().map(|digits| hex_word(*digits)).filter(|word| word.1).map(|word| word.0);
        let extranonce2 =
            word(extranonce2).zip(extranonce2.get(8..).and_then(word)).map(|(high, low)| (u64::from(high) << 32) | u64::from(low));
        fold(&Claim {
            id: otedama_stratum::v1::IdToken::new(&b"0000000000"[..strict.id.checked_ilog10().unwrap_or(0) as usize + 1]),
            worker: workers.find(worker.as_bytes()),
            job: word(job).map(|job| (job, 0)),
            extranonce2,
            ntime: word(ntime),
            nonce: word(nonce),
            rolled: Some(version.first().and_then(|text| word(text))),
            has_shape: strict.method == "mining.submit",
            names_job: true,
        })
    })
}

/// The suite.
pub fn run(plan: Plan) -> Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for dialect in Dialect::ALL {
        for workers in [1, PROXY_WORKERS] {
            // One proxy is enough: what more workers cost does not depend on the dialect.
            if workers == 1 || dialect == Dialect::Cgminer {
                figures.extend(measure(plan, dialect, workers)?);
            }
        }
    }
    Ok(figures)
}

fn measure(plan: Plan, dialect: Dialect, workers: u32) -> Result<Vec<Figure>, String> {
    let sample = Lines::new(dialect, workers);
    let first = format!("{}\n", dialect.line(7, &worker(0, workers)));
    let shape = Shape::learn(first.as_bytes()).ok_or("a plain submit teaches no shape")?;
    let mut shapes = Shapes::default();
    let number = shapes.number(shape);
    agree(&sample, &mut shapes, number, workers)?;
    let bytes_per_line = sample.bytes_per_line;
    let mut bench = SideBySide::new();
    let (mut lines, of) = (Lines::new(dialect, workers), LINES_PER_CALL);
    bench.add("memchr", of, move || each_line(lines.piece(), |line| line.len() as u64));
    let (mut lines, table_of) = (Lines::new(dialect, workers), table(workers));
    bench.add("template", of, move || by_template(lines.piece(), &mut shapes, number, &table_of));
    let (mut lines, table_of) = (Lines::new(dialect, workers), table(workers));
    bench.add("scanner", of, move || by_scanner(lines.piece(), &table_of));
    let (mut lines, table_of) = (Lines::new(dialect, workers), table(workers));
    bench.add("serde_json", of, move || by_serde_json(lines.piece(), &table_of));
    let (mut lines, table_of) = (Lines::new(dialect, workers), table(workers));
    bench.add("slow", of, move || by_slow_tier(lines.piece(), &table_of));
    let measured = bench.run(plan.samples);
    let mhz = bench.core_mhz();
    let conditions = format!(
        "{LINES} distinct {} submits of {bytes_per_line} bytes, {workers} worker{} on the connection, warm; core clock {mhz:.0} MHz while it was measured; {} samples, 2nd percentile",
        dialect.name(),
        if workers == 1 { "" } else { "s in random order" },
        plan.samples
    );
    let suffix = if workers == 1 { String::new() } else { format!("_{workers}_workers") };
    Ok(measured
        .iter()
        .map(|one| Figure {
            name: format!("parser_{}_{}{suffix}_ns", one.name, dialect.name()),
            value: one.cycles / mhz * 1e3,
            unit: "ns/line",
            counted: match one.name.as_str() {
                "memchr" => "finding the ends of lines alone",
                "template" => "tier 1: end of line found, compared with an earlier line, every field decoded, worker looked up",
                "scanner" => "tier 2: end of line found, one pass over it, every field decoded, worker looked up",
                "slow" => "tier 3: end of line found, serde_json as the session uses it, every field decoded, worker looked up",
                _ => "end of line found, serde_json into a borrowed struct of known keys, every field decoded, worker looked up",
            }
            .to_owned(),
            conditions: conditions.clone(),
        })
        .collect())
}

/// Every way of reading must come to the same fields, or it measures something else.
fn agree(lines: &Lines, shapes: &mut Shapes, number: otedama_stratum::v1::template::ShapeNumber, workers: u32) -> Result<(), String> {
    let table = table(workers);
    for piece in &lines.pieces {
        let expected = by_slow_tier(piece, &table);
        let others = [by_template(piece, shapes, number, &table), by_scanner(piece, &table), by_serde_json(piece, &table)];
        if others.iter().any(|sum| *sum != expected) {
            return Err(format!("the tiers differ: {expected:x} is not {others:x?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_of_reading_come_to_the_same_fields() {
        for dialect in Dialect::ALL {
            for workers in [1, PROXY_WORKERS] {
                let lines = Lines::new(dialect, workers);
                let mut shapes = Shapes::default();
                let first = format!("{}\n", dialect.line(7, &worker(0, workers)));
                let number = shapes.number(Shape::learn(first.as_bytes()).expect("it teaches"));
                agree(&lines, &mut shapes, number, workers).expect("they agree");
            }
        }
    }
}
