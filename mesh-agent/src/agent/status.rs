//! What `mesh-agent status` is told, put together from the board.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::metrics::Board;
use super::stage::PodReport;
use crate::admin::status::{IdentityStatus, PeerStatus, PodStatus, RouteLine, SnapshotStatus, Status};
use crate::config::Config;
use crate::identity::{CertState, CertStatus};
use crate::model::identity::Identity;
use crate::model::route::{ParentStatus, RouteStatus};
use crate::model::workload::{PeerMode, Workload};
use crate::proxy::Proxy;
use crate::snapshot::Snapshot;

/// The function that the admin socket asks.
pub(super) fn source(
    config: &Config,
    board: &Arc<Board>,
    proxy: &Arc<Proxy>,
) -> impl Fn() -> Status + Send + Sync + use<> {
    let (node, board, proxy) = (config.node.clone(), Arc::clone(board), Arc::clone(proxy));
    move || {
        let snapshot = board.snapshots.load();
        let mut pods: Vec<PodStatus> = board.pods().iter().map(|report| pod(report, &snapshot)).collect();
        pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.clone(),
            snapshot: SnapshotStatus {
                generation: snapshot.generation(),
                workloads: snapshot.workloads().len(),
                services: snapshot.services().len(),
                policies: snapshot.policies().len(),
            },
            pods,
            identities: board.certificates.status().iter().map(identity).collect(),
            routes: snapshot.route_statuses().iter().flat_map(route).collect(),
            peers: proxy.peers().into_iter().map(peer).collect(),
            problems: snapshot.problems().iter().map(ToString::to_string).collect(),
        }
    }
}

fn pod(report: &PodReport, snapshot: &Snapshot) -> PodStatus {
    let workload = &report.workload;
    PodStatus {
        pod: workload.display_name(),
        stage: report.stage.to_owned(),
        reason: report.detail.to_string(),
        identity: workload.identity.to_string(),
        mode: mode(workload).to_owned(),
        policies: snapshot.policies_for(&workload.uid).iter().map(|policy| policy.display_name()).collect(),
    }
}

/// The word for a pod's inbound mode.
pub(super) fn mode(workload: &Workload) -> &'static str {
    match workload.peer_mode.default {
        PeerMode::Strict => "strict",
        PeerMode::Permissive => "permissive",
    }
}

fn route(status: &RouteStatus) -> impl Iterator<Item = RouteLine> {
    status.parents.iter().map(|at| {
        let ParentStatus { parent, accepted, resolved_refs, partially_invalid } = at;
        let conditions = [Some(accepted), Some(resolved_refs), partially_invalid.as_ref()];
        let messages = conditions.iter().flatten().map(|condition| &*condition.message);
        RouteLine {
            route: status.route.to_string(),
            parent: parent.to_string(),
            accepted: accepted.holds,
            accepted_reason: accepted.reason.as_str().to_owned(),
            resolved_refs: resolved_refs.holds,
            resolved_refs_reason: resolved_refs.reason.as_str().to_owned(),
            observed_generation: status.observed_generation,
            message: messages.filter(|message| !message.is_empty()).collect::<Vec<_>>().join("; "),
        }
    })
}

fn peer((identity, ip, tunnels): (Identity, IpAddr, usize)) -> PeerStatus {
    PeerStatus { identity: identity.to_string(), address: ip.to_string(), tunnels }
}

/// A certificate, as it is shown.
pub(super) fn identity(status: &CertStatus) -> IdentityStatus {
    let (state, not_after) = match &status.state {
        CertState::Missing => ("missing", None),
        CertState::Valid(dates) => ("valid", Some(dates.not_after)),
        CertState::Expired(dates) => ("expired", Some(dates.not_after)),
    };
    let since = not_after.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    IdentityStatus {
        identity: status.identity.to_string(),
        state: state.to_owned(),
        not_after: since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
        error: status.last_error.clone().unwrap_or_default(),
    }
}
