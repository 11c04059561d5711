//! The settings that matter to a pool, one stage each.

use std::{fs, io};

use crate::{Change, Finding, Host, HostStage, Verdict};

/// The value that a settings file holds, in the form that can be written back: of `always [madvise] never` the word in
/// brackets, else the whole text. `None` where the file is missing.
pub(crate) fn read_value(host: &Host, path: &str) -> io::Result<Option<String>> {
    Ok(host.read(path)?.map(|text| chosen(&text)))
}

/// As [`read_value`], for a check that needs no privilege: what cannot be read is as good as missing.
pub(crate) fn value(host: &Host, path: &str) -> Option<String> {
    read_value(host, path).ok().flatten()
}

fn chosen(text: &str) -> String {
    let in_brackets = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word.trim());
    in_brackets.unwrap_or(text).to_owned()
}

fn finding<S: HostStage>(verdict: Verdict, current: impl Into<String>, required: impl Into<String>, note: impl Into<String>) -> Finding {
    Finding { stage: S::NAME, verdict, current: current.into(), required: required.into(), note: note.into() }
}

fn write<S: HostStage>(path: &str, from: &str, to: &str) -> Change {
    Change::Write { stage: S::NAME, path: path.to_owned(), from: from.to_owned(), to: to.to_owned() }
}

/// The frequency governor of every core is `performance`.
///
/// A share core that spins is busy for any governor, but one that blocks in poll between shares is clocked down by
/// `powersave` or `schedutil`, and the first share after a pause pays for the way back up.
pub struct Governor;

const CPUS: &str = "/sys/devices/system/cpu";

impl Governor {
    /// (path, governor now) of every core with frequency scaling, by core number; and how many of them cannot be set because
    /// their driver has no `performance` governor.
    fn cores(host: &Host) -> (Vec<(String, String)>, usize) {
        let mut numbers: Vec<u32> = fs::read_dir(host.at(CPUS))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let mut cores = Vec::new();
        let mut without = 0;
        for number in numbers {
            let folder = format!("{CPUS}/cpu{number}/cpufreq");
            let path = format!("{folder}/scaling_governor");
            let Some(now) = value(host, &path) else {
                continue;
            };
            let offered = value(host, &format!("{folder}/scaling_available_governors"));
            // An empty list is "not told", as some drivers leave it.
            if offered.is_some_and(|o| !o.is_empty() && !o.split_whitespace().any(|word| word == "performance")) {
                without += 1;
            } else {
                cores.push((path, now));
            }
        }
        (cores, without)
    }
}

impl HostStage for Governor {
    const NAME: &'static str = "governor";

    fn check(host: &Host) -> Finding {
        let (cores, without) = Governor::cores(host);
        if cores.is_empty() {
            let note = if without > 0 {
                "The frequency driver offers no `performance` governor."
            } else {
                "No frequency scaling is visible, as in most virtual machines: the hypervisor or the firmware decides."
            };
            return finding::<Self>(Verdict::NotAvailable, "-", "performance", note);
        }
        let mut names: Vec<&str> = cores.iter().map(|(_, now)| now.as_str()).collect();
        names.sort_unstable();
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for name in names {
            match counts.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => counts.push((name, 1)),
            }
        }
        let current = counts.iter().map(|(name, count)| format!("{name} on {count}")).collect::<Vec<_>>().join(", ");
        let (verdict, note) = if cores.iter().all(|(_, now)| now == "performance") {
            (Verdict::Ok, "")
        } else {
            (Verdict::Differs, "A core that waits between shares is clocked down, and the next share waits for it to come back.")
        };
        finding::<Self>(verdict, current, "performance", note)
    }

    fn plan(host: &Host) -> Vec<Change> {
        Governor::cores(host)
            .0
            .iter()
            .filter(|(_, now)| now != "performance")
            .map(|(path, now)| write::<Self>(path, now, "performance"))
            .collect()
    }
}

/// Transparent huge pages are `madvise` (or `never`), and their defragmentation is not `always`.
///
/// `madvise` is what we set: the large tables that ask for huge pages get them, all before the first share, while nothing
/// else does. Under `always` the kernel folds pages behind our back (khugepaged holds the address space's lock while a share
/// core faults) and rounds the memory of idle connections up to 2 MiB pieces. `never` has none of these stalls and only
/// loses the larger TLB reach, so it is accepted and left as the operator set it.
pub struct TransparentHugePages;

const THP_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const THP_DEFRAG: &str = "/sys/kernel/mm/transparent_hugepage/defrag";

impl HostStage for TransparentHugePages {
    const NAME: &'static str = "huge_pages";

    fn check(host: &Host) -> Finding {
        let required = "madvise or never";
        let Some(enabled) = value(host, THP_ENABLED) else {
            return finding::<Self>(Verdict::NotAvailable, "-", required, "This kernel has no transparent huge pages.");
        };
        let defrag = value(host, THP_DEFRAG);
        let current = match &defrag {
            Some(defrag) => format!("{enabled}, defrag {defrag}"),
            None => enabled,
        };
        if Self::plan(host).is_empty() {
            finding::<Self>(Verdict::Ok, current, required, "")
        } else {
            finding::<Self>(
                Verdict::Differs,
                current,
                required,
                "`always` lets the kernel fold and compact pages while a share core waits, and inflates idle connections.",
            )
        }
    }

    fn plan(host: &Host) -> Vec<Change> {
        // Off is off: how hard the kernel would try does not matter then.
        if value(host, THP_ENABLED).is_none_or(|enabled| enabled == "never") {
            return Vec::new();
        }
        [THP_ENABLED, THP_DEFRAG]
            .into_iter()
            .filter(|path| value(host, path).is_some_and(|now| now == "always"))
            .map(|path| write::<Self>(path, "always", "madvise"))
            .collect()
    }
}

/// The process may open a file for every connection, with [`NOFILE_SLACK`] beside.
pub struct Nofile;

/// Files beside the miners' sockets: listeners, poll descriptors, journal and segment files, node, ClickHouse and stats
/// connections, and what the runtime opens; rounded up generously.
pub const NOFILE_SLACK: u64 = 512;

/// Parsed `Max open files` of /proc/self/limits; `u64::MAX` is unlimited.
struct OpenFiles {
    soft: u64,
    hard: u64,
}

impl Nofile {
    fn needed(host: &Host) -> u64 {
        host.connections_max.saturating_add(NOFILE_SLACK)
    }

    fn limits(host: &Host) -> Option<OpenFiles> {
        let text = host.read("/proc/self/limits").ok().flatten()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        let mut words = line.split_whitespace().map(|word| match word {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        });
        Some(OpenFiles { soft: words.next()??, hard: words.next()?? })
    }
}

fn limit_text(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

impl HostStage for Nofile {
    const NAME: &'static str = "nofile";

    fn check(host: &Host) -> Finding {
        let needed = Nofile::needed(host);
        let required = format!("{needed} (max_connections {} + {NOFILE_SLACK})", host.connections_max);
        let Some(limits) = Nofile::limits(host) else {
            return finding::<Self>(
                Verdict::Unknown,
                "-",
                required,
                "/proc/self/limits does not tell; `ulimit -n` in the shell that starts the server does.",
            );
        };
        let current = format!("soft {}, hard {}", limit_text(limits.soft), limit_text(limits.hard));
        let (verdict, note) = if limits.soft >= needed {
            (Verdict::Ok, String::new())
        } else if limits.hard >= needed {
            (
                Verdict::Differs,
                format!(
                    "The hard limit is enough: `ulimit -n {needed}` in the shell that starts the server will do, or LimitNOFILE in its unit. This is the limit of this shell; a unit has its own."
                ),
            )
        } else {
            (
                Verdict::Differs,
                "The server would refuse connections below max_connections. Raise the hard limit, or lower max_connections. This is the limit of this shell; a unit has its own.".to_owned(),
            )
        };
        finding::<Self>(verdict, current, required, note)
    }

    fn plan(host: &Host) -> Vec<Change> {
        let needed = Nofile::needed(host);
        if Nofile::limits(host).is_none_or(|limits| limits.soft >= needed) {
            return Vec::new();
        }
        vec![Change::Manual {
            stage: Self::NAME,
            what: "a limit belongs to the process that starts the server, so no write of ours would last; use the line that fits"
                .to_owned(),
            lines: vec![
                format!("systemd unit, [Service]:     LimitNOFILE={needed}"),
                format!("/etc/security/limits.conf:   otedama - nofile {needed}   (then log in again)"),
                format!("docker run:                  --ulimit nofile={needed}:{needed}"),
            ],
        }]
    }
}

/// `net.core.somaxconn` is at least [`SOMAXCONN_MIN`]; only ever raised.
pub struct Somaxconn;

/// Connections that may wait for accept. After an outage a whole farm comes back within a second; a shorter queue makes the
/// kernel drop the handshakes, and each dropped miner waits 1, 3, then 7 s for its retry. 4,096 is the default since Linux 5.4.
pub const SOMAXCONN_MIN: u64 = 4096;

const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";

impl HostStage for Somaxconn {
    const NAME: &'static str = "somaxconn";

    fn check(host: &Host) -> Finding {
        let required = format!("at least {SOMAXCONN_MIN}");
        let Some(now) = value(host, SOMAXCONN) else {
            return finding::<Self>(Verdict::NotAvailable, "-", required, "net.core.somaxconn is not visible here.");
        };
        match now.parse::<u64>() {
            Ok(depth) if depth >= SOMAXCONN_MIN => finding::<Self>(Verdict::Ok, now, required, ""),
            Ok(_) => finding::<Self>(
                Verdict::Differs,
                now,
                required,
                "When a farm reconnects at once, the kernel drops the handshakes that do not fit, and those miners wait seconds.",
            ),
            Err(_) => finding::<Self>(Verdict::Unknown, now, required, "net.core.somaxconn is not a number here."),
        }
    }

    fn plan(host: &Host) -> Vec<Change> {
        value(host, SOMAXCONN)
            .filter(|now| now.parse::<u64>().is_ok_and(|depth| depth < SOMAXCONN_MIN))
            .map(|now| write::<Self>(SOMAXCONN, &now, &SOMAXCONN_MIN.to_string()))
            .into_iter()
            .collect()
    }
}

/// io_uring may be used.
///
/// The switch is a hardening one that somebody may have set on purpose, and the pool runs without io_uring (the poll driver
/// takes over), so opening it stays a decision of the operator: the plan names the command, `apply` does not run it.
pub struct IoUring;

const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

const SECCOMP_NOTE: &str = "A seccomp filter is active (Seccomp: 2 in /proc/self/status). Docker from 25.0 and containerd refuse io_uring in their default profiles; the pool then runs on the poll driver. To allow it, start the container with a profile that lists io_uring_setup, io_uring_enter and io_uring_register (--security-opt seccomp=FILE).";

impl IoUring {
    /// Linux 5.1 brought io_uring; `None` where the release does not tell.
    fn kernel_has_it(host: &Host) -> Option<bool> {
        let release = value(host, "/proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??) >= (5, 1))
    }

    fn filtered(host: &Host) -> bool {
        value(host, "/proc/self/status")
            .is_some_and(|text| text.lines().filter_map(|line| line.strip_prefix("Seccomp:")).any(|mode| mode.trim() == "2"))
    }
}

impl HostStage for IoUring {
    const NAME: &'static str = "io_uring";

    fn check(host: &Host) -> Finding {
        let switch = value(host, IO_URING_DISABLED);
        let required = "io_uring_disabled = 0";
        let current = match &switch {
            Some(value) => format!("io_uring_disabled = {value}"),
            None => "no switch".to_owned(),
        };
        match switch.as_deref() {
            None if IoUring::kernel_has_it(host) == Some(false) => finding::<Self>(
                Verdict::NotAvailable,
                "kernel before 5.1",
                required,
                "This kernel has no io_uring; the pool runs on the poll driver.",
            ),
            // The switch came with Linux 6.6; before that nothing but seccomp closes io_uring.
            None if IoUring::kernel_has_it(host).is_none() => {
                finding::<Self>(Verdict::Unknown, current, required, "The kernel's release is not visible here.")
            }
            None | Some("0") if IoUring::filtered(host) => finding::<Self>(Verdict::Unknown, current, required, SECCOMP_NOTE),
            None | Some("0") => finding::<Self>(Verdict::Ok, current, required, ""),
            Some("1") => finding::<Self>(
                Verdict::Differs,
                current,
                required,
                "Only CAP_SYS_ADMIN and the group of kernel.io_uring_group may use io_uring; others run on the poll driver.",
            ),
            Some("2") => finding::<Self>(
                Verdict::Differs,
                current,
                required,
                "io_uring is closed to every process; the pool runs on the poll driver.",
            ),
            Some(_) => finding::<Self>(Verdict::Unknown, current, required, "The switch holds a value that this release does not know."),
        }
    }

    fn plan(host: &Host) -> Vec<Change> {
        match value(host, IO_URING_DISABLED).as_deref() {
            Some("1" | "2") => vec![Change::Manual {
                stage: Self::NAME,
                what: "the switch is a hardening one, so opening it is your decision; the pool also runs without io_uring".to_owned(),
                lines: vec![
                    format!("echo 0 > {IO_URING_DISABLED}"),
                    "to keep it, in /etc/sysctl.d/90-otedama.conf:   kernel.io_uring_disabled = 0".to_owned(),
                ],
            }],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_brackets_is_the_value() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("performance"), "performance");
        assert_eq!(chosen("[never"), "[never");
        assert_eq!(chosen(""), "");
    }
}
