//! The state file: what every setting was before the first `apply`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::TuneError;

/// Where the state file stands unless another is named.
pub const STATE_DEFAULT: &str = "/var/lib/otedama/tune-state.json";

/// Version of the file's form; another version is refused, never guessed at.
const VERSION: u32 = 1;

/// One setting that was, or is about to be, changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name of the stage that changed it.
    pub stage: String,
    /// Absolute path as the kernel names it, under `/sys/` or `/proc/sys/`.
    pub path: String,
    /// The value before the first apply.
    pub old: String,
    /// The value that the latest apply wrote.
    pub new: String,
}

/// The state file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of the form.
    pub version: u32,
    /// Settings in the order they were first changed.
    pub entries: Vec<Entry>,
}

impl Default for State {
    fn default() -> State {
        State { version: VERSION, entries: Vec::new() }
    }
}

impl State {
    /// The state at `path`; `None` where there is no file.
    ///
    /// # Errors
    /// [`TuneError::StateRead`] or [`TuneError::StateMalformed`].
    pub fn load(path: &Path) -> Result<Option<State>, TuneError> {
        let malformed = |reason: String| TuneError::StateMalformed { path: path.to_owned(), reason };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(TuneError::StateRead { path: path.to_owned(), source });
            }
        };
        let state: State = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        if state.version != VERSION {
            return Err(malformed(format!("version {} where {VERSION} is expected", state.version)));
        }
        // Revert writes as root to what stands here: nothing outside of the kernel's own trees.
        for Entry { path, .. } in &state.entries {
            let inside = path.starts_with("/sys/") || path.starts_with("/proc/sys/");
            if !inside || path.split('/').any(|part| part == "..") {
                return Err(malformed(format!("{path} is no kernel setting")));
            }
        }
        Ok(Some(state))
    }

    /// Notes a change; where the path is known already, the oldest value stays.
    pub(crate) fn record(&mut self, stage: &str, path: &str, old: &str, new: &str) {
        match self.entries.iter_mut().find(|entry| entry.path == path) {
            Some(entry) => new.clone_into(&mut entry.new),
            None => self.entries.push(Entry { stage: stage.to_owned(), path: path.to_owned(), old: old.to_owned(), new: new.to_owned() }),
        }
    }

    /// Writes the state so that a crash leaves the old file or the new one, never half of one.
    pub(crate) fn save(&self, path: &Path) -> Result<(), TuneError> {
        self.replace(path).map_err(|source| TuneError::StateWrite { path: path.to_owned(), source })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = PathBuf::from(beside);
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        let mut file = File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    }

    /// Writes the state, or removes its file where nothing is left to restore.
    pub(crate) fn save_or_remove(&self, path: &Path) -> Result<(), TuneError> {
        if !self.entries.is_empty() {
            return self.save(path);
        }
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(TuneError::StateWrite { path: path.to_owned(), source }),
            _ => Ok(()),
        }
    }
}
