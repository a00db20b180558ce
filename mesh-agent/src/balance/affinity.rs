//! `sessionAffinity: ClientIP`: the endpoint that a client last used, for as long as the service asks.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::addr::EndpointAddr;
use crate::model::service::ServicePort;
use crate::snapshot::Table;

/// Most clients remembered. Clients are pods of this node, so this is 256 pods with 256 such services each;
/// at about 100 bytes an entry it bounds the map at 7 MiB. Who does not fit is balanced without affinity.
const CAPACITY: usize = 65_536;

/// A full map is searched for expired entries at most this often: a flood of clients must not cost a search each.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    namespace: Arc<str>,
    service: Arc<str>,
    port: u16,
    client: IpAddr,
}

#[derive(Debug)]
struct Pin {
    endpoint: EndpointAddr,
    expires: Instant,
}

/// Remembered choices, each until its service's timeout after its last use.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    pins: HashMap<Key, Pin>,
    swept: Option<Instant>,
}

impl Affinity {
    /// The endpoint that `client` is pinned to.
    pub(super) fn find(&self, service: &ServicePort, client: IpAddr, now: Instant) -> Option<EndpointAddr> {
        let pin = self.pins.get(&key(service, client))?;
        (now < pin.expires).then_some(pin.endpoint)
    }

    /// Pins `client` to `endpoint` for `timeout` from `now`.
    pub(super) fn pin(
        &mut self,
        service: &ServicePort,
        client: IpAddr,
        endpoint: EndpointAddr,
        timeout: Duration,
        now: Instant,
    ) {
        let key = key(service, client);
        if self.pins.len() >= CAPACITY && !self.pins.contains_key(&key) {
            self.sweep(now);
            if self.pins.len() >= CAPACITY {
                return;
            }
        }
        // Kubernetes allows at most one day; a timeout beyond the clock's end would pin for no time at all.
        let expires = now.checked_add(timeout).unwrap_or(now);
        self.pins.insert(key, Pin { endpoint, expires });
    }

    /// Forgets pins to endpoints that `services` no longer have.
    pub(super) fn retain(&mut self, services: &Table<ServicePort>) {
        if self.pins.is_empty() {
            return;
        }
        let pinning = services.iter().filter(|service| service.affinity.is_some());
        let present: HashSet<(&str, &str, u16, EndpointAddr)> = pinning
            .flat_map(|s| s.endpoints.iter().map(move |endpoint| (&*s.namespace, &*s.name, s.port, endpoint.addr)))
            .collect();
        self.pins.retain(|key, pin| present.contains(&(&*key.namespace, &*key.service, key.port, pin.endpoint)));
    }

    /// How many clients are remembered.
    pub(super) fn len(&self) -> usize {
        self.pins.len()
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.saturating_duration_since(at) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.pins.retain(|_, pin| now < pin.expires);
    }
}

fn key(service: &ServicePort, client: IpAddr) -> Key {
    Key {
        namespace: Arc::clone(&service.namespace),
        service: Arc::clone(&service.name),
        port: service.port,
        client: client.to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_takes_nobody_new_until_something_expires() {
        let mut affinity = Affinity::default();
        let service = ServicePort { port: 80, ..ServicePort::default() };
        let endpoint = EndpointAddr::new("10.0.0.1:80".parse().expect("address"));
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let client = |n: usize| IpAddr::from(u32::try_from(n).expect("small").to_be_bytes());
        for n in 0..CAPACITY {
            affinity.pin(&service, client(n), endpoint, minute, now);
        }
        affinity.pin(&service, client(CAPACITY), endpoint, minute, now);
        assert_eq!((affinity.len(), affinity.find(&service, client(CAPACITY), now)), (CAPACITY, None));

        affinity.pin(&service, client(0), endpoint, minute * 2, now);
        let later = now + minute;
        affinity.pin(&service, client(CAPACITY), endpoint, minute, later);
        assert_eq!(affinity.find(&service, client(CAPACITY), later), Some(endpoint));
        assert_eq!(affinity.len(), 2, "the renewed pin and the new one");
    }
}
