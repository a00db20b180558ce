//! What a worker has open to one peer, and who waits for it. Hands out; opens nothing itself.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::oneshot;

use crate::proxy::failure::Failure;
use crate::proxy::limits::Limits;
use crate::proxy::peers;
use crate::proxy::raw::RawTunnel;
use crate::proxy::scratch::Scratch;
use crate::telemetry::metrics::TunnelGuard;

/// One HTTP/2 connection.
pub(super) struct Connection {
    pub(super) send: SendRequest<Bytes>,
    pub(super) born: Instant,
    pub(super) streams: Cell<usize>,
    pub(super) idle_since: Cell<Instant>,
    pub(super) closed: Cell<bool>,
}

impl Connection {
    fn takes_more(&self, limits: &Limits) -> bool {
        // A peer that advertises none yet is still taken at its word by poll_ready.
        let most = limits.streams_per_tunnel.min(self.send.current_max_send_streams().max(1));
        !self.closed.get() && self.streams.get() < most && self.born.elapsed() < limits.tunnel_age
    }
}

/// The right to open one stream; the share of the connection is given back when dropped.
pub(in crate::proxy) struct Slot {
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
    pub(in crate::proxy) async fn ready(&self) -> Result<SendRequest<Bytes>, h2::Error> {
        let mut send = self.connection.send.clone();
        let ready = poll_fn(|cx| send.poll_ready(cx)).await;
        if ready.is_err() {
            self.retire();
        }
        ready.map(|()| send)
    }

    /// The connection is not to be used again.
    pub(in crate::proxy) fn retire(&self) {
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
pub(in crate::proxy) struct Leased {
    pub(in crate::proxy) tunnel: RawTunnel,
    pub(super) born: Instant,
    pub(super) _counted: Counted,
    pub(super) _open: (TunnelGuard, peers::Open),
}

/// What a dialer gets.
pub(in crate::proxy) enum Grant {
    /// A stream of an HTTP/2 connection.
    Stream(Slot),
    /// A connection of its own.
    Tunnel(Box<Leased>),
}

impl Leased {
    /// Ends its tunnel as a failure; returns it if it is good for another.
    pub(in crate::proxy) async fn abandon(self: Box<Self>, scratch: &Scratch) -> Option<Box<Self>> {
        let Self { tunnel, born, _counted, _open } = *self;
        let tunnel = tunnel.abandon(scratch).await?;
        Some(Box::new(Self { tunnel, born, _counted, _open }))
    }
}

/// One of a key's connections of their own, from the dial on; gives its place back when dropped.
pub(super) struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn on(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// What a dial in progress will open, as far as can be told before the peer has chosen.
pub(super) enum Opening {
    /// A connection for one tunnel at a time.
    Alone(Counted),
    /// A connection that many share.
    Shared,
}

impl Opening {
    /// How many of the waiting it serves.
    pub(super) fn capacity(&self, limits: &Limits) -> usize {
        match self {
            Self::Alone(_) => 1,
            Self::Shared => limits.streams_per_tunnel,
        }
    }
}

pub(super) type Waiting = oneshot::Sender<Result<Grant, Failure>>;

/// What there is for one key.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) connections: Vec<Rc<Connection>>,
    /// Last in, first out: the tail grows old and is closed.
    pub(super) idle: Vec<(Box<Leased>, Instant)>,
    pub(super) waiting: VecDeque<Waiting>,
    /// Handshakes under way, and how many of the waiting they will serve.
    pub(super) dialing: usize,
    pub(super) promised: usize,
    /// Connections of their own: dialling, idle and in use.
    alone: Rc<Cell<usize>>,
    /// When a connection of its own was last found to be closed by the peer: those from before are not used again.
    pub(super) distrusted: Option<Instant>,
}

impl Peer {
    /// What a new tunnel may use at once. `raw`: it is worth waiting for a connection of its own while the peer
    /// may have more of them.
    pub(super) fn find(&mut self, limits: &Limits, raw: bool) -> Option<Grant> {
        while let Some((leased, _)) = self.idle.pop() {
            if leased.born.elapsed() < limits.tunnel_age && leased.tunnel.is_quiet() {
                return Some(Grant::Tunnel(leased));
            }
            leased.tunnel.close();
        }
        if raw && self.alone.get() < limits.raw_per_peer {
            return None;
        }
        let connection = self.connections.iter().find(|connection| connection.takes_more(limits))?;
        Some(Grant::Stream(Slot::on(connection)))
    }

    /// Hands out what there is to who has waited longest.
    pub(super) fn serve(&mut self, limits: &Limits) {
        while !self.waiting.is_empty() {
            let Some(grant) = self.find(limits, false) else { return };
            self.hand_out(grant);
        }
    }

    /// Gives `grant` to the first who still waits; a slot that nobody wants returns by its drop.
    pub(super) fn hand_out(&mut self, mut grant: Grant) {
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
    pub(super) fn fail(&mut self, capacity: usize, failure: &Failure) {
        for _ in 0..capacity {
            let Some(waiting) = self.waiting.pop_front() else { return };
            // Who has given up needs no answer.
            let _ = waiting.send(Err(failure.clone()));
        }
    }

    /// What must be dialled for those who wait and are promised nothing.
    pub(super) fn next_dial(&self, limits: &Limits, raw: bool) -> Option<Opening> {
        let unserved = self.waiting.len().saturating_sub(self.promised);
        if unserved == 0 || self.dialing >= limits.handshakes_per_peer {
            return None;
        }
        let places = if raw { limits.raw_per_peer.saturating_sub(self.alone.get()) } else { 0 };
        // More than there are places for is a burst: one handshake for a hundred of them first.
        Some(if unserved <= places { Opening::Alone(Counted::on(&self.alone)) } else { Opening::Shared })
    }

    pub(super) fn is_unused(&self) -> bool {
        let kept = self.connections.len() + self.idle.len() + self.alone.get();
        kept == 0 && self.waiting.is_empty() && self.dialing == 0
    }

    /// Closes what has been idle for too long, or is no longer any good.
    pub(super) fn sweep(&mut self, limits: &Limits) {
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
