use super::*;
use crate::v1::{lines, scan};
use otedama_primitives::{WorkerId, WorkerName};
use proptest::prelude::*;

fn workers() -> Workers {
    let mut workers = Workers::default();
    for (number, name) in ["rig.1", "rig.10", "bc1qexampleexampleexampleexample00000.rig1", "a"].iter().enumerate() {
        workers.add(&WorkerName::new(name.as_bytes()).expect("a name"), WorkerId(number as u64 + 1));
    }
    workers
}

/// What the scanner makes of the first line of `bytes`.
fn scanned(bytes: &[u8], workers: &Workers) -> Option<(usize, Claim)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let request = scan::scan(lines::trim(&bytes[..end]))?;
    Some((end + 1, Claim::of(&request, workers, 8)))
}

/// Submits as firmware and proxies write them, id `4` and worker `rig.1` in all.
const DIALECTS: [&str; 12] = [
    r#"{"params": ["rig.1", "00000002", "0100000000000000", "6b49d200", "310e0000"], "id": 4, "method": "mining.submit"}"#,
    r#"{"id":4,"method":"mining.submit","params":["rig.1","00000002","0100000000000000","6b49d200","310e0000","00c3e000"]}"#,
    r#"{"id": 4, "method": "mining.submit", "params": ["rig.1", "00000002", "0100000000000000", "6b49d200", "310e0000", "00C3E000"]}"#,
    r#"{"method": "mining.submit", "params": ["rig.1", "00000002", "0100000000000000", "6b49d200", "310e0000"], "id":4}"#,
    "{\"params\": [\"rig.1\", \"000000021f\", \"0100000000000000\", \"6b49d200\", \"310e0000\"], \"id\": 4, \"method\": \"mining.submit\"}\r",
    r#"{"id":4,"jsonrpc":"2.0","method":"mining.submit","params":["rig.1","00000002","0100000000000000","6b49d200","310e0000"]}"#,
    r#"{"method":"mining.submit","params":["rig.1","00000002","0100000000000000","6b49d200","310e0000"],"id":4,"worker":"rig 7"}"#,
    r#"{"id":4,"method":"mining.submit","params":["rig.1","00000002","0100000000000000","6b49d200","310e0000",null]}"#,
    r#"{"id":4,"method":"mining.submit","params":["rig.1","00000002","0100000000000000","6b49d200","310e0000","20000000","x",7]}"#,
    r#"{"params":["rig.1","00000002","0100000000000000","6b49d200","310e0000"],"method":"mining.submit","id":4}"#,
    r#"  { "id" : 4 , "method" : "mining.submit" , "params" : [ "rig.1" , "00000002" , "0100000000000000" , "6b49d200" , "310e0000" ] } "#,
    r#"{"params":["rig.1","00000002","0100000000000000","6b49d200","310e0000"],"id":4,"method":"mining.submit"}"#,
];

fn ended(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

#[test]
fn a_line_teaches_a_shape_that_reads_it() {
    for text in DIALECTS {
        let (line, workers) = (ended(text), workers());
        let shape = Shape::learn(&line).unwrap_or_else(|| panic!("{}", text));
        let expected = scanned(&line, &workers).expect("the scanner takes it");
        assert_eq!(shape.read(&line, &workers, 8), Some(expected), "{}", text);
        // What follows in the buffer is not looked at, and a line without its end is not taken.
        let two = [&line[..], b"{\"id\""].concat();
        assert_eq!(shape.read(&two, &workers, 8), Some(expected));
        assert!((0..line.len()).all(|end| shape.read(&line[..end], &workers, 8).is_none()));
        assert_eq!(shape.read(&line, &workers, 4), None, "extranonce2 of another size");
    }
}

#[test]
fn another_worker_and_a_longer_id_still_match() {
    for text in DIALECTS {
        let workers = workers();
        let shape = Shape::learn(&ended(text)).expect("it teaches");
        for worker in ["rig.1", "rig.10", "a", "bc1qexampleexampleexampleexample00000.rig1"] {
            for id in ["0", "7", "12", "999999", "1234567890123456"] {
                let line = format!(
                    "{}\n",
                    text.replace("rig.1", worker).replacen(": 4", &format!(": {id}"), 1).replacen(":4", &format!(":{id}"), 1)
                );
                let read = shape.read(line.as_bytes(), &workers, 8);
                assert!(read.is_some(), "{line}");
                assert_eq!(read, scanned(line.as_bytes(), &workers), "{line}");
            }
            for id in ["", "01", "-1", "1.5", "1e3", "12345678901234567", "null", "\"a\"", "٣"] {
                let line = format!("{}\n", text.replacen(": 4", &format!(": {id}"), 1).replacen(":4", &format!(":{id}"), 1));
                assert_eq!(shape.read(line.as_bytes(), &workers, 8), None, "{line}");
            }
        }
        for worker in ["rig.2", "rig.100", "rig", "", "rig.1 ", "rig\\u002e1"] {
            let line = format!("{}\n", text.replace("rig.1", worker));
            assert_eq!(shape.read(line.as_bytes(), &workers, 8), None, "{line}");
        }
    }
}

#[test]
fn ids_in_quotes_and_ids_that_stay_are_taught_too() {
    let line = |id: &str| format!("{}\n", DIALECTS[1].replace("\"id\":4", &format!("\"id\":{id}"))).into_bytes();
    let workers = workers();
    let quoted = Shape::learn(&line("\"a1\"")).expect("it teaches");
    for id in ["\"\"", "\"a1\"", "\"12345678901234\"", "\"a,:}{\""] {
        let line = line(id);
        assert_eq!(quoted.read(&line, &workers, 8), scanned(&line, &workers), "{id}");
        assert!(quoted.read(&line, &workers, 8).is_some(), "{id}");
    }
    for id in ["\"123456789012345\"", "\"a\\\"\"", "\"a", "a\"", "\"\u{fc}\"", "\"\t\"", "1", "null"] {
        assert_eq!(quoted.read(&line(id), &workers, 8), None, "{id}");
    }
    let null = Shape::learn(&line("null")).expect("it teaches");
    assert_eq!(null.read(&line("null"), &workers, 8).map(|(_, claim)| claim.id), Some(Some(IdToken::NULL)));
    assert_eq!(null.read(&line("nulL"), &workers, 8), None);
    let none = b"{\"method\":\"mining.submit\",\"params\":[\"rig.1\",\"00000002\",\"0100000000000000\",\"6b49d200\",\"310e0000\"]}\n";
    let shape = Shape::learn(none).expect("it teaches");
    assert_eq!(shape.read(none, &workers, 8), scanned(none, &workers));
}

#[test]
fn lines_that_are_no_plain_submit_teach_nothing() {
    let submit = DIALECTS[1];
    for line in [
        submit.replace("mining.submit", "mining.ping"),
        submit.replace("\"00c3e000\"", "7"),
        submit.replace("\"00c3e000\"", "\"c3e000\""),
        submit.replace(",\"310e0000\",\"00c3e000\"", ""),
        submit.replace("\"310e0000\"", "\"10e0000\""),
        submit.replace("\"6b49d200\"", "1800000000"),
        submit.replace("00000002", "2"),
        submit.replace("rig.1", "rig\\u002e1"),
        submit.replace("\"id\":4", "\"id\":-4"),
        submit.replace("\"id\":4", "\"id\":true"),
        submit.replace("\"id\":4", "\"id\":12345678901234567"),
        submit.replace("\"id\":4", &format!("\"note\":\"{}\",\"id\":4", "x".repeat(FIXED_BYTES_MAX))),
    ] {
        assert_eq!(Shape::learn(format!("{line}\n").as_bytes()), None, "{line}");
    }
    assert_eq!(Shape::learn(submit.as_bytes()), None, "no line feed");
    let longest = submit.replace("\"id\":4", &format!("\"note\":\"{}\",\"id\":1234567890123456", "x".repeat(FIXED_BYTES_MAX - 120)));
    assert!(Shape::learn(format!("{longest}\n").as_bytes()).is_some());
    assert!(longest.len() - "rig.1".len() + WorkerName::BYTES_MAX < LINE_BYTES_MAX);
}

#[test]
fn every_byte_value_at_every_place_is_read_as_the_scanner_reads_it_or_left_to_it() {
    for text in DIALECTS {
        let (line, workers) = (ended(text), workers());
        let shape = Shape::learn(&line).expect("it teaches");
        for place in 0..line.len() {
            for byte in 0..=u8::MAX {
                let mut changed = line.clone();
                changed[place] = byte;
                match shape.read(&changed, &workers, 8) {
                    Some(read) => assert_eq!(Some(read), scanned(&changed, &workers), "{}", String::from_utf8_lossy(&changed)),
                    None => assert_ne!(byte, line[place], "the line itself matches"),
                }
            }
        }
    }
}

#[test]
fn shapes_are_known_by_what_they_are_and_an_unused_one_makes_room() {
    let mut shapes = Shapes::default();
    let other = |number: usize| {
        Shape::learn(format!("{}\n", DIALECTS[1].replace("\"id\"", &format!("\"n\":{number},\"id\""))).as_bytes()).expect("it teaches")
    };
    let first = shapes.number(Shape::learn(&ended(DIALECTS[0])).expect("it teaches"));
    assert_eq!(shapes.number(Shape::learn(&ended(DIALECTS[0])).expect("it teaches")), first);
    let workers = workers();
    // Whoever invents shapes without end does not push out one that is in use.
    for number in 0..10 * Shapes::MAX {
        shapes.number(other(number));
        assert!(shapes.read(first, &ended(DIALECTS[0]), &workers, 8).is_some(), "after {number} others");
        assert!(shapes.known.len() <= Shapes::MAX);
    }
    assert_eq!(shapes.read(ShapeNumber::NONE, &ended(DIALECTS[0]), &workers, 8), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Hex digits of either case, and now and then none, in every hex field.
    #[test]
    fn hex_fields_are_read_as_the_scanner_reads_them(
        text in prop::sample::select(&DIALECTS[..]),
        fields in prop::collection::vec(prop_oneof![9 => "[0-9a-fA-F]{16}", 1 => "[0-9a-gA-G/:@`]{16}"], 5),
    ) {
        let (taught, workers) = (ended(text), workers());
        let shape = Shape::learn(&taught).expect("it teaches");
        let mut line = text.to_owned();
        for (old, field) in ["00000002", "0100000000000000", "6b49d200", "310e0000", "00c3e000"].iter().zip(&fields) {
            line = line.replace(old, &field[..old.len()]);
        }
        line.push('\n');
        let expected = scanned(line.as_bytes(), &workers).expect("the scanner takes any of them");
        let whole = expected.1.job.is_some() && expected.1.extranonce2.is_some() && expected.1.ntime.is_some() && expected.1.nonce.is_some() && expected.1.rolled.is_some();
        let read = shape.read(line.as_bytes(), &workers, 8);
        prop_assert!(read.is_none() || read == Some(expected));
        let prefixed = fields.iter().any(|field| field.starts_with("0x") || field.starts_with("0X"));
        prop_assert!(read.is_some() || !whole || prefixed, "all fields decode, and yet the shape does not match: {line}");
    }
}
