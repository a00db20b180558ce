//! The thread on which pods are enrolled: it may block. The only one that writes maps, hooks and publications, so
//! that stopping it stops all writing.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::metrics::Board;
use super::pods::Pods;
use crate::admin::{Condition, Readiness};
use crate::snapshot::SnapshotStore;

/// What the thread is told.
pub(super) enum Order {
    /// Write nothing any more, until `Resume`; answered when that holds.
    Pause(oneshot::Sender<()>),
    /// Put back what another agent has taken; answered when new connections come here again.
    Resume(oneshot::Sender<()>),
    /// End; leave the node as found first if `uninstall`.
    Stop { uninstall: bool },
}

/// What the thread reads and tells.
pub(super) struct PodsThread {
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) board: Arc<Board>,
    pub(super) ready: Arc<Readiness>,
    /// Told once every pod that an earlier agent had captured is served by this one.
    pub(super) standing: Option<oneshot::Sender<()>>,
}

impl PodsThread {
    /// Body of the thread.
    pub(super) fn run(mut self, mut pods: Pods, mut orders: mpsc::UnboundedReceiver<Order>) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
            tracing::error!("the thread that cares for the pods could not start");
            return;
        };
        let mut snapshots = self.snapshots.watch();
        let mut certificates = self.board.certificates.watch();
        loop {
            let mut next = None;
            // Generation 0 is not a state of the mesh: nothing has been read yet.
            let snapshot = self.snapshots.load();
            if snapshot.generation() > 0 {
                next = pods.reconcile(&snapshot, Instant::now());
                self.put_up(&pods);
            }
            let order = runtime.block_on(async {
                let timer = async {
                    match next {
                        Some(next) => tokio::time::sleep_until(next.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    order = orders.recv() => Some(order.unwrap_or(Order::Stop { uninstall: false })),
                    _ = snapshots.changed() => None,
                    _ = certificates.changed() => None,
                    () = timer => None,
                }
            });
            match order {
                Some(Order::Pause(done)) => {
                    let _ = done.send(());
                    match orders.blocking_recv() {
                        Some(Order::Resume(done)) => {
                            pods.take_back();
                            let _ = done.send(());
                        }
                        // While paused there is nothing to take down: it is another agent's.
                        _ => return,
                    }
                }
                Some(Order::Stop { uninstall: true }) => return pods.take_down(),
                Some(Order::Stop { uninstall: false }) => return,
                Some(Order::Resume(_)) | None => {}
            }
        }
    }

    fn put_up(&mut self, pods: &Pods) {
        let report = pods.report();
        let joining: Vec<String> =
            report.iter().filter(|pod| pod.stage == "joining").map(|pod| pod.workload.display_name()).collect();
        if !pods.in_force() {
            self.ready.lacks(Condition::Pods, "an earlier agent's programs are still in force".to_owned());
        } else if joining.is_empty() {
            self.ready.holds(Condition::Pods);
        } else {
            self.ready.lacks(Condition::Pods, format!("joining: {}", joining.join(", ")));
        }
        self.ready.holds(Condition::Source);
        self.board.put(report, pods.failed_rechecks);
        if pods.stand()
            && let Some(standing) = self.standing.take()
        {
            let _ = standing.send(());
        }
    }
}
