//! One line of a miner, taken apart: what both scanner tiers hand to the session.

/// The id of a request as it stood on the wire, byte for byte: a JSON number, string or null of at most 16 bytes.
///
/// A longer id, or one of another type, is refused as malformed and answered with id null: it could not be echoed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdToken {
    bytes: [u8; IdToken::BYTES_MAX],
    len: u8,
}

impl IdToken {
    /// Longest id in bytes, quotes included.
    pub const BYTES_MAX: usize = 16;
    /// The id of notifications, and of answers to what has no usable id.
    pub const NULL: Self = Self { bytes: *b"null\0\0\0\0\0\0\0\0\0\0\0\0", len: 4 };

    /// Keeps `raw`, the text of a JSON number, string or null; None when it is longer than 16 bytes.
    pub fn new(raw: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::BYTES_MAX];
        bytes.get_mut(..raw.len())?.copy_from_slice(raw);
        Some(Self { bytes, len: raw.len() as u8 })
    }

    /// The 1 to 16 digits of `text` from `at` on, none of them a leading zero. What ends them is for the caller to look at; a 17th digit would.
    #[inline(always)]
    pub(super) fn of_digits(text: &[u8], at: usize) -> Option<Self> {
        // Nearly every id has fewer than eight digits: one register is enough.
        let rest = text.get(at..)?;
        let word = match (rest.first_chunk::<8>(), text.last_chunk::<8>()) {
            (Some(eight), _) => u64::from_le_bytes(*eight),
            // Zeros behind the end are no digits. A shift by all bits would be by none, but then nothing is left to read.
            (None, Some(last)) => u64::from_le_bytes(*last).checked_shr(64 - 8 * rest.len() as u32)?,
            (None, None) => return Self::of_many_digits(rest),
        };
        let others = others(u128::from(word)) as u64;
        if others == 0 {
            return Self::of_many_digits(rest);
        }
        let len = others.trailing_zeros() / 8;
        Self::of_word(u128::from(word & ((1 << (8 * len)) - 1)), len)
    }

    #[inline(never)]
    fn of_many_digits(text: &[u8]) -> Option<Self> {
        let mut chunk = [0; Self::BYTES_MAX];
        match text.first_chunk() {
            Some(whole) => chunk = *whole,
            None => chunk[..text.len()].copy_from_slice(text),
        }
        let word = u128::from_le_bytes(chunk);
        let len = others(word).trailing_zeros() / 8;
        Self::of_word(if len == 16 { word } else { word & ((1 << (8 * len)) - 1) }, len)
    }

    /// Digits that lie in the lower `len` bytes of a word of little-endian order.
    #[inline(always)]
    fn of_word(word: u128, len: u32) -> Option<Self> {
        if len == 0 || (len > 1 && word as u8 == b'0') {
            return None;
        }
        Some(Self { bytes: word.to_le_bytes(), len: len as u8 })
    }

    /// The text to echo.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Bit 7 of each byte of `word` that is no digit. Sums carry out of bytes past ASCII only, upwards: the lowest mark is true, and only that one is to be used.
#[inline(always)]
fn others(word: u128) -> u128 {
    const EACH: u128 = u128::MAX / 0xff;
    let values = word ^ (EACH * b'0' as u128);
    (values.wrapping_add(EACH * (0x80 - 10)) | values) & (EACH * 0x80)
}

impl std::fmt::Debug for IdToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdToken({})", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// What a line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// `mining.subscribe`.
    Subscribe,
    /// `mining.authorize`.
    Authorize,
    /// `mining.configure` (BIP 310).
    Configure,
    /// `mining.suggest_difficulty`.
    SuggestDifficulty,
    /// `mining.suggest_target`.
    SuggestTarget,
    /// `mining.extranonce.subscribe`.
    ExtranonceSubscribe,
    /// `mining.submit`.
    Submit,
    /// `mining.ping`.
    Ping,
    /// `mining.get_transactions`.
    GetTransactions,
    /// Another method.
    Unknown,
    /// No method but a result or an error: the miner's answer to something.
    Answer,
    /// Neither: no Stratum at all.
    Missing,
}

impl Method {
    /// The method of this name.
    #[inline]
    pub fn from_name(name: &[u8]) -> Self {
        match name {
            b"mining.submit" => Self::Submit,
            b"mining.subscribe" => Self::Subscribe,
            b"mining.authorize" => Self::Authorize,
            b"mining.configure" => Self::Configure,
            b"mining.suggest_difficulty" => Self::SuggestDifficulty,
            b"mining.suggest_target" => Self::SuggestTarget,
            b"mining.extranonce.subscribe" => Self::ExtranonceSubscribe,
            b"mining.ping" => Self::Ping,
            b"mining.get_transactions" => Self::GetTransactions,
            _ => Self::Unknown,
        }
    }
}

/// One element of `params`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Param<'a> {
    /// A string, unescaped.
    Text(&'a [u8]),
    /// A number, as its JSON text.
    Number(&'a [u8]),
    /// true or false.
    Bool(bool),
    /// null, and every element that did not come.
    Null,
    /// An array or an object as its JSON text; also a string that no Unicode text stands behind (half a surrogate pair).
    Nested(&'a [u8]),
}

/// A line as both scanner tiers hand it to the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// The id; `IdToken::NULL` when there is none, None when it cannot be echoed (over 16 bytes, or no number, string or null).
    pub id: Option<IdToken>,
    /// What it asks for.
    pub method: Method,
    /// The first elements of params; Null past `params_count`.
    pub params: [Param<'a>; Request::PARAMS_MAX],
    /// Elements that params has; 0 when it is missing or no array.
    pub params_count: u32,
}

impl Request<'_> {
    /// Elements of params that are kept; the others are counted.
    pub const PARAMS_MAX: usize = 8;
}
