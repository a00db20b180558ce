//! Values by key, shared between generations: a copy costs next to nothing, and what differs between two of them is
//! found without a look at what they share.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::model::route::ServiceRef;
use crate::model::service::ServicePort;
use crate::model::workload::{Workload, WorkloadUid};

/// What can be in a [`Table`]. `Eq`, so that one value is not compared with itself.
pub trait Keyed: Eq {
    /// What it is found by.
    type Key: Ord + Clone + fmt::Debug;

    /// Its own key.
    fn key(&self) -> Self::Key;
}

impl Keyed for Workload {
    type Key = WorkloadUid;

    fn key(&self) -> WorkloadUid {
        Arc::clone(&self.uid)
    }
}

impl Keyed for ServicePort {
    type Key = ServiceRef;

    fn key(&self) -> ServiceRef {
        self.reference()
    }
}

/// Values by their own key, in its order. A later one takes the place of an earlier one with the same key.
pub struct Table<T: Keyed>(OrdMap<T::Key, Arc<T>>);

/// A value that differs between two tables: what it was before, and what it is now.
pub type Change<'a, T> = (Option<&'a Arc<T>>, Option<&'a Arc<T>>);

impl<T: Keyed> Table<T> {
    /// The value with this key.
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> Option<&Arc<T>>
    where
        T::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get(key)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<T>> {
        self.0.values()
    }

    /// Puts `value` in the place of what has its key.
    pub fn put(&mut self, value: Arc<T>) {
        self.0.insert(value.key(), value);
    }

    /// Takes away what has this key.
    pub fn remove(&mut self, key: &T::Key) {
        self.0.remove(key);
    }

    /// What differs from `before`. Costs what differs, where one of them has come of the other.
    pub fn since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Change<'a, T>> {
        before.0.diff(&self.0).map(|item| match item {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Update { old, new } => (Some(old.1), Some(new.1)),
            DiffItem::Remove(_, old) => (Some(old), None),
        })
    }
}

impl Table<ServicePort> {
    /// Every port of this Service.
    pub fn of_service(&self, namespace: &Arc<str>, name: &Arc<str>) -> impl Iterator<Item = &Arc<ServicePort>> {
        let port = |port| ServiceRef { namespace: Arc::clone(namespace), name: Arc::clone(name), port };
        self.0.range(port(0)..=port(u16::MAX)).map(|(_, service)| service)
    }
}

impl<T: Keyed> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Keyed> Default for Table<T> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<T: Keyed> PartialEq for Table<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.since(other).next().is_none()
    }
}

impl<T: Keyed + fmt::Debug> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: Keyed> FromIterator<Arc<T>> for Table<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(values: I) -> Self {
        let mut table = Self::default();
        table.extend(values);
        table
    }
}

impl<T: Keyed> Extend<Arc<T>> for Table<T> {
    fn extend<I: IntoIterator<Item = Arc<T>>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.put(value));
    }
}

impl<T: Keyed> From<Vec<Arc<T>>> for Table<T> {
    fn from(values: Vec<Arc<T>>) -> Self {
        values.into_iter().collect()
    }
}
