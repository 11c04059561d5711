//! Lines from the server: answers and notifications.
use otedama_primitives::ShareStatus;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Any line from the server.
#[derive(Deserialize, Debug)]
pub struct Message<'a> {
    /// Raw token of the id; None when absent or null.
    #[serde(borrow, default)]
    pub id: Option<&'a RawValue>,
    /// Present in requests and notifications alone.
    #[serde(borrow, default)]
    pub method: Option<Cow<'a, str>>,
    /// Raw parameters.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    /// Raw result; None when absent or null.
    #[serde(borrow, default)]
    pub result: Option<&'a RawValue>,
    /// Raw error; None when absent or null.
    #[serde(borrow, default)]
    pub error: Option<&'a RawValue>,
}

/// What the server said to a submit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The cause, where code and text name one.
    pub status: Option<ShareStatus>,
    /// Wire code; 0 for accepted and for a refusal that names none.
    pub code: i64,
}

impl Verdict {
    /// Accepted.
    pub const ACCEPTED: Self = Self { status: Some(ShareStatus::Accepted), code: 0 };
}

#[derive(Deserialize)]
struct ErrorList<'a>(i64, #[serde(borrow, default)] Cow<'a, str>, #[serde(default)] IgnoredAny);

#[derive(Deserialize)]
struct ErrorObject<'a> {
    code: i64,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

/// The error's code and text; lists and objects are both in use. Code 0 for a shape that is neither.
pub fn error_of(error: &RawValue) -> (i64, Cow<'_, str>) {
    if let Ok(ErrorList(code, text, _)) = serde_json::from_str::<ErrorList<'_>>(error.get()) {
        return (code, text);
    }
    match serde_json::from_str::<ErrorObject<'_>>(error.get()) {
        Ok(ErrorObject { code, message }) => (code, message),
        Err(_) => (0, Cow::Borrowed(error.get())),
    }
}

impl Message<'_> {
    /// Reads the line as the answer to a submit: `result` true without an error, or an error beside null or false.
    pub fn verdict(&self) -> Verdict {
        let result = self.result.map(RawValue::get);
        match self.error {
            None if result == Some("true") => Verdict::ACCEPTED,
            None => Verdict { status: None, code: 0 },
            Some(_) if result == Some("true") => Verdict { status: None, code: 0 },
            Some(error) => {
                let (code, text) = error_of(error);
                Verdict { status: cause(code, &text), code }
            }
        }
    }

    /// The id as a number, quoted or not.
    pub fn id_number(&self) -> Option<u64> {
        let text = self.id?.get();
        text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text).parse().ok()
    }
}

/// The cause that a code names; code 20 names it in the text before the first colon.
fn cause(code: i64, text: &str) -> Option<ShareStatus> {
    match code {
        20 => {
            let label = text.split(':').next().unwrap_or_default().trim();
            ShareStatus::from_label(label).filter(|status| status.wire_code() == 20)
        }
        21 => Some(ShareStatus::Stale),
        22 => Some(ShareStatus::Duplicate),
        23 => Some(ShareStatus::LowDifficulty),
        24 => Some(ShareStatus::Unauthorized),
        _ => None,
    }
}

/// How this server writes "accepted": the bytes before and after the id, learned from its first such answer.
#[derive(Clone, Debug, Default)]
pub struct AcceptedShape {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl AcceptedShape {
    /// Learns from a line that was read as accepted. Does nothing when the id does not stand at the front.
    pub fn learn(&mut self, line: &[u8]) {
        let start = line.iter().position(u8::is_ascii_digit).unwrap_or(line.len());
        let digits = line[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || !matches!(&line[..start], br#"{"id":"# | br#"{"id": "# | br#"{"id":""# | br#"{"id": ""#) {
            return;
        }
        self.before = line[..start].to_vec();
        self.after = line[start + digits..].to_vec();
        self.after.push(b'\n');
    }

    /// Bytes of the accepted answer to `id` at the front of `data`, newline included; None when it is anything else.
    #[inline]
    pub fn matches(&self, data: &[u8], id: u64) -> Option<usize> {
        if self.after.is_empty() || !data.starts_with(&self.before) {
            return None;
        }
        let digits = &data[self.before.len()..];
        let mut value = 0u64;
        let mut count = 0;
        while let Some(digit) = digits.get(count).map(|byte| byte.wrapping_sub(b'0')).filter(|&digit| digit < 10) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            count += 1;
        }
        (count > 0 && count < 20 && value == id && digits[count..].starts_with(&self.after))
            .then(|| self.before.len() + count + self.after.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(line: &str) -> Verdict {
        serde_json::from_str::<Message<'_>>(line).expect("json").verdict()
    }

    #[test]
    fn every_status_is_read_back_from_its_wire_form() {
        for status in ShareStatus::ALL.into_iter().skip(1) {
            for result in ["null", "false"] {
                let line = format!(r#"{{"id":1,"result":{result},"error":[{},"{}",null]}}"#, status.wire_code(), status.wire_text());
                assert_eq!(verdict(&line), Verdict { status: Some(status), code: i64::from(status.wire_code()) }, "{line}");
            }
        }
        assert_eq!(verdict(r#"{"id":1,"result":true,"error":null}"#), Verdict::ACCEPTED);
        assert_eq!(verdict(r#"{"id":1,"result":true}"#), Verdict::ACCEPTED);
    }

    #[test]
    fn answers_that_contradict_themselves_name_no_cause() {
        assert_eq!(verdict(r#"{"id":1,"result":true,"error":[23,"low",null]}"#), Verdict { status: None, code: 0 });
        assert_eq!(verdict(r#"{"id":1,"result":null,"error":null}"#), Verdict { status: None, code: 0 });
        assert_eq!(verdict(r#"{"id":1,"result":null,"error":[20,"stale: no",null]}"#), Verdict { status: None, code: 20 });
        assert_eq!(verdict(r#"{"id":1,"result":null,"error":{"code":25,"message":"not subscribed"}}"#), Verdict { status: None, code: 25 });
        assert_eq!(verdict(r#"{"id":1,"result":null,"error":"no"}"#), Verdict { status: None, code: 0 });
    }

    #[test]
    fn the_learned_shape_takes_the_right_id_and_nothing_else() {
        let mut shape = AcceptedShape::default();
        assert_eq!(shape.matches(b"{\"id\":7,\"result\":true,\"error\":null}\n", 7), None, "nothing learned yet");
        shape.learn(br#"{"id":7,"result":true,"error":null}"#);
        let next = b"{\"id\":123,\"result\":true,\"error\":null}\n{";
        assert_eq!(shape.matches(next, 123), Some(next.len() - 1));
        assert_eq!(shape.matches(next, 12), None);
        assert_eq!(shape.matches(&next[..20], 123), None);
        assert_eq!(shape.matches(b"{\"id\":,\"result\":true,\"error\":null}\n", 0), None);
        let mut other = AcceptedShape::default();
        other.learn(br#"{"result":true,"id":7}"#);
        assert_eq!(other.matches(b"{\"result\":true,\"id\":7}\n", 7), None, "unusual shapes stay on the slow path");
    }
}
