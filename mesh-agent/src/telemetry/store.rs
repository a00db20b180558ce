//! Counters by label set: one look-up finds everything that a connection will ever count, so that the data path touches
//! only atomics. The number of sets is bounded, and what left the mesh takes its counters along.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// More label sets than a node's pods can need (110 pods × 90 peers); beyond it names collapse to `other`.
pub const MAX_SERIES: usize = 10_000;
/// How long the series of a vanished workload stays readable (design §8).
pub const LINGER: Duration = Duration::from_secs(15 * 60);

/// The names that a family of metrics counts by.
pub trait LabelSet: Clone + Eq + Hash {
    /// The set that takes over once there are too many: everything that a name could widen is `other`.
    #[must_use]
    fn overflow(&self) -> Self;
}

/// One label set's counters.
pub trait Counters: Default {
    /// Seconds after the store's birth of the last use.
    fn touched(&self) -> &AtomicU64;
}

/// Every series of one kind.
#[derive(Debug)]
pub struct Store<L, S> {
    born: Instant,
    by_labels: RwLock<HashMap<L, Arc<S>>>,
    overflowed: AtomicU64,
}

impl<L, S> Default for Store<L, S> {
    fn default() -> Self {
        Self { born: Instant::now(), by_labels: RwLock::default(), overflowed: AtomicU64::new(0) }
    }
}

impl<L: LabelSet, S: Counters> Store<L, S> {
    /// The series of `labels`. It is in use as long as it is held.
    pub fn find(&self, labels: &L) -> Arc<S> {
        let found = self.look_up(labels);
        self.touch(&found);
        found
    }

    fn look_up(&self, labels: &L) -> Arc<S> {
        let full = {
            let map = self.series();
            if let Some(series) = map.get(labels) {
                return Arc::clone(series);
            }
            map.len() >= MAX_SERIES
        };
        let labels = if full {
            self.overflowed.fetch_add(1, Relaxed);
            labels.overflow()
        } else {
            labels.clone()
        };
        let mut map = self.by_labels.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(map.entry(labels).or_default())
    }

    /// Notes that a series was used.
    pub fn touch(&self, series: &S) {
        series.touched().store(self.born.elapsed().as_secs(), Relaxed);
    }

    /// Forgets series that nobody holds, whose names are `gone` and that nothing has touched for [`LINGER`].
    pub fn sweep(&self, gone: impl Fn(&L) -> bool) {
        let now = self.born.elapsed().as_secs();
        self.by_labels.write().unwrap_or_else(PoisonError::into_inner).retain(|labels, series| {
            let quiet = now.saturating_sub(series.touched().load(Relaxed)) >= LINGER.as_secs();
            // Nobody else gets a hold while the map is locked.
            let unused = Arc::strong_count(series) == 1;
            !(quiet && unused && gone(labels))
        });
    }

    /// Every series there is.
    pub fn series(&self) -> RwLockReadGuard<'_, HashMap<L, Arc<S>>> {
        self.by_labels.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Look-ups that were counted under `other` because the number of label sets had reached its bound.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Name(String);

    impl LabelSet for Name {
        fn overflow(&self) -> Self {
            Self("other".to_owned())
        }
    }

    #[derive(Debug, Default)]
    struct Count(AtomicU64);

    impl Counters for Count {
        fn touched(&self) -> &AtomicU64 {
            &self.0
        }
    }

    fn named(name: &str) -> Name {
        Name(name.to_owned())
    }

    #[test]
    fn names_beyond_the_bound_collapse_into_one_series() {
        let store = Store::<Name, Count>::default();
        for n in 0..MAX_SERIES + 10 {
            drop(store.find(&named(&n.to_string())));
        }
        assert_eq!(store.series().len(), MAX_SERIES + 1);
        assert!(store.series().contains_key(&named("other")));
        assert_eq!(store.overflowed(), 10);
    }

    #[test]
    fn only_quiet_series_of_vanished_names_are_forgotten() {
        let born = Instant::now().checked_sub(LINGER * 2).unwrap();
        let store = Store::<Name, Count> { born, ..Store::default() };
        let long_ago = |name| {
            let series = store.find(&named(name));
            series.0.store(0, Relaxed);
            series
        };
        drop(long_ago("old"));
        let _busy = long_ago("busy");
        drop(long_ago("known"));
        drop(store.find(&named("recent")));

        store.sweep(|name| name.0 != "known");

        let mut left: Vec<_> = store.series().keys().map(|name| name.0.clone()).collect();
        left.sort();
        assert_eq!(left, ["busy", "known", "recent"]);
    }
}
