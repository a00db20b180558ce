//! A Rust compiler with the source of its `core`: the BPF target has no prebuilt one.
//!
//! Two are accepted, as in `mesh-agent/build.rs`: rustup's nightly with `rust-src`, and Debian's `rustc-web`
//! with `rust-web-src`.

use std::path::Path;

use anyhow::{Result, anyhow};

use super::apt;
use crate::shell;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core";
const CORE_IN_SYSROOT: &str = "lib/rustlib/src/rust/library/core";
/// Longer than a slow download, shorter than a stalled one.
const DOWNLOAD_SECONDS: &str = "600";

/// Installs one of the two if neither is there.
pub fn ensure_compiler() -> Result<()> {
    if has_nightly_source() || has_debian_source() {
        return Ok(());
    }
    if let Err(from_rustup) = install_from_rustup() {
        eprintln!("setup: rustup cannot give nightly with rust-src: {from_rustup:#}");
        apt::install(&["rustc-web", "rust-web-src"]).map_err(|from_apt| {
            anyhow!(
                "the kernel half needs a Rust compiler with the source of `core`. Install either\n  \
                 rustup toolchain install nightly --component rust-src\nor, on Debian,\n  \
                 apt-get install rustc-web rust-web-src\n({from_apt:#})"
            )
        })?;
    }
    if has_nightly_source() || has_debian_source() {
        return Ok(());
    }
    Err(anyhow!("the compiler was installed, but there is no {CORE_IN_SYSROOT} in its sysroot"))
}

fn has_nightly_source() -> bool {
    shell::output(shell::command("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .is_ok_and(|sysroot| Path::new(sysroot.trim()).join(CORE_IN_SYSROOT).is_dir())
}

fn has_debian_source() -> bool {
    Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_SOURCE).is_dir()
}

fn install_from_rustup() -> Result<()> {
    if shell::which("rustup").is_none() {
        return Err(anyhow!("there is no rustup"));
    }
    let nightly = shell::succeeds(shell::command("rustup").args(["run", "nightly", "rustc", "--version"]));
    let mut rustup = shell::command("timeout");
    rustup.args([DOWNLOAD_SECONDS, "rustup"]);
    if nightly {
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    } else {
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    }
    shell::run(&mut rustup)
}
