//! What must go: the maps of other versions, and everything when an instance leaves the node.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::kernel::{Kernel, OWN_CGROUP};
use super::netns::cookie;
use super::object::{KernelConfig, map_directories};
use super::{links, routes};
use crate::sys;

impl Kernel {
    /// Removes the maps that earlier agents have left: when none of them runs that could take back, and this one is in
    /// force. A later agent may run by then, with maps of its own.
    pub fn remove_earlier_maps(&self) {
        self.object.earlier.iter().for_each(|dir| remove_maps(dir));
    }

    /// Removes the maps of every other agent: when one that had begun to take over has failed.
    pub fn remove_other_maps(&self) {
        let others = map_directories(&self.config.root()).unwrap_or_default();
        let own = [&self.object.records, &self.object.maps];
        others.iter().filter(|dir| !own.contains(dir)).for_each(|dir| remove_maps(dir));
    }
}

fn remove_maps(dir: &Path) {
    tracing::info!(dir = %dir.display(), "removing the maps of another agent");
    remove_dir(dir);
}

fn remove_dir(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.filter_map(Result::ok) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Leaves a node as it was found: no program, map, rule or sysctl of this instance remains.
///
/// The agent that knew its pods may be gone, but their pins name the cookies of their network namespaces: those
/// under /run/netns are cleaned, and no other instance's.
///
/// # Errors
/// When the instance's directory cannot be removed.
pub fn uninstall(config: &KernelConfig) -> io::Result<()> {
    let cookies: HashSet<u64> = pinned_cookies(config).collect();
    for dir in [config.guards(), config.pods(), config.links()] {
        for pin in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            links::remove(&pin.path())?;
        }
        remove_dir(&dir);
    }
    map_directories(&config.root()).unwrap_or_default().iter().for_each(|dir| remove_maps(dir));
    for netns in named_netns().iter().filter(|netns| cookie(netns).is_ok_and(|cookie| cookies.contains(&cookie))) {
        let _ = sys::within_netns(netns.as_fd(), routes::remove);
    }
    let _ = fs::remove_dir(config.cgroup.join(OWN_CGROUP));
    match fs::remove_dir(config.root()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Cookies of the network namespaces that this instance has a hook in.
pub(super) fn pinned_cookies(config: &KernelConfig) -> impl Iterator<Item = u64> + use<> {
    let pins = fs::read_dir(config.pods()).into_iter().flatten().filter_map(Result::ok);
    pins.filter_map(|pin| pin.file_name().to_str()?.parse().ok())
}

fn named_netns() -> Vec<File> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    entries.filter_map(|entry| File::open(entry.ok()?.path()).ok()).collect()
}
