//! A pod's network namespace: found, checked, entered.
//!
//! Everything later trusts the cookie: so a namespace is accepted only if it is no node's, belongs to no other
//! pod and holds every address that the pod is said to have (design §5).

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};

use super::error::NotCaptured;
use super::locate;
use crate::model::workload::{Workload, WorkloadUid};
use crate::sys;

/// An open network namespace with the kernel's name for it.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    pub(super) cookie: u64,
    pub(super) inode: u64,
}

impl Netns {
    /// Opens and checks the namespace of `workload`: the one that is named, else the one that its processes below
    /// `cgroup` are in. `owners` says which inode belongs to which enrolled pod.
    pub(super) fn of(
        workload: &Workload,
        node_inode: u64,
        owners: &HashMap<u64, WorkloadUid>,
        cgroup: &Path,
    ) -> Result<Arc<Self>, NotCaptured> {
        let check = |path: &Path| {
            let netns = Self::open(path)?;
            if netns.inode == node_inode {
                return Err(NotCaptured::NetnsMismatch(format!("{} is the node's own", path.display())));
            }
            if let Some(owner) = owners.get(&netns.inode)
                && *owner != workload.uid
            {
                return Err(NotCaptured::NetnsMismatch(format!("{} belongs to pod uid {owner}", path.display())));
            }
            netns.holds_addresses_of(workload, path)?;
            Ok(Arc::new(netns))
        };
        match workload.netns.as_deref() {
            Some(path) => check(path),
            None => first_good(&located(workload, cgroup), check),
        }
    }

    fn holds_addresses_of(&self, workload: &Workload, path: &Path) -> Result<(), NotCaptured> {
        let held = self.addresses().map_err(|e| NotCaptured::System(format!("listing addresses: {e}")))?;
        if let Some(missing) = workload.ips.iter().find(|ip| !held.contains(ip)) {
            let reason = format!("{} does not hold the pod's address {missing}", path.display());
            return Err(NotCaptured::NetnsMismatch(reason));
        }
        if workload.ips.is_empty() {
            return Err(NotCaptured::NetnsMismatch("the pod has no address".to_owned()));
        }
        Ok(())
    }

    fn open(path: &Path) -> Result<Self, NotCaptured> {
        let gone = |source| NotCaptured::NetnsGone { path: path.to_owned(), source };
        let file = File::open(path).map_err(gone)?;
        let inode = sys::namespace_inode(&file).map_err(gone)?;
        let cookie = cookie(&file).map_err(gone)?;
        Ok(Self { file, cookie, inode })
    }

    /// The namespace that a workload names, without any of the checks; else the one of its processes that holds its
    /// addresses.
    pub(super) fn named_by(workload: &Workload, cgroup: &Path) -> Option<Self> {
        match workload.netns.as_deref() {
            Some(path) => Self::open(path).ok(),
            None => first_good(&located(workload, cgroup), |path| {
                let netns = Self::open(path)?;
                netns.holds_addresses_of(workload, path)?;
                Ok(netns)
            })
            .ok(),
        }
    }

    /// Runs `f` inside; see [`sys::within_netns`].
    pub(super) fn within<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        sys::within_netns(self.file.as_fd(), f)?
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Addresses of every interface but loopback.
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        self.within(|| {
            let interfaces = nix::ifaddrs::getifaddrs()?;
            Ok(interfaces
                .filter(|interface| !interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK))
                .filter_map(|interface| interface.address)
                .filter_map(|address| {
                    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
                })
                .collect())
        })
    }

    /// The first process of this namespace that lives outside `attach_point` (a cgroup path as in
    /// /proc/PID/cgroup). A socket's hooks follow the cgroup of the process that made it.
    pub(super) fn process_outside(&self, attach_point: &str) -> Option<(i32, String)> {
        processes().into_iter().find_map(|pid| {
            if inode_at(Path::new(&format!("/proc/{pid}/ns/net"))).ok() != Some(self.inode) {
                return None;
            }
            let cgroup = cgroup_of(&pid.to_string())?;
            (!is_below(&cgroup, attach_point)).then_some((pid, cgroup))
        })
    }
}

/// Where the namespace of a pod may be that nobody has named.
fn located(workload: &Workload, cgroup: &Path) -> Vec<PathBuf> {
    // Its processes are in the node's.
    if workload.host_network { Vec::new() } else { locate::candidates(cgroup, &workload.uid) }
}

/// The first that is good, else why the first is not. Most processes of a pod share one namespace.
fn first_good<T>(paths: &[PathBuf], check: impl Fn(&Path) -> Result<T, NotCaptured>) -> Result<T, NotCaptured> {
    let mut looked_at = HashSet::new();
    let mut first_error = None;
    for path in paths {
        if inode_at(path).is_ok_and(|inode| !looked_at.insert(inode)) {
            continue;
        }
        match check(path) {
            Ok(good) => return Ok(good),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or(NotCaptured::NetnsUnknown))
}

/// The kernel's cookie of an open network namespace. What is none fails with EINVAL.
pub(super) fn cookie(netns: &File) -> io::Result<u64> {
    let probe = sys::within_netns(netns.as_fd(), || Socket::new(Domain::IPV4, Type::DGRAM, None))??;
    sys::netns_cookie(probe.as_fd())
}

/// The inode of the network namespace at `path`.
pub(super) fn inode_at(path: &Path) -> io::Result<u64> {
    Ok(inode(&fs::metadata(path)?))
}

fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

fn processes() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The cgroup v2 path of a process (`0::` line), relative to the mount.
pub(super) fn cgroup_of(pid: &str) -> Option<String> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    lines.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned))
}

pub(super) fn is_below(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The mount point of the cgroup v2 hierarchy that `dir` lies in, and the path of `dir` inside it.
pub(super) fn cgroup_path(dir: &Path) -> Option<(PathBuf, String)> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            if right.split(' ').next()? != "cgroup2" {
                return None;
            }
            let inside = dir.strip_prefix(point).ok()?;
            let path = Path::new(root).join(inside);
            Some((PathBuf::from(point), path.to_str()?.trim_end_matches('/').to_owned()))
        })
        .max_by_key(|(point, _)| point.as_os_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_means_the_same_or_a_child_never_a_longer_name() {
        assert!(is_below("/kubepods/pod1", "/kubepods"));
        assert!(is_below("/kubepods", "/kubepods/"));
        assert!(is_below("/anything", ""));
        assert!(!is_below("/kubepods-other/pod1", "/kubepods"));
        assert!(!is_below("/", "/kubepods"));
    }
}
