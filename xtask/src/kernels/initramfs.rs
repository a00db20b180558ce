//! What the guest consists of: busybox, `ip`, the agent, the suites, and the libraries that they name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::shell;

const INIT: &str = include_str!("guest.sh");
/// Where the guest looks for what is ours.
pub const OURS: &str = "/mesh";

/// A program of the guest.
pub struct Program {
    /// Its absolute path there.
    pub at: String,
    /// Its file here.
    pub from: PathBuf,
}

/// Writes the file `to`: a root file system whose init runs the shell script `run`.
///
/// # Errors
/// When one of the files cannot be read, or `to` cannot be written.
pub fn write(to: &Path, programs: &[Program], modules: &[PathBuf], run: &str) -> Result<()> {
    let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    let mut libraries = BTreeSet::new();
    for Program { at, from } in programs {
        let plain = to.with_extension("stripped");
        let bytes = fs::read(stripped(from, &plain)).with_context(|| format!("cannot read {}", from.display()))?;
        archive.program(at, &bytes)?;
        libraries.extend(libraries_of(from));
    }
    for library in libraries {
        archive.program(&library, &fs::read(&library).with_context(|| format!("cannot read {library}"))?)?;
    }
    for (order, module) in modules.iter().enumerate() {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module has no name")?;
        archive.program(&format!("{OURS}/modules/{order}-{name}"), &fs::read(module)?)?;
    }
    archive.link("/bin/sh", "busybox")?;
    for folder in ["/dev", "/etc", "/proc", "/run", "/sys", "/tmp"] {
        archive.folder(folder)?;
    }
    archive.program(&format!("{OURS}/run"), run.as_bytes())?;
    archive.program("/init", INIT.as_bytes())?;
    archive.finish()?;
    Ok(())
}

/// A copy without debug information, a tenth in size; the file itself where that cannot be made.
fn stripped<'a>(from: &'a Path, to: &'a Path) -> &'a Path {
    let done = shell::succeeds(shell::command("strip").arg("--strip-debug").arg("-o").arg(to).arg(from));
    if done { to } else { from }
}

/// Absolute paths of the shared libraries, and of what loads them; none of a static program, which `ldd` refuses.
fn libraries_of(program: &Path) -> Vec<String> {
    shell::output(shell::command("ldd").arg(program)).map(|text| paths(&text)).unwrap_or_default()
}

/// Of lines as `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn paths(ldd: &str) -> Vec<String> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_their_loader_are_found() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(paths(ldd), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(paths("\tnot a dynamic executable\n").is_empty());
    }
}
