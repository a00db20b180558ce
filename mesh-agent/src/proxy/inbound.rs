//! Inbound drivers: what happens to a connection that is meant for a pod's application.
//!
//! Tunnel: accept → handshake → per stream: target → authorize → deliver → answer → copy → record.
//! Plaintext: accept → authorize → deliver → copy → record.
//! The application sees the client's address; nothing reaches it without a permit.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::connect;
use super::copy::both_ways;
use super::failure::Failure;
use super::hbone::{self, H2Side};
use super::limits::Share;
use super::recheck::{Live, Standing};
use super::tcp::{self, TcpSide};
use super::worker::{Pod, Worker};
use crate::drain::Phase;
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::policy::{Flow, authorize};
use crate::snapshot::Snapshot;
use crate::telemetry::labels::{Lane, Reporter, Security, Wire};
use crate::telemetry::record::{ConnectionRecord, Ending, Party};

/// Who is at the other end of an accepted connection.
#[derive(Clone, Debug)]
struct Client {
    /// Where the connection comes from, which the application will see.
    addr: SocketAddr,
    identity: PeerIdentity,
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
    let ended = match delivered {
        Ok((mut server, live)) => {
            let mut client = TcpSide::new(stream, "client");
            let copied = both_ways(&mut client, &mut server, &worker.scratch, live.switch(), record.meter()).await;
            if copied.is_err() {
                client.reset();
                server.reset();
            }
            copied
        }
        Err(failure) => {
            tcp::reset(stream);
            Err(failure)
        }
    };
    record.record(ended.map_or_else(|failure| failure.ending(), |()| Ending::from(Outcome::Ok)));
}

/// Who a pod of this node is, by the kernel's proof; without one the peer is unknown, whatever its address says.
fn identity_of(proven: Option<&str>, snapshot: &Snapshot) -> PeerIdentity {
    let workload = proven.and_then(|uid| snapshot.workload(uid));
    workload.map_or(PeerIdentity::Unknown, |workload| PeerIdentity::Verified(workload.identity.clone()))
}

/// Serves one tunnel connection, with all its streams, to its end.
pub(super) async fn serve_tunnel(worker: &Rc<Worker>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    tcp::keep_alive(&stream);
    let served = async {
        let (tls, client) = Box::pin(handshake(worker, pod, stream, peer)).await?;
        serve_streams(worker, pod, tls, client).await
    };
    if let Err(failure) = served.await {
        let mut record = worker.shared.telemetry.open(Reporter::Inbound);
        record.source = Party::from(peer);
        record.lane = Lane::Tunnel;
        if let Some(workload) = worker.shared.snapshots.load().workload(pod.net.uid()) {
            record.destination.name(workload);
        }
        record.record(failure.ending());
    }
}

/// The session, and who the other side proved to be.
async fn handshake(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<(impl AsyncRead + AsyncWrite + Unpin + 'static, Client), Failure> {
    let shared = &worker.shared;
    let own = shared.snapshots.load().workload(pod.net.uid()).map(|workload| workload.identity.clone());
    let own = own.ok_or_else(|| Failure::UnknownPod(Arc::clone(pod.net.uid())))?;
    let started = Instant::now();
    let accepted = shared.tls.accept(stream, &own, &[hbone::ALPN]).await;
    let (tls, proven) = accepted.map_err(|error| Failure::Tls { with: peer, error: Box::new(error) })?;
    let metrics = shared.telemetry.metrics();
    metrics.handshake_duration(Reporter::Inbound).observe(started.elapsed().as_secs_f64());
    Ok((tls, Client { addr: peer, identity: PeerIdentity::Verified(proven.identity().clone()) }))
}

/// Accepts streams until the peer closes the connection or the agent drains.
async fn serve_streams<IO>(worker: &Rc<Worker>, pod: &Arc<Pod>, io: IO, client: Client) -> Result<(), Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _open = worker.shared.telemetry.metrics().tunnel_opened(Reporter::Inbound, Wire::Hbone);
    let identity = client.identity.verified().cloned();
    let _listed = identity.map(|identity| worker.shared.peers.enter(identity, client.addr.ip()));
    // In the set so that a drain waits until the last answer is on the wire.
    let live = worker.live.enter(Standing::Destination(None));
    let preface =
        tokio::time::timeout(worker.shared.limits.handshake, hbone::server().handshake::<_, bytes::Bytes>(io));
    let tunnel = |reason: String| Failure::Tunnel { with: client.addr, reason };
    let mut connection = match preface.await {
        Ok(connection) => connection.map_err(|error| tunnel(error.to_string()))?,
        Err(_elapsed) => return Err(tunnel("no HTTP/2 preface in time".to_owned())),
    };
    let (mut drain, mut leaving) = (worker.drain.clone(), pod.stopped.clone());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            _ = live.switch().tripped() => return Ok(()),
            () = drain.reached(Phase::Draining), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            // The pod leaves the mesh, or its handle is gone: no new stream, and the tunnel ends with its last.
            _ = leaving.wait_for(|stopped| *stopped), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            // An error of the connection is reported by each of its streams.
            stream = connection.accept() => match stream {
                Some(Ok((request, respond))) => {
                    let stream = serve_stream(Rc::clone(worker), Arc::clone(pod), client.clone(), request, respond);
                    tokio::task::spawn_local(stream);
                }
                Some(Err(_)) | None => return Ok(()),
            }
        }
    }
}

/// Serves one stream to its end.
async fn serve_stream(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    client: Client,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
) {
    let mut record = worker.shared.telemetry.open(Reporter::Inbound);
    (record.lane, record.security) = (Lane::Tunnel, Security::MutualTls);
    let delivered = Box::pin(accept_stream(&worker, &pod, &client, &request, &mut record)).await;
    let ended = match delivered {
        Ok((mut server, live, _share)) => match respond.send_response(hbone::answer(None), false) {
            Ok(send) => {
                let mut peer = H2Side::new(send, request.into_body(), client.addr);
                let copied = both_ways(&mut peer, &mut server, &worker.scratch, live.switch(), record.meter()).await;
                if copied.is_err() {
                    peer.reset();
                    server.reset();
                }
                copied
            }
            Err(error) => {
                server.reset();
                Err(hbone::broken(&error, client.addr))
            }
        },
        Err(failure) => {
            // Fails only when the peer has given up the stream: then nobody waits for the answer.
            let _ = respond.send_response(hbone::answer(Some(&failure)), true);
            Err(failure)
        }
    };
    record.record(ended.map_or_else(|failure| failure.ending(), |()| Ending::from(Outcome::Ok)));
}

/// Whether the stream asks for something that this pod serves, and the application's connection if so.
async fn accept_stream(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    request: &http::Request<h2::RecvStream>,
    record: &mut ConnectionRecord,
) -> Result<(TcpSide, Live, Share), Failure> {
    let share = Share::take(&worker.shared.limits, &worker.shared.live, &pod.live)?;
    let target = hbone::target(request);
    if let Err(Failure::BadTarget(reason)) = &target {
        worker.shared.telemetry.metrics().refused_request(reason);
    }
    let (server, live) = deliver(worker, pod, client, target?, record).await?;
    Ok((server, live, share))
}

/// Authorizes a flow and opens the application's connection for it.
async fn deliver(
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
