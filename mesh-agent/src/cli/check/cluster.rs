//! Reads what `installed` needs to know about a cluster: the installation's objects from the API server, and what every
//! node's agent says of itself, with the rights of whoever asks.

use serde_json::Value;

use super::super::now;
use crate::admin::Request;
use crate::admin::status::Status;
use crate::cli::place::{Api, ask_all, wait};
use crate::control::{self, Operator, Resource, Unreached};

const APPS: &str = "/apis/apps/v1";
const CRDS: Resource =
    Resource { api: "/apis/apiextensions.k8s.io/v1", plural: "customresourcedefinitions", is_namespaced: false };
const DAEMON_SETS: Resource = Resource { api: APPS, plural: "daemonsets", is_namespaced: true };
const DEPLOYMENTS: Resource = Resource { api: APPS, plural: "deployments", is_namespaced: true };
const CONFIG_MAPS: Resource = Resource { api: "/api/v1", plural: "configmaps", is_namespaced: true };
/// Of the API server itself.
const VERSION: &str = "/version";
const GATEWAY_API: &str = "/apis/gateway.networking.k8s.io";

/// What was read, or why it could not be.
pub(super) type Read<T> = Result<T, String>;

/// A cluster with a mesh.
#[derive(Debug)]
pub(super) struct Installed {
    /// Where the agents should be.
    pub(super) namespace: String,
    /// `gitVersion` of the API server.
    pub(super) version: String,
    /// Our definitions, as this version makes them, with those that are there.
    pub(super) crds: Vec<(Value, Read<Option<Value>>)>,
    /// The Gateway API's group.
    pub(super) gateway_api: Read<Option<Value>>,
    /// The agents' DaemonSet.
    pub(super) agents: Read<Option<Value>>,
    /// The Deployment of `mesh-agent ca`.
    pub(super) authority: Read<Option<Value>>,
    /// The Deployment of `mesh-agent controller`.
    pub(super) controller: Read<Option<Value>>,
    /// The ConfigMap that the agents know the authority's roots by; none where they are told otherwise.
    pub(super) roots: Option<(String, Read<Option<Value>>)>,
    /// What each node's agent says; why all of them could not be asked.
    pub(super) nodes: Read<Vec<(String, Read<Status>)>>,
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// Reads it.
///
/// # Errors
/// When there is no API server to ask.
pub(super) fn read(api: &Api) -> Result<Installed, String> {
    wait(async {
        let operator = api.open().await?;
        // First: whoever is not answered here is not answered at all.
        let version = operator.about(VERSION).await.map_err(told)?.unwrap_or_default();
        let mut crds = Vec::new();
        for wanted in control::crds() {
            let name = wanted.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let found = operator.installed(&CRDS, name).await.map_err(told);
            crds.push((wanted, found));
        }
        let agents = operator.installed(&DAEMON_SETS, "mesh-agent").await.map_err(told);
        let roots = match agents.as_ref().ok().and_then(Option::as_ref).and_then(roots_of) {
            Some(name) => Some((name.clone(), operator.installed(&CONFIG_MAPS, &name).await.map_err(told))),
            None => None,
        };
        Ok(Installed {
            namespace: api.namespace().to_owned(),
            version: version.get("gitVersion").and_then(Value::as_str).unwrap_or("of an unknown version").to_owned(),
            crds,
            gateway_api: operator.about(GATEWAY_API).await.map_err(told),
            agents,
            authority: operator.installed(&DEPLOYMENTS, "mesh-agent-ca").await.map_err(told),
            controller: operator.installed(&DEPLOYMENTS, "mesh-agent-controller").await.map_err(told),
            roots,
            nodes: nodes(&operator).await,
            now: now(),
        })
    })
}

async fn nodes(operator: &Operator) -> Read<Vec<(String, Read<Status>)>> {
    let agents = operator.agents().await.map_err(told)?;
    let mut said = ask_all(operator, agents, &Request::Status).await;
    for node in operator.nodes().await.map_err(told)? {
        if said.iter().all(|(name, _)| *name != node) {
            said.push((node.clone(), Err(format!("node {node} has no agent"))));
        }
    }
    Ok(said)
}

/// The ConfigMap that the volume of the agents' `--ca-root` is made of.
fn roots_of(daemon_set: &Value) -> Option<String> {
    let volumes = daemon_set.pointer("/spec/template/spec/volumes")?.as_array()?;
    let volume = volumes.iter().find(|volume| volume.get("name").is_some_and(|name| name == "ca-roots"))?;
    Some(volume.pointer("/configMap/name")?.as_str()?.to_owned())
}

fn told(error: Unreached) -> String {
    error.to_string()
}
