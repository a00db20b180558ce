//! Which lane a connection of a pod's application takes at its own node.

use crate::balance::Balancer;
use crate::model::addr::{OrigDst, Scope};
use crate::model::route::ServiceRef;
use crate::model::service::AppProtocol;
use crate::model::workload::Workload;
use crate::route::l4::{self, L4Step};
use crate::snapshot::Snapshot;

use super::failure::Failure;
use super::target::Goal;

/// How a captured connection is served.
#[derive(Debug)]
pub(super) enum Lane {
    /// Its bytes are passed on as they are.
    Opaque(Goal),
    /// Its requests are read.
    Http,
    /// Its requests are read if it has any: its first bytes tell. With the Service port that was dialled.
    Detect(Goal, ServiceRef),
}

/// The lane of a connection of `source`'s to `dialled`. Routes (GEP-1294) and policies concern those who dial a
/// Service.
///
/// # Errors
/// When a route for connections leads nowhere.
pub(super) fn outbound(
    snapshot: &Snapshot,
    balancer: &Balancer,
    source: &Workload,
    dialled: OrigDst,
    scope: Scope,
) -> Result<Lane, Failure> {
    let as_dialled = Goal::Dialled(dialled, scope);
    let Some(service) = snapshot.service_by_vip(dialled.addr()) else { return Ok(Lane::Opaque(as_dialled)) };
    match snapshot.routes_for(service, &source.namespace) {
        Some(routes) if !routes.kind.is_l7() => {
            return match l4::choose(routes, |rule| balancer.pick_backend(rule)) {
                L4Step::Forward(_, target) => Ok(Lane::Opaque(Goal::Service(target.clone()))),
                L4Step::Refuse(reason, detail) => Err(Failure::Unrouted(format!("{}: {detail}", reason.as_str()))),
            };
        }
        // Without routes nobody need read its requests, unless a policy says how they are spread.
        None if service.traffic.is_none() => return Ok(Lane::Opaque(as_dialled)),
        Some(_) | None => {}
    }
    Ok(match service.protocol() {
        AppProtocol::Http | AppProtocol::Http2 => Lane::Http,
        AppProtocol::Unknown => Lane::Detect(as_dialled, service.reference()),
        // A route without `parentRefs[].port` attaches to every port of the Service, those of databases too.
        AppProtocol::Opaque => Lane::Opaque(as_dialled),
    })
}
