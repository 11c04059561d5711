//! Metrics: one line declares one. A stage counts in a plain struct of its own and publishes it in housekeeping; readers see atomics.
use std::sync::atomic::{AtomicU64, Ordering};

/// How a metric behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows; exported with `_total`.
    Counter,
    /// Goes up and down; the sum over the stages is shown.
    Gauge,
    /// Goes up and down; the largest of the stages is shown.
    Most,
}

/// One value as it is exported: `otedama_<stage>_<name>`.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// `<subject>_<qualifier>_<action>_<unit>`.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// The value.
    pub value: u64,
}

/// Declares the metrics of a stage: the struct it counts in (`$counts`) and the shared one (`$shared`).
macro_rules! stage_metrics {
    ($(#[$doc:meta])* $counts:ident, $shared:ident { $($kind:ident $name:ident = $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Default, Clone, Debug)]
        pub struct $counts { $(#[doc = $help] pub $name: u64,)* }

        #[doc = concat!("What [`", stringify!($counts), "`] looked like at the last housekeeping.")]
        #[derive(Default, Debug)]
        pub struct $shared { $(#[doc = $help] pub $name: crossbeam_utils::CachePadded<std::sync::atomic::AtomicU64>,)* }

        impl $counts {
            /// Stores every value. Relaxed: each is a statistic of its own, nothing is read through it.
            pub fn publish(&self, shared: &$shared) {
                $(shared.$name.store(self.$name, std::sync::atomic::Ordering::Relaxed);)*
            }
        }

        impl $shared {
            /// Every value with its declaration.
            pub fn samples(&self) -> Vec<$crate::metrics::Sample> {
                vec![$($crate::metrics::Sample {
                    name: stringify!($name), kind: $crate::metrics::Kind::$kind, help: $help,
                    value: self.$name.load(std::sync::atomic::Ordering::Relaxed),
                },)*]
            }
        }
    };
}

stage_metrics! {
    /// Counters of a net stage.
    NetCounts, NetMetrics {
        Gauge connection_open = "Connections open";
        Counter connection_accepted = "Connections accepted";
        Counter connection_refused = "Connections closed at once: limit, deny list or connect rate";
        Counter connection_closed_slow = "Connections closed because they did not read or did not authorize in time";
        Counter connection_closed_refusals = "Connections closed because they sent more refused shares than limits.refused_per_s";
        Counter connection_closed_overload = "Connections closed under overload because they had the worst ratio of accepted to refused shares";
        Most unread_oldest_us = "Microseconds that bytes have waited in a socket to be read at most: the oldest since the last look, a few milliseconds ago";
        Most overload_step = "Measures against overload in force: 0 none, 1 door shut, 2 to 7 the busiest sessions at difficulty x2 to x64, 8 worst sessions closed";
        Gauge session_doubled = "Sessions whose difficulty is doubled because of overload";
        Counter difficulty_doubled = "Doublings of a session's difficulty because of overload";
        Counter connection_closed_unfinished = "Connections closed because no memory was left for their unfinished line";
        Counter poll_failed = "Polls of the sockets' driver that failed; the first of each kind is in the server's output";
        Counter receive_unbuffered = "Receives of io_uring that found all buffers in use (ENOBUFS) and were armed again";
        Counter line_received = "Lines received";
        Counter line_matched = "Submits that were read by comparing them with an earlier one of their connection";
        Counter line_scanned = "Lines that the scanner read";
        Counter line_odd = "Lines that went to the general JSON parser";
        Counter line_refused = "Lines that were no valid request, and submits of sessions that never subscribed";
        Counter share_received = "Submits of subscribed sessions";
        Counter share_stale_refused = "Shares answered stale";
        Counter share_duplicate_refused = "Shares answered duplicate";
        Counter share_low_difficulty_refused = "Shares answered low difficulty";
        Counter share_bad_time_refused = "Shares answered bad_time";
        Counter share_bad_version_refused = "Shares answered bad_version";
        Counter share_malformed_refused = "Shares answered malformed";
        Counter share_unauthorized_refused = "Shares answered unauthorized";
        Counter share_overload_refused = "Shares answered overload";
        Counter share_accepted = "Shares answered accepted";
        Gauge share_in_flight = "Shares read and not yet answered";
        Counter byte_received = "Bytes received";
        Counter byte_sent = "Bytes handed to the kernel";
        Counter job_sent = "Jobs sent to sessions";
        Counter difficulty_raised = "Retargets of vardiff to a higher difficulty";
        Counter difficulty_lowered = "Retargets of vardiff to a lower difficulty";
    }
}

stage_metrics! {
    /// Counters of a validate stage.
    ValidateCounts, ValidateMetrics {
        Counter share_hashed = "Shares hashed";
        Counter batch_hashed = "Batches hashed";
        Counter share_crosschecked = "Hashed shares recomputed by the scalar kernel: one in 4096, and every block candidate";
        Counter kernel_disagreed = "Recomputed shares that the scalar kernel judged otherwise; the lane uses the portable kernel from the first on";
        Counter root_looked_up = "Shares whose merkle root was looked for in the cache";
        Counter root_hit = "Shares whose merkle root was in the cache";
        Counter block_found = "Shares at or under the network target";
        Counter block_flagged = "Block candidates that found their ring full: chain finds them in the log";
        Most duplicate_table_used = "Shares in the fullest live duplicate table";
        Most duplicate_table_newest_used = "Shares in the duplicate table of the newest job";
    }
}

stage_metrics! {
    /// Counters of the log stage.
    LogCounts, LogMetrics {
        Counter row_appended = "Rows appended to the journal";
        Counter batch_committed = "Commit records written";
        Counter dimension_appended = "Session and worker records appended";
        Counter journal_full_waited = "Passes that found no room in the journal";
        Counter row_unrecorded = "Shares answered overload because the disk is full or failing: no credit";
        Gauge row_waiting = "Rows appended whose answers wait for a sync: tier disk";
        Gauge row_answered_early_most = "Most rows that were answered and not yet in the journal at one moment: what a kill may lose in tier memory";
    }
}

stage_metrics! {
    /// Counters of the capture of a net's wire.
    CaptureCounts, CaptureMetrics {
        Counter entry_taken = "Entries of the wire taken down for the capture";
        Counter byte_taken = "Bytes of them";
        Counter entry_lost = "Entries left out because the writer of the capture was behind";
        Counter byte_lost = "Bytes of them";
        Gauge ended_state = "1 once the capture has ended before the server: at its size, or by an error of the disk";
    }
}

/// Nanoseconds a stage spent by regime; who is the bottleneck is read off here.
#[derive(Default, Debug)]
pub struct RegimeNs {
    /// Nothing to do.
    pub caught_up: AtomicU64,
    /// Working.
    pub processing: AtomicU64,
    /// Waiting for the next stage.
    pub backpressure: AtomicU64,
    /// Publishing statistics.
    pub housekeeping: AtomicU64,
}

impl RegimeNs {
    /// (caught up, processing, backpressure, housekeeping) in nanoseconds.
    pub fn read(&self) -> [u64; 4] {
        [&self.caught_up, &self.processing, &self.backpressure, &self.housekeeping].map(|value| value.load(Ordering::Relaxed))
    }
}
