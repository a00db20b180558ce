//! Files that must stay private: directories of the state dir, keys, tokens.
//!
//! Nothing is read out of a file that others could have read or written, and nothing is half written: a
//! new file appears under its name complete, synced and 0600, or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::error::CertError;

/// Largest file read: keys and certificates are a few KiB, a bundle of 16 roots fits.
const FILE_MAX_BYTES: u64 = 64 * 1024;
/// Group and others.
const OTHERS: u32 = 0o077;
/// Their right to write.
const OTHERS_WRITE: u32 = 0o022;

/// Makes the state directory (and its parents) with mode 0700, or checks that nobody else may write there.
/// Secrets are in private directories below it, so others may look.
pub(crate) fn state_dir(dir: &Path) -> Result<(), CertError> {
    make(dir)?;
    check(dir, OTHERS_WRITE, "chmod go-w")
}

/// Makes `dir` (and its parents) with mode 0700, or checks that it is private already.
pub(crate) fn private_dir(dir: &Path) -> Result<(), CertError> {
    make(dir)?;
    check_dir(dir)
}

/// Checks that `dir` is a directory of this user with mode 0700.
pub(crate) fn check_dir(dir: &Path) -> Result<(), CertError> {
    check(dir, OTHERS, "chmod 0700")
}

/// A suffix for a file that no other process or thread will take.
pub(crate) fn unique_suffix() -> Result<String, CertError> {
    let mut bytes = [0u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| CertError::crypto("a random file name", e))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

fn make(dir: &Path) -> Result<(), CertError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| CertError::state(dir, e.to_string(), "make it a directory that this process may write to"))
}

fn check(dir: &Path, forbidden: u32, remedy: &str) -> Result<(), CertError> {
    let meta = fs::symlink_metadata(dir)
        .map_err(|e| CertError::state(dir, e.to_string(), "make it a directory that this process may read"))?;
    if !meta.is_dir() {
        return Err(CertError::state(dir, "is not a directory", "move what is there out of the way"));
    }
    check_owner_and_mode(dir, meta.uid(), meta.mode(), forbidden, remedy)
}

/// Reads a private file whole. `None` when it does not exist.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, CertError> {
    read(path, true)
}

/// Reads a public file (a certificate) whole. `None` when it does not exist.
pub(crate) fn read_public(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, CertError> {
    read(path, false)
}

fn read(path: &Path, private: bool) -> Result<Option<Zeroizing<Vec<u8>>>, CertError> {
    let io = |e: std::io::Error| CertError::state(path, e.to_string(), "make it readable for this process");
    // O_NONBLOCK: opening a FIFO that somebody put there must not hang.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut options = OpenOptions::new();
    options.read(true);
    if private {
        options.custom_flags(flags);
    } else {
        options.custom_flags(OFlag::O_NONBLOCK.bits());
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(CertError::state(path, "is not a regular file", "move what is there out of the way"));
    }
    if private {
        check_owner_and_mode(
            path,
            meta.uid(),
            meta.mode(),
            OTHERS,
            "if nobody else can have read it, chmod 0600; else remove",
        )?;
    }
    if meta.len() > FILE_MAX_BYTES {
        return Err(CertError::state(path, format!("is {} bytes long", meta.len()), "restore it from a backup"));
    }
    // Reserved up front: growing would leave copies of the bytes behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX_BYTES as usize + 1));
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(bytes))
}

/// Writes `bytes` to `path` with mode 0600, replacing what was there in one step.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CertError> {
    write(path, bytes, 0o600)
}

/// As [`write_private`], readable for everybody (less the umask): certificates are no secret.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), CertError> {
    write(path, bytes, 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertError> {
    let io = |e: std::io::Error| CertError::state(path, e.to_string(), "make its directory writable for this process");
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new.{}", unique_suffix()?));
    let new = dir.join(name);
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| sync_dir(dir))
        .inspect_err(|_| {
            // Best effort: the error that matters is the one already on its way.
            let _ = fs::remove_file(&new);
        })
        .map_err(io)
}

/// Makes a rename or removal in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// PEM (RFC 7468) of one DER object, in a buffer that is wiped.
pub(crate) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 2 + 128));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

fn check_owner_and_mode(path: &Path, uid: u32, mode: u32, forbidden: u32, remedy: &str) -> Result<(), CertError> {
    let me = geteuid().as_raw();
    if uid != me && uid != 0 {
        return Err(CertError::state(path, format!("belongs to user {uid}, not {me}"), "chown it"));
    }
    if mode & forbidden != 0 {
        let fault = format!("is open to other users (mode {:04o})", mode & 0o7777);
        return Err(CertError::state(path, fault, remedy));
    }
    Ok(())
}
