//! Who may talk to whom: a pure function from a flow and a snapshot to a [`Permit`] or a [`Denial`].
//!
//! `proxy::connect` takes a `&Permit`, and only this room makes one: forwarding without a decision does not
//! compile. No IO, no clock, no history: the same flow and the same objects give the same verdict.

pub mod compile;
pub mod egress;
pub mod facts;
mod matching;
#[cfg(test)]
mod properties;
pub mod request;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use self::matching::Miss;
pub use self::request::RequestFacts;
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::policy::{Action, Policy};
use crate::model::workload::{PeerMode, Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// One inbound connection, as far as a decision needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The workload whose listener the connection came in by.
    pub destination: WorkloadUid,
    /// The application's port.
    pub port: u16,
    /// Who the other side proved to be.
    pub peer: PeerIdentity,
    /// Source address of the connection: for CIDR rules only, never for identity.
    pub source_ip: IpAddr,
}

/// What is seen of the requests that a connection carries.
#[derive(Clone, Copy, Debug)]
enum Sight<'a> {
    /// Nothing: its bytes go through as they are.
    Opaque,
    /// Each will be judged by itself.
    EachRequest,
    /// This one.
    Request(&'a RequestFacts<'a>),
}

/// A decision that this flow may be delivered. Made by [`authorize`] and [`authorize_http`] alone.
#[derive(Clone, Debug)]
pub struct Permit {
    flow: Flow,
    generation: u64,
    /// Its requests are judged one by one.
    reads_requests: bool,
    rule: Option<Arc<str>>,
}

impl Permit {
    /// What was permitted.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Snapshot generation of the decision.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The ALLOW policy that matched, `namespace/name`; `None` when no policy selects the workload.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// Decides the same flow again under a newer snapshot.
    ///
    /// # Errors
    /// The denial that now holds.
    pub fn recheck(&self, snapshot: &Snapshot) -> Result<Self, Denial> {
        if self.reads_requests {
            authorize_http(snapshot, self.flow.clone())
        } else {
            authorize(snapshot, self.flow.clone())
        }
    }
}

/// A decision that one request may be delivered. Made by [`authorize_request`] alone.
#[derive(Clone, Debug)]
pub struct RequestPermit {
    generation: u64,
    rule: Option<Arc<str>>,
}

impl RequestPermit {
    /// Snapshot generation of the decision.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The ALLOW policy that matched, `namespace/name`; `None` when no ALLOW policy selects the workload.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }
}

/// Whether somebody must read the requests that a port receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requests {
    /// No rule asks for them.
    Ignored,
    /// Only AUDIT rules ask for them: what is no HTTP passes.
    Audited,
    /// ALLOW or DENY rules ask for them: what is not read as HTTP is refused where such a rule concerns it.
    Enforced,
}

/// A decision that a flow is refused, with the reason that an operator needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// [`Outcome::Denied`] or [`Outcome::PlaintextRefused`].
    pub outcome: Outcome,
    /// The object that refused: `namespace/name` of a policy, or a built-in rule in angle brackets.
    pub rule: Arc<str>,
    /// One sentence.
    pub reason: Arc<str>,
}

impl Denial {
    fn new(outcome: Outcome, rule: &str, reason: String) -> Self {
        Self { outcome, rule: rule.into(), reason: reason.into() }
    }
}

/// Rule name of a denial because the snapshot knows no such workload.
pub const NO_SUCH_WORKLOAD: &str = "<no-such-workload>";
/// Rule name of a permit for a port that is excluded from the mesh.
pub const EXCLUDED: &str = "<excluded>";
/// Rule name of a plaintext refusal that no object asked for.
pub const PEER_MODE: &str = "<peer-mode>";

/// Decides one flow whose bytes nobody reads: unknown destination, then excluded port, then mTLS mode, then DENY, then
/// ALLOW.
///
/// Without an ALLOW policy that selects the destination, what nothing denies is permitted. A DENY rule that asks for
/// requests refuses the connection, an ALLOW rule that does permits none: whoever gets a permit here may send any
/// request.
///
/// # Errors
/// The denial, naming the rule.
pub fn authorize(snapshot: &Snapshot, flow: Flow) -> Result<Permit, Denial> {
    let rule = decide(snapshot, &flow, Sight::Opaque)?;
    Ok(Permit { generation: snapshot.generation(), rule, flow, reads_requests: false })
}

/// Decides one flow whose requests will each be put to [`authorize_request`]: refused is what no request could pass.
///
/// # Errors
/// The denial, naming the rule.
pub fn authorize_http(snapshot: &Snapshot, flow: Flow) -> Result<Permit, Denial> {
    let rule = decide(snapshot, &flow, Sight::EachRequest)?;
    Ok(Permit { generation: snapshot.generation(), rule, flow, reads_requests: true })
}

/// Decides one flow at the node that delivers it: where rules ask for requests somebody reads them ([`authorize_http`]),
/// elsewhere nobody does ([`authorize`]). Which it is comes with the permit.
///
/// # Errors
/// The denial, naming the rule.
pub fn authorize_delivery(snapshot: &Snapshot, flow: Flow) -> Result<(Permit, Requests), Denial> {
    let requests = requests(snapshot, &flow.destination, flow.port);
    let permit = match requests {
        Requests::Ignored => authorize(snapshot, flow)?,
        Requests::Audited | Requests::Enforced => authorize_http(snapshot, flow)?,
    };
    Ok((permit, requests))
}

/// Decides one request on `flow`, at the server's node. To be asked of each request with the snapshot then in force.
///
/// # Errors
/// The denial, naming the rule: to be answered 403.
pub fn authorize_request(
    flow: &Flow,
    request: &RequestFacts<'_>,
    snapshot: &Snapshot,
) -> Result<RequestPermit, Denial> {
    let rule = decide(snapshot, flow, Sight::Request(request))?;
    Ok(RequestPermit { generation: snapshot.generation(), rule })
}

/// The AUDIT policies with a rule that matches a connection (`None`: rules that ask for requests do not) or one of its
/// requests, `namespace/name` each. They change no verdict.
#[must_use]
pub fn audited(snapshot: &Snapshot, flow: &Flow, request: Option<&RequestFacts<'_>>) -> Vec<Arc<str>> {
    // `EachRequest` because an AUDIT must not claim of a connection what only its requests can show.
    let sight = request.map_or(Sight::EachRequest, Sight::Request);
    let audits = snapshot.policies_for(&flow.destination).iter().filter(|policy| policy.action == Action::Audit);
    let matches = |policy: &&Arc<Policy>| {
        let mut rules = policy.rules.iter();
        rules.any(|rule| matching::rule(rule, Action::Audit, flow, sight, snapshot.trust_domain()).is_ok())
    };
    audits.filter(matches).map(|policy| policy.display_name().into()).collect()
}

/// Whether the requests that the pod `uid` receives on `port` are to be read.
#[must_use]
pub fn requests(snapshot: &Snapshot, uid: &str, port: u16) -> Requests {
    let asks = |policy: &Policy| {
        let mut rules = policy.rules.iter().filter(|rule| rule.requests.is_some());
        rules.any(|rule| rule.ports.as_ref().is_none_or(|ports| ports.contains(&port)))
    };
    let asking = snapshot.policies_for(uid).iter().filter(|policy| asks(policy));
    let need = |policy: &Arc<Policy>| match policy.action {
        Action::Audit => Requests::Audited,
        Action::Allow | Action::Deny => Requests::Enforced,
    };
    asking.map(need).max().unwrap_or(Requests::Ignored)
}

/// The ALLOW policy that lets the flow in.
fn decide(snapshot: &Snapshot, flow: &Flow, sight: Sight<'_>) -> Result<Option<Arc<str>>, Denial> {
    let Some(destination) = snapshot.workload(&flow.destination) else {
        let reason = format!("no workload with uid {} is known", flow.destination);
        return Err(Denial::new(Outcome::Denied, NO_SUCH_WORKLOAD, reason));
    };
    if destination.exclusions.inbound_ports.contains(&flow.port) {
        // Plaintext and neighbours reach it unjudged, by the kernel: a tunnel is no other way to it.
        return Ok(Some(EXCLUDED.into()));
    }
    refuse_plaintext(destination, flow)?;
    let policies = snapshot.policies_for(&flow.destination);
    refuse_denied(policies, flow, sight, snapshot.trust_domain())?;
    find_allow(policies, flow, sight, snapshot.trust_domain())
}

fn refuse_plaintext(destination: &Workload, flow: &Flow) -> Result<(), Denial> {
    let strict = destination.peer_mode.mode(flow.port) == PeerMode::Strict;
    if !strict || flow.peer != PeerIdentity::Unknown {
        return Ok(());
    }
    let decided = destination.peer_mode.source(flow.port);
    let rule = if decided.is_empty() { PEER_MODE } else { decided };
    let reason = format!("port {} of {} is Strict and the peer is unproven", flow.port, destination.display_name());
    Err(Denial::new(Outcome::PlaintextRefused, rule, reason))
}

/// Broken policies deny everything they target, ALLOW as well: what they were to allow is not known. AUDIT never does.
fn refuse_denied(policies: &[Arc<Policy>], flow: &Flow, sight: Sight<'_>, trust_domain: &str) -> Result<(), Denial> {
    for policy in policies.iter().filter(|policy| policy.action != Action::Audit) {
        if let Some(mistake) = &policy.broken {
            let reason = format!("{} policy could not be read whole and denies its targets: {mistake}", policy.action);
            return Err(Denial::new(Outcome::Denied, &policy.display_name(), reason));
        }
    }
    for policy in policies.iter().filter(|policy| policy.action == Action::Deny) {
        for (index, rule) in policy.rules.iter().enumerate() {
            if matching::rule(rule, Action::Deny, flow, sight, trust_domain).is_ok() {
                let unread = rule.requests.is_some() && matches!(sight, Sight::Opaque);
                let why = if unread { "; it asks for requests, and this connection is not read as HTTP" } else { "" };
                let reason = format!("rules[{index}] matches peer {} on port {}{why}", flow.peer, flow.port);
                return Err(Denial::new(Outcome::Denied, &policy.display_name(), reason));
            }
        }
    }
    Ok(())
}

/// The ALLOW policy that lets the flow in; `None` when no ALLOW policy selects the destination.
fn find_allow(
    policies: &[Arc<Policy>],
    flow: &Flow,
    sight: Sight<'_>,
    trust_domain: &str,
) -> Result<Option<Arc<str>>, Denial> {
    let mut selected = None;
    let mut nearest: Option<(&Policy, usize, Miss<'_>)> = None;
    for policy in policies.iter().filter(|policy| policy.action == Action::Allow) {
        selected = selected.or(Some(policy));
        for (index, rule) in policy.rules.iter().enumerate() {
            match matching::rule(rule, Action::Allow, flow, sight, trust_domain) {
                Ok(()) => return Ok(Some(policy.display_name().into())),
                Err(miss) if nearest.is_none_or(|(_, _, best)| miss.matched > best.matched) => {
                    nearest = Some((policy, index, miss));
                }
                Err(_) => {}
            }
        }
    }
    match (nearest, selected) {
        (Some((policy, index, miss)), _) => {
            let reason = format!("no ALLOW rule matches; nearest is rules[{index}]: {}", miss.describe(flow, sight));
            Err(Denial::new(Outcome::Denied, &policy.display_name(), reason))
        }
        (None, Some(policy)) => {
            let reason = "an ALLOW policy without rules allows nobody".to_owned();
            Err(Denial::new(Outcome::Denied, &policy.display_name(), reason))
        }
        (None, None) => Ok(None),
    }
}

/// The policies that select `workload`, in the order given.
#[must_use]
pub fn selecting(workload: &Workload, policies: &[Arc<Policy>]) -> Vec<Arc<Policy>> {
    let selects = |policy: &&Arc<Policy>| policy.target.selects(&workload.namespace, &workload.labels);
    policies.iter().filter(selects).cloned().collect()
}
