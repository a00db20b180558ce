//! The objects of a cluster, one sequence of versions, and the log of changes that watches read.
//!
//! Pure: no HTTP, no clock, no rules of kinds. What may be written is decided by `write`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::Failure;

/// (namespace, name); the namespace of cluster-wide objects is empty.
pub type Key = (String, String);

/// Objects without `apiVersion` and `kind`, by key.
pub type Objects = BTreeMap<Key, Arc<Value>>;

/// Events kept for each resource: beyond it the oldest expire, as in a real server's cache.
const KEPT_EVENTS: usize = 100_000;

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// The version that it made.
    pub version: u64,
    /// Whose.
    pub key: Key,
    /// Before; none when it was created.
    pub before: Option<Arc<Value>>,
    /// After: with the version of the change. None when it was deleted.
    pub after: Option<Arc<Value>>,
}

/// The store.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<String, Objects>,
    logs: BTreeMap<String, VecDeque<Event>>,
    version: u64,
    /// Changes up to this version are forgotten, for all resources or for one.
    compacted: u64,
    dropped: BTreeMap<String, u64>,
}

impl Store {
    /// The version of the last change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object.
    #[must_use]
    pub fn get(&self, resource: &str, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(resource)?.get(key)
    }

    /// All objects of a resource.
    pub fn all<'a>(&'a self, resource: &str) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> + use<'a> {
        self.objects.get(resource).into_iter().flatten()
    }

    /// Writes an object and gives it back with its version.
    pub fn put(&mut self, resource: &str, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let before = self.objects.entry(resource.to_owned()).or_default().insert(key.clone(), Arc::clone(&object));
        self.log(resource, Event { version: self.version, key, before, after: Some(Arc::clone(&object)) });
        object
    }

    /// Removes an object and gives it back as it was.
    pub fn remove(&mut self, resource: &str, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.get_mut(resource)?.remove(key)?;
        self.version += 1;
        let event = Event { version: self.version, key: key.clone(), before: Some(Arc::clone(&before)), after: None };
        self.log(resource, event);
        Some(before)
    }

    fn log(&mut self, resource: &str, event: Event) {
        let log = self.logs.entry(resource.to_owned()).or_default();
        log.push_back(event);
        if log.len() > KEPT_EVENTS
            && let Some(oldest) = log.pop_front()
        {
            self.dropped.insert(resource.to_owned(), oldest.version);
        }
    }

    /// Forgets all changes so far.
    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.logs.clear();
    }

    /// The changes of a resource after `version`, in order.
    ///
    /// # Errors
    /// 410 when some of them are forgotten.
    pub fn changes_after<'a>(
        &'a self,
        resource: &str,
        version: u64,
    ) -> Result<impl Iterator<Item = &'a Event> + use<'a>, Failure> {
        let oldest = self.oldest(resource);
        if version < oldest {
            return Err(Failure::expired(format!("too old resource version: {version} ({oldest})")));
        }
        let log = self.logs.get(resource);
        let from = log.map_or(0, |log| log.partition_point(|event| event.version <= version));
        Ok(log.into_iter().flat_map(move |log| log.range(from..)))
    }

    /// The objects of a resource as they were at `version`.
    ///
    /// # Errors
    /// 410 when the changes since then are forgotten.
    pub fn objects_at(&self, resource: &str, version: u64) -> Result<Objects, Failure> {
        let mut objects = self.objects.get(resource).cloned().unwrap_or_default();
        let changes: Vec<&Event> = self.changes_after(resource, version)?.collect();
        for event in changes.into_iter().rev() {
            match &event.before {
                Some(before) => objects.insert(event.key.clone(), Arc::clone(before)),
                None => objects.remove(&event.key),
            };
        }
        Ok(objects)
    }

    fn oldest(&self, resource: &str) -> u64 {
        self.compacted.max(self.dropped.get(resource).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    fn object(value: u8) -> Value {
        json!({"metadata": {}, "value": value})
    }

    #[test]
    fn one_sequence_of_versions_counts_all_changes() {
        let mut store = Store::default();
        let first = store.put("pods", key("a"), object(1));
        let second = store.put("services", key("a"), object(1));
        assert_eq!((&first["metadata"]["resourceVersion"], store.version()), (&json!("1"), 2));
        assert_eq!(second["metadata"]["resourceVersion"], "2");
        store.remove("pods", &key("a"));
        assert_eq!((store.version(), store.remove("pods", &key("a"))), (3, None));
        let versions = |after| -> Vec<u64> {
            store.changes_after("pods", after).expect("known").map(|event| event.version).collect()
        };
        assert_eq!((versions(0), versions(1), versions(3)), (vec![1, 3], vec![3], vec![]));
    }

    #[test]
    fn the_past_can_be_read_until_it_is_forgotten() {
        let mut store = Store::default();
        store.put("pods", key("a"), object(1));
        store.put("pods", key("b"), object(1));
        store.put("pods", key("a"), object(2));
        store.remove("pods", &key("b"));
        let then = store.objects_at("pods", 2).expect("known");
        let values: Vec<&Value> = then.values().map(|object| &object["value"]).collect();
        assert_eq!(values, [&json!(1), &json!(1)]);
        assert_eq!(store.objects_at("pods", 0).expect("known").len(), 0);
        store.compact();
        assert_eq!(store.objects_at("pods", 2).map_err(|failure| failure.code), Err(410));
        assert!(store.changes_after("pods", 3).is_err());
        assert!(store.changes_after("pods", 4).is_ok());
    }
}
