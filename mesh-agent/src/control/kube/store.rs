//! What the API server has said so far, and all objects that follow from it. Pure: [`Event`]s come in, snapshot
//! parts go out.
//!
//! Nothing goes out before every kind has been listed, and nothing is forgotten but what the API server says is
//! gone: a list in which it is missing, or a deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::{Event, Key, Kind, Object, Reading};
use crate::control::compile::{Objects, compile};
use crate::control::keep::Entry;
use crate::control::object::Pod;
use crate::model::local::{LocalPod, LocalPods};
use crate::model::problem::{Effect, Problem};
use crate::snapshot::SnapshotParts;

/// Where the objects were found, as problems name it.
const LOCATION: &str = "API server";

/// The state of the Kubernetes source.
#[derive(Debug)]
pub(super) struct Store {
    location: Arc<str>,
    /// In the order of their keys: the same objects give the same snapshot, whatever order they came in.
    entries: BTreeMap<Key, Entry>,
    kinds: BTreeMap<Kind, Standing>,
    /// What the node itself knows of its pods.
    local: Arc<LocalPods>,
    /// Something has changed since the last [`Self::compile`].
    changed: bool,
    /// Something has been compiled.
    begun: bool,
}

/// How far one kind has come.
#[derive(Debug, Default)]
struct Standing {
    listing: Listing,
    /// Why it cannot be read at present.
    away: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Listing {
    #[default]
    Awaited,
    Done,
    /// Not served.
    Absent,
}

impl Store {
    /// One that has heard of nothing yet and waits for `kinds`.
    pub(super) fn new(kinds: &[Kind]) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind, Standing::default())).collect();
        let (entries, local) = (BTreeMap::new(), Arc::default());
        Self { location: LOCATION.into(), entries, kinds, local, changed: true, begun: false }
    }

    /// Takes in what a watch says.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Listed(kind, readings) => self.listed(kind, readings),
            Event::Put(key, reading) => self.put(key, reading),
            Event::Local(local) => {
                self.changed |= self.local != local;
                self.local = local;
            }
            Event::Removed(key) => self.changed |= self.entries.remove(&key).is_some(),
            Event::Absent(kind) => self.stand(kind, |standing| {
                *standing = Standing { listing: Listing::Absent, away: None };
            }),
            Event::Connected(kind) => self.stand(kind, |standing| standing.away = None),
            Event::Away(kind, reason) => self.stand(kind, |standing| standing.away = Some(reason)),
        }
    }

    /// Whether every kind has been listed, or is not there to be listed. What denies must be there in the beginning: an
    /// API server that does not serve it yet, because it is starting or being installed, would be one without rules.
    pub(super) fn is_complete(&self) -> bool {
        self.begun
            || self.kinds.iter().all(|(kind, standing)| match standing.listing {
                Listing::Awaited => false,
                Listing::Absent => !kind.is_enforcement(),
                Listing::Done => true,
            })
    }

    /// Everything in force; `None` while something is missing, or when nothing has changed since it was last asked.
    pub(super) fn compile(&mut self, node: &Arc<str>, trust_domain: &Arc<str>) -> Option<SnapshotParts> {
        if !self.is_complete() || !std::mem::take(&mut self.changed) {
            return None;
        }
        self.begun = true;
        Some(compile(&self.objects(node), node, trust_domain))
    }

    fn objects(&self, node: &str) -> Objects {
        let mut objects = Objects { problems: self.standing_problems(), ..Objects::default() };
        for entry in self.entries.values() {
            objects.problems.extend(entry.problems.iter().cloned());
            if let Some(object) = &entry.object {
                objects.add(self.with_local(object, node), &self.location);
            }
        }
        objects
    }

    /// `object`, with what the node itself knows if it is one of its pods.
    fn with_local(&self, object: &Object, node: &str) -> Object {
        match object {
            Object::Pod(pod) if *pod.node == *node => match self.local.get(&pod.uid) {
                Some(local) => Object::Pod(Arc::new(overlaid(pod, local))),
                None => object.clone(),
            },
            other => other.clone(),
        }
    }

    /// What cannot be read at present: one problem for each reason, and one for each kind that is not served.
    pub(super) fn standing_problems(&self) -> Vec<Problem> {
        let mut by_reason: BTreeMap<(&str, Effect), Vec<&str>> = BTreeMap::new();
        let mut problems = Vec::new();
        for (kind, standing) in &self.kinds {
            if let Some(reason) = &standing.away {
                let known = standing.listing != Listing::Awaited;
                let effect = if known { Effect::KeepsLast } else { Effect::Ignored };
                by_reason.entry((reason, effect)).or_default().push(kind.as_str());
            }
            if standing.listing == Listing::Absent {
                problems.push(self.absent(*kind));
            }
        }
        problems.extend(
            by_reason
                .into_iter()
                .map(|((reason, effect), kinds)| self.problem(kinds.join(", "), reason.into(), effect)),
        );
        problems
    }

    fn absent(&self, kind: Kind) -> Problem {
        let (group, versions) = kind.api();
        let versions = versions.join(" or ");
        let waits = if self.is_complete() || !kind.is_enforcement() { "" } else { ", and nothing is in force before" };
        let reason = format!(
            "the API server does not serve {}.{group} ({versions}): install its CRD; it is looked for again{waits}",
            kind.plural()
        );
        let effect = if self.keys_of(kind).is_empty() { Effect::Ignored } else { Effect::KeepsLast };
        self.problem(kind.as_str().to_owned(), reason, effect)
    }

    fn problem(&self, object: String, reason: String, effect: Effect) -> Problem {
        let (location, object) = (Arc::clone(&self.location), object.into());
        Problem { location, object, field: "".into(), reason: reason.into(), effect }
    }

    fn stand(&mut self, kind: Kind, change: impl FnOnce(&mut Standing)) {
        let Some(standing) = self.kinds.get_mut(&kind) else { return };
        let before = (std::mem::take(&mut standing.listing), standing.away.clone());
        *standing = Standing { listing: before.0, away: before.1 };
        change(standing);
        self.changed = true;
    }

    /// A list is all there is of a kind: compared with what is kept, so that nothing vanishes in between.
    fn listed(&mut self, kind: Kind, readings: Vec<(Key, Reading)>) {
        let mut gone: BTreeSet<Key> = self.keys_of(kind);
        for (key, reading) in readings {
            gone.remove(&key);
            self.put(key, reading);
        }
        self.changed |= !gone.is_empty();
        gone.iter().for_each(|key| {
            self.entries.remove(key);
        });
        self.stand(kind, |standing| *standing = Standing { listing: Listing::Done, away: None });
    }

    fn keys_of(&self, kind: Kind) -> BTreeSet<Key> {
        self.entries.keys().filter(|key| key.kind == kind).cloned().collect()
    }

    fn put(&mut self, key: Key, reading: Reading) {
        let before = self.entries.remove(&key);
        let last_good = before.as_ref().and_then(|entry| entry.object.clone()).filter(|_| !key.kind.is_enforcement());
        let after = Entry::new(&self.location, &Value::Null, reading, |_: &Key| -> Option<Object> { last_good });
        // Most updates concern what is not kept: nothing is compiled for them.
        self.changed |= before.as_ref() != Some(&after);
        self.entries.insert(key, after);
    }
}

/// A pod of this node: its live sandbox decides who owns an address, the API server says late.
fn overlaid(pod: &Pod, local: &LocalPod) -> Pod {
    match local {
        LocalPod::Standing { netns, addresses } => Pod {
            netns: Some(netns.clone()),
            // Also after a reboot, when the API server still has those of the sandbox before.
            ips: addresses.clone(),
            started: Some(i128::MAX),
            ..pod.clone()
        },
        LocalPod::Gone => Pod { netns: None, finished: true, ..pod.clone() },
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
