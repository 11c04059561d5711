//! What getblocktemplate answers (BIP22, BIP23, BIP145), read strictly: a template that is not understood in full is refused, never guessed at.
use crate::merkle;
use otedama_primitives::{Hash256, HexError, Target, decode_hex};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Rules that a block of this pool keeps. A template that demands another one (with `!` in front) is refused: the block might be invalid.
const RULES_KNOWN: [&str; 6] = ["csv", "segwit", "taproot", "testdummy", "bip34", "bip65"];
/// 21 million coins in satoshi: no coinbase is worth more.
const VALUE_MAX_SAT: u64 = 2_100_000_000_000_000;

/// A block template. Transactions stay in the node's order and are never dropped: later ones may depend on earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Header version.
    pub version: u32,
    /// Previous block hash.
    pub prev_hash: Hash256,
    /// Height of the block to make.
    pub height: u32,
    /// Compact network target.
    pub nbits: u32,
    /// The same as a number; checked against the template's own `target`.
    pub target: Target,
    /// Smallest header time, seconds.
    pub mintime: u32,
    /// Header time the node proposes, seconds.
    pub curtime: u32,
    /// Subsidy and fees, satoshi.
    pub coinbase_value_sat: u64,
    /// Ids of the transactions without the coinbase, in block order; the leaves of the merkle tree.
    pub txids: Vec<Hash256>,
    /// Their data one after the other in lower-case hex, witnesses included, ready to be sent: a found block is neither encoded nor copied.
    pub body_hex: Arc<str>,
    /// The commitment script, when the block needs one; checked against our own computation from the `hash` fields.
    pub witness_commitment: Option<[u8; 38]>,
    /// Token for the next long poll.
    pub longpollid: Option<String>,
    /// When it arrived, microseconds since the epoch; 0 until the receiver sets it.
    pub received_us: u64,
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The answer is no JSON object.
    #[error("the template is not a JSON object")]
    NotAnObject,
    /// A field is absent.
    #[error("the template has no \"{key}\"")]
    Missing {
        /// Path of the field.
        key: String,
    },
    /// A field has another type or range.
    #[error("\"{key}\" of the template should be {expected}, it is {got}")]
    Type {
        /// Path of the field.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// The start of what came.
        got: String,
    },
    /// A field is not the hex it should be.
    #[error("\"{key}\" of the template")]
    Hex {
        /// Path of the field.
        key: String,
        /// What is wrong with it.
        #[source]
        source: HexError,
    },
    /// The template demands a rule that this pool does not know.
    #[error("the template demands the rule \"{rule}\", which this release does not know: blocks might be invalid, so none is made")]
    Rule {
        /// The rule.
        rule: String,
    },
    /// Blocks of this chain carry more than this pool puts into them.
    #[error("the template carries \"{key}\": {why}")]
    Unsupported {
        /// The field that says so.
        key: &'static str,
        /// Why it cannot be mined, and on what to point the pool instead.
        why: &'static str,
    },
    /// `bits` is no target.
    #[error("\"bits\" {nbits:08x} of the template is not a target (negative, zero or too large)")]
    Bits {
        /// The compact form.
        nbits: u32,
    },
    /// `bits` and `target` differ.
    #[error("\"target\" of the template is {target}, its \"bits\" say {bits}")]
    TargetDiffers {
        /// What `target` says.
        target: Target,
        /// What `bits` says.
        bits: Target,
    },
    /// The earliest time is after the proposed one.
    #[error("\"mintime\" {mintime} of the template is after its \"curtime\" {curtime}")]
    TimeOrder {
        /// Earliest header time.
        mintime: u32,
        /// Proposed header time.
        curtime: u32,
    },
    /// The data of a transaction does not hash to its ids.
    #[error("the data of transaction {index} of the template hashes to {own}, the template says {given}")]
    TransactionHash {
        /// Index in the list.
        index: usize,
        /// What the data hashes to.
        own: Hash256,
        /// What the template says.
        given: Hash256,
    },
    /// There are witnesses, but nothing commits to them.
    #[error(
        "transaction {index} of the template has a witness, but there is no \"default_witness_commitment\": ask the node with rules [\"segwit\"]"
    )]
    CommitmentMissing {
        /// Index of the first such transaction.
        index: usize,
    },
    /// The node's commitment is not ours.
    #[error("\"default_witness_commitment\" of the template is {given}, its transactions give {own}")]
    CommitmentDiffers {
        /// Ours, hex.
        own: String,
        /// The node's, hex.
        given: String,
    },
}

impl Template {
    /// Reads the `result` of getblocktemplate. `received_us` stays 0.
    pub fn parse(value: &Value) -> Result<Self, TemplateError> {
        let fields = value.as_object().ok_or(TemplateError::NotAnObject)?;
        check_rules(fields)?;

        let version = match integer(fields, "version", "a 32-bit number")? {
            // Core writes the version as a signed number, others as an unsigned one.
            signed @ -0x8000_0000..=-1 => signed as i32 as u32,
            unsigned @ 0..=0xffff_ffff => unsigned as u32,
            _ => return Err(wrong_type("version", "a 32-bit number", fields.get("version"))),
        };
        let prev_hash = hash(fields, "previousblockhash", "")?;
        let height = number(fields, "height", 1, u32::MAX.into(), "a height from 1 up")? as u32;
        let mintime = number(fields, "mintime", 0, u32::MAX.into(), "a time in seconds")? as u32;
        let curtime = number(fields, "curtime", 0, u32::MAX.into(), "a time in seconds")? as u32;
        if mintime > curtime {
            return Err(TemplateError::TimeOrder { mintime, curtime });
        }
        let coinbase_value_sat = number(fields, "coinbasevalue", 0, VALUE_MAX_SAT, "satoshi, at most 21 million coins")?;

        let mut bits = [0u8; 4];
        decode(text(fields, "bits", "")?, &mut bits, "bits", "")?;
        let nbits = u32::from_be_bytes(bits);
        let target = Target::from_compact(nbits).ok_or(TemplateError::Bits { nbits })?;
        if fields.contains_key("target") {
            let given = Target(hash(fields, "target", "")?.limbs());
            if given != target {
                return Err(TemplateError::TargetDiffers { target: given, bits: target });
            }
        }

        let transactions = Transactions::parse(fields)?;
        let witness_commitment = transactions.commitment(fields)?;
        let longpollid = match fields.get("longpollid") {
            None | Some(Value::Null) => None,
            Some(_) => Some(text(fields, "longpollid", "")?.to_owned()),
        };
        Ok(Self {
            version,
            prev_hash,
            height,
            nbits,
            target,
            mintime,
            curtime,
            coinbase_value_sat,
            txids: transactions.txids,
            body_hex: transactions.body_hex.into(),
            witness_commitment,
            longpollid,
            received_us: 0,
        })
    }

    /// The same template, having arrived at `us`.
    pub fn received_at(mut self, us: u64) -> Self {
        self.received_us = us;
        self
    }
}

/// The transaction list, read.
struct Transactions {
    txids: Vec<Hash256>,
    wtxids: Vec<Hash256>,
    body_hex: String,
}

impl Transactions {
    fn parse(fields: &Map<String, Value>) -> Result<Self, TemplateError> {
        let list = match fields.get("transactions") {
            Some(Value::Array(list)) => list,
            None => return Err(TemplateError::Missing { key: "transactions".into() }),
            other => return Err(wrong_type("transactions", "a list", other)),
        };
        let mut read = Self { txids: Vec::with_capacity(list.len()), wtxids: Vec::with_capacity(list.len()), body_hex: String::new() };
        let mut data = Vec::new();
        for (index, entry) in list.iter().enumerate() {
            let at = || format!("transactions[{index}].");
            let Some(entry) = entry.as_object() else {
                return Err(wrong_type(&format!("transactions[{index}]"), "an object", Some(entry)));
            };
            let data_hex = text(entry, "data", &at())?;
            data.clear();
            data.resize(data_hex.len() / 2, 0);
            decode(data_hex, &mut data, "data", &at())?;
            // Nodes before segwit send only `hash`, which then is the txid.
            let wtxid = hash(entry, "hash", &at())?;
            let txid = if entry.contains_key("txid") { hash(entry, "txid", &at())? } else { wtxid };
            let own = merkle::sha256d(&data);
            if own != wtxid {
                return Err(TemplateError::TransactionHash { index, own, given: wtxid });
            }
            // Marker and flag after the version tell a witness; without one both ids are the same.
            let has_witness = data.get(4..6) == Some(&[0, 1]);
            if has_witness == (txid == wtxid) {
                return Err(TemplateError::TransactionHash { index, own, given: txid });
            }
            read.txids.push(txid);
            read.wtxids.push(wtxid);
            read.body_hex.push_str(data_hex);
        }
        read.body_hex.make_ascii_lowercase();
        Ok(read)
    }

    fn commitment(&self, fields: &Map<String, Value>) -> Result<Option<[u8; 38]>, TemplateError> {
        const KEY: &str = "default_witness_commitment";
        if matches!(fields.get(KEY), None | Some(Value::Null)) {
            return match self.txids.iter().zip(&self.wtxids).position(|(txid, wtxid)| txid != wtxid) {
                Some(index) => Err(TemplateError::CommitmentMissing { index }),
                None => Ok(None),
            };
        }
        let mut given = [0u8; 38];
        decode(text(fields, KEY, "")?, &mut given, KEY, "")?;
        let own = merkle::witness_commitment(&self.wtxids);
        if own != given {
            let hex = otedama_primitives::encode_hex;
            return Err(TemplateError::CommitmentDiffers { own: hex(&own), given: hex(&given) });
        }
        Ok(Some(given))
    }
}

fn check_rules(fields: &Map<String, Value>) -> Result<(), TemplateError> {
    if fields.contains_key("mweb") {
        let why = "this is a Litecoin template with an extension block; this release mines Bitcoin, point [chain] rpc at a Bitcoin node";
        return Err(TemplateError::Unsupported { key: "mweb", why });
    }
    if fields.contains_key("signet_challenge") {
        let why = "blocks of a signet must be signed by its owner; mine testnet4 or regtest instead";
        return Err(TemplateError::Unsupported { key: "signet_challenge", why });
    }
    let rules = match fields.get("rules") {
        None | Some(Value::Null) => return Ok(()), // BIP22 without BIP9
        Some(Value::Array(rules)) => rules,
        other => return Err(wrong_type("rules", "a list of names", other)),
    };
    for rule in rules {
        let Value::String(rule) = rule else {
            return Err(wrong_type("rules", "a list of names", Some(rule)));
        };
        if let Some(demanded) = rule.strip_prefix('!')
            && !RULES_KNOWN.contains(&demanded)
        {
            return Err(TemplateError::Rule { rule: demanded.chars().take(64).collect() });
        }
    }
    Ok(())
}

fn wrong_type(key: &str, expected: &'static str, got: Option<&Value>) -> TemplateError {
    let got = match got {
        None => "absent".to_owned(),
        Some(Value::Array(list)) => format!("a list of {}", list.len()),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(other) => other.to_string().chars().take(80).collect(),
    };
    TemplateError::Type { key: key.to_owned(), expected, got }
}

fn field<'a>(fields: &'a Map<String, Value>, key: &str, at: &str) -> Result<&'a Value, TemplateError> {
    fields.get(key).ok_or_else(|| TemplateError::Missing { key: format!("{at}{key}") })
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str, at: &str) -> Result<&'a str, TemplateError> {
    let value = field(fields, key, at)?;
    value.as_str().ok_or_else(|| wrong_type(&format!("{at}{key}"), "a text", Some(value)))
}

fn integer(fields: &Map<String, Value>, key: &str, expected: &'static str) -> Result<i64, TemplateError> {
    let value = field(fields, key, "")?;
    value.as_i64().ok_or_else(|| wrong_type(key, expected, Some(value)))
}

fn number(fields: &Map<String, Value>, key: &str, min: u64, max: u64, expected: &'static str) -> Result<u64, TemplateError> {
    let value = field(fields, key, "")?;
    value.as_u64().filter(|n| (min..=max).contains(n)).ok_or_else(|| wrong_type(key, expected, Some(value)))
}

fn decode(hex: &str, into: &mut [u8], key: &str, at: &str) -> Result<(), TemplateError> {
    decode_hex(hex.as_bytes(), into).map_err(|source| TemplateError::Hex { key: format!("{at}{key}"), source })
}

fn hash(fields: &Map<String, Value>, key: &str, at: &str) -> Result<Hash256, TemplateError> {
    let hex = text(fields, key, at)?;
    Hash256::from_display_hex(hex).map_err(|source| TemplateError::Hex { key: format!("{at}{key}"), source })
}

#[cfg(test)]
impl Template {
    /// An empty template at an easy target.
    pub(crate) fn sample() -> Self {
        Self {
            version: 0x2000_0000,
            prev_hash: merkle::sha256d(b"parent"),
            height: 900_001,
            nbits: 0x207f_ffff,
            target: Target::from_compact(0x207f_ffff).expect("a target"),
            mintime: 1_795_217_270,
            curtime: 1_795_218_379,
            coinbase_value_sat: 312_500_000,
            txids: Vec::new(),
            body_hex: "".into(),
            witness_commitment: None,
            longpollid: None,
            received_us: 0,
        }
    }
}
