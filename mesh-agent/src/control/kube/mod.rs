//! The API server as a source: objects → [`Event`]s → what is kept → snapshot (decision 0009).
//!
//! `watch` lists and watches one kind each, `store` keeps what they say, `increment` compiles what that changes, and
//! [`Cluster::run`] publishes it. The API server may be away for as long as it likes: what was known stays in force.

mod ask;
mod authority;
mod backoff;
mod connect;
mod dirty;
mod health;
mod increment;
mod index;
mod intern;
mod kept;
mod operator;
mod publish;
mod status;
mod store;
mod watch;

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as values};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::ask::{Asked, asked_by_labels};
pub use self::authority::{ReviewedToken, Unreviewed};
use self::health::Health;
pub use self::health::{Compilations, KindHealth};
use self::intern::Interner;
pub use self::operator::{AgentPod, Operator, Ran, Resource, Unreached};
pub use self::publish::Publisher as CapturePublisher;
pub use self::status::{CONTROLLER, StatusWriter, StatusWrites, StatusWritesReader};
use self::store::Store;
use self::watch::Watched;
use super::object::{Key, Kind, Mistake, Object, Reading};
use super::{ControlError, Publisher};
use crate::model::identity::Identity;
use crate::model::local::LocalPods;
use crate::snapshot::{SnapshotParts, SnapshotStore};

/// How long after the first event a batch is closed, at least: as for the directory source.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// And at most: a change must be visible within a second or little more.
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// Events that wait for the next batch; the watches wait when there are more.
const QUEUE: usize = 8_192;

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// A kubeconfig file; without one, a context is looked for where kubectl looks, else the pod's service account
    /// is used.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; without one its current context.
    pub context: Option<String>,
}

/// What the Kubernetes source must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// Name of the node this agent serves.
    pub node: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Where the node's DNS cache listens.
    pub node_local_dns: Option<IpAddr>,
    /// Whether pods' `mesh-agent.io/netns` is believed.
    pub trust_netns: bool,
}

impl KubeConfig {
    /// For `node` (empty: for none, so that no pod is its own), without a DNS cache and without belief in annotations.
    #[must_use]
    pub fn new(node: impl Into<String>, trust_domain: impl Into<String>) -> Self {
        Self { node: node.into(), trust_domain: trust_domain.into(), node_local_dns: None, trust_netns: false }
    }
}

/// What a watch has to say.
#[derive(Debug)]
enum Event {
    /// All objects of a kind.
    Listed(Kind, Vec<(Key, Reading)>),
    /// The API server does not serve the kind.
    Absent(Kind),
    /// An object is new or has changed.
    Put(Key, Reading),
    /// An object is gone.
    Removed(Key),
    /// The kind is being watched.
    Connected(Kind),
    /// Why the kind cannot be read at present.
    Away(Kind, String),
    /// What the node itself knows of its pods.
    Local(Arc<LocalPods>),
}

/// An API server.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    health: Arc<Health>,
    statuses: Option<status::Tee>,
    local: Option<values::Receiver<Arc<LocalPods>>>,
    kinds: Arc<[Kind]>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads how the API server is reached; does not speak to it yet.
    ///
    /// # Errors
    /// When the kubeconfig or the service account cannot be read, with the way out.
    pub async fn open(access: &ApiAccess) -> Result<Self, ControlError> {
        Self::of_kinds(access, watched()).await
    }

    /// As [`Self::open`], for the certificate authority: it watches what decides which node has which enrolled pods,
    /// and nothing else.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_for_authority(access: &ApiAccess) -> Result<Self, ControlError> {
        // A PeerPolicy can keep a pod in the mesh that asks to be out.
        Self::of_kinds(access, vec![Kind::Namespace, Kind::Pod, Kind::PeerPolicy]).await
    }

    async fn of_kinds(access: &ApiAccess, kinds: Vec<Kind>) -> Result<Self, ControlError> {
        let client = connect::client(access).await?;
        Ok(Self { client, health: Arc::new(Health::new(&kinds)), kinds: kinds.into(), statuses: None, local: None })
    }

    /// How the watch of each kind is doing.
    #[must_use]
    pub fn health(&self) -> Vec<KindHealth> {
        self.health.read()
    }

    /// What compiling has cost.
    #[must_use]
    pub fn compilations(&self) -> Compilations {
        self.health.compilations()
    }

    /// What publishes the captures of `node`.
    ///
    /// # Errors
    /// Outside a tokio runtime.
    pub fn publisher(&self, node: &str) -> Result<CapturePublisher, ControlError> {
        CapturePublisher::start(self.client.clone(), node)
    }

    /// The same, with what the node itself knows put over what the API server says of its pods.
    #[must_use]
    pub fn with_local(self, local: values::Receiver<Arc<LocalPods>>) -> Self {
        Self { local: Some(local), ..self }
    }

    /// What writes the statuses of routes and policies while this source runs, from what it publishes. At most one for
    /// a source: the second takes the place of the first.
    pub fn status_writer(&mut self) -> StatusWriter {
        let (writer, tee) = StatusWriter::new(self.client.clone());
        self.statuses = Some(tee);
        writer
    }

    /// Publishes the first snapshot once every kind has been listed, then one for each batch of changes, until
    /// `shutdown` completes.
    ///
    /// # Errors
    /// When the trust domain is none. An API server that does not answer is no error.
    pub async fn run(
        self,
        config: KubeConfig,
        snapshots: Arc<SnapshotStore>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ControlError> {
        Identity::new(&config.trust_domain, "namespace", "account")?;
        let (events, mut inbox) = mpsc::channel(QUEUE);
        let mut watches = JoinSet::new();
        let interner = Arc::<Interner>::default();
        for kind in self.kinds.iter().copied() {
            let (client, events, health) = (self.client.clone(), events.clone(), Arc::clone(&self.health));
            let (trust_netns, statuses, interner) = (config.trust_netns, self.statuses.clone(), Arc::clone(&interner));
            watches.spawn(Watched { kind, client, events, health, interner, trust_netns, statuses }.run());
        }
        let mut store = Store::new(&self.kinds, &config.node, &config.trust_domain);
        if let Some(mut local) = self.local {
            store.apply(Event::Local(Arc::clone(&local.borrow_and_update())));
            watches.spawn(follow(local, events));
        }
        let mut publisher = Publisher::new(snapshots);
        let mut pause = DEBOUNCE;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let batch = tokio::select! {
                () = &mut shutdown => return Ok(()),
                batch = next_batch(&mut inbox, pause) => batch,
                ended = watches.join_next() => {
                    return Err(ControlError::Internal(format!("a watch has ended: {ended:?}")));
                }
            };
            let started = Instant::now();
            // Compiling takes up to seconds for a large cluster: not on this runtime's threads.
            let work = tokio::task::spawn_blocking(move || {
                batch.into_iter().for_each(|event| store.apply(event));
                let parts = store.compile();
                (store, parts)
            });
            let (returned, parts) = work.await.map_err(|error| ControlError::Internal(error.to_string()))?;
            store = returned;
            match parts {
                Some(parts) => {
                    publisher.publish(SnapshotParts { node_local_dns: config.node_local_dns, ..parts });
                    self.health.compiled(started);
                }
                None if !store.is_complete() => publisher.log(&store.standing_problems()),
                None => {}
            }
            pause = started.elapsed().clamp(DEBOUNCE, DEBOUNCE_MAX);
        }
    }
}

/// Tells of what the node itself knows, whenever it changes. Ends only with the source.
async fn follow(mut local: values::Receiver<Arc<LocalPods>>, events: mpsc::Sender<Event>) {
    while local.changed().await.is_ok() {
        let now = Arc::clone(&local.borrow_and_update());
        if events.send(Event::Local(now)).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

/// The kinds that something is compiled from: the others would cost a watch per node and a permission for nothing.
fn watched() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::ServiceAccount | Kind::ReferenceGrant)).collect()
}

/// The next event and all that come within `pause` of it; bounded by the queue.
async fn next_batch(inbox: &mut mpsc::Receiver<Event>, pause: Duration) -> Vec<Event> {
    let Some(first) = inbox.recv().await else {
        // The watches have ended, which the caller sees for itself.
        return std::future::pending().await;
    };
    tokio::time::sleep(pause).await;
    let mut batch = vec![first];
    while batch.len() <= QUEUE
        && let Ok(event) = inbox.try_recv()
    {
        batch.push(event);
    }
    batch
}
