//! What a measurement needs around it: processes on chosen cores that end with us, free ports, a folder of its own, the machine's name, medians.
use crate::Failure;
use crate::install::output;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A folder that is removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder under `target/`, which is on a disk where /tmp often is not.
    pub fn new(root: &Path, name: &str) -> Result<Self, Failure> {
        let path = root.join(format!("target/figures/{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| Failure::Environment(format!("{} cannot be made: {error}", path.display())))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind lies under target/ and goes with `cargo clean`.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child process that does not outlive its measurement.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `binary` on `core`, with as many descriptors as this user may have. Its output goes to `log`.
    pub fn start(binary: &Path, arguments: &[&str], core: usize, log: &Path) -> Result<Self, Failure> {
        let name = binary.display().to_string();
        let failed = |error: std::io::Error| Failure::Environment(format!("{name} cannot be started: {error}"));
        let file = std::fs::File::create(log).map_err(failed)?;
        let mut command = on_core(binary, arguments, core);
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().map_err(failed)?).stderr(file).spawn().map_err(failed)?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Its process id. `taskset` and the shell have become the program by exec, so this is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        output("kill", &[&format!("-{name}"), &self.pid().to_string()]);
    }

    /// kill -9, and the wait until it is gone.
    pub fn kill(mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::Environment(format!("{} cannot be killed: {error}", self.name));
        self.child.kill().and_then(|()| self.child.wait()).map(|_| ()).map_err(failed)
    }

    /// Up to so long for it to end by itself; its exit code, None where a signal ended it.
    pub fn wait(mut self, limit: Duration) -> Result<Option<i32>, Failure> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status.code()),
                Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(10)),
                Ok(None) => {
                    let limit_s = limit.as_secs();
                    return Err(Failure::Environment(format!("{} did not end within {limit_s} s\n{}", self.name, self.said().trim_end())));
                }
                Err(error) => return Err(Failure::Environment(format!("{} was lost: {error}", self.name))),
            }
        }
    }

    /// SIGTERM, and up to 20 s to drain.
    pub fn stop(self) -> Result<(), Failure> {
        self.signal("TERM");
        self.wait(Duration::from_secs(20)).map(|_| ())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `binary` on one core. The product's variables are taken away: a figure is of the config that it names.
fn on_core(binary: &Path, arguments: &[&str], core: usize) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), "sh", "-c", "ulimit -n \"$(ulimit -Hn)\"; exec \"$@\"", "sh"]).arg(binary).args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OTEDAMA_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `binary` on `core` to its end and returns the JSON object of its last line.
pub fn last_json(binary: &Path, arguments: &[&str], core: usize) -> Result<Value, Failure> {
    last_json_of(on_core(binary, arguments, core), &[0])
}

/// The same of any command, with the exit codes that come with a result.
pub fn last_json_of(mut command: Command, codes: &[i32]) -> Result<Value, Failure> {
    let said = format!("{command:?}");
    let failed = |what: String| Failure::Environment(format!("{said}: {what}"));
    let done = command.output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&done.stdout);
    if !done.status.code().is_some_and(|code| codes.contains(&code)) {
        return Err(failed(format!("{}\n{}{}", done.status, text, String::from_utf8_lossy(&done.stderr))));
    }
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(line).map_err(|error| failed(format!("its last line is no JSON ({error}): {line:?}")))
}

/// A loopback address that nobody listens on now.
pub fn free_address() -> Result<SocketAddr, Failure> {
    let failed = |error: std::io::Error| Failure::Environment(format!("no free port on loopback: {error}"));
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(failed)
}

/// Waits until somebody listens on `address`, and says how long that took, in milliseconds. Looks every 0.2 ms.
pub fn wait_listening(address: SocketAddr, process: &mut Process, since: Instant) -> Result<f64, Failure> {
    while since.elapsed() < Duration::from_secs(30) {
        if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
            return Ok(since.elapsed().as_secs_f64() * 1e3);
        }
        if process.ended() {
            return Err(Failure::Environment(format!("{} ended before it listened on {address}", process.name)));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Err(Failure::Environment(format!("{} does not listen on {address} after 30 s", process.name)))
}

/// GET of a JSON document from the stats endpoint.
pub fn get_json(address: SocketAddr, path: &str) -> Result<Value, Failure> {
    serde_json::from_str(&get(address, path)?).map_err(|error| Failure::Environment(format!("http://{address}{path}: {error}")))
}

/// The body of a GET.
pub fn get(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let failed = |what: String| Failure::Environment(format!("http://{address}{path}: {what}"));
    let fetch = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = fetch().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| failed("no HTTP answer".to_owned()))?;
    Ok(body.to_owned())
}

/// Resident bytes of a process without mapped files: RssAnon.
pub fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|error| Failure::Environment(format!("{path}: {error}")))?;
    resident_of(&text).ok_or_else(|| Failure::Environment(format!("{path} has no RssAnon")))
}

/// Bytes of the kernel's tables that it cannot give back, of the whole machine: sockets and what hangs on them are among them.
pub fn unreclaimable_slab_bytes() -> Result<u64, Failure> {
    memory_info("SUnreclaim:")
}

/// Memory that new processes can have without swapping, of the whole machine.
pub fn available_bytes() -> Result<u64, Failure> {
    memory_info("MemAvailable:")
}

fn memory_info(key: &str) -> Result<u64, Failure> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Environment(format!("{path}: {error}")))?;
    kibibytes_of(&text, key).ok_or_else(|| Failure::Environment(format!("{path} has no {key}")))
}

/// Open descriptors of a process.
pub fn open_descriptors(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&path).map_err(|error| Failure::Environment(format!("{path}: {error}")))?;
    Ok(entries.count() as u64)
}

fn resident_of(status: &str) -> Option<u64> {
    kibibytes_of(status, "RssAnon:")
}

fn kibibytes_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

/// The middle of the values; the mean of the two middle ones where their number is even.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// Model and number of the cores. Family and model tell apart what a vendor sells under one name.
pub fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let value = |line: &str| line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned());
        text.lines().find_map(value).unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} (family {} model {}), {cores} cores", field("model name"), field("cpu family"), field("model"))
}

/// The commit that is measured, with `-dirty` where tracked files differ from it. What measuring itself writes is not looked at: figures and their tables
/// are in no binary, and one topic after another is measured before all of them are committed.
pub fn commit(root: &Path) -> String {
    let root = root.to_string_lossy();
    let head = output("git", &["-C", &root, "rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let measured = ["-C", &root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!README.md"];
    let changed = output("git", &measured).is_some_and(|said| !said.is_empty());
    if changed { head + "-dirty" } else { head }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn resident_bytes_are_kibibytes_times_1024() {
        assert_eq!(resident_of("Name:\tx\nRssAnon:\t    2048 kB\nVmData: 1 kB\n"), Some(2048 * 1024));
        assert_eq!(resident_of("Name:\tx\n"), None);
        assert!(resident_bytes(std::process::id()).is_ok_and(|bytes| bytes > 100_000));
        assert!(open_descriptors(std::process::id()).is_ok_and(|count| count >= 3));
        assert!(unreclaimable_slab_bytes().is_ok_and(|bytes| bytes > 100_000));
    }

    #[test]
    fn the_last_line_is_read_and_a_failure_is_reported_with_its_words() {
        let shell = Path::new("sh");
        let value = last_json(shell, &["-c", "echo noise; echo '{\"submits\": 5}'; echo"], 0).unwrap();
        assert_eq!(value["submits"], 5);
        let error = last_json(shell, &["-c", "echo why >&2; exit 3"], 0).unwrap_err();
        assert!(matches!(error, Failure::Environment(what) if what.contains("why")));
        assert!(last_json(shell, &["-c", "echo no json"], 0).is_err());
    }
}
