//! What the kernel decided and carried on its own, written like any other connection: one access-log line, the same
//! metrics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::counter::Counter;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::egress_events;
use crate::capture::{Closed, EventReader, Kernel, KernelEvent, LiveNative, Refusal, Sweep, Traffic};
use crate::model::addr::OrigDst;
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;
use crate::policy::{Denial, Flow, PEER_MODE, audited, authorize};
use crate::snapshot::{Snapshot, SnapshotStore};
use crate::telemetry::Telemetry;
use crate::telemetry::labels::{Lane, Reporter, Security, ServiceName};
use crate::telemetry::record::{ConnectionRecord, Ending, Party};

/// Rule of a refusal that no object explains any more: the rules have changed since.
const CHANGED: &str = "<changed-since>";

/// How often live native connections are read: what they have carried is in the metrics within this time.
const SWEEP: Duration = Duration::from_secs(15);

/// How often is looked whether this agent's programs are in force.
const LOOK: Duration = Duration::from_millis(20);

/// Writes what the kernel tells.
pub(super) struct Scribe {
    kernel: Arc<Kernel>,
    snapshots: Arc<SnapshotStore>,
    telemetry: Arc<Telemetry>,
    /// `CLOCK_MONOTONIC` when counting began, in nanoseconds: connections that are older have been counted so far.
    since_ns: u64,
    /// Connections that a sweep has seen, by ends and start.
    open: HashMap<Key, Open>,
}

type Key = (SocketAddr, SocketAddr, u64);

fn key(connection: &LiveNative) -> Key {
    (connection.client, connection.server, connection.started_ns)
}

/// A connection that stands: its records are open, and have been given what it had carried.
struct Open {
    records: [ConnectionRecord; 2],
    counted: Traffic,
    /// Sweeps in a row that did not see it.
    missed: u8,
}

impl Scribe {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        snapshots: Arc<SnapshotStore>,
        telemetry: Arc<Telemetry>,
        since_ns: u64,
    ) -> Self {
        Self { kernel, snapshots, telemetry, since_ns, open: HashMap::new() }
    }

    /// Reads until the ring is gone, or until `stop` is told: then everything is counted up to now.
    pub(super) async fn write_all(mut self, mut events: EventReader, mut stop: oneshot::Receiver<()>) {
        // Before the pods are enrolled nobody could be named.
        while !self.kernel.in_force() {
            tokio::time::sleep(LOOK).await;
        }
        let mut sweeps = tokio::time::interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.told(&event),
                    None => break,
                },
                _ = sweeps.tick() => self.sweep().await,
                _ = &mut stop => {
                    events.ready().for_each(|event| self.told(&event));
                    return self.sweep().await;
                }
            }
        }
        tracing::error!("the kernel's events cannot be read any more; refusals are still counted");
    }

    fn told(&mut self, event: &KernelEvent) {
        match event {
            KernelEvent::Refused(refusal) => self.refused(refusal),
            KernelEvent::Closed(closed) => self.closed(closed),
        }
    }

    async fn sweep(&mut self) {
        let kernel = Arc::clone(&self.kernel);
        // It panics nowhere; if it did, the next one is as good.
        if let Ok(sweep) = tokio::task::spawn_blocking(move || kernel.sweep()).await {
            self.swept(&sweep);
        }
    }

    fn pod(&self, snapshot: &Snapshot, cookie: u64) -> Option<Arc<Workload>> {
        snapshot.workload(&self.kernel.pod_by_cookie(cookie)?).cloned()
    }

    fn refused(&self, refusal: &Refusal) {
        let snapshot = self.snapshots.load();
        if let Some(reporter) = egress_events::reporter(refusal.exit) {
            return self.refused_outside(refusal, reporter, &snapshot);
        }
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

    /// What a pod may not send out of the mesh, or takes none of.
    fn refused_outside(&self, refusal: &Refusal, reporter: Reporter, snapshot: &Snapshot) {
        let mut record = self.telemetry.open(reporter);
        record.generation = snapshot.generation();
        let pod = self.pod(snapshot, refusal.netns_cookie);
        let other = snapshot.workload_by_ip(refusal.peer.ip()).cloned();
        let (client, server) = if reporter == Reporter::Outbound { (&pod, &other) } else { (&other, &pod) };
        let (from, to) =
            if reporter == Reporter::Outbound { (refusal.local, refusal.peer) } else { (refusal.peer, refusal.local) };
        name(&mut record.source, client.as_deref(), from);
        name(&mut record.destination, server.as_deref(), to);
        egress_events::describe(&mut record, to);
        record.record(egress_events::ending(refusal.exit, pod.as_deref(), to.port(), CHANGED));
    }

    /// One record for the log line, and one for the series of the other end, as two agents would keep them.
    fn open(&self, at: &LiveNative) -> Open {
        let snapshot = self.snapshots.load();
        let client = self.pod(&snapshot, at.client_cookie);
        let server = self.pod(&snapshot, at.server_cookie);
        let service = snapshot.service_by_vip(at.dialled);
        let service = service.map(|s| ServiceName { namespace: Arc::clone(&s.namespace), name: Arc::clone(&s.name) });
        let records = [Reporter::Outbound, Reporter::Inbound].map(|reporter| {
            let mut record = self.telemetry.open(reporter);
            record.generation = snapshot.generation();
            name(&mut record.source, client.as_deref(), at.client);
            name(&mut record.destination, server.as_deref(), at.server);
            record.source.identity = client.as_ref().map(|client| client.identity.clone());
            record.destination.identity = server.as_ref().map(|server| server.identity.clone());
            record.service.clone_from(&service);
            record.orig_dst = Some(OrigDst::new(at.dialled));
            (record.lane, record.security) = (Lane::Native, Security::Kernel);
            record
        });
        let mut open = Open { records, counted: Traffic::default(), missed: 0 };
        if at.started_ns < self.since_ns {
            open.inherit(&at.traffic);
        } else if let Some(server) = server {
            let [line, _] = &mut open.records;
            line.audited_by(audited(&snapshot, &flow(client.as_deref(), &server, at.client, at.server), None));
        }
        open
    }

    fn swept(&mut self, sweep: &Sweep) {
        if sweep.orphans > 0 {
            tracing::warn!(records = sweep.orphans, "records without a connection were removed");
        }
        self.open.values_mut().for_each(|open| open.missed += 1);
        for live in &sweep.live {
            let mut open = self.open.remove(&key(live)).unwrap_or_else(|| self.open(live));
            open.missed = 0;
            open.carry(&live.traffic, None);
            self.open.insert(key(live), open);
        }
        // Missed once: its event is on the way. Missed twice: its event was lost.
        let gone: Vec<Key> = self.open.iter().filter(|(_, open)| open.missed > 1).map(|(key, _)| *key).collect();
        for key in gone {
            if let Some(open) = self.open.remove(&key) {
                let reason = "its end was not told: the ring of events was full".to_owned();
                open.end(Ending { outcome: Outcome::Ok, rule: None, reason });
            }
        }
    }

    fn closed(&mut self, closed: &Closed) {
        let connection = &closed.connection;
        let known = self.open.remove(&key(connection));
        let mut open = known.unwrap_or_else(|| self.open(connection));
        open.carry(&connection.traffic, Some(closed.lasted));
        open.end(Ending::from(if closed.failed { Outcome::ConnectRefused } else { Outcome::Ok }));
    }
}

/// Native connections outlive the agent that counts them; the next one finds them by its sweep.
impl Drop for Scribe {
    fn drop(&mut self) {
        for (_, open) in self.open.drain() {
            open.records.into_iter().for_each(ConnectionRecord::let_go);
        }
    }
}

impl Open {
    /// Leaves out what another agent has counted.
    fn inherit(&mut self, traffic: &Traffic) {
        self.records.iter_mut().for_each(|record| record.inherited(traffic.sent, traffic.received));
        self.counted = *traffic;
    }

    /// Counts what has been carried since the last time.
    fn carry(&mut self, traffic: &Traffic, lasted: Option<Duration>) {
        let sent = traffic.sent.saturating_sub(self.counted.sent);
        let received = traffic.received.saturating_sub(self.counted.received);
        for record in &mut self.records {
            record.carried(sent, received, lasted);
            record.round_trip = Some(traffic.round_trip);
            record.retransmits = Some(traffic.retransmits);
        }
        self.counted = *traffic;
    }

    fn end(self, ending: Ending) {
        let [line, series] = self.records;
        series.record_silently(ending.clone());
        line.record(ending);
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
        _ => (Outcome::Internal, exit.as_str()),
    };
    let rule = server.filter(|_| outcome == Outcome::PlaintextRefused).map(|workload| {
        let source = workload.peer_mode.source(to.port());
        if source.is_empty() { PEER_MODE.into() } else { Arc::clone(source) }
    });
    Ending { outcome, rule, reason: reason.to_owned() }
}

/// What the kernel has put to its maps.
fn flow(client: Option<&Workload>, server: &Workload, from: SocketAddr, to: SocketAddr) -> Flow {
    let peer = client.map_or(PeerIdentity::Unknown, |client| PeerIdentity::Verified(client.identity.clone()));
    Flow { destination: Arc::clone(&server.uid), port: to.port(), peer, source_ip: from.ip() }
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
    let decided = server.map(|server| authorize(snapshot, flow(client, server, from, to)));
    let (rule, reason) = match decided {
        Some(Err(Denial { rule, reason, .. })) => (rule, format!("{reason}; refused by the kernel {place}")),
        _ => (CHANGED.into(), format!("refused by the kernel {place}, under rules that have changed since")),
    };
    Ending { outcome: Outcome::Denied, rule: Some(rule), reason }
}
