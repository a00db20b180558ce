//! The data path: accept, identify, authorize, connect, copy.
//!
//! `outbound` and `inbound` are the drivers and list the stages in order; everything else here is a stage. The
//! room knows nothing of where a snapshot comes from or how a pod is captured: it is given listeners
//! ([`PodListeners`]) and reads the snapshot in force.

mod accept;
mod connect;
mod copy;
mod failure;
mod hbone;
mod http;
mod inbound;
mod lane;
mod limits;
mod outbound;
mod peers;
pub mod pod_net;
mod pool;
mod raw;
mod recheck;
mod scratch;
mod secure;
mod serve;
mod target;
mod tcp;
mod upstream;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use http::settings::HttpLimits;
use http::taken::Taken;
pub use limits::Limits;
use pod_net::PodNet;
use worker::{Door, Handle, Job, Pod, Shared, Worker};

use crate::balance::Balancer;
use crate::drain::{self, Drain};
use crate::model::identity::Identity;
use crate::snapshot::SnapshotStore;
use crate::telemetry::Telemetry;
use crate::tls::Tls;

/// Where a pod's agent takes tunnels (design §3).
pub const TUNNEL_PORT: u16 = 15008;
/// Ports that stand for a mesh's own machinery on any pod; a tunnel never leads to them (design §3).
const MESH_PORTS: [u16; 3] = [15001, 15006, TUNNEL_PORT];

/// ALPN protocols that this version's tunnel listener speaks, best first: what a node publishes of its pods.
pub const WIRE: &[&str] = &["mesh-raw/1", "h2"];

/// What the data path needs of other rooms.
#[derive(Clone)]
pub struct Deps {
    /// Decisions are made on the snapshot in force.
    pub snapshots: Arc<SnapshotStore>,
    /// Endpoint choice.
    pub balancer: Arc<Balancer>,
    /// Sessions with peers.
    pub tls: Arc<Tls>,
    /// Metrics and access log.
    pub telemetry: Arc<Telemetry>,
    /// Bounds.
    pub limits: Limits,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Further ports of the agent inside a pod (e.g. the reserved range), which no tunnel may lead to.
    pub reserved_ports: Vec<u16>,
}

/// The listeners that stand inside one pod's network namespace. All non-blocking.
pub struct PodListeners {
    /// The pod.
    pub pod: Arc<dyn PodNet>,
    /// Where the kernel half sends captured `connect()`s.
    pub outbound: TcpListener,
    /// Port 15008.
    pub tunnel: TcpListener,
    /// Where the kernel half sends plaintext that a policy wants looked at.
    pub plaintext: TcpListener,
}

/// An enrolled pod. Dropping it stops accepting, after what is already queued; live connections go on.
#[derive(Debug)]
pub struct PodHandle {
    stop: watch::Sender<bool>,
    live: Arc<AtomicUsize>,
}

impl PodHandle {
    /// Stops accepting, after what is already queued; live connections go on.
    pub fn stop_accepting(&self) {
        self.stop.send_replace(true);
    }

    /// Live connections of the pod, both directions.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }
}

/// The running data path.
pub struct Proxy {
    shared: Arc<Shared>,
    workers: Vec<Handle>,
    next: AtomicUsize,
    drain: Mutex<Option<Drain>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Proxy {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(deps: Deps) -> io::Result<Self> {
        let mut refused_ports = deps.reserved_ports;
        refused_ports.extend(MESH_PORTS);
        let shared = Arc::new(Shared {
            snapshots: deps.snapshots,
            balancer: deps.balancer,
            tls: deps.tls,
            telemetry: deps.telemetry,
            limits: deps.limits,
            live: Arc::default(),
            accepted: AtomicU64::new(0),
            peers: Arc::default(),
            refused_ports,
        });
        let (drain, watch) = drain::channel();
        let (workers, queues): (Vec<_>, Vec<_>) = (0..deps.workers.max(1))
            .map(|_| {
                let (jobs, queue) = mpsc::unbounded_channel();
                (Handle { jobs, load: Arc::default() }, queue)
            })
            .unzip();
        let mut threads = Vec::new();
        for (index, queue) in queues.into_iter().enumerate() {
            let (shared, workers, watch) = (Arc::clone(&shared), workers.clone(), watch.clone());
            let worker = move || Worker::new(shared, index, workers, watch);
            let body = move || {
                if let Err(error) = worker::run(worker, queue) {
                    tracing::error!(index, %error, "a worker could not start its runtime");
                }
            };
            threads.push(std::thread::Builder::new().name(format!("proxy-{index}")).spawn(body)?);
        }
        Ok(Self {
            shared,
            workers,
            next: AtomicUsize::new(0),
            drain: Mutex::new(Some(drain)),
            threads: Mutex::new(threads),
        })
    }

    /// The ports that no tunnel is delivered to.
    #[must_use]
    pub fn refused_ports(&self) -> Vec<u16> {
        self.shared.refused_ports.clone()
    }

    /// Serves a pod from now on. Its listeners live on one worker; connections may be handed to others.
    ///
    /// # Errors
    /// When a listener does not say where it listens.
    pub fn add_pod(&self, listeners: PodListeners) -> io::Result<PodHandle> {
        let PodListeners { pod: net, outbound, tunnel, plaintext } = listeners;
        let own_ports = [&outbound, &tunnel, &plaintext]
            .into_iter()
            .map(|listener| listener.local_addr().map(|addr| addr.port()))
            .collect::<io::Result<Vec<u16>>>()?;
        let (stop, stopped) = watch::channel(false);
        let pod = Pod { net, live: Arc::default(), taken: Taken::default(), own_ports, stopped };
        let doors = [(Door::Outbound, outbound), (Door::Tunnel, tunnel), (Door::Plaintext, plaintext)];
        Ok(self.open_doors(pod, stop, doors))
    }

    fn open_doors(
        &self,
        pod: Pod,
        stop: watch::Sender<bool>,
        doors: impl IntoIterator<Item = (Door, TcpListener)>,
    ) -> PodHandle {
        let live = Arc::clone(&pod.live);
        let pod = Arc::new(pod);
        let turn = self.next.fetch_add(1, Relaxed) % self.workers.len().max(1);
        for (door, listener) in doors {
            if let Some(worker) = self.workers.get(turn) {
                let job = Job::Listen { pod: Arc::clone(&pod), door, listener, stop: pod.stopped.clone() };
                // A worker that is gone has drained: its pods are no longer served, on purpose.
                let _ = worker.jobs.send(job);
            }
        }
        PodHandle { stop, live }
    }

    /// Live connections.
    #[must_use]
    pub fn live(&self) -> usize {
        self.shared.live.load(Relaxed)
    }

    /// Connections accepted since the start, through all listeners.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }

    /// Who tunnels are open to and from: proven identity, address, number of tunnels.
    #[must_use]
    pub fn peers(&self) -> Vec<(Identity, IpAddr, usize)> {
        self.shared.peers.list()
    }

    /// Stops accepting, lets live connections end for `grace`, then resets the rest as `agent_drained`. Returns
    /// whether everything ended. A second call returns at once.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        let drain = self.drain.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(drain) = drain else { return true };
        let ended = drain.drain(grace).await;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if ended {
            for thread in threads {
                // A worker that panicked has ended its connections with it.
                let _ = thread.join();
            }
        }
        ended
    }
}
