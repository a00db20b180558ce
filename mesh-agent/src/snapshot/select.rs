//! Which policies select which workload. Policies of other namespaces cost nothing, and workloads with the same
//! labels, such as the replicas of a Deployment, are looked at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::SnapshotParts;
use super::table::Table;
use crate::model::policy::{Policy, Target};
use crate::model::workload::{Workload, WorkloadUid};

/// The policies that select one workload.
pub(super) type Policies = Arc<[Arc<Policy>]>;
/// Those of every workload that has any.
pub(super) type Selected = OrdMap<WorkloadUid, Policies>;

/// Whether two lists hold the same; two that share their elements cost a look at each.
pub(super) fn same<T: PartialEq>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}

/// What is selected in `now`, when `selected` was in `before`.
pub(super) fn update(mut selected: Selected, before: &SnapshotParts, now: &SnapshotParts) -> Selected {
    let mut selection = Selection::new(&now.policies);
    for (old, new) in now.workloads.since(&before.workloads) {
        match (old, new) {
            (Some(old), None) => {
                selected.remove(&old.uid);
            }
            (_, Some(workload)) => selection.put(&mut selected, workload),
            (None, None) => {}
        }
    }
    if !same(&before.policies, &now.policies) {
        for workload in affected(&now.workloads, &before.policies, &now.policies) {
            selection.put(&mut selected, workload);
        }
    }
    selected
}

/// The workloads that a change of policies may concern.
fn affected<'a>(
    workloads: &'a Table<Workload>,
    before: &'a [Arc<Policy>],
    now: &'a [Arc<Policy>],
) -> impl Iterator<Item = &'a Arc<Workload>> {
    fn by_address(policies: &[Arc<Policy>]) -> HashMap<*const Policy, &Policy> {
        policies.iter().map(|policy| (Arc::as_ptr(policy), &**policy)).collect()
    }
    let (old, new) = (by_address(before), by_address(now));
    let gone = old.iter().filter(|(at, _)| !new.contains_key(*at));
    let come = new.iter().filter(|(at, _)| !old.contains_key(*at));
    let changed: Vec<&Policy> = gone.chain(come).map(|(_, policy)| *policy).collect();
    // Another order of those that stay may concern everybody.
    let stays = before.iter().map(Arc::as_ptr).filter(|at| new.contains_key(at));
    let in_order = stays.eq(now.iter().map(Arc::as_ptr).filter(|at| old.contains_key(at)));
    let everybody = !in_order || changed.iter().any(|policy| policy.target == Target::Mesh);
    let namespaces: HashSet<&str> = changed.iter().filter_map(|policy| namespace(policy)).collect();
    workloads.iter().filter(move |workload| everybody || namespaces.contains(&*workload.namespace))
}

/// The namespace of the workloads that it may select; `None`: any.
fn namespace(policy: &Policy) -> Option<&str> {
    match &policy.target {
        Target::Mesh => None,
        Target::Namespace(own) | Target::Selector { namespace: own, .. } => Some(own),
    }
}

/// What is remembered from one workload to the next.
struct Selection<'a> {
    policies: &'a [Arc<Policy>],
    candidates: HashMap<&'a str, Vec<Arc<Policy>>>,
    alike: HashMap<(&'a str, &'a BTreeMap<String, String>), Policies>,
}

impl<'a> Selection<'a> {
    fn new(policies: &'a [Arc<Policy>]) -> Self {
        Self { policies, candidates: HashMap::new(), alike: HashMap::new() }
    }

    fn put(&mut self, selected: &mut Selected, workload: &'a Workload) {
        let Self { policies, candidates, alike } = self;
        let candidates = candidates.entry(&workload.namespace).or_insert_with(|| {
            let reaches =
                |policy: &&Arc<Policy>| namespace(policy).is_none_or(|namespace| *namespace == *workload.namespace);
            policies.iter().filter(reaches).cloned().collect()
        });
        let policies = alike
            .entry((&workload.namespace, &workload.labels))
            .or_insert_with(|| crate::policy::selecting(workload, candidates).into());
        if policies.is_empty() {
            selected.remove(&workload.uid);
        } else {
            selected.insert(Arc::clone(&workload.uid), Arc::clone(policies));
        }
    }
}
