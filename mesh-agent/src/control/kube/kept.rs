//! The objects in force, as the API server and the node itself say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::{Key, Kind, Object};
use crate::control::compile::Objects;
use crate::control::keep::Entry;
use crate::control::object::Pod;
use crate::model::local::{LocalPod, LocalPods};
use crate::model::problem::Problem;
use crate::model::workload::List;

/// Where the objects were found, as problems name it.
const LOCATION: &str = "API server";

/// What is kept of one object.
#[derive(Debug, PartialEq)]
pub(super) struct Known {
    /// What is in force.
    pub(super) object: Option<Object>,
    /// What is wrong with it.
    pub(super) problems: List<Problem>,
}

impl From<Entry> for Known {
    fn from(entry: Entry) -> Self {
        Self { object: entry.object, problems: entry.problems.into() }
    }
}

/// Everything that is known of the cluster.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) location: Arc<str>,
    /// The node whose pods the node itself knows.
    pub(super) node: Arc<str>,
    /// In the order of their keys: the same objects give the same snapshot, whatever order they came in.
    entries: BTreeMap<Arc<Key>, Known>,
    /// The keys of those with a mistake.
    flawed: BTreeSet<Arc<Key>>,
    /// What the node itself knows of its pods.
    pub(super) local: Arc<LocalPods>,
}

impl Kept {
    pub(super) fn new(node: &str) -> Self {
        Self {
            location: LOCATION.into(),
            node: node.into(),
            entries: BTreeMap::new(),
            flawed: BTreeSet::new(),
            local: Arc::default(),
        }
    }

    /// The entry at `key`, taken out.
    pub(super) fn take(&mut self, key: &Key) -> Option<(Arc<Key>, Known)> {
        self.flawed.remove(key);
        self.entries.remove_entry(key)
    }

    pub(super) fn put(&mut self, key: Arc<Key>, entry: Known) {
        if !entry.problems.is_empty() {
            self.flawed.insert(Arc::clone(&key));
        }
        self.entries.insert(key, entry);
    }

    pub(super) fn object(&self, key: &Key) -> Option<Object> {
        self.entries.get(key)?.object.as_ref().map(|object| self.with_local(object))
    }

    /// What is in force of an object that the API server says is so.
    pub(super) fn with_local(&self, object: &Object) -> Object {
        match object {
            Object::Pod(pod) if pod.node == self.node => match self.local.get(&pod.uid) {
                Some(local) => Object::Pod(Arc::new(overlaid(pod, local))),
                None => object.clone(),
            },
            other => other.clone(),
        }
    }

    pub(super) fn pod(&self, key: &Key) -> Option<Arc<Pod>> {
        match self.object(key)? {
            Object::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    pub(super) fn keys_of(&self, kind: Kind) -> impl Iterator<Item = &Arc<Key>> {
        let first = Key { kind, namespace: "".into(), name: "".into() };
        let from = self.entries.range::<Key, _>((Bound::Included(&first), Bound::Unbounded));
        from.map(|(key, _)| key).take_while(move |key| key.kind == kind)
    }

    pub(super) fn keys_in<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Key>> {
        let first = Key { kind, namespace: namespace.into(), name: "".into() };
        let from = self.entries.range::<Key, _>((Bound::Included(&first), Bound::Unbounded));
        from.map(|(key, _)| key).take_while(move |key| key.kind == kind && *key.namespace == *namespace)
    }

    /// Adds those of these objects that there are, in the order given.
    pub(super) fn add<'a>(&self, objects: &mut Objects, keys: impl IntoIterator<Item = &'a Arc<Key>>) {
        keys.into_iter().filter_map(|key| self.object(key)).for_each(|object| objects.add(object, &self.location));
    }

    /// Everything in force.
    pub(super) fn all(&self) -> Objects {
        let mut objects = Objects::default();
        let known = self.entries.values().filter_map(|entry| entry.object.as_ref());
        known.for_each(|object| objects.add(self.with_local(object), &self.location));
        objects
    }

    /// What is wrong with single objects.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.flawed.iter().filter_map(|key| self.entries.get(key)).flat_map(|entry| &entry.problems)
    }
}

/// A pod of this node: its live sandbox decides who owns an address, the API server says late.
fn overlaid(pod: &Pod, local: &LocalPod) -> Pod {
    match local {
        LocalPod::Standing { netns, addresses } => Pod {
            netns: Some(netns.clone()),
            // Also after a reboot, when the API server still has those of the sandbox before.
            ips: addresses.iter().copied().collect(),
            started: Some(i64::MAX),
            ..pod.clone()
        },
        LocalPod::Gone => Pod { netns: None, finished: true, ..pod.clone() },
    }
}
