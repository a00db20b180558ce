//! Authorization rules, compiled from `AuthorizationPolicy` objects.
//!
//! The shape follows GEP-3779 (targets, sources, network attributes) with DENY added. What each field
//! means is decided in [`crate::policy`]; this file only holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::Method;
use ipnet::IpNet;

use super::route::{HeaderMatch, PathMatch};
use super::selector::LabelSelector;

/// What a policy does with a flow that one of its rules matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Selected workloads accept only what some ALLOW rule matches.
    Allow,
    /// Refused, before any ALLOW is looked at.
    Deny,
    /// Reported, and otherwise as if the policy were not there.
    Audit,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        })
    }
}

/// One policy object.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// What its rules do.
    pub action: Action,
    /// Which workloads it protects.
    pub target: Target,
    /// Its rules; a policy with an error has none and `broken` says why.
    pub rules: Vec<Rule>,
    /// The object could not be read whole: it denies everything it targets (design §5).
    pub broken: Option<Arc<str>>,
}

/// Which workloads a policy selects.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Every workload of the mesh (an object in the mesh's root namespace without a selector).
    Mesh,
    /// Every workload of one namespace.
    Namespace(Arc<str>),
    /// Workloads of one namespace whose labels the selector matches.
    Selector {
        /// Namespace.
        namespace: Arc<str>,
        /// Which of its pods.
        labels: LabelSelector,
    },
}

/// One rule: matches when its sources match and its ports match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// `None` = anyone, proven or not; `Some(vec![])` = nobody (GEP-3779).
    pub sources: Option<Vec<Source>>,
    /// `None` = every port.
    pub ports: Option<Vec<u16>>,
    /// `None` = every connection, whatever it carries.
    pub requests: Option<RequestMatch>,
}

/// What a rule asks of a request: all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestMatch {
    /// One of these; `None` = any.
    pub methods: Option<Vec<Method>>,
    /// One of these, in canonical form; `None` = any. Never [`PathMatch::Grpc`]: a method of gRPC is a path.
    pub paths: Option<Vec<PathMatch>>,
    /// One of these; `None` = any.
    pub hosts: Option<Vec<HostMatch>>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
}

/// A host, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This one.
    Exact(Arc<str>),
    /// `*.example.org`: every host that ends in `.example.org`, which is what is kept.
    Below(Arc<str>),
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(end) => write!(f, "*{end}"),
        }
    }
}

/// One source of a rule. All the given fields must match (AND); an absent one matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// Proven identity.
    pub identity: Option<IdentityMatch>,
    /// Source address.
    pub cidrs: Option<Vec<IpNet>>,
    /// Negated source addresses: the source must lie in none of them.
    pub not_cidrs: Vec<IpNet>,
}

/// How a source names identities. An unproven peer matches none of them in an ALLOW and all in a DENY.
#[derive(Clone, Debug, PartialEq)]
pub enum IdentityMatch {
    /// One service account.
    ServiceAccount {
        /// Namespace.
        namespace: Arc<str>,
        /// Name, or `*` for all of the namespace.
        name: Arc<str>,
    },
    /// Every service account of a namespace.
    Namespace(Arc<str>),
    /// One full SPIFFE id.
    Spiffe(Arc<str>),
    /// Any identity but these.
    Not(Vec<IdentityMatch>),
}

impl Target {
    /// Whether a workload of `namespace` with `labels` is meant.
    #[must_use]
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Mesh => true,
            Self::Namespace(own) => **own == *namespace,
            Self::Selector { namespace: own, labels: selector } => **own == *namespace && selector.matches(labels),
        }
    }
}

impl Policy {
    /// `namespace/name`, as it stands in logs, metrics and errors.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
