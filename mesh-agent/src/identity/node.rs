//! Node identities: `spiffe://<trust domain>/node/<name>`.
//!
//! They prove to `mesh-agent ca` which node's agent is asking, and nothing else: no workload peer ever has
//! one, and a type of their own keeps the two from being taken for each other.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest DNS-1123 subdomain, hence longest Kubernetes node name.
const NODE_NAME_MAX_BYTES: usize = 253;
/// Longest label of one.
const LABEL_MAX_BYTES: usize = 63;

/// A node's name: a DNS-1123 subdomain.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

/// The name of a node in a trust domain.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIdentity {
    trust_domain: Arc<str>,
    name: NodeName,
}

/// Why a text is not a node name or node identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// Not a DNS-1123 subdomain.
    #[error("`{0}` is not a node name: labels of a-z, 0-9 and inner `-`, joined by dots, at most 253 characters")]
    Name(String),
    /// Not of the form of a node identity.
    #[error("`{0}` is not of the form spiffe://<trust domain>/node/<name>")]
    Form(String),
}

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= LABEL_MAX_BYTES
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() > NODE_NAME_MAX_BYTES || !name.split('.').all(label_ok) {
            return Err(NodeNameError::Name(name.to_owned()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NodeIdentity {
    /// The identity of node `name` in `trust_domain` (not checked here: it is our own configuration).
    #[must_use]
    pub fn new(trust_domain: &str, name: NodeName) -> Self {
        Self { trust_domain: trust_domain.into(), name }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The node.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.name
    }
}

impl FromStr for NodeIdentity {
    type Err = NodeNameError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let form = || NodeNameError::Form(uri.to_owned());
        let (trust_domain, name) =
            uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once("/node/")).ok_or_else(form)?;
        if trust_domain.is_empty() || trust_domain.contains('/') {
            return Err(form());
        }
        Ok(Self::new(trust_domain, name.parse()?))
    }
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/node/{}", self.trust_domain, self.name)
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::Identity;

    #[test]
    fn a_node_identity_prints_as_it_was_read() {
        for uri in ["spiffe://cluster.local/node/a", "spiffe://td/node/ip-10-0-0-1.eu-west-1.compute.internal"] {
            assert_eq!(uri.parse::<NodeIdentity>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn what_is_not_a_node_name_is_named() {
        let long = "a".repeat(64);
        for name in ["", ".", "a.", "-a", "a-", "A", "a_b", "a/b", "a..b", long.as_str()] {
            assert_eq!(name.parse::<NodeName>(), Err(NodeNameError::Name(name.to_owned())), "{name}");
        }
        assert!("spiffe://td/node/a/b".parse::<NodeIdentity>().is_err());
        assert!("spiffe:///node/a".parse::<NodeIdentity>().is_err());
        assert!("spiffe://td/x/node/a".parse::<NodeIdentity>().is_err());
    }

    #[test]
    fn a_node_identity_is_no_workload_identity_and_the_reverse() {
        assert!("spiffe://td/node/a".parse::<Identity>().is_err());
        assert!("spiffe://td/ns/a/sa/b".parse::<NodeIdentity>().is_err());
        assert!("spiffe://td/ns/node/sa/b".parse::<NodeIdentity>().is_err());
    }
}
