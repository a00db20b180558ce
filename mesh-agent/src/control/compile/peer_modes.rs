//! `PeerPolicy` objects → the mTLS mode of each workload.
//!
//! The strictest of all policies that apply decides, port by port: a namespace or a pod can add to what a higher
//! scope demands and never take from it (design §5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Found;
use crate::control::object::{PeerPolicy, Pod};
use crate::model::policy::Target;
use crate::model::workload::{PeerMode, PeerModes};

/// The policies that apply to one pod, mesh-wide ones first, then the namespace's, then the pod's own.
pub(super) struct Applicable<'a>(Vec<&'a PeerPolicy>);

/// All policies in the order of their scope, so that [`applicable`] has to sort nothing for each pod.
pub(super) fn by_scope(policies: &[Found<PeerPolicy>]) -> Vec<&PeerPolicy> {
    let mut policies: Vec<&PeerPolicy> = policies.iter().map(|found| &*found.object).collect();
    policies.sort_by_key(|policy| (scope(policy), policy.display_name()));
    policies
}

/// Those of `policies` (from [`by_scope`]) that apply to `pod`.
pub(super) fn applicable<'a>(policies: &[&'a PeerPolicy], pod: &Pod) -> Applicable<'a> {
    let applies = |policy: &&&PeerPolicy| policy.target.selects(&pod.namespace, &pod.labels);
    Applicable(policies.iter().filter(applies).copied().collect())
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Mesh,
    Namespace,
    Pod,
}

fn scope(policy: &PeerPolicy) -> Scope {
    match policy.target {
        Target::Mesh => Scope::Mesh,
        Target::Namespace(_) => Scope::Namespace,
        Target::Selector { .. } => Scope::Pod,
    }
}

impl Applicable<'_> {
    /// The modes that follow, each with the policy that decided it.
    pub(super) fn modes(&self) -> PeerModes {
        if self.0.is_empty() {
            return PeerModes::default();
        }
        let (default, source) = self.strictest(|policy| policy.default);
        let named: BTreeSet<u16> = self.0.iter().flat_map(|policy| policy.ports.keys().copied()).collect();
        let mut modes = PeerModes { default, source, ports: BTreeMap::new(), port_sources: BTreeMap::new() };
        for port in named {
            let (mode, source) = self.strictest(|policy| policy.mode(port));
            if mode != modes.default {
                modes.ports.insert(port, mode);
                modes.port_sources.insert(port, source);
            }
        }
        modes
    }

    /// The policy of a higher scope than the pod's by which a pod may not leave the mesh.
    pub(super) fn forbids_opt_out(&self) -> Option<&PeerPolicy> {
        let strict = |policy: &PeerPolicy| {
            policy.default == Some(PeerMode::Strict) || policy.ports.values().any(|mode| *mode == PeerMode::Strict)
        };
        self.higher().find(|policy| strict(policy) && !policy.allow_opt_out)
    }

    /// The policy of a higher scope than the pod's by which inbound `port` may not be excluded.
    pub(super) fn forbids_exclusion(&self, port: u16) -> Option<&PeerPolicy> {
        self.higher().find(|policy| policy.mode(port) == Some(PeerMode::Strict) && !policy.allow_opt_out)
    }

    /// All of them, mesh-wide ones first.
    pub(super) fn all(&self) -> impl Iterator<Item = &PeerPolicy> {
        self.0.iter().copied()
    }

    /// Those of a higher scope than the pod's.
    pub(super) fn higher(&self) -> impl Iterator<Item = &PeerPolicy> {
        self.0.iter().copied().filter(|policy| scope(policy) < Scope::Pod)
    }

    /// The strictest of what the policies say, and the first policy that says so; Permissive when none says anything.
    fn strictest(&self, says: impl Fn(&PeerPolicy) -> Option<PeerMode>) -> (PeerMode, Arc<str>) {
        for mode in [PeerMode::Strict, PeerMode::Permissive] {
            if let Some(policy) = self.0.iter().find(|policy| says(policy) == Some(mode)) {
                return (mode, policy.display_name().into());
            }
        }
        (PeerMode::default(), Arc::from(""))
    }
}
