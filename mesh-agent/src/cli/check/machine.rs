//! Reads what `judge` needs to know about a machine, from `/proc` and `/sys` under roots that a test may replace.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Places;
use super::folders::{Folder, Is, Sight, nearest};
use crate::capture::capabilities;
use crate::capture::probe::{self, SocketControl};
use crate::cni;
use crate::sys;

/// Where runtimes keep named network namespaces.
const NETNS: &str = "/run/netns";

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
    /// Whether process 1 is the node's.
    pub(super) process_one: Result<bool, String>,
    /// The folders that a container shares with its node.
    pub(super) folders: Vec<Folder>,
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
    /// Whether mounts that the node makes below it later are seen (mount_namespaces(7)).
    pub(super) is_propagated: bool,
}

impl Machine {
    /// This machine.
    pub(super) fn here(places: &Places) -> Self {
        // First: what is read below depends on it.
        let cgroup_namespace = sys::enter_cgroup_namespace_of_init().map_err(|e| e.to_string());
        let mut machine = Self::read(Path::new("/proc"), Path::new("/sys"));
        machine.cgroup_namespace = cgroup_namespace;
        machine.process_one = sys::is_process_one_the_nodes().map_err(|e| e.to_string());
        machine.folders = folders(places, machine.mounts.as_deref().unwrap_or_default());
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
            capabilities: file(proc.join("self/status")).and_then(|text| {
                capabilities::effective(&text).ok_or_else(|| "/proc/self/status has no CapEff".to_owned())
            }),
            own_userns: fs::read_to_string(proc.join("self/uid_map")).is_ok_and(|map| !is_identity(&map)),
            cgroup_namespace: Ok(false),
            process_one: Ok(true),
            folders: Vec::new(),
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
            let is_propagated =
                before.split(' ').skip(6).any(|field| field.starts_with("shared:") || field.starts_with("master:"));
            Some(Mount { at: at.into(), kind: after.split(' ').next()?.to_owned(), is_propagated })
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

/// The folders that agent and node must share, as they are seen.
fn folders(places: &Places, mounts: &[Mount]) -> Vec<Folder> {
    let folder = |is, path: &Path, read_only| Folder { is, path: path.to_owned(), sight: sight(path), read_only };
    let cgroup = mounts.iter().find(|mount| mount.kind == "cgroup2").map(|mount| &*mount.at);
    let cgroup = places.cgroup.as_deref().or(cgroup).map(|path| folder(Is::Cgroup, path, None));
    let mut folders = vec![folder(Is::Bpffs, &places.bpffs, None)];
    folders.extend(cgroup);
    // The agent makes it, and what is above it.
    let state = nearest(&places.state_dir, Path::exists).unwrap_or(&places.state_dir);
    folders.push(folder(Is::State, state, unwritable(&[state])));
    let late = mounts.iter().rev().find(|mount| mount.at == Path::new(NETNS)).is_some_and(|mount| !mount.is_propagated);
    let late = late.then(|| format!("{NETNS} is mounted without propagation: namespaces made later are not seen"));
    folders.push(folder(Is::Netns, Path::new(NETNS), late));
    if let (Some(conf_dir), Some(bin_dir)) = (&places.cni_conf_dir, &places.cni_bin_dir) {
        folders.extend([conf_dir, bin_dir].map(|dir| folder(Is::Cni, dir, unwritable(&[dir]))));
    }
    folders
}

/// What this process and process 1 see at `path`.
fn sight(path: &Path) -> Sight {
    let there = Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path));
    let look = |path: &Path| match fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(path, &error)),
    };
    match (look(path), look(&there)) {
        (Err(reason), _) | (_, Err(reason)) => Sight::Unknown(reason),
        (Ok(None), Ok(None)) => Sight::Neither,
        (Ok(None), Ok(Some(_))) => Sight::Absent,
        (Ok(ours), Ok(theirs)) if ours == theirs => Sight::Same,
        _ => Sight::Own,
    }
}

/// Why nothing can be made there: what the agent itself says as it starts.
fn unwritable(dirs: &[&Path]) -> Option<String> {
    cni::is_writable(dirs.iter().copied()).err().map(|error| error.to_string())
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
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
                Mount { at: "/sys/fs/cgroup/unified".into(), kind: "cgroup2".into(), is_propagated: true },
                Mount { at: "/with blank".into(), kind: "bpf".into(), is_propagated: false },
            ]
        );
    }
}
