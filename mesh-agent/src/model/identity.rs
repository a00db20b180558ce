//! Workload identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! SPIFFE-ID (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>) for the form, Istio's
//! path layout for the parts. An [`Identity`] is only a name: what proves it is a TLS session or a kernel
//! record, and that proof is a [`PeerIdentity`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a service account in a trust domain.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Parts>);

/// Once for each service account, however many pods it has.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: Box<str>,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// Why a text is not a workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text does not have the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("`{0}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
    /// One part has a character that its kind of name does not allow.
    #[error("`{part}` of `{uri}` has a character outside [a-z0-9.-_]")]
    Character {
        /// The offending part.
        part: String,
        /// The whole text.
        uri: String,
    },
}

impl Identity {
    /// Builds the identity of `service_account` in `namespace`.
    ///
    /// # Errors
    /// When a part is empty or has a character that SPIFFE or Kubernetes names do not allow.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let form = || IdentityError::Form(uri.to_owned());
        let path = uri.strip_prefix("spiffe://").ok_or_else(form)?;
        let parts: Vec<&str> = path.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(form());
        };
        for part in [trust_domain, namespace, service_account] {
            if part.is_empty() {
                return Err(form());
            }
            if !part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b)) {
                return Err(IdentityError::Character { part: part.to_owned(), uri: uri.to_owned() });
            }
        }
        let (trust_domain, namespace) = (trust_domain.into(), namespace.into());
        Ok(Self(Arc::new(Parts { trust_domain, namespace, service_account: service_account.into() })))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain(), self.namespace(), self.service_account())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who the other side is, by proof. There is no third state: what is not proven is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerIdentity {
    /// Proven by a verified TLS session or by the network namespace the connection came out of.
    Verified(Identity),
    /// Plaintext, whatever its source IP says.
    Unknown,
}

impl PeerIdentity {
    /// The proven identity, if there is one.
    #[must_use]
    pub fn verified(&self) -> Option<&Identity> {
        match self {
            Self::Verified(identity) => Some(identity),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified(identity) => identity.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_prints_as_it_was_read() {
        let uri = "spiffe://cluster.local/ns/shop/sa/web";
        let identity: Identity = uri.parse().expect("valid");
        assert_eq!(identity.to_string(), uri);
        assert_eq!((identity.namespace(), identity.service_account()), ("shop", "web"));
    }

    #[test]
    fn what_is_not_a_workload_identity_is_named() {
        for uri in
            ["", "spiffe://", "http://a/ns/b/sa/c", "spiffe://a/ns/b", "spiffe://a/ns/b/sa/c/d", "spiffe://a/ns//sa/c"]
        {
            assert_eq!(uri.parse::<Identity>(), Err(IdentityError::Form(uri.to_owned())), "{uri}");
        }
        let upper_case = "spiffe://a/ns/B/sa/c".parse::<Identity>();
        assert!(matches!(upper_case, Err(IdentityError::Character { part, .. }) if part == "B"));
        assert!(Identity::new("a", "x/sa/y", "z").is_err(), "a slash must not move the parts");
    }
}
