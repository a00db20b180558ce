//! One run: the name that everything made in it carries, and the folder its files lie in.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// Everything of ours is called `mesh-<process id>-<number>…`.
pub const PREFIX: &str = "mesh-";

/// Environment variable with the run's id in every process that the harness starts.
pub const ENV: &str = "MESH_RUN";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Name and folder of one run; dropping it removes the folder.
#[derive(Debug)]
pub struct Run {
    id: String,
    folder: PathBuf,
}

impl Run {
    /// Makes the folder.
    ///
    /// # Errors
    /// When the temporary folder is not writable.
    pub fn new() -> Result<Self> {
        let id = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = folders().join(&id);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { id, folder })
    }

    /// `mesh-<process id>-<number>`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the run's files lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a folder inside the run's own.
    ///
    /// # Errors
    /// What the system says.
    pub fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("harness: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Where runs make their folders.
#[must_use]
pub fn folders() -> PathBuf {
    std::env::temp_dir()
}

/// The process id in a name that the harness gave, if it is one.
#[must_use]
pub fn owner(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    rest.starts_with(|c: char| c.is_ascii_digit()).then(|| pid.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_harness_have_an_owner() {
        assert_eq!(owner("mesh-123-0-a"), Some(123));
        assert_eq!(owner("mesh-123-0"), Some(123));
        for other in ["mesh-123", "mesh-x-0", "mesh-123-x", "mesh-agent-4", "kubepods"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
