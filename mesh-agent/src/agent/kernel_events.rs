//! What the kernel decided and carried on its own, written like any other connection: one access-log line, the same
//! metrics.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::counter::Counter;

use crate::capture::{Closed, EventReader, Kernel, KernelEvent, Refusal};
use crate::model::addr::OrigDst;
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::policy::{Denial, Flow, PEER_MODE, authorize};
use crate::snapshot::{Snapshot, SnapshotStore};
use crate::telemetry::Telemetry;
use crate::telemetry::labels::{Lane, Reporter, Security, ServiceName};
use crate::telemetry::record::{ConnectionRecord, Ending, Party};

/// Rule of a refusal that no object explains any more: the rules have changed since.
const CHANGED: &str = "<changed-since>";

/// Writes what the kernel tells.
pub(super) struct Scribe {
    pub(super) kernel: Arc<Kernel>,
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Scribe {
    /// Reads until the ring is gone.
    pub(super) async fn write_all(self, mut events: EventReader) {
        while let Some(event) = events.next().await {
            match event {
                KernelEvent::Refused(refusal) => self.refused(&refusal),
                KernelEvent::Closed(closed) => self.closed(&closed),
            }
        }
        tracing::error!("the kernel's events cannot be read any more; refusals are still counted");
    }

    fn pod(&self, snapshot: &Snapshot, cookie: u64) -> Option<Arc<Workload>> {
        snapshot.workload(&self.kernel.pod_by_cookie(cookie)?).cloned()
    }

    fn refused(&self, refusal: &Refusal) {
        let snapshot = self.snapshots.load();
        let mut record = self.telemetry.open(Reporter::Inbound);
        record.generation = snapshot.generation();
        let pod = self.pod(&snapshot, refusal.netns_cookie);
        let peer = refusal.peer_cookie.and_then(|cookie| self.pod(&snapshot, cookie));
        // At `connect` the pod is the client; elsewhere it is the server.
        let at_connect = refusal.exit == Counter::ConnectDenied;
        let (client, server) = if at_connect { (pod, peer) } else { (peer, pod) };
        let (from, to) = if at_connect { (refusal.local, refusal.peer) } else { (refusal.peer, refusal.local) };
        name(&mut record.source, client.as_deref(), from);
        name(&mut record.destination, server.as_deref(), to);
        if let Some(client) = &client {
            record.source.identity = Some(client.identity.clone());
            (record.lane, record.security) = (Lane::Native, Security::Kernel);
        }
        record.record(ending(refusal.exit, &snapshot, client.as_deref(), server.as_deref(), from, to));
    }

    fn closed(&self, closed: &Closed) {
        let snapshot = self.snapshots.load();
        let client = self.pod(&snapshot, closed.client_cookie);
        let server = self.pod(&snapshot, closed.server_cookie);
        let service = snapshot.service_by_vip(closed.dialled);
        let service = service.map(|s| ServiceName { namespace: Arc::clone(&s.namespace), name: Arc::clone(&s.name) });
        let outcome = if closed.failed { Outcome::ConnectRefused } else { Outcome::Ok };
        // One line, and the series of both ends, as two agents would keep them.
        for reporter in [Reporter::Outbound, Reporter::Inbound] {
            let mut record = self.telemetry.open(reporter);
            record.generation = snapshot.generation();
            name(&mut record.source, client.as_deref(), closed.client);
            name(&mut record.destination, server.as_deref(), closed.server);
            record.source.identity = client.as_ref().map(|client| client.identity.clone());
            record.destination.identity = server.as_ref().map(|server| server.identity.clone());
            record.service = service.clone();
            record.orig_dst = Some(OrigDst::new(closed.dialled));
            (record.lane, record.security) = (Lane::Native, Security::Kernel);
            self.carry(record, closed, reporter, outcome);
        }
    }

    fn carry(&self, mut record: ConnectionRecord, closed: &Closed, reporter: Reporter, outcome: Outcome) {
        record.carried(closed.sent, closed.received, closed.lasted);
        if reporter == Reporter::Inbound {
            return record.record_silently(outcome);
        }
        record.round_trip = Some(closed.round_trip);
        record.retransmits = Some(closed.retransmits);
        record.record(outcome);
    }
}

fn name(party: &mut Party, workload: Option<&Workload>, addr: SocketAddr) {
    // A client refused at `connect` has no address yet.
    let known = !addr.ip().is_unspecified();
    party.ip = known.then(|| addr.ip());
    party.port = (known && addr.port() != 0).then(|| addr.port());
    if let Some(workload) = workload {
        party.name(workload);
    }
}

fn ending(
    exit: Counter,
    snapshot: &Snapshot,
    client: Option<&Workload>,
    server: Option<&Workload>,
    from: SocketAddr,
    to: SocketAddr,
) -> Ending {
    let (outcome, reason) = match exit {
        Counter::ConnectDenied => return denial(snapshot, client, server, from, to, "at connect()"),
        Counter::LookupDenied => return denial(snapshot, client, server, from, to, "at the receiver"),
        Counter::LookupStrict => (Outcome::PlaintextRefused, "plaintext to a strict port, refused by the kernel"),
        Counter::LookupAgentPort => (Outcome::BadTarget, "a port of the agent was dialled"),
        Counter::LookupNoListener => (Outcome::AgentDrained, "the agent's listener is not there"),
        Counter::SockopsUnrecorded => (Outcome::Overloaded, "its live record could not be kept: the map is full"),
        _ => (Outcome::Internal, exit.as_str()),
    };
    let rule = server.filter(|_| outcome == Outcome::PlaintextRefused).map(|workload| {
        let source = workload.peer_mode.source(to.port());
        if source.is_empty() { PEER_MODE.into() } else { Arc::clone(source) }
    });
    Ending { outcome, rule, reason: reason.to_owned() }
}

/// Names the rule by asking the snapshot what the kernel asked its maps.
fn denial(
    snapshot: &Snapshot,
    client: Option<&Workload>,
    server: Option<&Workload>,
    from: SocketAddr,
    to: SocketAddr,
    place: &str,
) -> Ending {
    let decided = server.map(|server| {
        let peer = client.map_or(PeerIdentity::Unknown, |client| PeerIdentity::Verified(client.identity.clone()));
        let flow = Flow { destination: Arc::clone(&server.uid), port: to.port(), peer, source_ip: from.ip() };
        authorize(snapshot, flow)
    });
    let (rule, reason) = match decided {
        Some(Err(Denial { rule, reason, .. })) => (rule, format!("{reason}; refused by the kernel {place}")),
        _ => (CHANGED.into(), format!("refused by the kernel {place}, under rules that have changed since")),
    };
    Ending { outcome: Outcome::Denied, rule: Some(rule), reason }
}
