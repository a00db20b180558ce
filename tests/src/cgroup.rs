//! A cgroup v2 of our own, gone when dropped together with what still runs in it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Killed processes leave within this, unless the kernel is stuck.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// A cgroup that this process made.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `path`, a folder below [`mount`].
    ///
    /// # Errors
    /// What the system says, for instance without root.
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `cgroup.procs`, open for a process that is to join.
    ///
    /// # Errors
    /// What the system says.
    pub fn procs(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("harness: {error:#}");
        }
    }
}

/// Where cgroup v2 is mounted: the root of it all, or beside v1 on a hybrid machine.
///
/// # Errors
/// When it is not mounted.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    for line in mounts.lines() {
        // id parent dev root MOUNTPOINT options … - TYPE source options
        let Some((before, after)) = line.split_once(" - ") else { continue };
        if after.starts_with("cgroup2 ")
            && let Some(point) = before.split(' ').nth(4)
        {
            return Ok(PathBuf::from(point));
        }
    }
    anyhow::bail!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Removes a cgroup and those below it, after killing what runs there.
///
/// # Errors
/// When something does not die or the folder cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    let kill = path.join("cgroup.kill");
    fs::write(&kill, "1").with_context(|| format!("cannot write {}", kill.display()))?;
    wait::until(&format!("{} is empty", path.display()), EMPTY_WITHIN, || {
        let events = fs::read_to_string(path.join("cgroup.events"))?;
        wait::holds(events.contains("populated 0"), || format!("still populated: {}", processes(path)))
    })?;
    remove_folders(path)
}

fn remove_folders(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("cannot remove the cgroup {}", path.display()))
}

fn processes(path: &Path) -> String {
    fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().trim().replace('\n', " ")
}
