//! One io_uring with its table of direct descriptors and its ring of receive buffers. Everything unsafe of the driver stands here.
use super::UringError;
use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, squeue};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

/// Entries handed over by one call. Small, so that the queue stays in the cache; a longer pass takes several calls.
const SUBMISSIONS: u32 = 512;
/// Completions that fit before the kernel keeps the rest in a list of its own: all entries of a call, all buffers, and a full listen queue.
const COMPLETIONS: u32 = 8192;
/// Buffers of a ring. Memory is touched as they are used, the ones used last first.
pub(super) const BUFFERS: u16 = 1024;
/// Bytes of a buffer: what 64 submits need, with room. Farms that aggregate send no more in one segment of loopback or jumbo frames.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;
/// From one buffer to the next: an odd number of cache lines, or the first lines of all buffers would share a few sets of the cache.
pub(super) const BUFFER_STRIDE: usize = BUFFER_BYTES + 64;
/// Buffers that the kernel holds at first; doubled whenever it runs out.
const BUFFERS_HELD: u16 = 64;
/// The one group of buffers of a ring.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Bytes of the kernel for the queues and the table of a ring with so many places.
pub(super) const fn queue_bytes(places: u64) -> u64 {
    64 * SUBMISSIONS as u64 + 16 * COMPLETIONS as u64 + 16 * BUFFERS as u64 + 8 * places
}

/// Memory from the kernel, on pages of its own, zeroed and not yet backed.
struct Pages {
    start: *mut u8,
    bytes: usize,
}

impl Pages {
    #[expect(unsafe_code, reason = "buffers that the kernel writes to live outside of the allocator")]
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
        Ok(Self { start: start.cast(), bytes })
    }
}

impl Drop for Pages {
    #[expect(unsafe_code, reason = "buffers that the kernel writes to live outside of the allocator")]
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and slices of it borrow the ring that owns this object.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

/// The ring of provided buffers: the kernel takes from its head, this side gives at its tail. Free buffers that the kernel does not hold wait in a stack, so
/// that the ones used last, which are still in the cache, are used next.
struct Buffers {
    entries: Pages,
    memory: Pages,
    count: u16,
    tail: u16,
    /// Buffers that the kernel holds, and how many it is to hold.
    held: u16,
    wanted: u16,
    spare: Vec<u16>,
}

impl Buffers {
    fn new(count: u16) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel masks the index");
        let entries = Pages::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Pages::new(usize::from(count) * BUFFER_STRIDE)?;
        let spare = (0..count).rev().collect();
        Ok(Self { entries, memory, count, tail: 0, held: 0, wanted: BUFFERS_HELD.min(count), spare })
    }

    #[expect(unsafe_code, reason = "the ring of buffers is shared with the kernel")]
    fn top_up(&mut self) {
        if self.held >= self.wanted || self.spare.is_empty() {
            return;
        }
        let first: *mut BufRingEntry = self.entries.start.cast();
        while self.held < self.wanted
            && let Some(buffer) = self.spare.pop()
        {
            let place = usize::from(self.tail & (self.count - 1));
            // SAFETY: the mapping holds `count` entries and `place` is under it.
            let entry = unsafe { first.add(place) };
            // SAFETY: the kernel reads entries from its head up to the tail that it was told, and this one lies behind that.
            let entry = unsafe { &mut *entry };
            // SAFETY: the mapping holds `count` buffers and `buffer` is one of them.
            let address = unsafe { self.memory.start.add(usize::from(buffer) * BUFFER_STRIDE) };
            entry.set_addr(address as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            self.held += 1;
        }
        // SAFETY: the first entry of the mapping is valid; its reserved field is the tail.
        let tail = unsafe { BufRingEntry::tail(first) };
        // SAFETY: aligned, mapped as long as this object lives, and written by this side alone.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release pairs with the kernel's acquire of the tail: it sees whole entries.
        tail.store(self.tail, Ordering::Release);
    }
}

/// How long a call of the kernel may take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// Hand entries over, and take what has come if `gather`.
    No {
        /// Run what the kernel has put off until asked: receives and accepts.
        gather: bool,
    },
    /// Until something has come, at most this long. `batch` = (completions, microseconds): so many, or what has come after so long.
    For { timeout: Duration, batch: Option<(u32, u32)> },
}

/// Calls in a row after which it is not entries that were in the way, but memory that the kernel lacks.
const TRIES: u32 = 1000;

/// Before the next call that hands over what the last one did not take: at once at first, and then once a millisecond, until the kernel has memory again.
pub(super) fn pause(tries: &mut u32) {
    *tries = tries.saturating_add(1);
    if *tries > TRIES {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One io_uring.
pub(super) struct Ring {
    /// On the heap, and freed by `drop`, so that its submitter can live beside it.
    io: &'static IoUring,
    io_owned: *mut IoUring,
    submitter: Submitter<'static>,
    buffers: Buffers,
    batches: bool,
    /// Thread that runs this ring, once it does.
    thread: Option<ThreadId>,
    /// Slots whose close entry has not been handed over.
    pub(super) closing: Vec<u32>,
    /// Slots and generations whose receive has ended and is to be armed again.
    pub(super) unarmed: VecDeque<(u32, u32)>,
    /// What the next calls are answered instead of reaching the kernel, the last first.
    #[cfg(test)]
    pub(super) refusals: Vec<Errno>,
    /// The kernel says that it has work, whether or not it has.
    #[cfg(test)]
    pub(super) says_work: bool,
}

#[expect(unsafe_code, reason = "raw pointers into mappings that move with the ring")]
// SAFETY: the pointers lead to mappings that belong to this object alone, and nothing in it is shared with another thread.
unsafe impl Send for Ring {}

impl Ring {
    /// A disabled ring with a table for `places` sockets.
    pub(super) fn new(places: u32, buffers: u16) -> Result<Self, UringError> {
        let build = |no_sqarray: bool| {
            let mut builder = IoUring::builder();
            // Disabled until the thread that runs it takes it over: it alone may submit then.
            builder.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            builder.setup_submit_all().setup_cqsize(COMPLETIONS);
            if no_sqarray {
                builder.setup_no_sqarray();
            }
            builder.build(SUBMISSIONS)
        };
        // The index array has been optional since Linux 6.6.
        let io = build(true).or_else(|_| build(false)).map_err(UringError::setup)?;
        let params = io.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(UringError::Lacks("waiting with a timeout, or keeping completions that do not fit (Linux 5.11)"));
        }
        if !params.is_feature_skip_cqe_on_success() {
            return Err(UringError::Lacks("sends that are silent when they succeed (Linux 5.17)"));
        }
        let batches = params.is_feature_min_timeout();
        let buffers = Buffers::new(buffers).map_err(|source| UringError::Register { what: "memory for the receive buffers", source })?;
        let io_owned = Box::into_raw(Box::new(io));
        let ring = Self::over(io_owned, buffers, batches, places as usize);
        ring.register(places)?;
        Ok(ring)
    }

    #[expect(unsafe_code, reason = "the ring lives on the heap so that its submitter can live beside it")]
    fn over(io_owned: *mut IoUring, buffers: Buffers, batches: bool, places: usize) -> Self {
        // SAFETY: just made from a box, not moved, and freed by `drop` alone, after which nothing uses it.
        let io: &'static IoUring = unsafe { &*io_owned };
        // Room for every place, which takes memory as it is used: no pass of a full table has to grow them.
        let (closing, unarmed) = (Vec::with_capacity(places), VecDeque::with_capacity(places));
        Self {
            io,
            io_owned,
            submitter: io.submitter(),
            buffers,
            batches,
            thread: None,
            closing,
            unarmed,
            #[cfg(test)]
            refusals: Vec::new(),
            #[cfg(test)]
            says_work: false,
        }
    }

    #[expect(unsafe_code, reason = "the kernel is given the address of the ring of buffers")]
    fn register(&self, places: u32) -> Result<(), UringError> {
        let failed = |what| move |source| UringError::Register { what, source };
        self.submitter.register_files_sparse(places).map_err(failed("a table of direct descriptors (Linux 5.19)"))?;
        let address = self.buffers.entries.start as u64;
        // SAFETY: the mapping holds as many entries, and it is unmapped after the ring is gone: `drop` sees to the order.
        unsafe { self.submitter.register_buf_ring_with_flags(address, self.buffers.count, BUFFER_GROUP, 0) }
            .map_err(failed("a ring of receive buffers (Linux 5.19)"))
    }

    /// Takes the ring over: from now on the calling thread alone may use it. `event` is written to when work comes while nobody waits in this ring.
    pub(super) fn enable(&mut self, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        self.submitter.register_enable_rings()?;
        self.thread = Some(std::thread::current().id());
        // Saves the lookup of the descriptor in every call; a thread has places for 16.
        let _ = self.submitter.register_ring_fd();
        if let Some(event) = event {
            self.submitter.register_eventfd(event.as_raw_fd())?;
            self.signals(false);
        }
        self.buffers.top_up();
        Ok(())
    }

    #[expect(unsafe_code, reason = "the queues are used by this object alone")]
    fn submission(&self) -> squeue::SubmissionQueue<'_> {
        // SAFETY: one at a time: no method of this object keeps one over a call of another.
        unsafe { self.io.submission_shared() }
    }

    #[expect(unsafe_code, reason = "the queues are used by this object alone")]
    fn completion(&self) -> cqueue::CompletionQueue<'_> {
        // SAFETY: one at a time: no method of this object keeps one over a call of another.
        unsafe { self.io.completion_shared() }
    }

    /// Whether the event descriptor is written to when work comes.
    pub(super) fn signals(&self, wanted: bool) {
        if wanted {
            self.completion().enable_eventfd();
        } else {
            self.completion().disable_eventfd();
        }
    }

    /// True while entries wait to be handed over.
    pub(super) fn has_entries(&self) -> bool {
        !self.submission().is_empty()
    }

    /// True when the kernel has work that it has put off until it is asked, or completions that did not fit.
    pub(super) fn has_work(&self) -> bool {
        #[cfg(test)]
        if self.says_work {
            return true;
        }
        let queue = self.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// True when the kernel keeps completions that did not fit.
    pub(super) fn overflows(&self) -> bool {
        self.submission().cq_overflow()
    }

    /// Queues an entry; hands over what is queued where there is no room. False when the kernel takes nothing more.
    #[expect(unsafe_code, reason = "entries name memory for the kernel to read")]
    pub(super) fn push(&mut self, entry: &squeue::Entry) -> bool {
        let mut tries = 0;
        while tries < 2 * TRIES {
            // SAFETY: the only memory that entries of this driver name is what sends read; its owner leaves it alone until the entry has been handed over,
            // and as these sends never wait, the kernel is done with it by then.
            if unsafe { self.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.enter(Wait::No { gather: false }).is_err() {
                return false;
            }
            pause(&mut tries);
        }
        false
    }

    /// Hands entries over and waits as told. An error means that the ring is broken.
    #[expect(unsafe_code, reason = "the kernel is called with flags of our own")]
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.buffers.top_up();
        let queued = self.submission().len() as u32;
        #[cfg(test)]
        let wait = match self.refusals.pop() {
            Some(Errno::AGAIN) => return Ok(()),
            Some(other) => return Err(other.into()),
            None => wait,
        };
        let submitted = match wait {
            Wait::No { gather } => {
                let flags = if gather { EnterFlags::GETEVENTS } else { EnterFlags::empty() };
                // SAFETY: no argument is passed; the entries were pushed by `push`, which says what they name.
                unsafe { self.submitter.enter::<SubmitArgs<'_, '_>>(queued, 0, flags.bits(), None) }
            }
            Wait::For { timeout, batch } => {
                let timeout = Timespec::from(timeout);
                let (want, min_wait_us) = batch.filter(|_| self.batches).unwrap_or((1, 0));
                let arguments = SubmitArgs::new().timespec(&timeout).min_wait_usec(min_wait_us);
                let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
                // SAFETY: as above, and the arguments live until the call returns.
                unsafe { self.submitter.enter(queued, want, flags.bits(), Some(&arguments)) }
            }
        };
        match submitted {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // Nothing came in time, a signal, or no room for completions: the caller looks at what there is and comes back.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Calls `each` with every completion that has come: user data, result, flags.
    pub(super) fn reap(&mut self, mut each: impl FnMut(&mut Self, u64, i32, u32)) {
        loop {
            let mut some = [const { std::mem::MaybeUninit::uninit() }; 64];
            let mut queue = self.completion();
            let taken = queue.fill(&mut some);
            drop(queue);
            if taken.is_empty() {
                return;
            }
            for completion in taken.iter() {
                each(self, completion.user_data(), completion.result(), completion.flags());
            }
        }
    }

    /// Books a buffer that a completion names as taken by the kernel.
    pub(super) fn buffer_of(&mut self, flags: u32) -> Option<u16> {
        let buffer = cqueue::buffer_select(flags)?;
        assert!(buffer < self.buffers.count, "the kernel names a buffer that it was given");
        self.buffers.held -= 1;
        Some(buffer)
    }

    /// What was received into a buffer.
    #[expect(unsafe_code, reason = "the kernel has written to memory outside of the allocator")]
    pub(super) fn bytes(&self, buffer: u16, count: usize) -> &[u8] {
        assert!(buffer < self.buffers.count && count <= BUFFER_BYTES, "a buffer of this ring");
        // SAFETY: inside of the mapping, as asserted.
        let start = unsafe { self.buffers.memory.start.add(usize::from(buffer) * BUFFER_STRIDE) };
        // SAFETY: initialised by the mapping and then by the kernel, which does not hold the buffer until it is released, which borrows this mutably.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    /// Gives a buffer back.
    pub(super) fn release(&mut self, buffer: u16) {
        debug_assert!(self.buffers.spare.len() < usize::from(self.buffers.count), "a buffer is released once");
        self.buffers.spare.push(buffer);
    }

    /// The kernel had no buffer left: it gets to hold twice as many.
    pub(super) fn ran_out(&mut self) {
        self.buffers.wanted = self.buffers.wanted.saturating_mul(2).min(self.buffers.count);
    }

    /// Buffers that a receive could take now or after the next call.
    pub(super) fn buffers_left(&self) -> usize {
        usize::from(self.buffers.held).max(self.buffers.spare.len().min(usize::from(self.buffers.wanted)))
    }

    /// Puts an open socket into the table.
    pub(super) fn install(&self, place: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        self.submitter.register_files_update(place, &[socket.as_raw_fd()]).map(drop)
    }
}

impl Drop for Ring {
    #[expect(unsafe_code, reason = "the ring lives on the heap so that its submitter can live beside it")]
    fn drop(&mut self) {
        // A descriptor registered with a thread keeps the ring alive until that thread ends; on another thread the number would name another ring.
        if self.thread == Some(std::thread::current().id()) {
            let _ = self.submitter.unregister_ring_fd();
        }
        // SAFETY: made from a box in `new`, taken back here once; the submitter is not used after this, and the mappings of the buffers are dropped later.
        drop(unsafe { Box::from_raw(self.io_owned) });
    }
}

/// A socket that an accept completed with.
#[expect(unsafe_code, reason = "the kernel hands over a descriptor as a number")]
pub(super) fn accepted(result: i32) -> Option<OwnedFd> {
    // SAFETY: the number is the result of an accept entry: a new descriptor that nobody else owns.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(RawFd::from(result)) })
}
