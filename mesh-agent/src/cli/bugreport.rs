//! `mesh-agent bugreport`: one archive for whoever looks for a fault.
//!
//! What the agent says of itself, and what the machine is like; of both no key, no token, no address book beyond what
//! `status` and `/metrics` show. An agent that does not answer is part of the report, not the end of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{ask, check, fail, print};
use crate::admin::{Report, Request};

/// Arguments of `bugreport`.
#[derive(Debug, clap::Args)]
pub struct BugreportArgs {
    /// The archive (tar); it must not be there yet.
    #[arg(long, short, default_value = "mesh-agent-bugreport.tar")]
    output: PathBuf,
    /// The agent's state directory.
    #[arg(long, env = "MESH_STATE_DIR", default_value = "/var/lib/mesh-agent")]
    state_dir: PathBuf,
}

/// A file of the archive.
type Part = (&'static str, String);

pub(super) fn run(args: &BugreportArgs) -> ExitCode {
    let parts = gather(&args.state_dir);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Never over something that is there, and for nobody else to read.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&args.output);
    let written = file.and_then(|file| write(file, &parts, now));
    if let Err(error) = written {
        return fail(&format!("--output {}: {error}", args.output.display()));
    }
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    print(&format!("{}: {}\n", args.output.display(), names.join(", ")));
    ExitCode::SUCCESS
}

fn gather(state_dir: &Path) -> Vec<Part> {
    let mut parts = vec![
        ("version.txt", format!("{}\n", env!("CARGO_PKG_VERSION"))),
        ("check.json", check::report()),
        ("kernel.txt", read("/proc/sys/kernel/version") + &read("/proc/version") + &read("/proc/cmdline")),
        ("mounts.txt", read("/proc/self/mounts")),
        ("memory.txt", read("/proc/meminfo") + &read("/proc/pressure/memory") + &read("/proc/pressure/cpu")),
    ];
    match ask::<Report>(state_dir, &Request::Report) {
        Ok(Report { status, options, metrics, log }) => parts.extend([
            ("status.json", serde_json::to_string_pretty(&status).unwrap_or_else(|error| error.to_string())),
            ("options.txt", options),
            ("metrics.txt", metrics),
            ("log.txt", log.join("\n") + "\n"),
        ]),
        Err(error) => parts.push(("no-answer.txt", format!("{error}\n"))),
    }
    parts
}

/// A file of the machine, or why it cannot be read.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| format!("{path}: {error}\n"))
}

fn write(file: File, parts: &[Part], now: u64) -> io::Result<()> {
    let mut archive = tar::Builder::new(file);
    for (name, text) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        header.set_cksum();
        archive.append_data(&mut header, Path::new("mesh-agent-bugreport").join(name), text.as_bytes())?;
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn without_an_agent_the_machine_is_reported_and_why_the_agent_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("report.tar");
        let args = BugreportArgs { output: output.clone(), state_dir: folder.path().join("none") };
        assert_eq!(run(&args), ExitCode::SUCCESS);
        let mut texts = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(File::open(&output).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            texts.insert(entry.path().unwrap().file_name().unwrap().to_owned().into_string().unwrap(), text);
        }
        assert!(texts["no-answer.txt"].contains("admin.sock"), "{texts:?}");
        assert!(texts["check.json"].contains("findings") && texts["mounts.txt"].contains("proc"));
        // What is there stays.
        assert_eq!(run(&args), ExitCode::FAILURE);
    }
}
