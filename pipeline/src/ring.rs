//! Rings: `rtrb` behind typed, named ends. One producer, one consumer; publishing once per pass is what makes them cheap.
use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the producer of a ring does when it is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// It waits: the stage reports backpressure and takes no input.
    Wait,
    /// It cannot be: the ring is as deep as what can be under way. Asserted.
    Never,
    /// It leaves the record out and counts it; the record can be found in the log.
    Flag,
}

impl Full {
    /// Word in `check` and docs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Never => "never",
            Self::Flag => "flag",
        }
    }
}

/// Records that went into and came out of a ring, published in housekeeping: two counters instead of one gauge, so that neither side writes the other's line.
#[derive(Debug, Default)]
pub struct RingFill {
    produced: CachePadded<AtomicU64>,
    consumed: CachePadded<AtomicU64>,
}

/// Name and shape of a ring, for `check`, stats and docs.
#[derive(Clone, Debug)]
pub struct RingInfo {
    /// `<producer>_<consumer>:<index>`.
    pub name: String,
    /// Records it holds, a power of two.
    pub depth: usize,
    /// Bytes of a record.
    pub record_bytes: usize,
    /// What its producer does when it is full.
    pub full: Full,
    fill: Arc<RingFill>,
}

impl RingInfo {
    /// Records in the ring as of the last housekeeping of both ends.
    pub fn used(&self) -> u64 {
        // Relaxed: two independent statistics; a torn pair is clamped.
        let consumed = self.fill.consumed.load(Ordering::Relaxed);
        self.fill.produced.load(Ordering::Relaxed).saturating_sub(consumed).min(self.depth as u64)
    }

    /// Records that came out since the start.
    pub fn consumed(&self) -> u64 {
        self.fill.consumed.load(Ordering::Relaxed)
    }
}

/// The producing end.
#[derive(Debug)]
pub struct Tx<T> {
    ring: rtrb::Producer<T>,
    produced: u64,
    fill: Arc<RingFill>,
}

/// The consuming end.
#[derive(Debug)]
pub struct Rx<T> {
    ring: rtrb::Consumer<T>,
    consumed: u64,
    fill: Arc<RingFill>,
}

/// Makes a ring of `depth` records, a power of two.
pub fn ring<T>(name: impl Into<String>, depth: usize, full: Full) -> (Tx<T>, Rx<T>, RingInfo) {
    assert!(depth.is_power_of_two(), "a ring's depth is a power of two");
    let (producer, consumer) = rtrb::RingBuffer::new(depth);
    let fill = Arc::new(RingFill::default());
    let info = RingInfo { name: name.into(), depth, record_bytes: size_of::<T>(), full, fill: fill.clone() };
    (Tx { ring: producer, produced: 0, fill: fill.clone() }, Rx { ring: consumer, consumed: 0, fill }, info)
}

impl<T> Tx<T> {
    /// Records that can be pushed now. Rereads the consumer's index, so that a caller who waits for a whole batch never waits on stale credits.
    #[inline]
    pub fn room(&self) -> usize {
        self.ring.slots()
    }

    /// Pushes one record; gives it back when the ring is full.
    #[inline]
    pub fn push(&mut self, record: T) -> Result<(), T> {
        match self.ring.push(record) {
            Ok(()) => {
                self.produced += 1;
                Ok(())
            }
            Err(rtrb::PushError::Full(record)) => Err(record),
        }
    }

    /// Publishes this end's counter.
    pub fn publish(&self) {
        self.fill.produced.store(self.produced, Ordering::Relaxed);
    }
}

impl<T: Copy> Tx<T> {
    /// Pushes all records with one publication. The caller has asked for the room.
    #[inline]
    pub fn push_all(&mut self, records: &[T]) {
        if records.is_empty() {
            return;
        }
        match self.ring.write_chunk_uninit(records.len()) {
            Ok(chunk) => {
                let pushed = chunk.fill_from_iter(records.iter().copied());
                assert_eq!(pushed, records.len(), "a chunk takes as many records as it was asked for");
                self.produced += pushed as u64;
            }
            Err(error) => panic!("pushed without asking for room: {error}"),
        }
    }
}

impl<T> Rx<T> {
    /// Records that can be taken now.
    #[inline]
    pub fn available(&self) -> usize {
        self.ring.slots()
    }

    /// Takes one record.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let record = self.ring.pop().ok()?;
        self.consumed += 1;
        Some(record)
    }

    /// Publishes this end's counter.
    pub fn publish(&self) {
        self.fill.consumed.store(self.consumed, Ordering::Relaxed);
    }
}

impl<T: Copy> Rx<T> {
    /// Copies out up to `into.len()` records and frees their places at once; returns how many.
    #[inline]
    pub fn take_into(&mut self, into: &mut [T]) -> usize {
        let count = self.ring.slots().min(into.len());
        if count == 0 {
            return 0;
        }
        let Ok(chunk) = self.ring.read_chunk(count) else { return 0 };
        let (first, second) = chunk.as_slices();
        into[..first.len()].copy_from_slice(first);
        into[first.len()..count].copy_from_slice(second);
        chunk.commit_all();
        self.consumed += count as u64;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_producer_that_waits_for_a_whole_batch_never_waits_on_stale_credits() {
        // facts: with depth 8, "reread only when full" starved a producer that wanted 5.
        for want in 1..=8usize {
            let (mut tx, mut rx, _) = ring::<u64>("a_b", 8, Full::Wait);
            let (mut sent, mut got) = (0u64, 0u64);
            for _ in 0..1000 {
                if tx.room() >= want {
                    let batch: Vec<u64> = (sent..sent + want as u64).collect();
                    tx.push_all(&batch);
                    sent += want as u64;
                }
                while let Some(value) = rx.pop() {
                    assert_eq!(value, got);
                    got += 1;
                }
            }
            assert_eq!(sent, want as u64 * 1000, "want {want}");
        }
    }

    proptest! {
        #[test]
        fn records_come_out_once_and_in_order(ops in prop::collection::vec((any::<bool>(), 1usize..9), 1..200)) {
            let (mut tx, mut rx, info) = ring::<u64>("a_b", 8, Full::Wait);
            let (mut sent, mut got) = (0u64, 0u64);
            for (push, count) in ops {
                if push {
                    let count = count.min(tx.room());
                    let batch: Vec<u64> = (sent..sent + count as u64).collect();
                    tx.push_all(&batch);
                    sent += count as u64;
                } else {
                    let mut out = [0u64; 8];
                    let taken = rx.take_into(&mut out[..count.min(8)]);
                    for value in &out[..taken] { prop_assert_eq!(*value, got); got += 1; }
                }
                tx.publish();
                rx.publish();
                prop_assert_eq!(info.used(), sent - got);
                prop_assert_eq!(tx.room() as u64, 8 - (sent - got));
            }
        }
    }
}
