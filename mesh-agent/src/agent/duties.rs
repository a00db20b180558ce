//! What only one agent of an instance does at a time: writing, reading the kernel's events, and the places where it
//! is asked. Begun one by one when an agent comes into charge, given up for a successor, taken back from one that
//! failed.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::enrol::Enroller;
use super::kernel_events::Scribe;
use super::metrics::Board;
use super::pods_thread::Order;
use super::{callers, explain, pod_list, report, status};
use crate::admin::{self, AdminError, Readiness};
use crate::capture::{Kernel, Kubelet};
use crate::config::Config;
use crate::explain::effective::document;
use crate::proxy::Proxy;
use crate::snapshot::SnapshotStore;
use crate::sys;
use crate::telemetry::{Registry, Telemetry};

/// How often the kubelet is looked for: its probes fail for no longer than this after it has moved.
const FOLLOW: Duration = Duration::from_secs(1);

/// The rooms that the duties concern.
pub(super) struct Duties {
    pub(super) config: Config,
    pub(super) kernel: Arc<Kernel>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) registry: Arc<Registry>,
    pub(super) ready: Arc<Readiness>,
    pub(super) board: Arc<Board>,
    pub(super) enroller: Arc<Enroller>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) running: Running,
    /// `CLOCK_MONOTONIC` when another agent stopped counting, or this one did, in nanoseconds.
    pub(super) counting_since_ns: u64,
}

/// Those that are tasks.
#[derive(Default)]
pub(super) struct Running {
    events: Option<JoinHandle<()>>,
    stop_events: Option<oneshot::Sender<()>>,
    kubelet: Option<JoinHandle<()>>,
    metrics: Option<JoinHandle<()>>,
    status: Option<JoinHandle<()>>,
}

impl Duties {
    /// Begins to read what the kernel tells: two readers would take it from each other.
    pub(super) fn read_events(&mut self) -> Result<()> {
        let (kernel, snapshots) = (Arc::clone(&self.kernel), Arc::clone(&self.snapshots));
        let scribe = Scribe::new(kernel, snapshots, Arc::clone(&self.telemetry), self.counting_since_ns);
        let (stop, stopped) = oneshot::channel();
        self.running.events = Some(tokio::spawn(scribe.write_all(self.kernel.events()?, stopped)));
        self.running.stop_events = Some(stop);
        let follow = self.config.kubelet.clone().map(|kubelet| follow_kubelet(Arc::clone(&self.kernel), kubelet));
        self.running.kubelet = follow.map(tokio::spawn);
        Ok(())
    }

    /// Opens the metrics endpoint. Returns whether the address was free.
    pub(super) async fn serve_metrics(&mut self) -> Result<bool> {
        if self.running.metrics.is_some() {
            return Ok(true);
        }
        let (registry, ready) = (Arc::clone(&self.registry), Arc::clone(&self.ready));
        match admin::serve_metrics(self.config.metrics, registry, ready).await {
            Ok(serve) => {
                self.running.metrics = Some(tokio::spawn(serve));
                Ok(true)
            }
            Err(AdminError::Metrics { source, .. }) if source.kind() == ErrorKind::AddrInUse => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the admin socket, in the place of one that is there.
    pub(super) fn serve_status(&mut self) -> Result<()> {
        let status = status::source(&self.config, &self.board, &self.proxy);
        let explain = explain::source(&self.board, self.proxy.refused_ports());
        let (status, explain) = (Arc::new(status), Arc::new(explain));
        let (enroller, config) = (Arc::clone(&self.enroller), Arc::new(self.config.clone()));
        let (registry, board) = (Arc::clone(&self.registry), Arc::clone(&self.board));
        let answer = move |request| {
            let (status, explain, enroller) = (Arc::clone(&status), Arc::clone(&explain), Arc::clone(&enroller));
            let (config, registry, board) = (Arc::clone(&config), Arc::clone(&registry), Arc::clone(&board));
            async move {
                match request {
                    admin::Request::Enrol(request) => serde_json::to_vec(&enroller.enrol(request).await),
                    admin::Request::Release(request) => serde_json::to_vec(&enroller.release(request).await),
                    admin::Request::Log(request) => serde_json::to_vec(&report::log(&request)),
                    // These wait for whoever writes the kernel's maps.
                    admin::Request::Status => blocking(move || serde_json::to_vec(&status())).await,
                    admin::Request::Explain(request) => blocking(move || serde_json::to_vec(&explain(request))).await,
                    admin::Request::Pods => blocking(move || serde_json::to_vec(&pod_list::of(&board))).await,
                    admin::Request::Callers { namespace } => {
                        blocking(move || serde_json::to_vec(&callers::of(&board, &namespace))).await
                    }
                    admin::Request::Config(wanted) => {
                        blocking(move || serde_json::to_vec(&document(&board.snapshots.load(), &wanted))).await
                    }
                    admin::Request::Report => {
                        blocking(move || serde_json::to_vec(&report::report(status(), &config, &registry))).await
                    }
                }
            }
        };
        let status = tokio::spawn(admin::serve_socket(&self.config.state_dir, answer)?);
        if let Some(before) = self.running.status.replace(status) {
            before.abort();
        }
        Ok(())
    }

    /// Writes nothing any more, and leaves the kernel's events to another.
    pub(super) async fn stop_writing(&mut self) -> Result<()> {
        self.order(Order::Pause).await?;
        // Another one counts from here on.
        self.running.stop_events = None;
        if let Some(events) = self.running.events.take() {
            let _ = events.await;
        }
        self.counting_since_ns = sys::monotonic_ns();
        end(&mut self.running.kubelet).await;
        Ok(())
    }

    /// Leaves the metrics endpoint's address to another.
    pub(super) async fn leave_metrics(&mut self) {
        end(&mut self.running.metrics).await;
    }

    /// Puts the listeners back and does again whatever was given up.
    pub(super) async fn take_back(&mut self) -> Result<()> {
        // At once: loading programs takes a while.
        self.serve_status()?;
        self.order(Order::Resume).await?;
        self.kernel.remove_other_maps();
        self.read_events()?;
        if !self.serve_metrics().await? {
            tracing::error!(address = %self.config.metrics, "the metrics endpoint is taken; nobody can ask this agent");
        }
        Ok(())
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) -> Result<()> {
        let (done, wait) = oneshot::channel();
        let gone = || anyhow!("the thread that cares for the pods has ended");
        self.orders.send(order(done)).map_err(|_| gone())?;
        wait.await.map_err(|_| gone())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> serde_json::Result<T> + Send + 'static,
) -> serde_json::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).map_err(serde_json::Error::io)?
}

/// Keeps the kubelet's probes proven while it comes, goes and moves. Never ends.
async fn follow_kubelet(kernel: Arc<Kernel>, kubelet: Kubelet) {
    let mut ticks = tokio::time::interval(FOLLOW);
    let mut before = None;
    loop {
        ticks.tick().await;
        let (kernel, kubelet) = (Arc::clone(&kernel), kubelet.clone());
        let followed = tokio::task::spawn_blocking(move || kernel.follow_kubelet(&kubelet)).await;
        let now = match followed {
            Ok(Ok(Some(_))) => None,
            Ok(Ok(None)) => Some("it is not to be found".to_owned()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(panicked) => Some(panicked.to_string()),
        };
        // Said once, not every second.
        if let Some(reason) = now.as_ref().filter(|_| now != before) {
            tracing::warn!(%reason, "the kubelet's probes are not proven: strict pods refuse them");
        }
        before = now;
    }
}

/// Ends a task and waits until it has let go of what it held.
async fn end(task: &mut Option<JoinHandle<()>>) {
    if let Some(task) = task.take() {
        task.abort();
        // Cancelled, as it was told to.
        let _ = task.await;
    }
}
