//! Outbound driver: what happens to a connection that a pod's application opened.
//!
//! accept → identify → lane → choose a target → open it → copy → record; the http lane goes on in `http::outbound`.
//! The application's connection is reset if anything before the copy fails; a captured destination is never dialled
//! in plaintext.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::copy::both_ways;
use super::failure::Failure;
use super::http::prefixed::Prefixed;
use super::http::{self, outbound::Start};
use super::lane::{self, Lane};
use super::recheck::{Live, Standing};
use super::target::{Candidates, Goal, Target};
use super::tcp::{self, TcpSide};
use super::upstream::{self, Upstream};
use super::worker::{Pod, Worker};
use crate::balance;
use crate::model::addr::OrigDst;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::snapshot::Snapshot;
use crate::telemetry::labels::{self, Reporter, Security, ServiceName};
use crate::telemetry::record::{ConnectionRecord, Party};

/// A captured connection of which is known where it comes from and what it is meant for.
struct Begun {
    source: Arc<Workload>,
    dialled: OrigDst,
    lane: Lane,
}

/// Serves one captured connection to its end.
pub(super) async fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let mut record = worker.shared.telemetry.open(Reporter::Outbound);
    let live = worker.live.enter(Standing::Destination(None));
    let begun = match begin(worker, pod, &stream, peer, &mut record) {
        Ok(begun) => begun,
        Err(failure) => {
            tcp::reset(stream);
            return record.record(failure.ending());
        }
    };
    let mut client = TcpSide::new(stream, "client");
    let mut read = Vec::new();
    let begins = match &begun.lane {
        Lane::Http => Ok(true),
        Lane::Detect(_, service) => http::outbound::begins_as_others(worker, service, &mut client, &mut read).await,
        Lane::Opaque(_) => Ok(false),
    };
    let opened = match (&begun.lane, begins) {
        // Boxed: a connection that is copying does not keep the room that its setting up needed.
        (Lane::Opaque(goal) | Lane::Detect(goal, _), Ok(false)) => {
            Some(Box::pin(establish(worker, pod, &begun, goal, peer, &live, &mut record)).await)
        }
        (_, Ok(_)) => None,
        (_, Err(failure)) => Some(Err(failure)),
    };
    let Begun { source, dialled, lane } = begun;
    match (lane, opened) {
        (Lane::Opaque(_), Some(Ok(opened))) => {
            opaque(worker, Prefixed::new(Bytes::new(), client), opened, live, record).await;
        }
        (Lane::Opaque(_), Some(Err(failure))) => {
            client.reset();
            record.record(failure.ending());
        }
        (lane, opened) => {
            let detected = if let Lane::Detect(_, service) = lane { Some(service) } else { None };
            let start = Start { pod: Arc::clone(pod), source, dialled, peer, opened, detected, read };
            Box::pin(start.serve(worker, client, live, record)).await;
        }
    }
}

/// Passes bytes on as they are.
pub(super) async fn opaque(
    worker: &Rc<Worker>,
    mut client: Prefixed<TcpSide>,
    (mut upstream, target): (Upstream, Target),
    live: Live,
    mut record: ConnectionRecord,
) {
    record.established();
    let scratch = &worker.buffers.scratch;
    match both_ways(&mut client, &mut upstream, scratch, live.switch(), record.meter()).await {
        Ok(()) => {
            drop((client, target, live));
            record.record(Outcome::Ok);
            upstream.give_back(worker).await;
        }
        Err(failure) => {
            client.into_inner().reset();
            drop((target, live));
            record.record(failure.ending());
            upstream.reset(worker).await;
        }
    }
}

/// Where a connection comes from and what it is meant for.
fn begin(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    stream: &TcpStream,
    peer: SocketAddr,
    record: &mut ConnectionRecord,
) -> Result<Begun, Failure> {
    record.source = Party::from(peer);
    let (dialled, scope) = pod.net.original_destination(stream.as_fd()).ok_or(Failure::NoOrigDst)?;
    record.orig_dst = Some(dialled);
    let snapshot = worker.shared.snapshots.load();
    record.generation = snapshot.generation();
    let source = snapshot.workload(pod.net.uid()).map(Arc::clone);
    let source = source.ok_or_else(|| Failure::UnknownPod(Arc::clone(pod.net.uid())))?;
    record.source.name(&source);
    // Whose listener it came in by proves whose it is: no other namespace reaches that listener.
    record.source.identity = Some(source.identity.clone());
    record.service = snapshot
        .service_by_vip(dialled.addr())
        .map(|service| ServiceName { namespace: Arc::clone(&service.namespace), name: Arc::clone(&service.name) });
    let lane = lane::outbound(&snapshot, &worker.shared.balancer, &source, dialled, scope)?;
    Ok(Begun { source, dialled, lane })
}

/// Everything before the first byte. The target is returned because it counts as live as long as it is held.
async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    begun: &Begun,
    goal: &Goal,
    peer: SocketAddr,
    live: &Live,
    record: &mut ConnectionRecord,
) -> Result<(Upstream, Target), Failure> {
    let client = balance::Client::new(&begun.source, peer.ip());
    let candidates = Candidates::new(&worker.shared.balancer, client, goal.clone());
    let open = open_any(worker, pod, &begun.source, candidates, peer, live, record);
    tokio::select! {
        biased;
        ending = live.switch().tripped() => Err(Failure::Ended(ending)),
        opened = open => opened,
    }
}

async fn open_any(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    source: &Workload,
    mut candidates: Candidates<'_>,
    peer: SocketAddr,
    live: &Live,
    record: &mut ConnectionRecord,
) -> Result<(Upstream, Target), Failure> {
    let mut failed = None;
    loop {
        // Each time anew: what was gone meanwhile must not be tried.
        let snapshot = worker.shared.snapshots.load();
        let target = candidates.next(&snapshot, failed.take())?;
        describe(record, &target, &snapshot);
        live.stand_on(Standing::Destination(target.workload().map(|workload| Arc::clone(&workload.uid))));
        match upstream::open(worker, pod, source, peer, &target).await {
            Ok(upstream) => {
                record.connected();
                return Ok((upstream, target));
            }
            Err(failure) => failed = Some(failure),
        }
    }
}

fn describe(record: &mut ConnectionRecord, target: &Target, snapshot: &Snapshot) {
    record.generation = snapshot.generation();
    record.destination = Party::from(target.addr().addr());
    if let Some(workload) = target.workload() {
        record.destination.name(workload);
    }
    (record.lane, record.security) = (labels::Lane::Plaintext, Security::None);
    if let Some((workload, _)) = target.tunnel() {
        (record.lane, record.security) = (labels::Lane::Tunnel, Security::MutualTls);
        // A tunnel to anybody else does not come about.
        record.destination.identity = Some(workload.identity.clone());
    }
}
