//! SplitMix64 (Steele, Lea, Flood 2014): numbers that depend on nothing but the seed. Good enough to vary fields; nothing here is a secret.

/// The next number of the sequence in `state`.
#[inline]
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*state)
}

/// The finaliser: a bijection that spreads every input bit over the output.
#[inline]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sequence_is_the_published_one() {
        // First outputs for seed 1234567 of the reference implementation (Vigna, splitmix64.c).
        let mut state = 1_234_567;
        assert_eq!([super::next(&mut state), super::next(&mut state)], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
