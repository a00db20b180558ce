//! The API server that a suite runs against: one of the harness, or the one that `MESH_TEST_KUBECONFIG` names. Either
//! is spoken to by HTTP alone, so that a suite sees of both what every client sees.
//!
//! Each target has a namespace and a node's name of its own, so that suites and tests share a cluster, and takes away
//! what it has put.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::deployed;
use crate::kube_api::ApiServer;

/// Names the kubeconfig of an API server that is there already.
pub const VARIABLE: &str = "MESH_TEST_KUBECONFIG";
/// The field manager of what is put.
const MANAGER: &str = "mesh-tests";
/// Of what has gone already.
const GONE: u16 = 404;
/// Tells targets of one process apart.
static TARGETS: AtomicUsize = AtomicUsize::new(0);

/// An API server with a namespace of this test alone.
pub struct Target {
    client: Client,
    kubeconfig: PathBuf,
    namespace: String,
    /// What was put, and where.
    made: Mutex<Vec<Made>>,
    _inside: Option<(ApiServer, tempfile::TempDir)>,
}

/// An object: its kind, its namespace unless it is cluster-wide, its name.
type Made = (ApiResource, Option<String>, String);

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Target {
    /// Starts an API server, or takes the one that is named, and makes a namespace. Definitions of the mesh's kinds
    /// that a named one lacks are applied from `deploy/`, and stay.
    ///
    /// # Errors
    /// When it cannot be reached, or refuses something.
    pub async fn start() -> Result<Self> {
        let (inside, kubeconfig) = match std::env::var_os(VARIABLE) {
            Some(path) => (None, PathBuf::from(path)),
            None => {
                let (api, folder) = (harness()?, tempfile::tempdir()?);
                let kubeconfig = folder.path().join("kubeconfig");
                api.write_kubeconfig(&kubeconfig, &api.url(0)?)?;
                (Some((api, folder)), kubeconfig)
            }
        };
        let file = Kubeconfig::read_from(&kubeconfig).with_context(|| kubeconfig.display().to_string())?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let number = TARGETS.fetch_add(1, Ordering::Relaxed);
        let target = Self {
            client: Client::try_from(config)?,
            kubeconfig,
            namespace: format!("mesh-test-{}-{number}", std::process::id()),
            made: Mutex::default(),
            _inside: inside,
        };
        if !target.serves("/apis/mesh-agent.io/v1alpha1").await {
            for crd in deployed::objects("crds")? {
                target.apply(&crd).await?;
            }
        }
        let name = &target.namespace;
        target.put(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")).await?;
        target.put(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", target.node())).await?;
        Ok(target)
    }

    /// The namespace of this test.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of a node of this test.
    #[must_use]
    pub fn node(&self) -> String {
        format!("node-{}", self.namespace)
    }

    /// By which the API server is reached.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Whether there is something at a path of the API server.
    pub async fn serves(&self, path: &str) -> bool {
        let request = http::Request::get(path).body(Vec::new());
        match request {
            Ok(request) => self.client.request::<Value>(request).await.is_ok(),
            Err(_) => false,
        }
    }

    /// Creates or changes the objects of `yaml`, each with its status; those without a namespace are cluster-wide.
    ///
    /// # Errors
    /// What the API server refuses.
    pub async fn put(&self, yaml: &str) -> Result<()> {
        for object in deployed::documents(yaml)? {
            let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
            self.remember((resource(&object)?, text("namespace"), text("name").unwrap_or_default()));
            self.apply(&object).await?;
        }
        Ok(())
    }

    fn remember(&self, one: Made) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(&one) {
            made.push(one);
        }
    }

    async fn apply(&self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        let name = object["metadata"]["name"].as_str().context("no name")?.to_owned();
        let said = || format!("{} {name}", object["kind"]);
        let api = self.api(&resource(&object)?, object["metadata"]["namespace"].as_str());
        let how = PatchParams::apply(MANAGER).force();
        api.patch(&name, &how, &Patch::Apply(&object)).await.with_context(said)?;
        if let Some(status) = status {
            let of = json!({"apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": name, "namespace": object["metadata"]["namespace"]}, "status": status});
            api.patch_status(&name, &how, &Patch::Apply(&of)).await.with_context(said)?;
        }
        Ok(())
    }

    /// An object of the test's namespace, or a cluster-wide one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get(&self, (version, kind): (&str, &str), namespaced: bool, name: &str) -> Result<Option<Value>> {
        let of = resource(&json!({"apiVersion": version, "kind": kind}))?;
        let found = self.api(&of, namespaced.then_some(&*self.namespace)).get_opt(name).await?;
        found.map(|object| serde_json::to_value(object).map_err(anyhow::Error::from)).transpose()
    }

    /// Removes an object of the test's namespace, at once.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, (version, kind): (&str, &str), name: &str) -> Result<()> {
        let of = resource(&json!({"apiVersion": version, "kind": kind}))?;
        self.api(&of, Some(&self.namespace)).delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// A cluster-wide object that somebody else has made for this test goes with it.
    ///
    /// # Errors
    /// When `version` is none.
    pub fn also_made(&self, (version, kind): (&str, &str), name: &str) -> Result<()> {
        let of = resource(&json!({"apiVersion": version, "kind": kind}))?;
        self.remember((of, None, name.to_owned()));
        Ok(())
    }

    /// Takes away what was put; what was put first goes last.
    ///
    /// # Errors
    /// What could not be taken away, after everything else was.
    pub async fn clean(self) -> Result<()> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        let mut outcome = Ok(());
        for (of, namespace, name) in made.iter().rev() {
            let api = self.api(of, namespace.as_deref());
            match api.delete(name, &DeleteParams::default().grace_period(0)).await {
                Err(kube::Error::Api(status)) if status.code == GONE => {}
                Err(error) => outcome = Err(error).with_context(|| format!("{} {name} stays", of.kind)),
                Ok(_) => {}
            }
        }
        outcome
    }

    fn api(&self, of: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, of),
            None => Api::all_with(self.client.clone(), of),
        }
    }
}

/// An API server of the harness with every kind that the mesh reads.
///
/// # Errors
/// What the system says.
pub fn harness() -> Result<ApiServer> {
    let api = ApiServer::start(vec![TcpListener::bind("127.0.0.1:0")?])?;
    api.install_crds()?;
    Ok(api)
}

fn resource(object: &Value) -> Result<ApiResource> {
    let version = object["apiVersion"].as_str().context("no apiVersion")?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    Ok(ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object["kind"].as_str().context("no kind")?)))
}
