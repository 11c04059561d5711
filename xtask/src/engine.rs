//! `cargo xtask engine`: builds engine/, fetches libchdb from npm in the one version that engine/libchdb.json pins, checks its sum, and puts both where `otedama sql` looks.
use crate::Failure;
use crate::install::{self, Need, output};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// npm, where no other one is in the path.
const NPM: [Need; 1] = [Need { paths: &["/usr/bin/npm", "/usr/local/bin/npm"], package: "npm" }];

/// What `cargo xtask engine` makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// `otedama-engine`.
    pub binary: PathBuf,
    /// `libchdb.so`.
    pub library: PathBuf,
}

/// A version of libchdb for this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pinned {
    version: String,
    package: String,
    sha512: String,
}

impl Pinned {
    /// From engine/libchdb.json.
    fn read(root: &Path, architecture: &str) -> Result<Self, Failure> {
        let path = root.join("engine/libchdb.json");
        let failed = |what: String| Failure::Environment(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let field = |value: &Value, name: &str| value[name].as_str().map(str::to_owned).ok_or_else(|| failed(format!("no {name}")));
        let here = json["architectures"].get(architecture).ok_or_else(|| failed(format!("npm has no libchdb for {architecture}")))?;
        Ok(Self { version: field(&json, "version")?, package: field(here, "package")?, sha512: field(here, "sha512")? })
    }

    /// Where it lies once fetched. The version is in the name: another one is another file.
    fn library(&self, root: &Path) -> PathBuf {
        root.join(format!("engine/target/libchdb-{}/libchdb.so", self.version))
    }
}

/// True when libchdb has been fetched already.
pub fn is_fetched(root: &Path) -> bool {
    Pinned::read(root, std::env::consts::ARCH).is_ok_and(|pinned| pinned.library(root).exists())
}

/// Builds the program and fetches the library, each where it is missing or old.
pub fn ensure(root: &Path) -> Result<Engine, Failure> {
    let library = fetch(root)?;
    let target = root.join("engine/target");
    let status = Command::new("cargo")
        .args(["build", "--release", "--manifest-path", "engine/Cargo.toml", "--target-dir"])
        .arg(&target)
        .current_dir(root)
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(Failure::Environment("building engine/ failed".to_owned()));
    }
    Ok(Engine { binary: target.join("release/otedama-engine"), library })
}

/// `ensure`, and both files into `into`.
pub fn install(root: &Path, into: Option<&str>) -> Result<(), Failure> {
    let folder = match into {
        Some(folder) => PathBuf::from(folder),
        None => data_home().ok_or_else(|| Failure::Environment("neither XDG_DATA_HOME nor HOME is set: say --into DIR".to_owned()))?,
    };
    let engine = ensure(root)?;
    let failed = |error: std::io::Error| Failure::Environment(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(&folder).map_err(failed)?;
    for (from, name) in [(&engine.binary, "otedama-engine"), (&engine.library, "libchdb.so")] {
        // By way of another name: a program that is running cannot be written to, but replaced.
        let (to, fresh) = (folder.join(name), folder.join(format!("{name}.new")));
        // A second name for half a gigabyte, where the file system is the same.
        let _ = std::fs::remove_file(&fresh);
        std::fs::hard_link(from, &fresh).or_else(|_| std::fs::copy(from, &fresh).map(drop)).map_err(failed)?;
        std::fs::rename(&fresh, &to).map_err(failed)?;
    }
    println!("otedama-engine and libchdb.so are in {}: `otedama sql` finds them there", folder.display());
    Ok(())
}

/// Where `otedama sql` looks.
fn data_home() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = named("XDG_DATA_HOME").or_else(|| named("HOME").map(|home| home.join(".local/share")))?;
    Some(base.join("otedama/engine"))
}

fn fetch(root: &Path) -> Result<PathBuf, Failure> {
    let pinned = Pinned::read(root, std::env::consts::ARCH)?;
    let library = pinned.library(root);
    if library.exists() {
        return Ok(library);
    }
    if output("npm", &["--version"]).is_none() {
        install::ensure(&NPM)?;
    }
    let folder = library.parent().unwrap_or(root).to_owned();
    let failed = |what: String| Failure::Environment(format!("fetching libchdb into {}: {what}", folder.display()));
    // What an earlier try left is not to be trusted.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
    println!("fetching {}@{} (178 MB, 566 MB unpacked)", pinned.package, pinned.version);
    let place = folder.to_string_lossy().into_owned();
    run("npm", &["pack", "--silent", "--pack-destination", &place, &format!("{}@{}", pinned.package, pinned.version)]).map_err(&failed)?;
    let packed = std::fs::read_dir(&folder)
        .map_err(|error| failed(error.to_string()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "tgz"))
        .ok_or_else(|| failed("npm packed nothing".to_owned()))?;
    let packed_at = packed.to_string_lossy().into_owned();
    let sum = run("sha512sum", &["--", &packed_at]).map_err(&failed)?;
    let sum = sum.split_whitespace().next().unwrap_or_default();
    if sum != pinned.sha512 {
        // Nothing of it is unpacked.
        let _ = std::fs::remove_dir_all(&folder);
        return Err(failed(format!("its SHA-512 is {sum}, engine/libchdb.json says {}", pinned.sha512)));
    }
    run("tar", &["-xzf", &packed_at, "-C", &place, "--strip-components=1", "package/libchdb.so"]).map_err(&failed)?;
    std::fs::remove_file(&packed).map_err(|error| failed(error.to_string()))?;
    if library.exists() { Ok(library) } else { Err(failed("the package has no libchdb.so".to_owned())) }
}

/// Standard output of a command; its words when it fails.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let done = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!("{program} {}: {}\n{}", arguments.join(" "), done.status, String::from_utf8_lossy(&done.stderr).trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_whole_and_unknown_machines_are_told() {
        let root = crate::root();
        let pinned = Pinned::read(&root, "x86_64").expect("pinned");
        assert!(pinned.sha512.len() == 128 && pinned.sha512.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", pinned.sha512);
        assert!(pinned.version.starts_with(|digit: char| digit.is_ascii_digit()) && !pinned.version.contains('^'), "{}", pinned.version);
        assert!(pinned.library(&root).to_string_lossy().contains(&pinned.version));
        let error = Pinned::read(&root, "pdp11").unwrap_err();
        assert!(matches!(error, Failure::Environment(what) if what.contains("no libchdb for pdp11")));
    }

    #[test]
    fn a_failed_command_says_why() {
        let error = run("sh", &["-c", "echo why >&2; exit 4"]).unwrap_err();
        assert!(error.contains("why") && error.contains("exit status: 4"), "{error}");
        assert_eq!(run("sh", &["-c", "echo x"]).as_deref(), Ok("x\n"));
    }
}
