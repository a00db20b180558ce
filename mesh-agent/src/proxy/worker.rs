//! Worker threads. A connection lives on one worker from accept to end, and so do its pool and its tunnels: no
//! byte crosses a thread.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use super::accept;
use super::http::kept::KeptSet;
use super::http::taken::Taken;
use super::limits::{Limits, Share};
use super::peers::Peers;
use super::pod_net::PodNet;
use super::pool::Pool;
use super::recheck::LiveSet;
use super::secure::Buffers;
use super::{inbound, outbound};
use crate::balance::Balancer;
use crate::drain::{DrainWatch, Phase};
use crate::model::outcome::Outcome;
use crate::snapshot::SnapshotStore;
use crate::telemetry::Telemetry;
use crate::telemetry::record::Ending;
use crate::tls::Tls;

/// How often idle tunnels are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// What all workers share.
pub(super) struct Shared {
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) balancer: Arc<Balancer>,
    pub(super) tls: Arc<Tls>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) limits: Limits,
    /// Live connections of the agent.
    pub(super) live: Arc<AtomicUsize>,
    /// Connections accepted since the start: tells an agent that was succeeded when nobody comes any more.
    pub(super) accepted: AtomicU64,
    /// Open tunnels, for the operator.
    pub(super) peers: Arc<Peers>,
    /// Ports that no tunnel request may ask for, whatever the pod.
    pub(super) refused_ports: Vec<u16>,
}

/// One enrolled pod.
pub(super) struct Pod {
    pub(super) net: Arc<dyn PodNet>,
    /// Live connections of this pod.
    pub(super) live: Arc<AtomicUsize>,
    /// What its requests take.
    pub(super) taken: Taken,
    /// The agent's own ports in this pod's namespace, which no tunnel request may ask for.
    pub(super) own_ports: Vec<u16>,
    /// The pod is leaving: its tunnels end with their last stream.
    pub(super) stopped: watch::Receiver<bool>,
}

/// Which listener a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Captured `connect()`s of the pod.
    Outbound,
    /// Port 15008: peers' tunnels.
    Tunnel,
    /// Plaintext that the kernel half steers to the agent because a policy needs the proxy's eyes.
    Plaintext,
}

/// A connection on its way to its worker.
pub(super) struct Accepted {
    pub(super) pod: Arc<Pod>,
    pub(super) door: Door,
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) share: Share,
    pub(super) counted: Counted,
}

/// What a worker is asked to do.
pub(super) enum Job {
    /// Accept on this listener until told to stop.
    Listen { pod: Arc<Pod>, door: Door, listener: TcpListener, stop: watch::Receiver<bool> },
    /// Serve a connection that another worker accepted.
    Serve(Accepted),
}

/// How others reach a worker.
#[derive(Clone)]
pub(super) struct Handle {
    /// Unbounded, but every connection in it holds a [`Share`] of the budget.
    pub(super) jobs: mpsc::UnboundedSender<Job>,
    /// Its live connections.
    pub(super) load: Arc<AtomicUsize>,
}

/// Counts a connection as its worker's load until dropped.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn on(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A worker, seen from its own thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    /// Every worker, this one included.
    pub(super) workers: Vec<Handle>,
    pub(super) live: Rc<LiveSet>,
    pub(super) pool: Rc<Pool>,
    /// What clients' connections of the http lane keep.
    pub(super) kept: Rc<KeptSet>,
    pub(super) buffers: Rc<Buffers>,
    pub(super) drain: DrainWatch,
}

impl Worker {
    /// Serves one accepted connection in a task of its own.
    pub(super) fn serve(
        self: &Rc<Self>,
        pod: Arc<Pod>,
        door: Door,
        stream: tokio::net::TcpStream,
        peer: SocketAddr,
        budget: (Share, Counted),
    ) {
        let worker = Rc::clone(self);
        let peer = crate::model::addr::canonical(peer);
        tokio::task::spawn_local(async move {
            match door {
                Door::Outbound => outbound::serve(&worker, &pod, stream, peer).await,
                Door::Tunnel => inbound::serve_tunnel(&worker, &pod, stream, peer).await,
                Door::Plaintext => inbound::serve_plaintext(&worker, &pod, stream, peer).await,
            }
            drop(budget);
        });
    }

    fn take(self: &Rc<Self>, job: Job) {
        match job {
            Job::Listen { pod, door, listener, stop } => {
                tokio::task::spawn_local(accept::run(Rc::clone(self), pod, door, listener, stop));
            }
            Job::Serve(Accepted { pod, door, stream, peer, share, counted }) => {
                // Fails only when this worker is out of descriptors for epoll: the drop of the stream resets it.
                if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                    self.serve(pod, door, stream, peer, (share, counted));
                }
            }
        }
    }
}

/// Body of a worker thread: takes jobs until the drain, then waits for its connections to end.
pub(super) fn run(worker: impl FnOnce() -> Worker, mut jobs: mpsc::UnboundedReceiver<Job>) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Rc::new(worker());
        tokio::task::spawn_local(watch_snapshots(Rc::clone(&worker)));
        tokio::task::spawn_local(sweep(Rc::clone(&worker)));
        let mut drain = worker.drain.clone();
        loop {
            tokio::select! {
                biased;
                job = jobs.recv() => match job {
                    Some(job) => worker.take(job),
                    None => break,
                },
                () = drain.reached(Phase::Draining) => break,
            }
        }
        worker.pool.close();
        // What other workers sent before they stopped accepting is still served.
        while let Ok(job) = jobs.try_recv() {
            worker.take(job);
        }
        tokio::select! {
            () = worker.live.empty() => {}
            () = drain.reached(Phase::Forced) => {
                let reason = "the agent stopped before the connection ended".to_owned();
                worker.live.trip_all(&Ending { outcome: Outcome::AgentDrained, rule: None, reason });
                worker.live.empty().await;
            }
        }
    });
    Ok(())
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, index: usize, workers: Vec<Handle>, drain: DrainWatch) -> Self {
        let buffers = Buffers::new();
        let pool = Rc::new(Pool::new(Arc::clone(&shared), Rc::clone(&buffers)));
        Self { shared, index, workers, live: Rc::default(), pool, kept: Rc::default(), buffers, drain }
    }
}

/// Judges the live connections again with every snapshot.
async fn watch_snapshots(worker: Rc<Worker>) {
    let mut changed = worker.shared.snapshots.watch();
    while changed.changed().await.is_ok() {
        let snapshot = worker.shared.snapshots.load();
        worker.live.recheck(&snapshot).await;
        worker.kept.close_unused(&snapshot, worker.shared.limits.tunnel_idle);
    }
}

async fn sweep(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(SWEEP.min(worker.shared.limits.tunnel_idle));
    loop {
        tick.tick().await;
        worker.pool.sweep();
        worker.kept.close_unused(&worker.shared.snapshots.load(), worker.shared.limits.tunnel_idle);
    }
}
