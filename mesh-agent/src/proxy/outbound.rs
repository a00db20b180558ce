//! Outbound driver: what happens to a connection that a pod's application opened.
//!
//! accept → identify → choose a target → open it → copy → record. The application's connection is reset if
//! anything before the copy fails; a captured destination is never dialled in plaintext.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::copy::both_ways;
use super::failure::Failure;
use super::recheck::{Live, Standing};
use super::target::{Candidates, Target};
use super::tcp::{self, TcpSide};
use super::upstream::{self, Upstream};
use super::worker::{Pod, Worker};
use crate::balance::Client;
use crate::model::outcome::Outcome;
use crate::snapshot::Snapshot;
use crate::telemetry::labels::{Lane, Reporter, Security};
use crate::telemetry::record::{ConnectionRecord, Party};

/// Serves one captured connection to its end.
pub(super) async fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let mut record = worker.shared.telemetry.open(Reporter::Outbound);
    let live = worker.live.enter(Standing::Destination(None));
    // Boxed: a connection that is copying does not keep the room that its setting up needed.
    let established = Box::pin(establish(worker, pod, &stream, peer, &live, &mut record)).await;
    let (mut upstream, target) = match established {
        Ok(established) => established,
        Err(failure) => {
            tcp::reset(stream);
            return record.record(failure.ending());
        }
    };
    let mut client = TcpSide::new(stream, "client");
    let scratch = &worker.buffers.scratch;
    match both_ways(&mut client, &mut upstream, scratch, live.switch(), record.meter()).await {
        Ok(()) => {
            drop((client, target, live));
            record.record(Outcome::Ok);
            upstream.give_back(worker).await;
        }
        Err(failure) => {
            client.reset();
            drop((target, live));
            record.record(failure.ending());
            upstream.reset(worker).await;
        }
    }
}

/// Everything before the first byte. The target is returned because it counts as live as long as it is held.
async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    stream: &TcpStream,
    peer: SocketAddr,
    live: &Live,
    record: &mut ConnectionRecord,
) -> Result<(Upstream, Target), Failure> {
    let open = open_any(worker, pod, stream, peer, live, record);
    tokio::select! {
        biased;
        ending = live.switch().tripped() => Err(Failure::Ended(ending)),
        opened = open => opened,
    }
}

async fn open_any(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    stream: &TcpStream,
    peer: SocketAddr,
    live: &Live,
    record: &mut ConnectionRecord,
) -> Result<(Upstream, Target), Failure> {
    record.source = Party::from(peer);
    let (dialled, scope) = pod.net.original_destination(stream.as_fd()).ok_or(Failure::NoOrigDst)?;
    record.orig_dst = Some(dialled);
    let mut snapshot = worker.shared.snapshots.load();
    let source = snapshot.workload(pod.net.uid()).map(Arc::clone);
    let source = source.ok_or_else(|| Failure::UnknownPod(Arc::clone(pod.net.uid())))?;
    record.source.name(&source);
    // Whose listener it came in by proves whose it is: no other namespace reaches that listener.
    record.source.identity = Some(source.identity.clone());
    let mut candidates = Candidates::new(&worker.shared.balancer, Client::new(&source, peer.ip()), dialled, scope);
    let mut failed = None;
    loop {
        let target = candidates.next(&snapshot, failed.take());
        record.service = candidates.service();
        let target = target?;
        describe(record, &target, &snapshot);
        live.stand_on(Standing::Destination(target.workload().map(|workload| Arc::clone(&workload.uid))));
        match upstream::open(worker, pod, &source, peer, &target).await {
            Ok(upstream) => {
                record.established();
                return Ok((upstream, target));
            }
            Err(failure) => failed = Some(failure),
        }
        // Time has passed: what was gone meanwhile must not be tried.
        snapshot = worker.shared.snapshots.load();
    }
}

fn describe(record: &mut ConnectionRecord, target: &Target, snapshot: &Snapshot) {
    record.generation = snapshot.generation();
    record.destination = Party::from(target.addr().addr());
    if let Some(workload) = target.workload() {
        record.destination.name(workload);
    }
    (record.lane, record.security) = (Lane::Plaintext, Security::None);
    if let Some((workload, _)) = target.tunnel() {
        (record.lane, record.security) = (Lane::Tunnel, Security::MutualTls);
        // A tunnel to anybody else does not come about.
        record.destination.identity = Some(workload.identity.clone());
    }
}
