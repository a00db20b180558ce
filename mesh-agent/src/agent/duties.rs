//! What only one agent of an instance does at a time: writing, reading the kernel's events, and the places where it
//! is asked. Begun one by one when an agent comes into charge, given up for a successor, taken back from one that
//! failed.

use std::io::ErrorKind;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::kernel_events::Scribe;
use super::metrics::Board;
use super::pods_thread::Order;
use super::status;
use crate::admin::{self, AdminError, Readiness};
use crate::capture::Kernel;
use crate::config::Config;
use crate::proxy::Proxy;
use crate::snapshot::SnapshotStore;
use crate::telemetry::{Registry, Telemetry};

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
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) running: Running,
}

/// Those that are tasks.
#[derive(Default)]
pub(super) struct Running {
    events: Option<JoinHandle<()>>,
    metrics: Option<JoinHandle<()>>,
    status: Option<JoinHandle<()>>,
}

impl Duties {
    /// Begins to read what the kernel tells: two readers would take it from each other.
    pub(super) fn read_events(&mut self) -> Result<()> {
        let (kernel, snapshots) = (Arc::clone(&self.kernel), Arc::clone(&self.snapshots));
        let scribe = Scribe::new(kernel, snapshots, Arc::clone(&self.telemetry));
        self.running.events = Some(tokio::spawn(scribe.write_all(self.kernel.events()?)));
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

    /// Opens the status socket, in the place of one that is there.
    pub(super) fn serve_status(&mut self) -> Result<()> {
        let source = status::source(&self.config, &self.board, &self.proxy);
        let status = tokio::spawn(admin::serve_status(&self.config.state_dir, source)?);
        if let Some(before) = self.running.status.replace(status) {
            before.abort();
        }
        Ok(())
    }

    /// Writes nothing any more, and leaves the kernel's events to another.
    pub(super) async fn stop_writing(&mut self) -> Result<()> {
        self.order(Order::Pause).await?;
        end(&mut self.running.events).await;
        Ok(())
    }

    /// Leaves the metrics endpoint's address to another.
    pub(super) async fn leave_metrics(&mut self) {
        end(&mut self.running.metrics).await;
    }

    /// Puts the listeners back and does again whatever was given up.
    pub(super) async fn take_back(&mut self) -> Result<()> {
        self.order(Order::Resume).await?;
        self.read_events()?;
        self.serve_status()?;
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

/// Ends a task and waits until it has let go of what it held.
async fn end(task: &mut Option<JoinHandle<()>>) {
    if let Some(task) = task.take() {
        task.abort();
        // Cancelled, as it was told to.
        let _ = task.await;
    }
}
