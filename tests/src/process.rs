//! A program that the harness started: its output in files, and killed by its id when dropped.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{run, sys, wait};

/// Time that a program has to end after it was asked to.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Where a program is to run and what its output files are called.
pub struct Launch<'a> {
    /// Name of its output files.
    pub name: &'a str,
    /// Folder of its output files.
    pub folder: &'a Path,
    /// The run it belongs to.
    pub run_id: &'a str,
    /// Network namespace; `None` = this process's own.
    pub netns: Option<OwnedFd>,
    /// `cgroup.procs` of its cgroup; `None` = this process's own.
    pub cgroup_procs: Option<File>,
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Memory in use, in bytes (`VmRSS`).
    ///
    /// # Errors
    /// When it is gone.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most memory that it ever had in use, in bytes (`VmHWM`).
    ///
    /// # Errors
    /// When it is gone.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok());
        kib.map(|kib: u64| kib * 1024).with_context(|| format!("{} has no {field}", self.name))
    }

    /// Processor time used so far, of all its threads.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self) -> Result<Duration> {
        cpu(self.pid())
    }

    /// How many files it has open.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, launch: Launch<'_>) -> Result<Self> {
        let stdout = launch.folder.join(format!("{}.out", launch.name));
        let stderr = launch.folder.join(format!("{}.err", launch.name));
        let append = |path: &PathBuf| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        command.stdin(Stdio::null()).stdout(append(&stdout)?).stderr(append(&stderr)?).env(run::ENV, launch.run_id);
        sys::place(&mut command, launch.netns, launch.cgroup_procs);
        let child = command.spawn().with_context(|| format!("{} does not start: {command:?}", launch.name))?;
        Ok(Self { name: launch.name.to_owned(), child, stdout, stderr })
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far, from its first start on.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it wrote to its error output so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// The file of its standard output.
    #[must_use]
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// `Err` with its last words if it has ended.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended: {status}\n{}", self.name, tail(&self.stderr(), 20))),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it still runs after `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait::until(&format!("{name} ends"), within, || {
            self.child.try_wait()?.ok_or_else(|| anyhow!("it still runs; its last words:\n{}", tail(&self.stderr(), 5)))
        })
    }

    /// Waits until it ends by itself, and gives what it printed.
    ///
    /// # Errors
    /// When it does not end in time, or fails.
    pub fn finish(mut self, within: Duration) -> Result<String> {
        let status = self.wait(within)?;
        ensure!(
            status.success(),
            "{} failed: {status}\n{}{}",
            self.name,
            tail(&self.stdout(), 20),
            tail(&self.stderr(), 20)
        );
        Ok(self.stdout())
    }

    /// Waits until it ends by itself, and gives the last line that it printed, as JSON.
    ///
    /// # Errors
    /// When it does not end in time, fails, or prints something else.
    pub fn answer(self, within: Duration) -> Result<Value> {
        let name = self.name.clone();
        let printed = self.finish(within)?;
        let line = printed.lines().last().with_context(|| format!("{name} printed nothing"))?;
        serde_json::from_str(line).with_context(|| format!("{name} did not print JSON: {line}"))
    }

    /// Every whole line that it printed so far, as JSON.
    ///
    /// # Errors
    /// When a line is something else.
    pub fn lines(&self) -> Result<Vec<Value>> {
        let text = self.stdout();
        let whole = text.rfind('\n').map_or("", |end| text.get(..=end).unwrap_or_default());
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("not a line of JSON: {line}"));
        whole.lines().map(parse).collect()
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(STOP_WITHIN)
    }

    /// Kills it (SIGKILL) and waits.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("harness: cannot kill {}: {error:#}", self.name);
        }
    }
}

/// Processor time that process `pid` used so far, of all its threads.
///
/// # Errors
/// When it is gone.
pub fn cpu(pid: u32) -> Result<Duration> {
    // Fields 14 and 15, in ticks of 10 ms; the second field, in parentheses, may hold spaces (proc_pid_stat(5)).
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no name in /proc/PID/stat")?.1;
    let ticks: u64 = after_name.split_ascii_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The last `count` lines of `text`, each ended.
#[must_use]
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.iter().skip(from).map(|line| format!("{line}\n")).collect()
}

/// Lines of a log at WARN or above that contain none of `expected`.
#[must_use]
pub fn complaints(log: &str, expected: &[String]) -> Vec<String> {
    let worrying = |line: &&str| [" WARN ", " ERROR ", "panicked at"].iter().any(|word| line.contains(word));
    let unexpected = |line: &&str| !expected.iter().any(|part| line.contains(part.as_str()));
    log.lines().filter(worrying).filter(unexpected).map(str::to_owned).collect()
}
