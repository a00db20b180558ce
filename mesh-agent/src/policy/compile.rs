//! Rules as a table: what one proven identity may do on each port of what the rules select.
//!
//! The verdicts are [`authorize`]'s own, asked once for each port that a rule names and once for all others, so the
//! kernel that reads the table and the agent cannot disagree about what a rule means.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use super::{Flow, Requests, authorize, requests};
use crate::model::identity::{Identity, PeerIdentity};
use crate::model::policy::Policy;
use crate::model::workload::Workload;
use crate::snapshot::Snapshot;

/// What the kernel makes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelVerdict {
    /// Let through.
    Allow,
    /// Refused.
    Deny,
    /// The rules ask for more than identity and port: the agent decides.
    Agent,
}

/// One line of the table: a port, or all that have no line of their own.
pub type Line = (Option<u16>, KernelVerdict);

/// The table of `destination` for a client proven to be `client`. Empty when no rule selects the destination.
#[must_use]
pub fn table(snapshot: &Snapshot, destination: &Workload, client: &Identity) -> Vec<Line> {
    let policies = snapshot.policies_for(&destination.uid);
    if policies.is_empty() {
        return Vec::new();
    }
    if asks_for_addresses(policies) {
        return vec![(None, KernelVerdict::Agent)];
    }
    let ports = named_ports(policies);
    let verdict = |port: u16| {
        // Whatever the rules would say of an opaque connection: between two pods nobody reads requests.
        if requests(snapshot, &destination.uid, port) != Requests::Ignored {
            return KernelVerdict::Agent;
        }
        let flow = Flow {
            destination: Arc::clone(&destination.uid),
            port,
            peer: PeerIdentity::Verified(client.clone()),
            // No rule asks for it.
            source_ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        if authorize(snapshot, flow).is_ok() { KernelVerdict::Allow } else { KernelVerdict::Deny }
    };
    let other = (1..=u16::MAX).find(|port| !ports.contains(port));
    let any = other.map(|port| (None, verdict(port)));
    ports.iter().map(|port| (Some(*port), verdict(*port))).chain(any).collect()
}

fn asks_for_addresses(policies: &[Arc<Policy>]) -> bool {
    let sources = policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| rule.sources.iter().flatten());
    sources.into_iter().any(|source| source.cidrs.is_some() || !source.not_cidrs.is_empty())
}

fn named_ports(policies: &[Arc<Policy>]) -> BTreeSet<u16> {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    // 0 is no port, and stands for all others in the kernel's table.
    rules.flat_map(|rule| rule.ports.iter().flatten()).copied().filter(|port| *port != 0).collect()
}
