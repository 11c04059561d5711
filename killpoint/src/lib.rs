//! Named places at which tests kill a running server: `otedama_killpoint::pass("seal.meta_renamed")`.
//!
//! A build without debug assertions has no kill points: `pass` is an empty function there, so production pays nothing, not even a load. In a build with them a
//! point costs one atomic load until one is armed by
//!
//! ```text
//! OTEDAMA_KILL_AT="seal.meta_renamed@3"
//! ```
//!
//! It is SIGKILL from the inside, at the third pass (`@1` may be left out): nothing is flushed, dropped or said, exactly as by `kill -9` from outside at that instruction. Words
//! that do not parse end the process with exit code 2: a test that arms nothing by mistake would pass for ever.
#![forbid(unsafe_code)]

/// Every point there is, in the order of a share's way. A test kills the pool at each; a name that is not in this list cannot be armed.
pub const POINTS: [&str; 49] = [
    // Opening the log.
    "open.locked",
    "open.epoch_known",
    "open.recovered",
    "open.dimensions_open",
    "open.ready",
    // The share path.
    "net.step",
    "net.answered",
    "validate.step",
    "log.step",
    "log.taken",
    "log.names_appended",
    "log.appended",
    "log.answered",
    "journal.cells_written",
    "journal.commit_stored",
    "journal.end_stored",
    "journal.turned",
    // Jobs, sessions and workers.
    "dimensions.written",
    "dimensions.synced",
    // The sealer.
    "sealer.batch_read",
    "seal.dimensions_synced",
    "seal.native_created",
    "seal.native_written",
    "seal.native_synced",
    "seal.meta_written",
    "seal.meta_synced",
    "seal.meta_renamed",
    "seal.native_renamed",
    "seal.folder_synced",
    "sealer.file_allocated",
    "sealer.file_synced",
    "sealer.file_renamed",
    "sealer.file_recycled",
    // The packer of cold segments.
    "cold.created",
    "cold.written",
    "cold.synced",
    "cold.renamed",
    "cold.folder_synced",
    "cold.plain_removed",
    // The sync thread of tier `disk`.
    "sync.header_written",
    "sync.cells_written",
    "sync.end_written",
    "sync.synced",
    "sync.told",
    // The shipper, which runs where a ClickHouse is configured.
    "ship.dimensions_sent",
    "ship.body_sent",
    "ship.answered",
    "ship.segment_told",
    "ship.cursor_stored",
];

/// Where a build with kill points reads a smaller size of journal files, so that files turn and come back within the seconds that a killed server lives.
const JOURNAL_FILE_VARIABLE: &str = "OTEDAMA_KILL_JOURNAL_FILE_BYTES";

/// Size of a journal file: `bytes`, or in a build with kill points what the environment says. Words that are no number end the process with exit code 2.
pub fn journal_file_bytes(bytes: u64) -> u64 {
    let Some(words) = std::env::var_os(JOURNAL_FILE_VARIABLE).filter(|_| are_built_in()) else { return bytes };
    match words.to_str().and_then(|words| words.parse().ok()) {
        Some(bytes) => bytes,
        None => {
            eprintln!("error: {JOURNAL_FILE_VARIABLE}: {words:?} is no number of bytes");
            std::process::exit(2);
        }
    }
}

/// A place at which an armed test kills the process. `name` is one of `POINTS`.
#[inline(always)]
pub fn pass(name: &'static str) {
    #[cfg(debug_assertions)]
    armed::pass(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// True where this build has kill points.
pub const fn are_built_in() -> bool {
    cfg!(debug_assertions)
}

#[cfg(debug_assertions)]
mod armed {
    use super::POINTS;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where the words stand.
    const VARIABLE: &str = "OTEDAMA_KILL_AT";

    #[derive(Debug)]
    pub(super) struct Armed {
        pub(super) name: String,
        pub(super) at: u64,
        passed: AtomicU64,
    }

    static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

    #[inline]
    pub(super) fn pass(name: &str) {
        let armed = ARMED.get_or_init(from_environment);
        if !armed.is_empty() {
            look(armed, name);
        }
    }

    fn from_environment() -> Vec<Armed> {
        let Some(words) = std::env::var_os(VARIABLE) else { return Vec::new() };
        match parse(&words.to_string_lossy()) {
            Ok(armed) => armed,
            Err(what) => {
                eprintln!("error: {VARIABLE}: {what}");
                std::process::exit(2);
            }
        }
    }

    pub(super) fn parse(words: &str) -> Result<Vec<Armed>, String> {
        words.split_whitespace().map(one).collect()
    }

    fn one(word: &str) -> Result<Armed, String> {
        let (name, at) = word.split_once('@').unwrap_or((word, "1"));
        if !POINTS.contains(&name) {
            return Err(format!("there is no kill point {name:?}"));
        }
        let at = at.parse().ok().filter(|&at| at > 0).ok_or_else(|| format!("{at:?} in {word:?} is no number from 1"))?;
        Ok(Armed { name: name.to_owned(), at, passed: AtomicU64::new(0) })
    }

    #[cold]
    fn look(armed: &[Armed], name: &str) {
        for point in armed.iter().filter(|point| point.name == name) {
            // Relaxed: counts passes, nothing is read through it.
            if point.passed.fetch_add(1, Ordering::Relaxed) + 1 == point.at {
                let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                assert!(killed.is_ok(), "a process may kill itself");
                // The signal is on its way to every thread; this one goes no step further.
                loop {
                    std::thread::park();
                }
            }
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::armed::parse;
    use super::*;

    #[test]
    fn names_are_unique_and_words_arm_them() {
        let mut names = POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
        let armed = parse(" seal.meta_renamed@3  validate.step ").expect("two words");
        let told: Vec<_> = armed.iter().map(|point| (point.name.as_str(), point.at)).collect();
        assert_eq!(told, [("seal.meta_renamed", 3), ("validate.step", 1)]);
    }

    #[test]
    fn words_that_arm_nothing_are_refused() {
        for words in ["seal.no_such_place", "log.step@x", "log.step@", "log.step@0", "log.step=1"] {
            assert!(parse(words).is_err(), "{words}");
        }
        assert!(parse("").expect("nothing").is_empty());
    }

    #[test]
    fn a_point_that_nobody_armed_does_nothing() {
        pass("log.step");
    }
}
