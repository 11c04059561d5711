//! Unfinished lines of all connections of a net, in chunks of one slab: a connection that owes nothing owns nothing.
//!
//! Every connection may always have one chunk, which holds more than a submit; longer lines share the rest. So nobody's long lines keep an honest miner's share from
//! being put together, whatever they send.

/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 256;
/// Chunks that longer lines of a net share: 4 MiB.
pub const SHARED_CHUNKS: usize = 1 << 14;

const NONE: u32 = u32::MAX;

/// Part of a line.
#[repr(C, align(64))]
#[derive(Debug)]
struct Chunk {
    bytes: [u8; CHUNK_BYTES - size_of::<u32>()],
    /// The next one of the line, or of the free ones.
    next: u32,
}

const _: () = assert!(size_of::<Chunk>() == CHUNK_BYTES);

/// The unfinished line of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    first: u32,
    last: u32,
    bytes: u32,
}

impl Held {
    /// No unfinished line.
    pub const NONE: Self = Self { first: NONE, last: NONE, bytes: 0 };

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }
}

/// There is no chunk left for a line this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The slab.
#[derive(Debug)]
pub struct Partials {
    /// Reserved at the start, touched as it is used.
    chunks: Vec<Chunk>,
    free: u32,
    /// Chunks in use beyond the first of each line.
    shared_used: usize,
}

impl Partials {
    /// Room for `connections` lines of one chunk, and `SHARED_CHUNKS` more.
    pub fn new(connections: usize) -> Self {
        Self { chunks: Vec::with_capacity(connections + SHARED_CHUNKS), free: NONE, shared_used: 0 }
    }

    /// Adds to the end of a line. What does not fit is not taken, not even a part of it.
    pub fn append(&mut self, held: &mut Held, bytes: &[u8]) -> Result<(), Full> {
        let room = self.room_behind(held);
        let missing = bytes.len().saturating_sub(room).div_ceil(Self::PAYLOAD);
        let shared = missing - usize::from(missing > 0 && held.first == NONE);
        if self.shared_used + shared > SHARED_CHUNKS {
            return Err(Full);
        }
        self.shared_used += shared;
        let (here, mut rest) = bytes.split_at(room.min(bytes.len()));
        if !here.is_empty() {
            let at = Self::PAYLOAD - room;
            self.chunks[held.last as usize].bytes[at..at + here.len()].copy_from_slice(here);
        }
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(rest.len().min(Self::PAYLOAD));
            let chunk = self.take_chunk();
            self.chunks[chunk as usize].bytes[..part.len()].copy_from_slice(part);
            if held.first == NONE {
                held.first = chunk;
            } else {
                self.chunks[held.last as usize].next = chunk;
            }
            held.last = chunk;
            rest = behind;
        }
        held.bytes += bytes.len() as u32;
        Ok(())
    }

    /// Moves a line to the end of `into`; it holds nothing afterwards.
    pub fn take(&mut self, held: &mut Held, into: &mut Vec<u8>) {
        let mut left = held.bytes();
        let mut at = held.first;
        while left > 0 {
            let chunk = &self.chunks[at as usize];
            let part = left.min(Self::PAYLOAD);
            into.extend_from_slice(&chunk.bytes[..part]);
            left -= part;
            at = chunk.next;
        }
        self.drop_line(held);
    }

    /// Forgets a line.
    pub fn drop_line(&mut self, held: &mut Held) {
        if held.first == NONE {
            return;
        }
        self.shared_used -= held.bytes().div_ceil(Self::PAYLOAD) - 1;
        self.chunks[held.last as usize].next = self.free;
        self.free = held.first;
        *held = Held::NONE;
    }

    const PAYLOAD: usize = CHUNK_BYTES - size_of::<u32>();

    /// Bytes that still fit the last chunk of a line.
    fn room_behind(&self, held: &Held) -> usize {
        held.bytes().next_multiple_of(Self::PAYLOAD) - held.bytes()
    }

    fn take_chunk(&mut self) -> u32 {
        if self.free == NONE {
            self.chunks.push(Chunk { bytes: [0; Self::PAYLOAD], next: NONE });
            return self.chunks.len() as u32 - 1;
        }
        let chunk = self.free;
        self.free = std::mem::replace(&mut self.chunks[chunk as usize].next, NONE);
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAYLOAD: usize = Partials::PAYLOAD;

    #[test]
    fn a_line_of_one_chunk_is_held_even_when_long_lines_have_taken_the_rest() {
        let mut partials = Partials::new(3);
        let (mut greedy, mut honest) = (Held::NONE, Held::NONE);
        let most = vec![b'x'; PAYLOAD * (SHARED_CHUNKS + 1)];
        partials.append(&mut greedy, &most).expect("its own chunk and all that are shared");
        assert_eq!(partials.append(&mut greedy, b"y"), Err(Full));
        assert_eq!(greedy.bytes(), most.len(), "nothing of what did not fit was taken");
        partials.append(&mut honest, &[b'z'; PAYLOAD]).expect("the first chunk is always there");
        assert_eq!(partials.append(&mut honest, b"z"), Err(Full));
        assert_eq!(partials.append(&mut Held::NONE.clone(), &[b'z'; PAYLOAD + 1]), Err(Full));
        partials.drop_line(&mut greedy);
        partials.append(&mut honest, b"z").expect("there is room again");
        assert!(partials.chunks.len() <= 3 + SHARED_CHUNKS, "no more chunks than were reserved");
    }

    proptest! {
        #[test]
        fn the_slab_agrees_with_a_vector_for_each_line(
            steps in prop::collection::vec((0usize..4, prop_oneof![Just(0usize), 1usize..5, PAYLOAD - 1..=PAYLOAD + 1, 2 * PAYLOAD..=2 * PAYLOAD + 1], 0u8..6), 1..200),
        ) {
            let mut partials = Partials::new(4);
            let (mut held, mut lines) = ([Held::NONE; 4], [const { Vec::new() }; 4]);
            for (count, (line, bytes, what)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        let mut taken = b"before".to_vec();
                        partials.take(&mut held[line], &mut taken);
                        prop_assert_eq!(&taken[6..], &lines[line][..]);
                        lines[line].clear();
                    }
                    1 => {
                        partials.drop_line(&mut held[line]);
                        lines[line].clear();
                    }
                    _ => {
                        let bytes = vec![count as u8; bytes];
                        prop_assert_eq!(partials.append(&mut held[line], &bytes), Ok(()));
                        lines[line].extend(bytes);
                    }
                }
                prop_assert_eq!(held[line].bytes(), lines[line].len());
                let shared: usize = lines.iter().map(|line| line.len().div_ceil(PAYLOAD).saturating_sub(1)).sum();
                prop_assert_eq!(partials.shared_used, shared);
            }
        }
    }
}
