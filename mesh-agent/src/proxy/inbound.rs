//! Inbound drivers: what happens to a connection that is meant for a pod's application.
//!
//! Tunnel: accept → handshake → per tunnel: target → authorize → deliver → answer → copy → record.
//! Plaintext: accept → authorize → deliver → copy → record.
//! The application sees the client's address; nothing reaches it without a permit. What is spoken inside a
//! tunnel connection is `serve`'s.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::copy::both_ways;
use super::failure::Failure;
use super::recheck::{Live, Standing};
use super::secure::Secure;
use super::tcp::{self, TcpSide};
use super::worker::{Pod, Worker};
use super::{connect, hbone, raw, serve};
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::policy::{Flow, authorize};
use crate::snapshot::Snapshot;
use crate::telemetry::labels::{Lane, Reporter};
use crate::telemetry::record::{ConnectionRecord, Party};

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
    let (mut server, live) = match delivered {
        Ok(delivered) => delivered,
        Err(failure) => {
            tcp::reset(stream);
            return record.record(failure.ending());
        }
    };
    let mut client = TcpSide::new(stream, "client");
    let scratch = &worker.buffers.scratch;
    match both_ways(&mut client, &mut server, scratch, live.switch(), record.meter()).await {
        Ok(()) => record.record(Outcome::Ok),
        Err(failure) => {
            client.reset();
            server.reset();
            record.record(failure.ending());
        }
    }
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
        Ok((secure, client, true)) => serve::one_by_one(worker, pod, secure, client).await,
        Ok((secure, client, false)) => Box::pin(serve::streams(worker, pod, secure, client)).await,
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

/// The session, who the other side proved to be, and whether it carries one tunnel at a time.
async fn handshake(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<(Secure, Client, bool), Failure> {
    let shared = &worker.shared;
    let own = shared.snapshots.load().workload(pod.net.uid()).map(|workload| workload.identity.clone());
    let own = own.ok_or_else(|| Failure::UnknownPod(Arc::clone(pod.net.uid())))?;
    let started = Instant::now();
    let accepted = shared.tls.accept_session(&mut stream, &own, &[raw::ALPN, hbone::ALPN]).await;
    let (session, proven) = accepted.map_err(|error| Failure::Tls { with: peer, error: Box::new(error) })?;
    let metrics = shared.telemetry.metrics();
    metrics.handshake_duration(Reporter::Inbound).observe(started.elapsed().as_secs_f64());
    let client = Client { addr: peer, identity: PeerIdentity::Verified(proven.identity().clone()) };
    Ok((Secure::new(stream, session, &worker.buffers), client, proven.alpn() == raw::ALPN))
}

/// Authorizes a flow and opens the application's connection for it.
pub(super) async fn deliver(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    target: SocketAddr,
    record: &mut ConnectionRecord,
) -> Result<(TcpSide, Live), Failure> {
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
    let permit = authorize(&snapshot, flow)?;
    record.rule = permit.rule().map(Arc::clone);
    // In the same turn as the decision: no newer snapshot can slip in between unseen.
    let live = worker.live.enter(Standing::Permit(permit.clone()));
    let connect = connect::deliver(pod.net.as_ref(), target, client.addr, &permit, worker.shared.limits.connect);
    let stream = tokio::select! {
        biased;
        ending = live.switch().tripped() => return Err(Failure::Ended(ending)),
        connected = connect => connected?,
    };
    record.established();
    Ok((TcpSide::new(stream, "server"), live))
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
