//! Where bytes stand among 64: one bit for each, the lowest for the first. What finds the ends of strings without looking at one byte after the other.
use wide::u8x16;

/// Bytes of a block.
pub(super) const BLOCK: usize = 64;

/// Where `byte` stands.
#[inline(always)]
pub(super) fn of_byte(block: &[u8; BLOCK], byte: u8) -> u64 {
    let wanted = u8x16::splat(byte);
    gather(sixteens(block).map(|bytes| bytes.simd_eq(wanted)))
}

/// Where quotes stand; None when the block holds anything but printable ASCII (or DEL) without a backslash.
#[inline(always)]
pub(super) fn plain_quotes(block: &[u8; BLOCK]) -> Option<u64> {
    let (blank, backslash) = (u8x16::splat(b' '), u8x16::splat(b'\\'));
    // Bit 7 counts: bytes past ASCII have it, and those below the blank get it by the subtraction.
    let odd = sixteens(block).map(|bytes| bytes | (bytes - blank) | bytes.simd_eq(backslash));
    ((odd[0] | odd[1] | odd[2] | odd[3]).to_bitmask() == 0).then(|| of_byte(block, b'"'))
}

/// The block in registers.
#[inline(always)]
pub(super) fn sixteens(block: &[u8; BLOCK]) -> [u8x16; BLOCK / 16] {
    let (sixteens, _) = block.as_chunks::<16>();
    [u8x16::new(sixteens[0]), u8x16::new(sixteens[1]), u8x16::new(sixteens[2]), u8x16::new(sixteens[3])]
}

/// One bit for each byte.
#[inline(always)]
fn gather(marks: [u8x16; BLOCK / 16]) -> u64 {
    let [first, second, third, fourth] = marks.map(|sixteen| u64::from(sixteen.to_bitmask()));
    first | (second << 16) | (third << 32) | (fourth << 48)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_of_a_block_is_marked_for_what_it_is() {
        // Neighbours of the bounds: what carried or borrowed out of one byte would change the next.
        for base in [b' ', b'"', b'!', 0x7f, 0x1f, 0x80, 0xff, 0, b'\\', b'x'] {
            for place in 0..BLOCK {
                for value in 0..=u8::MAX {
                    let mut block = [base; BLOCK];
                    block[place] = value;
                    let quotes = (0..BLOCK).filter(|&at| block[at] == b'"').fold(0u64, |marks, at| marks | 1 << at);
                    let plain = block.iter().all(|byte| matches!(byte, 0x20..=0x5b | 0x5d..=0x7f));
                    assert_eq!(of_byte(&block, b'"'), quotes, "{value:#x} among {base:#x}");
                    assert_eq!(plain_quotes(&block), plain.then_some(quotes), "{value:#x} among {base:#x}");
                }
            }
        }
    }
}
