//! `cargo xtask setup`: installs what is missing, or says exactly what to install.
//!
//! Called by the tasks that need it. It starts no service and leaves none enabled.

mod apt;
mod ebpf;
mod tool;

use anyhow::{Result, bail};

use crate::shell;

pub use tool::{Tool, tools_dir};

/// A program of the distribution, by the package that brings it.
#[derive(Clone, Copy)]
pub struct Program {
    /// What runs, or a file of the package by its whole path.
    pub binary: &'static str,
    /// Debian's name for it.
    pub package: &'static str,
}

const IPROUTE: Program = Program { binary: "ip", package: "iproute2" };
const CURL: Program = Program { binary: "curl", package: "curl" };
const REDIS: Program = Program { binary: "redis-server", package: "redis-server" };
const NGINX: Program = Program { binary: "nginx", package: "nginx-light" };
const IPERF: Program = Program { binary: "iperf3", package: "iperf3" };
const QEMU: Program = Program { binary: "qemu-system-x86_64", package: "qemu-system-x86" };
const BUSYBOX: Program = Program { binary: "busybox", package: "busybox-static" };
const XZ: Program = Program { binary: "xz", package: "xz-utils" };
/// Of the distribution's own Python.
const GRPC: Program = Program { binary: "/usr/lib/python3/dist-packages/grpc/__init__.py", package: "python3-grpcio" };
const WRK: Program = Program { binary: "wrk", package: "wrk" };
const H2LOAD: Program = Program { binary: "h2load", package: "nghttp2-client" };
const HAPROXY: Program = Program { binary: "haproxy", package: "haproxy" };
const NPM: Program = Program { binary: "npm", package: "npm" };
/// Not crun: that one refuses machines with both versions of cgroups.
const RUNC: Program = Program { binary: "runc", package: "runc" };
/// Renders `deploy/kustomize`.
pub const KUBECTL: Program = Program { binary: "kubectl", package: "kubernetes-client" };

/// What the two nodes and their pods are made with.
pub const TOPOLOGY: &[Program] = &[IPROUTE];
/// What the suites run besides.
pub const SUITES: &[Program] = &[IPROUTE, CURL, REDIS, NGINX, H2LOAD, GRPC, RUNC, KUBECTL];
/// What the bench runs besides.
pub const BENCH: &[Program] = &[IPROUTE, NGINX, IPERF, WRK];
/// What the http lane's bench runs besides that.
pub const BENCH_HTTP: &[Program] = &[H2LOAD, HAPROXY];
/// What other kernels are booted with.
pub const GUESTS: &[Program] = &[IPROUTE, QEMU, BUSYBOX, XZ];

/// Installs everything that any task needs.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("`{unknown}`: this task takes no arguments");
    }
    ebpf_toolchain()?;
    let all: Vec<Program> = SUITES.iter().chain(BENCH).chain(BENCH_HTTP).chain(GUESTS).copied().collect();
    programs(&all)?;
    eprintln!("setup: everything is in place");
    Ok(())
}

/// Makes sure that `mesh-agent/build.rs` can compile the kernel half.
///
/// # Errors
/// Names what to install when it cannot be done from here.
pub fn ebpf_toolchain() -> Result<()> {
    ebpf::ensure_compiler()?;
    Tool::BPF_LINKER.ensure().map(drop)
}

/// Makes sure that these programs are there.
///
/// # Errors
/// Names the packages to install when it cannot be done from here.
pub fn programs(wanted: &[Program]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|p| shell::which(p.binary).is_none()).map(|p| p.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::install(&missing)?;
    match wanted.iter().find(|p| shell::which(p.binary).is_none()) {
        None => Ok(()),
        Some(p) => bail!("package {} is installed and still there is no `{}`", p.package, p.binary),
    }
}
