//! What the API server has said so far, and all objects that follow from it. Pure: [`Event`]s come in, snapshot
//! parts go out.
//!
//! Nothing goes out before every kind has been listed, and nothing is forgotten but what the API server says is
//! gone: a list in which it is missing, or a deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::increment::Increment;
use super::kept::{Kept, Known};
use super::{Event, Key, Kind, Object, Reading};
use crate::control::keep::Entry;
use crate::model::local::LocalPods;
use crate::model::problem::{Effect, Problem};
use crate::snapshot::SnapshotParts;

/// The state of the Kubernetes source.
#[derive(Debug)]
pub(super) struct Store {
    kept: Kept,
    increment: Increment,
    kinds: BTreeMap<Kind, Standing>,
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
    /// One that has heard of nothing yet and waits for `kinds`, for the agent of `node`.
    pub(super) fn new(kinds: &[Kind], node: &str, trust_domain: &str) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind, Standing::default())).collect();
        let (kept, increment) = (Kept::new(node), Increment::new(trust_domain));
        Self { kept, increment, kinds, changed: true, begun: false }
    }

    /// Takes in what a watch says.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Listed(kind, readings) => self.listed(kind, readings),
            Event::Put(key, reading) => self.put(key, reading),
            Event::Local(local) => self.learn(local),
            Event::Removed(key) => self.remove(&key),
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
    pub(super) fn compile(&mut self) -> Option<SnapshotParts> {
        if !self.is_complete() || !std::mem::take(&mut self.changed) {
            return None;
        }
        self.begun = true;
        let standing = self.standing_problems();
        Some(self.increment.compile(&self.kept, standing))
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
        let effect = if self.kept.keys_of(kind).next().is_none() { Effect::Ignored } else { Effect::KeepsLast };
        self.problem(kind.as_str().to_owned(), reason, effect)
    }

    fn problem(&self, object: String, reason: String, effect: Effect) -> Problem {
        let (location, object) = (Arc::clone(&self.kept.location), object.into());
        Problem { location, object, field: "".into(), reason: reason.into(), effect }
    }

    fn stand(&mut self, kind: Kind, change: impl FnOnce(&mut Standing)) {
        let Some(standing) = self.kinds.get_mut(&kind) else { return };
        let before = (std::mem::take(&mut standing.listing), standing.away.clone());
        *standing = Standing { listing: before.0, away: before.1 };
        change(standing);
        self.changed = true;
        self.increment.note_problems();
    }

    /// A list is all there is of a kind: compared with what is kept, so that nothing vanishes in between.
    fn listed(&mut self, kind: Kind, readings: Vec<(Key, Reading)>) {
        let mut gone: BTreeSet<Arc<Key>> = self.kept.keys_of(kind).cloned().collect();
        for (key, reading) in readings {
            gone.remove(&key);
            self.put(key, reading);
        }
        gone.iter().for_each(|key| self.remove(key));
        self.stand(kind, |standing| *standing = Standing { listing: Listing::Done, away: None });
    }

    fn put(&mut self, key: Key, reading: Reading) {
        let (key, before) = match self.kept.take(&key) {
            Some((key, before)) => (key, Some(before)),
            None => (Arc::new(key), None),
        };
        let old = before.as_ref().and_then(|entry| entry.object.clone());
        let last_good = old.clone().filter(|_| !key.kind.is_enforcement());
        let after = Entry::new(&self.kept.location, &Value::Null, reading, |_: &Key| -> Option<Object> { last_good });
        let after = Known::from(after);
        // Most updates concern what is not kept: nothing is compiled for them.
        if before.as_ref() == Some(&after) {
            return self.kept.put(key, after);
        }
        self.changed = true;
        let known: &[Problem] = before.as_ref().map_or(&[], |entry| &entry.problems);
        if *known != *after.problems {
            self.increment.note_problems();
        }
        let new = after.object.clone();
        self.kept.put(Arc::clone(&key), after);
        self.note(&key, old, new);
    }

    fn remove(&mut self, key: &Key) {
        let Some((key, before)) = self.kept.take(key) else { return };
        self.changed = true;
        if !before.problems.is_empty() {
            self.increment.note_problems();
        }
        self.note(&key, before.object, None);
    }

    fn note(&mut self, key: &Arc<Key>, before: Option<Object>, after: Option<Object>) {
        let [before, after] = [before, after].map(|object| object.map(|object| self.kept.with_local(&object)));
        if before != after {
            self.increment.note(&self.kept, key, (before.as_ref(), after.as_ref()));
        }
    }

    /// What the node itself knows of its pods.
    fn learn(&mut self, local: Arc<LocalPods>) {
        let known = Arc::clone(&self.kept.local);
        let uids = known.keys().chain(local.keys()).filter(|uid| known.get(*uid) != local.get(*uid));
        let uids: Vec<Arc<str>> = uids.cloned().collect();
        self.changed |= !uids.is_empty();
        self.increment.note_local(&mut self.kept, &uids, |kept| kept.local = local);
    }
}

#[cfg(test)]
impl Store {
    /// What everything that is known gives, compiled at once; what `compile` gave last must be the same.
    pub(super) fn compile_anew(&self, trust_domain: &str) -> SnapshotParts {
        Increment::new(trust_domain).compile(&self.kept, self.standing_problems())
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
