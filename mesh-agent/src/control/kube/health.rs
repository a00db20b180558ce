//! How each watch is doing, for whoever shows it. Decides nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// Of all kinds.
#[derive(Debug)]
pub(super) struct Health(BTreeMap<Kind, OfKind>);

/// Of one kind.
#[derive(Debug, Default)]
struct OfKind {
    connected: AtomicBool,
    lists: AtomicU64,
    events: AtomicU64,
}

impl Health {
    pub(super) fn new(kinds: &[Kind]) -> Self {
        Self(kinds.iter().map(|kind| (*kind, OfKind::default())).collect())
    }

    /// Whether the kind is being watched, or is known not to be served.
    pub(super) fn connected(&self, kind: Kind, connected: bool) {
        if let Some(of) = self.0.get(&kind) {
            of.connected.store(connected, Ordering::Relaxed);
        }
    }

    /// The kind has been listed whole.
    pub(super) fn listed(&self, kind: Kind) {
        if let Some(of) = self.0.get(&kind) {
            of.lists.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A watch has delivered.
    pub(super) fn event(&self, kind: Kind) {
        if let Some(of) = self.0.get(&kind) {
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
        self.0.iter().map(read).collect()
    }
}
