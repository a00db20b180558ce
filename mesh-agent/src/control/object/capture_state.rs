//! `CaptureState`: which pods of its node an agent has captured, in `dir` mode a file beside the pods.
//!
//! § No downgrade: a pod named here is reached by mTLS or not at all (design §3).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::decode::{Mistake, decode};
use super::{API_VERSION, Kind};
use crate::model::workload::Captured;

/// What one agent has published.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct CaptureState {
    /// The agent's node: it speaks for pods of this node only.
    pub(in crate::control) node: Arc<str>,
    /// By pod uid.
    pub(in crate::control) pods: BTreeMap<Arc<str>, Captured>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
    spec: Spec,
}

/// Written by each agent: the pods of its node that are captured.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Spec {
    /// The agent's node: an entry counts only for a pod of it.
    node: String,
    /// They are reached by mTLS or not at all.
    pods: Vec<RawPod>,
}

#[derive(Debug, Deserialize, JsonSchema, Serialize)]
struct RawPod {
    /// The pod's uid.
    uid: String,
    /// `namespace/name`, for the reader.
    name: String,
    /// Counts how often the pod was captured anew.
    generation: u64,
    /// The tunnels that its agent takes.
    wire: Vec<String>,
}

pub(super) fn read(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<CaptureState, Mistake> {
    let (raw, unknown) = decode::<Raw>(value);
    let spec = raw?.spec;
    mistakes.extend(unknown);
    let captured = |pod: RawPod| {
        let wire = pod.wire.iter().map(|version| Arc::from(version.as_str())).collect();
        (Arc::from(pod.uid), Captured { generation: pod.generation, wire })
    };
    Ok(CaptureState { node: spec.node.into(), pods: spec.pods.into_iter().map(captured).collect() })
}

/// The object that [`read`] reads; `pods` are uid, `namespace/name` and what is published.
pub(in crate::control) fn to_value<'a>(
    node: &str,
    pods: impl Iterator<Item = (&'a str, String, &'a Captured)>,
) -> Value {
    let pods: Vec<RawPod> = pods
        .map(|(uid, name, captured)| RawPod {
            uid: uid.to_owned(),
            name,
            generation: captured.generation,
            wire: captured.wire.iter().map(ToString::to_string).collect(),
        })
        .collect();
    json!({
        "apiVersion": API_VERSION,
        "kind": Kind::CaptureState.as_str(),
        "metadata": {"name": node},
        "spec": {"node": node, "pods": pods},
    })
}
