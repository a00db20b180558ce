//! One request of the CA API: who asks, for whom, and whether that is granted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::super::authority::{Purpose, Request, uri_name};
use super::super::ca::SignedCert;
use super::super::chain;
use super::super::istio::{CertificateRequest, CertificateResponse};
use super::super::node::{NodeIdentity, NodeName};
use super::super::node_login::NODE_TTL;
use super::super::state;
use super::agent_login::AgentLogin;
use super::authorize::NodeAuthorizer;
use super::in_force::RootInForce;
use super::outcome::{CaOutcome, Rejection};
use super::tokens::JoinTokens;
use crate::model::identity::Identity;

/// Shortest life given where the CA does not give less at most: less would be over before it is in use.
const TTL_MIN: Duration = Duration::from_secs(300);

/// Most characters of a stranger's text that are repeated to anybody.
const SHOWN_MAX_CHARS: usize = 256;

/// Who a caller is. No `Debug`: it may hold a token.
pub(super) enum Caller {
    /// A node, by a certificate of ours, verified by TLS.
    Node(NodeIdentity),
    /// The agent of a node, by a token that the API server has judged.
    Agent(NodeName),
    /// A bearer token, not looked at yet.
    Token(Zeroizing<String>),
    /// Nothing was shown.
    Nobody,
}

/// How callers prove which node they are.
#[derive(Debug)]
pub(super) enum Login {
    /// By a node certificate, for which a join token is good once.
    Join(JoinTokens),
    /// By service account tokens of a cluster.
    Agents(AgentLogin),
}

/// The CA's decisions.
#[derive(Debug)]
pub(super) struct CaService {
    pub(super) root: RootInForce,
    pub(super) login: Login,
    pub(super) authorizer: Arc<dyn NodeAuthorizer>,
    pub(super) trust_domain: Arc<str>,
    /// Longest life of a workload's certificate.
    pub(super) max_ttl: Duration,
}

enum Subject {
    Workload(Identity),
    Node(NodeIdentity),
}

/// An answer with what the log says of it.
pub(super) struct Answer {
    /// The caller's node, where it is known.
    pub(super) node: Option<NodeName>,
    /// Whom the certificate is for, where the request says so.
    pub(super) subject: Option<String>,
    pub(super) result: Result<SignedCert, Rejection>,
}

impl CaService {
    /// Finds out who the caller is, and answers its request.
    pub(super) async fn serve(&self, caller: Caller, message: &CertificateRequest) -> Answer {
        let caller = match (caller, &self.login) {
            (Caller::Token(token), Login::Agents(agents)) => match agents.node(&token).await {
                Ok(node) => Caller::Agent(node),
                Err(rejection) => {
                    let subject = message.impersonated().map(shown);
                    return Answer { node: None, subject, result: Err(rejection) };
                }
            },
            (caller, _) => caller,
        };
        self.answer(&caller, message)
    }

    /// Answers one request of a caller that is known by now.
    pub(super) fn answer(&self, caller: &Caller, message: &CertificateRequest) -> Answer {
        let node = match caller {
            Caller::Node(node) => Some(node.name().clone()),
            Caller::Agent(node) => Some(node.clone()),
            Caller::Token(_) | Caller::Nobody => None,
        };
        let asked = Request::read(&message.csr)
            .map_err(|error| Rejection::new(CaOutcome::BadRequest, error.to_string()))
            .and_then(|csr| self.subject(&csr, message.impersonated()).map(|subject| (csr, subject)));
        let (csr, subject) = match asked {
            Ok(asked) => asked,
            Err(rejection) => {
                return Answer { node, subject: message.impersonated().map(shown), result: Err(rejection) };
            }
        };
        let ttl = Duration::from_secs(u64::try_from(message.validity_duration).unwrap_or(0));
        let (name, result) = match subject {
            Subject::Workload(identity) => (identity.to_string(), self.workload(caller, &csr, &identity, ttl)),
            Subject::Node(node) => (node.to_string(), self.node(caller, &csr, &node, ttl)),
        };
        Answer { node, subject: Some(name), result }
    }

    /// For whom the request is: the CSR and the metadata must not disagree.
    fn subject(&self, csr: &Request, impersonated: Option<&str>) -> Result<Subject, Rejection> {
        let mut names: BTreeSet<&str> = csr.uris().iter().map(String::as_str).collect();
        names.extend(impersonated);
        let names: Vec<&str> = names.into_iter().collect();
        let [name] = names.as_slice() else {
            return Err(match names.len() {
                0 => Rejection::new(CaOutcome::BadRequest, "the request names no identity"),
                _ => Rejection::new(
                    CaOutcome::NamesDisagree,
                    format!("the request names several identities: {}", shown(&names.join(", "))),
                ),
            });
        };
        let (subject, trust_domain) = if let Ok(identity) = name.parse::<Identity>() {
            let trust_domain = identity.trust_domain().to_owned();
            (Subject::Workload(identity), trust_domain)
        } else if let Ok(node) = name.parse::<NodeIdentity>() {
            let trust_domain = node.trust_domain().to_owned();
            (Subject::Node(node), trust_domain)
        } else {
            let reason = format!("`{}` is neither a workload nor a node identity", shown(name));
            return Err(Rejection::new(CaOutcome::BadRequest, reason));
        };
        if trust_domain != *self.trust_domain {
            let reason = format!("{name} is not of the trust domain {}", self.trust_domain);
            return Err(Rejection::new(CaOutcome::TrustDomain, reason));
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
            Caller::Agent(node) => node,
            Caller::Token(_) => {
                let reason = format!("a join token is good for a node certificate, not for {identity}");
                return Err(Rejection::new(CaOutcome::TokenScope, reason));
            }
            Caller::Nobody => {
                let wanted = self.login.wanted();
                return Err(Rejection::new(CaOutcome::NoCredentials, format!("{identity} needs {wanted}")));
            }
        };
        if !self.authorizer.may(node, identity) {
            let reason =
                format!("node {node} may not have {identity}: no enrolled pod of this service account is on that node");
            return Err(Rejection::new(CaOutcome::NotOnNode, reason));
        }
        self.sign(csr, &identity.to_string(), Purpose::Workload, ttl, self.max_ttl)
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
        match (caller, &self.login) {
            (Caller::Node(own), Login::Join(_)) if own == wanted => sign(),
            (Caller::Node(own), _) => {
                let reason = format!("node {} may not have the certificate of node {node}", own.name());
                Err(Rejection::new(CaOutcome::OtherNode, reason))
            }
            (Caller::Token(token), Login::Join(tokens)) => {
                let refused =
                    |e: super::tokens::TokenError| Rejection::new(CaOutcome::JoinToken, format!("node {node}: {e}"));
                let good = tokens.check(token, node).map_err(refused)?;
                // Signed first: a token is spent for a certificate, not for an error.
                let signed = sign()?;
                tokens.spend(good).map_err(refused)?;
                Ok(signed)
            }
            (Caller::Agent(_) | Caller::Token(_), _) => {
                let reason = "this CA gives no node certificates: its agents show their token each time";
                Err(Rejection::new(CaOutcome::TokenScope, reason))
            }
            (Caller::Nobody, _) => {
                let reason = format!("node {node} needs a join token or its certificate");
                Err(Rejection::new(CaOutcome::NoCredentials, reason))
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
        let ttl = if ttl.is_zero() { max } else { ttl.clamp(TTL_MIN.min(max), max) };
        uri_name(name).and_then(|name| self.root.load().sign(csr, vec![name], purpose, ttl)).map_err(|error| {
            tracing::error!(%error, "signing failed");
            Rejection::new(CaOutcome::Internal, "the CA failed to sign")
        })
    }
}

impl Login {
    /// What a caller should have shown.
    fn wanted(&self) -> &'static str {
        match self {
            Self::Join(_) => "a node certificate",
            Self::Agents(_) => "the agent's service account token",
        }
    }
}

impl Answer {
    pub(super) fn outcome(&self) -> CaOutcome {
        self.result.as_ref().map_or_else(|rejection| rejection.outcome, |_| CaOutcome::Issued)
    }

    /// Serial number of what was given.
    pub(super) fn serial(&self) -> Option<String> {
        let leaf = self.result.as_ref().ok()?.chain.first()?;
        chain::particulars(leaf).ok().map(|particulars| particulars.serial)
    }
}

/// Text of a stranger as it may stand in a log: one line, not endless.
fn shown(text: &str) -> String {
    text.escape_debug().take(SHOWN_MAX_CHARS).collect()
}

/// Leaf and intermediates one by one, then all roots in one entry: Istio's convention.
pub(super) fn response(signed: &SignedCert) -> CertificateResponse {
    let pem = |cert: &CertificateDer<'_>| state::pem("CERTIFICATE", cert).to_string();
    let mut cert_chain: Vec<String> = signed.chain.iter().map(pem).collect();
    cert_chain.push(signed.roots.iter().map(pem).collect());
    CertificateResponse { cert_chain }
}
