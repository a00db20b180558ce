//! The fields of an `AuthorizationPolicy` as they are written, with what its CRD says of them. `authorization` reads
//! and judges them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::requests::RawRequests;
use super::selector::RawSelector;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Raw {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
    pub(super) spec: Spec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

/// Who may connect to a pod.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    /// The pods that it is for; absent: every pod of the namespace, and of the mesh in mesh-agent-system.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub(super) target_refs: Vec<RawTarget>,
    /// DENY goes before ALLOW; AUDIT changes no verdict. Absent: ALLOW.
    #[serde(default = "allow")]
    pub(super) action: RawAction,
    /// One that matches is enough; none: matches nothing.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(super) rules: Vec<RawRule>,
    /// GEP-3779: only this level exists so far.
    #[serde(rename = "enforcementLevel")]
    _enforcement_level: Option<RawLevel>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RawTarget {
    /// Absent, empty or `core`.
    #[serde(default)]
    #[schemars(extend("enum" = ["", "core"]))]
    pub(super) group: String,
    /// Only `Pod`.
    #[schemars(extend("enum" = ["Pod"]))]
    pub(super) kind: String,
    /// Required by GEP-3779; `{}` is every pod.
    pub(super) selector: RawSelector,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum RawAction {
    Allow,
    Deny,
    Audit,
}

fn allow() -> RawAction {
    RawAction::Allow
}

#[derive(Debug, Deserialize, JsonSchema)]
enum RawLevel {
    Network,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawRule {
    /// One that matches is enough. Absent: anyone; empty: nobody.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(max = 64))]
    pub(super) sources: Option<Vec<RawSource>>,
    /// What it asks of a connection.
    #[serde(default, deserialize_with = "present")]
    pub(super) network_attributes: Option<RawAttributes>,
    /// What it asks of a request; all of it must hold. Absent: connections, whatever they carry.
    #[serde(default, deserialize_with = "present")]
    pub(super) request_attributes: Option<RawRequests>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RawAttributes {
    /// Ports of the pod; absent: every port.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1, max = 256), inner(range(min = 1)))]
    pub(super) ports: Option<Vec<u16>>,
}

/// Who connects. Everything that one source names must match.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    of_type("ServiceAccount", "serviceAccount"), of_type("SPIFFE", "spiffe"), of_type("Namespace", "namespace"),
    of_type("NotIdentity", "notIdentities"),
    {"rule": "self.type != 'CIDR' || has(self.cidrs) || has(self.notCidrs)",
     "message": "type CIDR needs cidrs or notCidrs"},
]))]
pub(super) struct RawSource {
    /// What names the peer.
    #[serde(rename = "type")]
    pub(super) kind: RawKind,
    /// An identity of the mesh's own trust domain.
    #[serde(default, deserialize_with = "present")]
    pub(super) service_account: Option<RawServiceAccount>,
    /// The SPIFFE id of a workload, of any trust domain.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(max = 2048), regex(pattern = SPIFFE))]
    pub(super) spiffe: Option<String>,
    /// All identities of a namespace.
    #[serde(default, deserialize_with = "present")]
    pub(super) namespace: Option<RawNamespace>,
    /// Anyone proven, but these.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<Vec<Excepted>>", length(min = 1, max = 64))]
    pub(super) not_identities: Option<Vec<RawSource>>,
    /// Source addresses, as networks or single addresses.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<Vec<Cidr>>", length(min = 1, max = 256))]
    pub(super) cidrs: Option<Vec<String>>,
    /// Networks or addresses that are not meant.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<Vec<Cidr>>", length(min = 1, max = 256))]
    pub(super) not_cidrs: Option<Vec<String>>,
}

/// For the schema alone: a source has `field` if it is of this type, and only then.
fn of_type(kind: &str, field: &str) -> Value {
    json!({
        "rule": format!("(self.type == '{kind}') == has(self.{field})"),
        "message": format!("{field} belongs to type {kind}, which needs it"),
    })
}

/// The form of a workload's SPIFFE id: see [`crate::model::identity::Identity`].
const SPIFFE: &str = "^spiffe://[a-z0-9._-]+/ns/[a-z0-9._-]+/sa/[a-z0-9._-]+$";

/// For the schema alone: a network, or an address.
#[derive(JsonSchema)]
#[schemars(extend("anyOf" = [{"format": "cidr"}, {"format": "ipv4"}, {"format": "ipv6"}], "maxLength" = 64))]
struct Cidr(#[expect(dead_code, reason = "the schema of a list's element")] String);

/// For the schema alone, which cannot be recursive: what a source of type NotIdentity excepts.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    of_type("ServiceAccount", "serviceAccount"), of_type("SPIFFE", "spiffe"), of_type("Namespace", "namespace"),
]))]
#[expect(dead_code, reason = "the schema of a list's element")]
struct Excepted {
    /// What names the identity.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["ServiceAccount", "SPIFFE", "Namespace"]))]
    kind: String,
    /// An identity of the mesh's own trust domain.
    service_account: Option<RawServiceAccount>,
    /// The SPIFFE id of a workload.
    #[schemars(length(max = 2048), regex(pattern = SPIFFE))]
    spiffe: Option<String>,
    /// All identities of a namespace.
    namespace: Option<RawNamespace>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq)]
pub(super) enum RawKind {
    ServiceAccount,
    #[serde(rename = "SPIFFE")]
    Spiffe,
    Namespace,
    NotIdentity,
    #[serde(rename = "CIDR")]
    Cidr,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RawServiceAccount {
    /// Absent: the policy's.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(max = 253), regex(pattern = "^[a-z0-9.-]+$"))]
    pub(super) namespace: Option<String>,
    /// `*`: all of the namespace.
    #[schemars(length(max = 253), regex(pattern = r"^(\*|[a-z0-9.-]+)$"))]
    pub(super) name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RawNamespace {
    /// Its name.
    #[schemars(length(max = 253), regex(pattern = "^[a-z0-9.-]+$"))]
    pub(super) name: String,
}

/// Reads a field that may be absent but not `null`.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
