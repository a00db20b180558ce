//! What runs of the harness left on this machine: found, and swept when their process is gone.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{cgroup, netns, run};

/// Something that should be gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// A process, by id.
    Process(u32),
    /// A mount point.
    Mount(String),
    /// A named network namespace.
    Netns(String),
    /// A cgroup's path.
    Cgroup(String),
    /// A folder of files.
    Folder(String),
}

/// `Err` with a list if anything of runs of this process is left.
///
/// # Errors
/// Names everything found.
pub fn nothing_left() -> Result<()> {
    let own = std::process::id();
    let left: Vec<Leftover> = find(|owner| owner == own)?;
    if left.is_empty() {
        return Ok(());
    }
    bail!("left behind: {left:?}")
}

/// Removes what runs of processes that are gone left behind; gives what it removed.
///
/// # Errors
/// When the machine cannot be searched.
pub fn sweep() -> Result<Vec<Leftover>> {
    let mut left = find(|owner| !Path::new(&format!("/proc/{owner}")).exists())?;
    // The order of the enum: processes hold mounts and namespaces, those hold cgroups and folders.
    left.sort();
    for leftover in &left {
        if let Err(error) = remove(leftover) {
            eprintln!("harness: cannot remove {leftover:?}: {error:#}");
        }
    }
    Ok(left)
}

fn remove(leftover: &Leftover) -> Result<()> {
    match leftover {
        Leftover::Process(pid) => Ok(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?),
        Leftover::Mount(point) => Ok(umount2(point.as_str(), MntFlags::MNT_DETACH)?),
        Leftover::Netns(name) => netns::delete(name),
        Leftover::Cgroup(path) => cgroup::remove(Path::new(path)),
        Leftover::Folder(path) => Ok(fs::remove_dir_all(path)?),
    }
}

fn find(wanted: impl Fn(u32) -> bool) -> Result<Vec<Leftover>> {
    let ours = |name: &str| run::owner(name).is_some_and(&wanted);
    let mut left = Vec::new();
    for name in names(Path::new("/proc")) {
        if let Ok(pid) = name.parse()
            && started_by_run(pid).is_some_and(|run| ours(&run))
        {
            left.push(Leftover::Process(pid));
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let Some(point) = line.split(' ').nth(4) else { continue };
        // The namespaces' own mounts go with them.
        if !point.starts_with(netns::FOLDER) && point.split('/').any(&ours) {
            left.push(Leftover::Mount(point.to_owned()));
        }
    }
    left.extend(names(Path::new(netns::FOLDER)).into_iter().filter(|name| ours(name)).map(Leftover::Netns));
    for (folder, kind) in
        [(cgroup::mount()?, Leftover::Cgroup as fn(String) -> Leftover), (run::folders(), Leftover::Folder)]
    {
        for name in names(&folder).into_iter().filter(|name| ours(name)) {
            left.push(kind(folder.join(name).to_string_lossy().into_owned()));
        }
    }
    Ok(left)
}

fn names(folder: &Path) -> Vec<String> {
    // A folder that is not there holds nothing.
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The run id in a process's environment. Zombies have none.
fn started_by_run(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{}=", run::ENV);
    let variable = environment.split(|byte| *byte == 0).find(|v| v.starts_with(prefix.as_bytes()))?;
    Some(String::from_utf8_lossy(variable.get(prefix.len()..)?).into_owned())
}
