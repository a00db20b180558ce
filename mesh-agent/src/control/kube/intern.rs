//! One copy of each text that many objects have: a cluster has few nodes, namespaces and sets of labels, and many pods.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Key, Object, Reading};
use crate::model::workload::NamedPort;

/// Nothing is looked for among fewer.
const FEW: usize = 1_024;

/// The copies, for all watches. Whoever reads an object makes it share at once: what it has of its own would be freed
/// between what stays, and leave holes too small for anything.
#[derive(Debug, Default)]
pub(super) struct Interner(Mutex<Pools>);

#[derive(Debug, Default)]
struct Pools {
    texts: Pool<str>,
    labels: Pool<BTreeMap<String, String>>,
    wires: Pool<[Arc<str>]>,
    ports: Pool<[NamedPort]>,
    numbers: Pool<[u16]>,
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// When there are as many, those that nobody has any more are thrown out.
    limit: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: FEW }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn share(&mut self, own: &mut Arc<T>) {
        if let Some(known) = self.known.get(&**own) {
            *own = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = (2 * self.known.len()).max(FEW);
        }
        self.known.insert(Arc::clone(own));
    }
}

impl Interner {
    /// Makes an object that was just read, and its key, share what others have.
    pub(super) fn share(&self, key: &mut Key, reading: &mut Reading) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).share(key, reading);
    }
}

impl Pools {
    fn share(&mut self, key: &mut Key, reading: &mut Reading) {
        let Self { texts, labels, wires, ports, numbers } = self;
        texts.share(&mut key.namespace);
        let Reading::Object(own, object, _) = reading else { return };
        *own = key.clone();
        match object {
            Object::Pod(pod) => {
                let Some(pod) = Arc::get_mut(pod) else { return };
                pod.namespace = Arc::clone(&key.namespace);
                pod.name = Arc::clone(&key.name);
                [&mut pod.app, &mut pod.node, &mut pod.service_account].into_iter().for_each(|text| texts.share(text));
                let own = Arc::get_mut(&mut pod.ports).into_iter().flatten();
                own.for_each(|port| texts.share(&mut port.name));
                ports.share(&mut pod.ports);
                numbers.share(&mut pod.probe_ports);
                labels.share(&mut pod.labels);
            }
            Object::Service(service) => {
                let Some(service) = Arc::get_mut(service) else { return };
                service.namespace = Arc::clone(&key.namespace);
                service.name = Arc::clone(&key.name);
                service.ports.iter_mut().for_each(|port| texts.share(&mut port.name));
            }
            Object::Slice(slice) => {
                let Some(slice) = Arc::get_mut(slice) else { return };
                slice.namespace = Arc::clone(&key.namespace);
                slice.ports.iter_mut().for_each(|(_, name, _)| texts.share(name));
                for endpoint in &mut slice.endpoints {
                    texts.share(&mut endpoint.node);
                    texts.share(&mut endpoint.zone);
                    endpoint.hinted_zones.iter_mut().chain(&mut endpoint.hinted_nodes).for_each(|it| texts.share(it));
                }
            }
            Object::CaptureState(state) => {
                let Some(state) = Arc::get_mut(state) else { return };
                texts.share(&mut state.node);
                state.pods.values_mut().for_each(|captured| wires.share(&mut captured.wire));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_shared_and_what_nobody_has_is_thrown_out() {
        let mut pool: Pool<str> = Pool::default();
        let (mut one, mut other): (Arc<str>, Arc<str>) = ("node-a".into(), "node-a".into());
        pool.share(&mut one);
        pool.share(&mut other);
        assert!(Arc::ptr_eq(&one, &other));
        for at in 0..5 * FEW {
            pool.share(&mut Arc::from(at.to_string()));
        }
        assert!(pool.known.len() <= 2 * FEW, "{}", pool.known.len());
        let mut again: Arc<str> = "node-a".into();
        pool.share(&mut again);
        assert!(Arc::ptr_eq(&one, &again), "what somebody has stays");
    }
}
