//! The Kubernetes source against an API server of the harness, which fails on demand: what is known when, and what
//! stays when the API server does not. What any API server must show is in `kube_anywhere`.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_agent::control::{ApiAccess, Cluster, KindHealth, KubeConfig, Published};
use mesh_agent::model::workload::Captured;
use mesh_agent::snapshot::{Snapshot, SnapshotStore};
use mesh_tests::kube_api::ApiServer;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A change must be visible within a second; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// After an outage the next attempt may be some seconds away.
const RECOVERED: Duration = Duration::from_secs(40);

/// An API server and a source that reads it.
struct Scene {
    api: ApiServer,
    cluster: Cluster,
    store: Arc<SnapshotStore>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<()>>,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// Starts a source for an API server that has what `prepare` puts there.
    async fn start(prepare: impl FnOnce(&ApiServer) -> Result<()>) -> Result<Self> {
        let api = ApiServer::start(vec![TcpListener::bind("127.0.0.1:0")?])?;
        api.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
        prepare(&api)?;
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig, &api.url(0)?)?;
        let cluster = Cluster::open(&ApiAccess { kubeconfig: Some(kubeconfig), context: None }).await?;
        let store = Arc::new(SnapshotStore::default());
        let config = KubeConfig::new("node-a", "cluster.local");
        let (stop, stopped) = oneshot::channel();
        let running = cluster.clone().run(config, Arc::clone(&store), async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(async { running.await.map_err(anyhow::Error::from) });
        Ok(Self { api, cluster, store, stop: Some(stop), task, _folder: folder })
    }

    /// With every kind served, and one pod `x`.
    async fn with_a_pod() -> Result<Self> {
        let scene = Self::start(|api| {
            api.install_crds()?;
            api.put(&pod("x", "10.0.0.1"))
        })
        .await?;
        scene.until("the first snapshot", SOON, |snapshot| names(snapshot) == ["x"]).await?;
        Ok(scene)
    }

    async fn until(&self, what: &str, limit: Duration, is_so: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>> {
        let outcome = tokio::time::timeout(limit, self.store.until(is_so)).await;
        outcome.ok().with_context(|| format!("not within {limit:?}: {what}: {:#?}", self.store.load().problems()))
    }

    /// How the watch of pods is doing.
    fn pods(&self) -> KindHealth {
        self.cluster.health().into_iter().find(|health| health.kind == "Pod").unwrap()
    }

    async fn end(mut self) -> Result<()> {
        self.stop.take().unwrap().send(()).ok().context("the source has ended by itself")?;
        self.task.await?
    }
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}}}\n\
         spec: {{nodeName: node-a, containers: [{{name: c, image: i}}]}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.workloads().iter().map(|workload| &*workload.name).collect()
}

fn has_problem(snapshot: &Snapshot, part: &str) -> bool {
    snapshot.problems().iter().any(|problem| problem.to_string().contains(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_while_a_kind_may_not_be_listed() -> Result<()> {
    let scene = Scene::start(|api| {
        api.install_crds()?;
        api.put(&pod("x", "10.0.0.1"))?;
        api.faults().forbid("list", "peerpolicies");
        Ok(())
    })
    .await?;
    let waited = scene.until("a snapshot", Duration::from_secs(2), |snapshot| snapshot.generation() > 0).await;
    ensure!(waited.is_err(), "published without its PeerPolicies");
    scene.api.faults().permit_all();
    scene.until("all of it", RECOVERED, |snapshot| names(snapshot) == ["x"]).await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_empties_nothing_and_is_followed_again() -> Result<()> {
    let scene = Scene::with_a_pod().await?;
    scene.api.faults().refuse_connections()?;
    let away = scene.until("it says so", SOON, |snapshot| has_problem(snapshot, "Namespace, Node, Pod")).await?;
    ensure!(names(&away) == ["x"], "{:?}", names(&away));
    ensure!(!scene.pods().connected, "{:?}", scene.pods());
    // What happens meanwhile is not lost.
    scene.api.put(&pod("y", "10.0.0.2"))?;
    scene.api.remove("Pod", "shop", "x")?;
    scene.api.faults().listen()?;
    let back = |snapshot: &Snapshot| names(snapshot) == ["y"] && snapshot.problems().is_empty();
    scene.until("it is followed again", RECOVERED, back).await?;
    ensure!(scene.pods().connected, "{:?}", scene.pods());
    ensure!(scene.pods().relists == 0, "not resumed where it stopped");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_watches_are_listed_anew_without_a_moment_between() -> Result<()> {
    let scene = Scene::with_a_pod().await?;
    // Every generation that is published has the pod that stays.
    let (store, mut changed) = (Arc::clone(&scene.store), scene.store.watch());
    let witness = tokio::spawn(async move {
        let mut holes = 0;
        while changed.changed().await.is_ok() {
            let snapshot = store.load();
            holes += usize::from(!names(&snapshot).contains(&"x"));
            if names(&snapshot).contains(&"last") {
                break;
            }
        }
        holes
    });
    for round in 0..3 {
        scene.api.faults().refuse_connections()?;
        scene.api.put(&pod(&format!("y{round}"), &format!("10.0.1.{}", round + 1)))?;
        if round > 0 {
            scene.api.remove("Pod", "shop", &format!("y{}", round - 1))?;
        }
        scene.api.faults().restart()?;
        let expected = ["x".to_owned(), format!("y{round}")];
        scene.until("what happened before the restart", RECOVERED, |snapshot| names(snapshot) == expected).await?;
    }
    ensure!(scene.pods().relists > 0, "never listed again");
    scene.api.put(&pod("last", "10.0.0.3"))?;
    ensure!(tokio::time::timeout(SOON, witness).await?? == 0, "a snapshot without the pod that was always there");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_not_served_is_named_and_holds_nothing_up() -> Result<()> {
    let route = "httproutes.gateway.networking.k8s.io";
    let scene = Scene::start(|api| {
        api.install_crds()?;
        api.remove("CustomResourceDefinition", "", route)?;
        api.put(&pod("x", "10.0.0.1"))
    })
    .await?;
    let snapshot = scene.until("a snapshot", SOON, |snapshot| names(snapshot) == ["x"]).await?;
    ensure!(has_problem(&snapshot, route), "{:#?}", snapshot.problems());
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_changes_is_few_snapshots() -> Result<()> {
    let scene = Scene::with_a_pod().await?;
    let before = scene.store.load().generation();
    (0..500).try_for_each(|at| scene.api.put(&pod("y", &format!("10.2.{}.{}", at / 250, at % 250 + 1))))?;
    scene.api.put(&pod("z", "10.0.0.7"))?;
    let after = scene.until("the last change", SOON, |snapshot| names(snapshot) == ["x", "y", "z"]).await?;
    let published = after.generation() - before;
    ensure!(published <= 100, "{published} snapshots for 501 changes");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_are_published_as_one_object_of_the_node_also_after_an_outage() -> Result<()> {
    let scene = Scene::with_a_pod().await?;
    let publisher = Arc::new(scene.cluster.publisher("node-a")?);
    let publish = |generation: Option<u64>| {
        let publisher = Arc::clone(&publisher);
        let captured = |generation| Captured { generation, wire: ["h2".into()].into() };
        let pods: Vec<Published> = generation
            .map(|generation| Published {
                uid: "uid-x".into(),
                name: "shop/x".to_owned(),
                captured: captured(generation),
            })
            .into_iter()
            .collect();
        tokio::task::spawn_blocking(move || publisher.publish(&pods))
    };
    let seen = |generation: Option<u64>| {
        move |snapshot: &Snapshot| {
            let pod = snapshot.workload("uid-x").and_then(|pod| pod.captured.as_ref());
            pod.map(|captured| captured.generation) == generation
        }
    };
    scene.api.put("apiVersion: v1\nkind: Node\nmetadata: {name: node-a, uid: uid-of-the-node}\n")?;
    publish(Some(3)).await??;
    let object = scene.api.get("CaptureState", "", "node-a").context("it is there when publish returns")?;
    ensure!(object["spec"]["pods"][0]["uid"] == "uid-x", "{object}");
    ensure!(object["metadata"]["managedFields"][0]["manager"] == "mesh-agent.io/node-a", "{object}");
    let owner = &object["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "Node" && owner["uid"] == "uid-of-the-node", "{object}");
    scene.until("it is read back", SOON, seen(Some(3))).await?;
    scene.api.faults().refuse_connections()?;
    publish(None).await??;
    publish(Some(4)).await??;
    scene.api.faults().listen()?;
    scene.until("the newest is published", RECOVERED, seen(Some(4))).await?;
    publish(None).await??;
    scene.until("it is withdrawn", SOON, seen(None)).await?;
    ensure!(scene.api.list("CaptureState").len() == 1, "{:?}", scene.api.list("CaptureState"));
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_of_an_agent_that_was_succeeded_does_not_undo_its_successors() -> Result<()> {
    let scene = Scene::with_a_pod().await?;
    let agents = [scene.cluster.publisher("node-a")?, scene.cluster.publisher("node-a")?].map(Arc::new);
    let publish = |agent: usize, generation: u64| {
        let publisher = Arc::clone(&agents[agent]);
        let captured = Captured { generation, wire: ["h2".into()].into() };
        let pods = [Published { uid: "uid-x".into(), name: "shop/x".to_owned(), captured }];
        tokio::task::spawn_blocking(move || publisher.publish(&pods))
    };
    publish(0, 1).await??;
    publish(1, 2).await??;
    ensure!(scene.api.faults().answered(409) == 0, "refused although nobody else had written");
    // An agent that is succeeded has this one attempt under way, and ends.
    publish(0, 3).await??;
    ensure!(scene.api.faults().answered(409) == 1, "the older agent's attempt was not refused");
    scene
        .until("one that lives on tries again, and prevails", RECOVERED, |snapshot| {
            let pod = snapshot.workload("uid-x").and_then(|pod| pod.captured.as_ref());
            pod.is_some_and(|captured| captured.generation == 3)
        })
        .await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_the_way_out_is_named() -> Result<()> {
    let said = |access: ApiAccess| async move { Cluster::open(&access).await.err().map(|error| error.to_string()) };
    let neither = said(ApiAccess::default()).await.context("there is no cluster here")?;
    ensure!(neither.contains("--kubeconfig FILE") && neither.contains("dir:PATH"), "{neither}");
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("none");
    let named = said(ApiAccess { kubeconfig: Some(missing.clone()), context: None }).await.context("no file")?;
    ensure!(named.contains(&missing.display().to_string()), "{named}");
    let file = folder.path().join("kubeconfig");
    ApiServer::write_kubeconfig_of(&file, "http://127.0.0.1:1", "token")?;
    let other = ApiAccess { kubeconfig: Some(file), context: Some("other".to_owned()) };
    let named = said(other).await.context("no such context")?;
    ensure!(named.contains("other") && named.contains("get-contexts"), "{named}");
    Ok(())
}
