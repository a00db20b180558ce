//! Tunnel connections kept for reuse, per worker.
//!
//! The key is (source pod, expected identity, destination address, destination pod): a connection proven to be
//! one pod's never carries another's bytes. Who finds none waits; handshakes run in tasks of their own, as many
//! as the waiting need, and nothing is borrowed over an await. Concurrent dialers of one peer share a handshake.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::connect;
use super::failure::Failure;
use super::hbone;
use super::limits::Limits;
use super::pod_net::PodNet;
use super::worker::Shared;
use crate::model::identity::Identity;
use crate::model::workload::WorkloadUid;
use crate::telemetry::labels::{Reporter, Wire};

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
}

/// One HTTP/2 connection.
struct Connection {
    send: SendRequest<Bytes>,
    born: Instant,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    closed: Cell<bool>,
}

impl Connection {
    fn takes_more(&self, limits: &Limits) -> bool {
        // A peer that advertises none yet is still taken at its word by poll_ready.
        let most = limits.streams_per_tunnel.min(self.send.current_max_send_streams().max(1));
        !self.closed.get() && self.streams.get() < most && self.born.elapsed() < limits.tunnel_age
    }
}

/// The right to open one stream; the share of the connection is given back when dropped.
pub(super) struct Slot {
    connection: Rc<Connection>,
}

impl Slot {
    fn on(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection: Rc::clone(connection) }
    }

    /// A handle that opens the stream, once the connection is ready for one.
    ///
    /// # Errors
    /// The connection takes no new streams: it drains (GOAWAY) or is gone. It is not handed out again.
    pub(super) async fn ready(&self) -> Result<SendRequest<Bytes>, h2::Error> {
        let mut send = self.connection.send.clone();
        let ready = poll_fn(|cx| send.poll_ready(cx)).await;
        if ready.is_err() {
            self.retire();
        }
        ready.map(|()| send)
    }

    /// The connection is not to be used again.
    pub(super) fn retire(&self) {
        self.connection.closed.set(true);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let left = self.connection.streams.get().saturating_sub(1);
        self.connection.streams.set(left);
        if left == 0 {
            self.connection.idle_since.set(Instant::now());
        }
    }
}

type Waiting = oneshot::Sender<Result<Slot, Failure>>;

/// What there is for one key.
#[derive(Default)]
struct Peer {
    connections: Vec<Rc<Connection>>,
    waiting: VecDeque<Waiting>,
    dialing: usize,
}

impl Peer {
    fn find(&self, limits: &Limits) -> Option<Slot> {
        self.connections.iter().find(|connection| connection.takes_more(limits)).map(Slot::on)
    }

    /// Hands out what there is to who has waited longest.
    fn serve(&mut self, limits: &Limits) {
        while let Some(slot) = (!self.waiting.is_empty()).then(|| self.find(limits)).flatten() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            // Who has given up meanwhile gets nothing: the slot returns by its drop.
            let _ = waiting.send(Ok(slot));
        }
    }

    /// As many as one handshake would have served have failed with it.
    fn fail(&mut self, limits: &Limits, failure: &Failure) {
        for _ in 0..limits.streams_per_tunnel {
            let Some(waiting) = self.waiting.pop_front() else { return };
            let _ = waiting.send(Err(failure.clone()));
        }
    }

    fn needs_another(&self, limits: &Limits) -> bool {
        self.dialing < limits.handshakes_per_peer && self.waiting.len() > self.dialing * limits.streams_per_tunnel
    }

    fn is_unused(&self) -> bool {
        self.connections.is_empty() && self.waiting.is_empty() && self.dialing == 0
    }
}

/// The pool of one worker.
pub(super) struct Pool {
    shared: Arc<Shared>,
    peers: RefCell<HashMap<Key, Peer>>,
}

impl Pool {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, peers: RefCell::default() }
    }

    /// A slot on a connection for `dial.key`, opened if there is none.
    ///
    /// # Errors
    /// Why the connection could not be opened.
    pub(super) async fn slot(self: &Rc<Self>, dial: &Dial) -> Result<Slot, Failure> {
        let waiting = {
            let mut peers = self.peers.borrow_mut();
            let peer = peers.entry(dial.key.clone()).or_default();
            if let Some(slot) = peer.find(&self.shared.limits) {
                return Ok(slot);
            }
            let (sender, receiver) = oneshot::channel();
            peer.waiting.push_back(sender);
            self.dial_if_needed(peer, dial);
            receiver
        };
        let gone = || Failure::Tunnel { with: dial.key.to, reason: "the dialer went away".to_owned() };
        waiting.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Closes what has been idle for too long, and forgets peers without connections.
    pub(super) fn sweep(&self) {
        let limits = &self.shared.limits;
        let mut peers = self.peers.borrow_mut();
        peers.retain(|_, peer| {
            peer.connections.retain(|connection| {
                let idle = connection.streams.get() == 0 && connection.idle_since.get().elapsed() >= limits.tunnel_idle;
                !connection.closed.get() && !idle
            });
            !peer.is_unused()
        });
        peers.shrink_to(64);
    }

    /// Closes everything that carries nothing.
    pub(super) fn clear(&self) {
        self.peers.borrow_mut().clear();
    }

    fn dial_if_needed(self: &Rc<Self>, peer: &mut Peer, dial: &Dial) {
        while peer.needs_another(&self.shared.limits) {
            peer.dialing += 1;
            tokio::task::spawn_local(Rc::clone(self).dial(dial.clone()));
        }
    }

    async fn dial(self: Rc<Self>, dial: Dial) {
        let opened = self.open(&dial).await;
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&dial.key) else { return };
        peer.dialing = peer.dialing.saturating_sub(1);
        match opened {
            Ok(connection) => peer.connections.push(connection),
            Err(failure) => peer.fail(&self.shared.limits, &failure),
        }
        peer.serve(&self.shared.limits);
        self.dial_if_needed(peer, &dial);
    }

    async fn open(&self, dial: &Dial) -> Result<Rc<Connection>, Failure> {
        let with = dial.key.to;
        let shared = &self.shared;
        let stream = connect::dial(dial.pod.as_ref(), with, shared.limits.connect).await?;
        let started = Instant::now();
        let tls = shared.tls.connect(stream, &dial.own, &dial.key.expected, &[hbone::ALPN]).await;
        let (tls, peer) = tls.map_err(|error| Failure::Tls { with, error: Box::new(error) })?;
        let metrics = shared.telemetry.metrics();
        metrics.handshake_duration(Reporter::Outbound).observe(started.elapsed().as_secs_f64());
        self.start(tls, with, peer.identity().clone()).await
    }

    async fn start<IO>(&self, io: IO, with: SocketAddr, peer: Identity) -> Result<Rc<Connection>, Failure>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let guard = self.shared.telemetry.metrics().tunnel_opened(Reporter::Outbound, Wire::Hbone);
        let listed = self.shared.peers.enter(peer, with.ip());
        let (send, driver) = hbone::client().handshake(io).await.map_err(|error| hbone::broken(&error, with))?;
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
