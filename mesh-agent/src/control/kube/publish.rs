//! Publishing which pods this agent has captured: the `CaptureState` of its node, applied server-side.
//!
//! § No downgrade: other agents tunnel to a pod from the moment they read it there. One task owns the object; it
//! applies the newest state, and goes on trying while the API server does not take it.

use std::time::Duration;

use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Kind;
use super::backoff::Backoff;
use super::connect::describe;
use super::watch::{CONFLICT, NOT_FOUND, code, path};
use crate::control::ControlError;
use crate::control::publish::{Published, state};

/// How long [`Publisher::publish`] waits for the API server.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Publishes the captures of one node.
#[derive(Debug)]
pub struct Publisher {
    node: String,
    runtime: Handle,
    /// What is to be published, by its number; 0 before there is anything.
    wanted: watch::Sender<(u64, Value)>,
    /// The number of what the API server has.
    applied: watch::Receiver<u64>,
}

impl Publisher {
    /// Starts the task that owns the object.
    pub(super) fn start(client: kube::Client, node: &str) -> Result<Self, ControlError> {
        let runtime = Handle::try_current().map_err(|error| ControlError::Internal(error.to_string()))?;
        let (wanted, newest) = watch::channel((0, Value::Null));
        let (done, applied) = watch::channel(0);
        let manager = format!("mesh-agent.io/{node}");
        let applier = Applier { client, node: node.to_owned(), manager, newest, done, owner: None, written: None };
        runtime.spawn(applier.run());
        Ok(Self { node: node.to_owned(), runtime, wanted, applied })
    }

    /// Publishes that the node's agent has captured `pods` and no others, replacing what it published before.
    ///
    /// Returns when the API server has it, or after 2 s: it is tried further then, until it succeeds or there is
    /// something newer to publish. Blocks; not for threads of a runtime.
    ///
    /// # Errors
    /// Only when the agent is ending.
    pub fn publish(&self, pods: &[Published]) -> Result<(), ControlError> {
        let value = state(&self.node, pods);
        let mut number = 0;
        self.wanted.send_modify(|wanted| {
            number = wanted.0 + 1;
            *wanted = (number, value);
        });
        let mut applied = self.applied.clone();
        let waited = self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, applied.wait_for(|applied| *applied >= number))
                .await
                .map(|seen| seen.is_ok())
        });
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => Err(ControlError::Internal("the task that publishes captures has ended".to_owned())),
            // The task says so, and why.
            Err(_) => Ok(()),
        }
    }
}

/// The task that owns the node's object.
struct Applier {
    client: kube::Client,
    node: String,
    manager: String,
    newest: watch::Receiver<(u64, Value)>,
    done: watch::Sender<u64>,
    /// The uid of the Node, which owns the object: it goes when the node does.
    owner: Option<String>,
    /// The version that this agent wrote last. An attempt that is still under way when a successor has published names
    /// an older one, and comes to nothing.
    written: Option<String>,
}

impl Applier {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        while self.newest.changed().await.is_ok() {
            let mut told = false;
            // Until the newest is applied; each round is bounded by its attempt and the backoff.
            loop {
                let (number, value) = self.newest.borrow_and_update().clone();
                match self.apply(&value).await {
                    Ok(()) => {
                        backoff.reset();
                        self.done.send_replace(number);
                        break;
                    }
                    Err(reason) if !told => {
                        told = true;
                        let node = &self.node;
                        tracing::warn!(node, %reason, "the CaptureState cannot be applied; it is tried further");
                    }
                    Err(_) => {}
                }
                tokio::select! {
                    () = backoff.wait() => {}
                    changed = self.newest.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    async fn apply(&mut self, value: &Value) -> Result<(), String> {
        let version = version(Kind::CaptureState);
        let mut value = value.clone();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            self.find_owner().await;
            if let Some(uid) = &self.owner {
                let owner = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid});
                metadata.insert("ownerReferences".to_owned(), json!([owner]));
            }
            if let Some(written) = self.written.take() {
                metadata.insert("resourceVersion".to_owned(), written.into());
            }
        }
        let parameters = PatchParams::apply(&self.manager).force();
        let request = Request::new(path(Kind::CaptureState, version))
            .patch(&self.node, &parameters, &Patch::Apply(&value))
            .map_err(|error| error.to_string())?;
        match tokio::time::timeout(ATTEMPT, self.client.request::<Value>(request)).await {
            Ok(Ok(applied)) => {
                let now = applied.pointer("/metadata/resourceVersion").and_then(Value::as_str);
                self.written = now.map(str::to_owned);
                Ok(())
            }
            Ok(Err(error)) if code(&error) == Some(CONFLICT) => Err("another agent of this node has written it".into()),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err(format!("no answer within {} s", ATTEMPT.as_secs())),
        }
    }

    /// Asks for the uid of the Node, once. Without one for now captures do not wait for it.
    async fn find_owner(&mut self) {
        if self.owner.is_some() {
            return;
        }
        let path = path(Kind::Node, version(Kind::Node));
        let Ok(request) = Request::new(path).get(&self.node, &GetParams::default()) else { return };
        let reason = match tokio::time::timeout(ATTEMPT, self.client.request::<Value>(request)).await {
            Ok(Ok(node)) => {
                self.owner = node.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
                return;
            }
            // An agent of a node that the cluster does not have: nothing owns its object.
            Ok(Err(error)) if code(&error) == Some(NOT_FOUND) => return,
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("no answer within {} s", ATTEMPT.as_secs()),
        };
        tracing::warn!(node = self.node, %reason, "the CaptureState is applied without its owner");
    }
}

fn version(kind: Kind) -> &'static str {
    kind.api().1.first().copied().unwrap_or_default()
}
