//! `sha2`, which picks SHA-NI at run time, against `sha2-asm`, which assembles a scalar routine on x86-64.
use crate::cycles::{SAMPLES, SideBySide};
use crate::{Machine, Row};
use sha2::block_api::compress256;
use std::hint::black_box;

/// Blocks of one call, chained as in a long message.
const BLOCKS: u32 = 64;

/// Compares one compression.
pub fn run(_: &Machine) -> Result<Vec<Row>, String> {
    let blocks: Vec<[u8; 64]> = (0..BLOCKS).map(|block| std::array::from_fn(|at| (at as u32 * 7 + block * 13) as u8)).collect();
    let (mut taken, mut refused) = ([1; 8], [1; 8]);
    compress256(&mut taken, &blocks);
    sha2_asm::compress256(&mut refused, &blocks);
    if taken != refused {
        return Err("sha2 and sha2-asm give different states: nothing is measured".to_owned());
    }
    let mut bench = SideBySide::new();
    bench.add("sha2", BLOCKS, || {
        compress256(&mut taken, black_box(&blocks));
        u64::from(taken[0])
    });
    bench.add("sha2-asm", BLOCKS, || {
        sha2_asm::compress256(&mut refused, black_box(&blocks));
        u64::from(refused[0])
    });
    let measured = bench.run(SAMPLES);
    eprintln!("core at {:.0} MHz, checksum {:016x}", bench.core_mhz(), bench.checksum());
    Ok(vec![Row {
        taken: ("sha2 0.11 compress256", measured[0].cycles),
        refused: ("sha2-asm 0.6.4 compress256", measured[1].cycles),
        unit: "cycles/block",
        counted: "one 64-byte block of 64 chained, 2nd percentile of 400 samples",
    }])
}
