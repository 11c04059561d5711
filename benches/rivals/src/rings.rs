//! `rtrb` with its chunk API against crossbeam's `ArrayQueue`: one producer, one consumer, records of one cache line.
use crate::cycles::{SAMPLES, SideBySide, pin};
use crate::{Machine, Row, least};
use crossbeam_queue::ArrayQueue;
use otedama_primitives::Submit;
use std::hint::black_box;
use std::time::Instant;

const DEPTH: usize = 1 << 14;
/// Records of one pass, as the stages take them.
const BATCH: u32 = 64;
/// Records of one round with two threads.
const RECORDS: u32 = 1 << 21;
const ROUNDS: usize = 9;

fn record(number: u32) -> Submit {
    Submit { nonce: number, ..bytemuck::Zeroable::zeroed() }
}

/// Compares on one thread, which is the cost of the code, and on two, which is the cost of the lines that move between cores.
pub fn run(machine: &Machine) -> Result<Vec<Row>, String> {
    let mut rows = vec![one_thread()];
    if machine.other == machine.core {
        eprintln!("rings: one core only, so that nothing is measured between two");
        return Ok(rows);
    }
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        taken.push(two_threads_rtrb(machine)?);
        refused.push(two_threads_queue(machine)?);
    }
    rows.push(Row {
        taken: ("rtrb, chunks of 64", least(&taken)),
        refused: ("crossbeam ArrayQueue", least(&refused)),
        unit: "ns/record",
        counted: "wall time of 2^21 records of 64 bytes between two pinned cores, least of 9 rounds in turn",
    });
    Ok(rows)
}

fn push_chunk(tx: &mut rtrb::Producer<Submit>, from: u32, room: u32) {
    if let Ok(chunk) = tx.write_chunk_uninit(room as usize) {
        chunk.fill_from_iter((from..from + room).map(record));
    }
}

fn one_thread() -> Row {
    let (mut tx, mut rx) = rtrb::RingBuffer::<Submit>::new(DEPTH);
    let queue = ArrayQueue::<Submit>::new(DEPTH);
    let mut bench = SideBySide::new();
    bench.add("rtrb", BATCH, || {
        push_chunk(&mut tx, 0, BATCH);
        rx.read_chunk(BATCH as usize).map_or(0, |chunk| chunk.into_iter().fold(0, |sum, one| sum + u64::from(black_box(one).nonce)))
    });
    bench.add("queue", BATCH, || {
        for number in 0..BATCH {
            // It has room: it is empty before each call.
            let _ = queue.push(record(number));
        }
        std::iter::from_fn(|| queue.pop()).fold(0, |sum, one| sum + u64::from(black_box(one).nonce))
    });
    let measured = bench.run(SAMPLES);
    Row {
        taken: ("rtrb, chunks of 64", measured[0].cycles),
        refused: ("crossbeam ArrayQueue", measured[1].cycles),
        unit: "cycles/record",
        counted: "64 records of 64 bytes pushed, then popped, on one thread, 2nd percentile of 400 samples",
    }
}

/// Nanoseconds a record, and an error when one was lost, doubled or out of order.
fn finish(start: Instant, in_order: bool) -> Result<f64, String> {
    let ns = start.elapsed().as_nanos() as f64 / f64::from(RECORDS);
    if in_order { Ok(ns) } else { Err("records came in another order than they went in".to_owned()) }
}

fn two_threads_rtrb(machine: &Machine) -> Result<f64, String> {
    let (mut tx, mut rx) = rtrb::RingBuffer::<Submit>::new(DEPTH);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = pin(Some(machine.other));
            let mut sent = 0;
            while sent < RECORDS {
                let room = (tx.slots() as u32).min(BATCH);
                push_chunk(&mut tx, sent, room);
                sent += room;
            }
        });
        let (start, mut next, mut in_order) = (Instant::now(), 0, true);
        while next < RECORDS {
            let there = rx.slots().min(BATCH as usize);
            if let Ok(chunk) = rx.read_chunk(there) {
                for one in chunk {
                    in_order &= one.nonce == next;
                    next += 1;
                }
            }
        }
        finish(start, in_order)
    })
}

fn two_threads_queue(machine: &Machine) -> Result<f64, String> {
    let queue = ArrayQueue::<Submit>::new(DEPTH);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = pin(Some(machine.other));
            let mut sent = 0;
            while sent < RECORDS {
                sent += u32::from(queue.push(record(sent)).is_ok());
            }
        });
        let (start, mut next, mut in_order) = (Instant::now(), 0, true);
        while next < RECORDS {
            if let Some(one) = queue.pop() {
                in_order &= one.nonce == next;
                next += 1;
            }
        }
        finish(start, in_order)
    })
}
