//! Namespace, Node and ServiceAccount: where pods are and who they are.

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use serde_json::Value;

use super::decode::{Mistake, decode};
use super::meta::{self, Mode};

/// The node label that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A Namespace.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct Namespace {
    pub(in crate::control) name: Arc<str>,
    pub(in crate::control) mode: Option<Mode>,
}

/// A Node.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct Node {
    pub(in crate::control) name: Arc<str>,
    /// Empty when the node has no zone label.
    pub(in crate::control) zone: Arc<str>,
}

pub(super) fn read_namespace(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<Namespace, Mistake> {
    let (namespace, unknown) = decode::<v1::Namespace>(value);
    let metadata = namespace?.metadata;
    mistakes.extend(unknown);
    Ok(Namespace { name: meta::name(&metadata), mode: meta::mode(&metadata, mistakes) })
}

pub(super) fn read_node(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<Node, Mistake> {
    let (node, unknown) = decode::<v1::Node>(value);
    let metadata = node?.metadata;
    mistakes.extend(unknown);
    let zone = metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)).map_or("", String::as_str);
    Ok(Node { name: meta::name(&metadata), zone: zone.into() })
}

pub(super) fn read_service_account(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<(), Mistake> {
    let (account, unknown) = decode::<v1::ServiceAccount>(value);
    mistakes.extend(unknown);
    account.map(|_| ())
}
