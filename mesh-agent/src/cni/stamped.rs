//! Files by which the agent and the plugin know of one another across their lives: replaced whole, and worth nothing
//! after a reboot.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// More than any node's.
const LARGEST: u64 = 64 * 1024 * 1024;
/// Another one for each boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What stands in such a file.
#[derive(Serialize, Deserialize)]
struct Stamped<T> {
    boot_id: String,
    /// Seconds since 1970.
    written: u64,
    content: T,
}

/// The present boot.
///
/// # Errors
/// Without /proc.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// Writes `content` as `name` in `dir`, 0600, with the boot and the time.
///
/// # Errors
/// What the system says; what was there before then stands.
pub(super) fn write(dir: &Path, name: &str, boot_id: &str, content: &impl Serialize) -> io::Result<()> {
    let written = since_1970(SystemTime::now());
    let text = serde_json::to_vec(&Stamped { boot_id: boot_id.to_owned(), written, content })?;
    replace(&dir.join(name), &text, 0o600)
}

/// What `name` in `dir` says, and how old it is. `None`: it is not there, of another boot, or cannot be read.
pub(super) fn read<T: DeserializeOwned>(dir: &Path, name: &str, boot_id: &str) -> Option<(T, Duration)> {
    let mut text = Vec::new();
    File::open(dir.join(name)).ok()?.take(LARGEST).read_to_end(&mut text).ok()?;
    let Stamped { boot_id: written_in, written, content } = serde_json::from_slice(&text).ok()?;
    let age = Duration::from_secs(since_1970(SystemTime::now()).saturating_sub(written));
    (written_in == boot_id).then_some((content, age))
}

/// Puts `bytes` in the place of the file `path`: whoever reads it sees the old one or the new one whole.
///
/// # Errors
/// What the system says; what was there before then stands.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let no_file = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no file", path.display()));
    let (dir, name) = (path.parent().ok_or_else(no_file)?, path.file_name().ok_or_else(no_file)?);
    // Hidden: nobody who reads the directory takes it for one of its files.
    let draft = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let _ = fs::remove_file(&draft);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_written_is_read_in_the_same_boot_alone() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "f", "boot-1", &vec![1, 2]).unwrap();
        let (content, age): (Vec<i32>, _) = read(dir.path(), "f", "boot-1").unwrap();
        assert_eq!(content, [1, 2]);
        assert!(age < Duration::from_secs(60));
        assert!(read::<Vec<i32>>(dir.path(), "f", "boot-2").is_none());
        assert!(read::<Vec<i32>>(dir.path(), "g", "boot-1").is_none());
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        fs::write(dir.path().join("f"), "{\"boot_id\":").unwrap();
        assert!(read::<Vec<i32>>(dir.path(), "f", "boot-1").is_none(), "a torn file says nothing");
    }

    #[test]
    fn two_boots_are_told_apart_by_their_ids() {
        assert!(boot_id().unwrap().len() > 30);
    }
}
