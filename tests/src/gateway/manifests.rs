//! Where manifests come from: ours lie in `tests/gateway`; upstream's are replayed where they are on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Our manifests.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gateway");
/// Where upstream's lie beside the repository.
const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/gateway-api");
/// Names the folder of upstream's manifests.
pub const VARIABLE: &str = "GATEWAY_API_DIR";

/// Whose manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The project's own.
    Own,
    /// Those of the `kubernetes-sigs/gateway-api` tree in this folder.
    Upstream(PathBuf),
}

impl Source {
    /// Ours, and upstream's where they are.
    ///
    /// # Errors
    /// When the variable names a folder without them.
    pub fn all() -> Result<Vec<Self>> {
        let mut sources = vec![Self::Own];
        let given = std::env::var_os(VARIABLE).map(PathBuf::from);
        let folder = given.clone().unwrap_or_else(|| BESIDE.into());
        let there = folder.join("conformance/mesh/manifests.yaml").is_file();
        ensure!(there || given.is_none(), "{VARIABLE} names {}, which is no gateway-api tree", folder.display());
        if there {
            sources.push(Self::Upstream(folder));
        }
        Ok(sources)
    }

    /// In reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Upstream(_) => "upstream",
        }
    }

    /// The base objects.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn base(&self) -> Result<String> {
        match self {
            Self::Own => read(&Path::new(OWN).join("base.yaml")),
            Self::Upstream(folder) => read(&folder.join("conformance/mesh/manifests.yaml")),
        }
    }

    /// The manifest of a test; `None` where this source has none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn manifest(&self, stem: &str) -> Result<Option<String>> {
        let file = match self {
            Self::Own => Path::new(OWN).join(format!("{stem}.yaml")),
            Self::Upstream(folder) => folder.join(format!("conformance/tests/mesh/{stem}.yaml")),
        };
        if *self != Self::Own && !file.is_file() {
            return Ok(None);
        }
        read(&file).map(Some)
    }
}

/// Our own base objects that no upstream test needs.
///
/// # Errors
/// When the file cannot be read.
pub fn more() -> Result<String> {
    read(&Path::new(OWN).join("more.yaml"))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
