//! One boot: qemu without hardware help, the guest's console read line by line, bounded in time.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::interrupt;

use crate::shell;

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
/// Emulated processors: races need two, more would only share the machine's own.
const PROCESSORS: &str = "2";
/// The root file system is in memory too.
const MEMORY_MIB: &str = "1536";
/// The guest says this when everything has run.
const END: &str = "guest: end";
/// How often Ctrl-C is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Boots `kernel` with `initramfs` and gives every line of its console to `line`, until the guest has said that it is
/// through.
///
/// # Errors
/// When it ends before it said so (a panic ends it), or has not said so after `within`.
pub fn boot(kernel: &Path, initramfs: &Path, within: Duration, mut line: impl FnMut(&str)) -> Result<()> {
    let mut command = shell::command(QEMU);
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY_MIB])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        // A panic reboots, which ends qemu.
        .args(["-append", "console=ttyS0 panic=-1 quiet"]);
    let mut guest = Guest::start(command)?;
    let deadline = Instant::now() + within;
    let lines = guest.lines()?;
    loop {
        interrupt::check()?;
        match lines.recv_timeout(LOOK_EVERY) {
            Ok(text) if text == END => return Ok(()),
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(RecvTimeoutError::Timeout) => bail!("not through after {} s", within.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest ended before it was through"),
        }
    }
}

/// A running emulator, gone when dropped.
struct Guest(Child);

impl Guest {
    fn start(mut command: Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Self(child.with_context(|| format!("{QEMU} does not start"))?))
    }

    fn lines(&mut self) -> Result<mpsc::Receiver<String>> {
        let console = self.0.stdout.take().context("the guest has no console")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the emulator.
        thread::spawn(move || {
            for bytes in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&bytes).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(lines)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
