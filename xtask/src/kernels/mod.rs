//! `cargo xtask kernels`: the kernel suites under kernels that this machine does not run.
//!
//! Debian's kernels are booted in qemu without hardware help, with a root file system of a shell, `ip`,
//! the agent and the suites' own binaries (`guest.sh` is their init). There `mesh-agent check` must be content, the
//! agent must start and say what its kernel lacks, and every test must pass: each verifier takes every program, and the
//! programs do there what they do here.

mod boot;
mod cpio;
mod initramfs;
mod packages;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::interrupt;

use crate::test::Tally;
use crate::{compile, setup, shell};
use initramfs::{OURS, Program};
use packages::{KERNELS, Kernel, Unpacked};

/// What runs in the guest, after the agent itself.
const SUITES: [&str; 3] = ["kernel_capture", "kernel_egress", "kernel_native"];
/// A test that stays outside: its kubelet is a Python program, and the guest has no Python.
const OUTSIDE: &str = "probes::a_kubelet_that_comes_back_in_another_cgroup_is_followed_by_its_port";
/// An emulated processor is some twenty times slower, and shares the machine.
const WITHIN: Duration = Duration::from_secs(2400);

struct Options {
    kernels: Vec<&'static Kernel>,
    update: bool,
    test_args: Vec<String>,
}

/// Runs the task; any failure is an error after the last line.
pub fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    interrupt::catch()?;
    if let Some(why) = obstacle() {
        bail!("{why}");
    }
    compile::workspace_with_programs(&["--bins"])?;
    let mut tally = Tally::default();
    for kernel in &options.kernels {
        suites_under(kernel, &kernel.ensure(options.update)?, &options.test_args, &mut tally)?;
        interrupt::check()?;
    }
    tally.finish();
    Ok(())
}

/// As part of all suites: under the oldest kernel, in a long run under each. The workspace is built.
pub fn guests(long: bool, test_args: &[String], tally: &mut Tally) {
    let obstacle = obstacle();
    for kernel in KERNELS.iter().take(if long { KERNELS.len() } else { 1 }) {
        let unpacked = match &obstacle {
            None => kernel.ensure(false).map_err(|error| format!("{error:#}")),
            Some(why) => Err(why.clone()),
        };
        match unpacked {
            Err(why) => tally.skip(&format!("kernel {}", kernel.name), &why),
            Ok(unpacked) => {
                if let Err(error) = suites_under(kernel, &unpacked, test_args, tally) {
                    eprintln!("kernel {}: {error:#}", kernel.name);
                    tally.fail();
                }
            }
        }
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { kernels: Vec::new(), update: false, test_args: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--update" => options.update = true,
            "--" => options.test_args.extend(args.by_ref().cloned()),
            name => options.kernels.push(by_name(name)?),
        }
    }
    if options.kernels.is_empty() {
        options.kernels = KERNELS.iter().collect();
    }
    Ok(options)
}

fn by_name(name: &str) -> Result<&'static Kernel> {
    let found = KERNELS.iter().find(|kernel| kernel.name == name);
    found.with_context(|| {
        let names = KERNELS.each_ref().map(|kernel| kernel.name).join(", ");
        format!("`{name}` is neither an option nor a kernel ({names})")
    })
}

/// Why no guest can be booted here, after trying to install what that needs.
fn obstacle() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the guests are x86-64, and run what is built here".to_owned());
    }
    setup::ebpf_toolchain().and_then(|()| setup::programs(setup::GUESTS)).err().map(|error| format!("{error:#}"))
}

/// Boots the kernel and adds the results of its suites to the tally. The workspace is built.
///
/// # Errors
/// When no guest can be made; what fails in it is a failure of the tally.
fn suites_under(kernel: &Kernel, unpacked: &Unpacked, test_args: &[String], tally: &mut Tally) -> Result<()> {
    eprintln!("\n== kernel {} ({}) ==", kernel.name, unpacked.release);
    let folder = shell::target_dir()?.join("kernels");
    fs::create_dir_all(&folder)?;
    let initramfs = folder.join(format!("{}.cpio", kernel.name));
    initramfs::write(&initramfs, &programs()?, &unpacked.modules, &script(test_args))?;
    let started = Instant::now();
    let mut seen = Seen::default();
    let ended = boot::boot(&unpacked.image, &initramfs, WITHIN, |line| {
        println!("{}| {line}", kernel.name);
        tally.add(line);
        seen.add(line);
    });
    if let Err(error) = ended.and_then(|()| seen.judge(&unpacked.release)) {
        eprintln!("kernel {}: {error:#}", kernel.name);
        tally.fail();
    }
    eprintln!("kernel {}: {} s", kernel.name, started.elapsed().as_secs());
    Ok(())
}

/// What the guest runs: each program, and a line with its exit code.
fn script(test_args: &[String]) -> String {
    let mut script = String::new();
    let quoted: String = test_args.iter().map(|arg| format!(" '{}'", arg.replace('\'', r"'\''"))).collect();
    for suite in SUITES {
        script.push_str(&format!("{OURS}/{suite} --test-threads=1 --skip {OUTSIDE}{quoted}\n"));
        script.push_str(&format!("echo \"guest: {suite} $?\"\n"));
    }
    script
}

/// What the guest said.
#[derive(Default)]
struct Seen(Vec<String>);

impl Seen {
    fn add(&mut self, line: &str) {
        self.0.extend(line.strip_prefix("guest: ").map(str::to_owned));
    }

    /// Whether it was the kernel that was meant, and everything ended well.
    fn judge(&self, release: &str) -> Result<()> {
        let mut expected = vec![format!("kernel {release}")];
        // First without the modules that listing and ending connections needs: the agent runs, with less, and says so.
        for present in ["0", "1"] {
            let feature = |name| format!("feature{{feature=\"{name}\"}} {present}");
            expected.extend(["check 0".to_owned(), feature("sock_diag"), feature("sock_destroy")]);
            expected.push("feature{feature=\"membarrier\"} 1".to_owned());
            expected.extend(["agent 0", "uninstall 0"].map(str::to_owned));
        }
        expected.extend(SUITES.iter().map(|suite| format!("{suite} 0")));
        ensure!(self.0 == expected, "the guest said {:#?}\ninstead of {expected:#?}", self.0);
        Ok(())
    }
}

fn programs() -> Result<Vec<Program>> {
    let target = shell::target_dir()?.join("debug");
    let found = |name: &str| shell::which(name).with_context(|| format!("there is no `{name}`"));
    let mut programs = vec![
        Program { at: "/bin/busybox".to_owned(), from: found("busybox")? },
        Program { at: "/bin/bash".to_owned(), from: found("bash")? },
        Program { at: "/sbin/ip".to_owned(), from: found("ip")? },
    ];
    let mut own = |name: &str, from: PathBuf| programs.push(Program { at: format!("{OURS}/{name}"), from });
    for name in ["mesh-agent", "mesh-sample"] {
        own(name, target.join(name));
    }
    for (name, from) in suite_binaries()? {
        own(&name, from);
    }
    Ok(programs)
}

/// Name and file of each suite, built as `cargo xtask test` builds them.
fn suite_binaries() -> Result<Vec<(String, PathBuf)>> {
    let mut build = shell::cargo();
    build.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    build.args(SUITES.iter().flat_map(|suite| ["--test", suite]));
    let mut found = Vec::new();
    for line in shell::output(&mut build)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let text = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
        if let (Some(name), Some(file)) = (text("/target/name"), text("/executable"))
            && SUITES.contains(&name)
        {
            found.push((name.to_owned(), PathBuf::from(file)));
        }
    }
    ensure!(found.len() == SUITES.len(), "cargo built {found:?}");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_judged_by_every_line_that_it_owes() {
        let lists = |present| {
            let features = ["sock_diag", "sock_destroy"].map(|name| format!("feature{{feature=\"{name}\"}} {present}"));
            let [diag, destroy] = features;
            let wait = "feature{feature=\"membarrier\"} 1".to_owned();
            ["check 0".to_owned(), diag, destroy, wait, "agent 0".to_owned(), "uninstall 0".to_owned()]
        };
        let mut all = vec!["kernel 6.1.0".to_owned()];
        all.extend(lists(0).into_iter().chain(lists(1)));
        all.extend(["kernel_capture 0", "kernel_egress 0", "kernel_native 0"].map(str::to_owned));
        let passes = |lines: &[String]| {
            let mut seen = Seen::default();
            seen.add("running 1 test");
            lines.iter().for_each(|line| seen.add(&format!("guest: {line}")));
            seen.judge("6.1.0").is_ok()
        };
        assert!(passes(&all));
        for at in 0..all.len() {
            let mut changed = all.clone();
            changed[at].push('1');
            assert!(!passes(&changed), "{changed:?}");
            changed.remove(at);
            assert!(!passes(&changed), "{changed:?}");
        }
    }

    #[test]
    fn arguments_reach_the_suites_as_they_are() {
        let options = parse(&["6.1", "--update", "--", "it's", "--exact"].map(String::from)).unwrap();
        assert!(options.update && options.kernels.len() == 1);
        let script = script(&options.test_args);
        assert!(script.contains(r"'it'\''s' '--exact'"), "{script}");
        assert!(parse(&["5.4".to_owned()]).is_err());
    }
}
