//! `mesh-agent ca --source kube`: what the authority needs of a cluster, brought together (decision 0011).

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use zeroize::Zeroizing;

use super::serve::Source;
use crate::control::{ApiAccess, Cluster, KubeConfig};
use crate::identity::SystemClock;
use crate::identity::ca_server::{
    Account, AgentLogin, CaSetting, ReviewFuture, RootDir, RootInForce, RootSecret, SecretData, SecretFuture,
    TokenReviewer,
};
use crate::snapshot::SnapshotStore;
use crate::telemetry::CaMetrics;

/// The key under which Istio publishes its roots too.
const ROOTS_KEY: &str = "root-cert.pem";
/// The roots are published again this often: somebody may have removed them.
const PUBLISH_EVERY: Duration = Duration::from_secs(600);
/// Wait after a failure to publish, and to open the root.
const AGAIN: Duration = Duration::from_secs(2);
/// An API server that starts together with the CA is waited for so long.
const PATIENCE: u32 = 15;

/// What `--source kube` needs, checked.
pub(super) struct Settings {
    pub(super) access: ApiAccess,
    pub(super) root_dir: PathBuf,
    pub(super) root_secret: Option<Account>,
    pub(super) publish: Option<Account>,
    pub(super) audience: String,
    pub(super) agents: Account,
}

/// What is there besides.
pub(super) struct Scene<'a> {
    pub(super) trust_domain: &'a str,
    pub(super) store: &'a Arc<SnapshotStore>,
    pub(super) metrics: &'a CaMetrics,
}

/// Opens the root and starts what follows it and the objects, until `stopped`.
pub(super) async fn start(
    settings: Settings,
    scene: Scene<'_>,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<(CaSetting, Source)> {
    let cluster = Cluster::open_for_authority(&settings.access).await?;
    let dir = RootDir::new(settings.root_dir, scene.trust_domain, Arc::new(SystemClock));
    let secret = settings.root_secret.map(|account| ApiSecret { cluster: cluster.clone(), account });
    let root = opened(&dir, secret.as_ref()).await?;
    let failed = scene.metrics.clone();
    tokio::spawn(dir.follow(root.clone(), move || failed.load_failed()));
    tokio::spawn(told(root.clone(), settings.publish, cluster.clone(), scene.metrics.clone()));

    // The CA is no node: no pod is its own.
    let config = KubeConfig::new("", scene.trust_domain);
    let source = tokio::spawn(cluster.clone().run(config, Arc::clone(scene.store), stopped));
    let (store, clock) = (Arc::clone(scene.store), Arc::new(SystemClock));
    let login = AgentLogin::new(Arc::new(Reviewer(cluster)), store, settings.audience, settings.agents, clock);
    Ok((CaSetting::Cluster(root, login), source))
}

/// The root; what the API server fails to say is asked again for a while.
async fn opened(dir: &RootDir, secret: Option<&ApiSecret>) -> anyhow::Result<RootInForce> {
    let secret = secret.map(|secret| secret as &dyn RootSecret);
    let mut attempt = 1;
    loop {
        match dir.open(secret).await {
            Ok(root) => return Ok(root),
            Err(error) if secret.is_none() || attempt >= PATIENCE => return Err(error.into()),
            Err(error) => tracing::warn!(%error, attempt, "no root yet"),
        }
        attempt += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Tells of each root in force: by metrics, and in the ConfigMap.
async fn told(root: RootInForce, place: Option<Account>, cluster: Cluster, metrics: CaMetrics) {
    let mut changed: watch::Receiver<u64> = root.watch();
    // Until the task is dropped with the process.
    loop {
        changed.mark_unchanged();
        let (roots, not_after) = root.summary();
        metrics.root(roots, not_after);
        let mut wait = PUBLISH_EVERY;
        if let Some(Account { namespace, name }) = &place {
            let data = [(ROOTS_KEY.to_owned(), root.roots_pem())].into();
            let applied = cluster.apply_config_map(namespace, name, data).await;
            metrics.published(applied.is_ok());
            if let Err(reason) = applied {
                tracing::warn!(config_map = %format!("{namespace}/{name}"), reason, "the roots cannot be published");
                wait = AGAIN;
            }
        }
        let _ = tokio::time::timeout(wait, changed.changed()).await;
    }
}

/// The API server's TokenReview.
#[derive(Debug)]
struct Reviewer(Cluster);

impl TokenReviewer for Reviewer {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> ReviewFuture<'a> {
        Box::pin(self.0.review_token(token, audience))
    }
}

/// The root's Secret at the API server.
#[derive(Debug)]
struct ApiSecret {
    cluster: Cluster,
    account: Account,
}

impl RootSecret for ApiSecret {
    fn name(&self) -> String {
        format!("{}/{}", self.account.namespace, self.account.name)
    }

    fn read(&self) -> SecretFuture<'_, Option<SecretData>> {
        Box::pin(async move {
            let found = self.cluster.secret(&self.account.namespace, &self.account.name).await?;
            Ok(found.map(|data| data.into_iter().map(|(key, value)| (key, Zeroizing::new(value))).collect()))
        })
    }

    fn create(&self, data: SecretData) -> SecretFuture<'_, bool> {
        Box::pin(async move {
            let data = data.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
            self.cluster.create_secret(&self.account.namespace, &self.account.name, data).await
        })
    }
}
