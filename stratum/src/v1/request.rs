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

    /// The text to echo.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for IdToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdToken({})", String::from_utf8_lossy(self.as_bytes()))
    }
}
