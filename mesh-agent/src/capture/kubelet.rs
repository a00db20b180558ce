//! Following the kubelet: its cgroup carries the program that proves its probes, and a restart gives it another one.
//!
//! Exempt is what is proven: a socket of the kubelet's own cgroup, to a port that the dialled pod declares. No address
//! of the node and nothing else about a process counts.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::SockOps;

use super::error::CaptureError;
use super::hooks;
use super::kernel::Kernel;
use super::links;
use super::netns::{cgroup_of, cgroup_path, is_below};

pub(super) const PROGRAM: &str = "mesh_kubelet";

/// Where the program of the cgroup with this inode is pinned, in the directory of links.
fn pin_name(inode: u64) -> String {
    format!("{PROGRAM}-{inode}")
}

/// Whether this is the name of such a pin.
pub(super) fn is_pin(name: &str) -> bool {
    name.strip_prefix(PROGRAM).is_some_and(|rest| rest.starts_with('-'))
}

/// How the kubelet is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// By its cgroup v2 directory.
    Cgroup(PathBuf),
    /// By the port that it listens on, whoever owns that listener.
    Port(u16),
}

impl Kernel {
    /// Makes the kubelet's present cgroup the one whose probes are proven. To be called every second; costs a look
    /// into /proc while nothing changes. Returns that cgroup, `None` while there is no kubelet.
    ///
    /// Blocks: not for an async thread.
    ///
    /// # Errors
    /// When its cgroup is one that pods are below, or the kernel refuses.
    pub fn follow_kubelet(&self, kubelet: &Kubelet) -> Result<Option<PathBuf>, CaptureError> {
        let Some(cgroup) = self.kubelet_cgroup(kubelet) else {
            // It may be restarting: what proves the old one stays, nobody can be in a cgroup that is gone.
            return Ok(None);
        };
        let Ok(inode) = fs::metadata(&cgroup).map(|metadata| metadata.ino()) else { return Ok(None) };
        let pin = self.config.links().join(pin_name(inode));
        // An earlier agent's programs prove probes to the pods that it knew, until this one's are in force.
        if !self.in_force() || self.followed.lock().is_ok_and(|followed| *followed == Some(inode)) {
            return Ok(Some(cgroup));
        }
        self.refuse_ancestor(&cgroup)?;
        self.attach_kubelet(&cgroup, &pin)?;
        self.forget_kubelets(&pin);
        if let Ok(mut followed) = self.followed.lock() {
            *followed = Some(inode);
        }
        tracing::info!(cgroup = %cgroup.display(), "the kubelet's probes are proven by this cgroup");
        Ok(Some(cgroup))
    }

    /// A program on a cgroup sees the sockets of everything below it: pods there would count as the kubelet.
    fn refuse_ancestor(&self, cgroup: &Path) -> Result<(), CaptureError> {
        let path = cgroup_path(cgroup).map(|(_, path)| path).unwrap_or_default();
        if !path.is_empty() && !is_below(&self.attach_path, &path) {
            return Ok(());
        }
        let reason = "pods are below it, and would pass for the kubelet; run the kubelet in a cgroup of its own";
        Err(CaptureError::Cgroup { path: cgroup.to_owned(), source: std::io::Error::other(reason) })
    }

    fn attach_kubelet(&self, cgroup: &Path, pin: &Path) -> Result<(), CaptureError> {
        let folder = File::open(cgroup).map_err(|e| CaptureError::kernel(PROGRAM, &e))?;
        let mut ebpf = self.object.load(None)?;
        hooks::install(hooks::load::<SockOps>(&mut ebpf, PROGRAM)?, PROGRAM, pin, &folder)
    }

    fn forget_kubelets(&self, keep: &Path) {
        for entry in fs::read_dir(self.config.links()).into_iter().flatten().filter_map(Result::ok) {
            if is_pin(&entry.file_name().to_string_lossy()) && entry.path() != keep {
                let _ = links::remove(&entry.path());
            }
        }
    }

    fn kubelet_cgroup(&self, kubelet: &Kubelet) -> Option<PathBuf> {
        match kubelet {
            Kubelet::Cgroup(path) => path.is_dir().then(|| path.clone()),
            Kubelet::Port(port) => {
                let (mount, _) = cgroup_path(&self.config.cgroup)?;
                let path = cgroup_of(&owner_of(*port)?)?;
                Some(mount.join(path.trim_start_matches('/')))
            }
        }
    }
}

/// The process that listens on `port`, in this network namespace or in that of process 1.
fn owner_of(port: u16) -> Option<String> {
    let tables =
        ["self", "1"].into_iter().flat_map(|pid| ["tcp", "tcp6"].map(|table| format!("/proc/{pid}/net/{table}")));
    let inodes: Vec<String> =
        tables.filter_map(|table| fs::read_to_string(table).ok()).filter_map(|text| listener(&text, port)).collect();
    let wanted: Vec<PathBuf> = inodes.iter().map(|inode| format!("socket:[{inode}]").into()).collect();
    if wanted.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let pids =
        processes.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.parse::<u32>().is_ok());
    pids.into_iter().find(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
        descriptors.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| wanted.contains(&target)))
    })
}

/// The inode of the socket that listens on `port`, from a table as in proc_net_tcp(5).
fn listener(table: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next()?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let own = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (own == port && state == LISTEN).then(|| inode.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_of_a_port_is_found_in_the_kernels_table() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:280A 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 111 1
   1: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1
";
        assert_eq!(listener(table, 10_250).as_deref(), Some("222"));
        assert_eq!(listener(table, 22).as_deref(), Some("333"));
        assert_eq!(listener(table, 80), None);
    }
}
