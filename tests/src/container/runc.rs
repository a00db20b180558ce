//! One container under runc: started from its configuration, deleted by its id.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::pod::Pod;
use crate::process::Process;

/// A running container.
#[derive(Debug)]
pub struct Container {
    // Dropped in this order: the container goes by its id, and then its runtime ends by itself.
    _id: Id,
    process: Process,
}

impl Container {
    /// Starts it in `pod`'s cgroup. `folder` is for its configuration and for the runtime's state.
    ///
    /// # Errors
    /// What the system says; what runc says is in the container's own error output.
    pub fn start(id: String, pod: &Pod, config: &Value, folder: &Path) -> Result<Self> {
        let (bundle, state) = (folder.join(&id), folder.join("runc"));
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut command = Command::new("runc");
        command.arg("--root").arg(&state).arg("run").arg("--bundle").arg(&bundle).arg(&id);
        let id = Id { id, state };
        let process = pod.spawn(&id.id, command).context("package runc")?;
        Ok(Self { _id: id, process })
    }

    /// The runtime, whose output and exit code are the container's.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The same, to be waited for.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

#[derive(Debug)]
struct Id {
    id: String,
    state: PathBuf,
}

impl Drop for Id {
    fn drop(&mut self) {
        let mut delete = Command::new("runc");
        delete.arg("--root").arg(&self.state).args(["delete", "--force", &self.id]);
        // One that is not there any more is what is wanted.
        match delete.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("harness: runc: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => eprintln!("harness: runc does not start: {error}"),
        }
    }
}
