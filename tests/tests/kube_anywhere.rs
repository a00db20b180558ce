//! What the agent and the controller make of any API server: one of the harness, or the one that
//! `MESH_TEST_KUBECONFIG` names. Nothing here reaches into a server. Cases with faults are in `kube_source` and
//! `kube_status`, which need the harness's own.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use mesh_agent::control::{ApiAccess, CONTROLLER, Cluster, KubeConfig, Published};
use mesh_agent::model::workload::Captured;
use mesh_agent::snapshot::{Snapshot, SnapshotStore};
use mesh_tests::kube_target::{Target, VARIABLE, harness};
use serde_json::Value;
use tokio::task::JoinSet;

/// For a busy machine, and a server that has other work.
const SOON: Duration = Duration::from_secs(30);
/// What is put at once.
const AT_ONCE: usize = 16;
const POD: (&str, &str) = ("v1", "Pod");
const POLICY: (&str, &str) = ("mesh-agent.io/v1alpha1", "AuthorizationPolicy");
const CAPTURES: (&str, &str) = ("mesh-agent.io/v1alpha1", "CaptureState");
const ROUTE: (&str, &str) = ("gateway.networking.k8s.io/v1", "HTTPRoute");

/// A target, and a source and a controller that read it.
struct Scene {
    target: Target,
    cluster: Cluster,
    store: Arc<SnapshotStore>,
    _running: JoinSet<()>,
}

impl Scene {
    async fn start(target: Target) -> Result<Self> {
        let kubeconfig = Some(target.kubeconfig().to_owned());
        let access = ApiAccess { kubeconfig, context: None };
        let config = KubeConfig::new(target.node(), "cluster.local");
        let mut running = JoinSet::new();
        let (cluster, store) = (Cluster::open(&access).await?, Arc::new(SnapshotStore::default()));
        let source = cluster.clone().run(config, Arc::clone(&store), std::future::pending());
        running.spawn(async move { panic!("the source has ended: {:?}", source.await) });
        let mut controller = Cluster::open(&access).await?;
        let (writer, seen) = (controller.status_writer(), Arc::new(SnapshotStore::default()));
        let config = KubeConfig::new("", "cluster.local");
        running.spawn(async move {
            let source = controller.run(config, Arc::clone(&seen), std::future::pending());
            tokio::select! {
                ended = source => panic!("the controller's source has ended: {ended:?}"),
                () = writer.run(seen) => panic!("the writer has ended"),
            }
        });
        Ok(Self { target, cluster, store, _running: running })
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>> {
        let outcome = tokio::time::timeout(SOON, self.store.until(is_so)).await;
        outcome.ok().with_context(|| format!("not within {SOON:?}: {what}: {:#?}", self.store.load().problems()))
    }

    /// Waits until a status is as `is_so` says.
    async fn until_status(&self, kind: (&str, &str), name: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = self.target.get(kind, true, name).await?.unwrap_or_default();
                if is_so(&last["status"]) {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = tokio::time::timeout(SOON, wait).await;
        outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not within {SOON:?}"))).with_context(|| format!("{last:#}"))?;
        Ok(last)
    }

    /// The names of this test's pods; a cluster may have others.
    fn names(&self, snapshot: &Snapshot) -> BTreeSet<String> {
        let own = snapshot.workloads().iter().filter(|pod| *pod.namespace == *self.target.namespace());
        own.map(|pod| pod.name.to_string()).collect()
    }

    fn pod(&self, name: &str, ip: &str) -> String {
        let (namespace, node) = (self.target.namespace(), self.target.node());
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n\
             status: {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n"
        )
    }

    fn policy(&self, rules: &str) -> String {
        let namespace = self.target.namespace();
        format!(
            "---\napiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: {namespace}}}\nspec: {{rules: {rules}}}\n"
        )
    }

    /// How many policies of this test are in force.
    fn policies(&self, snapshot: &Snapshot) -> usize {
        snapshot.policies().iter().filter(|policy| *policy.namespace == *self.target.namespace()).count()
    }
}

/// Runs `body` against a target and takes away what it has put, whatever becomes of it.
async fn anywhere(body: impl AsyncFnOnce(&Scene) -> Result<()>) -> Result<()> {
    let scene = Scene::start(Target::start().await?).await?;
    let outcome = body(&scene).await;
    let cleaned = scene.target.clean().await;
    outcome.and(cleaned)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_come_change_and_go() -> Result<()> {
    anywhere(async |scene| {
        let target = &scene.target;
        target.put(&(scene.pod("x", "10.240.0.1") + &scene.pod("y", "10.240.0.2") + &scene.policy("[{}]"))).await?;
        let all = |s: &Snapshot| scene.names(s) == set(&["x", "y"]) && scene.policies(s) == 1;
        scene.until("x, y and p", all).await?;
        target.put(&scene.pod("y", "10.240.0.9")).await?;
        let moved = |s: &Snapshot| {
            let found = s.workload_by_ip("10.240.0.9".parse().unwrap());
            found.is_some_and(|pod| &*pod.name == "y" && *pod.namespace == *target.namespace())
        };
        scene.until("y has moved", moved).await?;
        target.remove(POD, "x").await?;
        target.remove(POLICY, "p").await?;
        let gone = |s: &Snapshot| scene.names(s) == set(&["y"]) && scene.policies(s) == 0;
        scene.until("x and p are gone", gone).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_in_pages_is_whole() -> Result<()> {
    let count = 1_201;
    anywhere(async |scene| {
        let pods = (0..count).map(|at| {
            let pod = scene.pod(&format!("p{at:05}"), &format!("10.241.{}.{}", at / 250, at % 250 + 1));
            async move { scene.target.put(&pod).await }
        });
        futures_util::stream::iter(pods).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        // A source that begins now lists them; the one of the scene has been told of each.
        let access = ApiAccess { kubeconfig: Some(scene.target.kubeconfig().to_owned()), context: None };
        let (late, store) = (Cluster::open(&access).await?, Arc::new(SnapshotStore::default()));
        let config = KubeConfig::new(scene.target.node(), "cluster.local");
        let mut first = store.watch();
        let source = late.run(config, Arc::clone(&store), std::future::pending());
        tokio::select! {
            ended = source => anyhow::bail!("the source has ended: {ended:?}"),
            changed = tokio::time::timeout(SOON, first.changed()) => changed.context("no snapshot")??,
        }
        let found = scene.names(&store.load()).len();
        ensure!(found == count, "the first snapshot has {found} of {count} pods");
        scene.until("all have been told", |snapshot| scene.names(snapshot).len() == count).await.map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_are_published_as_one_object_of_the_node_and_withdrawn() -> Result<()> {
    anywhere(async |scene| {
        let target = &scene.target;
        let node = target.node();
        target.put(&scene.pod("x", "10.242.0.1")).await?;
        target.also_made(CAPTURES, &node)?;
        let pod = target.get(POD, true, "x").await?.context("no pod")?;
        let uid = pod["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        let publisher = Arc::new(scene.cluster.publisher(&node)?);
        let publish = |generation: Option<u64>| {
            let (publisher, uid) = (Arc::clone(&publisher), uid.clone());
            let captured = |generation| Captured { generation, wire: ["h2".into()].into() };
            let one = |generation| Published {
                uid: uid.as_str().into(),
                name: "x".to_owned(),
                captured: captured(generation),
            };
            let pods: Vec<Published> = generation.map(one).into_iter().collect();
            tokio::task::spawn_blocking(move || publisher.publish(&pods))
        };
        let seen = |generation: Option<u64>| {
            let uid = uid.clone();
            move |snapshot: &Snapshot| {
                let pod = snapshot.workload(&uid).and_then(|pod| pod.captured.as_ref());
                pod.map(|captured| captured.generation) == generation
            }
        };
        publish(Some(3)).await??;
        let object = target.get(CAPTURES, false, &node).await?.context("it is there when publish returns")?;
        ensure!(object["spec"]["pods"][0]["uid"] == uid.as_str(), "{object}");
        let owner = &object["metadata"]["ownerReferences"][0];
        let own = target.get(("v1", "Node"), false, &node).await?.context("no node")?;
        ensure!(owner["kind"] == "Node" && owner["uid"] == own["metadata"]["uid"], "{object}");
        scene.until("it is read back", seen(Some(3))).await?;
        publish(None).await??;
        scene.until("it is withdrawn", seen(None)).await.map(drop)
    })
    .await
}

fn condition<'a>(conditions: &'a Value, kind: &str) -> &'a Value {
    conditions.as_array().and_then(|all| all.iter().find(|one| one["type"] == kind)).unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_whether_it_is_in_force() -> Result<()> {
    anywhere(async |scene| {
        scene.target.put(&scene.policy("[{}]")).await?;
        let good = |status: &Value| condition(&status["conditions"], "Accepted")["status"] == "True";
        let found = scene.until_status(POLICY, "p", good).await?;
        let observed = &condition(&found["status"]["conditions"], "Accepted")["observedGeneration"];
        ensure!(*observed == found["metadata"]["generation"], "{found:#}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_told_what_the_mesh_makes_of_it() -> Result<()> {
    anywhere(async |scene| {
        let (target, namespace) = (&scene.target, scene.target.namespace());
        if !target.serves("/apis/gateway.networking.k8s.io/v1").await {
            println!("skipped: this API server has no Gateway API");
            return Ok(());
        }
        // A real one gives it an address of its range; the harness' has none to give.
        let service = async |name: &str, address: &str| -> Result<()> {
            let with = |address: &str| {
                format!(
                    "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                     spec: {{{address}ports: [{{name: http, port: 80}}]}}\n"
                )
            };
            target.put(&with("")).await?;
            let made = target.get(("v1", "Service"), true, name).await?.context("no Service")?;
            if made["spec"]["clusterIP"].is_null() {
                target.put(&with(&format!("clusterIP: {address}, "))).await?;
            }
            Ok(())
        };
        let route = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: r, namespace: {namespace}}}\n\
             spec: {{parentRefs: [{{group: \"\", kind: Service, name: web, port: 80}}], \
             rules: [{{backendRefs: [{{name: missing, port: 80}}]}}]}}\n"
        );
        service("web", "10.96.0.1").await?;
        target.put(&route).await?;
        let says = |kind: &'static str, holds: &'static str, reason: &'static str| {
            move |status: &Value| {
                let entry = &status["parents"][0];
                let found = condition(&entry["conditions"], kind);
                entry["controllerName"] == CONTROLLER && found["status"] == holds && found["reason"] == reason
            }
        };
        let found = scene.until_status(ROUTE, "r", says("ResolvedRefs", "False", "BackendNotFound")).await?;
        ensure!(says("Accepted", "True", "Accepted")(&found["status"]), "{found:#}");
        service("missing", "10.96.0.2").await?;
        scene.until_status(ROUTE, "r", says("ResolvedRefs", "True", "ResolvedRefs")).await.map(drop)
    })
    .await
}

/// The suite once more, in a process that knows a server of this one by its kubeconfig alone.
#[test]
fn a_kubeconfig_is_all_that_the_suite_needs() -> Result<()> {
    if std::env::var_os(VARIABLE).is_some() {
        println!("skipped: {VARIABLE} names a server already");
        return Ok(());
    }
    let (api, folder) = (harness()?, tempfile::tempdir()?);
    let kubeconfig = folder.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig, &api.url(0)?)?;
    let mut suite = Command::new(std::env::current_exe()?);
    let said = suite.args(["--nocapture", "--test-threads", "2"]).env(VARIABLE, &kubeconfig).output()?;
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{text}");
    // This one is skipped, and no other: they have been there, and have left nothing.
    ensure!(text.matches("skipped: ").count() == 1, "{text}");
    ensure!(api.list("AuthorizationPolicy").is_empty() && api.list("CaptureState").is_empty(), "something is left");
    ensure!(api.list("Node").is_empty() && api.version() > 1_201, "something is left: {:?}", api.list("Node"));
    Ok(())
}
