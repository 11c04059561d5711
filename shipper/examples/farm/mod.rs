//! The shares of a large farm, for the examples that measure.
#![allow(dead_code, reason = "each example uses a part of it")]

use otedama_primitives::{Coin, ShareRow, ShareStatus};

/// Arrival of its first share, microseconds since the epoch.
pub const FARM_US: u64 = 1_795_218_379_000_000;

/// A number that looks random, the same for the same input (SplitMix64).
pub fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A farm at a million shares a second: 100,000 workers, half of the shares from a tenth of them, two refusals in a hundred.
pub fn farm(number: u64) -> ShareRow {
    let (one, two) = (mixed(number), mixed(number ^ (1 << 63)));
    let worker = if one & 1 == 0 { two % 10_000 } else { two % 100_000 };
    let exponent = mixed(worker) % 8;
    ShareRow {
        worker: mixed(worker ^ 77),
        work: 1 << (36 + exponent),
        extranonce2: number / 100_000,
        arrival_us: FARM_US + number,
        session: 1 + worker as u32,
        job: 1 + (number / 30_000_000) as u32,
        nonce: (one >> 32) as u32,
        ntime: (FARM_US / 1_000_000) as u32 + (number / 1_000_000) as u32,
        version: 0x2000_0000 | (two as u32 & 0x1fff_e000),
        share_difficulty: (1 << exponent) as f32 / (1e-6 + (two >> 40) as f32 / (1 << 24) as f32),
        latency_us: 20 + (one >> 58) as u32,
        status: if one.is_multiple_of(50) { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
        flags: 0,
        net: 0,
        coin: Coin::Bitcoin as u8,
    }
}
