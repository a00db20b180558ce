//! The side of an outbound connection that faces the destination: a tunnel's stream, or plain TCP.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use h2::Reason;

use super::TUNNEL_PORT;
use super::connect;
use super::copy::Side;
use super::failure::Failure;
use super::hbone::{self, H2Side};
use super::pool::{Dial, Grant, Key, Leased, Slot};
use super::raw;
use super::target::Target;
use super::tcp::TcpSide;
use super::worker::{Pod, Worker};
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;

/// A pooled connection may turn out to be draining or dead before it has an answer; then others are tried, fresh ones
/// in the end: at most one each of its own and shared is stale, once the pool distrusts the peer.
const ATTEMPTS: usize = 4;

/// An open connection to the destination.
pub(super) enum Upstream {
    /// A tunnel connection of its own, and where it belongs.
    Raw(Box<Leased>, Key),
    /// A stream of an HTTP/2 tunnel, with its share of the connection.
    Hbone(H2Side, Slot),
    /// TCP without the mesh's protection.
    Plain(TcpSide),
}

impl Upstream {
    /// Ends it as a failure, and returns what can carry another connection to the pool.
    pub(super) async fn reset(self, worker: &Worker) {
        match self {
            Self::Raw(leased, key) => {
                if let Some(leased) = leased.abandon(&worker.buffers.scratch).await {
                    worker.pool.give_back(key, leased);
                }
            }
            Self::Hbone(side, _slot) => side.reset(),
            Self::Plain(side) => side.reset(),
        }
    }

    /// After both directions have ended in order: returns what can carry another connection to the pool.
    pub(super) async fn give_back(self, worker: &Worker) {
        if let Self::Raw(mut leased, key) = self {
            // The peer may still be writing to a slow application; as long as an idle connection it may wait.
            let done = leased.tunnel.wait_done(&worker.buffers.scratch);
            if let Ok(true) = tokio::time::timeout(worker.shared.limits.tunnel_idle, done).await {
                worker.pool.give_back(key, leased);
            }
        }
    }
}

/// Opens `target` on behalf of `source`, whose application connected from `client`.
///
/// # Errors
/// A captured target is reached by a tunnel to its own identity, or not at all.
pub(super) async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    source: &Workload,
    client: SocketAddr,
    target: &Target,
) -> Result<Upstream, Failure> {
    let Some((workload, captured)) = target.tunnel() else {
        let stream = connect::dial(pod.net.as_ref(), target.addr().addr(), worker.shared.limits.connect).await?;
        return Ok(Upstream::Plain(TcpSide::new(stream, "server")));
    };
    let key = Key {
        source: Arc::clone(pod.net.uid()),
        expected: workload.identity.clone(),
        to: SocketAddr::new(target.addr().ip(), TUNNEL_PORT),
        destination: Arc::clone(&workload.uid),
    };
    let raw = captured.wire.iter().any(|alpn| alpn.as_bytes() == raw::ALPN);
    let dial = Dial { key, pod: Arc::clone(&pod.net), own: source.identity.clone(), raw };
    let mut broken = String::new();
    for _ in 0..ATTEMPTS {
        let opened = match worker.pool.take(&dial).await? {
            Grant::Tunnel(leased) => open_tunnel(worker, leased, target, &dial.key).await?,
            Grant::Stream(slot) => {
                let head = hbone::request(target.addr(), source, client);
                open_stream(worker, slot, head, dial.key.to).await?.map_err(|error| error.to_string())
            }
        };
        match opened {
            Ok(upstream) => return Ok(upstream),
            Err(error) => {
                worker.pool.distrust(&dial.key);
                broken = error;
            }
        }
    }
    Err(Failure::Tunnel { with: dial.key.to, reason: broken })
}

/// One attempt. The inner error: the connection was dead before an answer came, another may be tried.
async fn open_tunnel(
    worker: &Rc<Worker>,
    mut leased: Box<Leased>,
    target: &Target,
    key: &Key,
) -> Result<Result<Upstream, String>, Failure> {
    let open = leased.tunnel.open(target.addr().addr(), &worker.buffers.scratch);
    match tokio::time::timeout(worker.shared.limits.answer, open).await {
        Ok(Ok(Ok(()))) => Ok(Ok(Upstream::Raw(leased, key.clone()))),
        Ok(Ok(Err(error))) => Ok(Err(error.to_string())),
        Ok(Err(failure)) => {
            // A refusal leaves the connection as good as it was; after anything else it is not given back.
            if matches!(failure, Failure::RefusedByPeer { .. }) {
                worker.pool.give_back(key.clone(), leased);
            }
            Err(failure)
        }
        Err(_elapsed) => {
            leased.tunnel.reset();
            Err(Failure::RefusedByPeer { by: key.to, outcome: Outcome::ConnectTimeout })
        }
    }
}

/// One attempt. The inner error: the peer has not looked at the request, another connection may be tried.
async fn open_stream(
    worker: &Rc<Worker>,
    slot: Slot,
    head: http::Request<()>,
    with: SocketAddr,
) -> Result<Result<Upstream, h2::Error>, Failure> {
    let mut send = match slot.ready().await {
        Ok(send) => send,
        Err(error) => return Ok(Err(error)),
    };
    let (answer, mut stream) = match send.send_request(head, false) {
        Ok(sent) => sent,
        Err(error) => {
            slot.retire();
            return Ok(Err(error));
        }
    };
    match tokio::time::timeout(worker.shared.limits.answer, answer).await {
        Ok(Ok(answer)) => {
            hbone::verdict(answer.status(), answer.headers(), with)?;
            Ok(Ok(Upstream::Hbone(H2Side::new(stream, answer.into_body(), with), slot)))
        }
        Ok(Err(error)) if is_unprocessed(&error) => {
            slot.retire();
            Ok(Err(error))
        }
        Ok(Err(error)) => Err(hbone::broken(&error, with)),
        Err(_elapsed) => {
            stream.send_reset(Reason::CONNECT_ERROR);
            Err(Failure::RefusedByPeer { by: with, outcome: Outcome::ConnectTimeout })
        }
    }
}

/// The peer has not acted on the request (RFC 9113 §8.7), or the connection was dead before it got there. No byte
/// of the application has been sent in either case.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_go_away() || error.is_io() || error.reason() == Some(Reason::REFUSED_STREAM)
}

impl Side for Upstream {
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<bool, Failure>> {
        match self {
            Self::Raw(leased, _) => leased.tunnel.poll_fill(cx, scratch),
            Self::Hbone(side, _) => side.poll_fill(cx, scratch),
            Self::Plain(side) => side.poll_fill(cx, scratch),
        }
    }

    fn filled<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Raw(leased, _) => leased.tunnel.filled(scratch),
            Self::Hbone(side, _) => side.filled(scratch),
            Self::Plain(side) => side.filled(scratch),
        }
    }

    fn consume(&mut self, count: usize) {
        match self {
            Self::Raw(leased, _) => leased.tunnel.consume(count),
            Self::Hbone(side, _) => side.consume(count),
            Self::Plain(side) => side.consume(count),
        }
    }

    fn keep(&mut self, scratch: &[u8]) {
        match self {
            Self::Raw(leased, _) => leased.tunnel.keep(scratch),
            Self::Hbone(side, _) => side.keep(scratch),
            Self::Plain(side) => side.keep(scratch),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Failure>> {
        match self {
            Self::Raw(leased, _) => leased.tunnel.poll_write(cx, data),
            Self::Hbone(side, _) => side.poll_write(cx, data),
            Self::Plain(side) => side.poll_write(cx, data),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self {
            Self::Raw(leased, _) => leased.tunnel.poll_flush(cx),
            Self::Hbone(side, _) => side.poll_flush(cx),
            Self::Plain(side) => side.poll_flush(cx),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self {
            Self::Raw(leased, _) => leased.tunnel.poll_finish(cx),
            Self::Hbone(side, _) => side.poll_finish(cx),
            Self::Plain(side) => side.poll_finish(cx),
        }
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Failure> {
        match self {
            Self::Raw(leased, _) => leased.tunnel.poll_broken(cx, scratch),
            Self::Hbone(side, _) => side.poll_broken(cx, scratch),
            Self::Plain(side) => side.poll_broken(cx, scratch),
        }
    }
}
