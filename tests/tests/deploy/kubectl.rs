//! `deploy/` as people install it: by kubectl, which asks the API server what it serves and what it checks.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mesh_tests::deployed;
use mesh_tests::kube_api::ApiServer;
use mesh_tests::kubectl::Kubectl;
use serde_json::{Value, json};

/// What `components/monitoring` is for.
const POD_MONITORS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, listKind: PodMonitorList, plural: podmonitors, singular: podmonitor}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

struct Scene {
    api: ApiServer,
    kubectl: Kubectl,
    folder: tempfile::TempDir,
}

impl Scene {
    /// An API server with nothing of the mesh.
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let api = ApiServer::start(vec![TcpListener::bind("127.0.0.1:0")?])?;
        api.put(POD_MONITORS)?;
        let kubectl = Kubectl::new(&api, &api.url(0)?, folder.path())?;
        Ok(Self { api, kubectl, folder })
    }

    /// Everything that is there, by kind and name.
    fn all(&self) -> Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        for kind in self.kubectl.run(&["api-resources", "--verbs=list", "--output=name"])? {
            for object in
                serde_json::from_str::<Value>(&self.kubectl.run(&["get", &kind, "-A", "-ojson"])?.concat())?["items"]
                    .as_array()
                    .context("no items")?
            {
                let metadata = &object["metadata"];
                all.insert(format!("{kind} {}/{}", metadata["namespace"], metadata["name"]), object.clone());
            }
        }
        Ok(all)
    }

    fn apply(&self, folder: &Path, more: &[&str]) -> Result<Vec<String>> {
        self.kubectl.run(&[&["apply", "-k", folder.to_str().context("a path")?], more].concat())
    }

    /// An overlay with these components.
    fn overlay(&self, components: &[&str]) -> Result<PathBuf> {
        let overlay = self.folder.path().join(components.join("-"));
        fs::create_dir_all(&overlay)?;
        // kustomize takes no absolute paths.
        let ups = vec![".."; overlay.canonicalize()?.components().count() - 1].join("/");
        let deploy = format!("{ups}{}", deployed::folder().canonicalize()?.display());
        let components: Vec<String> =
            components.iter().map(|name| format!("{deploy}/kustomize/components/{name}")).collect();
        let text = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [format!("{deploy}/kustomize")], "components": components});
        fs::write(overlay.join("kustomization.yaml"), text.to_string())?;
        Ok(overlay)
    }

    /// What kubectl says of a document that is refused.
    fn refused(&self, yaml: &str) -> Result<String> {
        let file = self.folder.path().join("refused.yaml");
        fs::write(&file, yaml)?;
        let said = self.kubectl.says(&["apply", "-f", file.to_str().context("a path")?])?;
        ensure!(said.code != 0, "it was taken: {}", said.out);
        Ok(said.err)
    }
}

/// What is not among the lines of an apply that say so.
fn others(lines: &[String], what: &str) -> Result<Vec<String>> {
    ensure!(lines.len() > 15, "{lines:?}");
    Ok(lines.iter().filter(|line| !line.ends_with(&format!(" {what}"))).cloned().collect())
}

fn all_say(lines: &[String], what: &str) -> Result<()> {
    let others = others(lines, what)?;
    ensure!(others.is_empty(), "not `{what}`: {others:#?}");
    Ok(())
}

/// Lists whose entries have names, in their order: it has no meaning here.
fn ordered(value: Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.into_iter().map(ordered).collect();
            if list.iter().all(|one| one["name"].is_string()) {
                list.sort_by_key(|one| one["name"].to_string());
            }
            json!(list)
        }
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, ordered(value))).collect(),
        other => other,
    }
}

#[test]
fn everything_is_applied_unchanged_the_second_time_and_leaves_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let before = scene.all()?;
    for components in [&[][..], &["cgroupfs", "network-policy", "monitoring"], &["k3s"]] {
        let overlay = scene.overlay(components)?;
        let with = || format!("with {components:?}");
        all_say(&scene.apply(&overlay, &[])?, "created").with_context(with)?;
        let applied = scene.all()?;
        // kubectl sends a selector with the patch strategy `replace` every time.
        let mut changed = others(&scene.apply(&overlay, &[])?, "unchanged")?;
        changed.retain(|line| line != "poddisruptionbudget.policy/mesh-agent-ca configured");
        ensure!(changed.is_empty(), "{}: {changed:#?}", with());
        ensure!(scene.all()? == applied, "{}: something was written", with());
        scene.kubectl.run(&[
            "delete",
            "-k",
            overlay.to_str().context("a path")?,
            "--ignore-not-found",
            "--timeout=60s",
        ])?;
        let after = scene.all()?;
        let left: Vec<&String> = after.keys().filter(|name| !before.contains_key(*name)).collect();
        ensure!(left.is_empty() && after.len() == before.len(), "{}: left are {left:?}", with());
    }
    Ok(())
}

#[test]
fn everything_is_applied_by_the_server_too() -> Result<()> {
    let scene = Scene::new()?;
    let folder = deployed::folder().join("kustomize");
    all_say(&scene.apply(&folder, &["--server-side"])?, "serverside-applied")?;
    let applied = scene.all()?;
    all_say(&scene.apply(&folder, &["--server-side"])?, "serverside-applied")?;
    ensure!(scene.all()? == applied, "the second time something was written");
    // Both ways end in the same.
    let other = Scene::new()?;
    other.apply(&folder, &[])?;
    let bare = |all: BTreeMap<String, Value>| -> BTreeMap<String, Value> {
        let bare = |(name, mut object): (String, Value)| {
            object["metadata"] = json!({"labels": object["metadata"]["labels"]});
            object["status"] = Value::Null;
            (name, ordered(object))
        };
        all.into_iter().map(bare).collect()
    };
    let (one, two) = (bare(applied), bare(other.all()?));
    for (name, object) in &one {
        ensure!(two.get(name) == Some(object), "{name}: {object}\nand {:?}", two.get(name));
    }
    Ok(())
}

#[test]
fn what_the_crds_forbid_is_refused_in_the_api_servers_words() -> Result<()> {
    let scene = Scene::new()?;
    scene.apply(&deployed::folder().join("kustomize/crds"), &[]).map(drop)?;
    let policy = |kind: &str, spec: &str| {
        format!(
            "apiVersion: mesh-agent.io/v1alpha1\nkind: {kind}\nspec: {spec}\n\
             metadata: {{name: x, namespace: default}}\n"
        )
    };
    for (object, parts) in [
        (policy("PeerPolicy", "{mode: Strictly}"), &["spec.mode", "Unsupported value", "Strict"][..]),
        // Of fields that a CRD does not know a newer agent may know: they are kept. This one says nothing else.
        (policy("PeerPolicy", "{mood: Strict}"), &["it says nothing"]),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: default}\ndate: {}\n".to_owned(),
            &["strict decoding error: unknown field \"date\""],
        ),
        (policy("AuthorizationPolicy", "{action: 1}"), &["spec.action"]),
        // A rule in CEL.
        (
            policy("AuthorizationPolicy", "{rules: [{sources: [{type: ServiceAccount}]}]}"),
            &["serviceAccount belongs to type ServiceAccount, which needs it"],
        ),
        (policy("TrafficPolicy", "{}"), &["spec.targetRefs", "Required value"]),
    ] {
        let said = scene.refused(&object)?;
        ensure!(parts.iter().all(|part| said.contains(part)), "{object}: {said}");
    }
    Ok(())
}

#[test]
fn kubectl_get_shows_the_columns_of_the_crds() -> Result<()> {
    let scene = Scene::new()?;
    scene.apply(&deployed::folder().join("kustomize/crds"), &[]).map(drop)?;
    scene.api.put(
        "{apiVersion: mesh-agent.io/v1alpha1, kind: PeerPolicy, metadata: {name: strict, namespace: default},\
         spec: {mode: Strict}, status: {conditions: [{type: Accepted, status: 'True', reason: Accepted, message: '',\
         lastTransitionTime: '2026-01-01T00:00:00Z'}]}}",
    )?;
    for what in [&["get", "peerpolicies"][..], &["get", "peerpolicy", "strict"]] {
        let shown = scene.kubectl.run(what)?;
        let cells = |line: usize| -> Vec<&str> { shown[line].split_whitespace().collect() };
        ensure!(cells(0) == ["NAME", "MODE", "EGRESS", "GUARD", "ACCEPTED", "AGE"], "{shown:?}");
        ensure!(cells(1)[..2] == ["strict", "Strict"] && cells(1).contains(&"True"), "{shown:?}");
    }
    Ok(())
}
