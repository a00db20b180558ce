//! Reads what `judge` needs to know about a machine, from `/proc` and `/sys` under roots that a test may replace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::capture::probe::{self, SocketControl};
use crate::sys;

/// What could be found out.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// `uname -r`.
    pub(super) release: Result<String, String>,
    /// What is mounted where, in mount order.
    pub(super) mounts: Result<Vec<Mount>, String>,
    /// Size of the kernel's own type information, if it is there.
    pub(super) btf_bytes: Option<u64>,
    /// Effective capabilities of this process, by bit.
    pub(super) capabilities: Result<u64, String>,
    /// Whether this process is in a user namespace of its own, where capabilities count for nothing here.
    pub(super) own_userns: bool,
    /// Whether the cgroup namespace was another than that of process 1, which was entered; why it cannot be.
    pub(super) cgroup_namespace: Result<bool, String>,
    /// Whether sysctls can be written where everybody does, else in a procfs of our own; why in neither.
    pub(super) sysctls: Result<bool, String>,
    /// `net.core.bpf_jit_enable`.
    pub(super) jit: Option<String>,
    /// What the kernel does with sockets from outside; the reason when it does not say.
    pub(super) socket_control: Result<SocketControl, String>,
    /// Whether a grace period of the kernel can be waited for.
    pub(super) membarrier: bool,
    /// Whether this binary contains the programs.
    pub(super) has_programs: bool,
    /// Whether the kernel takes every program; its words when it does not.
    pub(super) verifier: Result<(), String>,
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) at: PathBuf,
    pub(super) kind: String,
}

impl Machine {
    /// This machine.
    pub(super) fn here() -> Self {
        // First: what is read below depends on it.
        let cgroup_namespace = sys::enter_cgroup_namespace_of_init().map_err(|e| e.to_string());
        let mut machine = Self::read(Path::new("/proc"), Path::new("/sys"));
        machine.cgroup_namespace = cgroup_namespace;
        machine.sysctls = probe::sysctls().map_err(|e| e.to_string());
        machine.socket_control = probe::socket_control().map_err(|e| e.to_string());
        machine.verifier = probe::load_programs().map_err(|e| e.to_string());
        machine.membarrier = sys::can_wait_for_readers();
        machine.has_programs = probe::has_programs();
        machine
    }

    /// A machine whose `/proc` and `/sys` are there; what needs the kernel itself is taken as good.
    pub(super) fn read(proc: &Path, sys: &Path) -> Self {
        let file = |path: PathBuf| fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()));
        Self {
            release: file(proc.join("sys/kernel/osrelease")).map(|text| text.trim().to_owned()),
            mounts: file(proc.join("self/mountinfo")).map(|text| mounts(&text)),
            btf_bytes: fs::metadata(sys.join("kernel/btf/vmlinux")).ok().map(|meta| meta.len()),
            capabilities: file(proc.join("self/status")).and_then(|text| effective_capabilities(&text)),
            own_userns: fs::read_to_string(proc.join("self/uid_map")).is_ok_and(|map| !is_identity(&map)),
            cgroup_namespace: Ok(false),
            sysctls: Ok(true),
            jit: fs::read_to_string(proc.join("sys/net/core/bpf_jit_enable")).ok().map(|text| text.trim().to_owned()),
            socket_control: Ok(SocketControl::Ends),
            membarrier: true,
            has_programs: true,
            verifier: Ok(()),
        }
    }
}

/// proc_pid_mountinfo(5): `36 35 98:0 /root /mount/point options [optional …] - type source options`.
fn mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let at = unescape(before.split(' ').nth(4)?);
            Some(Mount { at: at.into(), kind: after.split(' ').next()?.to_owned() })
        })
        .collect()
}

/// Blanks and backslashes of a mount point are written as `\040` and the like.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// user_namespaces(7): the initial namespace maps every id to itself.
fn is_identity(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn effective_capabilities(status: &str) -> Result<u64, String> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_optional_fields_and_escapes() {
        let text = "41 31 0:37 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw\n\
                    42 31 0:38 / /with\\040blank rw - bpf none rw\nbroken line\n";
        assert_eq!(
            mounts(text),
            [
                Mount { at: "/sys/fs/cgroup/unified".into(), kind: "cgroup2".into() },
                Mount { at: "/with blank".into(), kind: "bpf".into() },
            ]
        );
    }

    #[test]
    fn capabilities_are_the_effective_ones() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_capabilities(status), Ok(0x1000));
        assert!(effective_capabilities("Name:\tx\n").is_err());
    }
}
