//! Lines against the slow, obvious reading of them: the fuzz targets' checks on stable Rust, over the corpus, seeded mutations of it and lines made of hostile parts.
//! `OTEDAMA_LONG=1` runs 10^8 mutations over the tiers, half of them lines and half of them pairs of a submit and the shape it taught, and 10^6 mutated connections.
#[path = "../../fuzz/targets.rs"]
mod targets;

use proptest::prelude::*;
use std::path::Path;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        std::fs::read_dir(&folder).expect("the corpus is committed").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "{} has lost its seeds", folder.display());
    paths.iter().map(|path| std::fs::read(path).expect("a readable seed")).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to mutate bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

const TOKENS: [&[u8]; 30] = [
    b"\"id\":",
    b"\"method\":",
    b"\"params\":",
    b"\"result\":",
    b"\"mining.submit\"",
    b"\"mining.configure\"",
    b"\"",
    b"\\",
    b"\\u0041",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"\t",
    b"\n",
    b"null",
    b"true",
    b"false",
    b"-",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b".5",
    b"\xc3\xbc",
    b"\x00",
    b"\x7f",
];

/// One to four edits: replaced, inserted, removed and doubled bytes, tokens, cuts, and pieces of another seed.
fn mutate(random: &mut Random, seeds: &[Vec<u8>], into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&seeds[random.below(seeds.len())]);
    for _ in 0..=random.below(4) {
        let at = random.below(into.len() + 1);
        match random.below(8) {
            0 if at < into.len() => into[at] = random.next() as u8,
            1 if at < into.len() => into[at] ^= 1 << random.below(8),
            2 => into.insert(at, random.next() as u8),
            3 => {
                let end = at + random.below((into.len() - at).min(12) + 1);
                into.drain(at..end);
            }
            4 => {
                let end = at + random.below((into.len() - at).min(40) + 1);
                let piece = into[at..end].to_vec();
                into.splice(at..at, piece);
            }
            5 => into.truncate(at),
            6 => {
                let other = &seeds[random.below(seeds.len())];
                let start = random.below(other.len() + 1);
                let end = start + random.below((other.len() - start).min(60) + 1);
                into.splice(at..at, other[start..end].iter().copied());
            }
            _ => {
                let token = TOKENS[random.below(TOKENS.len())];
                into.splice(at..at, token.iter().copied());
            }
        }
    }
}

/// Runs `target` over its corpus and `runs` mutations; the input of a panic is printed so that it can join the corpus.
fn run(name: &str, target: fn(&[u8]), runs: u64) {
    let seeds = corpus(name);
    seeds.iter().for_each(|seed| target(seed));
    let mut random = Random(0x07ed_a3a0);
    let mut input = Vec::new();
    for run in 0..runs {
        mutate(&mut random, &seeds, &mut input);
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            panic!("{name}: mutation {run} panicked on {:?}", String::from_utf8_lossy(&input));
        }
    }
    println!("{name}: {} seeds and {runs} mutations, no finding", seeds.len());
}

fn long() -> bool {
    std::env::var_os("OTEDAMA_LONG").is_some_and(|value| value == "1")
}

#[test]
fn mutated_lines_mean_the_same_to_every_tier() {
    run("v1_line", targets::v1_line, if long() { 50_000_000 } else { 100_000 });
}

#[test]
fn mutated_submits_mean_the_same_to_the_shape_of_an_earlier_one() {
    run("v1_template", targets::v1_template, if long() { 50_000_000 } else { 100_000 });
}

#[test]
fn mutated_connections_keep_their_promises() {
    run("v1_session", targets::v1_session, if long() { 1_000_000 } else { 5_000 });
}

#[test]
fn a_line_cut_at_every_byte_means_the_same_to_every_tier() {
    for seed in corpus("v1_line") {
        for end in 0..=seed.len() {
            targets::v1_template(&seed[..end]);
            targets::v1_line(&seed[..end]);
            targets::v1_session(&seed[..end]);
        }
    }
}

#[test]
fn every_byte_at_every_place_of_a_submit_means_the_same_to_every_tier() {
    let line = br#"{"params": ["rig.1", "00000002", "01", -1.5], "id": 17, "method": "mining.submit"}"#;
    for place in 0..line.len() {
        for byte in 0..=u8::MAX {
            let mut changed = line.to_vec();
            changed[place] = byte;
            targets::v1_line(&changed);
        }
    }
}

/// JSON values that parsers disagree about, and some that are none.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(vec![
            "1", "4", "-7", "0", "-0", "01", "1.", ".5", "1.5", "-1.50", "1e3", "1E+3", "1e", "1e999", "-", "+1", "18446744073709551616", "12345678901234567", "0x1f", "NaN",
            "null", "nul", "true", "false", "True", "\"\"", "\"a\"", "\"12345678901234\"", "\"123456789012345\"", "\"\\\"\"", "\"\\u0041\"", "\"\\ud800\"", "\"\\ud83d\\ude00\"",
            "\"\\x\"", "\"\t\"", "\"\u{7f}\"", "\"\u{80}ü\"", "\"a", "[]", "{}", "[1,[2]]", "{\"id\":1}", "[", "'a'", "",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(vec!["\"mining.submit\"", "\"mining.subscribe\"", "\"mining.ping\"", "\"mining.submit \"", "\"mining.\\u0073ubmit\""]).prop_map(str::to_owned),
        3 => prop::collection::vec(prop::sample::select(vec!["\"rig.1\"", "\"00000002\"", "1", "null", "true", "\"\\n\"", "-2.5", "[]", "\"x\""]), 0..12)
            .prop_map(|elements| format!("[{}]", elements.join(" ,"))),
    ]
}

fn blank() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(""), 2 => Just(" "), 1 => prop::sample::select(vec!["\t", "\r", "\n", "  ", "\u{b}", "\u{a0}"])]
}

fn line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "\"id\"",
        "\"method\"",
        "\"params\"",
        "\"id\"",
        "\"method\"",
        "\"params\"",
        "\"result\"",
        "\"error\"",
        "\"jsonrpc\"",
        "\"ID\"",
        "\"i\\u0064\"",
        "\"\"",
        "id",
    ]);
    let pair =
        (key, blank(), blank(), value(), blank()).prop_map(|(key, before, after, value, end)| format!("{key}{before}:{after}{value}{end}"));
    (
        blank(),
        prop::collection::vec(pair, 0..5),
        prop_oneof![9 => Just(","), 1 => Just(""), 1 => Just(",,")],
        prop_oneof![9 => Just("}"), 1 => Just("},"), 1 => Just("")],
    )
        .prop_map(|(start, pairs, comma, end)| format!("{start}{{{start}{}{end}", pairs.join(comma)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lines_of_hostile_parts_mean_the_same_to_every_tier(line in line()) {
        targets::v1_line(line.as_bytes());
    }
}
