//! Whole shares over lanes: one share per lane, state in lanes from the coinbase to the header. One source for every vector instruction set.
//!
//! `V` is a vector, `G` the groups of lanes that are worked on together, so that one group's latency hides behind the other's. Three choices matter: the message
//! schedule lies in memory, written sixteen rounds ahead, because 16 words beside the state do not fit 32 registers; loops are rolled over eight rounds, and a
//! merkle level has one copy of the half-constant block, so that it fits the caches of the front end; nothing is a closure or a `map`: inlined late or not at all,
//! those do not get the target features of the functions that all this ends in. `cargo xtask asm` looks for all three in the code that comes out.
#![expect(clippy::needless_range_loop, clippy::absurd_extreme_comparisons, reason = "rounds are numbered, in macros that fix the number")]
use super::scalar::INITIAL;
use super::table::{HALF_PADDING_32, HALF_PADDING_80, HalfBlock, JobTable, K, ROUNDS_PADDING_64, Rounds};
use super::{Judged, ShareBatch};
use crate::BATCH;

/// A vector of 32-bit words, one per lane. Everything here is inlined into the functions of an instruction set's own file, which have its target features.
pub(super) trait Lanes: Copy {
    /// Shares it holds.
    const COUNT: usize;
    fn splat(word: u32) -> Self;
    /// Reads a column from share `first` on.
    fn load(column: &[u32; BATCH], first: usize) -> Self;
    fn store(self, column: &mut [u32; BATCH], first: usize);
    fn add(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn swap_bytes(self) -> Self;
    /// FIPS 180-4, 4.1.2: the functions of SHA-256.
    fn big_sigma0(self) -> Self;
    fn big_sigma1(self) -> Self;
    fn sigma0(self) -> Self;
    fn sigma1(self) -> Self;
    fn choose(e: Self, f: Self, g: Self) -> Self;
    fn majority(a: Self, b: Self, c: Self) -> Self;
}

/// One word of every lane. Shape: `[group]`.
type Word<V, const G: usize> = [V; G];
/// Shape: `[word][group]`.
type State<V, const G: usize> = [Word<V, G>; 8];
/// The message schedule. Shape: `[word][group]`.
type Schedule<V, const G: usize> = [Word<V, G>; 64];

#[inline(always)]
fn splat<V: Lanes, const G: usize>(word: u32) -> Word<V, G> {
    [V::splat(word); G]
}

#[inline(always)]
fn splats<V: Lanes, const G: usize>(words: &[u32; 8]) -> State<V, G> {
    let mut state = [splat(0); 8];
    for (lanes, &word) in state.iter_mut().zip(words) {
        *lanes = splat(word);
    }
    state
}

#[inline(always)]
fn load<V: Lanes, const G: usize>(column: &[u32; BATCH], first: usize) -> Word<V, G> {
    let mut word = splat(0);
    for (group, lanes) in word.iter_mut().enumerate() {
        *lanes = V::load(column, first + group * V::COUNT);
    }
    word
}

#[inline(always)]
fn store<V: Lanes, const G: usize>(state: State<V, G>, columns: &mut [[u32; BATCH]; 8], first: usize) {
    for (column, word) in columns.iter_mut().zip(state) {
        for (group, lanes) in word.into_iter().enumerate() {
            lanes.store(column, first + group * V::COUNT);
        }
    }
}

#[inline(always)]
fn swap_bytes<V: Lanes, const G: usize>(mut word: Word<V, G>) -> Word<V, G> {
    for lanes in &mut word {
        *lanes = lanes.swap_bytes();
    }
    word
}

#[inline(always)]
fn sum<V: Lanes, const G: usize>(mut left: State<V, G>, right: State<V, G>) -> State<V, G> {
    for (left, right) in left.iter_mut().zip(right) {
        for (left, right) in left.iter_mut().zip(right) {
            *left = left.add(right);
        }
    }
    left
}

/// One round; `$kw` is what it adds to h in group `$i`.
macro_rules! round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $i:ident, $kw:expr) => {
        for $i in 0..G {
            let t = $kw.add($h[$i]).add(V::choose($e[$i], $f[$i], $g[$i])).add($e[$i].big_sigma1());
            $d[$i] = $d[$i].add(t);
            $h[$i] = t.add(V::majority($a[$i], $b[$i], $c[$i])).add($a[$i].big_sigma0());
        }
    };
}

/// Eight rounds, each followed by `$then`; `$r` counts them from 0.
macro_rules! eight_rounds {
    ($state:ident, $i:ident $r:ident, $kw:expr, $then:expr) => {
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = $state;
        { const $r: usize = 0; round!(a b c d e f g h, $i, $kw); $then }
        { const $r: usize = 1; round!(h a b c d e f g, $i, $kw); $then }
        { const $r: usize = 2; round!(g h a b c d e f, $i, $kw); $then }
        { const $r: usize = 3; round!(f g h a b c d e, $i, $kw); $then }
        { const $r: usize = 4; round!(e f g h a b c d, $i, $kw); $then }
        { const $r: usize = 5; round!(d e f g h a b c, $i, $kw); $then }
        { const $r: usize = 6; round!(c d e f g h a b, $i, $kw); $then }
        { const $r: usize = 7; round!(b c d e f g h a, $i, $kw); $then }
        $state = [a, b, c, d, e, f, g, h];
    };
}

/// Rounds `from..64` over words `from..from + 16`; the rest of the schedule is written on the way.
#[inline(always)]
fn rounds<V: Lanes, const G: usize>(mut state: State<V, G>, w: &mut Schedule<V, G>, from: usize) -> State<V, G> {
    let mut t = from;
    while t < 48 {
        eight_rounds!(state, i R, w[t + R][i].add(V::splat(K[t + R])), for i in 0..G {
            w[t + R + 16][i] = w[t + R][i].add(w[t + R + 9][i]).add(w[t + R + 1][i].sigma0()).add(w[t + R + 14][i].sigma1());
        });
        t += 8;
    }
    while t < 64 {
        eight_rounds!(state, i R, w[t + R][i].add(V::splat(K[t + R])), ());
        t += 8;
    }
    state
}

/// A block of which every word may differ between lanes: words 0 to 15 of `w`.
#[inline(always)]
fn compress<V: Lanes, const G: usize>(state: State<V, G>, w: &mut Schedule<V, G>) -> State<V, G> {
    sum(state, rounds(state, w, 0))
}

/// A block whose second half is the same in all lanes: words 0 to 7 of `w`, and `second`.
#[inline(always)]
fn compress_half<V: Lanes, const G: usize>(before: State<V, G>, w: &mut Schedule<V, G>, second: &HalfBlock) -> State<V, G> {
    let mut state = before;
    // Of W16 to W31 only what words 0 to 7 and their followers give is worked out; the rest is in the table.
    eight_rounds!(state, i R, w[R][i].add(V::splat(K[R])), for i in 0..G {
        let mut word = w[R][i].add(V::splat(second.schedule[R]));
        if R < 7 {
            word = word.add(w[R + 1][i].sigma0());
        } else {
            word = word.add(w[16][i]);
        }
        if R >= 2 {
            word = word.add(w[R + 14][i].sigma1());
        }
        w[R + 16][i] = word;
    });
    eight_rounds!(state, i R, V::splat(second.rounds[R]), for i in 0..G {
        let mut word = w[R + 17][i].add(V::splat(second.schedule[R + 8])).add(w[R + 22][i].sigma1());
        if R == 7 {
            word = word.add(w[16][i].sigma0());
        }
        w[R + 24][i] = word;
    });
    sum(before, rounds(state, w, 16))
}

/// A block that is the same in all lanes.
#[inline(always)]
fn compress_uniform<V: Lanes, const G: usize>(before: State<V, G>, rounds: &Rounds) -> State<V, G> {
    let mut state = before;
    for kw in rounds.0.as_chunks::<8>().0 {
        eight_rounds!(state, i R, V::splat(kw[R]), ());
    }
    sum(before, state)
}

/// Merkle roots of shares `first..first + G * V::COUNT`.
#[inline(always)]
pub(super) fn roots<V: Lanes, const G: usize>(job: &JobTable, extranonce: &[[u32; BATCH]; 4], first: usize, out: &mut Judged) {
    let mut w: Schedule<V, G> = [splat(0); 64];
    let mut state: State<V, G> = splats(&job.midstate);
    let at = job.first_extranonce_word();
    for (block, words) in job.head_words.iter().enumerate().take(usize::from(job.head_blocks)) {
        for (w, &word) in w.iter_mut().zip(words) {
            *w = splat(word);
        }
        for (index, column) in extranonce.iter().enumerate() {
            // Words past the last head block are zero: the extranonce ends before them.
            let Some(index) = (at + index).checked_sub(16 * block).filter(|&index| index < 16) else { continue };
            for (w, lanes) in w[index].iter_mut().zip(load::<V, G>(column, first)) {
                *w = w.or(lanes);
            }
        }
        state = compress(state, &mut w);
    }
    for rounds in &job.tail_rounds {
        state = compress_uniform(state, rounds);
    }
    // The coinbase is hashed a second time, and so is every node: steps with an even number. Odd ones are a node's first hash.
    for step in 0..=2 * job.siblings.len() {
        let second = if step % 2 == 0 { &HALF_PADDING_32 } else { &job.siblings[step / 2] };
        w[..8].copy_from_slice(&state);
        state = compress_half(splats(&INITIAL), &mut w, second);
        if step % 2 == 1 {
            state = compress_uniform(state, &ROUNDS_PADDING_64);
        }
    }
    store(state, &mut out.root, first);
}

/// Header hashes of shares `first..first + G * V::COUNT` over their roots.
#[inline(always)]
pub(super) fn headers<V: Lanes, const G: usize>(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
    let mut w: Schedule<V, G> = [splat(0); 64];
    w[0] = swap_bytes(load(&batch.version, first));
    w[1..9].copy_from_slice(&splats(&job.prev_words));
    for (w, column) in w[9..16].iter_mut().zip(&out.root) {
        *w = load(column, first);
    }
    let state = compress(splats(&INITIAL), &mut w);
    w[0] = load(&out.root[7], first);
    w[1] = swap_bytes(load(&batch.ntime, first));
    w[2] = splat(job.nbits.swap_bytes());
    w[3] = swap_bytes(load(&batch.nonce, first));
    w[4] = splat(0x8000_0000);
    w[5..8].copy_from_slice(&[splat(0); 3]);
    let state = compress_half(state, &mut w, &HALF_PADDING_80);
    w[..8].copy_from_slice(&state);
    store(compress_half(splats(&INITIAL), &mut w, &HALF_PADDING_32), &mut out.hash, first);
}
