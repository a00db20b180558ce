//! An API server in the test's own process, for clients of Kubernetes: what the agent uses of the real one, with
//! faults on demand.
//!
//! `store`, `write` and the other rules are plain functions of a [`cluster::Cluster`]; `server` puts HTTP
//! before them. It plays no controller but two: a deleted pod goes when its grace is over, a deleted namespace when
//! it is empty. What the harness puts comes with its status, as if the cluster's own components had written it.
//! Not here: admission but ValidatingAdmissionPolicies, OpenAPI v2, strategic merges of lists, conversion beyond
//! `apiVersion`.
//! Roles are enforced when the test wants it; without that single verbs can be forbidden.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null, and metadata is an object")]

mod admission;
pub mod cluster;
mod discovery;
mod exec;
pub mod failure;
mod faults;
mod feed;
mod fields;
pub mod kind;
mod list;
mod openapi;
mod ownership;
mod patch;
mod render;
mod request;
mod rest;
pub mod roles;
mod rules;
mod schema;
mod secure;
mod selector;
mod server;
pub mod store;
mod strict;
mod table;
mod time;
pub mod tokens;
mod watch;
pub mod write;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::cluster::{Cluster, DeleteOptions, harness};
pub use self::exec::Container;
pub use self::faults::Faults;
pub use self::rest::ADMIN_TOKEN;
use self::server::Shared;
use self::store::Key;
use self::time::now;

/// A running API server. Dropped, it is gone with its thread and its sockets.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves a new cluster, without CRDs, on `listeners`; each may be of another network namespace.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(listeners: Vec<TcpListener>) -> Result<Self> {
        ensure!(!listeners.is_empty(), "an API server needs a listener");
        let shared = Arc::new(Shared::new(listeners)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kube-api".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = server::serve(serving) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// The URL of the listener at `place`, in the order of [`Self::start`].
    ///
    /// # Errors
    /// When there is none.
    pub fn url(&self, place: usize) -> Result<String> {
        Ok(format!("http://{}", self.address(place)?))
    }

    /// The address of the listener at `place`.
    ///
    /// # Errors
    /// When there is none.
    pub fn address(&self, place: usize) -> Result<SocketAddr> {
        self.shared.addresses().nth(place).with_context(|| format!("there is no listener {place}"))
    }

    /// Its certificate, as PEM: every listener speaks TLS too, at `https://`.
    #[must_use]
    pub fn certificate(&self) -> &str {
        self.shared.certificate()
    }

    /// Writes a kubeconfig by which its reader is admin at `url`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_kubeconfig(&self, path: &Path, url: &str) -> Result<()> {
        Self::write_kubeconfig_of(path, url, ADMIN_TOKEN)
    }

    /// Writes a kubeconfig by which its reader is whom `token` stands for.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_kubeconfig_of(path: &Path, url: &str, token: &str) -> Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: harness\n\
             clusters:\n- {{name: harness, cluster: {{server: \"{url}\"}}}}\n\
             users:\n- {{name: harness, user: {{token: \"{token}\"}}}}\n\
             contexts:\n- {{name: harness, context: {{cluster: harness, user: harness}}}}\n"
        );
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Installs the kinds of the mesh that are CRDs, without schemas: those of the Gateway API and our own.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn install_crds(&self) -> Result<()> {
        kind::mesh_crds().into_iter().try_for_each(|crd| self.put_object(crd))
    }

    /// Creates or replaces the objects of `yaml`, which may be several documents, each with its status. A CRD is
    /// installed by it, with its schema. An object with another uid than the one that is there replaces it by a
    /// deletion and a creation.
    ///
    /// # Errors
    /// For what is no object, or of a kind that is not served, or refused.
    pub fn put(&self, yaml: &str) -> Result<()> {
        for document in serde_norway::Deserializer::from_str(yaml) {
            let object = Value::deserialize(document).context("this is no YAML")?;
            if !object.is_null() {
                self.put_object(object)?;
            }
        }
        Ok(())
    }

    /// As [`Self::put`], for one object.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_object(&self, object: Value) -> Result<()> {
        self.write(|cluster| {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            cluster.put(object, now()).map(drop).with_context(|| format!("cannot put {name}"))
        })
    }

    /// Removes an object at once; a pod is shown with its time of deletion before. The namespace of cluster-wide
    /// kinds is empty.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.delete(kind, namespace, name, Some(0))
    }

    /// Deletes an object as a user does: a pod stays, marked, until [`Self::remove`].
    ///
    /// # Errors
    /// When it is not there.
    pub fn terminate(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.delete(kind, namespace, name, None)
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str, grace_seconds: Option<u64>) -> Result<()> {
        self.write(|cluster| {
            let kind = cluster.kind(None, kind).with_context(|| format!("{kind} is not served"))?.clone();
            let change = harness(&kind, key(namespace, name), now());
            let options = DeleteOptions { grace_seconds, ..DeleteOptions::default() };
            cluster.delete(&change, &options).map(drop).map_err(|failure| anyhow!(failure.message))
        })
    }

    /// One object; none when it is not there. The namespace of cluster-wide kinds is empty.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let cluster = self.shared.cluster();
        let kind = cluster.kind(None, kind)?;
        let found = cluster.store.get(&kind.resource(), &key(namespace, name))?;
        Some(named(kind, found))
    }

    /// All objects of a kind, by namespace and name.
    #[must_use]
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let cluster = self.shared.cluster();
        let Some(kind) = cluster.kind(None, kind) else { return Vec::new() };
        cluster.store.all(&kind.resource()).map(|(_, object)| named(kind, object)).collect()
    }

    /// The version of the last change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.cluster().store.version()
    }

    /// Issues a token of a service account, perhaps bound to a pod, for any time: no audience is the API server's.
    ///
    /// # Errors
    /// When the account or the pod is not there.
    pub fn issue_token(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        pod: Option<&str>,
        lifetime: Duration,
    ) -> Result<String> {
        let mut cluster = self.shared.cluster();
        let issued = cluster.issue_token((namespace, account), audiences, pod, lifetime, now());
        issued.map(|(word, _)| word).map_err(|failure| anyhow!(failure.message))
    }

    /// From now on `container` of a pod runs, and commands can be run in it. The pod is another matter: it must be put.
    pub fn run_container(&self, pod: (&str, &str), name: &str, container: Container) {
        let key = (pod.0.to_owned(), pod.1.to_owned(), name.to_owned());
        self.shared.containers().insert(key, container);
    }

    /// What can go wrong.
    #[must_use]
    pub fn faults(&self) -> Faults<'_> {
        Faults { shared: &self.shared }
    }

    fn write<T>(&self, work: impl FnOnce(&mut Cluster) -> Result<T>) -> Result<T> {
        let done = work(&mut self.shared.cluster());
        self.shared.wake_watches();
        done
    }
}

/// What the API server would keep of `object`, which is of the kind that `crd` defines.
///
/// # Errors
/// Its words when it refuses the object.
pub fn kept(crd: &Value, object: &Value) -> Result<Value> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = kind::of_crd(crd)?.into_iter().find(|kind| kind.api_version() == version);
    let mut object = object.clone();
    schema::enforce(&kind.context("of another version")?, &mut object).map_err(|failure| anyhow!(failure.message))?;
    Ok(object)
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("harness: the API server's thread panicked");
        }
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn named(kind: &kind::Kind, object: &Value) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    object
}

#[cfg(test)]
mod tests;
