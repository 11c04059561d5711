//! Difficulty, work and targets, exact.
//!
//! Difficulty 1 is the target 0xffff x 2^208 (Bitcoin). A difficulty D fixes the integer work W = max(1, floor(D x 2^48 / 65535)),
//! the expected hashes of a share, and the target is floor(2^256 / W) - 1: whatever is credited is what was judged.
use crate::Hash256;
use std::fmt;

/// Smallest difficulty that is served: below it work would round to nothing.
pub const DIFFICULTY_MIN: f64 = 2.4e-10;
/// Largest difficulty that is served: its work still fits u64.
pub const DIFFICULTY_MAX: f64 = 4e9;

/// A difficulty as miners see it, always finite and within `DIFFICULTY_MIN..=DIFFICULTY_MAX`.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Difficulty(f64);

impl Difficulty {
    /// Clamps any number into the served range; NaN becomes the minimum.
    pub fn clamped(value: f64) -> Self {
        if value.is_nan() { Self(DIFFICULTY_MIN) } else { Self(value.clamp(DIFFICULTY_MIN, DIFFICULTY_MAX)) }
    }

    /// The number that goes over the wire.
    pub fn get(self) -> f64 {
        self.0
    }

    /// The work of a share at this difficulty, exact: max(1, floor(D x 2^48 / 65535)).
    pub fn work(self) -> Work {
        let bits = self.0.to_bits();
        let exponent = ((bits >> 52) & 0x7ff) as i32 - 1075;
        let mantissa = u128::from((bits & ((1 << 52) - 1)) | (1 << 52));
        let shift = exponent + 48;
        // D = mantissa x 2^exponent. D <= 4e9 keeps shift at or under 27, so the product stays below 2^80; floor(floor(m / 2^k) / 65535) = floor(m / (65535 x 2^k)).
        let scaled = if shift >= 0 { mantissa << shift } else { mantissa.checked_shr(shift.unsigned_abs()).unwrap_or(0) };
        Work::new((scaled / 65535) as u64)
    }
}

/// Work of a share in expected hashes, at least 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Work(u64);

impl Work {
    /// Zero becomes 1: every hash meets the easiest target.
    pub fn new(hashes: u64) -> Self {
        Self(hashes.max(1))
    }

    /// Expected hashes.
    pub fn hashes(self) -> u64 {
        self.0
    }

    /// floor(2^256 / work) - 1.
    pub fn target(self) -> Target {
        if self.0 == 1 {
            return Target([u64::MAX; 4]);
        }
        // Long division of 2^256 (a one followed by four zero limbs) by the work; the quotient is under 2^256 as work >= 2.
        let divisor = u128::from(self.0);
        let mut remainder = 1u128;
        let mut limbs = [0u64; 4];
        for limb in limbs.iter_mut().rev() {
            let dividend = remainder << 64;
            *limb = (dividend / divisor) as u64;
            remainder = dividend % divisor;
        }
        Target(limbs).minus_one()
    }

    /// The easier of two, for the grace after a retarget.
    pub fn easier(self, other: Self) -> Self {
        self.min(other)
    }

    /// The difficulty whose work this is, for display alone.
    pub fn difficulty(self) -> f64 {
        self.0 as f64 * 65535.0 / (1u64 << 48) as f64
    }
}

/// A 256-bit target as limbs, least significant first: a hash meets it when it is at or under it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target(pub [u64; 4]);

impl Target {
    /// True when `hash`, read as a little-endian number, is at or under the target.
    #[inline]
    pub fn is_met_by(&self, hash: &Hash256) -> bool {
        let limbs = hash.limbs();
        for index in (0..4).rev() {
            if limbs[index] != self.0[index] {
                return limbs[index] < self.0[index];
            }
        }
        true
    }

    /// Expands the compact form of a header ("nBits"); None when it is negative, zero or over 2^256 - 1. Source: Bitcoin, `arith_uint256::SetCompact`.
    pub fn from_compact(nbits: u32) -> Option<Self> {
        let size = nbits >> 24;
        let word = nbits & 0x007f_ffff;
        if nbits & 0x0080_0000 != 0 || word == 0 {
            return None;
        }
        let mut bytes = [0u8; 32];
        let mantissa = word.to_le_bytes();
        for (index, &byte) in mantissa[..3].iter().enumerate() {
            let position = size as i64 - 3 + index as i64;
            if position < 0 {
                continue;
            }
            match bytes.get_mut(position as usize) {
                Some(slot) => *slot = byte,
                None if byte != 0 => return None,
                None => {}
            }
        }
        let target = Self(Hash256(bytes).limbs());
        (target.0 != [0; 4]).then_some(target)
    }

    /// Little-endian bytes, as a header hash lies.
    pub fn to_le_bytes(&self) -> [u8; 32] {
        let mut bytes = [0u8; 32];
        for (chunk, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&limb.to_le_bytes());
        }
        bytes
    }

    /// Expected hashes to meet the target, floor(2^256 / (target + 1)), saturated to u64.
    pub fn work(&self) -> Work {
        // Shift-subtract division; once per job, so clarity wins.
        let mut divisor = self.0;
        let mut carry = true;
        for limb in &mut divisor {
            if carry {
                let (sum, overflow) = limb.overflowing_add(1);
                *limb = sum;
                carry = overflow;
            }
        }
        if carry {
            return Work::new(1); // target + 1 = 2^256
        }
        let mut remainder = [0u64; 4];
        let mut quotient = [0u64; 5];
        for bit in (0..=256usize).rev() {
            let lost = remainder[3] >> 63;
            for index in (1..4).rev() {
                remainder[index] = (remainder[index] << 1) | (remainder[index - 1] >> 63);
            }
            remainder[0] = (remainder[0] << 1) | u64::from(bit == 256);
            if lost == 1 || at_or_over(&remainder, &divisor) {
                subtract(&mut remainder, &divisor);
                quotient[bit / 64] |= 1 << (bit % 64);
            }
        }
        if quotient[1..].iter().any(|&limb| limb != 0) { Work::new(u64::MAX) } else { Work::new(quotient[0]) }
    }

    fn minus_one(mut self) -> Self {
        for limb in &mut self.0 {
            let (difference, borrow) = limb.overflowing_sub(1);
            *limb = difference;
            if !borrow {
                break;
            }
        }
        self
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().rev().try_for_each(|limb| write!(f, "{limb:016x}"))
    }
}

fn at_or_over(a: &[u64; 4], b: &[u64; 4]) -> bool {
    for index in (0..4).rev() {
        if a[index] != b[index] {
            return a[index] > b[index];
        }
    }
    true
}

fn subtract(a: &mut [u64; 4], b: &[u64; 4]) {
    let mut borrow = false;
    for index in 0..4 {
        let (difference, under) = a[index].overflowing_sub(b[index]);
        let (difference, under_again) = difference.overflowing_sub(u64::from(borrow));
        a[index] = difference;
        borrow = under || under_again;
    }
}

impl Hash256 {
    /// Difficulty 1 divided by the hash, as the nearest f64 within a few units in the last place; infinity for a zero hash.
    pub fn difficulty(&self) -> f64 {
        let limbs = self.limbs();
        let two64 = 18_446_744_073_709_551_616.0_f64;
        let value = ((limbs[3] as f64 * two64 + limbs[2] as f64) * two64 + limbs[1] as f64) * two64 + limbs[0] as f64;
        65535.0 * 2f64.powi(208) / value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn difficulty_one_is_the_work_of_its_definition() {
        // floor(2^48 / 65535) = 4295032833.
        assert_eq!(Difficulty::clamped(1.0).work().hashes(), 4_295_032_833);
        assert_eq!(Difficulty::clamped(2.4e-10).work().hashes(), 1);
        assert_eq!(Difficulty::clamped(0.0).work().hashes(), 1);
        assert_eq!(Difficulty::clamped(f64::NAN).work().hashes(), 1);
        assert_eq!(Difficulty::clamped(f64::INFINITY).get(), 4e9);
    }

    #[test]
    fn targets_of_small_works_are_exact() {
        assert_eq!(Work::new(1).target().0, [u64::MAX; 4]);
        assert_eq!(Work::new(2).target().0, [u64::MAX, u64::MAX, u64::MAX, u64::MAX >> 1]);
        assert_eq!(Work::new(3).target().0, [0x5555_5555_5555_5554, 0x5555_5555_5555_5555, 0x5555_5555_5555_5555, 0x5555_5555_5555_5555]);
    }

    #[test]
    fn a_hash_at_the_target_meets_it_and_one_above_does_not() {
        for work in [2u64, 3, 65536, 4_295_032_833, u64::MAX] {
            let target = Work::new(work).target();
            assert!(target.is_met_by(&Hash256(target.to_le_bytes())));
            let mut above = target.to_le_bytes();
            for byte in &mut above {
                let (sum, carry) = byte.overflowing_add(1);
                *byte = sum;
                if !carry {
                    break;
                }
            }
            assert!(!target.is_met_by(&Hash256(above)), "work {work}");
        }
    }

    #[test]
    fn compact_targets_expand_as_in_bitcoin() {
        assert_eq!(
            Target::from_compact(0x1d00_ffff).map(|t| t.to_string()),
            Some("00000000ffff0000000000000000000000000000000000000000000000000000".into())
        );
        assert_eq!(
            Target::from_compact(0x207f_ffff).map(|t| t.to_string()),
            Some("7fffff0000000000000000000000000000000000000000000000000000000000".into())
        );
        assert_eq!(Target::from_compact(0x0092_3456), None);
        assert_eq!(Target::from_compact(0x0300_0000), None);
        assert_eq!(Target::from_compact(0x2300_0001), None);
        assert_eq!(Target::from_compact(0x0312_3456).map(|t| t.0), Some([0x12_3456, 0, 0, 0]));
    }

    #[test]
    fn network_work_of_known_targets() {
        assert_eq!(Target::from_compact(0x1d00_ffff).map(|t| t.work().hashes()), Some(4_295_032_833));
        assert_eq!(Target::from_compact(0x207f_ffff).map(|t| t.work().hashes()), Some(2));
        assert_eq!(Target([u64::MAX; 4]).work().hashes(), 1);
        assert_eq!(Target([0; 4]).work().hashes(), u64::MAX);
    }

    proptest! {
        #[test]
        fn work_of_the_target_of_a_work_is_that_work(work in prop_oneof![1u64..5, (u64::MAX - 3)..=u64::MAX, any::<u64>().prop_map(|w| w.max(1)), (0u32..64).prop_map(|s| 1 << s)]) {
            // floor(2^256 / floor(2^256 / W)) = W for every W under 2^64.
            prop_assert_eq!(Work::new(work).target().work().hashes(), work);
        }

        #[test]
        fn work_matches_slow_integer_arithmetic(difficulty in prop_oneof![2.4e-10f64..1e-6, 1e-6f64..1.0, 1.0f64..4e9, (1u32..2000).prop_map(f64::from)]) {
            // m x 2^48 / (65535 x 2^k) in one step, in u128, by an independent decomposition of the double.
            let mut mantissa = difficulty;
            let mut k = 0u32;
            while mantissa.fract() != 0.0 { mantissa *= 2.0; k += 1; }
            let numerator = (mantissa as u128) << 48;
            let slow = if k >= 100 { ((numerator >> 40) / 65535) >> (k - 40) } else { (numerator / 65535) >> k };
            prop_assert_eq!(u128::from(Difficulty::clamped(difficulty).work().hashes()), slow.max(1));
        }
    }
}
