//! Debian packages, installed without starting or enabling the servers they bring.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Asked by Debian's packages before they start a service; 101 = not allowed.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const REFUSE: &str = "#!/bin/sh\nexit 101\n";
/// Where systemd runs, packages also enable their services for the next boot.
const SYSTEMD: &str = "/run/systemd/system";

/// Installs `packages`.
///
/// # Errors
/// Names the packages when there is no apt-get or this is not root.
pub fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if shell::which("apt-get").is_none() {
        bail!("these are missing and there is no apt-get to install them: {names} (Debian's names)");
    }
    if !shell::is_root() {
        bail!("these are missing and only root can install them: apt-get install {names}");
    }
    let _no_services = NoServices::new()?;
    shell::run(apt_get().args(["update", "-q"]))?;
    shell::run(apt_get().args(["install", "-q", "-y", "--no-install-recommends"]).args(packages))?;
    if Path::new(SYSTEMD).is_dir() {
        for package in packages {
            // Most packages bring no service of their name: that failure is the normal case.
            let service = package.trim_end_matches("-light");
            shell::succeeds(shell::command("systemctl").args(["disable", "--now", service]));
        }
    }
    Ok(())
}

fn apt_get() -> std::process::Command {
    let mut command = shell::command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// While it lives, installing a package starts no service.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, REFUSE).with_context(|| format!("cannot write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("setup: cannot remove {POLICY}: {error}");
        }
    }
}
