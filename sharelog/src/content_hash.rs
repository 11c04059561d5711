//! XXH64, the content hash in a segment's name on the wire. It turns a reused segment number into a visible second insert; it guards against accidents, not against forgery.
//! Source: xxHash specification 0.1.1 (Yann Collet); pinned by published vectors below.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// A running XXH64 with seed 0.
pub(crate) struct ContentHash {
    lanes: [u64; 4],
    pending: [u8; 32],
    pending_bytes: usize,
    total: u64,
}

impl ContentHash {
    pub(crate) fn new() -> Self {
        Self { lanes: [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)], pending: [0; 32], pending_bytes: 0, total: 0 }
    }

    /// The hash of one piece of bytes.
    #[cfg(test)]
    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::new();
        hash.update(bytes);
        hash.finish()
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u64);
        if self.pending_bytes > 0 {
            let take = bytes.len().min(32 - self.pending_bytes);
            let (head, rest) = bytes.split_at(take);
            self.pending[self.pending_bytes..self.pending_bytes + take].copy_from_slice(head);
            self.pending_bytes += take;
            bytes = rest;
            if self.pending_bytes < 32 {
                return;
            }
            let stripe = self.pending;
            stripe_into(&mut self.lanes, &stripe);
            self.pending_bytes = 0;
        }
        let (stripes, rest) = bytes.as_chunks::<32>();
        let mut lanes = self.lanes;
        for stripe in stripes {
            stripe_into(&mut lanes, stripe);
        }
        self.lanes = lanes;
        self.pending[..rest.len()].copy_from_slice(rest);
        self.pending_bytes = rest.len();
    }

    pub(crate) fn finish(&self) -> u64 {
        let mut hash = if self.total >= 32 {
            let [a, b, c, d] = self.lanes;
            let mut hash = a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
            for lane in self.lanes {
                hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
            }
            hash
        } else {
            P5
        };
        hash = hash.wrapping_add(self.total);
        let (words, rest) = self.pending[..self.pending_bytes].as_chunks::<8>();
        for word in words {
            hash = (hash ^ round(0, u64::from_le_bytes(*word))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for half in halves {
            let half = u64::from(u32::from_le_bytes(*half));
            hash = (hash ^ half.wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for &byte in rest {
            hash = (hash ^ u64::from(byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
        hash ^ (hash >> 32)
    }
}

#[inline]
fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[inline]
fn stripe_into(lanes: &mut [u64; 4], stripe: &[u8; 32]) {
    let (words, _) = stripe.as_chunks::<8>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane = round(*lane, u64::from_le_bytes(*word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors_hold() {
        assert_eq!(ContentHash::of(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(ContentHash::of(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(ContentHash::of(b"abc"), 0x44BC_2CF5_AD77_0999);
        assert_eq!(ContentHash::of(b"Nobody inspects the spammish repetition"), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let bytes: Vec<u8> = (0..200u32).map(|i| (i * 7) as u8).collect();
        for cut in 0..bytes.len() {
            let mut hash = ContentHash::new();
            hash.update(&bytes[..cut]);
            hash.update(&bytes[cut..]);
            assert_eq!(hash.finish(), ContentHash::of(&bytes), "cut at {cut}");
        }
    }
}
