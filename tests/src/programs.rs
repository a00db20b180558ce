//! Where the programs lie that this workspace builds and the harness starts.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// From now on `name` is looked for in `folder` first; only the first call counts.
pub fn prefer(folder: PathBuf) {
    // A second call would change what is under measurement half-way.
    let _ = FOLDER.set(folder);
}

/// The agent: from `MESH_AGENT_BIN`, else the preferred folder, else beside the running program.
///
/// # Errors
/// When it is not built.
pub fn agent() -> Result<PathBuf> {
    find("mesh-agent", "MESH_AGENT_BIN")
}

/// The sample applications: as [`agent`], from `MESH_SAMPLE_BIN`.
///
/// # Errors
/// When they are not built.
pub fn sample() -> Result<PathBuf> {
    find("mesh-sample", "MESH_SAMPLE_BIN")
}

fn find(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{variable} names {}, which is not there", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe().context("this program has no path")?;
    // Tests run from `deps`, one below the programs.
    let beside = own.ancestors().skip(1).take(2).map(PathBuf::from);
    let found =
        FOLDER.get().cloned().into_iter().chain(beside).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: cargo build --workspace, or set {variable}"))
}
