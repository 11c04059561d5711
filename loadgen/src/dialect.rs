//! How miners write a submit: key order, blanks, ids, number of parameters. Shapes as read in the sources of the miners they are named after.
use clap::ValueEnum;

/// A way to write submits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Style {
    /// ESP-Miner, Bitaxe: compact, id first, six parameters, rolls the version.
    EspMiner,
    /// cgminer: params first, blanks, five parameters.
    Cgminer,
    /// cpuminer: method first, the id of every submit is 4, five parameters.
    Cpuminer,
    /// NerdMiner: id first, nonce without leading zeros, five parameters.
    Nerdminer,
    /// ASIC firmware: params first, the id is a string, six parameters, rolls the version.
    Firmware,
    /// ESP32 and older ESP-Miner forks: id first with blanks, five parameters.
    Esp32,
    /// The dialects of ASIC machines in turn: firmware, cgminer, esp-miner.
    Asic,
    /// Connection n writes in the n-th style, round and round.
    Mixed,
}

impl Style {
    /// Every style that is one dialect.
    pub const DIALECTS: [Self; 6] = [Self::EspMiner, Self::Cgminer, Self::Cpuminer, Self::Nerdminer, Self::Firmware, Self::Esp32];

    /// The dialect of a connection, as an index into `DIALECTS`.
    pub fn dialect_index(self, connection: usize) -> usize {
        match self {
            Self::Mixed => connection % Self::DIALECTS.len(),
            Self::Asic => [Self::Firmware, Self::Cgminer, Self::EspMiner][connection % 3].dialect_index(connection),
            style => Self::DIALECTS.iter().position(|&dialect| dialect == style).unwrap_or(0),
        }
    }

    /// Key in the command line and in the reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::EspMiner => "esp-miner",
            Self::Cgminer => "cgminer",
            Self::Cpuminer => "cpuminer",
            Self::Nerdminer => "nerdminer",
            Self::Firmware => "firmware",
            Self::Esp32 => "esp32",
            Self::Asic => "asic",
            Self::Mixed => "mixed",
        }
    }
}

/// The constant pieces of a submit line. Shape: `before_id ID` first or last by `id_first`; `open W separator J ... close`, strings quoted inside of the pieces.
#[derive(Debug)]
pub struct Dialect {
    id_first: bool,
    /// Up to the id, or nothing when the parameters lead.
    before: &'static str,
    /// From there to the opening bracket of the parameters.
    open: &'static str,
    separator: &'static str,
    /// From the closing bracket to the end, or to the id when it comes last.
    close: &'static str,
    /// After an id that comes last.
    after: &'static str,
    /// Sends a sixth parameter and negotiates version rolling.
    pub rolls_version: bool,
    /// Writes nonces without leading zeros.
    short_nonce: bool,
    /// The id of every submit, where it does not count.
    pub fixed_id: Option<u64>,
    /// The id is a JSON string.
    pub string_id: bool,
}

/// The dialects, in the order of `Style::DIALECTS`.
pub static DIALECTS: [Dialect; 6] = [
    Dialect {
        id_first: true,
        before: r#"{"id":"#,
        open: r#","method":"mining.submit","params":["#,
        separator: ",",
        close: "]}\n",
        after: "",
        rolls_version: true,
        short_nonce: false,
        fixed_id: None,
        string_id: false,
    },
    Dialect {
        id_first: false,
        before: "",
        open: r#"{"params": ["#,
        separator: ", ",
        close: r#"], "id": "#,
        after: ", \"method\": \"mining.submit\"}\n",
        rolls_version: false,
        short_nonce: false,
        fixed_id: None,
        string_id: false,
    },
    Dialect {
        id_first: false,
        before: "",
        open: r#"{"method": "mining.submit", "params": ["#,
        separator: ", ",
        close: r#"], "id":"#,
        after: "}\n",
        rolls_version: false,
        short_nonce: false,
        fixed_id: Some(4),
        string_id: false,
    },
    Dialect {
        id_first: true,
        before: r#"{"id": "#,
        open: r#", "method": "mining.submit", "params": ["#,
        separator: ",",
        close: "]}\n",
        after: "",
        rolls_version: false,
        short_nonce: true,
        fixed_id: None,
        string_id: false,
    },
    Dialect {
        id_first: false,
        before: "",
        open: r#"{"params": ["#,
        separator: ", ",
        close: r#"], "id": ""#,
        after: "\", \"method\": \"mining.submit\"}\n",
        rolls_version: true,
        short_nonce: false,
        fixed_id: None,
        string_id: true,
    },
    Dialect {
        id_first: true,
        before: r#"{"id": "#,
        open: r#", "method": "mining.submit", "params": ["#,
        separator: ", ",
        close: "]}\n",
        after: "",
        rolls_version: false,
        short_nonce: false,
        fixed_id: None,
        string_id: false,
    },
];

/// What is wrong with a line on purpose; the rest of the line is a share that would be accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Nothing.
    None,
    /// Upper-case hex in every field but the job.
    UpperCase,
    /// A byte next to the hex digits in extranonce2.
    HexExtranonce2,
    /// The same in ntime.
    HexNtime,
    /// The same in the nonce.
    HexNonce,
    /// The same in the version bits.
    HexVersion,
    /// Extranonce2 one byte short.
    ShortExtranonce2,
    /// Extranonce2 one byte long.
    LongExtranonce2,
    /// Worker is a number.
    TypeWorker,
    /// Job is null.
    TypeJob,
    /// Extranonce2 is a number.
    TypeExtranonce2,
    /// ntime is a list.
    TypeNtime,
    /// Nonce is a number.
    TypeNonce,
    /// Only worker, job and extranonce2.
    MissingParams,
    /// No parameter at all.
    NoParams,
}

/// The fields of one submit, as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// Request id.
    pub id: u64,
    /// Worker name.
    pub worker: &'a str,
    /// Job as the server named it, or another text.
    pub job: &'a str,
    /// Right-aligned in `extranonce2_bytes`.
    pub extranonce2: u64,
    /// Bytes of extranonce2 on this session.
    pub extranonce2_bytes: usize,
    /// Header time.
    pub ntime: u32,
    /// Header nonce.
    pub nonce: u32,
    /// Version bits; None sends five parameters.
    pub version_bits: Option<u32>,
}

const HEX_LOWER: [[u8; 2]; 256] = hex_pairs(b"0123456789abcdef");

const fn hex_pairs(digits: &[u8; 16]) -> [[u8; 2]; 256] {
    let mut pairs = [[0u8; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
}

/// Appends 8 lower-case hex digits.
#[inline]
pub fn put_hex32(out: &mut Vec<u8>, value: u32) {
    let mut text = [0u8; 8];
    for (pair, byte) in text.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        pair.copy_from_slice(&HEX_LOWER[usize::from(byte)]);
    }
    out.extend_from_slice(&text);
}

/// Appends the lowest `bytes` bytes of `value` as lower-case hex; above 8 bytes zeros lead.
#[inline]
pub fn put_hex_tail(out: &mut Vec<u8>, value: u64, bytes: usize) {
    let mut text = [0u8; 16];
    for (pair, byte) in text.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        pair.copy_from_slice(&HEX_LOWER[usize::from(byte)]);
    }
    for _ in 8..bytes {
        out.extend_from_slice(b"00");
    }
    out.extend_from_slice(&text[16 - 2 * bytes.min(8)..]);
}

/// Appends a decimal number.
#[inline]
pub fn put_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut text = [0u8; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

impl Dialect {
    /// Appends one submit line with its newline. A flaw in a field that this dialect does not send leaves the line as it is.
    pub fn submit(&self, out: &mut Vec<u8>, fields: &Fields<'_>, flaw: Flaw) {
        if self.id_first {
            out.extend_from_slice(self.before.as_bytes());
            put_decimal(out, fields.id);
        }
        out.extend_from_slice(self.open.as_bytes());
        if flaw == Flaw::None {
            self.params(out, fields)
        } else {
            self.flawed_params(out, fields, flaw)
        }
        out.extend_from_slice(self.close.as_bytes());
        if !self.id_first {
            put_decimal(out, fields.id);
            out.extend_from_slice(self.after.as_bytes());
        }
    }

    fn params(&self, out: &mut Vec<u8>, fields: &Fields<'_>) {
        let separator = self.separator.as_bytes();
        out.push(b'"');
        out.extend_from_slice(fields.worker.as_bytes());
        out.push(b'"');
        out.extend_from_slice(separator);
        out.push(b'"');
        out.extend_from_slice(fields.job.as_bytes());
        out.push(b'"');
        out.extend_from_slice(separator);
        out.push(b'"');
        put_hex_tail(out, fields.extranonce2, fields.extranonce2_bytes);
        out.push(b'"');
        out.extend_from_slice(separator);
        out.push(b'"');
        put_hex32(out, fields.ntime);
        out.push(b'"');
        out.extend_from_slice(separator);
        out.push(b'"');
        self.put_nonce(out, fields.nonce);
        out.push(b'"');
        if let Some(bits) = fields.version_bits {
            out.extend_from_slice(separator);
            out.push(b'"');
            put_hex32(out, bits);
            out.push(b'"');
        }
    }

    fn put_nonce(&self, out: &mut Vec<u8>, nonce: u32) {
        let start = out.len();
        put_hex32(out, nonce);
        if self.short_nonce {
            let zeros = out[start..].iter().take(7).take_while(|&&digit| digit == b'0').count();
            out.drain(start..start + zeros);
        }
    }

    fn flawed_params(&self, out: &mut Vec<u8>, fields: &Fields<'_>, flaw: Flaw) {
        let quoted = |text: &str| format!("\"{text}\"");
        let hex = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut text = Vec::new();
            put(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        };
        // The neighbours of the hex digits in ASCII, and a digit in fullwidth form: what sloppy decoders take.
        let bad = |text: String| {
            let stranger = ['g', 'G', '/', ':', '@', '`', 'z', ' '][(fields.id % 8) as usize];
            let at = (fields.id / 8) as usize % text.len().max(1);
            text.char_indices().map(|(index, digit)| if index == at { stranger } else { digit }).collect::<String>()
        };
        let case = |text: String| if flaw == Flaw::UpperCase { text.to_ascii_uppercase() } else { text };
        let extranonce2 = hex(&|out| put_hex_tail(out, fields.extranonce2, fields.extranonce2_bytes));
        let ntime = hex(&|out| put_hex32(out, fields.ntime));
        let nonce = hex(&|out| self.put_nonce(out, fields.nonce));
        let mut params = vec![
            if flaw == Flaw::TypeWorker { "7".into() } else { quoted(fields.worker) },
            if flaw == Flaw::TypeJob { "null".into() } else { quoted(fields.job) },
            match flaw {
                Flaw::HexExtranonce2 => quoted(&bad(extranonce2)),
                Flaw::ShortExtranonce2 => quoted(&extranonce2[2..]),
                Flaw::LongExtranonce2 => quoted(&format!("{extranonce2}00")),
                Flaw::TypeExtranonce2 => "12345678".into(),
                _ => quoted(&case(extranonce2)),
            },
            match flaw {
                Flaw::HexNtime => quoted(&bad(ntime)),
                Flaw::TypeNtime => "[]".into(),
                _ => quoted(&case(ntime)),
            },
            match flaw {
                Flaw::HexNonce => quoted(&bad(nonce)),
                Flaw::TypeNonce => "1".into(),
                _ => quoted(&case(nonce)),
            },
        ];
        if let Some(bits) = fields.version_bits {
            let bits = hex(&|out| put_hex32(out, bits));
            params.push(quoted(&if flaw == Flaw::HexVersion { bad(bits) } else { case(bits) }));
        }
        match flaw {
            Flaw::MissingParams => params.truncate(3),
            Flaw::NoParams => params.clear(),
            _ => {}
        }
        out.extend_from_slice(params.join(self.separator).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields<'static> {
        Fields {
            id: 17,
            worker: "a.b",
            job: "0000beef",
            extranonce2: 0x01ab,
            extranonce2_bytes: 4,
            ntime: 0x6b00_dbcb,
            nonce: 0x0001_87d2,
            version_bits: Some(0x1fff_e000),
        }
    }

    fn line(index: usize, fields: &Fields<'_>, flaw: Flaw) -> String {
        let mut out = Vec::new();
        DIALECTS[index].submit(&mut out, fields, flaw);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_are_what_the_miners_write() {
        let five = Fields { version_bits: None, ..fields() };
        assert_eq!(
            line(0, &fields(), Flaw::None),
            "{\"id\":17,\"method\":\"mining.submit\",\"params\":[\"a.b\",\"0000beef\",\"000001ab\",\"6b00dbcb\",\"000187d2\",\"1fffe000\"]}\n"
        );
        assert_eq!(
            line(1, &five, Flaw::None),
            "{\"params\": [\"a.b\", \"0000beef\", \"000001ab\", \"6b00dbcb\", \"000187d2\"], \"id\": 17, \"method\": \"mining.submit\"}\n"
        );
        assert_eq!(
            line(2, &Fields { id: 4, ..five }, Flaw::None),
            "{\"method\": \"mining.submit\", \"params\": [\"a.b\", \"0000beef\", \"000001ab\", \"6b00dbcb\", \"000187d2\"], \"id\":4}\n"
        );
        assert_eq!(
            line(3, &five, Flaw::None),
            "{\"id\": 17, \"method\": \"mining.submit\", \"params\": [\"a.b\",\"0000beef\",\"000001ab\",\"6b00dbcb\",\"187d2\"]}\n"
        );
        assert_eq!(
            line(4, &fields(), Flaw::None),
            "{\"params\": [\"a.b\", \"0000beef\", \"000001ab\", \"6b00dbcb\", \"000187d2\", \"1fffe000\"], \"id\": \"17\", \"method\": \"mining.submit\"}\n"
        );
    }

    #[test]
    fn every_style_has_a_dialect_for_every_connection() {
        for style in <Style as ValueEnum>::value_variants() {
            assert!((0..20).all(|connection| style.dialect_index(connection) < DIALECTS.len()));
        }
        assert_eq!((0..4).map(|connection| Style::Asic.dialect_index(connection)).collect::<Vec<_>>(), [4, 1, 0, 4]);
    }

    #[test]
    fn a_zero_nonce_keeps_one_digit_and_long_extranonces_lead_with_zeros() {
        let zero = Fields { nonce: 0, version_bits: None, extranonce2_bytes: 10, ..fields() };
        assert!(line(3, &zero, Flaw::None).contains(r#""000000000000000001ab","6b00dbcb","0"]"#), "{}", line(3, &zero, Flaw::None));
    }

    #[test]
    fn every_flaw_leaves_valid_json_that_differs_from_the_good_line() {
        let flaws = [
            Flaw::UpperCase,
            Flaw::HexExtranonce2,
            Flaw::HexNtime,
            Flaw::HexNonce,
            Flaw::HexVersion,
            Flaw::ShortExtranonce2,
            Flaw::LongExtranonce2,
            Flaw::TypeWorker,
            Flaw::TypeJob,
            Flaw::TypeExtranonce2,
            Flaw::TypeNtime,
            Flaw::TypeNonce,
            Flaw::MissingParams,
            Flaw::NoParams,
        ];
        for index in [0, 4] {
            for flaw in flaws {
                let text = line(index, &fields(), flaw);
                assert_ne!(text, line(index, &fields(), Flaw::None), "{flaw:?}");
                serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{flaw:?}: {error}: {text}"));
            }
        }
    }
}
