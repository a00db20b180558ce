//! What a peer may ask for inside a tunnel connection, in both languages spoken there.
//!
//! Each tunnel asked for is a connection of its own in records, metrics and limits.

use std::rc::Rc;
use std::sync::Arc;

use super::failure::Failure;
use super::hbone::{self, H2Side};
use super::inbound::{Client, Delivered, carry, deliver, ending};
use super::limits::Share;
use super::peers;
use super::raw::RawTunnel;
use super::recheck::Standing;
use super::secure::Secure;
use super::worker::{Pod, Worker};
use crate::drain::Phase;
use crate::model::outcome::Outcome;
use crate::telemetry::labels::{Lane, Reporter, Security, Wire};
use crate::telemetry::metrics::TunnelGuard;
use crate::telemetry::record::ConnectionRecord;

/// `mesh-raw/1`: serves one tunnel after the other until the client closes the connection, a tunnel fails, or
/// the agent drains or the pod leaves.
pub(super) async fn one_by_one(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    secure: Secure,
    client: Client,
) -> Result<(), Failure> {
    let _open = opened(worker, &client, Wire::Raw);
    // In the set so that a drain waits until the last answer is on the wire.
    let live = worker.live.enter(Standing::Destination(None));
    let mut tunnel = RawTunnel::new(secure, client.addr);
    let (mut drain, mut leaving) = (worker.drain.clone(), pod.stopped.clone());
    loop {
        let request = tokio::select! {
            biased;
            _ = live.switch().tripped() => None,
            request = tunnel.request(&worker.buffers.scratch) => request?,
            () = drain.reached(Phase::Draining) => None,
            _ = leaving.wait_for(|stopped| *stopped) => None,
        };
        let Some(target) = request else {
            tunnel.close();
            return Ok(());
        };
        match serve_one(worker, pod, &client, target, tunnel).await {
            Some(next) => tunnel = next,
            None => return Ok(()),
        }
    }
}

/// Serves one tunnel to its end; returns the connection if it can carry another.
async fn serve_one(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    target: std::net::SocketAddr,
    mut tunnel: RawTunnel,
) -> Option<RawTunnel> {
    let mut record = open_record(worker);
    let (delivered, share) = match Box::pin(admit(worker, pod, client, Ok(target), &mut record)).await {
        Ok(admitted) => admitted,
        Err(failure) => {
            let told = tunnel.reply(failure.outcome()).await;
            record.record(failure.ending());
            return told.is_ok().then_some(tunnel);
        }
    };
    if let Err(failure) = tunnel.reply(Outcome::Ok).await {
        delivered.abandon();
        record.record(failure.ending());
        return tunnel.refuse_more(&worker.buffers.scratch).await;
    }
    let carried = carry(worker, pod, client, tunnel, delivered, record).await;
    drop(share);
    let in_order = carried.result.is_ok() && carried.ended;
    carried.record.record(ending(carried.result));
    let mut tunnel = carried.side?;
    if in_order {
        tunnel.done().await.is_ok().then_some(tunnel)
    } else {
        tunnel.refuse_more(&worker.buffers.scratch).await
    }
}

/// HBONE: accepts streams until the peer closes the connection, the agent drains or the pod leaves.
pub(super) async fn streams(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    secure: Secure,
    client: Client,
) -> Result<(), Failure> {
    let _open = opened(worker, &client, Wire::Hbone);
    // In the set so that a drain waits until the last answer is on the wire.
    let live = worker.live.enter(Standing::Destination(None));
    let handshake = hbone::server().handshake::<_, bytes::Bytes>(secure);
    let tunnel = |reason: String| Failure::Tunnel { with: client.addr, reason };
    let mut connection = match tokio::time::timeout(worker.shared.limits.handshake, handshake).await {
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
    let mut record = open_record(&worker);
    let admitted = Box::pin(admit(&worker, &pod, &client, hbone::target(&request), &mut record)).await;
    let (delivered, _share) = match admitted {
        Ok(admitted) => admitted,
        Err(failure) => {
            // Fails only when the peer has given up the stream: then nobody waits for the answer.
            let _ = respond.send_response(hbone::answer(Some(&failure)), true);
            return record.record(failure.ending());
        }
    };
    let send = match respond.send_response(hbone::answer(None), false) {
        Ok(send) => send,
        Err(error) => {
            delivered.abandon();
            return record.record(hbone::broken(&error, client.addr).ending());
        }
    };
    let peer = H2Side::new(send, request.into_body(), client.addr);
    let carried = carry(&worker, &pod, &client, peer, delivered, record).await;
    if let (Some(peer), Err(_)) = (carried.side, &carried.result) {
        peer.reset();
    }
    carried.record.record(ending(carried.result));
}

/// Counts and lists a tunnel connection until dropped.
fn opened(worker: &Worker, client: &Client, wire: Wire) -> (TunnelGuard, Option<peers::Open>) {
    let identity = client.identity.verified().cloned();
    let listed = identity.map(|identity| worker.shared.peers.enter(identity, client.addr.ip()));
    (worker.shared.telemetry.metrics().tunnel_opened(Reporter::Inbound, wire), listed)
}

fn open_record(worker: &Worker) -> ConnectionRecord {
    let mut record = worker.shared.telemetry.open(Reporter::Inbound);
    (record.lane, record.security) = (Lane::Tunnel, Security::MutualTls);
    record
}

/// Whether a tunnel asks for something that this pod serves, and the application's connection if so.
async fn admit(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    target: Result<std::net::SocketAddr, Failure>,
    record: &mut ConnectionRecord,
) -> Result<(Delivered, Share), Failure> {
    let share = Share::take(&worker.shared.limits, &worker.shared.live, &pod.live)?;
    if let Err(Failure::BadTarget(reason)) = &target {
        worker.shared.telemetry.metrics().refused_request(reason);
    }
    Ok((deliver(worker, pod, client, target?, record).await?, share))
}
