//! Where the objects come from: `--source`, of every command that reads them.

use std::path::{Path, PathBuf};

use crate::control::ApiAccess;

/// Where the objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A watched directory.
    Dir(PathBuf),
    /// An API server.
    Kube {
        /// How it is reached.
        access: ApiAccess,
        /// Whether pods' `mesh-agent.io/netns` is believed.
        trust_netns: bool,
    },
}

impl Source {
    /// Reads `dir:PATH`, `kube` or `kube:CONTEXT`.
    ///
    /// # Errors
    /// With the option's name and the way out: a form that is none of these, or a directory that is not there.
    pub fn parse(value: &str, kubeconfig: Option<PathBuf>, trust_netns: bool) -> Result<Self, String> {
        let kube = |context: Option<&str>| Self::Kube {
            access: ApiAccess { kubeconfig, context: context.map(str::to_owned) },
            trust_netns,
        };
        match value.split_once(':') {
            None if value == "kube" => Ok(kube(None)),
            Some(("kube", context)) if !context.is_empty() => Ok(kube(Some(context))),
            Some(("dir", path)) if !path.is_empty() => match Path::new(path).is_dir() {
                true => Ok(Self::Dir(path.into())),
                false => Err(format!("--source `{value}`: {path} is not a directory")),
            },
            _ => Err(format!("--source `{value}`: expected dir:PATH, kube or kube:CONTEXT")),
        }
    }
}
