//! Every line that the pool writes. Each answer has `id`, `result` and `error`, each line ends with LF.
use super::IdToken;
use otedama_primitives::{Difficulty, Job, ShareStatus, encode_hex};
use std::io::Write;

/// Answers a submit with its verdict: `{"id":ID,"result":true,"error":null}` or `{"id":ID,"result":null,"error":[code,"text",null]}`.
pub fn answer(out: &mut Vec<u8>, id: &IdToken, status: ShareStatus) {
    if status == ShareStatus::Accepted {
        result(out, id, b"true");
    } else {
        error(out, id, status.wire_code(), status.wire_text());
    }
}

/// Answers with `raw`, the text of a JSON value.
pub(crate) fn result(out: &mut Vec<u8>, id: &IdToken, raw: &[u8]) {
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b",\"result\":");
    out.extend_from_slice(raw);
    out.extend_from_slice(b",\"error\":null}\n");
}

/// Answers with an error. `text` is ours and needs no escapes.
pub(crate) fn error(out: &mut Vec<u8>, id: &IdToken, code: u8, text: &str) {
    debug_assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'));
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b",\"result\":null,\"error\":[");
    let digits = [b'0' + code / 100, b'0' + code / 10 % 10, b'0' + code % 10];
    out.extend_from_slice(if code >= 100 { &digits } else { &digits[1..] });
    out.extend_from_slice(b",\"");
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\",null]}\n");
}

/// The difficulty as it is sent: whole numbers from 1 up, as old firmware reads them as integers.
pub(crate) fn wire_difficulty(value: f64) -> Difficulty {
    let clamped = Difficulty::clamped(value).get();
    Difficulty::clamped(if clamped >= 1.0 { clamped.floor() } else { clamped })
}

/// Writes mining.set_difficulty. Plain decimal digits, never an exponent: hand-written parsers stop at the `e`.
pub(crate) fn set_difficulty(out: &mut Vec<u8>, difficulty: Difficulty) {
    // Writing into a Vec cannot fail.
    let _ = writeln!(out, "{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{}]}}", difficulty.get());
}

/// What stands before the job id in a notify line.
const NOTIFY_HEAD: &str = "{\"id\":null,\"method\":\"mining.notify\",\"params\":[\"";
/// What stands between ntime and the end of a notify line, without and with clean_jobs.
const NOTIFY_TAILS: [&str; 2] = ["\",false]}\n", "\",true]}\n"];

/// Writes a job that the session already has once more, under an id and an ntime of its own: `line` is its notify line, `clean` as it was made. Two hex digits
/// after the job's own eight say which sending it was.
pub(crate) fn notify_again(out: &mut Vec<u8>, line: &[u8], clean: bool, sending: u8, ntime: u32) {
    let id_end = NOTIFY_HEAD.len() + 8;
    let tail_at = line.len() - NOTIFY_TAILS[usize::from(clean)].len();
    out.extend_from_slice(&line[..id_end]);
    // Writing into a Vec cannot fail.
    let _ = if sending == 0 { Ok(()) } else { write!(out, "{sending:02x}") };
    out.extend_from_slice(&line[id_end..tail_at - 8]);
    let _ = write!(out, "{ntime:08x}");
    out.extend_from_slice(&line[tail_at..]);
}

/// The mining.notify line of a job. prevhash has the bytes of each 4-byte word reversed against the header (the protocol's own order); version, nbits and ntime are numbers.
pub(crate) fn notify_line(job: &Job, wire_id: u32, clean: bool) -> Vec<u8> {
    let mut swapped = job.prev_hash.0;
    swapped.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    let branch: Vec<String> = job.branch.iter().map(|sibling| format!("\"{}\"", encode_hex(&sibling.0))).collect();
    let tail = NOTIFY_TAILS[usize::from(clean)];
    format!(
        "{NOTIFY_HEAD}{wire_id:08x}\",\"{}\",\"{}\",\"{}\",[{}],\"{:08x}\",\"{:08x}\",\"{:08x}{tail}",
        encode_hex(&swapped),
        encode_hex(&job.coinbase_prefix),
        encode_hex(&job.coinbase_suffix),
        branch.join(","),
        job.version,
        job.nbits,
        job.ntime,
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn every_verdict_has_the_line_that_scripts_and_miners_match() {
        let id = IdToken::new(b"\"a1\"").expect("short");
        let lines: Vec<String> = ShareStatus::ALL.iter().map(|&status| text(|out| answer(out, &id, status))).collect();
        assert_eq!(lines[0], "{\"id\":\"a1\",\"result\":true,\"error\":null}\n");
        assert_eq!(lines[1], "{\"id\":\"a1\",\"result\":null,\"error\":[21,\"job not found (stale)\",null]}\n");
        for (status, line) in ShareStatus::ALL.iter().zip(&lines).skip(1) {
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(json["error"], serde_json::json!([status.wire_code(), status.wire_text(), null]));
            assert_eq!(json["result"], serde_json::Value::Null);
        }
    }

    #[test]
    fn difficulties_have_no_exponent_and_no_fraction_from_one_up() {
        for (value, expected) in [
            (1024.0, "1024"),
            (1.0, "1"),
            (1.999, "1"),
            (4e9, "4000000000"),
            (1e300, "4000000000"),
            (0.5, "0.5"),
            (2.4e-10, "0.00000000024"),
            (0.0, "0.00000000024"),
        ] {
            let line = text(|out| set_difficulty(out, wire_difficulty(value)));
            assert_eq!(line, format!("{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{expected}]}}\n"));
        }
    }

    #[test]
    fn a_job_sent_again_differs_in_its_id_and_its_ntime_alone() {
        let job = Job {
            id: otedama_primitives::RunId::new(1, 2).job(3),
            coin: otedama_primitives::Coin::Bitcoin,
            height: 1,
            prev_hash: otedama_primitives::Hash256([7; 32]),
            version: 0x2000_0000,
            nbits: 0x1d00_ffff,
            ntime: 0x6b49_d200,
            ntime_min: 0,
            coinbase_prefix: Box::new([1, 2]),
            coinbase_suffix: Box::new([3]),
            branch: Box::new([otedama_primitives::Hash256([9; 32])]),
            extranonce2_bytes: 8,
            network_target: otedama_primitives::Target([u64::MAX; 4]),
            clean: false,
            created_us: 0,
        };
        for clean in [false, true] {
            let line = notify_line(&job, 0xabcd_0003, clean);
            let plain: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            let mut same = Vec::new();
            notify_again(&mut same, &line, clean, 0, job.ntime);
            assert_eq!(same, line);
            let again = text(|out| notify_again(out, &line, clean, 0x1f, job.ntime + 1));
            let mut again: serde_json::Value = serde_json::from_str(again.trim_end()).expect("JSON");
            assert_eq!(again["params"][0], "abcd00031f");
            assert_eq!(again["params"][7], "6b49d201");
            again["params"][0] = plain["params"][0].clone();
            again["params"][7] = plain["params"][7].clone();
            assert_eq!(again, plain);
        }
    }

    #[test]
    fn error_codes_of_two_and_three_digits_are_whole() {
        assert!(text(|out| error(out, &IdToken::NULL, 20, "x")).contains("[20,"));
        assert!(text(|out| error(out, &IdToken::NULL, 105, "x")).contains("[105,"));
    }
}
