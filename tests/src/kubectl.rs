//! kubectl, against one API server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kube_api::ApiServer;
use crate::said::Said;

/// kubectl with a kubeconfig and a cache of its own.
#[derive(Debug)]
pub struct Kubectl {
    folder: PathBuf,
}

impl Kubectl {
    /// For the server at `url`; its files are in `folder`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new(api: &ApiServer, url: &str, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        api.write_kubeconfig(&folder.join("config"), url)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The command with these arguments, to be started elsewhere.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.folder.join("config")).arg("--cache-dir").arg(self.folder.join("cache"));
        command.args(arguments).env_remove("KUBECONFIG").env("HOME", &self.folder);
        command
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// When it does not start.
    pub fn says(&self, arguments: &[&str]) -> Result<Said> {
        Said::by(self.command(arguments)).context("kubectl; `cargo xtask setup` says where it comes from")
    }

    /// Runs it; gives the lines that it printed.
    ///
    /// # Errors
    /// When it fails; with its words.
    pub fn run(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let Said { code, out, err } = self.says(arguments)?;
        ensure!(code == 0, "kubectl {arguments:?} ended with {code}: {out}{err}");
        Ok(out.lines().map(str::to_owned).collect())
    }
}
