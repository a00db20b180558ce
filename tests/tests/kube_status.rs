//! Statuses written back to an API server: what the mesh makes of routes and policies, and nobody else's entries.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_agent::control::{ApiAccess, CONTROLLER, Cluster, KubeConfig, StatusWrites, StatusWritesReader};
use mesh_agent::snapshot::SnapshotStore;
use mesh_tests::kube_api::ApiServer;
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};

/// For a busy machine.
const SOON: Duration = Duration::from_secs(20);

const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}\n";

/// An API server and controllers that write statuses to it.
struct Scene {
    api: ApiServer,
    folder: tempfile::TempDir,
    running: JoinSet<()>,
}

impl Scene {
    async fn start(prepare: impl FnOnce(&ApiServer) -> Result<()>) -> Result<(Self, StatusWritesReader)> {
        let api = ApiServer::start(vec![TcpListener::bind("127.0.0.1:0")?])?;
        api.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
        api.install_crds()?;
        prepare(&api)?;
        let folder = tempfile::tempdir()?;
        api.write_kubeconfig(&folder.path().join("kubeconfig"), &api.url(0)?)?;
        let mut scene = Self { api, folder, running: JoinSet::new() };
        let (counts, _) = scene.controller().await?;
        Ok((scene, counts))
    }

    /// One more controller.
    async fn controller(&mut self) -> Result<(StatusWritesReader, AbortHandle)> {
        let kubeconfig = Some(self.folder.path().join("kubeconfig"));
        let mut cluster = Cluster::open(&ApiAccess { kubeconfig, context: None }).await?;
        let (writer, store) = (cluster.status_writer(), Arc::new(SnapshotStore::default()));
        let config = KubeConfig::new("", "cluster.local");
        let counts = writer.counts();
        let handle = self.running.spawn(async move {
            let source = cluster.run(config, Arc::clone(&store), std::future::pending());
            tokio::select! {
                ended = source => panic!("the source has ended: {ended:?}"),
                () = writer.run(store) => panic!("the writer has ended"),
            }
        });
        Ok((counts, handle))
    }

    /// Waits until the object's status is as `is_so` says.
    async fn until(&self, kind: &str, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let wait = async {
            loop {
                let found = self.api.get(kind, "shop", name).unwrap_or_default();
                if is_so(&found["status"]) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = tokio::time::timeout(SOON, wait).await;
        outcome.ok().with_context(|| format!("{kind} {name}: {what}: {:#}", self.api.get(kind, "shop", name).unwrap()))
    }

    /// Writes a status as another controller does.
    fn set_status(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut object = self.api.get(kind, "shop", name).context("no such object")?;
        change(&mut object["status"]);
        self.api.put_object(object)
    }
}

/// A route of one rule, whose backend is the Service of this name; each parent is a Service.
fn route(name: &str, parents: &[&str], backend: &str) -> String {
    let parents: Vec<String> =
        parents.iter().map(|parent| format!("{{group: \"\", kind: Service, name: {parent}, port: 80}}")).collect();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{parentRefs: [{}], rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]}}\n",
        parents.join(", ")
    )
}

fn condition<'a>(conditions: &'a Value, kind: &str) -> &'a Value {
    conditions.as_array().and_then(|all| all.iter().find(|one| one["type"] == kind)).unwrap_or(&Value::Null)
}

/// Whether our entry at `parents[at]` says `status` for `reason` in the condition of this type.
fn says(status: &Value, at: usize, kind: &str, holds: &str, reason: &str) -> bool {
    let entry = &status["parents"][at];
    let found = condition(&entry["conditions"], kind);
    entry["controllerName"] == CONTROLLER && found["status"] == holds && found["reason"] == reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_told_what_the_mesh_makes_of_it_as_things_change() -> Result<()> {
    let (scene, counts) = Scene::start(|api| api.put(&(SERVICE.to_owned() + &route("r", &["web"], "missing")))).await?;
    let unresolved = |status: &Value| {
        says(status, 0, "Accepted", "True", "Accepted") && says(status, 0, "ResolvedRefs", "False", "BackendNotFound")
    };
    let found = scene.until("HTTPRoute", "r", "accepted, without its backend", unresolved).await?;
    let entry = &found["status"]["parents"][0];
    let parent = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
    ensure!(entry["parentRef"] == parent, "{entry}");
    let accepted = condition(&entry["conditions"], "Accepted").clone();
    ensure!(accepted["observedGeneration"] == found["metadata"]["generation"], "{accepted}");
    ensure!(accepted["lastTransitionTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{accepted}");

    // A time of the past shows whether it is kept.
    let past = "2001-02-03T04:05:06Z";
    scene.set_status("HTTPRoute", "r", |status| {
        for one in status["parents"][0]["conditions"].as_array_mut().unwrap() {
            one["lastTransitionTime"] = json!(past);
        }
    })?;
    scene.api.put(&SERVICE.replace("name: web", "name: missing").replace("10.96.0.1", "10.96.0.2"))?;
    let resolved = |status: &Value| says(status, 0, "ResolvedRefs", "True", "ResolvedRefs");
    let found = scene.until("HTTPRoute", "r", "its backend is there", resolved).await?;
    let conditions = &found["status"]["parents"][0]["conditions"];
    ensure!(condition(conditions, "Accepted")["lastTransitionTime"] == past, "{conditions}");
    ensure!(condition(conditions, "ResolvedRefs")["lastTransitionTime"] != past, "{conditions}");

    // A parent that is not there, beside one that is.
    let mut changed = scene.api.get("HTTPRoute", "shop", "r").unwrap();
    changed["spec"]["parentRefs"].as_array_mut().unwrap().push(json!({"group": "", "kind": "Service", "name": "no"}));
    scene.api.put_object(changed)?;
    let both = |status: &Value| {
        says(status, 0, "Accepted", "True", "Accepted") && says(status, 1, "Accepted", "False", "NoMatchingParent")
    };
    let found = scene.until("HTTPRoute", "r", "both parents are answered", both).await?;
    let observed = &condition(&found["status"]["parents"][0]["conditions"], "Accepted")["observedGeneration"];
    ensure!(*observed == found["metadata"]["generation"], "{found:#}");
    // The writer counts after the answer, which may be later than what the API server shows.
    let counted = async {
        while counts.read().written < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, counted).await.ok().with_context(|| format!("{:?}", counts.read()))?;
    let StatusWrites { altered, failed, .. } = counts.read();
    ensure!(altered == 0 && failed == 0, "{:?}", counts.read());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_other_controllers_stay_and_ours_go_with_their_parent() -> Result<()> {
    let other = json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/gateway", "conditions": [
        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 1,
         "lastTransitionTime": "2001-02-03T04:05:06Z"}]});
    let kept = other.clone();
    let (scene, _) = Scene::start(|api| {
        api.put(&(SERVICE.to_owned() + &route("r", &["web"], "web")))?;
        let mut object = api.get("HTTPRoute", "shop", "r").unwrap();
        object["status"] = json!({"parents": [other]});
        object["spec"]["parentRefs"].as_array_mut().unwrap().push(json!({"name": "gateway"}));
        api.put_object(object)
    })
    .await?;
    let ours = |status: &Value| says(status, 1, "Accepted", "True", "Accepted");
    let found = scene.until("HTTPRoute", "r", "our entry beside the other's", ours).await?;
    ensure!(found["status"]["parents"][0] == kept, "{found:#}");
    ensure!(found["status"]["parents"].as_array().map(Vec::len) == Some(2), "{found:#}");

    // Somebody takes ours away, or the whole status: it comes again.
    scene.set_status("HTTPRoute", "r", |status| *status = json!({"parents": [kept.clone()]}))?;
    scene.until("HTTPRoute", "r", "our entry is there again", ours).await?;
    scene.set_status("HTTPRoute", "r", |status| *status = Value::Null)?;
    let alone = |status: &Value| says(status, 0, "Accepted", "True", "Accepted");
    scene.until("HTTPRoute", "r", "our entry alone", alone).await?;

    scene.set_status("HTTPRoute", "r", |status| status["parents"].as_array_mut().unwrap().insert(0, kept.clone()))?;
    let mut object = scene.api.get("HTTPRoute", "shop", "r").unwrap();
    object["spec"]["parentRefs"] = json!([{"name": "gateway"}]);
    scene.api.put_object(object)?;
    scene.until("HTTPRoute", "r", "the other's alone", |status| status["parents"] == json!([kept])).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_rule_and_a_route_that_cannot_be_used_are_told() -> Result<()> {
    let (scene, _) = Scene::start(|api| {
        let flawed = route("flawed", &["web"], "web")
            .replace("rules: [", "rules: [{matches: [{path: {type: Sideways, value: /}}]}, ");
        let unusable = route("unusable", &["web"], "web").replace("rules: [", "rules: 7 #");
        api.put(&(SERVICE.to_owned() + &flawed + &unusable.replace("#", "}\n#")))
    })
    .await?;
    let partly = |status: &Value| {
        says(status, 0, "Accepted", "True", "Accepted")
            && says(status, 0, "PartiallyInvalid", "True", "UnsupportedValue")
    };
    let found = scene.until("HTTPRoute", "flawed", "partially invalid", partly).await?;
    let message = condition(&found["status"]["parents"][0]["conditions"], "PartiallyInvalid")["message"].to_string();
    ensure!(message.contains("rules[0]") && message.contains("Sideways"), "{message}");
    let refused = |status: &Value| says(status, 0, "Accepted", "False", "UnsupportedValue");
    let found = scene.until("HTTPRoute", "unusable", "refused", refused).await?;
    let message = condition(&found["status"]["parents"][0]["conditions"], "Accepted")["message"].to_string();
    ensure!(message.contains("rules"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_whether_they_are_in_force_and_what_happens_meanwhile() -> Result<()> {
    let policy = |rules: &str| {
        format!(
            "---\napiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{rules: {rules}}}\n"
        )
    };
    let (scene, _) = Scene::start(|api| api.put(&policy("[{sources: [{type: Nonsense}]}]"))).await?;
    let refused = |status: &Value| {
        let accepted = condition(&status["conditions"], "Accepted");
        accepted["status"] == "False" && accepted["reason"] == "Invalid"
    };
    let found = scene.until("AuthorizationPolicy", "p", "invalid", refused).await?;
    let message = condition(&found["status"]["conditions"], "Accepted")["message"].to_string();
    ensure!(message.contains("Nonsense") && message.contains("is denied until"), "{message}");
    scene.api.put(&policy("[{}]"))?;
    let good = |status: &Value| condition(&status["conditions"], "Accepted")["status"] == "True";
    let found = scene.until("AuthorizationPolicy", "p", "mended", good).await?;
    let observed = &condition(&found["status"]["conditions"], "Accepted")["observedGeneration"];
    ensure!(*observed == found["metadata"]["generation"], "{found:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_controllers_agree_without_a_leader_and_outages_lose_nothing() -> Result<()> {
    let names: Vec<String> = (0..40).map(|at| format!("r{at:02}")).collect();
    let mut prepared = 0;
    let (mut scene, first) = Scene::start(|api| {
        api.put(SERVICE)?;
        api.faults().fail("/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/", 500, 3);
        names.iter().try_for_each(|name| api.put(&route(name, &["web"], "web")))?;
        prepared = api.version();
        Ok(())
    })
    .await?;
    let (second, handle) = scene.controller().await?;
    let accepted = |status: &Value| says(status, 0, "Accepted", "True", "Accepted");
    for name in &names {
        scene.until("HTTPRoute", name, "accepted", accepted).await?;
    }
    // One of them goes; the other goes on. A change each for which one write is needed, and no other.
    handle.abort();
    for name in &names {
        scene.api.put(&route(name, &["web", "other"], "web"))?;
    }
    let changed = |status: &Value| says(status, 1, "Accepted", "False", "NoMatchingParent");
    for name in &names {
        scene.until("HTTPRoute", name, "accepted", changed).await?;
    }
    let (first, second) = (first.read(), second.read());
    ensure!(first.failed + second.failed >= 1, "no fault was met: {first:?} {second:?}");
    // Every write is a version of the API server: 40 changes of ours, and a status for each of 80 versions.
    let versions = scene.api.version() - prepared;
    ensure!(versions == 3 * names.len() as u64, "{versions} versions: {first:?} {second:?}");
    // Nothing is written any more.
    let before = scene.api.version();
    let idle = scene.until("HTTPRoute", "r00", "never", |_| scene.api.version() != before);
    ensure!(tokio::time::timeout(Duration::from_secs(1), idle).await.is_err(), "something is written again and again");
    Ok(())
}
