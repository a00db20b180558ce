//! Which pod owns an address (design §5), and which pod a uid means.
//!
//! Only pods with a network of their own that are not finished own addresses. Of two that claim one, the later
//! start wins and the other owns nothing at all: half a pod's addresses would be half an identity. On its own node
//! the capture room lets the live network namespace decide further.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Found;
use crate::control::object::Pod;
use crate::model::problem::{Effect, Problem};

/// The outcome of [`owners`].
#[derive(Debug, Default)]
pub(super) struct Owners<'a> {
    /// Owner by address.
    pub(super) by_ip: HashMap<IpAddr, &'a Found<Pod>>,
    /// Pods, by position in the list given, that lost an address or share their uid with an earlier one.
    losers: HashSet<usize>,
    /// Of those, the ones whose uid is another pod's.
    impostors: HashSet<usize>,
}

impl Owners<'_> {
    /// Whether the pod at this position lost its addresses to another.
    pub(super) fn lost(&self, position: usize) -> bool {
        self.losers.contains(&position)
    }

    /// Whether the pod at this position has an earlier pod's uid, and so cannot be told from it.
    pub(super) fn is_impostor(&self, position: usize) -> bool {
        self.impostors.contains(&position)
    }
}

/// Decides who owns what among `pods`.
pub(super) fn owners<'a>(pods: &'a [Found<Pod>], problems: &mut Vec<Problem>) -> Owners<'a> {
    let mut owners = Owners::default();
    refuse_shared_uids(pods, &mut owners, problems);
    let mut claims: Vec<(usize, &Found<Pod>)> = pods.iter().enumerate().collect();
    claims.retain(|(at, pod)| !pod.object.host_network && !pod.object.finished && !owners.lost(*at));
    // Uids break ties, so that the order of files does not.
    claims.sort_by(|(_, a), (_, b)| {
        (Reverse(a.object.started), &a.object.uid).cmp(&(Reverse(b.object.started), &b.object.uid))
    });
    for (at, pod) in claims {
        let taken = pod.object.ips.iter().find_map(|ip| owners.by_ip.get(ip).map(|owner| (ip, *owner)));
        let Some((ip, owner)) = taken else {
            owners.by_ip.extend(pod.object.ips.iter().map(|ip| (*ip, pod)));
            continue;
        };
        owners.losers.insert(at);
        let reason = format!(
            "{ip} belongs to pod {} of {}, which started later; this pod owns no address",
            owner.object.display_name(),
            owner.location
        );
        problems.push(pod.problem(
            format!("Pod {}", pod.object.display_name()),
            "status.podIPs",
            reason,
            Effect::Partly,
        ));
    }
    owners
}

fn refuse_shared_uids(pods: &[Found<Pod>], owners: &mut Owners<'_>, problems: &mut Vec<Problem>) {
    let mut first: HashMap<&str, &Found<Pod>> = HashMap::with_capacity(pods.len());
    for (at, pod) in pods.iter().enumerate() {
        let Some(other) = first.get(&*pod.object.uid) else {
            first.insert(&pod.object.uid, pod);
            continue;
        };
        owners.losers.insert(at);
        owners.impostors.insert(at);
        let reason =
            format!("{} is the uid of pod {} of {}", pod.object.uid, other.object.display_name(), other.location);
        problems.push(pod.problem(
            format!("Pod {}", pod.object.display_name()),
            "metadata.uid",
            reason,
            Effect::Ignored,
        ));
    }
}
