//! CPU time of this thread and of another process.
use std::path::PathBuf;

/// A server whose CPU time cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// /proc does not have it.
    #[error("cannot read the CPU time of process {pid} from {path}: {source}; is that the server's process id?")]
    Read {
        /// The process.
        pid: u32,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what proc(5) says.
    #[error("{path} has no utime and stime (proc(5), fields 14 and 15)")]
    Format {
        /// The file.
        path: PathBuf,
    },
}

/// CPU time of the threads that `pid` has now, seconds, to the nanosecond: what turns of half a second need. None where the kernel does not account for it.
/// A thread that ends takes its time with it, so this is for servers whose threads stay.
fn threads_seconds(pid: u32) -> Option<f64> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
    }
    (nanoseconds > 0).then_some(nanoseconds as f64 * 1e-9)
}

/// A clock of another process's CPU time; one clock is read with one method throughout.
#[derive(Clone, Copy, Debug)]
pub struct ProcessClock {
    pid: u32,
    is_fine: bool,
}

impl ProcessClock {
    /// Chooses the finest method that this kernel has for `pid`.
    pub fn new(pid: u32) -> Result<Self, CpuError> {
        process_seconds(pid)?;
        Ok(Self { pid, is_fine: threads_seconds(pid).is_some() })
    }

    /// CPU time so far, seconds; None once the process is gone.
    pub fn seconds(&self) -> Option<f64> {
        if self.is_fine { threads_seconds(self.pid) } else { process_seconds(self.pid).ok() }
    }
}

/// User and system time of all threads of `pid` so far, ended ones included, seconds. Counted by the kernel in ticks, usually 10 ms.
pub fn process_seconds(pid: u32) -> Result<f64, CpuError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(&path).map_err(|source| CpuError::Read { pid, path: path.clone(), source })?;
    let ticks = ticks_of(&text).ok_or(CpuError::Format { path })?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn ticks_of(stat: &str) -> Option<u64> {
    // The second field is the command in parentheses and may hold blanks and parentheses itself.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// CPU time of the calling thread so far, seconds.
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_last_parenthesis() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 31 9 9 20 0 1 0 100 1 1";
        assert_eq!(ticks_of(stat), Some(281));
        assert_eq!(ticks_of("7 (a) S 1"), None);
        assert_eq!(ticks_of(""), None);
    }

    #[test]
    fn both_clocks_of_this_process_agree() {
        let clock = ProcessClock::new(std::process::id()).expect("own");
        let started = std::time::Instant::now();
        let (fine, coarse) = (clock.seconds().expect("own"), process_seconds(std::process::id()).expect("own"));
        // Threads of tests that have ended count in one alone, and other threads run between the two reads.
        assert!(fine <= coarse + 0.05 + 8.0 * started.elapsed().as_secs_f64(), "{fine} {coarse}");
        assert!(ProcessClock::new(u32::MAX).is_err());
    }

    #[test]
    fn this_process_has_a_cpu_time_and_a_process_that_is_not_there_is_an_error() {
        assert!(process_seconds(std::process::id()).expect("own") >= 0.0);
        assert!(process_seconds(u32::MAX).expect_err("none").to_string().contains("4294967295"));
    }
}
