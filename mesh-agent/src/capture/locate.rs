//! Looks for the network namespace of a pod that nobody has told of: by its cgroup, below the kubelet's own.
//!
//! ```text
//! <cgroup>/[kubepods*/][burstable|besteffort/]pod<uid>/<container>/…   cgroupfs driver
//! <cgroup>/[*kubepods*.slice/]*-pod<uid, with _>.slice/<container>.scope/…   systemd driver
//! ```
//! Only the kubelet's own levels are descended into: what a pod makes below its own cgroup names nobody. What is found
//! is a candidate; `netns` checks it like any other.

use std::fs;
use std::path::{Path, PathBuf};

/// Levels of the kubelet's between the attach point and a pod.
const KUBELET_LEVELS: u32 = 4;
/// Levels of a pod's own that are looked into for processes.
const POD_LEVELS: u32 = 4;
/// More processes than these are not looked at: the sandbox's own is among the oldest.
const PROCESSES: usize = 4_096;
/// Levels of the kubelet's by their names, besides those that contain `kubepods`.
const QUALITIES: [&str; 2] = ["burstable", "besteffort"];

/// The network namespaces' paths of the processes of pod `uid` below `cgroup`, oldest process first.
pub(super) fn candidates(cgroup: &Path, uid: &str) -> Vec<PathBuf> {
    let Some(pod) = cgroup_of_pod(cgroup, uid, KUBELET_LEVELS) else { return Vec::new() };
    let mut pids = Vec::new();
    processes(&pod, POD_LEVELS, &mut pids);
    let mut by_start: Vec<(u64, u32)> = pids.into_iter().filter_map(|pid| Some((started(pid)?, pid))).collect();
    by_start.sort_unstable();
    by_start.into_iter().map(|(_, pid)| format!("/proc/{pid}/ns/net").into()).collect()
}

/// Whether what pod `uid` runs is below `cgroup`, where the programs are attached, or will be: the kubelet makes a
/// pod's cgroup before its sandbox. Everything is below the root, whatever its name.
#[must_use]
pub fn is_below(cgroup: &Path, uid: &str) -> bool {
    // The root alone has no type (cgroup-v2.rst).
    !cgroup.join("cgroup.type").exists() && cgroup.join("cgroup.procs").exists()
        || cgroup_of_pod(cgroup, uid, KUBELET_LEVELS).is_some()
}

fn cgroup_of_pod(dir: &Path, uid: &str, levels: u32) -> Option<PathBuf> {
    let children = folders(dir);
    if let Some(found) = children.iter().find(|child| is_of_pod(name(child), uid)) {
        return Some(found.clone());
    }
    let deeper = levels.checked_sub(1)?;
    children.iter().filter(|child| is_kubelets(name(child))).find_map(|child| cgroup_of_pod(child, uid, deeper))
}

fn is_of_pod(name: &str, uid: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let before = name.strip_suffix(uid).or_else(|| name.strip_suffix(&uid.replace('-', "_")));
    !uid.is_empty() && before.is_some_and(|before| before == "pod" || before.ends_with("-pod"))
}

fn is_kubelets(name: &str) -> bool {
    QUALITIES.contains(&name) || (name.contains("kubepods") && !name.contains("-pod"))
}

fn processes(cgroup: &Path, levels: u32, found: &mut Vec<u32>) {
    // Of a threaded or an unreadable one there is nothing to be had.
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let room = PROCESSES.saturating_sub(found.len());
    // 0: a process of another pid namespace; the agent lacks hostPID.
    found.extend(pids.lines().filter_map(|pid| pid.parse().ok()).filter(|pid: &u32| *pid != 0).take(room));
    if let Some(deeper) = levels.checked_sub(1) {
        folders(cgroup).iter().for_each(|child| processes(child, deeper, found));
    }
}

/// Field 22 of proc_pid_stat(5); the second, in parentheses, may hold anything.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    // Gone, or not ours to read: nothing is in it.
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_folder).map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2b1c6f0e-1111-4222-8333-444455556666";

    fn tree(dirs: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        dirs.iter().for_each(|dir| fs::create_dir_all(root.path().join(dir)).unwrap());
        root
    }

    #[test]
    fn a_pods_cgroup_is_found_as_either_driver_spells_it_and_wherever_the_attach_point_is() {
        let systemd = UID.replace('-', "_");
        for path in [
            format!("kubepods/burstable/pod{UID}"),
            format!("kubepods/pod{UID}"),
            format!("pod{UID}"),
            format!("besteffort/pod{UID}"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice"),
            format!(
                "kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{systemd}.slice"
            ),
            format!("kubepods-pod{systemd}.slice"),
        ] {
            let root = tree(&[&path, "kubepods/burstable/pod-other", "system.slice/cron.service"]);
            assert_eq!(cgroup_of_pod(root.path(), UID, KUBELET_LEVELS), Some(root.path().join(&path)), "{path}");
        }
    }

    #[test]
    fn a_name_that_another_pod_or_service_made_is_not_looked_at() {
        for path in [
            format!("kubepods/burstable/podother/pod{UID}"),
            format!("kubepods.slice/kubepods-podother.slice/pod{UID}"),
            format!("system.slice/pod{UID}"),
            format!("kubepods/burstable/pod{UID}-2"),
            format!("kubepods/burstable/x{UID}"),
        ] {
            let root = tree(&[&path]);
            assert_eq!(cgroup_of_pod(root.path(), UID, KUBELET_LEVELS), None, "{path}");
        }
        assert!(!is_of_pod("pod", ""));
    }

    #[test]
    fn a_pod_is_below_the_attach_point_if_its_cgroup_is_or_everything() {
        let root = tree(&[&format!("burstable/pod{UID}")]);
        let (dir, file) = (root.path(), |name: &str| fs::write(root.path().join(name), "").unwrap());
        for name in ["cgroup.procs", "cgroup.type"] {
            file(name);
        }
        assert!(is_below(dir, UID));
        assert!(!is_below(dir, "another"));
        fs::remove_file(dir.join("cgroup.type")).unwrap();
        assert!(is_below(dir, "another"), "of the root's");
        assert!(!is_below(&dir.join("nowhere"), UID));
    }

    #[test]
    fn processes_come_oldest_first() {
        let root = tree(&[&format!("pod{UID}/container")]);
        let (own, first) = (std::process::id(), 1);
        fs::write(root.path().join(format!("pod{UID}/cgroup.procs")), format!("0\n{own}\n")).unwrap();
        fs::write(root.path().join(format!("pod{UID}/container/cgroup.procs")), format!("{first}\n")).unwrap();
        let expected = [first, own].map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        assert_eq!(candidates(root.path(), UID), expected);
        assert!(candidates(root.path(), "another").is_empty());
    }
}
