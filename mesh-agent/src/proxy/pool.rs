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
use tokio::sync::oneshot;

use super::failure::Failure;
use super::limits::Limits;
use super::pod_net::PodNet;
use super::raw::{self, RawTunnel};
use super::secure::{Buffers, Secure};
use super::worker::Shared;
use super::{connect, hbone, peers};
use crate::model::identity::Identity;
use crate::model::workload::WorkloadUid;
use crate::telemetry::labels::{Reporter, Wire};
use crate::telemetry::metrics::TunnelGuard;

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

impl Dial {
    /// How many tunnels one connection carries at a time, as far as can be told before the handshake.
    fn capacity(&self, limits: &Limits) -> usize {
        if self.raw { 1 } else { limits.streams_per_tunnel }
    }
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

/// A connection that carries one tunnel at a time.
pub(super) struct Leased {
    pub(super) tunnel: RawTunnel,
    born: Instant,
    _open: (TunnelGuard, peers::Open),
}

/// What a dialer gets.
pub(super) enum Grant {
    /// A stream of an HTTP/2 connection.
    Stream(Slot),
    /// A connection of its own.
    Tunnel(Box<Leased>),
}

type Waiting = oneshot::Sender<Result<Grant, Failure>>;

/// What there is for one key.
#[derive(Default)]
struct Peer {
    connections: Vec<Rc<Connection>>,
    /// Last in, first out: the tail grows old and is closed.
    idle: Vec<(Box<Leased>, Instant)>,
    waiting: VecDeque<Waiting>,
    dialing: usize,
}

impl Peer {
    fn find(&mut self, limits: &Limits) -> Option<Grant> {
        while let Some((leased, _)) = self.idle.pop() {
            if leased.born.elapsed() < limits.tunnel_age && leased.tunnel.is_quiet() {
                return Some(Grant::Tunnel(leased));
            }
            leased.tunnel.close();
        }
        let connection = self.connections.iter().find(|connection| connection.takes_more(limits))?;
        Some(Grant::Stream(Slot::on(connection)))
    }

    /// Hands out what there is to who has waited longest.
    fn serve(&mut self, limits: &Limits) {
        while !self.waiting.is_empty() {
            let Some(grant) = self.find(limits) else { return };
            self.hand_out(grant);
        }
    }

    /// Gives `grant` to the first who still waits; a slot that nobody wants returns by its drop.
    fn hand_out(&mut self, mut grant: Grant) {
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(Ok(grant)) {
                Ok(()) | Err(Err(_)) => return,
                Err(Ok(returned)) => grant = returned,
            }
        }
        if let Grant::Tunnel(leased) = grant {
            self.idle.push((leased, Instant::now()));
        }
    }

    /// As many as one handshake would have served have failed with it.
    fn fail(&mut self, capacity: usize, failure: &Failure) {
        for _ in 0..capacity {
            let Some(waiting) = self.waiting.pop_front() else { return };
            // Who has given up needs no answer.
            let _ = waiting.send(Err(failure.clone()));
        }
    }

    fn needs_another(&self, limits: &Limits, capacity: usize) -> bool {
        self.dialing < limits.handshakes_per_peer && self.waiting.len() > self.dialing * capacity
    }

    fn is_unused(&self) -> bool {
        self.connections.is_empty() && self.idle.is_empty() && self.waiting.is_empty() && self.dialing == 0
    }

    /// Closes what has been idle for too long, or is no longer any good.
    fn sweep(&mut self, limits: &Limits) {
        self.connections.retain(|connection| {
            let idle = connection.streams.get() == 0 && connection.idle_since.get().elapsed() >= limits.tunnel_idle;
            !connection.closed.get() && !idle
        });
        let (keep, close) = std::mem::take(&mut self.idle)
            .into_iter()
            .partition(|(leased, since)| since.elapsed() < limits.tunnel_idle && leased.tunnel.is_quiet());
        self.idle = keep;
        for (leased, _) in close {
            leased.tunnel.close();
        }
    }
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
            if let Some(grant) = peer.find(&self.shared.limits) {
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
        if self.closed.get() || leased.born.elapsed() >= self.shared.limits.tunnel_age {
            leased.tunnel.close();
        } else {
            self.peers.borrow_mut().entry(key).or_default().hand_out(Grant::Tunnel(leased));
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
        while peer.needs_another(&self.shared.limits, dial.capacity(&self.shared.limits)) {
            peer.dialing += 1;
            tokio::task::spawn_local(Rc::clone(self).dial(dial.clone()));
        }
    }

    async fn dial(self: Rc<Self>, dial: Dial) {
        let opened = self.open(&dial).await;
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&dial.key) else { return };
        peer.dialing = peer.dialing.saturating_sub(1);
        let limits = &self.shared.limits;
        match opened {
            Ok(Opened::Shared(connection)) => {
                peer.connections.push(connection);
                peer.serve(limits);
            }
            Ok(Opened::Alone(leased)) => peer.hand_out(Grant::Tunnel(leased)),
            Err(failure) => peer.fail(dial.capacity(limits), &failure),
        }
        if self.closed.get() {
            peer.connections.clear();
        }
        self.dial_if_needed(peer, &dial);
    }

    async fn open(&self, dial: &Dial) -> Result<Opened, Failure> {
        let with = dial.key.to;
        let shared = &self.shared;
        let mut stream = connect::dial(dial.pod.as_ref(), with, shared.limits.connect).await?;
        let started = Instant::now();
        let alpn: &[&[u8]] = if dial.raw { &[raw::ALPN, hbone::ALPN] } else { &[hbone::ALPN] };
        let session = shared.tls.connect_session(&mut stream, &dial.own, &dial.key.expected, alpn).await;
        let (session, peer) = session.map_err(|error| Failure::Tls { with, error: Box::new(error) })?;
        let metrics = shared.telemetry.metrics();
        metrics.handshake_duration(Reporter::Outbound).observe(started.elapsed().as_secs_f64());
        let secure = Secure::new(stream, session, &self.buffers);
        if peer.alpn() == raw::ALPN {
            let listed = shared.peers.enter(peer.identity().clone(), with.ip());
            let _open = (metrics.tunnel_opened(Reporter::Outbound, Wire::Raw), listed);
            let tunnel = RawTunnel::new(secure, with);
            return Ok(Opened::Alone(Box::new(Leased { tunnel, born: Instant::now(), _open })));
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
