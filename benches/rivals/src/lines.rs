//! The V1 scanner against serde_json on the lines that miners send.
use crate::cycles::{SAMPLES, SideBySide};
use crate::{Machine, Row};
use otedama_stratum::v1::request::{Param, Request};
use otedama_stratum::v1::{scan, slow};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::hint::black_box;

/// Distinct lines of each miner.
const LINES: u32 = 1024;
/// Lines of one call.
const STRIDE: u32 = 64;

/// The least that a rival may do: borrowed texts, an id that is a number, every key known.
#[derive(Deserialize)]
struct Strict<'a> {
    id: u64,
    #[serde(borrow)]
    method: &'a str,
    #[serde(borrow)]
    params: Vec<&'a str>,
}

/// What a pool needs of it: any id, texts with escapes, elements of any type.
#[derive(Deserialize)]
struct Tolerant<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Vec<&'a RawValue>,
}

/// Lines as three miners write them, by number: key order, spacing and ids are theirs.
fn lines(miner: &str) -> Vec<String> {
    let line = |number: u32| {
        let en2 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (ntime, nonce, version) = (0x6b00_0000 + number % 600, number.wrapping_mul(0x85eb_ca6b), (number & 0xffff) << 13);
        let params = |gap: &str| {
            [
                "bc1qxy2kgdygjrsqtzq2n0yrf2493p83kkfjhx0wlh.rig07",
                "1a2b",
                &format!("{en2:016x}"),
                &format!("{ntime:08x}"),
                &format!("{nonce:08x}"),
            ]
            .map(|text| format!("\"{text}\""))
            .join(gap)
        };
        match miner {
            "cgminer" => format!("{{\"params\": [{}, \"{version:08x}\"], \"id\": {number}, \"method\": \"mining.submit\"}}", params(", ")),
            "ESP-Miner" => {
                format!("{{\"id\": {number}, \"method\": \"mining.submit\", \"params\": [{}, \"{version:08x}\"]}}", params(", "))
            }
            _ => format!("{{\"method\": \"mining.submit\", \"params\": [{}], \"id\":4}}", params(", ")),
        }
    };
    (1..=LINES).map(line).collect()
}

fn texts(request: &Request<'_>) -> u64 {
    request.params.iter().fold(0, |sum, param| sum + if let Param::Text(text) = param { text.len() as u64 } else { 0 })
}

/// Each side takes the same lines in turn, and both read the same texts out of them.
pub fn run(_: &Machine) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (miner, strict_counted, tolerant_counted, slow_counted) in [
        (
            "cgminer",
            "cgminer's line, 6 params: strict borrowed struct",
            "cgminer's line: raw id and elements",
            "cgminer's line: our own slow tier",
        ),
        (
            "ESP-Miner",
            "ESP-Miner's line, 6 params: strict borrowed struct",
            "ESP-Miner's line: raw id and elements",
            "ESP-Miner's line: our own slow tier",
        ),
        (
            "cpuminer",
            "cpuminer's line, 5 params: strict borrowed struct",
            "cpuminer's line: raw id and elements",
            "cpuminer's line: our own slow tier",
        ),
    ] {
        let lines = lines(miner);
        for line in &lines {
            let scanned = scan::scan(line.as_bytes()).ok_or_else(|| format!("the scanner gave up {line}"))?;
            let strict: Strict<'_> = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
            let same = strict.params.iter().zip(&scanned.params).all(|(text, param)| *param == Param::Text(text.as_bytes()));
            if !same
                || strict.params.len() != scanned.params_count as usize
                || slow::parse(line.as_bytes()).is_none_or(|slow| slow.request() != scanned)
            {
                return Err(format!("scanner and serde_json differ on {line}: nothing is measured"));
            }
        }
        let bytes: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
        let mut chunks = [0_usize; 4];
        let [first, second, third, fourth] = &mut chunks;
        let next = |at: &mut usize| {
            *at = (*at + STRIDE as usize) % LINES as usize;
            *at..*at + STRIDE as usize
        };
        let mut bench = SideBySide::new();
        bench.add("scan", STRIDE, || {
            bytes[next(first)].iter().fold(0, |sum, line| sum + scan::scan(black_box(line)).map_or(0, |request| texts(&request)))
        });
        bench.add("strict", STRIDE, || {
            bytes[next(second)].iter().fold(0, |sum, line| {
                sum + serde_json::from_slice::<Strict<'_>>(black_box(line))
                    .map_or(0, |one| one.id + one.method.len() as u64 + one.params.iter().map(|text| text.len() as u64).sum::<u64>())
            })
        });
        bench.add("tolerant", STRIDE, || {
            bytes[next(third)].iter().fold(0, |sum, line| {
                sum + serde_json::from_slice::<Tolerant<'_>>(black_box(line)).map_or(0, |one| {
                    one.id.get().len() as u64 + one.method.len() as u64 + one.params.iter().map(|raw| raw.get().len() as u64).sum::<u64>()
                })
            })
        });
        bench.add("slow", STRIDE, || {
            bytes[next(fourth)].iter().fold(0, |sum, line| sum + slow::parse(black_box(line)).map_or(0, |slow| texts(&slow.request())))
        });
        let measured = bench.run(SAMPLES);
        let scanner = ("v1::scan", measured[0].cycles);
        for (row, name, counted) in [
            (1, "serde_json, strict", strict_counted),
            (2, "serde_json, tolerant", tolerant_counted),
            (3, "serde_json, v1::slow", slow_counted),
        ] {
            rows.push(Row { taken: scanner, refused: (name, measured[row].cycles), unit: "cycles/line", counted });
        }
    }
    Ok(rows)
}
