//! The workers that one connection may submit for.
//!
//! A miner has one, and pays for its name alone. A proxy has up to thousands and interleaves them, so that each share asks for another one: those stand in a hash
//! table, a few small allocations for all of them and some 40 bytes each beside the name. As names of a proxy come in no order and differ in length, a look-up that
//! branched on either would be foretold wrongly again and again: names of fewer than 64 bytes are hashed and compared as 64, whatever their length.
use super::marks::{BLOCK, of_byte, sixteens};
use otedama_primitives::{WorkerId, WorkerName};
use std::hash::{BuildHasher, RandomState};
use wide::{bytemuck, u8x16};

/// The workers of a connection, looked up by name.
#[derive(Debug)]
pub struct Workers {
    /// Empty while there is none.
    first_name: Box<str>,
    first: WorkerId,
    /// All of them, once there are two.
    table: Option<Box<Table>>,
}

#[derive(Debug)]
struct Table {
    /// Names one after the other, and a block of nothing, so that a whole block can be read wherever a name begins.
    names: Vec<u8>,
    entries: Vec<Entry>,
    /// Open addressing: number of the entry + 1, 0 where there is none; a power of two of places, at most a quarter of them taken: a second look is a branch that is
    /// foretold wrongly.
    places: Box<[u16]>,
    /// Drawn for each table, so that nobody can choose names that collide.
    seeds: [u64; BLOCK / 8],
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: WorkerId,
    name_at: u32,
    name_bytes: u8,
}

/// A name of fewer than 64 bytes, zeros behind it.
type Name = [u8x16; BLOCK / 16];

const _: () = assert!(size_of::<Workers>() <= 32, "one of these is kept for every connection");
const _: () = assert!(WorkerName::BYTES_MAX <= u8::MAX as usize && WorkerName::BYTES_MAX <= 2 * BLOCK);

/// What is left of a block that ends after n bytes: the words from byte `BLOCK - n` on are its mask.
const KEPT: [u8; 2 * BLOCK] = {
    let mut kept = [0; 2 * BLOCK];
    let mut at = 0;
    while at < BLOCK {
        kept[at] = 0xff;
        at += 1;
    }
    kept
};

impl Default for Workers {
    fn default() -> Self {
        Self { first_name: Box::default(), first: WorkerId(0), table: None }
    }
}

impl Workers {
    /// Workers of a connection at most: their numbers have 16 bits, and one number is "none".
    pub const MAX: usize = u16::MAX as usize;
    /// Bytes that a worker takes at most where there are several, its name of the greatest length and the slack of growing tables included.
    pub const EACH_BYTES_MAX: usize = 2 * (WorkerName::BYTES_MAX + size_of::<Entry>() + 4 * size_of::<u16>());

    /// True while there is none.
    pub fn is_empty(&self) -> bool {
        self.first_name.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.as_ref().map_or(usize::from(!self.is_empty()), |table| table.entries.len())
    }

    /// The worker that was added first; 0 while there is none.
    pub fn first(&self) -> WorkerId {
        self.first
    }

    /// Adds a worker that is not in it yet; there must be room (`MAX`).
    pub fn add(&mut self, name: &WorkerName<'_>, id: WorkerId) {
        assert!(self.len() < Self::MAX, "the caller keeps the limit");
        if self.is_empty() {
            (self.first_name, self.first) = (name.as_str().into(), id);
            return;
        }
        let table = self.table.get_or_insert_with(|| {
            let random = RandomState::new();
            let seeds = std::array::from_fn(|index| random.hash_one(index));
            let mut table = Box::new(Table { names: vec![0; BLOCK], entries: Vec::new(), places: Box::new([0; 8]), seeds });
            table.add(self.first_name.as_bytes(), self.first);
            table
        });
        table.add(name.as_str().as_bytes(), id);
    }

    /// The worker of this name as it came from the wire, if it is in it.
    #[inline]
    pub fn find(&self, raw: &[u8]) -> Option<WorkerId> {
        if let Some(found) = self.search(raw) {
            return Some(found);
        }
        // What was added is normalised; what comes from the wire need not be.
        let name = WorkerName::new(raw).ok()?;
        if name.as_str().len() == raw.len() { None } else { self.search(name.as_str().as_bytes()) }
    }

    /// The worker whose name stands at the start of `text`, up to a quote: the bytes of its name, and its identity.
    #[inline(always)]
    pub fn find_quoted(&self, text: &[u8]) -> Option<(usize, WorkerId)> {
        let Some(table) = &self.table else {
            let bytes = self.first_name.len();
            return (text.get(bytes) == Some(&b'"') && text.starts_with(self.first_name.as_bytes()) && bytes > 0)
                .then_some((bytes, self.first));
        };
        let Some(block) = text.first_chunk::<BLOCK>() else { return table.find_quoted_near_end(text) };
        let quotes = of_byte(block, b'"');
        if quotes == 0 {
            return table.find_quoted_near_end(text);
        }
        let bytes = quotes.trailing_zeros() as usize;
        let found = table.search_block(&masked(block, bytes), bytes)?;
        Some((bytes, found))
    }

    /// Exactly this name.
    #[inline]
    fn search(&self, name: &[u8]) -> Option<WorkerId> {
        match &self.table {
            Some(table) => table.search(name),
            None => (self.first_name.as_bytes() == name && !name.is_empty()).then_some(self.first),
        }
    }
}

/// The first `bytes` of a block, which are fewer than it has.
#[inline(always)]
fn masked(block: &[u8; BLOCK], bytes: usize) -> Name {
    let Some(kept) = KEPT.get(BLOCK - bytes..).and_then(|kept| kept.first_chunk::<BLOCK>()) else { return [u8x16::ZERO; BLOCK / 16] };
    let (block, kept) = (sixteens(block), sixteens(kept));
    [block[0] & kept[0], block[1] & kept[1], block[2] & kept[2], block[3] & kept[3]]
}

/// A name of at most 64 bytes that is not known to be followed by anything.
#[inline(always)]
fn padded(name: &[u8]) -> Name {
    let mut words = [0u64; BLOCK / 8];
    let (whole, rest) = name.as_chunks::<8>();
    for (word, bytes) in words.iter_mut().zip(whole) {
        *word = u64::from_le_bytes(*bytes);
    }
    if let Some(word) = words.get_mut(whole.len())
        && !rest.is_empty()
    {
        *word = match name.last_chunk::<8>() {
            // The last eight, without those that are in the word before.
            Some(last) => u64::from_le_bytes(*last) >> (64 - 8 * rest.len()),
            None => rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)),
        };
    }
    bytemuck::cast(words)
}

#[inline(always)]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

impl Table {
    #[inline(always)]
    fn hash(&self, name: &Name) -> u64 {
        // Four products that do not wait for each other. Names have no zeros, so that those behind a name make it no other one.
        let words: [u64; BLOCK / 8] = bytemuck::cast(*name);
        let pair = |at: usize| fold(words[at] ^ self.seeds[at], words[at + 1] ^ self.seeds[at + 1]);
        pair(0) ^ pair(2) ^ pair(4) ^ pair(6)
    }

    /// A name of 64 bytes or more.
    #[cold]
    fn hash_long(&self, name: &[u8]) -> u64 {
        let (start, rest) = name.split_at(BLOCK);
        fold(self.hash(&padded(start)) ^ self.seeds[0], self.hash(&padded(rest)) ^ self.seeds[1])
    }

    #[inline(always)]
    fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.name_at as usize..][..usize::from(entry.name_bytes)]
    }

    /// The entry at the first place from that of `hash` on that `is`.
    #[inline(always)]
    fn probe(&self, hash: u64, is: impl Fn(&Entry) -> bool) -> Option<WorkerId> {
        let mut place = hash as usize;
        // Most of the places are free, so the search ends.
        loop {
            place &= self.places.len() - 1;
            let number = self.places[place].checked_sub(1)?;
            let entry = &self.entries[usize::from(number)];
            if is(entry) {
                return Some(entry.id);
            }
            place += 1;
        }
    }

    /// The worker of a name of fewer than 64 bytes, padded.
    #[inline(always)]
    fn search_block(&self, name: &Name, bytes: usize) -> Option<WorkerId> {
        self.probe(self.hash(name), |entry| {
            let Some(block) = self.names.get(entry.name_at as usize..).and_then(|names| names.first_chunk::<BLOCK>()) else { return false };
            let known = masked(block, bytes);
            let differs = (known[0] ^ name[0]) | (known[1] ^ name[1]) | (known[2] ^ name[2]) | (known[3] ^ name[3]);
            bytemuck::cast::<u8x16, u128>(differs) == 0 && usize::from(entry.name_bytes) == bytes
        })
    }

    #[inline]
    fn search(&self, name: &[u8]) -> Option<WorkerId> {
        match name.len() {
            0..BLOCK => self.search_block(&padded(name), name.len()),
            BLOCK..=WorkerName::BYTES_MAX => self.probe(self.hash_long(name), |entry| self.name(entry) == name),
            _ => None,
        }
    }

    /// A name that is as long as a block, or too near the end of what was read for one.
    #[cold]
    fn find_quoted_near_end(&self, text: &[u8]) -> Option<(usize, WorkerId)> {
        let bytes = memchr::memchr(b'"', text.get(..WorkerName::BYTES_MAX + 1).unwrap_or(text))?;
        Some((bytes, self.search(&text[..bytes])?))
    }

    fn add(&mut self, name: &[u8], id: WorkerId) {
        debug_assert_eq!(self.search(name), None, "a name is added once");
        // Names of 65,535 workers of 128 bytes are 8 MiB.
        let name_at = self.names.len() - BLOCK;
        self.entries.push(Entry { id, name_at: name_at as u32, name_bytes: name.len() as u8 });
        self.names.truncate(name_at);
        self.names.extend_from_slice(name);
        self.names.extend_from_slice(&[0; BLOCK]);
        if self.entries.len() * 4 > self.places.len() {
            self.places = vec![0; self.places.len() * 2].into_boxed_slice();
            (0..self.entries.len() as u16).for_each(|number| self.enter(number));
        } else {
            self.enter(self.entries.len() as u16 - 1);
        }
    }

    fn enter(&mut self, number: u16) {
        let name = self.name(&self.entries[usize::from(number)]);
        let hash = if name.len() < BLOCK { self.hash(&padded(name)) } else { self.hash_long(name) };
        let mut place = hash as usize & (self.places.len() - 1);
        while self.places[place] != 0 {
            place = (place + 1) & (self.places.len() - 1);
        }
        self.places[place] = number + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn name(text: &str) -> WorkerName<'_> {
        WorkerName::new(text.as_bytes()).expect("a name")
    }

    #[test]
    fn a_name_ends_at_its_quote_even_where_another_one_begins_with_it() {
        let mut workers = Workers::default();
        assert_eq!(workers.find_quoted(b"\"x"), None);
        assert_eq!(workers.find(b""), None);
        for (number, text) in ["rig.1", "rig.10", "rig", "rig.100"].iter().enumerate() {
            workers.add(&name(text), WorkerId(number as u64 + 1));
        }
        for _ in 0..2 {
            for (text, expected) in
                [("rig.1", Some(1)), ("rig.10", Some(2)), ("rig", Some(3)), ("rig.100", Some(4)), ("rig.", None), ("", None)]
            {
                for quoted in [
                    format!("{text}\", \"rig.1\""),
                    format!("{text}\", \"rig.1{}", "\"1".repeat(40)),
                    format!("{text}\"{}", "\0".repeat(64)),
                ] {
                    assert_eq!(workers.find_quoted(quoted.as_bytes()), expected.map(|id| (text.len(), WorkerId(id))), "{quoted}");
                }
                assert_eq!(workers.find(text.as_bytes()), expected.map(WorkerId), "{text}");
            }
        }
        assert_eq!(workers.find_quoted(b"rig.1"), None, "no quote");
        assert_eq!(workers.find(b" rig.10\t"), Some(WorkerId(2)), "blanks around it are no part of a name");
        assert_eq!((workers.first(), workers.len()), (WorkerId(1), 4));
    }

    #[test]
    fn as_many_workers_as_there_may_be_are_all_found() {
        let mut workers = Workers::default();
        for number in 0..Workers::MAX {
            workers.add(&name(&format!("w{number}")), WorkerId(number as u64));
        }
        assert_eq!(workers.len(), Workers::MAX);
        for number in (0..Workers::MAX).step_by(97).chain([Workers::MAX - 1]) {
            assert_eq!(workers.find(format!("w{number}").as_bytes()), Some(WorkerId(number as u64)));
        }
        assert_eq!(workers.find(b"w65535"), None);
    }

    #[test]
    fn a_name_of_any_length_is_found_and_no_other_one() {
        let all = |first: char| (1..=WorkerName::BYTES_MAX).map(move |bytes| format!("{first}{}", "x".repeat(bytes - 1)));
        let mut workers = Workers::default();
        for (number, text) in all('a').enumerate() {
            workers.add(&name(&text), WorkerId(number as u64 + 1));
        }
        for (number, text) in all('a').enumerate() {
            let id = WorkerId(number as u64 + 1);
            assert_eq!(workers.find(text.as_bytes()), Some(id), "{text}");
            for after in ["\"", "\",", "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\""] {
                assert_eq!(workers.find_quoted(format!("{text}{after}").as_bytes()), Some((text.len(), id)), "{text}{after}");
            }
            assert_eq!(workers.find_quoted(text.as_bytes()), None, "no quote");
        }
        for text in all('b').chain([format!("a{}", "x".repeat(WorkerName::BYTES_MAX)), "a\0".to_owned(), String::new()]) {
            assert_eq!(workers.find(text.as_bytes()), None, "{text}");
            assert_eq!(workers.find_quoted(format!("{text}\"{}", "x".repeat(64)).as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map(names in prop::collection::vec("[ab.]{1,3}|[a-c]{7,9}|[ab]{62,66}|[ab]{127,128}", 1..300), probes in prop::collection::vec("[ab.]{0,3}|[a-c]{7,9}", 0..50)) {
            let (mut workers, mut map) = (Workers::default(), HashMap::new());
            for (number, text) in names.iter().enumerate() {
                let known = workers.find(text.as_bytes());
                prop_assert_eq!(known, map.get(text).copied());
                if known.is_none() {
                    workers.add(&name(text), WorkerId(number as u64));
                    map.insert(text.clone(), WorkerId(number as u64));
                }
                prop_assert_eq!(workers.len(), map.len());
            }
            for text in probes.iter().chain(&names) {
                prop_assert_eq!(workers.find(text.as_bytes()), map.get(text).copied());
                for quoted in [format!("{text}\""), format!("{text}\", \"{}", text.repeat(64))] {
                    prop_assert_eq!(workers.find_quoted(quoted.as_bytes()), map.get(text).map(|id| (text.len(), *id)));
                }
            }
        }
    }
}
