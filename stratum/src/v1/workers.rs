//! The workers that one connection may submit for.
//!
//! A miner has one, and pays for its name alone. A proxy has up to thousands and interleaves them, so that each share asks for another one: those stand in a hash
//! table, two small allocations for all of them and some 30 bytes each beside the name.
use otedama_primitives::{WorkerId, WorkerName};
use std::hash::{BuildHasher, RandomState};

/// The workers of a connection, looked up by name.
#[derive(Debug)]
pub struct Workers {
    /// Empty while there is none.
    first_name: Box<str>,
    first: WorkerId,
    /// All but the first.
    more: Option<Box<More>>,
    /// The worker of the last submit: 0 for the first, else its number in `more` + 1.
    last: u16,
}

#[derive(Debug)]
struct More {
    /// Names one after the other.
    names: Vec<u8>,
    entries: Vec<Entry>,
    /// Open addressing: number of the entry + 1, 0 where there is none; a power of two of places, at most half of them taken.
    places: Box<[u16]>,
    /// Drawn for each table, so that nobody can choose names that collide.
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: WorkerId,
    name_at: u32,
    name_bytes: u8,
}

const _: () = assert!(size_of::<Workers>() <= 40, "one of these is kept for every connection");
const _: () = assert!(WorkerName::BYTES_MAX <= u8::MAX as usize);

impl Default for Workers {
    fn default() -> Self {
        Self { first_name: Box::default(), first: WorkerId(0), more: None, last: 0 }
    }
}

impl Workers {
    /// Workers of a connection at most: their numbers have 16 bits, and one number is "none".
    pub const MAX: usize = u16::MAX as usize;
    /// Bytes that a worker beyond the first takes at most, its name of the greatest length and the slack of growing tables included.
    pub const EACH_BYTES_MAX: usize = 2 * (WorkerName::BYTES_MAX + size_of::<Entry>()) + 8;

    /// True while there is none.
    pub fn is_empty(&self) -> bool {
        self.first_name.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(!self.is_empty()) + self.more.as_ref().map_or(0, |more| more.entries.len())
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
        let more = self.more.get_or_insert_with(|| {
            let seed = RandomState::new().hash_one(0u64);
            Box::new(More { names: Vec::new(), entries: Vec::new(), places: Box::new([0; 8]), seed })
        });
        more.add(name.as_str().as_bytes(), id);
        self.last = more.entries.len() as u16;
    }

    /// The worker of this name as it came from the wire, if it is in it. Remembers it for the next search.
    #[inline]
    pub fn find(&mut self, raw: &[u8]) -> Option<WorkerId> {
        if !self.is_empty() && self.last_name() == raw {
            return Some(self.last_id());
        }
        if let Some(found) = self.search(raw) {
            return Some(found);
        }
        // What was added is normalised; what comes from the wire need not be.
        let name = WorkerName::new(raw).ok()?;
        if name.as_str().len() == raw.len() { None } else { self.search(name.as_str().as_bytes()) }
    }

    /// The worker whose name stands at the start of `text`, up to a quote: the bytes of its name, and its identity.
    #[inline]
    pub fn find_quoted(&mut self, text: &[u8]) -> Option<(usize, WorkerId)> {
        let last = self.last_name();
        if text.get(last.len()) == Some(&b'"') && text.starts_with(last) && !last.is_empty() {
            return Some((last.len(), self.last_id()));
        }
        let bytes = memchr::memchr(b'"', text.get(..WorkerName::BYTES_MAX + 1).unwrap_or(text))?;
        Some((bytes, self.search(&text[..bytes])?))
    }

    #[inline]
    fn last_name(&self) -> &[u8] {
        match (&self.more, self.last.checked_sub(1)) {
            (Some(more), Some(number)) => more.name(number),
            _ => self.first_name.as_bytes(),
        }
    }

    #[inline]
    fn last_id(&self) -> WorkerId {
        match (&self.more, self.last.checked_sub(1)) {
            (Some(more), Some(number)) => more.entries[usize::from(number)].id,
            _ => self.first,
        }
    }

    /// Exactly this name.
    fn search(&mut self, name: &[u8]) -> Option<WorkerId> {
        if name.is_empty() {
            return None;
        }
        if self.first_name.as_bytes() == name {
            self.last = 0;
            return Some(self.first);
        }
        let more = self.more.as_deref()?;
        let number = more.search(name)?;
        self.last = number + 1;
        Some(more.entries[usize::from(number)].id)
    }
}

impl More {
    #[inline]
    fn name(&self, number: u16) -> &[u8] {
        let entry = &self.entries[usize::from(number)];
        &self.names[entry.name_at as usize..][..usize::from(entry.name_bytes)]
    }

    /// The place where the search for a name begins.
    #[inline]
    fn place(&self, name: &[u8]) -> usize {
        let mut state = self.seed ^ name.len() as u64;
        let mut mix = |word: u64| {
            let product = u128::from(state ^ word) * 0x9e37_79b9_7f4a_7c15;
            state = product as u64 ^ (product >> 64) as u64;
        };
        let (words, rest) = name.as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        mix(u64::from_le_bytes(last));
        state as usize & (self.places.len() - 1)
    }

    #[inline]
    fn search(&self, name: &[u8]) -> Option<u16> {
        let mut place = self.place(name);
        // At most half of the places are taken, so the search ends.
        loop {
            let number = self.places[place].checked_sub(1)?;
            if self.name(number) == name {
                return Some(number);
            }
            place = (place + 1) & (self.places.len() - 1);
        }
    }

    fn add(&mut self, name: &[u8], id: WorkerId) {
        debug_assert_eq!(self.search(name), None, "a name is added once");
        // Names of 65,534 workers of 128 bytes are 8 MiB.
        self.entries.push(Entry { id, name_at: self.names.len() as u32, name_bytes: name.len() as u8 });
        self.names.extend_from_slice(name);
        if self.entries.len() * 2 > self.places.len() {
            self.places = vec![0; self.places.len() * 2].into_boxed_slice();
            (0..self.entries.len() as u16).for_each(|number| self.enter(number));
        } else {
            self.enter(self.entries.len() as u16 - 1);
        }
    }

    fn enter(&mut self, number: u16) {
        let mut place = self.place(self.name(number));
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
                let quoted = format!("{text}\", \"rig.1\"");
                assert_eq!(workers.find_quoted(quoted.as_bytes()), expected.map(|id| (text.len(), WorkerId(id))), "{text}");
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

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map(names in prop::collection::vec("[ab.]{1,3}|[a-c]{7,9}|[ab]{127,128}", 1..300), probes in prop::collection::vec("[ab.]{0,3}|[a-c]{7,9}", 0..50)) {
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
                let quoted = format!("{text}\"");
                prop_assert_eq!(workers.find_quoted(quoted.as_bytes()), map.get(text).map(|id| (text.len(), *id)));
            }
        }
    }
}
