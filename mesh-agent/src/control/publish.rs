//! Publishing which pods this agent has captured: `captured.<node>.yaml` beside the pods.
//!
//! § No downgrade: other agents tunnel to a pod from the moment they read it here, and to no other. So it is
//! written after the pod's listeners and hooks stand and taken back before they go, and the file is never torn.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

use super::ControlError;
use super::object::capture_state;
use crate::model::workload::{Captured, WorkloadUid};

/// One captured pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The pod.
    pub uid: WorkloadUid,
    /// `namespace/name`, for people who read the file.
    pub name: String,
    /// What its listener offers.
    pub captured: Captured,
}

/// Publishes that the agent of `node` has captured `pods` and no others, replacing what it published before.
///
/// When this returns, whoever watches `dir` sees all of it, also after a crash of the machine. Blocks on the disk.
///
/// # Errors
/// When `node` cannot be part of a file name, or a file cannot be written; what was published before then stands.
pub fn publish_captured(dir: &Path, node: &str, pods: &[Published]) -> Result<(), ControlError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if node.is_empty() || node.starts_with('.') || !node.bytes().all(allowed) {
        return Err(ControlError::NodeName(node.to_owned()));
    }
    let text =
        serde_norway::to_string(&state(node, pods)).map_err(|error| ControlError::Internal(error.to_string()))?;
    let path = dir.join(format!("captured.{node}.yaml"));
    // Hidden and not *.yaml: no source reads it.
    let written = dir.join(format!(".captured.{node}.yaml.tmp"));
    replace(dir, &written, &path, &text).map_err(|source| ControlError::Write { path, source })
}

/// The object that says so.
pub(super) fn state(node: &str, pods: &[Published]) -> Value {
    let mut pods: Vec<&Published> = pods.iter().collect();
    pods.sort_by(|a, b| a.uid.cmp(&b.uid));
    capture_state(node, pods.into_iter().map(|pod| (&*pod.uid, pod.name.clone(), &pod.captured)))
}

fn replace(dir: &Path, written: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(written)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(written, path)?;
    // The rename itself must survive a crash too: open(2), fsync(2).
    File::open(dir)?.sync_all()
}
