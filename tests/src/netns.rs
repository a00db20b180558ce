//! A named network namespace: made by `ip netns`, so that `ip netns exec` works on it, gone when dropped.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps them.
pub const FOLDER: &str = "/run/netns";

/// A network namespace of our own.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes the namespace, with its loopback up and its interfaces free of address detection delays.
    ///
    /// # Errors
    /// What `ip` says, for instance without root.
    pub fn new(name: &str) -> Result<Self> {
        run_ip(Command::new("ip").args(["netns", "add", name]))?;
        let path = path(name);
        let handle = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let netns = Self { name: name.to_owned(), handle };
        // Duplicate address detection would hold back IPv6 for a second or two.
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// A descriptor of its own for a process that is to start in it.
    ///
    /// # Errors
    /// What the system says.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        Ok(self.handle.try_clone()?.into())
    }

    /// Runs lines of `ip` commands inside, e.g. `addr add 10.0.0.1/24 dev eth0`.
    ///
    /// # Errors
    /// What `ip` says about the first line that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = ip.spawn().context("`ip` does not start")?;
        child.stdin.take().context("ip has no input")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}\n{lines}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Sets `/proc/sys/<key>` inside.
    ///
    /// # Errors
    /// What the system says.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value))?.with_context(|| format!("cannot set {key} in {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the namespace. A socket that it returns stays there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter the network namespace {}", self.name))?;
                Ok(work())
            });
            inside.join().map_err(|_| anyhow!("the work in {} panicked", self.name))?
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("harness: {error:#}");
        }
    }
}

/// Deletes the namespace `name`.
///
/// # Errors
/// What `ip` says.
pub fn delete(name: &str) -> Result<()> {
    run_ip(Command::new("ip").args(["netns", "delete", name]))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(FOLDER).join(name)
}

fn run_ip(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().context("`ip` does not start (package iproute2)")?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
