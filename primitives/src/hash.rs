//! 256-bit hashes and hex.
use bytemuck::{Pod, Zeroable};
use std::fmt;
use wide::{i8x16, i16x8, u8x16, u16x8};

/// A SHA-256d hash in internal byte order: the bytes as SHA-256 puts them out and as they lie in a header. `Display` prints them reversed, as explorers and RPCs do.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Hash256(pub [u8; 32]);

impl Hash256 {
    /// Parses the display form: 64 hex digits, most significant byte first.
    pub fn from_display_hex(text: &str) -> Result<Self, HexError> {
        let mut bytes = [0u8; 32];
        decode_hex(text.as_bytes(), &mut bytes)?;
        bytes.reverse();
        Ok(Self(bytes))
    }

    /// Parses 64 hex digits in internal byte order, as the vectors' `*_internal` fields have them.
    pub fn from_internal_hex(text: &str) -> Result<Self, HexError> {
        let mut bytes = [0u8; 32];
        decode_hex(text.as_bytes(), &mut bytes)?;
        Ok(Self(bytes))
    }

    /// The most significant 64 bits of the hash as a number: header hashes compare as little-endian numbers.
    pub fn top64(&self) -> u64 {
        u64::from_le_bytes([self.0[24], self.0[25], self.0[26], self.0[27], self.0[28], self.0[29], self.0[30], self.0[31]])
    }

    /// Limbs of the hash as a number, least significant first.
    pub fn limbs(&self) -> [u64; 4] {
        let mut limbs = [0u64; 4];
        for (limb, chunk) in limbs.iter_mut().zip(self.0.chunks_exact(8)) {
            let mut eight = [0u8; 8];
            eight.copy_from_slice(chunk);
            *limb = u64::from_le_bytes(eight);
        }
        limbs
    }
}

impl fmt::Display for Hash256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash256({self})")
    }
}

/// Why a hex text was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// The text does not have two digits per byte of the destination.
    #[error("expected {expected} hex digits, got {got}")]
    Length {
        /// Digits that the destination needs.
        expected: usize,
        /// Digits that came.
        got: usize,
    },
    /// A byte that is no hex digit.
    #[error("byte {position} is not a hex digit")]
    Digit {
        /// Index of the offending byte.
        position: usize,
    },
}

const BAD: u8 = 0xff;
const NIBBLE: [u8; 256] = {
    let mut table = [BAD; 256];
    let mut digit = 0;
    while digit < 10 {
        table[b'0' as usize + digit] = digit as u8;
        digit += 1;
    }
    let mut letter = 0;
    while letter < 6 {
        table[b'a' as usize + letter] = 10 + letter as u8;
        table[b'A' as usize + letter] = 10 + letter as u8;
        letter += 1;
    }
    table
};

/// Decodes exactly `into.len()` bytes from twice as many hex digits of either case; strict, no prefix, no blanks.
#[inline]
pub fn decode_hex(text: &[u8], into: &mut [u8]) -> Result<(), HexError> {
    if text.len() != into.len() * 2 {
        return Err(HexError::Length { expected: into.len() * 2, got: text.len() });
    }
    let mut seen = 0u8;
    for (byte, pair) in into.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (NIBBLE[pair[0] as usize], NIBBLE[pair[1] as usize]);
        seen |= high | low;
        *byte = (high << 4) | (low & 0x0f);
    }
    if seen & 0xf0 != 0 {
        let position = text.iter().position(|&byte| NIBBLE[byte as usize] == BAD).unwrap_or(0);
        return Err(HexError::Digit { position });
    }
    Ok(())
}

const EACH: u64 = 0x0101_0101_0101_0101;

/// Eight hex digits of either case as a number, most significant first, and whether all eight are digits; without that the number means nothing.
///
/// All digits at once in one register: what the share path decodes is nearly always eight or sixteen digits long.
#[inline(always)]
pub const fn hex_word(digits: [u8; 8]) -> (u32, bool) {
    let text = u64::from_le_bytes(digits);
    // No addition below carries into the next byte: bytes past ASCII lose their high bit here and are refused at the end.
    let ascii = text & (EACH * 0x7f);
    // Bit 7 of each byte of `a + (0x80 - b)` says that a is at least b.
    let digit = (ascii + EACH * (0x80 - b'0' as u64)) & !(ascii + EACH * (0x80 - b'9' as u64 - 1));
    let lower = ascii | (EACH * 0x20);
    let letter = (lower + EACH * (0x80 - b'a' as u64)) & !(lower + EACH * (0x80 - b'f' as u64 - 1));
    let valid = (digit | letter) & !text & (EACH * 0x80) == EACH * 0x80;
    // Letters have bit 6, digits have not: 'a' is 0x61 and stands for 9 + 1.
    let nibbles = (text & (EACH * 0x0f)) + ((text >> 6) & EACH) * 9;
    let bytes = ((nibbles << 4) | (nibbles >> 8)) & 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes | (bytes >> 8)) & 0x0000_ffff_0000_ffff;
    (((pairs | (pairs >> 16)) as u32).swap_bytes(), valid)
}

/// Sixteen hex digits of either case as a number, most significant first, and whether all sixteen are digits; without that the number means nothing.
///
/// Two header words at once, or an extranonce2 of eight bytes, in one register where the processor has such (on x86-64 always).
#[inline(always)]
pub fn hex_long(digits: [u8; 16]) -> (u64, bool) {
    let text: i8x16 = bytemuck::cast(digits);
    let each = |byte: u8| i8x16::splat(byte.cast_signed());
    // Bytes past ASCII are negative, and so neither digit nor letter.
    let digit = text.simd_gt(each(b'0' - 1)) & each(b'9' + 1).simd_gt(text);
    let lower = text | each(0x20);
    let letter = lower.simd_gt(each(b'a' - 1)) & each(b'f' + 1).simd_gt(lower);
    // 'a' is 0x61 and stands for 9 + 1.
    let nibbles: u16x8 = bytemuck::cast((text & each(0x0f)) + (letter & each(9)));
    // Of a pair the first, in the lower byte of a little-endian lane, is the upper half of what they stand for.
    let bytes: i16x8 = bytemuck::cast(((nibbles << 4_u32) | (nibbles >> 8_u32)) & u16x8::splat(0xff));
    let [number, _]: [u64; 2] = bytemuck::cast(u8x16::narrow_i16x8(bytes, bytes));
    (number.swap_bytes(), (digit | letter).to_bitmask() == 0xffff)
}

/// Two times eight hex digits of either case as numbers, and whether all sixteen are digits; without that the numbers mean nothing.
#[inline(always)]
pub fn hex_pair(first: [u8; 8], second: [u8; 8]) -> ([u32; 2], bool) {
    let (both, valid) = hex_long(bytemuck::cast([first, second]));
    ([(both >> 32) as u32, both as u32], valid)
}

/// Lower-case hex of `bytes`.
pub fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[(byte >> 4) as usize] as char);
        text.push(DIGITS[(byte & 15) as usize] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_value_in_every_nibble_position_is_judged_as_a_digit_or_refused() {
        for position in 0..4 {
            for value in 0..=255u8 {
                let mut text = *b"0a0A";
                text[position] = value;
                let mut out = [0u8; 2];
                let expected = std::str::from_utf8(&text)
                    .ok()
                    .and_then(|t| if value.is_ascii_hexdigit() { u16::from_str_radix(t, 16).ok() } else { None });
                match decode_hex(&text, &mut out) {
                    Ok(()) => assert_eq!(Some(u16::from_be_bytes(out)), expected, "{value:#x} at {position}"),
                    Err(error) => {
                        assert_eq!(expected, None, "{value:#x} at {position}");
                        assert_eq!(error, HexError::Digit { position });
                    }
                }
            }
        }
    }

    #[test]
    fn every_byte_value_in_every_position_of_a_word_is_judged_as_a_digit_or_refused() {
        // Neighbours at both ends of the digits and letters: a carry out of one byte would change the next.
        for base in [*b"00000000", *b"99999999", *b"afAF09fa", *b"FFFFFFFF", *b"ffffffff"] {
            for position in 0..8 {
                for value in 0..=255u8 {
                    let mut text = base;
                    text[position] = value;
                    let mut bytes = [0; 4];
                    let expected = decode_hex(&text, &mut bytes).map(|()| u32::from_be_bytes(bytes)).ok();
                    let (word, valid) = hex_word(text);
                    assert_eq!(valid.then_some(word), expected, "{value:#x} at {position}");
                }
            }
        }
    }

    #[test]
    fn every_byte_value_in_every_position_of_sixteen_is_judged_as_a_digit_or_refused() {
        for base in [*b"0000000000000000", *b"9999999999999999", *b"afAF09fa90FAfa0f", *b"FFFFFFFFffffffff"] {
            for position in 0..16 {
                for value in 0..=255u8 {
                    let mut text = base;
                    text[position] = value;
                    let mut bytes = [0; 8];
                    let expected = decode_hex(&text, &mut bytes).map(|()| u64::from_be_bytes(bytes)).ok();
                    let (word, valid) = hex_long(text);
                    assert_eq!(valid.then_some(word), expected, "{value:#x} at {position}");
                    let [first, second]: [[u8; 8]; 2] = bytemuck::cast(text);
                    let (words, valid) = hex_pair(first, second);
                    assert_eq!(valid.then_some((u64::from(words[0]) << 32) | u64::from(words[1])), expected, "{value:#x} at {position}");
                }
            }
        }
    }

    #[test]
    fn length_must_match_exactly() {
        let mut out = [0u8; 2];
        assert_eq!(decode_hex(b"000", &mut out), Err(HexError::Length { expected: 4, got: 3 }));
        assert_eq!(decode_hex(b"00000", &mut out), Err(HexError::Length { expected: 4, got: 5 }));
    }

    #[test]
    fn display_is_internal_reversed() {
        let hash = Hash256::from_display_hex("000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f").expect("hex");
        assert_eq!(hash.0[0], 0x6f);
        assert_eq!(hash.to_string(), "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f");
        assert_eq!(hash.top64(), 0x0000_0000_0019_d668);
    }
}
