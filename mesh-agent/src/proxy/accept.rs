//! Accepting: limits first, then the worker that the connection will live on.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::failure::Failure;
use super::limits::Share;
use super::tcp;
use super::worker::{Accepted, Counted, Door, Job, Pod, Worker};
use crate::model::addr::PeerAddr;
use crate::telemetry::labels::Reporter;
use crate::telemetry::record::Party;

/// First pause after a failed `accept()` (no descriptor left, most likely); doubled up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A connection moves to another worker only if that one has this many fewer, and at most half: a move costs two
/// system calls and a wake-up, and parts a client's connections from the tunnels of their pool.
const CLEARLY_LESS: usize = 8;

/// Accepts until `stop` says so or its sender is gone; then takes what is already queued and closes.
pub(super) async fn run(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    door: Door,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(pod = %pod.net.uid(), ?door, %error, "a pod's listener cannot be served");
            return;
        }
    };
    let mut drain = worker.drain.clone();
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = drain.reached(crate::drain::Phase::Draining) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = FIRST_PAUSE;
                admit(&worker, &pod, door, stream, peer);
            }
            Err(error) => {
                worker.shared.telemetry.metrics().accept_error();
                tracing::debug!(pod = %pod.net.uid(), ?door, %error, "accept failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    while let Some((stream, peer)) = accept_queued(&listener).await {
        admit(&worker, &pod, door, stream, peer);
    }
}

/// One connection that the kernel has already queued, if there is one.
async fn accept_queued(listener: &tokio::net::TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let mut accept = std::pin::pin!(listener.accept());
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::future::Future::poll(accept.as_mut(), cx) {
            std::task::Poll::Ready(Ok(accepted)) => Some(accepted),
            std::task::Poll::Ready(Err(_)) | std::task::Poll::Pending => None,
        })
    })
    .await
}

/// Counts the connection against the limits and hands it to its worker.
fn admit(worker: &Rc<Worker>, pod: &Arc<Pod>, door: Door, stream: TcpStream, peer: SocketAddr) {
    worker.shared.accepted.fetch_add(1, Relaxed);
    let share = match Share::take(&worker.shared.limits, &worker.shared.live, &pod.live) {
        Ok(share) => share,
        Err(failure) => return shed(worker, door, stream, peer, &failure),
    };
    tcp::no_delay(&stream);
    let Some(here) = worker.workers.get(worker.index) else { return };
    let other = worker.workers.iter().min_by_key(|handle| handle.load.load(Relaxed));
    let (own_load, least) = (here.load.load(Relaxed), other.map_or(0, |handle| handle.load.load(Relaxed)));
    if let Some(other) = other
        && own_load >= least.saturating_mul(2).max(least + CLEARLY_LESS)
    {
        let counted = Counted::on(&other.load);
        // Neither fails while the process lives; if it does, the drop of the stream resets the connection.
        if let Ok(stream) = stream.into_std() {
            let job = Job::Serve(Accepted { pod: Arc::clone(pod), door, stream, peer, share, counted });
            let _ = other.jobs.send(job);
        }
        return;
    }
    worker.serve(Arc::clone(pod), door, stream, peer, (share, Counted::on(&here.load)));
}

/// Over a limit: reset at once, so that the client learns it now and not after its own timeout.
fn shed(worker: &Rc<Worker>, door: Door, stream: TcpStream, peer: SocketAddr, failure: &Failure) {
    tcp::reset(stream);
    let (reporter, telemetry) = (reporter(door), &worker.shared.telemetry);
    if let Failure::Overloaded(limit) = failure {
        telemetry.metrics().shed(limit);
    }
    let mut record = telemetry.open(reporter);
    record.source = Party::from(PeerAddr::new(peer).addr());
    record.record(failure.ending());
}

fn reporter(door: Door) -> Reporter {
    match door {
        Door::Outbound => Reporter::Outbound,
        Door::Tunnel | Door::Plaintext => Reporter::Inbound,
    }
}
