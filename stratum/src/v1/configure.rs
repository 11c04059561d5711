//! mining.configure: which extensions of BIP 310 a miner gets.
use super::Settings;
use super::claim::word_of_hex;
use super::request::Param;
use otedama_primitives::Difficulty;
use serde_json::{Map, Value};

/// What was granted.
#[derive(Debug)]
pub(crate) struct Granted {
    /// The answer's result, as JSON text.
    pub result: Vec<u8>,
    /// The bits that the miner may roll, when it asked for version-rolling.
    pub version_mask: Option<u32>,
    /// The least difficulty that it wants.
    pub difficulty_min: Option<Difficulty>,
}

/// Answers each extension that is asked for. None when the params have another shape than BIP 310's.
pub(crate) fn negotiate(extensions: &Param<'_>, options: &Param<'_>, settings: &Settings) -> Option<Granted> {
    let Param::Nested(extensions) = *extensions else { return None };
    let extensions: Vec<String> = serde_json::from_slice(extensions).ok()?;
    let options: Map<String, Value> = match *options {
        Param::Nested(raw) => serde_json::from_slice(raw).ok()?,
        Param::Null => Map::new(),
        _ => return None,
    };
    let mut granted = Granted { result: Vec::new(), version_mask: None, difficulty_min: None };
    let mut result = Map::new();
    for extension in extensions {
        let answer = match extension.as_str() {
            "version-rolling" => {
                // The mask defaults to all bits. Fewer bits than version-rolling.min-bit-count are still granted: the miner may go on with less (BIP 310).
                let wanted = match options.get("version-rolling.mask") {
                    None => Some(u32::MAX),
                    Some(mask) => mask.as_str().and_then(|text| word_of_hex(text.as_bytes())),
                };
                match wanted.map(|mask| mask & settings.version_mask) {
                    Some(mask) if mask != 0 => {
                        granted.version_mask = Some(mask);
                        result.insert("version-rolling.mask".into(), format!("{mask:08x}").into());
                        Value::Bool(true)
                    }
                    Some(_) => {
                        granted.version_mask = Some(0);
                        Value::Bool(false)
                    }
                    None => Value::from("version-rolling.mask must be a string of hex digits"),
                }
            }
            "minimum-difficulty" => match options.get("minimum-difficulty.value").and_then(Value::as_f64) {
                Some(value) if value >= 0.0 => {
                    granted.difficulty_min = Some(Difficulty::clamped(value.min(settings.difficulty_max.get())));
                    Value::Bool(true)
                }
                _ => Value::from("minimum-difficulty.value must be a number from 0 up"),
            },
            // The extranonce of a session never changes; info is taken note of.
            "subscribe-extranonce" | "info" => Value::Bool(true),
            _ => Value::Bool(false),
        };
        result.insert(extension, answer);
    }
    granted.result = serde_json::to_vec(&Value::Object(result)).ok()?;
    Some(granted)
}
