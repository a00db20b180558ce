//! One document → one object of a kind we use, as little of it as the mesh needs, with its mistakes named.
//!
//! The Kubernetes kinds are read through `k8s-openapi` and reduced at once: ten thousand pods cost what the mesh
//! keeps of them. Our enforcement kinds are never refused: with a mistake they become an object that denies what
//! it targets (design §5). An object is judged alone here; what needs two of them is [`super::compile`]'s.

mod authorization;
mod authorization_fields;
mod capture_state;
mod crd;
mod decode;
mod grant;
mod meta;
mod peer_policy;
mod place;
mod pod;
mod probes;
mod protocols;
mod requests;
mod route;
mod selector;
mod service;
mod slice;
mod suspect;
#[cfg(test)]
mod tests;
mod traffic;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

pub(super) use self::capture_state::{CaptureState, to_value as capture_state};
pub(super) use self::crd::all as crds;
pub(super) use self::decode::Mistake;
pub(super) use self::meta::{
    EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, MODE_LABEL, Mode, key, withhold_netns,
};
pub(super) use self::peer_policy::{PeerPolicy, UdpPorts};
pub(super) use self::place::{Namespace, Node};
pub(super) use self::pod::Pod;
pub(super) use self::route::{ParentReading, Route, RouteRule, read_parent};
pub(super) use self::service::{Distribution, Service, ServiceSpecPort, TargetPort};
pub(super) use self::slice::{Slice, SliceEndpoint};
pub(super) use self::suspect::suspects;
pub(super) use self::traffic::{TrafficPolicy, TrafficTarget};
use crate::model::policy::{Action, Policy, Target};
use crate::model::problem::Effect;
use crate::model::route::RouteKind;

/// The API group of our own kinds.
pub(super) const GROUP: &str = "mesh-agent.io";
/// The version of our own kinds that this agent reads and writes.
pub(super) const API_VERSION: &str = "mesh-agent.io/v1alpha1";
/// The mesh's root namespace: an enforcement object there without a selector is for the whole mesh.
pub(super) const ROOT_NAMESPACE: &str = "mesh-agent-system";

/// The kinds we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    ServiceAccount,
    EndpointSlice,
    AuthorizationPolicy,
    PeerPolicy,
    TrafficPolicy,
    CaptureState,
    Route(RouteKind),
    ReferenceGrant,
}

impl Kind {
    pub(super) const ALL: [Self; 15] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::ServiceAccount,
        Self::EndpointSlice,
        Self::AuthorizationPolicy,
        Self::PeerPolicy,
        Self::TrafficPolicy,
        Self::CaptureState,
        Self::Route(RouteKind::Http),
        Self::Route(RouteKind::Grpc),
        Self::Route(RouteKind::Tls),
        Self::Route(RouteKind::Tcp),
        Self::ReferenceGrant,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::EndpointSlice => "EndpointSlice",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerPolicy => "PeerPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::CaptureState => "CaptureState",
            Self::Route(kind) => kind.as_str(),
            Self::ReferenceGrant => "ReferenceGrant",
        }
    }

    /// The name in the paths of the API.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::ServiceAccount => "serviceaccounts",
            Self::EndpointSlice => "endpointslices",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::PeerPolicy => "peerpolicies",
            Self::TrafficPolicy => "trafficpolicies",
            Self::CaptureState => "capturestates",
            Self::Route(RouteKind::Http) => "httproutes",
            Self::Route(RouteKind::Grpc) => "grpcroutes",
            Self::Route(RouteKind::Tls) => "tlsroutes",
            Self::Route(RouteKind::Tcp) => "tcproutes",
            Self::ReferenceGrant => "referencegrants",
        }
    }

    /// The group and versions that we read.
    pub(super) fn api(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => ("", &["v1"]),
            Self::EndpointSlice => ("discovery.k8s.io", &["v1"]),
            Self::AuthorizationPolicy | Self::PeerPolicy | Self::TrafficPolicy | Self::CaptureState => {
                (GROUP, &["v1alpha1"])
            }
            Self::Route(RouteKind::Http) | Self::ReferenceGrant => (route::GATEWAY_GROUP, &["v1", "v1beta1"]),
            Self::Route(RouteKind::Grpc) => (route::GATEWAY_GROUP, &["v1"]),
            Self::Route(RouteKind::Tls) => (route::GATEWAY_GROUP, &["v1", "v1alpha3", "v1alpha2"]),
            Self::Route(RouteKind::Tcp) => (route::GATEWAY_GROUP, &["v1", "v1alpha2"]),
        }
    }

    /// Objects of such a kind deny what they target while they have a mistake.
    pub(super) fn is_enforcement(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerPolicy)
    }

    /// Part of every API server, which has checked the object: a field that we do not know is a newer one's.
    pub(super) fn is_built_in(self) -> bool {
        matches!(self.api().0, "" | "discovery.k8s.io")
    }

    pub(super) fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::CaptureState)
    }
}

/// What makes an object the same object in two files, or in two versions of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Empty for kinds without a namespace.
    pub(super) namespace: Arc<str>,
    /// Empty when it could not be read: such an object is nobody's duplicate.
    pub(super) name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "<unnamed>" } else { &self.name };
        if self.namespace.is_empty() {
            write!(f, "{} {name}", self.kind.as_str())
        } else {
            write!(f, "{} {}/{name}", self.kind.as_str(), self.namespace)
        }
    }
}

/// One object, reduced to what the mesh needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    /// Read only to name its mistakes: identities come from the pods.
    ServiceAccount,
    Slice(Arc<Slice>),
    /// One policy per target.
    Authorization(Vec<Arc<Policy>>),
    Peer(Arc<PeerPolicy>),
    Traffic(Arc<TrafficPolicy>),
    CaptureState(Arc<CaptureState>),
    Route(Arc<Route>),
    /// Read only to name its mistakes.
    ReferenceGrant,
}

impl Object {
    /// What a mistake in the object leads to.
    pub(super) fn effect_of_mistakes(&self) -> Effect {
        match self {
            // It enforces nothing, so there is nothing to fall back to.
            Self::Authorization(policies) if policies.iter().all(|policy| policy.action == Action::Audit) => {
                Effect::Ignored
            }
            Self::Authorization(_) | Self::Peer(_) => Effect::Denies,
            _ => Effect::Partly,
        }
    }

    /// An enforcement object as it is when it cannot be trusted: denying all that it targets. Others stay.
    pub(super) fn broken(self, reason: &str) -> Self {
        match self {
            Self::Authorization(policies) => {
                let break_one = |policy: Arc<Policy>| {
                    Arc::new(Policy { rules: Vec::new(), broken: Some(reason.into()), ..Policy::clone(&policy) })
                };
                Self::Authorization(policies.into_iter().map(break_one).collect())
            }
            Self::Peer(p) => Self::Peer(Arc::new(PeerPolicy::broken(&p.namespace, &p.name, p.target.clone(), p.guard))),
            other => other,
        }
    }
}

/// What a document turned out to be.
#[derive(Debug)]
pub(super) enum Reading {
    /// An object; with mistakes it works but for these, or, for enforcement kinds, denies.
    Object(Key, Object, Vec<Mistake>),
    /// An object that cannot be used. `None`: not even its kind and name are known.
    Unusable(Option<Key>, Vec<Mistake>),
    /// Of a kind that does not concern us.
    Foreign,
}

/// Reads one document. A `v1` `List` is for the caller to take apart ([`list_items`]).
pub(super) fn read(value: &Value, repeated: &[String]) -> Reading {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let Some(kind) = Kind::ALL.into_iter().find(|known| known.as_str() == kind) else {
        return read_unknown(group, api_version, kind);
    };
    let (own_group, versions) = kind.api();
    // An enforcement object that forgot its group or version is ours rather than nobody's: it must not get lost.
    let is_ours = group == own_group || (kind.is_enforcement() && matches!(api_version, "" | GROUP));
    if !is_ours {
        return Reading::Foreign;
    }
    let key = meta::key(kind, value);
    // A route loses the rule alone in which a key stands twice.
    let of_a_rule = |path: &&String| matches!(kind, Kind::Route(_)) && path.starts_with("spec.rules[");
    let twice = repeated.iter().filter(|path| !of_a_rule(path));
    let mut mistakes: Vec<Mistake> = twice.map(|path| Mistake::new(path, "stands twice")).collect();
    if group != own_group || !versions.contains(&version) {
        let slash = if own_group.is_empty() { "" } else { "/" };
        let reason = format!("`{api_version}` is not {own_group}{slash}{}", versions.join(" or "));
        mistakes.push(Mistake::new("apiVersion", reason));
    }
    if !kind.is_enforcement() {
        if key.name.is_empty() {
            mistakes.push(Mistake::new("metadata.name", "missing"));
        }
        if !mistakes.is_empty() {
            return Reading::Unusable(Some(key), mistakes);
        }
    }
    match read_object(kind, value, repeated, &key, &mut mistakes) {
        Ok(object) => Reading::Object(key, object, mistakes),
        Err(mistake) => Reading::Unusable(Some(key), vec![mistake]),
    }
}

fn read_object(
    kind: Kind,
    value: &Value,
    repeated: &[String],
    key: &Key,
    mistakes: &mut Vec<Mistake>,
) -> Result<Object, Mistake> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(Arc::new(place::read_namespace(value, mistakes)?)),
        Kind::Node => Object::Node(Arc::new(place::read_node(value, mistakes)?)),
        Kind::Pod => Object::Pod(Arc::new(pod::read(value, mistakes)?)),
        Kind::Service => Object::Service(Arc::new(service::read(value, mistakes)?)),
        Kind::EndpointSlice => Object::Slice(Arc::new(slice::read(value, mistakes)?)),
        Kind::ServiceAccount => place::read_service_account(value, mistakes).map(|()| Object::ServiceAccount)?,
        Kind::CaptureState => Object::CaptureState(Arc::new(capture_state::read(value, mistakes)?)),
        Kind::AuthorizationPolicy => Object::Authorization(authorization::read(value, key, mistakes)),
        Kind::PeerPolicy => Object::Peer(Arc::new(peer_policy::read(value, key, mistakes))),
        Kind::TrafficPolicy => Object::Traffic(Arc::new(traffic::read(value, mistakes)?)),
        Kind::Route(kind) => Object::Route(Arc::new(route::read(kind, value, repeated, mistakes)?)),
        Kind::ReferenceGrant => grant::read(value, mistakes).map(|()| Object::ReferenceGrant)?,
    })
}

fn read_unknown(group: &str, api_version: &str, kind: &str) -> Reading {
    let mistake = if group == GROUP || api_version == GROUP {
        Mistake::new("kind", format!("this version knows no `{kind}` in {GROUP}"))
    } else if kind.is_empty() || api_version.is_empty() {
        Mistake::new("", "not a Kubernetes object: `apiVersion` or `kind` is missing")
    } else {
        return Reading::Foreign;
    };
    Reading::Unusable(None, vec![mistake])
}

/// The items of a `v1` `List` (what `kubectl get -o yaml` prints); `None` for anything else.
pub(super) fn list_items(value: &Value) -> Option<&Vec<Value>> {
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List")
        && value.get("apiVersion").and_then(Value::as_str) == Some("v1");
    value.get("items").filter(|_| is_list).and_then(Value::as_array)
}

/// What an enforcement object of `namespace` without a selector targets.
fn whole(namespace: &Arc<str>) -> Target {
    if **namespace == *ROOT_NAMESPACE { Target::Mesh } else { Target::Namespace(Arc::clone(namespace)) }
}
