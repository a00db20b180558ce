//! Inbound drivers: what happens to a connection that is meant for a pod's application.
//!
//! Tunnel: accept → handshake → per tunnel: target → authorize → deliver → answer → carry → record.
//! Plaintext: accept → authorize → deliver → carry → record.
//! The application sees the client's address; nothing reaches it without a permit. To carry is to copy, or, on a port
//! with rules about requests, to read them: `http::inbound`. What is spoken inside a tunnel connection is `serve`'s.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::copy::{Side, both_ways};
use super::failure::Failure;
use super::http::inbound::Application;
use super::recheck::{Live, Standing};
use super::secure::Secure;
use super::tcp::{self, TcpSide};
use super::worker::{Pod, Worker};
use super::{connect, hbone, http, raw, serve};
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::policy::{Flow, Permit, Requests, audited, authorize_delivery};
use crate::snapshot::Snapshot;
use crate::telemetry::labels::{Lane, Reporter};
use crate::telemetry::record::{ConnectionRecord, Ending, Party};
use crate::tls::TlsError;

/// Who is at the other end of an accepted connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Where the connection comes from, which the application will see.
    pub(super) addr: SocketAddr,
    /// Who it has proven to be.
    pub(super) identity: PeerIdentity,
}

/// Serves one plaintext connection to its end.
pub(super) async fn serve_plaintext(worker: &Rc<Worker>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let mut record = worker.shared.telemetry.open(Reporter::Inbound);
    let target = stream.local_addr().map(crate::model::addr::canonical);
    let proven = target.as_ref().ok().and_then(|local| pod.net.proven_client(*local, peer));
    let client = Client { addr: peer, identity: identity_of(proven.as_deref(), &worker.shared.snapshots.load()) };
    let delivered = match target {
        Ok(target) => Box::pin(deliver(worker, pod, &client, target, &mut record)).await,
        Err(_) => Err(Failure::NoOrigDst),
    };
    let delivered = match delivered {
        Ok(delivered) => delivered,
        Err(failure) => {
            tcp::reset(stream);
            return record.record(failure.ending());
        }
    };
    let side = TcpSide::new(stream, "client");
    let carried = carry(worker, pod, &client, side, delivered, record).await;
    if let (Some(side), Err(_)) = (carried.side, &carried.result) {
        side.reset();
    }
    carried.record.record(ending(carried.result));
}

/// How a connection is recorded.
pub(super) fn ending(result: Result<(), Failure>) -> Ending {
    result.map_or_else(|failure| failure.ending(), |()| Outcome::Ok.into())
}

/// A connection that was carried to its end.
pub(super) struct Carried<S> {
    /// The client's side; `None`: it is gone.
    pub(super) side: Option<S>,
    /// Both directions have ended.
    pub(super) ended: bool,
    pub(super) result: Result<(), Failure>,
    pub(super) record: ConnectionRecord,
}

/// Carries what a client sends to the application, and back: as it is, or request by request.
pub(super) async fn carry<S: Side + 'static>(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    mut side: S,
    delivered: Delivered,
    mut record: ConnectionRecord,
) -> Carried<S> {
    let Delivered { mut server, live, permit, target, requests } = delivered;
    if requests != Requests::Ignored {
        let application = Application { pod: Arc::clone(pod), from: client.addr, target, permit, server };
        return Box::pin(http::inbound::carry(worker, application, side, live, record)).await;
    }
    record.established();
    let scratch = &worker.buffers.scratch;
    let result = both_ways(&mut side, &mut server, scratch, live.switch(), record.meter()).await;
    if result.is_err() {
        server.reset();
    }
    Carried { side: Some(side), ended: result.is_ok(), result, record }
}

/// Who a pod of this node is, by the kernel's proof; without one the peer is unknown, whatever its address says.
fn identity_of(proven: Option<&str>, snapshot: &Snapshot) -> PeerIdentity {
    let workload = proven.and_then(|uid| snapshot.workload(uid));
    workload.map_or(PeerIdentity::Unknown, |workload| PeerIdentity::Verified(workload.identity.clone()))
}

/// Serves one tunnel connection, with all the tunnels it carries, to its end.
pub(super) async fn serve_tunnel(worker: &Rc<Worker>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    tcp::keep_alive(&stream);
    let served = match Box::pin(handshake(worker, pod, stream, peer)).await {
        Ok(Some((secure, client, true))) => serve::one_by_one(worker, pod, secure, client).await,
        Ok(Some((secure, client, false))) => Box::pin(serve::streams(worker, pod, secure, client)).await,
        Ok(None) => return worker.shared.telemetry.metrics().refused_request("nothing_said"),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = served {
        let mut record = worker.shared.telemetry.open(Reporter::Inbound);
        record.source = Party::from(peer);
        record.lane = Lane::Tunnel;
        if let Some(workload) = worker.shared.snapshots.load().workload(pod.net.uid()) {
            record.destination.name(workload);
        }
        record.record(failure.ending());
    }
}

/// Whether the peer goes without a word: a client that has found another connection before this one stood, or somebody
/// who looks for open ports. Neither is a failed session.
///
/// # Errors
/// When it stays without a word for as long as a handshake may take.
async fn goes_silently(stream: &TcpStream, within: Duration) -> Result<bool, TlsError> {
    match tokio::time::timeout(within, stream.peek(&mut [0; 1])).await {
        Ok(said) => Ok(said.unwrap_or(0) == 0),
        Err(_) => Err(TlsError::Timeout { deadline: within }),
    }
}

/// The session, who the other side proved to be, and whether it carries one tunnel at a time; `None`: the other side
/// wanted none after all.
async fn handshake(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<Option<(Secure, Client, bool)>, Failure> {
    let shared = &worker.shared;
    let own = shared.snapshots.load().workload(pod.net.uid()).map(|workload| workload.identity.clone());
    let own = own.ok_or_else(|| Failure::UnknownPod(Arc::clone(pod.net.uid())))?;
    let failed = |error| Failure::Tls { with: peer, error: Box::new(error) };
    if goes_silently(&stream, shared.limits.handshake).await.map_err(failed)? {
        return Ok(None);
    }
    let started = Instant::now();
    let accepted = shared.tls.accept_session(&mut stream, &own, &[raw::ALPN, hbone::ALPN]).await;
    let (session, proven) = accepted.map_err(failed)?;
    let metrics = shared.telemetry.metrics();
    metrics.handshake_duration(Reporter::Inbound).observe(started.elapsed().as_secs_f64());
    let client = Client { addr: peer, identity: PeerIdentity::Verified(proven.identity().clone()) };
    Ok(Some((Secure::new(stream, session, &worker.buffers), client, proven.alpn() == raw::ALPN)))
}

/// An open connection to the application, and what it rests on.
pub(super) struct Delivered {
    server: TcpSide,
    live: Live,
    permit: Permit,
    target: SocketAddr,
    /// Whether somebody must read what the client sends.
    requests: Requests,
}

impl Delivered {
    /// Ends it: nobody is there to be served.
    pub(super) fn abandon(self) {
        self.server.reset();
    }
}

/// Authorizes a flow and opens the application's connection for it.
pub(super) async fn deliver(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    target: SocketAddr,
    record: &mut ConnectionRecord,
) -> Result<Delivered, Failure> {
    let snapshot = worker.shared.snapshots.load();
    let workload = snapshot.workload(pod.net.uid());
    describe(record, client, target, workload, &snapshot);
    let workload = workload.ok_or_else(|| Failure::UnknownPod(Arc::clone(pod.net.uid())))?;
    refuse_foreign(worker, pod, &workload.ips, target)?;
    let flow = Flow {
        destination: Arc::clone(&workload.uid),
        port: target.port(),
        peer: client.identity.clone(),
        source_ip: client.addr.ip(),
    };
    record.audited_by(audited(&snapshot, &flow, None));
    // The lane is chosen again here, whatever the client's node has made of the connection (design §1).
    let (permit, requests) = authorize_delivery(&snapshot, flow)?;
    record.rule = permit.rule().map(Arc::clone);
    // In the same turn as the decision: no newer snapshot can slip in between unseen.
    let live = worker.live.enter(Standing::Permit(permit.clone()));
    let connect = connect::deliver(pod.net.as_ref(), target, client.addr, &permit, worker.shared.limits.connect);
    let stream = tokio::select! {
        biased;
        ending = live.switch().tripped() => return Err(Failure::Ended(ending)),
        connected = connect => connected?,
    };
    record.connected();
    Ok(Delivered { server: TcpSide::new(stream, "server"), live, permit, target, requests })
}

/// A tunnel to this pod reaches this pod's applications and nothing else: not another pod, not the agent.
fn refuse_foreign(worker: &Worker, pod: &Pod, ips: &[IpAddr], target: SocketAddr) -> Result<(), Failure> {
    let served = hbone::serves(ips, &worker.shared.refused_ports, target)
        .and_then(|()| hbone::serves(ips, &pod.own_ports, target));
    if let Err(Failure::BadTarget(reason)) = &served {
        worker.shared.telemetry.metrics().refused_request(reason);
    }
    served
}

fn describe(
    record: &mut ConnectionRecord,
    client: &Client,
    target: SocketAddr,
    workload: Option<&Arc<Workload>>,
    snapshot: &Snapshot,
) {
    record.generation = snapshot.generation();
    record.source = Party::from(client.addr);
    record.destination = Party::from(target);
    if let Some(workload) = workload {
        record.destination.name(workload);
        record.destination.identity = Some(workload.identity.clone());
    }
    let Some(identity) = client.identity.verified() else { return };
    record.source.identity = Some(identity.clone());
    record.source.namespace = Some(identity.namespace().into());
    // An address names a workload only if that is who the peer has proven to be.
    if let Some(workload) = snapshot.workload_by_ip(client.addr.ip()).filter(|w| w.identity == *identity) {
        record.source.name(workload);
    }
}
