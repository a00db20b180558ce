//! Refusals of what is outside the mesh, of UDP, and by guards: which of the kernel's events they are, and how they are
//! written.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::counter::Counter;

use crate::model::addr::OrigDst;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::telemetry::labels::{Lane, Reporter, Security};
use crate::telemetry::record::{ConnectionRecord, Ending};

/// Which side an event is told by: the pod that may not leave the mesh, or the pod that takes no UDP. `None` for
/// events of other rooms.
pub(super) fn reporter(exit: Counter) -> Option<Reporter> {
    match exit {
        Counter::ConnectEgress | Counter::ConnectUdpEgress | Counter::SendmsgEgress => Some(Reporter::Outbound),
        Counter::GuardNoPod
        | Counter::GuardUnreadable
        | Counter::GuardProtocol
        | Counter::GuardSource
        | Counter::GuardOutside
        | Counter::GuardNoSocket => Some(Reporter::Outbound),
        Counter::LookupUdpStrict | Counter::GuardStrict => Some(Reporter::Inbound),
        _ => None,
    }
}

/// What is written of a pod's refusal. `changed` is the rule's name when no object explains it any more.
pub(super) fn ending(exit: Counter, pod: Option<&Workload>, port: u16, changed: &str) -> Ending {
    let (outcome, reason) = match exit {
        Counter::ConnectEgress => (Outcome::Denied, "not in the mesh; refused by the kernel at connect()"),
        Counter::ConnectUdpEgress => (Outcome::Denied, "not in the mesh; refused by the kernel at connect() of UDP"),
        Counter::SendmsgEgress => (Outcome::Denied, "not in the mesh; refused by the kernel at sendmsg()"),
        Counter::GuardNoPod => (Outcome::Denied, "a packet of a pod that nothing is known of, refused by its guard"),
        Counter::GuardUnreadable => (Outcome::Denied, "a packet that no kernel sends, refused by the pod's guard"),
        Counter::GuardProtocol => (Outcome::Denied, "neither TCP, UDP nor ICMP, refused by the pod's guard"),
        Counter::GuardSource => (Outcome::Denied, "a packet under an address of others, refused by the pod's guard"),
        Counter::GuardOutside => (Outcome::Denied, "a packet to what is not in the mesh, refused by the pod's guard"),
        Counter::GuardNoSocket => (Outcome::Denied, "a segment of no connection, refused by the pod's guard"),
        Counter::GuardStrict => {
            (Outcome::PlaintextRefused, "neither TCP, UDP nor ICMP into a strict pod, refused by its guard")
        }
        _ => (Outcome::PlaintextRefused, "UDP to a strict pod that takes none there, refused by the kernel"),
    };
    let rule = pod.and_then(|pod| match exit {
        Counter::ConnectEgress | Counter::ConnectUdpEgress | Counter::SendmsgEgress => pod.egress.refused_by.clone(),
        Counter::LookupUdpStrict => pod.udp_refusals.source(port).map(Arc::clone),
        _ => pod.egress.guarded_by.clone(),
    });
    Ending { outcome, rule: Some(rule.unwrap_or_else(|| changed.into())), reason: reason.to_owned() }
}

/// What was dialled, how, and whose rule it met.
pub(super) fn describe(record: &mut ConnectionRecord, to: SocketAddr) {
    record.orig_dst = Some(OrigDst::new(to));
    record.by_clients_rule = true;
    (record.lane, record.security) = (Lane::Plaintext, Security::None);
}
