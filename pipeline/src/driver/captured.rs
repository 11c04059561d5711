//! A driver that writes down what its net reads and writes, for `otedama serve --capture`. A server without it runs the plain driver and pays nothing.
//!
//! The net never waits for it: entries go into a ring of bounded size, a thread of its own writes them to the disk, and what finds the ring full is left out and
//! counted, in the metrics and in the capture itself. Format: `otedama_primitives::capture`.
use super::{Driver, Event, JobNote, Slot};
use crate::metrics::{CaptureCounts, CaptureMetrics};
use crate::ring::{Full, Rx, Tx, ring};
use otedama_primitives::capture::{BLOCK_BYTES_MAX, Entry, HEADER_BYTES, JobEntry, PAYLOAD_BYTES_MAX, block_header, file_header};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Words of 8 bytes that wait for the writer at most: 32 MiB for each net.
pub const CAPTURE_RING_WORDS: usize = 1 << 22;
/// How often the writer looks when there was nothing.
const WRITER_SLEEP: Duration = Duration::from_millis(2);
/// How long a net that ends waits for room for the last entry.
const END_WAIT: Duration = Duration::from_secs(2);
/// Words of `Lost`, `Full` and `End` together, each in a block of its own: kept back from the size of the file.
const LAST_WORDS: u64 = 16;

/// What the two sides of a capture share.
#[derive(Debug, Default)]
struct Ends {
    /// The net has put its last entry.
    done: AtomicBool,
    /// The writer has given up.
    broken: AtomicBool,
}

/// A driver and the notes of what it did.
#[derive(Debug)]
pub struct Captured<D> {
    inner: D,
    notes: Notes,
}

/// The net's side of a capture.
#[derive(Debug)]
struct Notes {
    tx: Tx<u64>,
    ends: Arc<Ends>,
    staged: Vec<u64>,
    started: Instant,
    /// Words that the file still takes.
    words_left: u64,
    /// Entries left out since the last one that found room, and their bytes.
    lost: (u32, u64),
    ended: bool,
    counts: CaptureCounts,
    metrics: Arc<CaptureMetrics>,
}

/// The other side: brings a net's entries to where they are kept.
#[derive(Debug)]
pub struct CaptureWriter {
    rx: Rx<u64>,
    ends: Arc<Ends>,
    net: u32,
}

impl<D> Captured<D> {
    /// Wraps the driver of `net`. Times count from `started`; `bytes_max` is the size that the wire file may have.
    pub fn new(inner: D, net: u32, started: Instant, bytes_max: u64) -> (Self, CaptureWriter, Arc<CaptureMetrics>) {
        Self::with_ring(inner, net, started, bytes_max, CAPTURE_RING_WORDS)
    }

    fn with_ring(inner: D, net: u32, started: Instant, bytes_max: u64, words: usize) -> (Self, CaptureWriter, Arc<CaptureMetrics>) {
        let (tx, rx, _) = ring(format!("net_capture:{net}"), words, Full::Flag);
        let (ends, metrics) = (Arc::<Ends>::default(), Arc::<CaptureMetrics>::default());
        let notes = Notes {
            tx,
            ends: ends.clone(),
            staged: Vec::with_capacity(PAYLOAD_BYTES_MAX / 8 + 16),
            started,
            words_left: bytes_max.saturating_sub(HEADER_BYTES as u64) / 8,
            lost: (0, 0),
            ended: false,
            counts: CaptureCounts::default(),
            metrics: metrics.clone(),
        };
        (Self { inner, notes }, CaptureWriter { rx, ends, net }, metrics)
    }
}

impl Notes {
    /// Takes an entry down, if there is room for it.
    fn take(&mut self, entry: &Entry<'_>) {
        if self.ended {
            return;
        }
        let at_us = self.started.elapsed().as_micros() as u64;
        self.stage_lost(at_us);
        let before = self.staged.len();
        entry.put(at_us, &mut self.staged);
        let bytes = 8 * (self.staged.len() - before) as u64;
        // At worst every entry is written as a block of its own, whose header is a word.
        let words = self.staged.len() as u64 + 1;
        // Relaxed: nothing is read behind it.
        if self.ends.broken.load(Ordering::Relaxed) {
            return self.end();
        }
        let is_full = words + LAST_WORDS > self.words_left;
        if is_full {
            self.stage_lost(at_us);
            Entry::Full.put(at_us, &mut self.staged);
        }
        match (self.push(), is_full) {
            (true, true) => self.end(),
            (true, false) => {
                self.words_left -= words;
                self.lost = (0, 0);
                self.counts.entry_taken += 1;
                self.counts.byte_taken += bytes;
            }
            (false, _) => {
                self.lost = (self.lost.0.saturating_add(1), self.lost.1 + bytes);
                self.counts.entry_lost += 1;
                self.counts.byte_lost += bytes;
            }
        }
    }

    /// Begins what is staged anew, with the word on what is missing, if anything is.
    fn stage_lost(&mut self, at_us: u64) {
        self.staged.clear();
        if self.lost.0 > 0 {
            Entry::Lost { entries: self.lost.0, bytes: self.lost.1 }.put(at_us, &mut self.staged);
        }
    }

    fn push(&mut self) -> bool {
        let has_room = self.tx.room() >= self.staged.len();
        if has_room {
            self.tx.push_all(&self.staged);
        }
        has_room
    }

    fn end(&mut self) {
        self.ended = true;
        self.counts.ended_state = 1;
        self.counts.publish(&self.metrics);
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        // The net has drained: nothing is left that this could delay.
        let at_us = self.started.elapsed().as_micros() as u64;
        if self.ended {
            self.lost = (0, 0);
        }
        self.stage_lost(at_us);
        Entry::End.put(at_us, &mut self.staged);
        let since = Instant::now();
        while !self.push() && since.elapsed() < END_WAIT && !self.ends.broken.load(Ordering::Relaxed) {
            std::thread::sleep(WRITER_SLEEP);
        }
        self.counts.publish(&self.metrics);
        // Release pairs with the Acquire of the writer: who sees this sees everything that was pushed.
        self.ends.done.store(true, Ordering::Release);
    }
}

impl<D: Driver> Driver for Captured<D> {
    fn poll(&mut self, timeout: Duration) -> io::Result<()> {
        self.notes.counts.publish(&self.notes.metrics);
        self.inner.poll(timeout)
    }

    fn event(&mut self) -> Option<Event> {
        let event = self.inner.event()?;
        match event {
            Event::Opened { slot, peer } => self.notes.take(&Entry::Opened { slot, peer: &peer.to_string() }),
            Event::Closed { slot } => self.notes.take(&Entry::Left { slot }),
            Event::Bytes { slot } => {
                for bytes in self.inner.bytes().chunks(PAYLOAD_BYTES_MAX) {
                    self.notes.take(&Entry::In { slot, bytes });
                }
            }
        }
        Some(event)
    }

    fn bytes(&self) -> &[u8] {
        self.inner.bytes()
    }

    fn reply(&mut self, slot: Slot, bytes: &[u8]) {
        for bytes in bytes.chunks(PAYLOAD_BYTES_MAX) {
            self.notes.take(&Entry::Out { slot, bytes });
        }
        self.inner.reply(slot, bytes);
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn close(&mut self, slot: Slot) {
        self.notes.take(&Entry::Shut { slot });
        self.inner.close(slot);
    }

    fn accept(&mut self, open: bool) {
        self.inner.accept(open);
    }

    fn note_job(&mut self, job: &JobNote) {
        let JobNote { counter, wire_id, height, lines } = *job;
        self.notes.take(&Entry::Job(JobEntry { counter, wire_id, height, lines }));
        self.inner.note_job(job);
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }

    fn closed_slow(&self) -> u64 {
        self.inner.closed_slow()
    }

    fn refused(&self) -> u64 {
        self.inner.refused()
    }

    fn without_buffer(&self) -> u64 {
        self.inner.without_buffer()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}

impl CaptureWriter {
    /// Writes the wire file, until its net has ended. After an error the net goes on without a capture.
    pub fn run(mut self, to: &mut impl Write) -> io::Result<()> {
        let outcome = self.write(to);
        if outcome.is_err() {
            // Relaxed: the net takes note of it sooner or later; nothing is published with it.
            self.ends.broken.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn write(&mut self, to: &mut impl Write) -> io::Result<()> {
        let mut words = vec![0u64; BLOCK_BYTES_MAX / 8];
        to.write_all(&file_header(self.net))?;
        loop {
            // Looked at before the ring is. Acquire pairs with the Release of a net that has put its last entry.
            let is_last = self.ends.done.load(Ordering::Acquire);
            let count = self.rx.take_into(&mut words);
            if count > 0 {
                // In memory as in the file: little-endian, on every machine that this is built for; others swap.
                words[..count].iter_mut().for_each(|word| *word = word.to_le());
                let payload: &[u8] = bytemuck::cast_slice(&words[..count]);
                to.write_all(&block_header(payload))?;
                to.write_all(payload)?;
            } else if is_last {
                return to.flush();
            } else {
                std::thread::sleep(WRITER_SLEEP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::capture::{CaptureError, CaptureReader};
    use std::collections::VecDeque;

    /// Events and the bytes that come with them, out of a list; what is replied is dropped.
    #[derive(Default)]
    struct Script {
        events: VecDeque<(Event, Vec<u8>)>,
        bytes: Vec<u8>,
    }

    impl Driver for Script {
        fn poll(&mut self, _: Duration) -> io::Result<()> {
            Ok(())
        }
        fn event(&mut self) -> Option<Event> {
            let (event, bytes) = self.events.pop_front()?;
            self.bytes = bytes;
            Some(event)
        }
        fn bytes(&self) -> &[u8] {
            &self.bytes
        }
        fn reply(&mut self, _: Slot, _: &[u8]) {}
        fn flush(&mut self) {}
        fn close(&mut self, _: Slot) {}
        fn accept(&mut self, _: bool) {}
        fn bytes_sent(&self) -> u64 {
            0
        }
        fn closed_slow(&self) -> u64 {
            0
        }
        fn refused(&self) -> u64 {
            0
        }
        fn name(&self) -> &'static str {
            "script"
        }
    }

    fn script(lines: usize) -> Script {
        let opened = Event::Opened { slot: 3, peer: "127.0.0.1:9".parse().expect("address") };
        let mut events = VecDeque::from([(opened, vec![])]);
        events.extend((0..lines).map(|line| (Event::Bytes { slot: 3 }, vec![line as u8; 90])));
        Script { events, bytes: vec![] }
    }

    /// Everything up to `End` or to an error, as text.
    fn entries(file: &[u8]) -> (Vec<String>, Option<CaptureError>) {
        let mut texts = vec![];
        let mut reader = CaptureReader::new(file).expect("a header");
        loop {
            match reader.next_entry() {
                Ok(Some((entry, _))) => texts.push(format!("{entry:?}")),
                Ok(None) => return (texts, None),
                Err(error) => return (texts, Some(error)),
            }
        }
    }

    #[test]
    fn what_a_net_reads_and_writes_stands_in_the_file_in_its_order() {
        let mut script = script(1);
        script.events.push_back((Event::Bytes { slot: 3 }, vec![7; 2 * PAYLOAD_BYTES_MAX + 1]));
        script.events.push_back((Event::Closed { slot: 3 }, vec![]));
        let (mut driver, writer, metrics) = Captured::new(script, 5, Instant::now(), 1 << 30);
        driver.note_job(&JobNote { counter: 1, wire_id: 2, height: 3, lines: 0 });
        while let Some(event) = driver.event() {
            if let Event::Bytes { slot } = event
                && driver.bytes().len() == 90
            {
                driver.reply(slot, b"well\n");
            }
        }
        driver.close(9);
        drop(driver);
        let mut file = vec![];
        writer.run(&mut file).expect("memory");
        let (texts, error) = entries(&file);
        assert!(error.is_none(), "{error:?}");
        let shape: Vec<&str> = texts.iter().map(|text| text.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(shape, ["Job(JobEntry", "Opened", "In", "Out", "In", "In", "In", "Left", "Shut", "End"]);
        assert_eq!(CaptureReader::new(&file[..]).expect("header").net(), 5);
        assert_eq!(metrics.entry_taken.load(Ordering::Relaxed), 9);
        assert_eq!(metrics.entry_lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_writer_that_is_behind_costs_entries_and_never_time_and_the_capture_says_so() {
        let (mut driver, writer, metrics) = Captured::with_ring(script(1000), 0, Instant::now(), 1 << 30, 1 << 10);
        // Nobody writes: the ring takes what it takes, and the net goes on.
        let mut events = 0;
        while driver.event().is_some() {
            events += 1;
        }
        assert_eq!(events, 1001);
        let writing = std::thread::spawn(move || {
            let mut file = vec![];
            writer.run(&mut file).map(|()| file)
        });
        drop(driver);
        let file = writing.join().expect("no panic").expect("memory");
        let (texts, error) = entries(&file);
        assert!(error.is_none(), "{error:?}");
        let (taken, lost) = (metrics.entry_taken.load(Ordering::Relaxed), metrics.entry_lost.load(Ordering::Relaxed));
        assert!(taken > 50 && lost > 500 && taken + lost == 1001, "{taken} {lost}");
        assert_eq!(texts.len() as u64, taken + 2);
        let bytes = metrics.byte_lost.load(Ordering::Relaxed);
        assert_eq!(texts[texts.len() - 2..], [format!("Lost {{ entries: {lost}, bytes: {bytes} }}"), "End".to_owned()]);
    }

    #[test]
    fn a_capture_ends_at_its_size_and_says_so() {
        for bytes_max in [0, 100, 1_000, 10_000] {
            let (mut driver, writer, metrics) = Captured::new(script(1000), 0, Instant::now(), bytes_max);
            while driver.event().is_some() {}
            assert_eq!(metrics.ended_state.load(Ordering::Relaxed), 1);
            drop(driver);
            let mut file = vec![];
            writer.run(&mut file).expect("memory");
            // A header, `Full` and `End` come to 64 bytes whatever the size.
            assert!(file.len() as u64 <= bytes_max.max(64), "{} of {bytes_max}", file.len());
            let (texts, error) = entries(&file);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(texts[texts.len() - 2..], ["Full", "End"]);
        }
    }

    /// A disk that is full after so many bytes.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_not_the_net() {
        let (mut driver, writer, metrics) = Captured::new(script(1000), 0, Instant::now(), 1 << 30);
        assert!(driver.event().is_some() && driver.event().is_some());
        let error = writer.run(&mut Disk(100)).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut events = 2;
        while driver.event().is_some() {
            events += 1;
        }
        assert_eq!((events, metrics.ended_state.load(Ordering::Relaxed)), (1001, 1));
    }
}
