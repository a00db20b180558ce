//! `PeerPolicy` objects → what each workload may send out of the mesh, and what UDP it takes.
//!
//! One policy that refuses is enough, whatever its scope: a lower one adds and never takes away (design §5).

use std::sync::Arc;

use super::peer_modes::Applicable;
use super::{Found, Problem};
use crate::control::object::{EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, PeerPolicy, Pod, UdpPorts};
use crate::model::egress::{Egress, UdpRefusals};
use crate::model::problem::Effect;
use crate::model::workload::Exclusions;

impl Applicable<'_> {
    /// What becomes of what is not in the mesh, and of what is no socket's, with the first policy that says so.
    pub(super) fn egress(&self) -> Egress {
        Egress {
            refused_by: self.all().find(|policy| policy.egress.is_some_and(|rule| rule.refuses)).map(name),
            guarded_by: self.all().find(|policy| policy.guard).map(name),
        }
    }

    /// The ports without UDP.
    pub(super) fn udp_refusals(&self) -> UdpRefusals {
        let mut refusals = UdpRefusals::default();
        for policy in self.all() {
            match &policy.udp {
                None => {}
                Some(UdpPorts::All) => {
                    refusals.all.get_or_insert_with(|| name(policy));
                }
                Some(UdpPorts::These(ports)) => {
                    for port in ports {
                        refusals.ports.entry(*port).or_insert_with(|| name(policy));
                    }
                }
            }
        }
        refusals
    }

    /// The policy of a higher scope than the pod's by which a pod may not exclude what is outside.
    pub(super) fn forbids_going_out(&self) -> Option<&PeerPolicy> {
        self.higher().find(|policy| policy.egress.is_some_and(|rule| rule.refuses && !rule.allow_opt_out))
    }
}

fn name(policy: &PeerPolicy) -> Arc<str> {
    policy.display_name().into()
}

/// Why an opt-out is ignored.
pub(super) fn ignored(policy: &PeerPolicy) -> String {
    format!("ignored: PeerPolicy {} refuses egress and has no `egress.allowOptOut: true`", policy.display_name())
}

/// Takes back what the pod excludes although a higher scope keeps it inside the mesh.
pub(super) fn without_ways_out(
    mut exclusions: Exclusions,
    found: &Found<Pod>,
    peers: &Applicable<'_>,
    problems: &mut Vec<Problem>,
) -> Exclusions {
    let Some(policy) = peers.forbids_going_out() else { return exclusions };
    let asked = [
        (EXCLUDE_OUTBOUND_PORTS, !exclusions.outbound_ports.is_empty()),
        (EXCLUDE_OUTBOUND_CIDRS, !exclusions.outbound_cidrs.is_empty()),
    ];
    for (annotation, _) in asked.iter().filter(|(_, asked)| *asked) {
        let title = format!("Pod {}", found.object.display_name());
        let field = format!("metadata.annotations[{annotation}]");
        problems.push(found.problem(title, &field, ignored(policy), Effect::Partly));
    }
    exclusions.outbound_ports.clear();
    exclusions.outbound_cidrs.clear();
    exclusions
}
