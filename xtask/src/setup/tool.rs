//! Cargo-installed tools, kept in a folder of the project's own so that the user's toolchain stays as it is.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell;

/// A tool that cargo installs at a fixed version.
pub struct Tool {
    name: &'static str,
    version: &'static str,
    /// Arguments of `cargo install` besides name, version and folder.
    args: &'static [&'static str],
    why: &'static str,
}

impl Tool {
    /// Links the kernel half. Newer ones want a system LLVM; this one loads the compiler's own.
    pub const BPF_LINKER: Self = Self {
        name: "bpf-linker",
        version: "0.10.3",
        args: &[],
        why: "links the eBPF programs (about 2 minutes, once)",
    };

    /// Licences, bans, sources and advisories of the dependencies. Built without optimisation: it runs for
    /// a second and would take minutes to optimise.
    pub const CARGO_DENY: Self = Self {
        name: "cargo-deny",
        version: "0.20.2",
        args: &["--debug"],
        why: "checks licences and sources of the dependencies (some minutes, once)",
    };

    /// The tool's path, installed first when it is neither on `PATH` nor in the tools folder.
    pub fn ensure(&self) -> Result<PathBuf> {
        let own = tools_dir()?.join("bin").join(self.name);
        if own.is_file() {
            return Ok(own);
        }
        if let Some(found) = shell::which(self.name) {
            return Ok(found);
        }
        eprintln!("setup: installing {} {}, which {}", self.name, self.version, self.why);
        let mut install = shell::cargo();
        install.args(["install", "--locked", self.name, "--version", self.version, "--root"]).arg(tools_dir()?);
        // Built in a folder of its own: a shared one would be locked, and filled with foreign artefacts.
        install.args(self.args).env_remove("CARGO_TARGET_DIR");
        shell::run(&mut install).with_context(|| {
            format!("install it yourself: cargo install --locked {} --version {}", self.name, self.version)
        })?;
        Ok(own)
    }
}

/// `$MESH_TOOLS_DIR`, else `mesh-agent/tools` in the user's cache folder. `mesh-agent/build.rs` looks there too.
///
/// # Errors
/// When neither the variable nor a home folder is set.
pub fn tools_dir() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("MESH_TOOLS_DIR") {
        return Ok(given.into());
    }
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither MESH_TOOLS_DIR nor HOME is set")?).join(".cache")
        }
    };
    Ok(cache.join("mesh-agent/tools"))
}
