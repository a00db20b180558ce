//! Tunnel connections kept for reuse, per worker.
//!
//! The key is (source pod, expected identity, destination address, destination pod): a connection proven to be
//! one pod's never carries another's bytes. Who finds none waits; handshakes run in tasks of their own, as many
//! as the waiting need, and nothing is borrowed over an await. The first tunnels to a peer get connections of
//! their own where the peer speaks `mesh-raw/1`; what is beyond `Limits::raw_per_peer` shares HTTP/2
//! connections, so that a burst costs a handshake for a hundred tunnels, not for each.

mod peer;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::failure::Failure;
use super::pod_net::PodNet;
use super::raw::{self, RawTunnel};
use super::secure::{Buffers, Secure};
use super::worker::Shared;
use super::{connect, hbone};
use crate::model::identity::Identity;
use crate::model::workload::WorkloadUid;
use crate::telemetry::labels::{Reporter, Wire};
use peer::{Connection, Opening, Peer};
pub(super) use peer::{Grant, Leased, Slot};

/// Whose connection to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The pod that dials: its identity is what the peer sees.
    pub(super) source: WorkloadUid,
    /// The service account that the peer must prove to be.
    pub(super) expected: Identity,
    /// Its tunnel port.
    pub(super) to: SocketAddr,
    /// The pod that must be there.
    pub(super) destination: WorkloadUid,
}

/// What it takes to open a connection.
#[derive(Clone)]
pub(super) struct Dial {
    /// What for.
    pub(super) key: Key,
    /// The source pod's network.
    pub(super) pod: Arc<dyn PodNet>,
    /// The source pod's identity.
    pub(super) own: Identity,
    /// The peer has published that it speaks `mesh-raw/1`.
    pub(super) raw: bool,
}

/// The pool of one worker.
pub(super) struct Pool {
    shared: Arc<Shared>,
    buffers: Rc<Buffers>,
    peers: RefCell<HashMap<Key, Peer>>,
    /// Draining: nothing is kept for later.
    closed: Cell<bool>,
}

impl Pool {
    pub(super) fn new(shared: Arc<Shared>, buffers: Rc<Buffers>) -> Self {
        Self { shared, buffers, peers: RefCell::default(), closed: Cell::new(false) }
    }

    /// A tunnel of `dial.key`'s, or the right to open one, on a connection opened if there is none.
    ///
    /// # Errors
    /// Why the connection could not be opened.
    pub(super) async fn take(self: &Rc<Self>, dial: &Dial) -> Result<Grant, Failure> {
        let waiting = {
            let mut peers = self.peers.borrow_mut();
            let peer = peers.entry(dial.key.clone()).or_default();
            if let Some(grant) = peer.find(&self.shared.limits, dial.raw) {
                return Ok(grant);
            }
            let (sender, receiver) = oneshot::channel();
            peer.waiting.push_back(sender);
            self.dial_if_needed(peer, dial);
            receiver
        };
        let gone = || Failure::Tunnel { with: dial.key.to, reason: "the dialer went away".to_owned() };
        waiting.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Takes back a connection whose tunnel has ended in order.
    pub(super) fn give_back(&self, key: Key, leased: Box<Leased>) {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(key).or_default();
        let old = leased.born.elapsed() >= self.shared.limits.tunnel_age;
        let distrusted = peer.distrusted.is_some_and(|since| leased.born <= since);
        if self.closed.get() || old || distrusted {
            leased.tunnel.close();
        } else {
            peer.hand_out(Grant::Tunnel(leased));
        }
    }

    /// Closes what is idle to a peer that was found to have closed one: it drains, and ends the others too.
    pub(super) fn distrust(&self, key: &Key) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(key) {
            peer.distrusted = Some(Instant::now());
            std::mem::take(&mut peer.idle).into_iter().for_each(|(leased, _)| leased.tunnel.close());
        }
    }

    /// Closes what has been idle for too long, and forgets peers without connections.
    pub(super) fn sweep(&self) {
        let mut peers = self.peers.borrow_mut();
        peers.retain(|_, peer| {
            peer.sweep(&self.shared.limits);
            !peer.is_unused()
        });
        peers.shrink_to(64);
    }

    /// Keeps nothing from now on: connections close with the last tunnel on them.
    pub(super) fn close(&self) {
        self.closed.set(true);
        for peer in self.peers.borrow_mut().values_mut() {
            peer.connections.clear();
            std::mem::take(&mut peer.idle).into_iter().for_each(|(leased, _)| leased.tunnel.close());
        }
    }

    fn dial_if_needed(self: &Rc<Self>, peer: &mut Peer, dial: &Dial) {
        let limits = &self.shared.limits;
        while let Some(opening) = peer.next_dial(limits, dial.raw) {
            peer.dialing += 1;
            peer.promised += opening.capacity(limits);
            tokio::task::spawn_local(Rc::clone(self).dial(dial.clone(), opening));
        }
    }

    async fn dial(self: Rc<Self>, dial: Dial, opening: Opening) {
        let limits = &self.shared.limits;
        let capacity = opening.capacity(limits);
        let opened = self.open(&dial, opening).await;
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&dial.key) else { return };
        peer.dialing = peer.dialing.saturating_sub(1);
        peer.promised = peer.promised.saturating_sub(capacity);
        match opened {
            Ok(Opened::Shared(connection)) => {
                peer.connections.push(connection);
                peer.serve(limits);
            }
            Ok(Opened::Alone(leased)) => peer.hand_out(Grant::Tunnel(leased)),
            Err(failure) => peer.fail(capacity, &failure),
        }
        if self.closed.get() {
            peer.connections.clear();
        }
        self.dial_if_needed(peer, &dial);
    }

    async fn open(&self, dial: &Dial, opening: Opening) -> Result<Opened, Failure> {
        let with = dial.key.to;
        let shared = &self.shared;
        let mut stream = connect::dial(dial.pod.as_ref(), with, shared.limits.connect).await?;
        let started = Instant::now();
        let alpn: &[&[u8]] = match opening {
            Opening::Alone(_) => &[raw::ALPN, hbone::ALPN],
            Opening::Shared => &[hbone::ALPN],
        };
        let session = shared.tls.connect_session(&mut stream, &dial.own, &dial.key.expected, alpn).await;
        let (session, peer) = session.map_err(|error| Failure::Tls { with, error: Box::new(error) })?;
        let metrics = shared.telemetry.metrics();
        metrics.handshake_duration(Reporter::Outbound).observe(started.elapsed().as_secs_f64());
        let secure = Secure::new(stream, session, &self.buffers);
        if let (Opening::Alone(_counted), raw::ALPN) = (opening, peer.alpn()) {
            let listed = shared.peers.enter(peer.identity().clone(), with.ip());
            let _open = (metrics.tunnel_opened(Reporter::Outbound, Wire::Raw), listed);
            let tunnel = RawTunnel::new(secure, with);
            return Ok(Opened::Alone(Box::new(Leased { tunnel, born: Instant::now(), _counted, _open })));
        }
        self.start(secure, with, peer.identity().clone()).await.map(Opened::Shared)
    }

    async fn start(&self, secure: Secure, with: SocketAddr, peer: Identity) -> Result<Rc<Connection>, Failure> {
        let guard = self.shared.telemetry.metrics().tunnel_opened(Reporter::Outbound, Wire::Hbone);
        let listed = self.shared.peers.enter(peer, with.ip());
        let (send, driver) = hbone::client().handshake(secure).await.map_err(|error| hbone::broken(&error, with))?;
        let now = Instant::now();
        let connection = Rc::new(Connection {
            send,
            born: now,
            streams: Cell::new(0),
            idle_since: Cell::new(now),
            closed: Cell::new(false),
        });
        let driven = Rc::downgrade(&connection);
        tokio::task::spawn_local(async move {
            // Its streams report an error of the connection themselves.
            let _ = driver.await;
            if let Some(connection) = driven.upgrade() {
                connection.closed.set(true);
            }
            drop((guard, listed));
        });
        Ok(connection)
    }
}

/// A new connection, by what the peer chose to speak.
enum Opened {
    Shared(Rc<Connection>),
    Alone(Box<Leased>),
}
