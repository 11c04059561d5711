//! AVX-512: 2 x 16 lanes, so that the latency of one group hides behind the other's, 16 lanes, and SHA-NI streams for what is left.
#![expect(unsafe_code, reason = "vector intrinsics; SAFETY comments say what holds")]
use super::lanes::{Lanes, headers, roots};
use super::{JobTable, Judged, ShareBatch, compare::compare, shani};
use crate::BATCH;
use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_or_si512, _mm512_ror_epi32, _mm512_set_epi64, _mm512_set1_epi32,
    _mm512_shuffle_epi8, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi32,
};
use otedama_primitives::{Coin, Hash256, Job, JobId, Target};
use std::sync::OnceLock;
use std::time::Instant;

/// 16 lanes. Made only inside of this file's functions, which have the target features.
#[derive(Clone, Copy)]
struct Zmm(__m512i);

const XOR3: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

// SAFETY of all intrinsics of `Zmm`: it is reached only through this file's `#[target_feature]` functions, whose callers have checked the CPU.
impl Zmm {
    #[inline(always)]
    fn rotate_right<const BITS: i32>(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_ror_epi32::<BITS>(self.0) })
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_srli_epi32::<BITS>(self.0) })
    }

    /// A function of three bits, by its table.
    #[inline(always)]
    fn logic<const TABLE: i32>(self, second: Self, third: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_ternarylogic_epi32::<TABLE>(self.0, second.0, third.0) })
    }
}

impl Lanes for Zmm {
    const COUNT: usize = 16;

    #[inline(always)]
    fn splat(word: u32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_epi32(word.cast_signed()) })
    }

    #[inline(always)]
    fn load(column: &[u32; BATCH], first: usize) -> Self {
        let lanes: &[u32] = &column[first..first + Self::COUNT];
        // SAFETY: see above; the slice has 64 readable bytes.
        Self(unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn store(self, column: &mut [u32; BATCH], first: usize) {
        let lanes: &mut [u32] = &mut column[first..first + Self::COUNT];
        // SAFETY: see above; the slice has 64 writable bytes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_or_si512(self.0, other.0) })
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        const LOW: i64 = 0x0405_0607_0001_0203;
        const HIGH: i64 = 0x0c0d_0e0f_0809_0a0b;
        // SAFETY: see above.
        let order = unsafe { _mm512_set_epi64(HIGH, LOW, HIGH, LOW, HIGH, LOW, HIGH, LOW) };
        // SAFETY: see above.
        Self(unsafe { _mm512_shuffle_epi8(self.0, order) })
    }

    #[inline(always)]
    fn big_sigma0(self) -> Self {
        self.rotate_right::<2>().logic::<XOR3>(self.rotate_right::<13>(), self.rotate_right::<22>())
    }

    #[inline(always)]
    fn big_sigma1(self) -> Self {
        self.rotate_right::<6>().logic::<XOR3>(self.rotate_right::<11>(), self.rotate_right::<25>())
    }

    #[inline(always)]
    fn sigma0(self) -> Self {
        self.rotate_right::<7>().logic::<XOR3>(self.rotate_right::<18>(), self.shift_right::<3>())
    }

    #[inline(always)]
    fn sigma1(self) -> Self {
        self.rotate_right::<17>().logic::<XOR3>(self.rotate_right::<19>(), self.shift_right::<10>())
    }

    #[inline(always)]
    fn choose(e: Self, f: Self, g: Self) -> Self {
        e.logic::<CHOOSE>(f, g)
    }

    #[inline(always)]
    fn majority(a: Self, b: Self, c: Self) -> Self {
        a.logic::<MAJORITY>(b, c)
    }
}

/// Merkle roots of 32 lanes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn roots_2x16(job: &JobTable, extranonce: &[[u32; BATCH]; 4], out: &mut Judged) {
    roots::<Zmm, 2>(job, extranonce, 0, out);
}

/// Merkle roots of lanes 0 to 15.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn roots_16(job: &JobTable, extranonce: &[[u32; BATCH]; 4], out: &mut Judged) {
    roots::<Zmm, 1>(job, extranonce, 0, out);
}

/// Header hashes of 32 lanes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn headers_2x16(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    headers::<Zmm, 2>(job, batch, 0, out);
}

/// Header hashes of lanes 0 to 15.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn headers_16(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    headers::<Zmm, 1>(job, batch, 0, out);
}

/// What is hashed: whole shares, or headers over known roots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Share,
    Header,
}

/// How a batch is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// SHA-NI streams for all.
    Streams,
    /// 16 lanes, SHA-NI streams for the rest.
    Sixteen,
    /// 2 x 16 lanes.
    Pair,
}

/// Hashes a batch, cut as told; without SHA-NI in lanes alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn hash(part: Part, mut cut: Cut, job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    let count = batch.count as usize;
    if !has_streams() {
        cut = if count > 16 { Cut::Pair } else { Cut::Sixteen };
    }
    let mut extranonce = [[0; BATCH]; 4];
    if part == Part::Share && cut != Cut::Streams {
        job.extranonce_columns(batch, &mut extranonce);
    }
    let done = match (part, cut) {
        (_, Cut::Streams) => 0,
        (Part::Share, Cut::Sixteen) => {
            roots_16(job, &extranonce, out);
            headers_16(job, batch, out);
            16
        }
        (Part::Header, Cut::Sixteen) => {
            headers_16(job, batch, out);
            16
        }
        (Part::Share, Cut::Pair) => {
            roots_2x16(job, &extranonce, out);
            headers_2x16(job, batch, out);
            32
        }
        (Part::Header, Cut::Pair) => {
            headers_2x16(job, batch, out);
            32
        }
    };
    if done < count {
        match part {
            // SAFETY: without SHA-NI everything was done above, in lanes.
            Part::Share => unsafe { shani::hash(job, batch, done, out) },
            // SAFETY: as above.
            Part::Header => unsafe { shani::hash_headers(job, batch, done, out) },
        }
    }
}

fn has_streams() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// The cheapest cut for each number of shares, on this CPU.
struct Policy {
    shares: [Cut; BATCH + 1],
    headers: [Cut; BATCH + 1],
}

/// Measured once, at boot, in about a millisecond, because CPUs differ: cycles for a V1 share with 12 levels and where the cuts come to lie
/// (`cargo xtask figures kernels` prints them for the machine at hand).
///
/// | CPU | 1 stream, a share | 5 streams, a share | 16 lanes, per batch | 2 x 16 lanes, per batch | 16 lanes from | 2 x 16 from |
/// |---|---|---|---|---|---|---|
/// | Zen 5 (rnds2 every 2 cycles, zmm 2 x as wide) | 6,100 | 3,330 | 33,000 to 34,000 | 40,000 to 41,000 | 11 | 17 to 19 |
/// | Zen 4 (rnds2 every cycle), prototypes before this code | 5,986 | 2,518 | 40,000 | 71,600 | 16 | 29 |
static POLICY: OnceLock<Policy> = OnceLock::new();

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn measure() -> Policy {
    let job = JobTable::new(&Job {
        id: JobId(1),
        coin: Coin::Bitcoin,
        height: 1,
        prev_hash: Hash256([7; 32]),
        version: 0x2000_0000,
        nbits: 0x1703_255b,
        ntime: 1,
        ntime_min: 1,
        coinbase_prefix: vec![1; 80].into(),
        coinbase_suffix: vec![2; 208].into(),
        branch: vec![Hash256([3; 32]); 12].into(),
        extranonce2_bytes: 8,
        network_target: Target([0; 4]),
        clean: true,
        created_us: 0,
    });
    let mut batch = ShareBatch::default();
    let mut out = Judged::default();
    // The least of several runs: whatever else the machine does only adds.
    let mut cost_ns = |part: Part, cut: Cut, count: usize| {
        batch.count = count as u32;
        let mut least = u128::MAX;
        for _ in 0..9 {
            let start = Instant::now();
            hash(part, cut, &job, &batch, &mut out);
            least = least.min(start.elapsed().as_nanos());
        }
        least
    };
    let mut cuts = |part: Part| {
        let pair = cost_ns(part, Cut::Pair, 32);
        let sixteen = cost_ns(part, Cut::Sixteen, 16);
        let mut streams = [0; BATCH + 1];
        for count in 1..=BATCH {
            streams[count] = if count <= shani::STREAMS_MAX {
                cost_ns(part, Cut::Streams, count)
            } else {
                let group = shani::group(count);
                streams[group] + streams[count - group]
            };
        }
        let mut cuts = [Cut::Streams; BATCH + 1];
        for (count, cut) in cuts.iter_mut().enumerate() {
            let with_sixteen = sixteen + streams[count.saturating_sub(16)];
            let least = pair.min(with_sixteen).min(streams[count]);
            *cut = if least == streams[count] {
                Cut::Streams
            } else if least == with_sixteen {
                Cut::Sixteen
            } else {
                Cut::Pair
            };
        }
        cuts
    };
    Policy { shares: cuts(Part::Share), headers: cuts(Part::Header) }
}

/// Number of shares from which each cut is taken: (16 lanes, 2 x 16 lanes), `BATCH + 1` for never.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn cuts() -> (usize, usize) {
    let policy = POLICY.get_or_init(|| measure());
    let from = |wanted: Cut| policy.shares.iter().position(|&cut| cut == wanted).unwrap_or(BATCH + 1);
    (from(Cut::Sixteen), from(Cut::Pair))
}

/// Judges a batch.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn judge(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    let policy = POLICY.get_or_init(|| measure());
    hash(Part::Share, policy.shares[batch.count as usize], job, batch, out);
    compare(job, batch, out);
}

/// Judges a batch by its roots.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn judge_headers(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    let policy = POLICY.get_or_init(|| measure());
    hash(Part::Header, policy.headers[batch.count as usize], job, batch, out);
    compare(job, batch, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256d::tests::{Random, random_batch, random_job};
    use crate::sha256d::{Isa, scalar};

    #[test]
    fn every_cut_of_every_count_agrees_with_scalar() {
        if !Isa::available().contains(&Isa::Avx512) {
            println!("skipped: the cuts of AVX-512: this CPU does not have it");
            return;
        }
        let mut random = Random(0x5eed);
        for count in 1..=BATCH {
            let job = JobTable::new(&random_job(&mut random));
            let batch = random_batch(&mut random, count);
            let mut expected = Judged::default();
            scalar::judge(&job, &batch, &mut expected);
            for cut in [Cut::Streams, Cut::Sixteen, Cut::Pair] {
                if cut == Cut::Sixteen && count > 16 && !has_streams() {
                    continue;
                }
                let mut out = Judged::default();
                // SAFETY: the CPU has AVX-512.
                unsafe { hash(Part::Share, cut, &job, &batch, &mut out) };
                for share in 0..count {
                    assert_eq!(out.hash_of(share), expected.hash_of(share), "{cut:?}, share {share} of {count}");
                }
                let mut again = Judged { root: out.root, ..Judged::default() };
                // SAFETY: the CPU has AVX-512.
                unsafe { hash(Part::Header, cut, &job, &batch, &mut again) };
                for share in 0..count {
                    assert_eq!(again.hash_of(share), expected.hash_of(share), "{cut:?} by roots, share {share} of {count}");
                }
            }
        }
    }
}
