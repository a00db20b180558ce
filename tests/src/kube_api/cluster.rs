//! A cluster without HTTP: its kinds, its objects, its tokens; and what goes when something is deleted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::admission;
use super::failure::Failure;
use super::kind::{self, Kind};
use super::ownership::Manager;
use super::store::{Key, Store};
use super::time::{now, seconds};
use super::tokens::Tokens;
use super::write::Change;

/// The grace period of pods that declare none, in seconds.
const GRACE_SECONDS: u64 = 30;

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its objects.
    pub store: Store,
    /// Its tokens.
    pub tokens: Tokens,
    /// Service accounts may do what roles permit, and no more.
    pub roles_enforced: bool,
    kinds: Vec<Kind>,
}

/// The options of a DELETE.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`
    pub grace_seconds: Option<u64>,
    /// `preconditions.uid`
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`
    pub version: Option<String>,
}

/// What a DELETE has done.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// The object is gone; this is how it was.
    Gone(Arc<Value>),
    /// It is marked, and goes after this, or when its finalizers have gone.
    Going(Arc<Value>, Option<Duration>),
}

impl Cluster {
    /// A cluster with the namespaces that every cluster has.
    #[must_use]
    pub fn new() -> Self {
        let mut cluster =
            Self { store: Store::default(), tokens: Tokens::default(), roles_enforced: false, kinds: kind::built_in() };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            });
            let put = cluster.put(namespace, now());
            debug_assert!(put.is_ok(), "{put:?}");
        }
        cluster
    }

    /// The kinds served now.
    #[must_use]
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The kind of a document, or of a name: `Pod`, `pods`.
    #[must_use]
    pub fn kind(&self, api_version: Option<&str>, name: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| {
            (kind.kind == name || kind.plural == name) && api_version.is_none_or(|wanted| kind.api_version() == wanted)
        })
    }

    /// Creates or replaces `object`, with its status, as the cluster's own components would. An object with another
    /// uid is another object: the one that is there goes first.
    ///
    /// # Errors
    /// When its kind is not served, or for what the API server refuses.
    pub fn put(&mut self, mut object: Value, now: Timestamp) -> Result<Arc<Value>> {
        let api_version = object["apiVersion"].as_str().context("the document has no apiVersion")?;
        let name = object["kind"].as_str().context("the document has no kind")?;
        admission::understood(&object)?;
        let kind = self.kind(Some(api_version), name);
        let kind = kind.with_context(|| format!("{api_version} {name} is not served here"))?.clone();
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let namespace = match text("namespace") {
            _ if !kind.namespaced => String::new(),
            none if none.is_empty() => "default".to_owned(),
            namespace => namespace,
        };
        let change = harness(&kind, (namespace, text("name")), now);
        let live = self.store.get(&kind.resource(), &change.key).cloned();
        let uid = text("uid");
        let same = |live: &Value| uid.is_empty() || live["metadata"]["uid"] == uid.as_str();
        let outcome = match live {
            Some(live) if same(&live) => {
                object["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
                self.update(&change, object)
            }
            Some(_) => {
                self.forget(&kind, &change.key);
                self.create(&change, object)
            }
            None => self.create(&change, object),
        };
        outcome.map_err(|failure| anyhow!(failure.message))
    }

    /// Deletes an object as a DELETE does.
    ///
    /// # Errors
    /// 404, and 409 for a precondition that does not hold.
    pub fn delete(&mut self, change: &Change, options: &DeleteOptions) -> Result<Deleted, Failure> {
        let live = self.live(change, &change.key)?;
        let metadata = &live["metadata"];
        for (field, wanted) in [("uid", &options.uid), ("resourceVersion", &options.version)] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| metadata[field] != wanted.as_str()) {
                let found = metadata[field].as_str().unwrap_or_default();
                let what = if field == "uid" { "UID" } else { "ResourceVersion" };
                let why =
                    format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
                return Err(Failure::conflict(&change.kind.resource(), &change.key.1, &why));
            }
        }
        if change.dry_run {
            return Ok(Deleted::Gone(live));
        }
        let grace = if change.kind.is_core("Pod") { grace_of(&live, options) } else { 0 };
        let already = metadata["deletionTimestamp"].is_string();
        let held = metadata["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let is_namespace = change.kind.is_core("Namespace");
        if already && (grace > 0 || held) {
            return Ok(Deleted::Going(live, None));
        }
        if grace > 0 || held {
            let marked = self.mark(change, &live, grace);
            let after = (!held).then(|| Duration::from_secs(grace));
            return Ok(Deleted::Going(marked, after));
        }
        if change.kind.is_core("Pod") || is_namespace {
            // A force deletion shows the pod once more, with an earlier time of deletion.
            self.mark(change, &live, 0);
        }
        if is_namespace {
            self.empty_namespace(change);
            if let Some(namespace) = self.store.get("namespaces", &change.key) {
                return Ok(Deleted::Going(Arc::clone(namespace), None));
            }
            return Ok(Deleted::Gone(live));
        }
        self.forget(&change.kind, &change.key);
        Ok(Deleted::Gone(live))
    }

    fn mark(&mut self, change: &Change, live: &Value, grace: u64) -> Arc<Value> {
        let mut marked = live.clone();
        let due = change.now.checked_add(SignedDuration::from_secs(grace.try_into().unwrap_or(i64::MAX)));
        marked["metadata"]["deletionTimestamp"] = json!(seconds(due.unwrap_or(change.now)));
        if change.kind.is_core("Namespace") {
            marked["status"]["phase"] = json!("Terminating");
        } else {
            marked["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        if change.kind.generation {
            marked["metadata"]["generation"] = json!(live["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
        }
        self.store.put(&change.kind.resource(), change.key.clone(), marked)
    }

    /// What the namespace controller does: everything in it goes, then the namespace itself.
    fn empty_namespace(&mut self, change: &Change) {
        let inside: Vec<(Kind, Key)> = self
            .storages()
            .filter(|kind| kind.namespaced)
            .flat_map(|kind| {
                let keys = self.store.all(&kind.resource()).map(|(key, _)| key);
                keys.filter(|key| key.0 == change.key.1).map(move |key| (kind.clone(), key.clone())).collect::<Vec<_>>()
            })
            .collect();
        let now_all = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        for (kind, key) in inside {
            let inner = Change { kind, key, ..change.clone() };
            // What has finalizers stays until they have gone.
            let _ = self.delete(&inner, &now_all);
        }
        self.finish_namespace(&change.key.1);
    }

    /// Removes an object at once, and what lives by it: a CRD's objects, a namespace that waited for it.
    pub fn forget(&mut self, kind: &Kind, key: &Key) {
        let Some(gone) = self.store.remove(&kind.resource(), key) else { return };
        if kind.is_crd() {
            let resource = gone["metadata"]["name"].as_str().unwrap_or_default();
            self.kinds.retain(|kind| !kind.custom || kind.resource() != resource);
            let keys: Vec<Key> = self.store.all(resource).map(|(key, _)| key.clone()).collect();
            for key in keys {
                self.store.remove(resource, &key);
            }
        }
        self.finish_namespace(&key.0);
    }

    fn finish_namespace(&mut self, name: &str) {
        let key = (String::new(), name.to_owned());
        let going = self.store.get("namespaces", &key);
        let going = going.is_some_and(|namespace| namespace["metadata"]["deletionTimestamp"].is_string());
        if !going {
            return;
        }
        let holds = |kind: &Kind| self.store.all(&kind.resource()).any(|(key, _)| key.0 == name);
        let used = self.storages().any(|kind| kind.namespaced && holds(kind));
        if !used {
            self.store.remove("namespaces", &key);
        }
    }

    /// One version of each kind: what is stored.
    fn storages(&self) -> impl Iterator<Item = &Kind> {
        let mut seen = std::collections::BTreeSet::new();
        self.kinds.iter().filter(move |kind| seen.insert(kind.resource()))
    }

    /// Serves what a CustomResourceDefinition declares, and says so in its status.
    pub(super) fn accept_crd(&mut self, crd: &mut Value, now: &str) -> Result<(), Failure> {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let kinds = kind::of_crd(crd).map_err(|error| Failure::bad_request(format!("{name}: {error:#}")))?;
        if kinds.iter().any(|kind| kind.resource() != name) {
            let field = "metadata.name".to_owned();
            let what = format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group");
            let wrong = [("FieldValueInvalid", field, what)];
            return Err(Failure::invalid("CustomResourceDefinition", &name, &wrong));
        }
        let condition = |kind: &str, reason: &str| {
            let mut condition = json!({"type": kind, "status": "True", "reason": reason, "message": ""});
            condition["lastTransitionTime"] = json!(now);
            condition
        };
        if crd.pointer("/status/conditions").is_none() {
            let conditions =
                [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")];
            let stored = kinds.first().map(|kind| &kind.version);
            let names = crd["spec"]["names"].clone();
            crd["status"] = json!({"acceptedNames": names, "conditions": conditions, "storedVersions": [stored]});
        }
        self.kinds.retain(|kind| !kind.custom || kind.resource() != name);
        self.kinds.extend(kinds);
        Ok(())
    }

    /// A new uid.
    #[must_use]
    pub fn new_uid(&self) -> String {
        let random = format!("{:032x}", rand::random::<u128>());
        let part = |from: usize, to: usize| random.get(from..to).unwrap_or_default().to_owned();
        format!("{}-{}-4{}-a{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

/// A change by the harness itself.
#[must_use]
pub fn harness(kind: &Kind, key: Key, now: Timestamp) -> Change {
    let manager = Manager { name: "harness".to_owned(), applies: false, status: false };
    Change { kind: kind.clone(), key, manager, whole: true, user: None, dry_run: false, now }
}

fn grace_of(pod: &Value, options: &DeleteOptions) -> u64 {
    let placed = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !placed || over {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_u64();
    options.grace_seconds.or(own).unwrap_or(GRACE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(extra: Value) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"nodeName": "node-a"}});
        super::super::patch::merge(&mut pod, &extra);
        pod
    }

    fn cluster_with(object: Value) -> (Cluster, Change) {
        let mut cluster = Cluster::new();
        let now = now();
        let kind = cluster.kind(None, object["kind"].as_str().expect("a kind")).expect("served").clone();
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let change = harness(&kind, (text("namespace"), text("name")), now);
        cluster.put(object, now).expect("put");
        (cluster, change)
    }

    fn shown(cluster: &Cluster, resource: &str, after: u64) -> Vec<&'static str> {
        let changes = cluster.store.changes_after(resource, after).expect("known");
        changes
            .map(|event| match (&event.before, &event.after) {
                (None, _) => "added",
                (_, Some(_)) => "modified",
                (_, None) => "deleted",
            })
            .collect()
    }

    #[test]
    fn a_placed_pod_is_deleted_with_grace_and_by_force() {
        let (mut cluster, change) = cluster_with(pod(json!({})));
        let start = cluster.store.version();
        let going = cluster.delete(&change, &DeleteOptions::default()).expect("deleted");
        let Deleted::Going(marked, Some(after)) = going else { unreachable!("{going:?}") };
        assert_eq!((after, &marked["metadata"]["deletionGracePeriodSeconds"]), (Duration::from_secs(30), &json!(30)));
        assert_eq!(shown(&cluster, "pods", start), ["modified"]);
        let force = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        assert!(matches!(cluster.delete(&change, &force), Ok(Deleted::Gone(_))));
        assert_eq!(shown(&cluster, "pods", start), ["modified", "modified", "deleted"]);
        assert_eq!(cluster.delete(&change, &force).map(drop).map_err(|failure| failure.code), Err(404));
    }

    #[test]
    fn what_has_finalizers_goes_when_they_have_gone() {
        let (mut cluster, mut change) = cluster_with(pod(json!({"metadata": {"finalizers": ["a/b"]}})));
        let force = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        let going = cluster.delete(&change, &force).expect("deleted");
        assert!(matches!(going, Deleted::Going(_, None)), "{going:?}");
        change.whole = false;
        let patch = crate::kube_api::write::Patch::Merge(json!({"metadata": {"finalizers": null}}));
        cluster.patch(&change, &patch).expect("patched");
        assert!(cluster.store.get("pods", &change.key).is_none());
    }

    #[test]
    fn preconditions_hold_or_nothing_is_deleted() {
        let (mut cluster, change) = cluster_with(pod(json!({"metadata": {"uid": "u1"}})));
        let other = DeleteOptions { uid: Some("u2".to_owned()), ..DeleteOptions::default() };
        assert_eq!(cluster.delete(&change, &other).map(drop).map_err(|failure| failure.code), Err(409));
        assert!(cluster.store.get("pods", &change.key).is_some());
    }

    #[test]
    fn a_namespace_takes_all_that_is_in_it_along() {
        let (mut cluster, mut change) =
            cluster_with(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
        let now = now();
        cluster.put(pod(json!({"metadata": {"namespace": "shop"}})), now).expect("put");
        let held = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "held", "namespace": "shop", "finalizers": ["a/b"]}});
        cluster.put(held, now).expect("put");
        let going = cluster.delete(&change, &DeleteOptions::default()).expect("deleted");
        assert!(matches!(going, Deleted::Going(_, None)), "{going:?}");
        assert_eq!(cluster.store.all("pods").count(), 0);
        let refused = cluster.put(pod(json!({"metadata": {"namespace": "shop"}})), now).expect_err("refused");
        assert!(refused.to_string().contains("because it is being terminated"), "{refused}");
        change.kind = cluster.kind(None, "ConfigMap").expect("served").clone();
        change.key = ("shop".to_owned(), "held".to_owned());
        let kind = change.kind.clone();
        cluster.forget(&kind, &change.key.clone());
        assert!(cluster.store.get("namespaces", &(String::new(), "shop".to_owned())).is_none());
    }

    #[test]
    fn kinds_come_and_go_with_their_crd() {
        let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "web", "namespace": "default"}, "spec": {}});
        let mut cluster = Cluster::new();
        let now = now();
        assert!(cluster.put(route.clone(), now).is_err());
        for crd in kind::mesh_crds() {
            cluster.put(crd, now).expect("put");
        }
        cluster.put(route, now).expect("put");
        let crds = cluster.kind(None, "CustomResourceDefinition").expect("served").clone();
        let resource = "httproutes.gateway.networking.k8s.io".to_owned();
        cluster.forget(&crds, &(String::new(), resource.clone()));
        assert!(cluster.kind(None, "HTTPRoute").is_none());
        assert_eq!(cluster.store.all(&resource).count(), 0);
    }

    #[test]
    fn another_uid_is_another_object() {
        let (mut cluster, _) = cluster_with(pod(json!({"metadata": {"uid": "u1"}})));
        let start = cluster.store.version();
        cluster.put(pod(json!({"metadata": {"uid": "u2"}})), now()).expect("put");
        assert_eq!(shown(&cluster, "pods", start), ["deleted", "added"]);
    }
}
