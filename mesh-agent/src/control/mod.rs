//! Sources of Kubernetes objects → model → snapshot.
//!
//! `dir` sees that a file changed, `files` keeps what the files say; `kube` does both for an API server. `keep` says
//! what is kept of an object between two versions, `object` reads one, `compile` joins them into snapshot parts, and
//! [`run`] and [`Cluster::run`] publish those when they differ. Everything but `dir`, `kube` and `publish` is pure.
//! Nothing here decides about a connection; nothing of the data path is imported.

mod compile;
mod dir;
mod document;
mod files;
mod keep;
mod kube;
mod object;
mod publish;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use self::dir::Watcher;
pub use self::kube::{
    AgentPod, ApiAccess, Asked, CONTROLLER, CapturePublisher, Cluster, Compilations, KindHealth, KubeConfig, Operator,
    Ran, Resource, ReviewedToken, StatusWriter, StatusWrites, StatusWritesReader, Unreached, Unreviewed,
    asked_by_labels,
};
pub use self::publish::{Published, publish_captured};
use self::source::DirSource;
use crate::model::identity::{Identity, IdentityError};
use crate::model::problem::Problem;
use crate::snapshot::{SnapshotParts, SnapshotStore};

/// The CustomResourceDefinitions of our kinds, as objects for the API server.
#[must_use]
pub fn crds() -> Vec<serde_json::Value> {
    object::crds()
}

/// What the directory source must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirConfig {
    /// The watched directory. Its subdirectories are not read.
    pub path: PathBuf,
    /// Name of the node this agent serves.
    pub node: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Where the node's DNS cache listens.
    pub node_local_dns: Option<IpAddr>,
}

/// Why a source cannot be run, or a publication not be made. Mistakes in objects are [`Problem`]s, never errors.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The operator's mistake: a trust domain that no SPIFFE id can have.
    #[error("trust domain: {0}")]
    TrustDomain(#[from] IdentityError),
    /// The operator's mistake: the directory is not there, or may not be read.
    #[error("cannot watch directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The machine's: `captured.<node>.yaml` could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The operator's mistake: a node name that cannot be part of a file name.
    #[error("`{0}` is not a node name: lower-case letters, digits, `-` and `.`")]
    NodeName(String),
    /// The operator's mistake: no kubeconfig and no service account says how the API server is reached.
    #[error("{0}")]
    ApiAccess(String),
    /// Ours: a fault of the agent itself.
    #[error("internal: {0}")]
    Internal(String),
}

/// Reads the directory, publishes the first snapshot, and then one for each change until `shutdown` completes.
///
/// The first snapshot is published even when the directory is empty, so its generation is at least 1. When the
/// directory vanishes later, the last snapshot stays in force and says so among its problems.
///
/// # Errors
/// When the directory cannot be watched at the start, or the trust domain is none.
pub async fn run(
    config: DirConfig,
    store: Arc<SnapshotStore>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControlError> {
    Identity::new(&config.trust_domain, "namespace", "account")?;
    let directory_error = |source| ControlError::Directory { path: config.path.clone(), source };
    let mut watcher = Watcher::open(&config.path).map_err(directory_error)?;
    let mut source = DirSource::new(config.path.clone(), &config.node, &config.trust_domain);
    let mut publisher = Publisher::new(store);

    let mut shutdown = std::pin::pin!(shutdown);
    let mut batch = dir::Batch::rescan();
    loop {
        // Reading and compiling take up to seconds for a large directory: not on this runtime's threads.
        let now = Instant::now().into_std();
        let work = tokio::task::spawn_blocking(move || {
            source.absorb(batch, now);
            let parts = source.compile();
            (source, parts)
        });
        let (returned, parts) = work.await.map_err(|error| ControlError::Internal(error.to_string()))?;
        source = returned;
        if let Some(parts) = parts {
            publisher.publish(SnapshotParts { node_local_dns: config.node_local_dns, ..parts });
        }

        let deadline = source.deadline().map(Instant::from_std);
        batch = tokio::select! {
            () = &mut shutdown => return Ok(()),
            batch = watcher.next() => batch,
            () = sleep_until(deadline) => dir::Batch::default(),
        };
    }
}

/// Never completes without a deadline.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Publishes what differs from what was published last, and logs each problem as it comes and goes.
struct Publisher {
    store: Arc<SnapshotStore>,
    last: Option<SnapshotParts>,
    known: BTreeSet<Problem>,
}

impl Publisher {
    fn new(store: Arc<SnapshotStore>) -> Self {
        Self { store, last: None, known: BTreeSet::new() }
    }

    fn publish(&mut self, parts: SnapshotParts) {
        if self.last.as_ref() == Some(&parts) {
            return;
        }
        if self.last.as_ref().is_none_or(|last| last.problems != parts.problems) {
            self.log(&parts.problems);
        }
        self.last = Some(parts.clone());
        self.store.publish(self.store.load().next(parts));
    }

    fn log(&mut self, problems: &[Problem]) {
        let now: BTreeSet<Problem> = problems.iter().cloned().collect();
        for problem in now.difference(&self.known) {
            let Problem { location, object, field, reason, effect } = problem;
            warn!(%location, %object, %field, %reason, effect = effect.as_str(), "mistake in the configuration");
        }
        for problem in self.known.difference(&now) {
            let Problem { location, object, field, .. } = problem;
            info!(%location, %object, %field, "mistake mended");
        }
        self.known = now;
    }
}
