//! Debian packages that a lane needs: installed where they are missing, never upgraded, no service started.
use crate::Failure;
use std::path::Path;
use std::process::Command;

/// What a lane needs: the path that shows that it is there, and the package that brings it.
pub struct Need {
    /// Any of these present: nothing to do.
    pub paths: &'static [&'static str],
    /// Debian's name.
    pub package: &'static str,
}

/// For Bitcoin Core's engine.
pub const NODE: [Need; 3] = [
    Need { paths: &["/usr/bin/cmake", "/usr/local/bin/cmake"], package: "cmake" },
    Need { paths: &["/usr/include/boost/version.hpp", "/usr/local/include/boost/version.hpp"], package: "libboost-dev" },
    Need { paths: &["/usr/bin/g++", "/usr/bin/clang++"], package: "g++" },
];

/// Debian's ClickHouse.
pub const CLICKHOUSE: [Need; 1] =
    [Need { paths: &["/usr/sbin/clickhouse-server", "/usr/bin/clickhouse-server"], package: "clickhouse-server" }];

/// The packages that are missing.
pub fn missing(needs: &[Need], exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    needs.iter().filter(|need| !need.paths.iter().any(|path| exists(path))).map(|need| need.package).collect()
}

// A policy-rc.d that says 101 keeps the packages' scripts from starting services; ours is taken away again, one that stood there is left alone.
const SCRIPT: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
apt-get install -y --no-install-recommends "$@" || { apt-get update; apt-get install -y --no-install-recommends "$@"; }
"#;

/// Installs what is missing, as root or by sudo without a password.
pub fn ensure(needs: &[Need]) -> Result<(), Failure> {
    let packages = missing(needs, |path| Path::new(path).exists());
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    let by_hand = format!("install them yourself: apt-get install --no-install-recommends {names}");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Failure::Environment(format!("{names} is missing and there is no apt-get here; {by_hand}")));
    }
    let root = output("id", &["-u"]).as_deref() == Some("0");
    let prefix: &[&str] = if root {
        &[]
    } else if output("sudo", &["-n", "true"]).is_some() {
        &["sudo", "-n"]
    } else {
        return Err(Failure::Environment(format!(
            "{names} is missing, and this user is neither root nor may use sudo without a password; {by_hand}"
        )));
    };
    println!("installing {names}");
    let words: Vec<&str> = prefix.iter().copied().chain(["sh", "-c", SCRIPT, "sh"]).chain(packages).collect();
    let done = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| Failure::Environment(format!("{} cannot be started: {error}", words[0])))?;
    if done.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&done.stderr);
        Err(Failure::Environment(format!("apt-get could not install {names}; {by_hand}\n{}", said.trim_end())))
    }
}

/// Standard output of a command that succeeded, without the blanks at its ends.
pub fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program).args(arguments).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        assert_eq!(missing(&NODE, |_| true), [""; 0]);
        assert_eq!(missing(&NODE, |path| path.ends_with("/cmake")), ["libboost-dev", "g++"]);
        assert_eq!(missing(&NODE, |path| path.contains("local") || path.ends_with("clang++")), [""; 0]);
        assert_eq!(missing(&CLICKHOUSE, |_| false), ["clickhouse-server"]);
    }
}
