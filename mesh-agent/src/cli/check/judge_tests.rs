//! Machines that will do and machines that will not, laid out as `/proc` and `/sys` in a temporary directory.

use std::fs;

use tempfile::TempDir;

use super::super::Verdict;
use super::super::folders::{Folder, Is, Sight};
use super::*;

/// Everything as a distribution of today has it.
const V2: &str = "30 23 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n\
                  31 23 0:28 / /sys/fs/bpf rw shared:5 - bpf bpf rw,mode=700\n";
const V1: &str = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
const HYBRID: &str = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      42 31 0:38 / /sys/fs/bpf rw - bpf bpf rw\n";
const ALL_CAPABILITIES: &str = "000001ffffffffff";

struct Layout {
    release: &'static str,
    mountinfo: String,
    capabilities: &'static str,
    btf: Option<&'static str>,
    jit: &'static str,
}

impl Default for Layout {
    fn default() -> Self {
        let mountinfo = V2.to_owned();
        Self { release: "6.1.0-18-amd64", mountinfo, capabilities: ALL_CAPABILITIES, btf: Some("BTF"), jit: "1" }
    }
}

impl Layout {
    fn machine(&self) -> Machine {
        let dir = TempDir::new().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/sys/kernel/osrelease", &format!("{}\n", self.release));
        write("proc/self/mountinfo", &self.mountinfo);
        write("proc/self/status", &format!("Name:\tx\nCapEff:\t{}\n", self.capabilities));
        write("proc/sys/net/core/bpf_jit_enable", self.jit);
        if let Some(btf) = self.btf {
            write("sys/kernel/btf/vmlinux", btf);
        }
        Machine::read(&dir.path().join("proc"), &dir.path().join("sys"))
    }
}

/// The findings of `machine` that are not ok, as `name: verdict`.
fn not_ok(machine: &Machine, cgroup: Option<&Path>) -> Vec<(&'static str, Verdict, String)> {
    let places = Places { bpffs: "/sys/fs/bpf".into(), cgroup: cgroup.map(Path::to_owned), ..Places::default() };
    all(machine, &places)
        .into_iter()
        .filter(|finding| finding.verdict != Verdict::Ok)
        .inspect(|finding| assert!(!finding.remedy.is_empty() && !finding.purpose.is_empty(), "{finding:?}"))
        .map(|finding| (finding.name, finding.verdict, format!("{}; {}", finding.found, finding.remedy)))
        .collect()
}

/// `machine` has exactly one thing to complain about.
fn check(machine: &Machine, name: &str, verdict: Verdict, words: &str) {
    let findings = not_ok(machine, None);
    let [(found, how, text)] = findings.as_slice() else { panic!("{name}: {findings:?}") };
    assert_eq!((*found, *how), (name, verdict), "{text}");
    assert!(text.contains(words), "`{words}` is not in `{text}`");
}

#[test]
fn a_machine_of_today_will_do() {
    assert_eq!(not_ok(&Layout::default().machine(), None), []);
}

#[test]
fn an_old_kernel_will_not() {
    for release in ["5.15.0-91-generic", "6.0.12", "4.19"] {
        check(&Layout { release, ..Layout::default() }.machine(), "kernel", Verdict::Fail, "older than 6.1");
    }
    check(&Layout { release: "unknown", ..Layout::default() }.machine(), "kernel", Verdict::Warn, "no version");
}

#[test]
fn cgroup_v1_only_is_named_as_such() {
    let mountinfo = format!("{V1}31 23 0:28 / /sys/fs/bpf rw - bpf bpf rw\n");
    check(&Layout { mountinfo, ..Layout::default() }.machine(), "cgroup", Verdict::Fail, "only cgroup v1");
    let mountinfo = "31 23 0:28 / /sys/fs/bpf rw - bpf bpf rw\n".to_owned();
    check(&Layout { mountinfo, ..Layout::default() }.machine(), "cgroup", Verdict::Fail, "no cgroup filesystem");
}

#[test]
fn a_hybrid_is_a_warning_that_says_where_v2_is() {
    let machine = Layout { mountinfo: HYBRID.to_owned(), ..Layout::default() }.machine();
    check(&machine, "cgroup", Verdict::Warn, "v2 at /sys/fs/cgroup/unified");
}

#[test]
fn a_named_cgroup_must_be_in_a_v2_mount() {
    let dir = TempDir::new().unwrap();
    let inside = format!("{V2}50 1 0:50 / {} rw - cgroup2 none rw\n", dir.path().display());
    let machine = Layout { mountinfo: inside, ..Layout::default() }.machine();
    assert_eq!(not_ok(&machine, Some(dir.path())), []);
    let missing = not_ok(&machine, Some(&dir.path().join("gone"))).remove(0);
    assert!(missing.1 == Verdict::Fail && missing.2.contains("does not exist"), "{missing:?}");
    let outside = not_ok(&machine, Some(Path::new("/tmp"))).remove(0);
    assert!(outside.1 == Verdict::Fail && outside.2.contains("/tmp is in no cgroup v2 mount"), "{outside:?}");
}

#[test]
fn a_kernel_without_btf_will_not_do() {
    check(&Layout { btf: None, ..Layout::default() }.machine(), "btf", Verdict::Fail, "CONFIG_DEBUG_INFO_BTF");
    check(&Layout { btf: Some(""), ..Layout::default() }.machine(), "btf", Verdict::Fail, "is empty");
}

#[test]
fn a_bpffs_must_be_mounted_there_and_not_be_hidden() {
    let none = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 1 0:9 / /sys rw - sysfs sysfs rw\n";
    let machine = Layout { mountinfo: none.to_owned(), ..Layout::default() }.machine();
    check(&machine, "bpffs", Verdict::Fail, "mount -t bpf bpf /sys/fs/bpf");
    let hidden = format!("{V2}60 31 0:60 / /sys/fs/bpf rw - tmpfs tmpfs rw\n");
    check(&Layout { mountinfo: hidden, ..Layout::default() }.machine(), "bpffs", Verdict::Fail, "not in a mounted");
}

#[test]
fn missing_privileges_are_named_one_by_one() {
    let nobody = Layout { capabilities: "0000000000000000", ..Layout::default() }.machine();
    let names: Vec<_> = not_ok(&nobody, None).into_iter().map(|(name, verdict, _)| (name, verdict)).collect();
    assert_eq!(
        names,
        [
            ("CAP_SYS_ADMIN", Verdict::Fail),
            ("CAP_BPF", Verdict::Fail),
            ("CAP_NET_ADMIN", Verdict::Fail),
            ("CAP_SYS_PTRACE", Verdict::Fail),
            ("CAP_SYS_RESOURCE", Verdict::Warn),
        ]
    );
    let mut rootless = Layout::default().machine();
    rootless.own_userns = true;
    let findings = not_ok(&rootless, None);
    assert_eq!(findings.len(), 5);
    assert!(findings.iter().all(|f| f.2.contains("user namespace")), "{findings:?}");
    // As the agent itself: it does not start without CAP_BPF, although CAP_SYS_ADMIN includes it.
    let without = Layout { capabilities: "0000000001281000", ..Layout::default() }.machine();
    check(&without, "CAP_BPF", Verdict::Fail, "securityContext.capabilities");
    // What deploy/ gives; the limit of open files is the runtime's.
    let deployed = Layout { capabilities: "0000008000281000", ..Layout::default() }.machine();
    check(&deployed, "CAP_SYS_RESOURCE", Verdict::Warn, "ulimit");
}

#[test]
fn what_a_container_lacks_is_named() {
    let mut machine = Layout::default().machine();
    machine.cgroup_namespace = Err("Permission denied".into());
    check(&machine, "cgroup-namespace", Verdict::Fail, "hostPID: true");
    machine.cgroup_namespace = Ok(true);
    machine.sysctls = Ok(false);
    assert_eq!(not_ok(&machine, None), []);
    machine.sysctls = Err("Operation not permitted".into());
    check(&machine, "sysctls", Verdict::Fail, "fsopen(2)");
}

#[test]
fn a_folder_that_is_not_the_nodes_is_named_with_its_mount() {
    let seen = |is, path: &str, sight, read_only: Option<&str>| {
        let mut machine = Layout::default().machine();
        machine.folders = vec![Folder { is, path: path.into(), sight, read_only: read_only.map(str::to_owned) }];
        machine
    };
    let state = "/var/lib/mesh-agent";
    check(
        &seen(Is::State, state, Sight::Own, None),
        "node-state",
        Verdict::Fail,
        "is not the node's; mount the node's",
    );
    check(&seen(Is::Netns, "/run/netns", Sight::Absent, None), "node-netns", Verdict::Fail, "on the node it is");
    check(&seen(Is::Cgroup, "/sys/fs/cgroup", Sight::Own, None), "node-cgroup", Verdict::Fail, "/sys/fs/cgroup");
    // Whoever has one of its own runs, until the container ends.
    check(&seen(Is::Bpffs, "/sys/fs/bpf", Sight::Own, None), "node-bpffs", Verdict::Warn, "hostPath");
    let said = Some("/opt/cni/bin: Read-only file system");
    check(&seen(Is::Cni, "/opt/cni/bin", Sight::Same, said), "node-cni", Verdict::Fail, "Read-only");
    let unknown = Sight::Unknown("Permission denied".into());
    check(&seen(Is::Cni, "/opt/cni/bin", unknown, None), "node-cni", Verdict::Warn, "CAP_SYS_PTRACE");
    for well in [Sight::Same, Sight::Neither] {
        assert_eq!(not_ok(&seen(Is::State, state, well, None), None), []);
    }
    let mut machine = Layout::default().machine();
    machine.process_one = Ok(false);
    check(&machine, "process-1", Verdict::Warn, "hostPID: true");
}

#[test]
fn what_could_not_be_found_out_is_a_warning_not_a_guess() {
    let dir = TempDir::new().unwrap();
    let mut machine = Machine::read(dir.path(), dir.path());
    machine.socket_control = Err("Operation not permitted".into());
    let findings = not_ok(&machine, None);
    let failed: Vec<_> = findings.iter().filter(|f| f.1 == Verdict::Fail).map(|f| f.0).collect();
    assert_eq!(failed, ["btf"], "a missing file is proof of nothing but for BTF: {findings:?}");
    assert!(findings.iter().any(|f| f.0 == "sock-destroy" && f.2.contains("Operation not permitted")));
}

#[test]
fn lesser_things_are_warnings() {
    check(&Layout { jit: "0", ..Layout::default() }.machine(), "jit", Verdict::Warn, "bpf_jit_enable=1");
    let mut machine = Layout::default().machine();
    machine.socket_control = Ok(SocketControl::Lists);
    check(&machine, "sock-destroy", Verdict::Warn, "CONFIG_INET_DIAG_DESTROY");
    machine.socket_control = Ok(SocketControl::Nothing);
    check(&machine, "sock-destroy", Verdict::Warn, "modprobe tcp_diag");
    let mut machine = Layout::default().machine();
    machine.membarrier = false;
    check(&machine, "membarrier", Verdict::Warn, "nohz_full");
    let mut machine = Layout::default().machine();
    machine.has_programs = false;
    check(&machine, "programs", Verdict::Fail, "cargo xtask setup");
}

#[test]
fn a_kernel_whose_verifier_refuses_a_program_will_not_do_whatever_its_version() {
    let said = "the kernel refused mesh_connect4: the BPF_PROG_LOAD syscall failed. Verifier output: 0: R1=ctx()\n\
                4: (85) call bpf_set_retval#187\nunknown func bpf_set_retval#187\n\
                processed 5 insns (limit 1000000) max_states_per_insn 0\n";
    let mut machine = Layout { release: "6.9.0", ..Layout::default() }.machine();
    machine.verifier = Err(said.into());
    check(&machine, "verifier", Verdict::Fail, "mesh_connect4");
    check(&machine, "verifier", Verdict::Fail, "… unknown func bpf_set_retval#187; docs/kernels.md");
    let mut nobody = Layout { capabilities: "0000000000000000", ..Layout::default() }.machine();
    nobody.verifier = Err("the kernel refused the object: Operation not permitted".into());
    let finding = not_ok(&nobody, None).into_iter().find(|finding| finding.0 == "verifier").unwrap();
    assert!(finding.1 == Verdict::Warn && finding.2.contains("check as root"), "{finding:?}");
}
