//! `mesh-agent bugreport`: one archive for whoever looks for a fault.
//!
//! What the agent says of itself, and what the machine is like; of both no key, no token, no address book beyond what
//! `status` and `/metrics` show. An agent that does not answer is part of the report, not the end of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::place::Place;
use super::{check, fail, plain, print};
use crate::admin::{Report, Request};

/// Arguments of `bugreport`.
#[derive(Debug, clap::Args)]
pub struct BugreportArgs {
    /// The archive (tar); it must not be there yet. `-`: standard output.
    #[arg(long, short, default_value = "mesh-agent-bugreport.tar")]
    output: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// A file of the archive.
type Part = (&'static str, String);

/// An agent that hangs is given up after this.
const WITHIN: Duration = Duration::from_secs(60);

pub(super) fn run(args: &BugreportArgs) -> ExitCode {
    let made = if args.place.is_a_node() { there(&args.place) } else { here(&args.place) };
    let stored = made.and_then(|archive| {
        let named = |error| format!("--output {}: {error}", args.output.display());
        store(&args.output, &archive).and_then(|()| names(&archive)).map_err(named)
    });
    match stored {
        Ok(names) if !is_stdout(&args.output) => {
            print(&format!("{}: {}\n", args.output.display(), names.join(", ")));
            ExitCode::SUCCESS
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn is_stdout(output: &Path) -> bool {
    output == Path::new("-")
}

/// An archive of this machine and its agent.
fn here(place: &Place) -> Result<Vec<u8>, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    pack(&gather(place), now).map_err(|error| error.to_string())
}

/// The archive that the agent's container makes: of its machine, which is the node.
fn there(place: &Place) -> Result<Vec<u8>, String> {
    let ran = place.run_there(|_| ["bugreport", "--output", "-"].map(str::to_owned).into(), WITHIN)?;
    if ran.code == 0 { Ok(ran.stdout) } else { Err(plain(ran.stderr.trim())) }
}

/// Never over something that is there, and for nobody else to read.
fn store(output: &Path, archive: &[u8]) -> io::Result<()> {
    if is_stdout(output) {
        return io::stdout().lock().write_all(archive);
    }
    File::options().write(true).create_new(true).mode(0o600).open(output)?.write_all(archive)
}

/// The names of the archive's files.
fn names(archive: &[u8]) -> io::Result<Vec<String>> {
    let mut archive = tar::Archive::new(archive);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    archive.entries()?.map(|entry| Ok(name(&entry?.path()?))).collect()
}

fn gather(place: &Place) -> Vec<Part> {
    let checked = check::Report::of_this_machine(&place.state_dir);
    let checked = serde_json::to_string_pretty(&checked).unwrap_or_else(|error| error.to_string());
    let mut parts = vec![
        ("version.txt", format!("{}\n", env!("CARGO_PKG_VERSION"))),
        ("check.json", checked),
        ("kernel.txt", read("/proc/sys/kernel/version") + &read("/proc/version") + &read("/proc/cmdline")),
        ("mounts.txt", read("/proc/self/mounts")),
        ("memory.txt", read("/proc/meminfo") + &read("/proc/pressure/memory") + &read("/proc/pressure/cpu")),
    ];
    match place.ask::<Report>(&Request::Report) {
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

fn pack(parts: &[Part], now: u64) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        header.set_cksum();
        archive.append_data(&mut header, Path::new("mesh-agent-bugreport").join(name), text.as_bytes())?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn without_an_agent_the_machine_is_reported_and_why_the_agent_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("report.tar");
        let place = Place { state_dir: folder.path().join("none"), ..Place::default() };
        let args = BugreportArgs { output: output.clone(), place };
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
