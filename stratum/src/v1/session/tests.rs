use super::*;
use crate::vardiff::{Memory, Policy};
use otedama_primitives::{Clock, Coin, Hash256, Job, ManualClock, RunId, encode_hex};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;

const SALT: u32 = 0xabcd_0000;
const START_US: u64 = 1_800_000_000_000_000;

fn job(counter: u32, clean: bool) -> Job {
    Job {
        id: RunId::new(7, 0x12_3456).job(counter),
        coin: Coin::Bitcoin,
        height: 900_000,
        prev_hash: Hash256([0x5a; 32]),
        version: 0x2000_0000,
        nbits: 0x1702_5ced,
        ntime: 1_800_000_000,
        ntime_min: 1_799_999_000,
        coinbase_prefix: vec![1, 2, 3].into(),
        coinbase_suffix: vec![4, 5].into(),
        branch: vec![Hash256([9; 32])].into(),
        extranonce2_bytes: 8,
        network_target: Target::from_compact(0x1702_5ced).expect("a target"),
        clean,
        created_us: START_US,
    }
}

fn published(counter: u32, clean: bool) -> Arc<PublishedJob> {
    Arc::new(PublishedJob::new(job(counter, clean), SALT))
}

/// A miner's view: one session, the server's book and a clock.
struct Table {
    settings: Settings,
    book: JobBook,
    clock: ManualClock,
    session: Session,
}

impl Table {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let session = Session::new(Seat { session: 5, extranonce1: 0x0400_00ff, net: 1 }, &settings);
        Self { settings, book: JobBook::new(), clock: ManualClock::at(START_US), session }
    }

    /// Vardiff at 60 shares a minute from 1024 up; subscribed, "rig.1" authorized, no job yet.
    fn learning(memory: &Arc<Memory>) -> Self {
        let policy = Policy::new(60.0, Difficulty::clamped(1.0), Difficulty::clamped(4e9));
        let mut table = Self::with(Settings { learning: Some(Learning { policy, memory: Arc::clone(memory) }), ..Settings::default() });
        table.say(r#"{"id":1,"method":"mining.subscribe","params":["t/1"]}"#);
        table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
        table
    }

    /// An accepted share of the newest sending of a job.
    fn accepted(&mut self, job: &str) -> String {
        self.submit(&format!(r#"{{"id":1,"method":"mining.submit","params":["rig.1","{job}","0000000000000001","6b49d200","1"]}}"#));
        let told = self.session.told_work();
        let mut out = Vec::new();
        let ctx = Context { settings: &self.settings, jobs: &self.book, now_us: self.clock.now_us(), peer: None };
        self.session.on_share(&ctx, told, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    fn look(&mut self) -> String {
        let mut out = Vec::new();
        let ctx = Context { settings: &self.settings, jobs: &self.book, now_us: self.clock.now_us(), peer: None };
        self.session.on_time(&ctx, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    /// Subscribed with rolling allowed, "rig.1" authorized, jobs 1 (ended by the clean job 2), 2 and 3 (the newest) sent.
    fn mining() -> Self {
        let mut table = Self::new();
        table.say(r#"{"id":0,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"1fffe000"}]}"#);
        table.say(r#"{"id":1,"method":"mining.subscribe","params":["t/1"]}"#);
        table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
        for (counter, clean) in [(1, true), (2, true), (3, false)] {
            table.publish(counter, clean);
        }
        table
    }

    fn publish(&mut self, counter: u32, clean: bool) -> String {
        let job = published(counter, clean);
        self.book.publish(Arc::clone(&job));
        let mut out = Vec::new();
        let ctx = Context { settings: &self.settings, jobs: &self.book, now_us: self.clock.now_us(), peer: None };
        self.session.notify(&ctx, &job, false, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    fn set_difficulty(&mut self, value: f64) -> String {
        let mut out = Vec::new();
        let ctx = Context { settings: &self.settings, jobs: &self.book, now_us: self.clock.now_us(), peer: None };
        self.session.set_difficulty(&ctx, Difficulty::clamped(value), &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    fn say_bytes(&mut self, line: &[u8]) -> (Event, String) {
        let mut out = Vec::new();
        let peer = Some("10.0.0.9:4711".parse().expect("an address"));
        let ctx = Context { settings: &self.settings, jobs: &self.book, now_us: self.clock.now_us(), peer };
        let event = self.session.on_line(&ctx, line, &mut out);
        (event, String::from_utf8(out).expect("UTF-8"))
    }

    fn say(&mut self, line: &str) -> (Event, String) {
        self.say_bytes(line.as_bytes())
    }

    fn submit(&mut self, line: &str) -> Submit {
        match self.say(line) {
            (Event::Share(submit, _), out) => {
                assert_eq!(out, "", "the answer comes with the verdict");
                submit
            }
            other => panic!("{line} came to {other:?}"),
        }
    }
}

fn status(submit: &Submit) -> Option<ShareStatus> {
    ShareStatus::from_u8(submit.status)
}

fn work(difficulty: f64) -> u64 {
    Difficulty::clamped(difficulty).work().hashes()
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 176, "{} bytes", size_of::<Session>());
}

#[test]
fn subscribe_difficulty_and_job_leave_in_one_write_and_nothing_before() {
    let mut table = Table::new();
    assert_eq!(table.publish(1, true), "", "nothing is sent before the subscribe result");
    let (event, out) = table.say(r#"{"id": 1, "method": "mining.subscribe", "params": ["cpuminer/2.5.1"]}"#);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[0],
        r#"{"id":1,"result":[[["mining.set_difficulty","00000005"],["mining.notify","00000005"]],"040000ff",8],"error":null}"#
    );
    assert_eq!(lines[1], r#"{"id":null,"method":"mining.set_difficulty","params":[1024]}"#);
    assert!(lines[2].starts_with(r#"{"id":null,"method":"mining.notify","params":["abcd0001","5a5a"#), "{}", lines[2]);
    assert!(lines[2].ends_with(r#","20000000","17025ced","6b49d200",true]}"#), "{}", lines[2]);
    assert_eq!(lines.len(), 3);
    let Event::Subscribed(record) = event else { panic!("{event:?}") };
    assert_eq!(
        record,
        SessionRecord {
            session: 5,
            extranonce1: 0x0400_00ff,
            net: 1,
            extranonce2_bytes: 8,
            started_us: START_US,
            peer: "10.0.0.9:4711".into(),
            agent: "cpuminer/2.5.1".into()
        }
    );
}

#[test]
fn without_a_job_subscribe_and_authorize_are_answered_and_the_first_job_brings_the_difficulty() {
    let mut table = Table::new();
    let (_, out) = table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    assert_eq!(out.lines().count(), 1);
    let (event, out) = table.say(r#"{"id":2,"method":"mining.authorize","params":[" rig.1 ","d=512"]}"#);
    assert_eq!(out, "{\"id\":2,\"result\":true,\"error\":null}\n");
    let Event::Authorized(record) = event else { panic!("{event:?}") };
    assert_eq!((record.name.as_str(), record.session), ("rig.1", 5));
    assert_eq!(record.worker, WorkerName::new(b"rig.1").expect("name").id("otedama"));
    let out = table.publish(1, false);
    let methods: Vec<bool> = out.lines().map(|line| line.contains("set_difficulty")).collect();
    assert_eq!(methods, [true, false]);
    assert!(out.ends_with("true]}\n"), "a session's first job is clean");
    let out = table.publish(2, false);
    assert_eq!(out.lines().count(), 1);
    assert!(out.ends_with("false]}\n"));
    assert_eq!(table.session.newest_job(), 2);
}

#[test]
fn subscribe_again_sends_the_difficulty_again_and_is_bounded() {
    let mut table = Table::mining();
    for _ in 2..=SUBSCRIBES_MAX {
        let (event, out) = table.say(r#"{"id":1,"method":"mining.subscribe","params":["t/1","00000005"]}"#);
        assert_eq!(event, Event::None);
        assert_eq!(out.lines().count(), 3, "result, set_difficulty, notify: {out}");
    }
    assert!(matches!(table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#).0, Event::Close(_)));
}

#[test]
fn ids_are_echoed_byte_for_byte_and_longer_ones_are_refused() {
    for id in
        ["4", "-7", "0", "null", "\"\"", "\"abc\"", "\"12345678901234\"", "1234567890123456", "1.50", "1E+3", "\"\\u0041\\\"\"", "\"ü\""]
    {
        let mut table = Table::new();
        let (_, out) = table.say(&format!("{{\"id\":{id},\"method\":\"mining.ping\",\"params\":[]}}"));
        assert_eq!(out, format!("{{\"id\":{id},\"result\":\"pong\",\"error\":null}}\n"));
        let mut table = Table::mining();
        let line = format!(
            "{{\"params\":[\"rig.1\",\"abcd0003\",\"0000000000000001\",\"6b49d200\",\"00000001\"], \"id\" : {id} , \"method\":\"mining.submit\"}}"
        );
        let (event, _) = table.say(&line);
        let Event::Share(submit, token) = event else { panic!("{event:?}") };
        assert_eq!(submit.status, Submit::PENDING);
        assert_eq!(token.as_bytes(), id.as_bytes());
    }
    for id in ["12345678901234567", "\"123456789012345\"", "true", "false", "[1]", "{}", "1.2345678901234567", "11e999", "\"\\udc00\""] {
        let mut table = Table::mining();
        let (event, out) = table.say(&format!("{{\"id\":{id},\"method\":\"mining.ping\",\"params\":[]}}"));
        assert_eq!(event, Event::Refused);
        assert!(out.starts_with("{\"id\":null,\"result\":null,\"error\":[20,\"malformed"), "{out}");
        let line = format!(
            "{{\"params\":[\"rig.1\",\"abcd0003\",\"0000000000000001\",\"6b49d200\",\"00000001\"],\"id\":{id},\"method\":\"mining.submit\"}}"
        );
        let (event, _) = table.say(&line);
        let Event::Share(submit, token) = event else { panic!("{event:?}") };
        assert_eq!((status(&submit), token), (Some(ShareStatus::Malformed), IdToken::NULL));
    }
    // No id at all reads as null.
    assert_eq!(Table::new().say(r#"{"method":"mining.ping"}"#).1, "{\"id\":null,\"result\":\"pong\",\"error\":null}\n");
}

/// One line of each dialect in the field (issue table: key order, spacing, id and params as the sources of these miners write them).
pub(crate) const DIALECTS: [(&str, &str, bool, Option<u32>); 16] = [
    (
        "cgminer, 5 params",
        r#"{"params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000"], "id": 17, "method": "mining.submit"}"#,
        true,
        None,
    ),
    (
        "cgminer, version rolling",
        r#"{"params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000", "00a00000"], "id": 18, "method": "mining.submit"}"#,
        true,
        Some(0x00a0_0000),
    ),
    (
        "bfgminer",
        r#"{"params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000"], "id": 9, "method": "mining.submit"}"#,
        true,
        None,
    ),
    (
        "cpuminer",
        r#"{"method": "mining.submit", "params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000"], "id":4}"#,
        true,
        None,
    ),
    (
        "ccminer, vote",
        r#"{"method": "mining.submit", "params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000", "0000"], "id":10}"#,
        true,
        Some(0),
    ),
    (
        "ESP-Miner",
        r#"{"id":5,"method":"mining.submit","params":["rig.1","abcd0003","0100000000000000","6b49d201","310e0000","00002000"]}"#,
        true,
        Some(0x2000),
    ),
    (
        "older ESP-Miner",
        r#"{"id": 38291, "method": "mining.submit", "params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000"]}"#,
        true,
        None,
    ),
    (
        "NerdMiner, nonce unpadded",
        r#"{"id": 3, "method": "mining.submit", "params": ["rig.1","abcd0003","0100000000000000","6b49d201","310e0000"]}"#,
        true,
        None,
    ),
    (
        "firmware, string id",
        r#"{"params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000"], "id": "123", "method": "mining.submit"}"#,
        true,
        None,
    ),
    (
        "firmware, hash as sixth",
        r#"{"params": ["rig.1", "abcd0003", "0100000000000000", "6b49d201", "310e0000", "00000000000000000004b1f3a0e3d8a3c2a4b5c6d7e8f90011223344556677ff"], "id": 12, "method": "mining.submit"}"#,
        true,
        None,
    ),
    (
        "xmrig, jsonrpc key",
        r#"{"id":8,"jsonrpc":"2.0","method":"mining.submit","params":["rig.1","abcd0003","0100000000000000","6b49d201","310e0000"]}"#,
        true,
        None,
    ),
    (
        "0x and capitals",
        r#"{"id":8,"method":"mining.submit","params":["rig.1","ABCD0003","0100000000000000","0x6B49D201","0X310E0000"]}"#,
        true,
        None,
    ),
    (
        "CR before LF",
        "{\"id\":8,\"method\":\"mining.submit\",\"params\":[\"rig.1\",\"abcd0003\",\"0100000000000000\",\"6b49d201\",\"310e0000\"]}\r",
        true,
        None,
    ),
    (
        "tabs and blanks everywhere",
        "\t{ \"id\"\t: 8 , \"method\" :\"mining.submit\" ,\t\"params\" : [ \"rig.1\" , \"abcd0003\",\"0100000000000000\" , \"6b49d201\", \"310e0000\" ] } ",
        false,
        None,
    ),
    (
        "escapes",
        r#"{"id":8,"method":"mining\u002esubmit","params":["rig\u002e1","abcd0003","0100000000000000","6b49d201","310e0000"]}"#,
        false,
        None,
    ),
    (
        "more params, nested extras",
        r#"{"id":8,"method":"mining.submit","worker":{"a":[1]},"params":["rig.1","abcd0003","0100000000000000","6b49d201","310e0000",null,"x",[1,{}],9,10]}"#,
        false,
        None,
    ),
];

#[test]
fn every_dialect_of_the_field_is_understood_and_all_but_the_odd_by_the_scanner() {
    for (miner, line, by_scanner, rolled) in DIALECTS {
        assert_eq!(scan::scan(lines::trim(line.as_bytes())).is_some(), by_scanner, "{miner}");
        let mut table = Table::mining();
        let submit = table.submit(line);
        let expected = Submit {
            worker: WorkerName::new(b"rig.1").expect("name").id("otedama").0,
            work: work(1024.0),
            extranonce2: 0x0100_0000_0000_0000,
            arrival_us: START_US,
            session: 5,
            job: 3,
            extranonce1: 0x0400_00ff,
            nonce: 0x310e_0000,
            ntime: 0x6b49_d201,
            version: 0x2000_0000 | rolled.unwrap_or(0),
            in_flight: 0,
            status: Submit::PENDING,
            flags: 0,
            net: 1,
            spare: 0,
        };
        assert_eq!(submit, expected, "{miner}");
    }
}

#[test]
fn short_words_are_padded_on_the_left() {
    let mut table = Table::mining();
    for (text, value) in
        [("1", 1), ("0x1", 1), ("abcde", 0xabcde), ("0", 0), ("7fffffff", 0x7fff_ffff), ("FFFFFFFF", u32::MAX), ("0xffffffff", u32::MAX)]
    {
        let submit = table.submit(&format!(
            r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0003","0000000000000001","6b49d200","{text}"]}}"#
        ));
        assert_eq!((submit.status, submit.nonce), (Submit::PENDING, value), "{text}");
    }
    for text in ["", "0x", "123456789", "0x123456789", "0x0x1", "g", "-1", "+1", " 1", "1 ", "1\\u0000"] {
        let submit = table.submit(&format!(
            r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0003","0000000000000001","6b49d200","{text}"]}}"#
        ));
        assert_eq!(status(&submit), Some(ShareStatus::Malformed), "{text:?}");
    }
}

#[test]
fn extranonce2_has_exactly_the_digits_that_were_announced() {
    for size in 4..=8u8 {
        let mut table = Table::with(Settings { extranonce2_bytes: size, ..Settings::default() });
        let (_, out) = table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
        assert!(out.contains(&format!("\"040000ff\",{size}]")), "{out}");
        table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
        table.publish(1, true);
        for digits in 0..20usize {
            let text = "fedcba9876543210fedc".get(..digits).expect("in range");
            let submit =
                table.submit(&format!(r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0001","{text}","6b49d200","1"]}}"#));
            if digits == usize::from(size) * 2 {
                assert_eq!((submit.status, submit.extranonce2), (Submit::PENDING, u64::from_str_radix(text, 16).expect("hex")));
            } else {
                assert_eq!((status(&submit), submit.extranonce2), (Some(ShareStatus::Malformed), 0), "{digits} digits of {size} bytes");
            }
        }
    }
}

/// The causes of refusal, in the order in which they are judged.
const CAUSES: [(&str, Option<ShareStatus>); 8] = [
    ("not subscribed", None),
    ("four params", Some(ShareStatus::Malformed)),
    ("unknown worker", Some(ShareStatus::Unauthorized)),
    ("unknown job", Some(ShareStatus::Stale)),
    ("ended job", Some(ShareStatus::Stale)),
    ("extranonce2 size", Some(ShareStatus::Malformed)),
    ("ntime", Some(ShareStatus::BadTime)),
    ("version", Some(ShareStatus::BadVersion)),
];

fn line_with(faults: &[usize]) -> String {
    let has = |fault: usize| faults.contains(&fault);
    let job = match (has(3), has(4)) {
        (true, _) => "deadbeef",
        (false, true) => "abcd0001",
        (false, false) => "abcd0003",
    };
    let mut params = vec![
        if has(2) { "rig.2" } else { "rig.1" },
        job,
        if has(5) { "00" } else { "0000000000000001" },
        if has(6) { "00000000" } else { "6b49d200" },
        "00000001",
        if has(7) { "00001000" } else { "00002000" },
    ];
    if has(1) {
        params.truncate(4);
    }
    format!(r#"{{"id":1,"method":"mining.submit","params":["{}"]}}"#, params.join("\",\""))
}

#[test]
fn the_first_cause_in_the_order_of_verdicts_is_the_one_told() {
    for (first, (cause, expected)) in CAUSES.into_iter().enumerate() {
        for (second, (other, _)) in CAUSES.into_iter().enumerate().skip(first) {
            let mut table = Table::mining();
            if first == 0 {
                table.session.subscribes = 0;
            }
            let line = line_with(&[first, second]);
            let (event, out) = table.say(&line);
            match (expected, event) {
                (None, Event::Refused) => assert_eq!(out, "{\"id\":1,\"result\":null,\"error\":[25,\"not subscribed\",null]}\n"),
                (Some(expected), Event::Share(submit, _)) => {
                    assert_eq!(status(&submit), Some(expected), "{cause} before {other}: {line}");
                    // Stale without its job is the unknown one, with it the ended one.
                    if expected == ShareStatus::Stale {
                        assert_eq!(submit.job, if first == 3 { 0 } else { 1 }, "{line}");
                    }
                }
                (_, event) => panic!("{line} came to {event:?}"),
            }
        }
    }
    assert_eq!(Table::mining().submit(&line_with(&[])).status, Submit::PENDING);
}

#[test]
fn refused_shares_tell_what_could_be_decoded() {
    let mut table = Table::mining();
    let line = r#"{"id":1,"method":"mining.submit","params":["rig.2","deadbeef","00000000000000aa","6b49d207","99","00002000"]}"#;
    let submit = table.submit(line);
    assert_eq!(
        (submit.worker, submit.job, submit.extranonce2, submit.ntime, submit.nonce, submit.version),
        (0, 0, 0xaa, 0x6b49_d207, 0x99, 0x2000)
    );
    let line = r#"{"id":1,"method":"mining.submit","params":["rig.1","abcd0003","zz","6b49d207","99","80000001"]}"#;
    let submit = table.submit(line);
    assert_eq!((submit.job, submit.extranonce2, submit.ntime, submit.nonce, submit.version), (3, 0, 0x6b49_d207, 0x99, 0xa000_0001));
    assert_eq!(status(&submit), Some(ShareStatus::Malformed));
}

#[test]
fn the_ntime_window_is_exact_and_moves_with_the_clock() {
    let mut table = Table::mining();
    let judge =
        |table: &mut Table, ntime: u32| {
            status(&table.submit(&format!(
                r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0003","0000000000000001","{ntime:08x}","1"]}}"#
            )))
        };
    let (least, most) = (1_799_999_000, 1_800_007_200);
    for (elapsed_us, most) in [(0, most), (999_999, most), (1, most + 1), (60_000_000, most + 61)] {
        table.clock.advance(elapsed_us);
        for (ntime, expected) in [
            (least - 1, Some(ShareStatus::BadTime)),
            (least, None),
            (most, None),
            (most + 1, Some(ShareStatus::BadTime)),
            (0, Some(ShareStatus::BadTime)),
            (u32::MAX, Some(ShareStatus::BadTime)),
        ] {
            assert_eq!(judge(&mut table, ntime), expected, "{ntime} after {elapsed_us}");
        }
    }
}

#[test]
fn version_bits_are_judged_by_the_negotiated_mask_bit_by_bit() {
    for mask in [0u32, 0x1fff_e000, 0x0000_2000, 0x1000_0000, 0x00ff_0000] {
        let mut table = Table::mining();
        let configure =
            format!(r#"{{"id":0,"method":"mining.configure","params":[["version-rolling"],{{"version-rolling.mask":"{mask:08x}"}}]}}"#);
        table.say(&configure);
        for bit in 0..32 {
            let bits = 1u32 << bit;
            let submit = table.submit(&format!(
                r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0003","0000000000000001","6b49d200","1","{bits:08x}"]}}"#
            ));
            if bits & mask == 0 {
                assert_eq!(status(&submit), Some(ShareStatus::BadVersion), "bit {bit} of mask {mask:08x}");
            } else {
                assert_eq!((submit.status, submit.version), (Submit::PENDING, 0x2000_0000 | bits), "bit {bit} of mask {mask:08x}");
            }
        }
    }
    // Without mining.configure the only bits are none.
    let mut table = Table::new();
    table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
    table.publish(1, true);
    for (bits, expected) in
        [("00000000", None), ("0", None), ("00002000", Some(ShareStatus::BadVersion)), ("20000000", Some(ShareStatus::BadVersion))]
    {
        let submit = table.submit(&format!(
            r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0001","0000000000000001","6b49d200","1","{bits}"]}}"#
        ));
        assert_eq!(status(&submit), expected, "{bits}");
    }
}

#[test]
fn bits_of_the_mask_come_from_the_miner_even_where_the_template_has_some() {
    let mut table = Table::mining();
    let rolled = Job { version: 0x2000_6000, ..job(4, false) };
    let rolled = Arc::new(PublishedJob::new(rolled, SALT));
    table.book.publish(rolled);
    let mut version = |sixth: &str| {
        table
            .submit(&format!(
                r#"{{"id":1,"method":"mining.submit","params":["rig.1","abcd0004","0000000000000001","6b49d200","1"{sixth}]}}"#
            ))
            .version
    };
    assert_eq!(version(""), 0x2000_6000);
    assert_eq!(version(",\"00008000\""), 0x2000_8000);
    assert_eq!(version(",\"00000000\""), 0x2000_0000);
}

#[test]
fn late_is_a_share_of_a_live_job_that_was_followed_by_another() {
    let mut table = Table::mining();
    let judged = |table: &mut Table, job: &str| {
        let submit =
            table.submit(&format!(r#"{{"id":1,"method":"mining.submit","params":["rig.1","{job}","0000000000000001","6b49d200","1"]}}"#));
        (status(&submit), submit.flags)
    };
    assert_eq!(judged(&mut table, "abcd0003"), (None, 0));
    assert_eq!(judged(&mut table, "abcd0002"), (None, flags::LATE));
    assert_eq!(judged(&mut table, "abcd0001"), (Some(ShareStatus::Stale), 0));
    table.book.end_before(3);
    assert_eq!(judged(&mut table, "abcd0002"), (Some(ShareStatus::Stale), 0));
    // A job that this session was not sent yet makes nothing late.
    table.book.publish(published(4, false));
    assert_eq!(judged(&mut table, "abcd0003"), (None, 0));
}

#[test]
fn a_skipped_clean_job_makes_the_next_one_clean() {
    let mut table = Table::mining();
    table.book.publish(published(4, true));
    let out = table.publish(5, false);
    assert!(out.ends_with("true]}\n"), "{out}");
    let mut again = Vec::new();
    let ctx = Context { settings: &table.settings, jobs: &table.book, now_us: START_US, peer: None };
    table.session.notify(&ctx, table.book.newest().expect("a live job"), true, &mut again);
    assert_eq!(again, b"", "a job is sent once");
}

#[test]
fn configure_is_answered_by_extension() {
    let mut table = Table::new();
    let (event, out) = table.say(
        r#"{"method": "mining.configure","id": 1,"params": [["minimum-difficulty", "version-rolling", "subscribe-extranonce", "shiny"],{"minimum-difficulty.value": 2048,"version-rolling.mask": "ffffffff", "version-rolling.min-bit-count": 2}]}"#,
    );
    assert_eq!(event, Event::None);
    assert_eq!(
        out,
        "{\"id\":1,\"result\":{\"minimum-difficulty\":true,\"version-rolling.mask\":\"1fffe000\",\"version-rolling\":true,\"subscribe-extranonce\":true,\"shiny\":false},\"error\":null}\n"
    );
    assert_eq!(table.session.version_mask, 0x1fff_e000);
    assert_eq!(table.session.difficulty().get(), 2048.0);
    for (params, expected) in [
        (r#"[["version-rolling"]]"#, r#"{"version-rolling.mask":"1fffe000","version-rolling":true}"#),
        (r#"[["version-rolling"],{"version-rolling.mask":"00000fff"}]"#, r#"{"version-rolling":false}"#),
        (
            r#"[["version-rolling"],{"version-rolling.mask":"00006000","version-rolling.min-bit-count":16}]"#,
            r#"{"version-rolling.mask":"00006000","version-rolling":true}"#,
        ),
        (
            r#"[["version-rolling"],{"version-rolling.mask":7}]"#,
            r#"{"version-rolling":"version-rolling.mask must be a string of hex digits"}"#,
        ),
        (
            r#"[["minimum-difficulty"],{"minimum-difficulty.value":"x"}]"#,
            r#"{"minimum-difficulty":"minimum-difficulty.value must be a number from 0 up"}"#,
        ),
        ("[[],{}]", "{}"),
        (r#"[["a\"b"],{}]"#, r#"{"a\"b":false}"#),
    ] {
        let (_, out) = table.say(&format!(r#"{{"id":2,"method":"mining.configure","params":{params}}}"#));
        assert_eq!(out, format!("{{\"id\":2,\"result\":{expected},\"error\":null}}\n"), "{params}");
    }
    for params in ["[]", "{}", "[[1]]", "[\"version-rolling\"]", "[[\"version-rolling\"],7]", "null"] {
        let (event, out) = table.say(&format!(r#"{{"id":2,"method":"mining.configure","params":{params}}}"#));
        assert_eq!(event, Event::Refused, "{params}");
        assert!(out.starts_with("{\"id\":2,\"result\":null,\"error\":[20,\"malformed"), "{out}");
    }
}

#[test]
fn suggestions_are_numbers_or_text_and_are_clamped() {
    for (param, expected) in [
        ("512", 512.0),
        ("\"512.000000\"", 512.0),
        ("0.5", 1.0),
        ("-3", 1.0),
        ("0", 1.0),
        ("5e10", 4e9),
        ("1500.75", 1500.0),
        ("\"nan\"", 1024.0),
        ("\"inf\"", 1024.0),
        ("1e999", 1024.0),
    ] {
        let mut table = Table::new();
        let (event, out) = table.say(&format!(r#"{{"id": 1, "method": "mining.suggest_difficulty", "params": [{param}]}}"#));
        assert_eq!(event, Event::None);
        assert_eq!(out, format!("{{\"id\":1,\"result\":{},\"error\":null}}\n", expected != 1024.0), "{param}");
        assert_eq!(table.session.difficulty().get(), expected, "{param}");
        table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
        assert!(table.publish(1, true).contains(&format!("set_difficulty\",\"params\":[{expected}]")));
    }
    for param in ["", "null", "true", "\"\"", "\"x\"", "[1]"] {
        let (event, _) = Table::new().say(&format!(r#"{{"id":1,"method":"mining.suggest_difficulty","params":[{param}]}}"#));
        assert_eq!(event, Event::Refused, "{param}");
    }
    let mut table = Table::new();
    // Difficulty 256: 0xffff x 2^200.
    table.say(r#"{"id":1,"method":"mining.suggest_target","params":["0000000000ffff00000000000000000000000000000000000000000000000000"]}"#);
    assert_eq!(table.session.difficulty().get(), 256.0);
    assert_eq!(table.say(r#"{"id":1,"method":"mining.suggest_target","params":["zz"]}"#).0, Event::Refused);
}

#[test]
fn a_retarget_and_its_job_leave_in_one_write_and_suggestions_are_rate_limited() {
    let mut table = Table::mining();
    let (_, out) = table.say(r#"{"id":1,"method":"mining.suggest_difficulty","params":[64]}"#);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], r#"{"id":1,"result":true,"error":null}"#);
    assert_eq!(lines[1], r#"{"id":null,"method":"mining.set_difficulty","params":[64]}"#);
    // The same job under an id of its own, with an ntime of its own: firmware ignores an id that it has, and starts its search anew.
    assert!(lines[2].contains("mining.notify\",\"params\":[\"abcd000301\"") && lines[2].ends_with("\"6b49d201\",false]}"), "{out}");
    // The same again changes nothing; another within a second is not followed.
    table.clock.advance(999_999);
    assert_eq!(
        table.say(r#"{"id":1,"method":"mining.suggest_difficulty","params":[65]}"#).1,
        "{\"id\":1,\"result\":false,\"error\":null}\n"
    );
    table.clock.advance(1);
    assert_eq!(table.say(r#"{"id":1,"method":"mining.suggest_difficulty","params":[64]}"#).1.lines().count(), 1);
    assert_eq!(table.say(r#"{"id":1,"method":"mining.suggest_difficulty","params":[65]}"#).1.lines().count(), 3);
    assert_eq!(table.set_difficulty(65.0), "");
}

#[test]
fn a_share_is_judged_at_the_work_of_its_job_and_in_the_grace_at_the_easier() {
    let mut table = Table::mining();
    let judged = |table: &mut Table, job: &str| {
        let submit =
            table.submit(&format!(r#"{{"id":1,"method":"mining.submit","params":["rig.1","{job}","0000000000000001","6b49d200","1"]}}"#));
        assert_eq!(submit.status, Submit::PENDING, "{job}");
        (submit.work, submit.flags & flags::GRACE)
    };
    // Harder: what was sent before keeps its work, the new one has the easier for some seconds.
    table.clock.advance(5_000_000);
    assert!(table.set_difficulty(4096.0).contains("abcd000301"));
    table.publish(4, false);
    assert_eq!(judged(&mut table, "abcd0002"), (work(1024.0), 0));
    assert_eq!(judged(&mut table, "abcd0003"), (work(1024.0), 0));
    assert_eq!(judged(&mut table, "abcd000301"), (work(1024.0), flags::GRACE));
    table.clock.advance(4_999_999);
    assert_eq!(judged(&mut table, "abcd0004"), (work(1024.0), flags::GRACE));
    table.clock.advance(1);
    assert_eq!(judged(&mut table, "abcd0004"), (work(4096.0), 0));
    assert_eq!(judged(&mut table, "abcd000301"), (work(4096.0), 0));
    table.clock.advance(55_000_000);
    assert_eq!(judged(&mut table, "abcd0003"), (work(1024.0), 0), "the id says at which difficulty it was found");
    assert_eq!(judged(&mut table, "abcd0002"), (work(1024.0), 0));
    // Easier: shares of the old jobs may come at the new difficulty at once.
    table.set_difficulty(16.0);
    assert_eq!(judged(&mut table, "abcd000301"), (work(16.0), flags::GRACE));
    assert_eq!(judged(&mut table, "abcd000401"), (work(16.0), 0));
    table.clock.advance(60_000_000);
    // The easiest of the works that jobs before the retarget were sent at stands for all of them.
    assert_eq!(judged(&mut table, "abcd0003"), (work(1024.0), 0));
    assert_eq!(judged(&mut table, "abcd0004"), (work(1024.0), 0));
    assert_eq!(judged(&mut table, "abcd000401"), (work(16.0), 0));
    // Two retargets of one job long after each other: its plain id is still live.
    table.publish(5, true);
    table.set_difficulty(1e6);
    table.clock.advance(60_000_000);
    table.set_difficulty(2e6);
    table.clock.advance(60_000_000);
    assert_eq!(judged(&mut table, "abcd0005"), (work(16.0), 0));
    assert_eq!(judged(&mut table, "abcd000502"), (work(2e6), 0));
    for unknown in ["abcd000500", "abcd00050", "abcd0005010", "abcd00050g"] {
        let submit = table
            .submit(&format!(r#"{{"id":1,"method":"mining.submit","params":["rig.1","{unknown}","0000000000000001","6b49d200","1"]}}"#));
        assert_eq!(status(&submit), Some(ShareStatus::Stale), "{unknown}");
    }
}

#[test]
fn shares_raise_the_difficulty_silence_lowers_it_and_the_worker_starts_there_the_next_time() {
    let memory = Arc::new(Memory::new(16));
    let mut table = Table::learning(&memory);
    table.publish(1, true);
    // Ten shares a second at 1024: ten times 60 is wanted.
    let mut job = "abcd0001".to_owned();
    for _ in 0..100 {
        table.clock.advance((100_000.0 * table.session.difficulty().get() / 1024.0) as u64);
        if let Some(notify) = table.accepted(&job).lines().nth(1) {
            let notify: Value = serde_json::from_str(notify).expect("JSON");
            job = notify["params"][0].as_str().expect("an id").to_owned();
        }
    }
    let learned = table.session.difficulty().get();
    assert!((8192.0..=12800.0).contains(&learned), "{learned}");
    // While there is no job nobody can find shares.
    table.book.end_before(2);
    table.clock.advance(600_000_000);
    assert_eq!(table.look(), "");
    table.publish(2, true);
    table.session.remember(&table.settings);
    let mut silent_s = 0;
    while table.session.difficulty().get() >= learned {
        table.clock.advance(2_000_000);
        silent_s += 2;
        let out = table.look();
        assert!(
            out.is_empty() || (out.starts_with("{\"id\":null,\"method\":\"mining.set_difficulty\"") && out.lines().count() == 2),
            "{out}"
        );
        assert!(silent_s < 60, "sixty expected shares did not come");
    }
    assert!(silent_s >= 8, "lowered after {silent_s} s");
    let mut again = Table::learning(&memory);
    assert!(again.publish(1, true).contains(&format!("set_difficulty\",\"params\":[{learned}]")));
    // Where the job comes before the worker's name the worker's difficulty follows at once, with the job under another id.
    let mut again = Table::with(again.settings);
    again.publish(1, true);
    again.say(r#"{"id":1,"method":"mining.subscribe","params":["t/1"]}"#);
    let (_, out) = again.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
    assert!(out.contains(&format!("set_difficulty\",\"params\":[{learned}]")) && out.contains("abcd000101"), "{out}");
    let (_, out) = again.say(r#"{"id":2,"method":"mining.authorize","params":["rig.2","x"]}"#);
    assert_eq!(out.lines().count(), 1, "one difficulty for all workers of a connection: {out}");
}

#[test]
fn vardiff_asks_for_no_more_than_the_network() {
    let mut table = Table::learning(&Arc::new(Memory::new(16)));
    let target = Target::from_compact(0x1b04_04cb).expect("difficulty 16307");
    let easy = Arc::new(PublishedJob::new(Job { network_target: target, ..job(1, true) }, SALT));
    table.book.publish(Arc::clone(&easy));
    let mut out = Vec::new();
    let ctx = Context { settings: &table.settings, jobs: &table.book, now_us: table.clock.now_us(), peer: None };
    table.session.notify(&ctx, &easy, false, &mut out);
    let mut retargets = 0;
    for _ in 0..200 {
        table.clock.advance(100_000);
        let id = format!("abcd0001{}", if retargets == 0 { String::new() } else { format!("{retargets:02x}") });
        retargets += usize::from(!table.accepted(&id).is_empty());
        assert!(table.session.work_now <= easy.network_work);
    }
    assert!((1..=3).contains(&retargets), "{retargets}");
    assert_eq!(table.session.difficulty().get(), 16307.0);
}

#[test]
fn a_job_is_sent_at_no_more_than_255_difficulties_and_each_sending_has_a_later_ntime() {
    let mut table = Table::mining();
    let mut ntimes = vec![];
    for sending in 1..=255u32 {
        let out = table.set_difficulty(f64::from(sending));
        let notify: Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
        assert_eq!(notify["params"][0], format!("abcd0003{sending:02x}"));
        ntimes.push(u32::from_str_radix(notify["params"][7].as_str().expect("text"), 16).expect("hex"));
    }
    assert!(ntimes.is_sorted_by(|before, after| before < after), "{ntimes:?}");
    assert_eq!(table.set_difficulty(7.0), "", "it waits for the next job");
    assert_eq!(table.session.difficulty().get(), 255.0);
    let (_, again) = table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    assert!(again.contains("set_difficulty\",\"params\":[255]") && again.contains("abcd0003ff"), "{again}");
    let next = table.publish(4, false);
    assert!(next.contains("set_difficulty\",\"params\":[7]") && next.contains("\"abcd0004\""), "{next}");
}

#[test]
fn no_session_is_sent_or_judged_at_more_than_the_network() {
    let mut table = Table::new();
    table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
    for (counter, nbits) in [(1u32, 0x207f_ffffu32), (2, 0x1d00_ffff), (3, 0x1c00_8000), (4, 0x1702_5ced)] {
        let target = Target::from_compact(nbits).expect("a target");
        let easy = Arc::new(PublishedJob::new(Job { network_target: target, nbits, ..job(counter, true) }, SALT));
        assert!(easy.network_difficulty.work() <= easy.network_work);
        table.book.publish(Arc::clone(&easy));
        // A miner may name a job that it has from elsewhere, before it was sent here.
        let early =
            format!(r#"{{"id":1,"method":"mining.submit","params":["rig.1","{:08x}","0000000000000001","6b49d200","1"]}}"#, SALT + counter);
        let early = table.submit(&early);
        assert!(early.work <= easy.network_work.hashes(), "judged at {} over nbits {nbits:08x}", early.work);
        let mut out = Vec::new();
        let ctx = Context { settings: &table.settings, jobs: &table.book, now_us: table.clock.now_us(), peer: None };
        table.session.notify(&ctx, &easy, false, &mut out);
        let out = String::from_utf8(out).expect("ASCII");
        let sent: Value = serde_json::from_str(out.lines().next().expect("a line")).expect("JSON");
        let sent = sent["params"][0].as_f64().expect("a number");
        assert!(Difficulty::clamped(sent).work() <= easy.network_work, "{sent} over nbits {nbits:08x}");
        let submit = table.submit(&format!(
            r#"{{"id":1,"method":"mining.submit","params":["rig.1","{:08x}","0000000000000001","6b49d200","1"]}}"#,
            SALT + counter
        ));
        assert!(submit.work <= easy.network_work.hashes());
    }
    assert_eq!(table.session.difficulty().get(), 1024.0, "the network's own difficulty is no longer the limit");
}

#[test]
fn workers_are_bounded_and_found_in_any_order() {
    let mut table = Table::with(Settings { workers_max: 50, ..Settings::default() });
    table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    table.publish(1, true);
    let name = |index: usize| format!("acc.{}", index * 7919 % 1000);
    for index in 0..60 {
        let (event, out) = table.say(&format!(r#"{{"id":2,"method":"mining.authorize","params":["{}","x"]}}"#, name(index)));
        assert_eq!(matches!(event, Event::Authorized(_)), index < 50);
        assert_eq!(out.contains("\"error\":[24,\"unauthorized worker: too many"), index >= 50, "{out}");
    }
    assert_eq!(table.say(&format!(r#"{{"id":2,"method":"mining.authorize","params":["{}"]}}"#, name(3))).0, Event::None, "known already");
    for index in (0..60).chain([3, 3, 58, 3]) {
        let submit = table.submit(&format!(
            r#"{{"id":1,"method":"mining.submit","params":["{}","abcd0001","0000000000000001","6b49d200","1"]}}"#,
            name(index)
        ));
        let expected = if index < 50 { WorkerName::new(name(index).as_bytes()).expect("name").id("otedama").0 } else { 0 };
        assert_eq!(submit.worker, expected);
        assert_eq!(status(&submit), if index < 50 { None } else { Some(ShareStatus::Unauthorized) });
    }
    for raw in ["\"\"", "\"  \"", "\"a'b\"", "\"a\\\"b\"", "\"a\\u001b\"", "7", "null", "[]", "\"ü\""] {
        let (event, out) = table.say(&format!(r#"{{"id":2,"method":"mining.authorize","params":[{raw},"x"]}}"#));
        assert_eq!(event, Event::Refused, "{raw}");
        assert!(out.contains("\"error\":[24,"), "{out}");
    }
}

#[test]
fn small_talk_is_answered() {
    let mut table = Table::mining();
    for (line, expected) in [
        (r#"{"id":3,"method":"mining.extranonce.subscribe","params":[]}"#, "{\"id\":3,\"result\":true,\"error\":null}\n"),
        (r#"{"id":3,"method":"mining.ping"}"#, "{\"id\":3,\"result\":\"pong\",\"error\":null}\n"),
        (r#"{"id":3,"method":"mining.get_transactions","params":["abcd0003"]}"#, "{\"id\":3,\"result\":[],\"error\":null}\n"),
        (r#"{"id":1,"result":"cgminer/4.12","error":null}"#, ""),
        (r#"{"id":1,"method":null,"result":"cgminer/4.12","error":null}"#, ""),
        ("", ""),
        ("\r", ""),
    ] {
        assert_eq!(table.say(line), (Event::None, expected.to_owned()), "{line}");
    }
    for (line, id, text) in [
        (r#"{"id":3,"method":"eth_submitWork","params":[]}"#, "3", "unknown method"),
        (r#"{"id":3,"params":[]}"#, "3", "malformed: the method is missing"),
        (r#"{"id":3,"method":7}"#, "3", "malformed: the method is missing"),
        ("{}", "null", "malformed: the method is missing"),
        ("[]", "null", "malformed: the line is not one JSON object"),
        ("{\"id\":3", "null", "malformed: the line is not one JSON object"),
        ("GET / HTTP/1.1", "null", "malformed: the line is not one JSON object"),
    ] {
        assert_eq!(
            table.say(line),
            (Event::Refused, format!("{{\"id\":{id},\"result\":null,\"error\":[20,\"{text}\",null]}}\n")),
            "{line}"
        );
    }
    assert!(matches!(Table::new().say("GET / HTTP/1.1").0, Event::Close(_)), "no words are lost on a stranger");
}

#[test]
fn a_wrong_type_in_any_field_is_refused_and_never_a_panic() {
    let values =
        ["null", "true", "0", "-1", "1e308", "18446744073709551616", "\"\"", "\"\\ud800\"", "\"\\u0000\"", "[]", "{}", "[[[[]]]]", "\"ü\""];
    let good = ["\"rig.1\"", "\"abcd0003\"", "\"0000000000000001\"", "\"6b49d200\"", "\"00000001\"", "\"00002000\""];
    let mut table = Table::mining();
    for place in 0..good.len() {
        for value in values {
            let mut params = good;
            params[place] = value;
            let submit = table.submit(&format!(r#"{{"id":1,"method":"mining.submit","params":[{}]}}"#, params.join(",")));
            let text = value.starts_with('"') && !value.contains("ud800");
            let expected = match (place, value) {
                (0, _) if text => Some(ShareStatus::Unauthorized),
                (1, _) if text => Some(ShareStatus::Stale),
                // A null sixth param is no sixth param.
                (5, "null") => None,
                _ => Some(ShareStatus::Malformed),
            };
            assert_eq!(status(&submit), expected, "{value} at {place}");
        }
    }
    for value in values {
        for method in ["submit", "subscribe", "authorize", "configure", "suggest_difficulty", "suggest_target", "ping"] {
            for line in [
                format!(r#"{{"id":{value},"method":"mining.{method}","params":[{value},{value}]}}"#),
                format!(r#"{{"id":1,"method":{value},"params":[{value}]}}"#),
                format!(r#"{{"id":1,"method":"mining.{method}","params":{value}}}"#),
                format!(r#"{{"id":1,"method":"mining.{method}","params":[],"params":[{value}],{value}:1}}"#),
            ] {
                for end in 0..=line.len() {
                    if line.is_char_boundary(end) {
                        let mut table = Table::mining();
                        let (_, out) = table.say(&line[..end]);
                        for reply in out.lines() {
                            let reply: Value = serde_json::from_str(reply).expect("every reply is JSON");
                            assert!(reply.get("id").is_some());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_header_of_a_notify_and_its_submit_is_the_vectors_header() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/sv1_jobs.json")).expect("JSON");
    let bytes = |value: &Value| {
        let text = value.as_str().expect("a string");
        let mut bytes = vec![0; text.len() / 2];
        decode_hex(text.as_bytes(), &mut bytes).expect("hex");
        bytes
    };
    let number = |value: &Value| u32::from_str_radix(value.as_str().expect("a string"), 16).expect("hex");
    let mut judged = 0;
    for vector in vectors.as_array().expect("a list") {
        let (wire, sent, template) = (&vector["job"], &vector["submit"], &vector["getblocktemplate"]);
        let extranonce1 = number(&wire["extranonce1"]);
        let job = Job {
            prev_hash: Hash256::from_display_hex(template["previousblockhash"].as_str().expect("a string")).expect("hex"),
            version: template["version"].as_u64().expect("a number") as u32,
            nbits: number(&template["bits"]),
            ntime: template["curtime"].as_u64().expect("a number") as u32,
            ntime_min: template["mintime"].as_u64().expect("a number") as u32,
            coinbase_prefix: bytes(&wire["coinb1"]).into(),
            coinbase_suffix: bytes(&wire["coinb2"]).into(),
            branch: Box::new([]),
            network_target: Target::from_compact(number(&template["bits"])).expect("a target"),
            ..job(1, true)
        };
        let published = Arc::new(PublishedJob::new(job, SALT));
        // What goes out is what the vector says.
        let notify: Value = serde_json::from_slice(&published.notify).expect("JSON");
        let params = &notify["params"];
        for (index, key) in [(1, "prevhash"), (2, "coinb1"), (3, "coinb2"), (4, "merkle_branch"), (5, "version"), (6, "nbits")] {
            assert_eq!(params[index], wire[key], "{key}");
        }
        // What comes back makes the vector's header.
        let mut table = Table::new();
        table.session = Session::new(Seat { session: 1, extranonce1, net: 0 }, &table.settings);
        table.say(&format!(
            r#"{{"id":0,"method":"mining.configure","params":[["version-rolling"],{{"version-rolling.mask":{}}}]}}"#,
            wire["version_mask"]
        ));
        table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
        table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
        table.book.publish(Arc::clone(&published));
        let submit = table.submit(&format!(
            r#"{{"id":4,"method":"mining.submit","params":["rig.1",{},{},{},{},{}]}}"#,
            params[0], sent["extranonce2"], sent["ntime"], sent["nonce"], sent["version_bits"]
        ));
        assert_eq!(submit.status, Submit::PENDING);
        let job = &published.job;
        let mut coinbase = job.coinbase_prefix.to_vec();
        coinbase.extend_from_slice(&submit.extranonce1.to_be_bytes());
        coinbase.extend_from_slice(&submit.extranonce2.to_be_bytes()[8 - usize::from(job.extranonce2_bytes)..]);
        coinbase.extend_from_slice(&job.coinbase_suffix);
        assert_eq!(encode_hex(&coinbase), vector["coinbase"].as_str().expect("a string"));
        let sha256d = |bytes: &[u8]| Sha256::digest(Sha256::digest(bytes));
        let mut header = submit.version.to_le_bytes().to_vec();
        header.extend_from_slice(&job.prev_hash.0);
        header.extend_from_slice(&sha256d(&coinbase));
        header.extend_from_slice(&submit.ntime.to_le_bytes());
        header.extend_from_slice(&job.nbits.to_le_bytes());
        header.extend_from_slice(&submit.nonce.to_le_bytes());
        assert_eq!(encode_hex(&header), vector["header"].as_str().expect("a string"));
        let mut hash = sha256d(&header).to_vec();
        hash.reverse();
        assert_eq!(encode_hex(&hash), vector["hash"].as_str().expect("a string"));
        judged += 1;
    }
    assert!(judged > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The miner of this model applies a difficulty with the job that follows it (ours leave in one write) or at once to what it mines, and takes up to 20 s to leave the old job: it
    /// finds shares at whatever it holds for as long as the job lives. None may be judged at more work than it was found at.
    #[test]
    fn oscillating_difficulty_refuses_no_honest_share(
        steps in prop::collection::vec((0u8..6, 0usize..8, prop_oneof![Just(0u64), 1..20u64, 55..65u64, 100..200u64]), 1..60),
    ) {
        let difficulties = [1.0, 2.0, 64.0, 1024.0, 1e6, 3.0, 0.001, 4e9];
        let mut table = Table::with(Settings { difficulty_min: Difficulty::clamped(0.0), ..Settings::default() });
        table.say(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
        table.say(r#"{"id":2,"method":"mining.authorize","params":["rig.1","x"]}"#);
        table.publish(1, true);
        let mut newest = 1;
        // (job id, difficulty in force when it was sent, difficulty that is applied to it at once, when that came)
        let mut held: Vec<(String, f64, f64, u64)> = vec![("abcd0001".to_owned(), 1024.0, 1024.0, 0)];
        let mut now_s = 0u64;
        for (what, which, wait_s) in steps {
            table.clock.advance(wait_s * 1_000_000);
            now_s += wait_s;
            let sent = match what {
                0 | 1 => table.set_difficulty(difficulties[which]),
                2 => { newest += 1; table.publish(newest, false) }
                3 => { newest += 1; table.publish(newest, which == 0) }
                _ => String::new(),
            };
            if let Some(notify) = sent.lines().last() {
                let notify: Value = serde_json::from_str(notify).expect("JSON");
                let difficulty = table.session.difficulty().get();
                // Such a miner drops what it holds for the job that it hears of; what it has in hand may carry the new difficulty.
                if let Some(last) = held.last_mut() {
                    (last.2, last.3) = (difficulty, now_s);
                }
                held.push((notify["params"][0].as_str().expect("an id").to_owned(), difficulty, difficulty, now_s));
            }
            for (id, sent_at, applied, since_s) in &held {
                let mut submit_of = |id: &str| table.submit(&format!(
                    r#"{{"id":1,"method":"mining.submit","params":["rig.1","{id}","0000000000000001","6b49d200","1"]}}"#
                ));
                let submit = submit_of(id);
                if submit.status == Submit::PENDING {
                    prop_assert!(submit.work <= work(*sent_at), "job {id} found at {sent_at}, judged at work {}", submit.work);
                    if now_s < since_s + 20 {
                        prop_assert!(submit.work <= work(*applied), "job {id} found at {applied} at once, judged at work {}", submit.work);
                    }
                }
            }
            // Nor does a share come for more than a difficulty that was ever in force.
            let job = Arc::clone(table.book.newest().expect("a live job"));
            let ctx = Context { settings: &table.settings, jobs: &table.book, now_us: table.clock.now_us(), peer: None };
            let (current, told, _) = table.session.work_of(&ctx, &job, u8::MAX);
            prop_assert!(current <= table.session.work_now && told == table.session.work_now);
        }
    }
}

#[test]
fn a_doubling_for_the_servers_load_is_sent_with_a_job_and_goes_back_without_a_trace() {
    let memory = Arc::new(Memory::new(64));
    let mut table = Table::learning(&memory);
    table.book.publish(published(1, true));
    let set = |table: &mut Table, doublings: u8| {
        let mut out = Vec::new();
        let ctx = Context { settings: &table.settings, jobs: &table.book, now_us: table.clock.now_us(), peer: None };
        table.session.set_load(&ctx, doublings, &mut out);
        String::from_utf8(out).expect("ASCII")
    };
    assert_eq!(set(&mut table, 1), "", "before the first job it only changes what will be sent with it");
    assert_eq!(set(&mut table, 0), "");
    let mut out = Vec::new();
    let ctx = Context { settings: &table.settings, jobs: &table.book, now_us: table.clock.now_us(), peer: None };
    let job = ctx.jobs.newest().expect("published");
    table.session.notify(&ctx, job, false, &mut out);
    // A minute at just the target rate: 1024 is right for this miner.
    for _ in 0..60 {
        table.clock.advance(1_000_000);
        assert_eq!(table.accepted("abcd0001"), "");
    }
    for (doublings, sending) in [(1_u8, 1_u8), (2, 2), (6, 3)] {
        let said = set(&mut table, doublings);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert_eq!(lines[0], format!("{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{}]}}", 1024 << doublings));
        assert!(lines[1].contains(&format!("\"mining.notify\",\"params\":[\"abcd0001{sending:02x}\"")), "{said}");
        assert_eq!(set(&mut table, doublings), "", "once");
        // The same miner has a share in 2^doublings seconds now, and vardiff is content with that.
        for _ in 0..20 {
            table.clock.advance(1_000_000 << doublings);
            assert_eq!(table.accepted(&format!("abcd0001{sending:02x}")), "", "{doublings}");
        }
    }
    table.session.remember(&table.settings);
    assert_eq!(memory.recall(WorkerName::new(b"rig.1").expect("a name").id("otedama")), Some(Difficulty::clamped(1024.0)));
    assert!(set(&mut table, 0).contains("\"params\":[1024]"));
    for _ in 0..60 {
        table.clock.advance(1_000_000);
        assert_eq!(table.accepted("abcd000104"), "");
    }
    // Never more than the operator's or the network's greatest.
    table.settings.difficulty_max = Difficulty::clamped(3000.0);
    assert!(set(&mut table, 6).contains("\"params\":[3000]"));
}
