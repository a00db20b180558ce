//! One request of the CA API: who asks, for whom, and whether that is granted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::super::authority::{Authority, Purpose, Request, uri_name};
use super::super::ca::{SignedCert, WORKLOAD_TTL_MAX};
use super::super::error::CertError;
use super::super::istio::{CertificateRequest, CertificateResponse};
use super::super::node::{NodeIdentity, NodeName};
use super::super::node_login::NODE_TTL;
use super::super::state;
use super::authorize::NodeAuthorizer;
use super::tokens::JoinTokens;
use crate::model::identity::Identity;

/// Shortest life given: less would be over before it is in use.
const TTL_MIN: Duration = Duration::from_secs(300);

/// Most characters of a stranger's text that are repeated to anybody.
const SHOWN_MAX_CHARS: usize = 256;

/// What a caller has shown. No `Debug`: it may hold a token.
pub(super) enum Caller {
    /// A node certificate of ours, verified by TLS.
    Node(NodeIdentity),
    /// A bearer token, not looked at yet.
    Token(Zeroizing<String>),
    /// Nothing.
    Nobody,
}

/// Why a request is not granted. Its text goes to the caller and into the log.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Rejection {
    /// The caller's: it has not shown who it is.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller's: it may not have this.
    #[error("{0}")]
    Denied(String),
    /// The caller's: the request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Ours.
    #[error("the CA failed to sign")]
    Failed(CertError),
}

/// The CA's decisions.
#[derive(Debug)]
pub(super) struct CaService {
    pub(super) authority: Authority,
    pub(super) tokens: JoinTokens,
    pub(super) authorizer: Arc<dyn NodeAuthorizer>,
    pub(super) trust_domain: Arc<str>,
}

enum Subject {
    Workload(Identity),
    Node(NodeIdentity),
}

impl CaService {
    /// Answers one request.
    pub(super) fn answer(
        &self,
        caller: &Caller,
        message: &CertificateRequest,
    ) -> Result<CertificateResponse, Rejection> {
        let csr = Request::read(&message.csr).map_err(|e| Rejection::Invalid(e.to_string()))?;
        let subject = self.subject(&csr, message.impersonated())?;
        let ttl = Duration::from_secs(u64::try_from(message.validity_duration).unwrap_or(0));
        let signed = match subject {
            Subject::Workload(identity) => self.workload(caller, &csr, &identity, ttl),
            Subject::Node(node) => self.node(caller, &csr, &node, ttl),
        }?;
        Ok(response(&signed))
    }

    /// For whom the request is: the CSR and the metadata must not disagree.
    fn subject(&self, csr: &Request, impersonated: Option<&str>) -> Result<Subject, Rejection> {
        let mut names: BTreeSet<&str> = csr.uris().iter().map(String::as_str).collect();
        names.extend(impersonated);
        let names: Vec<&str> = names.into_iter().collect();
        let [name] = names.as_slice() else {
            return Err(Rejection::Invalid(match names.len() {
                0 => "the request names no identity".to_owned(),
                _ => format!("the request names several identities: {}", shown(&names.join(", "))),
            }));
        };
        let (subject, trust_domain) = if let Ok(identity) = name.parse::<Identity>() {
            let trust_domain = identity.trust_domain().to_owned();
            (Subject::Workload(identity), trust_domain)
        } else if let Ok(node) = name.parse::<NodeIdentity>() {
            let trust_domain = node.trust_domain().to_owned();
            (Subject::Node(node), trust_domain)
        } else {
            return Err(Rejection::Invalid(format!("`{}` is neither a workload nor a node identity", shown(name))));
        };
        if trust_domain != *self.trust_domain {
            return Err(Rejection::Denied(format!("{name} is not of the trust domain {}", self.trust_domain)));
        }
        Ok(subject)
    }

    fn workload(
        &self,
        caller: &Caller,
        csr: &Request,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<SignedCert, Rejection> {
        let node = match caller {
            Caller::Node(node) => node.name(),
            Caller::Token(_) => {
                return Err(Rejection::Denied(format!(
                    "a join token is good for a node certificate, not for {identity}"
                )));
            }
            Caller::Nobody => {
                return Err(Rejection::Unauthenticated(format!("{identity} needs a node certificate")));
            }
        };
        if !self.authorizer.may(node, identity) {
            return Err(Rejection::Denied(format!(
                "node {node} may not have {identity}: no enrolled pod of this service account is on that node"
            )));
        }
        self.sign(csr, &identity.to_string(), Purpose::Workload, ttl, WORKLOAD_TTL_MAX)
            .inspect(|_| tracing::info!(%node, %identity, "certificate issued"))
    }

    fn node(
        &self,
        caller: &Caller,
        csr: &Request,
        wanted: &NodeIdentity,
        ttl: Duration,
    ) -> Result<SignedCert, Rejection> {
        let sign = || self.sign(csr, &wanted.to_string(), Purpose::Node, ttl, NODE_TTL);
        let node: &NodeName = wanted.name();
        match caller {
            Caller::Node(own) if own == wanted => sign().inspect(|_| tracing::info!(%node, "node certificate renewed")),
            Caller::Node(own) => {
                Err(Rejection::Denied(format!("node {} may not have the certificate of node {node}", own.name())))
            }
            Caller::Token(token) => {
                let refused = |e: super::tokens::TokenError| Rejection::Unauthenticated(format!("node {node}: {e}"));
                let good = self.tokens.check(token, node).map_err(refused)?;
                // Signed first: a token is spent for a certificate, not for an error.
                let signed = sign()?;
                self.tokens.spend(good).map_err(refused)?;
                tracing::info!(%node, "node joined");
                Ok(signed)
            }
            Caller::Nobody => {
                Err(Rejection::Unauthenticated(format!("node {node} needs a join token or its certificate")))
            }
        }
    }

    fn sign(
        &self,
        csr: &Request,
        name: &str,
        purpose: Purpose,
        ttl: Duration,
        max: Duration,
    ) -> Result<SignedCert, Rejection> {
        let ttl = if ttl.is_zero() { max } else { ttl.clamp(TTL_MIN, max) };
        uri_name(name).and_then(|name| self.authority.sign(csr, vec![name], purpose, ttl)).map_err(|error| {
            tracing::error!(%error, "signing failed");
            Rejection::Failed(error)
        })
    }
}

/// Text of a stranger as it may stand in a log: one line, not endless.
fn shown(text: &str) -> String {
    text.escape_debug().take(SHOWN_MAX_CHARS).collect()
}

/// Leaf and intermediates one by one, then all roots in one entry: Istio's convention.
fn response(signed: &SignedCert) -> CertificateResponse {
    let pem = |cert: &CertificateDer<'_>| state::pem("CERTIFICATE", cert).to_string();
    let mut cert_chain: Vec<String> = signed.chain.iter().map(pem).collect();
    cert_chain.push(signed.roots.iter().map(pem).collect());
    CertificateResponse { cert_chain }
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let code = match rejection {
            Rejection::Unauthenticated(_) => Code::Unauthenticated,
            Rejection::Denied(_) => Code::PermissionDenied,
            Rejection::Invalid(_) => Code::InvalidArgument,
            Rejection::Failed(_) => Code::Internal,
        };
        Self::new(code, rejection.to_string())
    }
}
