//! What is attached where: asked of the kernel, whoever attached it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{DirEntry, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc::EINVAL;

use crate::sys;

/// Every `enum bpf_attach_type` of a cgroup: packets, sockets, addresses, system calls of files and options.
const CGROUP_TYPES: [u32; 22] = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 18, 19, 20, 21, 22, 29, 30, 31, 32, 34];
/// `BPF_SK_LOOKUP`.
const SK_LOOKUP: u32 = 36;
/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];

/// How many programs are attached to the cgroup itself, of every type.
///
/// # Errors
/// When the cgroup cannot be opened or asked.
pub fn attached_to_cgroup(cgroup: &Path) -> Result<u32> {
    let folder = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
    let mut count = 0;
    for attach_type in CGROUP_TYPES {
        match sys::attached_programs(number(&folder), attach_type) {
            Ok(programs) => count += programs,
            // A kernel too old for this type has nothing attached by it.
            Err(error) if error.raw_os_error() == Some(EINVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot ask {}", cgroup.display())),
        }
    }
    Ok(count)
}

/// How many socket look-up programs are attached to a network namespace.
///
/// # Errors
/// When the namespace cannot be asked.
pub fn attached_to_netns(netns: &impl AsFd) -> Result<u32> {
    sys::attached_programs(number(netns), SK_LOOKUP).context("cannot ask the network namespace")
}

fn number(of: &impl AsFd) -> u32 {
    of.as_fd().as_raw_fd().unsigned_abs()
}

/// How many TCX programs are attached to a device of this thread's network namespace, both ways.
///
/// # Errors
/// When the device cannot be asked, or the kernel knows no TCX.
pub fn attached_to_device(device: &str) -> Result<u32> {
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("no device {device}"))?;
    TCX.iter().try_fold(0, |sum, kind| Ok(sum + sys::attached_programs(index, *kind)?))
}

/// Types of maps whose keys are entries and not places: `BPF_MAP_TYPE_{HASH,PERCPU_HASH,LRU_HASH,LPM_TRIE,SOCKHASH}`.
const KEYED: [u32; 5] = [1, 5, 9, 11, 18];

/// What the kernel itself puts into every bpffs.
const NOT_PINS: [&str; 2] = ["maps.debug", "progs.debug"];

/// The pins, and folders of pins, in a folder of a bpffs.
///
/// # Errors
/// When it cannot be read.
pub fn pins(folder: &Path) -> Result<Vec<DirEntry>> {
    let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let entries: std::io::Result<Vec<DirEntry>> = entries.collect();
    let is_pin = |entry: &DirEntry| !NOT_PINS.iter().any(|name| entry.file_name() == *name);
    Ok(entries?.into_iter().filter(is_pin).collect())
}

/// How many entries each map with keys has that is pinned anywhere below `folder`, by file name.
///
/// # Errors
/// When a pin cannot be opened or read.
pub fn map_entries(folder: &Path) -> Result<BTreeMap<String, usize>> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in pins(&folder)? {
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(count) = count_entries(&entry.path())? {
                entries.insert(entry.file_name().to_string_lossy().into_owned(), count);
            }
        }
    }
    Ok(entries)
}

/// `None` for what is no map with keys.
fn count_entries(pin: &Path) -> Result<Option<usize>> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let keys = sys::Keys::open(&path).with_context(|| format!("cannot open {}", pin.display()))?;
    let Some(keys) = keys.filter(|keys| KEYED.contains(&keys.map_type())) else { return Ok(None) };
    let mut count = 0;
    for key in keys {
        key.with_context(|| format!("cannot read {}", pin.display()))?;
        count += 1;
    }
    Ok(Some(count))
}
