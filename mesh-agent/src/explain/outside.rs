//! What a source's rule about destinations outside the mesh has to say about one of them.

use std::net::SocketAddr;

use mesh_common::counter::Counter;

use super::view::admission;
use crate::model::workload::Workload;
use crate::policy::egress::rule_of;
use crate::snapshot::Snapshot;

/// In words; `None` when no rule says anything, or the connection stays in the pod or is excluded.
pub(super) fn words(snapshot: &Snapshot, source: &Workload, to: SocketAddr, exit: Counter) -> Option<String> {
    let refused_by = source.egress.refused_by.as_ref()?;
    if matches!(exit, Counter::ConnectLoopback | Counter::ConnectOwnIp | Counter::ConnectExcluded) {
        return None;
    }
    let service = snapshot.service_by_vip(to).map(|service| rule_of(service));
    let is_mesh = snapshot.workload_by_ip(to.ip()).is_some_and(|pod| pod.captured.is_some());
    let finding = match service.or_else(|| admission(snapshot, to)) {
        Some(rule) => format!("admitted by {rule}"),
        None if is_mesh => "this is inside".to_owned(),
        None => "no built-in rule admits this".to_owned(),
    };
    Some(format!("{refused_by} refuses what is outside the mesh; {finding}"))
}
