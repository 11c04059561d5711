//! The slow tier: serde_json takes what the scanner gave up, with the same meaning. Of repeated keys the last one counts. It allocates; the caller bounds how often.
use super::request::{IdToken, Method, Param, Request};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// A line that serde_json took apart; owns the texts that had escapes.
#[derive(Debug)]
pub struct SlowRequest<'a> {
    id: Option<IdToken>,
    method: Method,
    params: Vec<Element<'a>>,
    params_count: u32,
}

#[derive(Debug)]
enum Element<'a> {
    Text(String),
    Other(Param<'a>),
}

/// Takes a line apart; None when it is not one JSON object in UTF-8.
pub fn parse(line: &[u8]) -> Option<SlowRequest<'_>> {
    let text = std::str::from_utf8(line).ok()?;
    let object: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let get = |key: &str| object.get(key).map(|value| value.get());
    let id = match get("id") {
        None => Some(IdToken::NULL),
        Some(raw) => match raw.as_bytes().first() {
            // Half a surrogate pair and a number past a double pass JSON's grammar, but the miner's own parser may choke on the echo.
            Some(b'"') => serde_json::from_str::<String>(raw).ok().and_then(|_| IdToken::new(raw.as_bytes())),
            Some(b'-' | b'0'..=b'9') => serde_json::from_str::<f64>(raw).ok().and_then(|_| IdToken::new(raw.as_bytes())),
            Some(b'n') => Some(IdToken::NULL),
            _ => None,
        },
    };
    let method = match get("method") {
        None | Some("null") if get("result").is_some() || get("error").is_some() => Method::Answer,
        None => Method::Missing,
        Some(raw) => serde_json::from_str::<String>(raw).map_or(Method::Missing, |name| Method::from_name(name.as_bytes())),
    };
    let all: Vec<&RawValue> = get("params").and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    let params = all.iter().take(Request::PARAMS_MAX).map(|value| element(value.get())).collect();
    Some(SlowRequest { id, method, params, params_count: u32::try_from(all.len()).unwrap_or(u32::MAX) })
}

fn element(raw: &str) -> Element<'_> {
    let bytes = raw.as_bytes();
    Element::Other(match bytes.first() {
        Some(b'"') => match serde_json::from_str(raw) {
            Ok(text) => return Element::Text(text),
            Err(_) => Param::Nested(bytes),
        },
        Some(b'-' | b'0'..=b'9') => Param::Number(bytes),
        Some(b't') => Param::Bool(true),
        Some(b'f') => Param::Bool(false),
        Some(b'n') => Param::Null,
        _ => Param::Nested(bytes),
    })
}

impl SlowRequest<'_> {
    /// The line as the session reads it.
    pub fn request(&self) -> Request<'_> {
        let mut params = [Param::Null; Request::PARAMS_MAX];
        for (slot, element) in params.iter_mut().zip(&self.params) {
            *slot = match element {
                Element::Text(text) => Param::Text(text.as_bytes()),
                Element::Other(param) => *param,
            };
        }
        Request { id: self.id, method: self.method, params, params_count: self.params_count }
    }
}
