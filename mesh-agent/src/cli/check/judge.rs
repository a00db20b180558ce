//! Whether a machine will do. Pure.

use std::path::Path;

use super::machine::{Machine, Mount};
use super::{Finding, Places, bad, folders, ok, warn};
use crate::capture::capabilities::{CAPABILITIES, Capability};
use crate::capture::probe::SocketControl;

/// Oldest kernel that is tested (design §2).
const KERNEL_FLOOR: (u32, u32) = (6, 1);

/// Everything, in the order in which a person would mend it.
pub(super) fn all(machine: &Machine, places: &Places) -> Vec<Finding> {
    let cgroups = cgroups(machine, places.cgroup.as_deref());
    let mut findings = vec![programs(machine), kernel(machine), cgroups, btf(machine)];
    findings.push(bpf_filesystem(machine, &places.bpffs));
    findings.extend(CAPABILITIES.iter().map(|capability| held(machine, capability)));
    findings.push(cgroup_namespace(machine));
    findings.push(process_one(machine));
    findings.extend(machine.folders.iter().map(folders::shared));
    findings.push(sysctls(machine));
    findings.push(verifier(machine));
    findings.push(jit(machine));
    findings.push(ending(machine));
    findings.push(grace_period(machine));
    findings
}

fn programs(machine: &Machine) -> Finding {
    let purpose = "capturing connections at the socket";
    match machine.has_programs {
        true => ok("programs", "in this binary", purpose),
        false => bad(
            "programs",
            "this binary was built without eBPF programs",
            purpose,
            "run `cargo xtask setup`, then build it again",
        ),
    }
}

fn kernel(machine: &Machine) -> Finding {
    let purpose = "the helpers and attach types that the programs use";
    let (major, minor) = KERNEL_FLOOR;
    let remedy = format!("boot Linux {major}.{minor} or newer");
    match &machine.release {
        Ok(release) => match version(release) {
            Some(version) if version >= KERNEL_FLOOR => {
                ok("kernel", format!("{release}, {major}.{minor} or newer is needed"), purpose)
            }
            Some(_) => bad("kernel", format!("{release} is older than {major}.{minor}"), purpose, remedy),
            None => warn("kernel", format!("`{release}` is no version number"), purpose, remedy),
        },
        Err(reason) => warn("kernel", reason.clone(), purpose, remedy),
    }
}

fn cgroups(machine: &Machine, wanted: Option<&Path>) -> Finding {
    let purpose = "attaching to the connects of all pods below one cgroup";
    let boot = "boot with systemd.unified_cgroup_hierarchy=1, or mount one: mount -t cgroup2 none DIRECTORY";
    let mounts = match &machine.mounts {
        Ok(mounts) => mounts,
        Err(reason) => return warn("cgroup", reason.clone(), purpose, "mount /proc"),
    };
    let v2: Vec<&Mount> = mounts.iter().filter(|mount| mount.kind == "cgroup2").collect();
    let v1 = mounts.iter().any(|mount| mount.kind == "cgroup");
    let Some(first) = v2.first() else {
        let found = if v1 { "only cgroup v1 is mounted" } else { "no cgroup filesystem is mounted" };
        return bad("cgroup", found, purpose, boot);
    };
    let at = match wanted {
        None => first.at.display(),
        Some(path) => match v2.iter().find(|mount| path.starts_with(&mount.at)) {
            Some(mount) if path.is_dir() => return v2_found(v1, mount, path, purpose),
            Some(_) => {
                let found = format!("{} does not exist", path.display());
                return bad("cgroup", found, purpose, "name an existing cgroup above the pods with --cgroup");
            }
            None => {
                let found = format!("{} is in no cgroup v2 mount", path.display());
                let remedy = format!("name a directory below {} with --cgroup", first.at.display());
                return bad("cgroup", found, purpose, remedy);
            }
        },
    };
    if v1 {
        return warn("cgroup", format!("v1 and v2 side by side; v2 at {at}"), purpose, hybrid(first));
    }
    ok("cgroup", format!("v2 at {at}"), purpose)
}

fn v2_found(v1: bool, mount: &Mount, path: &Path, purpose: &'static str) -> Finding {
    let found = format!("{} in the cgroup v2 mount {}", path.display(), mount.at.display());
    if v1 {
        warn("cgroup", format!("{found}; v1 is there too"), purpose, hybrid(mount))
    } else {
        ok("cgroup", found, purpose)
    }
}

/// Not wrong, but pods that a container runtime keeps in v1 only would not be seen.
fn hybrid(mount: &Mount) -> String {
    format!("see that the pods' processes are in cgroups below {}: /proc/PID/cgroup, line `0::`", mount.at.display())
}

fn btf(machine: &Machine) -> Finding {
    let purpose = "socket storage and typed maps";
    match machine.btf_bytes {
        Some(bytes) if bytes > 0 => ok("btf", format!("/sys/kernel/btf/vmlinux, {} KiB", bytes / 1024), purpose),
        Some(_) => bad("btf", "/sys/kernel/btf/vmlinux is empty", purpose, "use a kernel with CONFIG_DEBUG_INFO_BTF=y"),
        None => {
            let remedy = "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys into the container";
            bad("btf", "/sys/kernel/btf/vmlinux is missing", purpose, remedy)
        }
    }
}

fn bpf_filesystem(machine: &Machine, path: &Path) -> Finding {
    let purpose = "programs and maps that outlive a restart of the agent";
    let mounts = match &machine.mounts {
        Ok(mounts) => mounts,
        Err(reason) => return warn("bpffs", reason.clone(), purpose, "mount /proc"),
    };
    // The longest mount point above a path decides; of equal ones the last, which hides the others.
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.at)).max_by_key(|m| m.at.components().count());
    match above {
        Some(mount) if mount.kind == "bpf" => ok("bpffs", format!("mounted at {}", mount.at.display()), purpose),
        _ => {
            let remedy = format!("mount -t bpf bpf {0}, or name another with --bpffs", path.display());
            bad("bpffs", format!("{} is not in a mounted bpffs", path.display()), purpose, remedy)
        }
    }
}

fn held(machine: &Machine, capability: &Capability) -> Finding {
    let Capability { name, purpose, .. } = *capability;
    let held = match &machine.capabilities {
        Ok(held) => *held,
        Err(reason) => return warn(name, reason.clone(), purpose, "mount /proc"),
    };
    if machine.own_userns {
        let found = "this process is in a user namespace: what it holds counts only there";
        return bad(name, found, purpose, "run it in the initial user namespace (hostUsers: true in a pod)");
    }
    match (capability.is_in(held), capability.without) {
        (true, _) => ok(name, "held", purpose),
        (false, Some(without)) => warn(name, "not held", purpose, without),
        (false, None) => {
            bad(name, "not held", purpose, "run as root, or add it to the container's securityContext.capabilities")
        }
    }
}

/// A container has one of its own; in it every pod's cgroup seems to be outside of the attach point.
fn cgroup_namespace(machine: &Machine) -> Finding {
    let purpose = "seeing in which cgroup a pod's processes are";
    match &machine.cgroup_namespace {
        Ok(false) => ok("cgroup-namespace", "the node's", purpose),
        Ok(true) => ok("cgroup-namespace", "the container's own; the agent enters that of process 1", purpose),
        Err(reason) => {
            let found = format!("the container's own, and that of process 1 cannot be entered: {reason}");
            bad("cgroup-namespace", found, purpose, "give the pod hostPID: true and CAP_SYS_PTRACE")
        }
    }
}

fn process_one(machine: &Machine) -> Finding {
    match &machine.process_one {
        Ok(is_the_nodes) => folders::process_one(*is_the_nodes),
        Err(reason) => warn("process-1", reason.clone(), "finding the pods' processes", "mount /proc"),
    }
}

fn sysctls(machine: &Machine) -> Finding {
    let purpose = "sysctls of a pod's network namespace, by which answers find their way back to the client's address";
    match &machine.sysctls {
        Ok(true) => ok("sysctls", "/proc/sys can be written", purpose),
        Ok(false) => ok("sysctls", "/proc/sys is read-only; a procfs of the agent's own can be written", purpose),
        Err(reason) => {
            let found = format!("/proc/sys is read-only, and a procfs of its own is refused: {reason}");
            bad("sysctls", found, purpose, "grant CAP_SYS_ADMIN, and a seccomp profile that lets fsopen(2) through")
        }
    }
}

fn jit(machine: &Machine) -> Finding {
    let purpose = "hooks that cost nanoseconds instead of microseconds";
    match machine.jit.as_deref() {
        Some("0") => warn("jit", "the BPF JIT is off", purpose, "sysctl -w net.core.bpf_jit_enable=1"),
        Some(_) => ok("jit", "the BPF JIT is on", purpose),
        // Kernels with CONFIG_BPF_JIT_ALWAYS_ON in a container that hides the sysctl: on.
        None => ok("jit", "no sysctl: always on, or hidden in this namespace", purpose),
    }
}

/// The proof of all that the version number promises: backports and own configurations differ.
fn verifier(machine: &Machine) -> Finding {
    let purpose = "every program, as the kernel's verifier sees it";
    let needed = |one: &&Capability| one.without.is_none();
    let may_load =
        machine.capabilities.as_ref().is_ok_and(|held| CAPABILITIES.iter().filter(needed).all(|c| c.is_in(*held)));
    match &machine.verifier {
        Ok(()) => ok("verifier", "the kernel takes every program", purpose),
        Err(_) if !machine.has_programs => warn("verifier", "no programs to try", purpose, "see programs, above"),
        Err(reason) if !may_load || machine.own_userns => {
            warn("verifier", format!("could not be found out: {}", brief(reason)), purpose, "check as root")
        }
        Err(reason) => {
            let remedy = "docs/kernels.md says which kernel has what; report it if yours is 6.1 or newer";
            bad("verifier", brief(reason), purpose, remedy)
        }
    }
}

/// First and last words of what the kernel says: between them is the whole program.
fn brief(reason: &str) -> String {
    let lines: Vec<&str> = reason.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first, .., last] if last.starts_with("processed ") && lines.len() > 2 => {
            let said = lines.get(lines.len() - 2).unwrap_or(last);
            format!("{first} … {said}")
        }
        [first, .., last] => format!("{first} … {last}"),
    }
}

fn ending(machine: &Machine) -> Finding {
    let purpose = "ending live connections when a policy or mode changes (SOCK_DESTROY), and finding lost records";
    let config =
        "use a kernel with CONFIG_INET_DIAG_DESTROY=y; until then STRICT and denials stop new connections only";
    let module = "modprobe tcp_diag, or use a kernel with CONFIG_INET_DIAG; until then STRICT and denials stop new \
                  connections only, and records whose connection was lost stay";
    match &machine.socket_control {
        Ok(SocketControl::Ends) => ok("sock-destroy", "the kernel ends connections on request", purpose),
        Ok(SocketControl::Lists) => warn("sock-destroy", "the kernel was built without it", purpose, config),
        Ok(SocketControl::Nothing) => warn("sock-destroy", "there is no tcp_diag", purpose, module),
        Err(reason) => warn("sock-destroy", format!("could not be found out: {reason}"), purpose, "check as root"),
    }
}

fn grace_period(machine: &Machine) -> Finding {
    let purpose = "re-checking live connections only after every hook has seen the new rules";
    if machine.membarrier {
        return ok("membarrier", "a grace period can be waited for", purpose);
    }
    let remedy = "use a kernel with CONFIG_MEMBARRIER=y and no nohz_full processors; until then a connection that is \
                  being made while rules change may be missed by the re-check";
    warn("membarrier", "a grace period cannot be waited for", purpose, remedy)
}

/// `6.18.44-amd64` → (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
