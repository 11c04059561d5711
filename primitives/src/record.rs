//! Fixed-size records: what crosses the rings and what stands in the journal. Plain old data, native (little) endian.
use crate::{ShareStatus, WorkerId};
use bytemuck::{Pod, Zeroable};

/// Bits of the `flags` column.
pub mod flags {
    /// The hash met the network target.
    pub const BLOCK: u8 = 1;
    /// The session had been sent a newer job of the same parent when the share arrived.
    pub const LATE: u8 = 2;
    /// Judged at the easier of two works, in the grace after a retarget.
    pub const GRACE: u8 = 4;
    /// A block candidate whose ring to chain was full: chain takes it from the log.
    pub const FROM_LOG: u8 = 8;
}

/// A parsed submit on its way from net to validate: one cache line. A share that net has already refused travels the same way (`status` is set), so that every
/// submit of a session stays in order and reaches the log.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable, Debug, PartialEq, Eq)]
pub struct Submit {
    /// Worker identity; 0 when unauthorized.
    pub worker: u64,
    /// Work it is judged at, in expected hashes.
    pub work: u64,
    /// Extranonce2 as a big-endian number of its wire bytes, right-aligned.
    pub extranonce2: u64,
    /// When its bytes were read, microseconds since the epoch.
    pub arrival_us: u64,
    /// Session counter within the run.
    pub session: u32,
    /// Job counter within the run; 0 when the job named is unknown.
    pub job: u32,
    /// Extranonce1 as a big-endian number of its wire bytes.
    pub extranonce1: u32,
    /// Header nonce.
    pub nonce: u32,
    /// Header time.
    pub ntime: u32,
    /// Header version as it is hashed, rolled bits included; of status bad_version the bits as they were sent.
    pub version: u32,
    /// Sequence of the share in its net's FIFO of shares in flight.
    pub in_flight: u32,
    /// `Submit::PENDING`, or the number of the `ShareStatus` that net refused it with.
    pub status: u8,
    /// Bits of `flags`, as far as net knows them.
    pub flags: u8,
    /// Index of the net stage that waits for the answer.
    pub net: u8,
    /// Zero.
    pub spare: u8,
}

impl Submit {
    /// `status` of a share that validate has still to judge.
    pub const PENDING: u8 = 0xff;
}

/// A judged share on its way from validate to log: a row that has no latency yet, but still its place in net's FIFO.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable, Debug, PartialEq)]
pub struct Verdict {
    /// As in `Submit`.
    pub worker: u64,
    /// As in `Submit`.
    pub work: u64,
    /// As in `Submit`.
    pub extranonce2: u64,
    /// As in `Submit`.
    pub arrival_us: u64,
    /// As in `Submit`.
    pub session: u32,
    /// As in `Submit`.
    pub job: u32,
    /// As in `Submit`.
    pub nonce: u32,
    /// As in `Submit`.
    pub ntime: u32,
    /// As in `Submit`.
    pub version: u32,
    /// Difficulty of the hash; 0 where nothing was hashed.
    pub share_difficulty: f32,
    /// As in `Submit`.
    pub in_flight: u32,
    /// Number of the `ShareStatus`.
    pub status: u8,
    /// Bits of `flags`.
    pub flags: u8,
    /// As in `Submit`.
    pub net: u8,
    /// Number of the `Coin`.
    pub coin: u8,
}

impl Verdict {
    /// The row of this verdict, `latency_us` after its bytes were read.
    pub fn into_row(self, latency_us: u32) -> ShareRow {
        ShareRow {
            worker: self.worker,
            work: self.work,
            extranonce2: self.extranonce2,
            arrival_us: self.arrival_us,
            session: self.session,
            job: self.job,
            nonce: self.nonce,
            ntime: self.ntime,
            version: self.version,
            share_difficulty: self.share_difficulty,
            latency_us,
            status: self.status,
            flags: self.flags,
            net: self.net,
            coin: self.coin,
        }
    }
}

/// One row of the journal. Sessions and jobs stand as counters; the journal's header has the run that completes them.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable, Debug, PartialEq)]
pub struct ShareRow {
    /// Worker identity; 0 when unauthorized.
    pub worker: u64,
    /// Work it was judged at; credited exactly so where accepted.
    pub work: u64,
    /// As a big-endian number of its wire bytes, right-aligned.
    pub extranonce2: u64,
    /// When its bytes were read, microseconds since the epoch; never goes back within a journal.
    pub arrival_us: u64,
    /// Session counter within the run.
    pub session: u32,
    /// Job counter within the run; 0 for none.
    pub job: u32,
    /// Header nonce.
    pub nonce: u32,
    /// Header time.
    pub ntime: u32,
    /// Header version as hashed.
    pub version: u32,
    /// Difficulty of the hash; 0 where nothing was hashed.
    pub share_difficulty: f32,
    /// Bytes read to append, saturated.
    pub latency_us: u32,
    /// Number of the `ShareStatus`.
    pub status: u8,
    /// Bits of `flags`.
    pub flags: u8,
    /// Index of the net stage that read it.
    pub net: u8,
    /// Number of the `Coin`.
    pub coin: u8,
}

impl ShareRow {
    /// The status; None only for a number of a newer release.
    pub fn status(&self) -> Option<ShareStatus> {
        ShareStatus::from_u8(self.status)
    }
}

/// The answer to one share on its way from log to net: which FIFO entry, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Sequence of the share in net's FIFO.
    pub in_flight: u32,
    /// Number of the `ShareStatus`.
    pub status: u8,
    /// Zero.
    pub spare: [u8; 3],
}

const _: () = assert!(size_of::<Submit>() == 64, "one cache line across the ring");
const _: () = assert!(size_of::<Verdict>() == 64, "one cache line across the ring");
const _: () = assert!(size_of::<ShareRow>() == 64, "one cache line in the journal");
const _: () = assert!(size_of::<Answer>() == 8);
const _: () = assert!(size_of::<Dimension>() == 256);

/// What a `Dimension` describes.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DimensionKind {
    /// A `SessionRecord`.
    Session = 1,
    /// A `WorkerRecord`.
    Worker = 2,
    /// A `VersionMaskRecord`. 3 to 6 are the kinds of the dimension log that the control plane writes.
    VersionMask = 7,
}

/// A session or a worker on its way from net to log, before the first row that names it: 256 bytes. The payload is the fixed encoding of `SessionRecord` or `WorkerRecord`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable, Debug, PartialEq, Eq)]
pub struct Dimension {
    /// Number of the `DimensionKind`.
    pub kind: u8,
    /// Zero.
    pub spare: u8,
    /// Bytes used of `payload`.
    pub len: u16,
    /// Zero.
    pub spare2: u32,
    /// Encoded record.
    pub payload: [u8; 248],
}

/// A record that does not fit `Dimension::payload`; callers bound names and agents so that it cannot happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a dimension record of {0} bytes does not fit 248")]
pub struct DimensionTooLong(pub usize);

/// A Stratum session: what resolves the `session` column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// Session counter within the run.
    pub session: u32,
    /// As a big-endian number of its four wire bytes.
    pub extranonce1: u32,
    /// Index of the net stage that serves it.
    pub net: u8,
    /// Bytes of extranonce2.
    pub extranonce2_bytes: u8,
    /// When it subscribed, microseconds since the epoch.
    pub started_us: u64,
    /// Peer address as text, at most 56 bytes.
    pub peer: String,
    /// User agent of mining.subscribe, printable ASCII, cut at 128 bytes.
    pub agent: String,
}

/// A worker: what resolves the `worker` column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerRecord {
    /// Its identity.
    pub worker: WorkerId,
    /// When it was authorized, microseconds since the epoch.
    pub seen_us: u64,
    /// Session counter it was authorized on.
    pub session: u32,
    /// Normalised `account.worker`.
    pub name: String,
}

/// The version bits that a session may roll from a moment on: what its rows of status bad_version were judged by. Written with the session's record, and again
/// when they change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionMaskRecord {
    /// Session counter within the run.
    pub session: u32,
    /// The bits that mining.configure granted; 0 for none.
    pub mask: u32,
    /// Since when, microseconds since the epoch.
    pub since_us: u64,
}

impl Dimension {
    /// Encodes a session. Layout: session u32, extranonce1 u32, started_us u64, net u8, extranonce2_bytes u8, peer length u8, agent length u8, peer, agent; little-endian.
    pub fn session(record: &SessionRecord) -> Result<Self, DimensionTooLong> {
        let mut writer = PayloadWriter::default();
        writer.put(&record.session.to_le_bytes())?;
        writer.put(&record.extranonce1.to_le_bytes())?;
        writer.put(&record.started_us.to_le_bytes())?;
        writer.put(&[record.net, record.extranonce2_bytes])?;
        writer.put_lengths(&[record.peer.len(), record.agent.len()])?;
        writer.put(record.peer.as_bytes())?;
        writer.put(record.agent.as_bytes())?;
        Ok(writer.finish(DimensionKind::Session))
    }

    /// Encodes a worker. Layout: worker u64, seen_us u64, session u32, name length u8, name; little-endian.
    pub fn worker(record: &WorkerRecord) -> Result<Self, DimensionTooLong> {
        let mut writer = PayloadWriter::default();
        writer.put(&record.worker.0.to_le_bytes())?;
        writer.put(&record.seen_us.to_le_bytes())?;
        writer.put(&record.session.to_le_bytes())?;
        writer.put_lengths(&[record.name.len()])?;
        writer.put(record.name.as_bytes())?;
        Ok(writer.finish(DimensionKind::Worker))
    }

    /// Encodes a version mask. Layout: session u32, mask u32, since_us u64; little-endian.
    pub fn version_mask(record: &VersionMaskRecord) -> Result<Self, DimensionTooLong> {
        let mut writer = PayloadWriter::default();
        writer.put(&record.session.to_le_bytes())?;
        writer.put(&record.mask.to_le_bytes())?;
        writer.put(&record.since_us.to_le_bytes())?;
        Ok(writer.finish(DimensionKind::VersionMask))
    }

    /// Decodes a session; None when this is something else or damaged.
    pub fn as_session(&self) -> Option<SessionRecord> {
        if self.kind != DimensionKind::Session as u8 {
            return None;
        }
        let mut reader = PayloadReader(self.payload.get(..usize::from(self.len))?);
        let session = reader.u32()?;
        let extranonce1 = reader.u32()?;
        let started_us = reader.u64()?;
        let (net, extranonce2_bytes) = (reader.u8()?, reader.u8()?);
        let (peer_len, agent_len) = (reader.u8()?, reader.u8()?);
        let peer = reader.text(peer_len)?;
        let agent = reader.text(agent_len)?;
        Some(SessionRecord { session, extranonce1, net, extranonce2_bytes, started_us, peer, agent })
    }

    /// Decodes a worker; None when this is something else or damaged.
    pub fn as_worker(&self) -> Option<WorkerRecord> {
        if self.kind != DimensionKind::Worker as u8 {
            return None;
        }
        let mut reader = PayloadReader(self.payload.get(..usize::from(self.len))?);
        let worker = WorkerId(reader.u64()?);
        let seen_us = reader.u64()?;
        let session = reader.u32()?;
        let name_len = reader.u8()?;
        let name = reader.text(name_len)?;
        Some(WorkerRecord { worker, seen_us, session, name })
    }
}

impl Dimension {
    /// Decodes a version mask; None when this is something else or damaged.
    pub fn as_version_mask(&self) -> Option<VersionMaskRecord> {
        if self.kind != DimensionKind::VersionMask as u8 {
            return None;
        }
        let mut reader = PayloadReader(self.payload.get(..usize::from(self.len))?);
        Some(VersionMaskRecord { session: reader.u32()?, mask: reader.u32()?, since_us: reader.u64()? })
    }
}

struct PayloadWriter {
    payload: [u8; 248],
    len: usize,
}

impl Default for PayloadWriter {
    fn default() -> Self {
        Self { payload: [0; 248], len: 0 }
    }
}

impl PayloadWriter {
    fn put(&mut self, bytes: &[u8]) -> Result<(), DimensionTooLong> {
        let end = self.len + bytes.len();
        self.payload.get_mut(self.len..end).ok_or(DimensionTooLong(end))?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn put_lengths(&mut self, lengths: &[usize]) -> Result<(), DimensionTooLong> {
        for &length in lengths {
            self.put(&[u8::try_from(length).map_err(|_| DimensionTooLong(length))?])?;
        }
        Ok(())
    }

    fn finish(self, kind: DimensionKind) -> Dimension {
        Dimension { kind: kind as u8, spare: 0, len: self.len as u16, spare2: 0, payload: self.payload }
    }
}

struct PayloadReader<'a>(&'a [u8]);

impl PayloadReader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self, len: u8) -> Option<String> {
        let (head, rest) = self.0.split_at_checked(usize::from(len))?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionRecord {
        SessionRecord {
            session: 7,
            extranonce1: 0xdead_beef,
            net: 3,
            extranonce2_bytes: 8,
            started_us: 1_795_218_379_000_001,
            peer: "[2001:db8::1]:3333".into(),
            agent: "cgminer/4.12".into(),
        }
    }

    #[test]
    fn dimension_records_come_back_as_they_went_in() {
        let encoded = Dimension::session(&session()).expect("fits");
        assert_eq!(encoded.as_session(), Some(session()));
        assert_eq!(encoded.as_worker(), None);
        let worker = WorkerRecord { worker: WorkerId(9), seen_us: 1, session: 7, name: "a".repeat(128) };
        assert_eq!(Dimension::worker(&worker).expect("fits").as_worker(), Some(worker));
        let mask = VersionMaskRecord { session: u32::MAX, mask: 0x1fff_e000, since_us: u64::MAX };
        let encoded = Dimension::version_mask(&mask).expect("fits");
        assert_eq!((encoded.as_version_mask(), encoded.as_session(), encoded.as_worker()), (Some(mask), None, None));
    }

    #[test]
    fn damaged_dimension_records_are_none_and_never_a_panic() {
        let encoded = Dimension::session(&session()).expect("fits");
        for len in 0..300u16 {
            let cut = Dimension { len, ..encoded };
            let read = cut.as_session();
            assert_eq!(read.is_some(), (encoded.len..=248).contains(&len), "len {len}");
        }
        let too_long = SessionRecord { agent: "x".repeat(240), ..session() };
        assert!(Dimension::session(&too_long).is_err());
    }
}
