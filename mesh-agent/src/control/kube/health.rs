//! How each watch is doing, for whoever shows it. Decides nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Kind;

/// How the watch of one kind is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindHealth {
    /// The kind.
    pub kind: &'static str,
    /// It is being watched, or is known not to be served; else its last known state stays in force.
    pub connected: bool,
    /// Lists after the first one: a watch could not be resumed where it stopped.
    pub relists: u64,
    /// Changes of objects that the API server has reported.
    pub events: u64,
}

/// What compiling has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compilations {
    /// How often it was done.
    pub count: u64,
    /// How long it took in all, publishing included.
    pub time: Duration,
    /// From the last list of the first round to the first snapshot; zero before there is one.
    pub first: Duration,
}

/// Of all kinds, and of what is made of them.
#[derive(Debug)]
pub(super) struct Health {
    kinds: BTreeMap<Kind, OfKind>,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    done: Compilations,
    last_list: Option<Instant>,
}

/// Of one kind.
#[derive(Debug, Default)]
struct OfKind {
    connected: AtomicBool,
    lists: AtomicU64,
    events: AtomicU64,
}

impl Health {
    pub(super) fn new(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.iter().map(|kind| (*kind, OfKind::default())).collect(), work: Mutex::default() }
    }

    /// Something has been compiled and published, since `started`.
    pub(super) fn compiled(&self, started: Instant) {
        let mut work = self.work();
        if work.done.count == 0 {
            work.done.first = work.last_list.map_or(Duration::ZERO, |listed| listed.elapsed());
        }
        work.done.count += 1;
        work.done.time += started.elapsed();
    }

    /// What compiling has cost so far.
    pub(super) fn compilations(&self) -> Compilations {
        self.work().done
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kind is being watched, or is known not to be served.
    pub(super) fn connected(&self, kind: Kind, connected: bool) {
        if let Some(of) = self.kinds.get(&kind) {
            of.connected.store(connected, Ordering::Relaxed);
        }
    }

    /// The kind has been listed whole.
    pub(super) fn listed(&self, kind: Kind) {
        if let Some(of) = self.kinds.get(&kind) {
            of.lists.fetch_add(1, Ordering::Relaxed);
            self.work().last_list = Some(Instant::now());
        }
    }

    /// A watch has delivered.
    pub(super) fn event(&self, kind: Kind) {
        if let Some(of) = self.kinds.get(&kind) {
            of.events.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every kind, as it is now.
    pub(super) fn read(&self) -> Vec<KindHealth> {
        let read = |(kind, of): (&Kind, &OfKind)| KindHealth {
            kind: kind.as_str(),
            connected: of.connected.load(Ordering::Relaxed),
            relists: of.lists.load(Ordering::Relaxed).saturating_sub(1),
            events: of.events.load(Ordering::Relaxed),
        };
        self.kinds.iter().map(read).collect()
    }
}
