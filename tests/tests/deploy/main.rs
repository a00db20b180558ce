//! What `deploy/` gives each process is enough, and nothing of it is too much: an API server that enforces its roles.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used)]

mod kubectl;
mod words;

use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_agent::control::{ApiAccess, Cluster, KubeConfig, Published};
use mesh_agent::model::workload::Captured;
use mesh_agent::snapshot::{Snapshot, SnapshotStore};
use mesh_tests::deployed::{self, Permission};
use mesh_tests::kube_api::ApiServer;
use serde_json::Value;

/// The rest is for a busy machine.
const SOON: Duration = Duration::from_secs(40);
const NAMESPACE: &str = "mesh-agent-system";
const AGENT: &str = "mesh-agent";
const CONTROLLER: &str = "mesh-agent-controller";
/// What the CNI plugin asks while the agent is away: `mesh_image` takes them from the plugin.
const OF_THE_PLUGIN: [(&str, &str); 2] = [("get", "namespaces"), ("get", "pods")];

/// What the agent has logged in this process.
fn log() -> Arc<Mutex<Vec<u8>>> {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    Arc::clone(LOG.get_or_init(|| {
        let log = Arc::default();
        let kept = Kept(Arc::clone(&log));
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || kept.clone()).init();
        log
    }))
}

#[derive(Clone)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line has both.
fn logged(part: &str, other: &str) -> bool {
    let text = String::from_utf8_lossy(&log().lock().unwrap()).into_owned();
    // Quotation marks within a field are escaped.
    text.replace('\\', "").lines().any(|line| line.contains(part) && line.contains(other))
}

/// The token of the pod of `account` on `node`, which is there from now on.
fn token(api: &ApiServer, account: &str, node: &str) -> Result<String> {
    let pod = format!("{account}-{node}");
    api.put(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {NAMESPACE}, name: {pod}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {account}, containers: []}}\n"
    ))?;
    api.issue_token(NAMESPACE, account, &[], Some(&pod), Duration::from_secs(3600))
}

/// An API server with what `deploy/` puts there, and the agent's or the controller's source on it, under its account.
struct Scene {
    api: ApiServer,
    cluster: Cluster,
    store: Arc<SnapshotStore>,
    node: String,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn start(account: &str, node: &str) -> Result<Self> {
        let api = ApiServer::start(vec![TcpListener::bind("127.0.0.1:0")?])?;
        api.install_crds()?;
        for object in [deployed::objects("crds")?, deployed::objects("base")?].concat() {
            let put = ["CustomResourceDefinition", "Namespace", "ServiceAccount", "Role", "Binding", "Policy"];
            if object["kind"].as_str().is_some_and(|kind| put.iter().any(|part| kind.contains(part))) {
                api.put_object(object)?;
            }
        }
        api.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
        api.faults().enforce_roles(true);
        let token = token(&api, account, node)?;
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        ApiServer::write_kubeconfig_of(&kubeconfig, &api.url(0)?, &token)?;
        let mut cluster = Cluster::open(&ApiAccess { kubeconfig: Some(kubeconfig), context: None }).await?;
        let store = Arc::new(SnapshotStore::default());
        let config = KubeConfig::new(node, "cluster.local");
        if account == CONTROLLER {
            tokio::spawn(cluster.status_writer().run(Arc::clone(&store)));
        }
        tokio::spawn(cluster.clone().run(config, Arc::clone(&store), std::future::pending()));
        let scene = Self { api, cluster, store, node: node.to_owned(), _folder: folder };
        scene.until("the first snapshot", |snapshot| snapshot.generation() > 0).await?;
        Ok(scene)
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Result<()> {
        let outcome = tokio::time::timeout(SOON, self.store.until(is_so)).await;
        let found = outcome.ok().map(drop);
        found.with_context(|| format!("{what}: not within {SOON:?}: {:#?}", self.store.load().problems()))
    }

    async fn publish(&self) -> Result<()> {
        self.publish_of(&self.node).await
    }

    async fn publish_of(&self, node: &str) -> Result<()> {
        let publisher = self.cluster.publisher(node)?;
        let captured = Captured { generation: 1, wire: ["h2".into()].into() };
        let pods = vec![Published { uid: "uid".into(), name: "shop/x".to_owned(), captured }];
        tokio::task::spawn_blocking(move || publisher.publish(&pods).map(|()| publisher)).await??;
        Ok(())
    }

    /// Puts an object whose status is to be written, and waits until it is said that it cannot be.
    async fn misses_status(&self, resource: &str, words: &str) -> Result<()> {
        let yaml = match resource.split_once('/').map_or(resource, |(plural, _)| plural) {
            "authorizationpolicies" => "mesh-agent.io/v1alpha1, kind: AuthorizationPolicy, spec: {}",
            "peerpolicies" => "mesh-agent.io/v1alpha1, kind: PeerPolicy, spec: {mode: Strict}",
            "trafficpolicies" => "mesh-agent.io/v1alpha1, kind: TrafficPolicy, spec: {targetRefs: [SERVICE]}",
            "httproutes" => "gateway.networking.k8s.io/v1, kind: HTTPRoute, spec: {parentRefs: [ROUTED]}",
            "grpcroutes" => "gateway.networking.k8s.io/v1, kind: GRPCRoute, spec: {parentRefs: [ROUTED]}",
            "tlsroutes" => "gateway.networking.k8s.io/v1, kind: TLSRoute, spec: {parentRefs: [ROUTED]}",
            "tcproutes" => "gateway.networking.k8s.io/v1, kind: TCPRoute, spec: {parentRefs: [ROUTED]}",
            other => panic!("a status of {other}?"),
        };
        let yaml = yaml.replace("SERVICE", "{kind: Service, name: web}");
        let yaml = yaml.replace("ROUTED", "{group: '', kind: Service, name: web}");
        self.api.put(&format!("{{apiVersion: {yaml}, metadata: {{name: x, namespace: shop}}}}"))?;
        let said = async {
            while !logged(words, "a status cannot be written") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, said).await.ok().with_context(|| format!("nobody said `{words}`"))
    }

    /// Takes one permission away and waits until the agent says which.
    async fn misses(&self, role: &Value, permission: &Permission) -> Result<()> {
        let Permission { verb, resource, .. } = permission;
        if verb == "patch" && resource == "capturestates" {
            // Both are asked for at the first apply; afterwards this one.
            self.publish().await?;
        }
        self.api.put_object(deployed::without(role, permission))?;
        let words = format!("cannot {verb} resource \"{resource}\"");
        match verb.as_str() {
            // The next list is made when the API server has forgotten where the watch was.
            "list" => self.api.faults().restart()?,
            "watch" => self.api.faults().drop_watches(),
            _ if resource.ends_with("/status") => return self.misses_status(resource, &words).await,
            _ => {
                // By a publisher of its own, which knows nothing yet.
                self.publish().await?;
                ensure!(logged(&words, "the CaptureState "), "nobody said `{words}`");
                return Ok(());
            }
        }
        self.until(&words, |snapshot| snapshot.problems().iter().any(|p| p.to_string().contains(&words))).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_role_is_enough() -> Result<()> {
    let scene = Scene::start(AGENT, "enough").await?;
    scene.publish().await?;
    ensure!(scene.api.get("CaptureState", "", "enough").is_some(), "nothing is published");
    ensure!(scene.store.load().problems().is_empty(), "{:#?}", scene.store.load().problems());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_publishes_what_its_own_node_has_captured_and_no_other_does() -> Result<()> {
    const POLICY: (&str, &str) = ("ValidatingAdmissionPolicy", "mesh-agent-capturestates");
    log();
    let scene = Scene::start(AGENT, "own").await?;
    scene.publish().await?;
    scene.publish_of("others").await?;
    ensure!(scene.api.get("CaptureState", "", "others").is_none(), "an agent has published for another node");
    let words = "the node that its token names, and no other";
    ensure!(logged("the CaptureState cannot be applied", words), "it does not say why not");
    ensure!(logged("\"others\" is forbidden: ValidatingAdmissionPolicy", words), "it does not say of which node");
    // By its own doing: roles alone permit it.
    scene.api.remove(POLICY.0, "", POLICY.1)?;
    scene.publish_of("others").await?;
    ensure!(scene.api.get("CaptureState", "", "others").is_some(), "something else has refused it");
    // One that is there is not changed either.
    scene.api.put_object(deployed::object(POLICY.0, POLICY.1)?)?;
    let before = scene.api.get("CaptureState", "", "others");
    let publisher = scene.cluster.publisher("others")?;
    tokio::task::spawn_blocking(move || publisher.publish(&[])).await??;
    ensure!(scene.api.get("CaptureState", "", "others") == before, "an agent has changed another node's");
    Ok(())
}

/// Takes each permission of a role away, but for those that `elsewhere` names.
async fn each_is_missed(account: &'static str, elsewhere: &[(&str, &str)]) -> Result<()> {
    log();
    let role = deployed::object("ClusterRole", account)?;
    let mut permissions = deployed::permissions(&role);
    permissions.retain(|p| !elsewhere.contains(&(p.verb.as_str(), p.resource.as_str())));
    ensure!(permissions.len() > 20, "{permissions:?}");
    // All at once: most of the time is waiting.
    let mut running = tokio::task::JoinSet::new();
    for (number, permission) in permissions.into_iter().enumerate() {
        let role = role.clone();
        running.spawn(async move {
            let misses =
                async { Scene::start(account, &format!("node-{number}")).await?.misses(&role, &permission).await };
            misses.await.with_context(|| format!("without {permission:?}"))
        });
    }
    let mut failed = Vec::new();
    while let Some(done) = running.join_next().await {
        failed.extend(done?.err().map(|error| format!("{error:#}")));
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_permission_of_the_agent_is_missed_by_name() -> Result<()> {
    each_is_missed(AGENT, &OF_THE_PLUGIN).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_permission_of_the_controller_is_missed_by_name() -> Result<()> {
    each_is_missed(CONTROLLER, &[]).await
}
