//! Refusals of the kernel, written like any other connection: one access-log line, one metric.

use std::sync::Arc;

use mesh_common::counter::Counter;

use crate::capture::{Kernel, Refusal, RefusalReader};
use crate::model::outcome::Outcome;
use crate::proxy::pod_net::PodNet;
use crate::snapshot::SnapshotStore;
use crate::telemetry::Telemetry;
use crate::telemetry::labels::Reporter;
use crate::telemetry::record::Ending;

/// Reads until the ring is gone.
pub(super) async fn report(
    mut reader: RefusalReader,
    kernel: Arc<Kernel>,
    snapshots: Arc<SnapshotStore>,
    telemetry: Arc<Telemetry>,
) {
    while let Some(refusal) = reader.next().await {
        write(&refusal, &kernel, &snapshots, &telemetry);
    }
    tracing::error!("the kernel's refusals cannot be read any more; they are still counted");
}

fn write(refusal: &Refusal, kernel: &Kernel, snapshots: &SnapshotStore, telemetry: &Arc<Telemetry>) {
    let snapshot = snapshots.load();
    let mut record = telemetry.open(Reporter::Inbound);
    record.generation = snapshot.generation();
    record.source.ip = Some(refusal.peer.ip());
    record.source.port = Some(refusal.peer.port());
    record.destination.ip = Some(refusal.local.ip());
    record.destination.port = Some(refusal.local.port());
    let pod = kernel.pod_by_cookie(refusal.netns_cookie);
    let workload = pod.as_ref().and_then(|pod| snapshot.workload(pod.uid()));
    if let Some(workload) = workload {
        record.destination.name(workload);
    }
    let (outcome, reason) = match refusal.exit {
        Counter::LookupStrict => (Outcome::PlaintextRefused, "plaintext to a strict port, refused by the kernel"),
        Counter::LookupAgentPort => (Outcome::BadTarget, "a port of the agent was dialled"),
        Counter::LookupNoListener => (Outcome::AgentDrained, "the agent's listener is not there"),
        _ => (Outcome::Internal, refusal.exit.as_str()),
    };
    let rule = workload.filter(|_| outcome == Outcome::PlaintextRefused).map(|workload| {
        let source = workload.peer_mode.source(refusal.local.port());
        if source.is_empty() { crate::policy::PEER_MODE.into() } else { Arc::clone(source) }
    });
    record.record(Ending { outcome, rule, reason: reason.to_owned() });
}
