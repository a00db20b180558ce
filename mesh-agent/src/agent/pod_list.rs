//! What `mesh-agent pods` is told: every pod of the node, put together from the snapshot and the board.

use std::collections::{BTreeMap, HashMap};

use super::metrics::Board;
use super::stage::PodReport;
use super::status::{identity, mode};
use crate::admin::pods::{PodLine, Pods};
use crate::admin::status::IdentityStatus;
use crate::explain::opted_in;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// The pods of the node, by name.
pub(super) fn of(board: &Board) -> Pods {
    let snapshot = board.snapshots.load();
    let certificates = board.certificates.status();
    let certificates: HashMap<String, IdentityStatus> =
        certificates.iter().map(|status| (status.identity.to_string(), identity(status))).collect();
    let reports = board.pods().into_iter().map(|report| (report.workload.uid.clone(), report)).collect();
    Pods { node: snapshot.node().to_owned(), pods: lines(&snapshot, &reports, &certificates) }
}

fn lines(
    snapshot: &Snapshot,
    reports: &BTreeMap<WorkloadUid, PodReport>,
    certificates: &HashMap<String, IdentityStatus>,
) -> Vec<PodLine> {
    let known = snapshot.local_workloads().map(|pod| (pod, reports.get(&pod.uid)));
    // Pods that are gone while their last connections are not.
    let gone = reports.values().filter(|report| snapshot.workload(&report.workload.uid).is_none());
    let all = known.chain(gone.map(|report| (&report.workload, Some(report))));
    let mut lines: Vec<PodLine> = all.map(|(pod, report)| line(snapshot, pod, report, certificates)).collect();
    lines.sort_by(|a, b| a.pod.cmp(&b.pod));
    lines
}

fn line(
    snapshot: &Snapshot,
    pod: &Workload,
    report: Option<&PodReport>,
    certificates: &HashMap<String, IdentityStatus>,
) -> PodLine {
    let (opted_in, opted_in_by) = opted_in(pod, snapshot.namespaces().get(&pod.namespace) == Some(&true));
    let identity = pod.identity.to_string();
    // Those of other pods' identities are not this pod's.
    let certificate = certificates.get(&identity).filter(|_| report.is_some_and(PodReport::is_expected));
    PodLine {
        pod: pod.display_name(),
        opted_in,
        opted_in_by,
        stage: report.map_or("-", |report| report.stage).to_owned(),
        reason: report.map_or_else(String::new, |report| report.detail.to_string()),
        addresses: pod.ips.iter().map(ToString::to_string).collect(),
        identity,
        certificate: certificate.map_or("-", |certificate| &certificate.state).to_owned(),
        not_after: certificate.map_or(0, |certificate| certificate.not_after),
        mode: mode(pod).to_owned(),
        policies: snapshot.policies_for(&pod.uid).iter().map(|policy| policy.display_name()).collect(),
        notes: notes(snapshot, pod),
    }
}

fn notes(snapshot: &Snapshot, pod: &Workload) -> Vec<String> {
    let ports = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let judging = snapshot.policies_for(&pod.uid).iter();
    let judging = judging.filter(|policy| policy.rules.iter().any(|rule| rule.requests.is_some()));
    let mut notes: Vec<String> =
        judging.map(|policy| format!("requests are judged by {}", policy.display_name())).collect();
    let egress = pod.egress.refused_by.as_ref().map(|by| format!("may not leave the mesh, by {by}"));
    let guard = pod.egress.guarded_by.as_ref().filter(|_| pod.is_guarded()).map(|by| format!("guarded, by {by}"));
    notes.extend(egress.into_iter().chain(guard));
    let excluded = &pod.exclusions;
    if !excluded.inbound_ports.is_empty() {
        notes.push(format!("inbound ports without the mesh: {}", ports(&excluded.inbound_ports)));
    }
    if !excluded.outbound_ports.is_empty() {
        notes.push(format!("outbound ports without the mesh: {}", ports(&excluded.outbound_ports)));
    }
    if !excluded.outbound_cidrs.is_empty() {
        let cidrs: Vec<String> = excluded.outbound_cidrs.iter().map(ToString::to_string).collect();
        notes.push(format!("destinations without the mesh: {}", cidrs.join(", ")));
    }
    notes
}
