//! A job of mining.notify, made ready for hashing.
use crate::hash::{self, State};
use otedama_primitives::decode_hex;
use serde::Deserialize;
use std::borrow::Cow;
use std::sync::Arc;

/// Why a mining.notify was refused by this client.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Not the nine parameters of mining.notify.
    #[error("mining.notify: {0}")]
    Shape(#[from] serde_json::Error),
    /// A field that is not hex or has the wrong size.
    #[error("mining.notify: {0} is not hex of the right size")]
    Field(&'static str),
}

/// A job as the miner needs it, shared by all sessions that were sent the same line.
#[derive(Debug)]
pub struct Job {
    /// As the server named it; opaque.
    pub id: Box<str>,
    /// Header version before rolled bits.
    pub version: u32,
    /// Compact network target.
    pub nbits: u32,
    /// The job's own header time.
    pub ntime: u32,
    /// Ends every earlier job.
    pub clean: bool,
    /// Previous block hash as it lies in the header.
    pub prev_hash: [u8; 32],
    branch: Box<[[u8; 32]]>,
    midstate: State,
    /// Coinbase after the blocks of the midstate, padded, extranonces zero. Shape: `tail[..varying]` holds the extranonces.
    tail: Box<[[u8; 64]]>,
    varying: usize,
    extranonce1_at: usize,
    extranonce2_bytes: usize,
}

#[derive(Deserialize)]
struct Notify<'a>(
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Vec<Cow<'a, str>>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    bool,
);

impl Job {
    /// Parses the parameters of mining.notify (a JSON array) for sessions with these extranonce sizes in bytes.
    pub fn from_notify(params: &str, extranonce1_bytes: usize, extranonce2_bytes: usize) -> Result<Self, NotifyError> {
        let Notify(id, prev_hash, coinb1, coinb2, branch, version, nbits, ntime, clean) = serde_json::from_str(params)?;
        let bytes = |text: &str, field| {
            let mut bytes = vec![0u8; text.len() / 2];
            decode_hex(text.as_bytes(), &mut bytes).map_err(|_| NotifyError::Field(field)).map(|()| bytes)
        };
        let word = |text: &str, field| {
            let mut four = [0u8; 4];
            decode_hex(text.as_bytes(), &mut four).map_err(|_| NotifyError::Field(field)).map(|()| u32::from_be_bytes(four))
        };
        let siblings = branch
            .iter()
            .map(|text| {
                let mut node = [0u8; 32];
                decode_hex(text.as_bytes(), &mut node).map_err(|_| NotifyError::Field("merkle_branch")).map(|()| node)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (coinb1, coinb2) = (bytes(&coinb1, "coinb1")?, bytes(&coinb2, "coinb2")?);
        let mut job = Self::from_parts(&coinb1, &coinb2, &siblings, extranonce1_bytes, extranonce2_bytes);
        decode_hex(prev_hash.as_bytes(), &mut job.prev_hash).map_err(|_| NotifyError::Field("prevhash"))?;
        // Stratum V1 sends the previous hash as eight byte-swapped words.
        for four in job.prev_hash.chunks_exact_mut(4) {
            four.reverse();
        }
        job.id = id.into();
        job.version = word(&version, "version")?;
        job.nbits = word(&nbits, "nbits")?;
        job.ntime = word(&ntime, "ntime")?;
        job.clean = clean;
        Ok(job)
    }

    /// The hashing part alone: everything in the header is zero.
    pub fn from_parts(coinb1: &[u8], coinb2: &[u8], branch: &[[u8; 32]], extranonce1_bytes: usize, extranonce2_bytes: usize) -> Self {
        let rest = &coinb1[coinb1.len() / 64 * 64..];
        let extranonce_end = rest.len() + extranonce1_bytes + extranonce2_bytes;
        let message_bytes = coinb1.len() + extranonce1_bytes + extranonce2_bytes + coinb2.len();
        // 0x80 and the length in bits (8 bytes) follow the message.
        let blocks = (extranonce_end + coinb2.len() + 9).div_ceil(64);
        let mut tail = vec![[0u8; 64]; blocks];
        let flat = tail.as_flattened_mut();
        flat[..rest.len()].copy_from_slice(rest);
        flat[extranonce_end..extranonce_end + coinb2.len()].copy_from_slice(coinb2);
        flat[extranonce_end + coinb2.len()] = 0x80;
        let end = flat.len();
        flat[end - 8..].copy_from_slice(&(message_bytes as u64 * 8).to_be_bytes());
        Self {
            id: "".into(),
            version: 0,
            nbits: 0,
            ntime: 0,
            clean: false,
            prev_hash: [0; 32],
            branch: branch.into(),
            midstate: hash::midstate(coinb1),
            tail: tail.into(),
            varying: extranonce_end.div_ceil(64),
            extranonce1_at: rest.len(),
            extranonce2_bytes,
        }
    }

    /// State after the whole blocks of the coinbase before the extranonces.
    pub fn midstate(&self) -> State {
        self.midstate
    }

    /// Blocks of the coinbase that hold extranonces (one or two), and those after them.
    pub fn tail_blocks(&self) -> (&[[u8; 64]], &[[u8; 64]]) {
        self.tail.split_at(self.varying)
    }

    /// Merkle siblings of the coinbase, leaf to root.
    pub fn branch(&self) -> &[[u8; 32]] {
        &self.branch
    }

    /// Writes both extranonces into a copy of the first blocks of the tail. An extranonce2 of more than 8 bytes is zero on its left.
    pub fn put_extranonces(&self, extranonce1: &[u8], extranonce2: u64, into: &mut [u8]) {
        let middle = self.extranonce1_at + extranonce1.len();
        into[self.extranonce1_at..middle].copy_from_slice(extranonce1);
        let bytes = extranonce2.to_be_bytes();
        let used = self.extranonce2_bytes.min(8);
        let end = middle + self.extranonce2_bytes;
        into[end - used..end].copy_from_slice(&bytes[8 - used..]);
    }
}

/// Jobs by the text that brought them: a broadcast to thousands of sessions is parsed once and held once.
#[derive(Default)]
pub struct JobCache {
    entries: Vec<(Box<str>, usize, usize, Arc<Job>)>,
    next: usize,
}

impl JobCache {
    const ENTRIES: usize = 16;

    /// The job of these parameters, parsed now or earlier.
    pub fn get(&mut self, params: &str, extranonce1_bytes: usize, extranonce2_bytes: usize) -> Result<Arc<Job>, NotifyError> {
        let known =
            self.entries.iter().find(|(text, one, two, _)| (*one, *two) == (extranonce1_bytes, extranonce2_bytes) && **text == *params);
        if let Some((_, _, _, job)) = known {
            return Ok(Arc::clone(job));
        }
        let job = Arc::new(Job::from_notify(params, extranonce1_bytes, extranonce2_bytes)?);
        let entry = (params.into(), extranonce1_bytes, extranonce2_bytes, Arc::clone(&job));
        if self.entries.len() < Self::ENTRIES {
            self.entries.push(entry);
        } else {
            self.entries[self.next] = entry;
            self.next = (self.next + 1) % Self::ENTRIES;
        }
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTIFY: &str =
        r#"["a1","0000000100000002000000030000000400000005000000060000000700000008","0102","03",[],"20000000","207fffff","6b00dbcb",true]"#;

    #[test]
    fn the_previous_hash_is_swapped_word_by_word() {
        let job = Job::from_notify(NOTIFY, 4, 8).expect("notify");
        assert_eq!(job.prev_hash[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!((job.version, job.nbits, job.ntime, job.clean), (0x2000_0000, 0x207f_ffff, 0x6b00_dbcb, true));
    }

    #[test]
    fn one_line_to_many_sessions_is_one_job() {
        let mut cache = JobCache::default();
        let first = cache.get(NOTIFY, 4, 8).expect("notify");
        assert!(Arc::ptr_eq(&first, &cache.get(NOTIFY, 4, 8).expect("notify")));
        assert!(!Arc::ptr_eq(&first, &cache.get(NOTIFY, 4, 4).expect("notify")));
    }

    #[test]
    fn damaged_notifies_are_errors_and_never_a_panic() {
        for length in 0..NOTIFY.len() {
            assert!(Job::from_notify(&NOTIFY[..length], 4, 8).is_err());
        }
        assert!(Job::from_notify(&NOTIFY.replace("0102", "010"), 4, 8).is_err());
        assert!(Job::from_notify(&NOTIFY.replace("20000000", "2000000g"), 4, 8).is_err());
    }
}
