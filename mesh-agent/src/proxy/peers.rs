//! Who tunnels are open to and from, for the operator. Touched once for each tunnel, never for a connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::identity::Identity;

/// The other side of open tunnels: proven identity and address.
type Peer = (Identity, IpAddr);

/// Open tunnels by peer.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<BTreeMap<Peer, usize>>);

/// One open tunnel; dropping it takes it off the list.
#[derive(Debug)]
pub(super) struct Open {
    peers: Arc<Peers>,
    peer: Peer,
}

impl Peers {
    /// A tunnel stands.
    pub(super) fn enter(self: &Arc<Self>, identity: Identity, ip: IpAddr) -> Open {
        let peer = (identity, ip.to_canonical());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(peer.clone()).or_default() += 1;
        Open { peers: Arc::clone(self), peer }
    }

    /// Every peer with its number of tunnels, in order of identity.
    pub(super) fn list(&self) -> Vec<(Identity, IpAddr, usize)> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().map(|((identity, ip), tunnels)| (identity.clone(), *ip, *tunnels)).collect()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut peers = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tunnels) = peers.get_mut(&self.peer) {
            *tunnels -= 1;
            if *tunnels == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_listed_as_long_as_a_tunnel_to_it_stands() {
        let peers = Arc::new(Peers::default());
        let web = Identity::new("td", "shop", "web").unwrap();
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        let (one, two) = (peers.enter(web.clone(), ip), peers.enter(web.clone(), "::ffff:10.0.0.2".parse().unwrap()));
        assert_eq!(peers.list(), [(web.clone(), ip, 2)]);
        drop(one);
        assert_eq!(peers.list(), [(web, ip, 1)]);
        drop(two);
        assert!(peers.list().is_empty());
    }
}
