//! SHA-NI: one share is bound by the latency of `sha256rnds2`, so up to five run interleaved.
#![expect(unsafe_code, reason = "vector intrinsics; SAFETY comments say what holds")]
use super::compare::compare;
use super::scalar::INITIAL;
use super::table::{JobTable, K, PADDING_32, ROUNDS_PADDING_64, Rounds};
use super::{Judged, ShareBatch};
use core::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_castps_si128, _mm_castsi128_ps, _mm_loadu_si128, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi32, _mm_shuffle_ps, _mm_storeu_si128,
};

/// Shares hashed together at most: with five, rnds2 is busy in every cycle of a uniform block; a sixth gains nothing.
pub(super) const STREAMS_MAX: usize = 5;

// SAFETY of all intrinsics in this file: they are reached only through its `#[target_feature]` functions, whose callers have checked the CPU.

/// Four words, the lowest lane first.
#[derive(Clone, Copy)]
struct Four(__m128i);

impl Four {
    #[inline(always)]
    fn load(words: &[u32; 4]) -> Self {
        // SAFETY: see above; the array has 16 readable bytes.
        Self(unsafe { _mm_loadu_si128(words.as_ptr().cast()) })
    }

    #[inline(always)]
    fn store(self) -> [u32; 4] {
        let mut words = [0; 4];
        // SAFETY: see above; the array has 16 writable bytes.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), self.0) }
        words
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm_add_epi32(self.0, other.0) })
    }

    /// The two upper words in the lower half, where `rounds` reads.
    #[inline(always)]
    fn upper(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm_shuffle_epi32::<0b00_00_11_10>(self.0) })
    }

    /// Two words of self, then two of `other`; `WHICH` names each by two bits, lowest first.
    #[inline(always)]
    fn two_and_two<const WHICH: i32>(self, other: Self) -> Self {
        // SAFETY: see above.
        let first = unsafe { _mm_castsi128_ps(self.0) };
        // SAFETY: see above.
        let second = unsafe { _mm_castsi128_ps(other.0) };
        // SAFETY: see above.
        let mixed = unsafe { _mm_shuffle_ps::<WHICH>(first, second) };
        // SAFETY: see above.
        Self(unsafe { _mm_castps_si128(mixed) })
    }

    /// Two rounds: from c d g h (self) and a b e f to the new a b e f.
    #[inline(always)]
    fn rounds(self, abef: Self, kw: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm_sha256rnds2_epu32(self.0, abef.0, kw.0) })
    }

    /// W[t..t + 4] from the sixteen words before.
    #[inline(always)]
    fn next(w0: Self, w4: Self, w8: Self, w12: Self) -> Self {
        // SAFETY: see above.
        let small_sigma0 = Self(unsafe { _mm_sha256msg1_epu32(w0.0, w4.0) });
        // SAFETY: see above.
        let seven_before = Self(unsafe { _mm_alignr_epi8::<4>(w12.0, w8.0) });
        // SAFETY: see above.
        Self(unsafe { _mm_sha256msg2_epu32(small_sigma0.add(seven_before).0, w12.0) })
    }
}

/// A state as `sha256rnds2` wants it: f e b a and h g d c, lowest first.
#[derive(Clone, Copy)]
struct State {
    abef: Four,
    cdgh: Four,
}

impl State {
    #[inline(always)]
    fn of(words: &[u32; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = *words;
        Self { abef: Four::load(&[f, e, b, a]), cdgh: Four::load(&[h, g, d, c]) }
    }

    /// a b c d and e f g h, lowest first: the first half of the next message.
    #[inline(always)]
    fn words(self) -> [Four; 2] {
        [self.abef.two_and_two::<0b10_11_10_11>(self.cdgh), self.abef.two_and_two::<0b00_01_00_01>(self.cdgh)]
    }
}

#[inline(always)]
fn halves(words: &[u32; 8]) -> (Four, Four) {
    let [a, b, c, d, e, f, g, h] = *words;
    (Four::load(&[a, b, c, d]), Four::load(&[e, f, g, h]))
}

/// Four rounds of every stream, each with its own K + W.
macro_rules! four_rounds {
    ($states:ident, $stream:ident, $kw:expr) => {
        for $stream in 0..N {
            let kw: Four = $kw;
            let state = &mut $states[$stream];
            state.cdgh = state.cdgh.rounds(state.abef, kw);
            state.abef = state.abef.rounds(state.cdgh, kw.upper());
        }
    };
}

#[inline(always)]
fn sum<const N: usize>(left: [State; N], right: [State; N]) -> [State; N] {
    let mut sum = left;
    for stream in 0..N {
        sum[stream].abef = left[stream].abef.add(right[stream].abef);
        sum[stream].cdgh = left[stream].cdgh.add(right[stream].cdgh);
    }
    sum
}

/// A block of its own for every stream.
#[inline(always)]
fn compress<const N: usize>(before: [State; N], mut w: [[Four; 4]; N]) -> [State; N] {
    let mut states = before;
    let (scheduled, last) = K_ROUNDS.split_at(3);
    for k in scheduled {
        four_rounds!(states, s, w[s][0].add(Four::load(&k[0])));
        for w in &mut w {
            w[0] = Four::next(w[0], w[1], w[2], w[3]);
        }
        four_rounds!(states, s, w[s][1].add(Four::load(&k[1])));
        for w in &mut w {
            w[1] = Four::next(w[1], w[2], w[3], w[0]);
        }
        four_rounds!(states, s, w[s][2].add(Four::load(&k[2])));
        for w in &mut w {
            w[2] = Four::next(w[2], w[3], w[0], w[1]);
        }
        four_rounds!(states, s, w[s][3].add(Four::load(&k[3])));
        for w in &mut w {
            w[3] = Four::next(w[3], w[0], w[1], w[2]);
        }
    }
    for k in last {
        four_rounds!(states, s, w[s][0].add(Four::load(&k[0])));
        four_rounds!(states, s, w[s][1].add(Four::load(&k[1])));
        four_rounds!(states, s, w[s][2].add(Four::load(&k[2])));
        four_rounds!(states, s, w[s][3].add(Four::load(&k[3])));
    }
    sum(before, states)
}

/// K by four sets of sixteen rounds.
const K_ROUNDS: [[[u32; 4]; 4]; 4] = {
    let mut fours = [[[0; 4]; 4]; 4];
    let mut round = 0;
    while round < 64 {
        fours[round / 16][round / 4 % 4][round % 4] = K[round];
        round += 1;
    }
    fours
};

/// The same block for every stream.
#[inline(always)]
fn compress_uniform<const N: usize>(before: [State; N], rounds: &Rounds) -> [State; N] {
    let mut states = before;
    for kw in rounds.0.as_chunks::<4>().0 {
        let kw = Four::load(kw);
        let upper = kw.upper();
        for state in &mut states {
            state.cdgh = state.cdgh.rounds(state.abef, kw);
            state.abef = state.abef.rounds(state.cdgh, upper);
        }
    }
    sum(before, states)
}

/// A block that begins with the hash of every stream and ends with `second`.
#[inline(always)]
fn compress_after_hash<const N: usize>(hashes: [State; N], second: &[u32; 8]) -> [State; N] {
    let (low, high) = halves(second);
    let mut w = [[low; 4]; N];
    for (w, hash) in w.iter_mut().zip(hashes) {
        let [first, next] = hash.words();
        *w = [first, next, low, high];
    }
    compress([State::of(&INITIAL); N], w)
}

/// Merkle roots of `N` shares from `first` on.
#[inline(always)]
fn roots<const N: usize>(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
    let mut states = [State::of(&job.midstate); N];
    let at = job.first_extranonce_word();
    let mut heads = [[0u32; 32]; N];
    for (stream, head) in heads.iter_mut().enumerate() {
        head[..16].copy_from_slice(&job.head_words[0]);
        head[16..].copy_from_slice(&job.head_words[1]);
        // Words past the last head block are zero: the extranonce ends before them.
        for (word, extranonce) in head[at..].iter_mut().zip(job.extranonce_words(&batch.extranonce[first + stream])) {
            *word |= extranonce;
        }
    }
    for block in 0..usize::from(job.head_blocks) {
        let mut w = [[Four::load(&[0; 4]); 4]; N];
        for (w, head) in w.iter_mut().zip(&heads) {
            for (w, words) in w.iter_mut().zip(head[16 * block..].as_chunks::<4>().0) {
                *w = Four::load(words);
            }
        }
        states = compress(states, w);
    }
    for rounds in &job.tail_rounds {
        states = compress_uniform(states, rounds);
    }
    // The coinbase is hashed a second time, and so is every node: steps with an even number. Odd ones are a node's first hash.
    for step in 0..=2 * job.siblings.len() {
        states = compress_after_hash(states, if step % 2 == 0 { &PADDING_32 } else { &job.siblings[step / 2].words });
        if step % 2 == 1 {
            states = compress_uniform(states, &ROUNDS_PADDING_64);
        }
    }
    store(states, first, &mut out.root);
}

/// Header hashes of `N` shares from `first` on, over their roots.
#[inline(always)]
fn headers<const N: usize>(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
    let p = job.prev_words;
    let mut starts = [[Four::load(&[0; 4]); 4]; N];
    let mut ends = starts;
    for stream in 0..N {
        let share = first + stream;
        let mut root = [0; 8];
        for (root, column) in root.iter_mut().zip(&out.root) {
            *root = column[share];
        }
        starts[stream] = [
            Four::load(&[batch.version[share].swap_bytes(), p[0], p[1], p[2]]),
            Four::load(&[p[3], p[4], p[5], p[6]]),
            Four::load(&[p[7], root[0], root[1], root[2]]),
            Four::load(&[root[3], root[4], root[5], root[6]]),
        ];
        ends[stream] = [
            Four::load(&[root[7], batch.ntime[share].swap_bytes(), job.nbits.swap_bytes(), batch.nonce[share].swap_bytes()]),
            Four::load(&[0x8000_0000, 0, 0, 0]),
            Four::load(&[0; 4]),
            Four::load(&[0, 0, 0, 640]),
        ];
    }
    let states = compress([State::of(&INITIAL); N], starts);
    let states = compress(states, ends);
    store(compress_after_hash(states, &PADDING_32), first, &mut out.hash);
}

#[inline(always)]
fn store<const N: usize>(states: [State; N], first: usize, columns: &mut [[u32; crate::BATCH]; 8]) {
    for (stream, state) in states.into_iter().enumerate() {
        let [low, high] = state.words();
        let (low, high) = (low.store(), high.store());
        for (column, word) in columns.iter_mut().zip(low.into_iter().chain(high)) {
            column[first + stream] = word;
        }
    }
}

macro_rules! streams {
    ($($roots:ident $headers:ident $count:literal),*) => {$(
        #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
        fn $roots(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
            roots::<$count>(job, batch, first, out);
        }

        #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
        fn $headers(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
            headers::<$count>(job, batch, first, out);
        }
    )*};
}

streams!(roots_1 headers_1 1, roots_2 headers_2 2, roots_3 headers_3 3, roots_4 headers_4 4, roots_5 headers_5 5);

/// Size of the next group when `left` shares remain: groups as even as they can be, as two groups of three beat five and one.
pub(super) fn group(left: usize) -> usize {
    left.div_ceil(left.div_ceil(STREAMS_MAX))
}

/// Hashes shares `first..` of a batch, roots and headers.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn hash(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
    let count = batch.count as usize;
    let mut at = first;
    while at < count {
        let streams = group(count - at);
        match streams {
            1 => roots_1(job, batch, at, out),
            2 => roots_2(job, batch, at, out),
            3 => roots_3(job, batch, at, out),
            4 => roots_4(job, batch, at, out),
            _ => roots_5(job, batch, at, out),
        }
        at += streams;
    }
    hash_headers(job, batch, first, out);
}

/// Hashes the headers of shares `first..` of a batch over their roots.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn hash_headers(job: &JobTable, batch: &ShareBatch, first: usize, out: &mut Judged) {
    let count = batch.count as usize;
    let mut at = first;
    while at < count {
        let streams = group(count - at);
        match streams {
            1 => headers_1(job, batch, at, out),
            2 => headers_2(job, batch, at, out),
            3 => headers_3(job, batch, at, out),
            4 => headers_4(job, batch, at, out),
            _ => headers_5(job, batch, at, out),
        }
        at += streams;
    }
}

/// Judges a batch.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn judge(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    hash(job, batch, 0, out);
    compare(job, batch, out);
}

/// Judges a batch by its roots.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn judge_headers(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    hash_headers(job, batch, 0, out);
    compare(job, batch, out);
}
