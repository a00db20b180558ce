//! L4 authorization rules, compiled from `AuthorizationPolicy` objects.
//!
//! The shape follows GEP-3779 (targets, sources, network attributes) with DENY added. What each field
//! means is decided in [`crate::policy`]; this file only holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::selector::LabelSelector;

/// What a policy does with a flow that one of its rules matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Selected workloads accept only what some ALLOW rule matches.
    Allow,
    /// Refused, before any ALLOW is looked at.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
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
