//! The coinbase transaction, cut where the miner's bytes go in.
//!
//! Script: BIP34 height, job number (8 bytes, big-endian, as a push), extranonce1 and extranonce2 as one push, tag. The job number makes every job's coinbase,
//! and with it every header, unique over all servers, boots and refreshes of a pool.
use crate::template::Template;
use otedama_primitives::JobId;

/// Longest coinbase script that consensus allows, in bytes.
pub const SCRIPT_BYTES_MAX: usize = 100;
/// Bytes of extranonce1.
pub const EXTRANONCE1_BYTES: usize = 4;
/// Sizes of extranonce2 that a job can have, in bytes.
pub const EXTRANONCE2_BYTES: std::ops::RangeInclusive<u8> = 4..=8;
/// A push of the 8-byte job number.
const JOB_PUSH_BYTES: usize = 9;
/// A push of a height of 3 bytes: heights to 8,388,607, about the year 2168.
const HEIGHT_PUSH_BYTES: usize = 4;
/// Core's `MAX_SEQUENCE_NONFINAL`: the locktime is enforced.
const SEQUENCE: u32 = 0xffff_fffe;
const TRANSACTION_VERSION: u32 = 2;

/// Why no coinbase can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoinbaseError {
    /// The tag pushes the script over what consensus allows.
    #[error(
        "[chain] coinbase_tag has {got} bytes, at most {longest} fit beside an extranonce2 of {extranonce2_bytes} bytes: shorten it (a coinbase script may have 100 bytes)"
    )]
    TagTooLong {
        /// Bytes of the tag.
        got: usize,
        /// What `longest_tag` allows.
        longest: usize,
        /// The configured size.
        extranonce2_bytes: u8,
    },
    /// The tag has bytes that are not printable ASCII.
    #[error("byte {position} of [chain] coinbase_tag is not printable ASCII: write it with letters, digits and signs only")]
    TagByte {
        /// Index of the offending byte.
        position: usize,
    },
    /// extranonce2 has a size that is not served.
    #[error("[stratum] extranonce2_bytes = {0}: set it to 4, 5, 6, 7 or 8")]
    Extranonce2(u8),
    /// The script is too long for this height.
    #[error("the coinbase script for height {height} has {bytes} bytes, consensus allows 100: shorten [chain] coinbase_tag")]
    ScriptTooLong {
        /// The height.
        height: u32,
        /// Bytes of the script.
        bytes: usize,
    },
    /// The payout script is too long to be one.
    #[error("the payout script has {0} bytes, at most 10000 are spendable")]
    PayoutScript(usize),
}

/// Longest tag in bytes beside an extranonce2 of `extranonce2_bytes`, at every height to 8,388,607.
pub const fn longest_tag(extranonce2_bytes: u8) -> usize {
    SCRIPT_BYTES_MAX - HEIGHT_PUSH_BYTES - JOB_PUSH_BYTES - (1 + EXTRANONCE1_BYTES + extranonce2_bytes as usize)
}

/// The height as Core's `CScript() << nHeight` writes it (BIP34): `OP_0`, `OP_1` to `OP_16`, then a push of the shortest little-endian number with a sign bit.
pub fn height_script(height: u32) -> Vec<u8> {
    const OP_1: u8 = 0x51;
    match height {
        0 => vec![0],
        1..=16 => vec![OP_1 + (height as u8 - 1)],
        _ => {
            let mut number = height.to_le_bytes().to_vec();
            while number.last() == Some(&0) {
                number.pop();
            }
            if number.last().is_some_and(|top| top & 0x80 != 0) {
                number.push(0); // the top bit is the sign
            }
            number.insert(0, number.len() as u8);
            number
        }
    }
}

/// Bytes of the stripped coinbase before extranonce1 and after extranonce2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoinbaseParts {
    /// From the version to the push of the extranonces.
    pub prefix: Vec<u8>,
    /// From the tag to the locktime.
    pub suffix: Vec<u8>,
}

/// Checks what does not change from job to job.
pub fn check(tag: &str, extranonce2_bytes: u8, payout_script: &[u8]) -> Result<(), CoinbaseError> {
    if !EXTRANONCE2_BYTES.contains(&extranonce2_bytes) {
        return Err(CoinbaseError::Extranonce2(extranonce2_bytes));
    }
    // ASCII holds no signature opcode, so a tag never costs the block signature operations.
    if let Some(position) = tag.bytes().position(|byte| !(0x20..0x7f).contains(&byte)) {
        return Err(CoinbaseError::TagByte { position });
    }
    let longest = longest_tag(extranonce2_bytes);
    if tag.len() > longest {
        return Err(CoinbaseError::TagTooLong { got: tag.len(), longest, extranonce2_bytes });
    }
    if payout_script.len() > 10_000 {
        return Err(CoinbaseError::PayoutScript(payout_script.len()));
    }
    Ok(())
}

/// The coinbase of job `job` on `template`: one output of the whole value to `payout_script`, and the witness commitment when the template has one.
/// Locktime is height - 1 with an enforced sequence, as Core makes its own coinbases and as BIP54 will ask.
pub fn parts(
    template: &Template,
    job: JobId,
    tag: &str,
    extranonce2_bytes: u8,
    payout_script: &[u8],
) -> Result<CoinbaseParts, CoinbaseError> {
    check(tag, extranonce2_bytes, payout_script)?;
    let extranonces = EXTRANONCE1_BYTES + usize::from(extranonce2_bytes);
    let height = height_script(template.height);
    let script_bytes = height.len() + JOB_PUSH_BYTES + 1 + extranonces + tag.len();
    if script_bytes > SCRIPT_BYTES_MAX {
        return Err(CoinbaseError::ScriptTooLong { height: template.height, bytes: script_bytes });
    }

    let mut prefix = Vec::with_capacity(80);
    prefix.extend_from_slice(&TRANSACTION_VERSION.to_le_bytes());
    prefix.push(1);
    prefix.extend_from_slice(&[0; 32]);
    prefix.extend_from_slice(&u32::MAX.to_le_bytes());
    prefix.push(script_bytes as u8);
    prefix.extend_from_slice(&height);
    prefix.push(8);
    prefix.extend_from_slice(&job.0.to_be_bytes());
    prefix.push(extranonces as u8);

    let mut suffix = Vec::with_capacity(160);
    suffix.extend_from_slice(tag.as_bytes());
    suffix.extend_from_slice(&SEQUENCE.to_le_bytes());
    suffix.push(1 + u8::from(template.witness_commitment.is_some()));
    put_output(&mut suffix, template.coinbase_value_sat, payout_script);
    if let Some(commitment) = &template.witness_commitment {
        put_output(&mut suffix, 0, commitment);
    }
    suffix.extend_from_slice(&template.height.saturating_sub(1).to_le_bytes());
    Ok(CoinbaseParts { prefix, suffix })
}

/// The stripped coinbase as it stands in a block: marker, flag and the reserved value of 32 zero bytes put in (BIP141).
pub fn with_witness(stripped: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(stripped.len() + 36);
    let (version, rest) = stripped.split_at(stripped.len().min(4));
    let (inputs_outputs, locktime) = rest.split_at(rest.len().saturating_sub(4));
    full.extend_from_slice(version);
    full.extend_from_slice(&[0, 1]);
    full.extend_from_slice(inputs_outputs);
    full.extend_from_slice(&[1, 32]);
    full.extend_from_slice(&[0; 32]);
    full.extend_from_slice(locktime);
    full
}

fn put_output(into: &mut Vec<u8>, value_sat: u64, script: &[u8]) {
    into.extend_from_slice(&value_sat.to_le_bytes());
    put_compact_size(into, script.len());
    into.extend_from_slice(script);
}

/// Bitcoin's variable-length count.
pub(crate) fn put_compact_size(into: &mut Vec<u8>, count: usize) {
    match count {
        0..=0xfc => into.push(count as u8),
        0xfd..=0xffff => {
            into.push(0xfd);
            into.extend_from_slice(&(count as u16).to_le_bytes());
        }
        _ => {
            into.push(0xfe);
            into.extend_from_slice(&(count as u32).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::RunId;
    use proptest::prelude::*;

    fn template(height: u32) -> Template {
        Template { height, ..Template::sample() }
    }

    #[test]
    fn heights_are_pushed_as_core_expects_at_every_length_edge() {
        for (height, expected) in [
            (0, vec![0x00]),
            (1, vec![0x51]),
            (2, vec![0x52]),
            (16, vec![0x60]),
            (17, vec![1, 17]),
            (127, vec![1, 127]),
            (128, vec![2, 0x80, 0]),
            (255, vec![2, 0xff, 0]),
            (256, vec![2, 0, 1]),
            (32_767, vec![2, 0xff, 0x7f]),
            (32_768, vec![3, 0, 0x80, 0]),
            (65_535, vec![3, 0xff, 0xff, 0]),
            (65_536, vec![3, 0, 0, 1]),
            (8_388_607, vec![3, 0xff, 0xff, 0x7f]),
            (8_388_608, vec![4, 0, 0, 0x80, 0]),
            (0x7fff_ffff, vec![4, 0xff, 0xff, 0xff, 0x7f]),
            (0x8000_0000, vec![5, 0, 0, 0, 0x80, 0]),
        ] {
            assert_eq!(height_script(height), expected, "height {height}");
        }
    }

    proptest! {
        #[test]
        fn heights_agree_with_an_independent_writer(height in prop_oneof![0u32..70_000, 8_388_600u32..8_388_620, any::<u32>()]) {
            let other = bitcoin::script::Builder::new().push_int(i64::from(height)).into_script();
            prop_assert_eq!(height_script(height), other.to_bytes());
        }
    }

    #[test]
    fn the_longest_tag_fills_the_script_to_exactly_100_bytes_and_one_more_is_refused() {
        for extranonce2_bytes in EXTRANONCE2_BYTES {
            let longest = longest_tag(extranonce2_bytes);
            let tag = "x".repeat(longest);
            for height in [1, 17, 128, 32_768, 900_000, 8_388_607] {
                let parts = parts(&template(height), JobId(7), &tag, extranonce2_bytes, &[0x51]).expect("fits");
                assert!(usize::from(parts.prefix[41]) <= SCRIPT_BYTES_MAX);
                if height >= 32_768 {
                    assert_eq!(usize::from(parts.prefix[41]), SCRIPT_BYTES_MAX, "height {height}");
                }
            }
            assert_eq!(
                check(&format!("{tag}x"), extranonce2_bytes, &[]),
                Err(CoinbaseError::TagTooLong { got: longest + 1, longest, extranonce2_bytes })
            );
            assert_eq!(
                parts(&template(8_388_608), JobId(7), &tag, extranonce2_bytes, &[0x51]),
                Err(CoinbaseError::ScriptTooLong { height: 8_388_608, bytes: 101 })
            );
        }
    }

    #[test]
    fn the_coinbase_reads_back_with_an_independent_decoder() {
        let job = RunId::new(3, 0xabcdef).job(9);
        for (commitment, outputs) in [(None, 1), (Some(crate::merkle::witness_commitment(&[])), 2)] {
            let template = Template { witness_commitment: commitment, ..template(900_001) };
            let parts = parts(&template, job, "/otedama/", 6, &[0x51]).expect("parts");
            let stripped = [parts.prefix.as_slice(), &[0xaa; 4], &[0xbb; 6], &parts.suffix].concat();
            let transaction: bitcoin::Transaction = bitcoin::consensus::deserialize(&stripped).expect("a transaction");
            assert!(transaction.is_coinbase());
            assert_eq!(transaction.lock_time.to_consensus_u32(), 900_000);
            assert!(transaction.is_absolute_timelock_satisfied(
                bitcoin::absolute::Height::from_consensus(900_000).expect("height"),
                bitcoin::absolute::Time::MIN
            ));
            assert_eq!(transaction.output.len(), outputs);
            assert_eq!(transaction.output[0].value.to_sat(), template.coinbase_value_sat);
            let script = transaction.input[0].script_sig.to_bytes();
            assert_eq!(script, [&[3, 0xa1, 0xbb, 0x0d, 8][..], &job.0.to_be_bytes(), &[10], &[0xaa; 4], &[0xbb; 6], b"/otedama/"].concat());
            let full: bitcoin::Transaction = bitcoin::consensus::deserialize(&with_witness(&stripped)).expect("with witness");
            assert_eq!(full.compute_txid(), transaction.compute_txid());
            assert_eq!(full.input[0].witness.to_vec(), [vec![0u8; 32]]);
        }
    }

    #[test]
    fn tags_and_sizes_that_cannot_be_served_are_refused() {
        assert_eq!(check("pööl", 8, &[]), Err(CoinbaseError::TagByte { position: 1 }));
        assert_eq!(check("", 3, &[]), Err(CoinbaseError::Extranonce2(3)));
        assert_eq!(check("", 9, &[]), Err(CoinbaseError::Extranonce2(9)));
        assert_eq!(check("", 4, &[0; 10_001]), Err(CoinbaseError::PayoutScript(10_001)));
    }
}
