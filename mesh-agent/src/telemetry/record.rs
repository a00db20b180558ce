//! The record of one connection: filled by the driver on the way, written once at the end.
//!
//! [`ConnectionRecord::record`] writes the access-log line and the metrics together, so they cannot disagree. A
//! record that is dropped instead (its task was ended with the agent) is written as `agent_drained`.

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Telemetry;
use super::access_log::{Line, Side, rfc3339};
use super::labels::{Labels, Lane, Reporter, Security, ServiceName};
use super::series::Series;
use crate::model::addr::OrigDst;
use crate::model::identity::Identity;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;

/// One side of a connection, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// Dashboard name of the workload; only from a declared object.
    pub workload: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// The identity that was *proven*.
    pub identity: Option<Identity>,
    /// Address.
    pub ip: Option<IpAddr>,
    /// Port.
    pub port: Option<u16>,
}

impl Party {
    /// Takes the names of a declared workload. Its identity is not taken: that needs a proof.
    pub fn name(&mut self, workload: &Workload) {
        self.workload = Some(Arc::clone(&workload.app));
        self.namespace = Some(Arc::clone(&workload.namespace));
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The word.
    pub outcome: Outcome,
    /// The policy that ended it, where one did.
    pub rule: Option<Arc<str>>,
    /// One sentence; empty where the word says it all.
    pub reason: String,
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, rule: None, reason: String::new() }
    }
}

/// Counts bytes as they pass: for the log line of this connection and for its series at once.
#[derive(Debug, Default)]
pub struct Meter {
    sent: Cell<u64>,
    received: Cell<u64>,
    series: OnceCell<Arc<Series>>,
}

impl Meter {
    /// Bytes that the source sent have been handed on.
    pub fn sent(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.sent.set(self.sent.get().saturating_add(bytes));
        if let Some(series) = self.series.get() {
            series.add_sent(bytes);
        }
    }

    /// Bytes that the destination sent have been handed on.
    pub fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.received.set(self.received.get().saturating_add(bytes));
        if let Some(series) = self.series.get() {
            series.add_received(bytes);
        }
    }
}

/// Everything the mesh will say about one connection.
#[derive(Debug)]
pub struct ConnectionRecord {
    telemetry: Arc<Telemetry>,
    reporter: Reporter,
    started: Instant,
    connected: Option<Duration>,
    /// Given where it is known better than by [`Self::started`].
    lasted: Option<Duration>,
    meter: Meter,
    silent: bool,
    done: bool,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The Service that was dialled.
    pub service: Option<ServiceName>,
    /// What the application dialled.
    pub orig_dst: Option<OrigDst>,
    /// How the bytes travel.
    pub lane: Lane,
    /// What protects them.
    pub security: Security,
    /// The ALLOW policy that matched.
    pub rule: Option<Arc<str>>,
    audited: Vec<Arc<str>>,
    /// A rule about the client decided: a denial is counted where the client is, else where the server is.
    pub by_clients_rule: bool,
    /// Snapshot generation of the decision.
    pub generation: u64,
    /// The client's smoothed round-trip time, where the kernel told it.
    pub round_trip: Option<Duration>,
    /// Segments that the client sent again, where the kernel told it.
    pub retransmits: Option<u32>,
}

impl ConnectionRecord {
    pub(super) fn new(telemetry: Arc<Telemetry>, reporter: Reporter) -> Self {
        telemetry.metrics().live(reporter).inc();
        Self {
            telemetry,
            reporter,
            started: Instant::now(),
            connected: None,
            lasted: None,
            meter: Meter::default(),
            silent: false,
            done: false,
            source: Party::default(),
            destination: Party::default(),
            service: None,
            orig_dst: None,
            lane: Lane::Plaintext,
            security: Security::None,
            rule: None,
            audited: Vec::new(),
            by_clients_rule: false,
            generation: 0,
            round_trip: None,
            retransmits: None,
        }
    }

    /// These AUDIT policies match it.
    pub fn audited_by(&mut self, policies: Vec<Arc<str>>) {
        policies.iter().for_each(|policy| self.telemetry.metrics().audited(policy));
        self.audited = policies;
    }

    /// The other side stands: counts the time that this took.
    pub fn connected(&mut self) {
        let took = self.started.elapsed();
        self.connected = Some(took);
        self.telemetry.metrics().connect_duration(self.reporter).observe(took.as_secs_f64());
    }

    /// The labels are final: counts the connection as opened.
    pub fn established(&mut self) {
        self.resolve();
    }

    /// The counter of bytes; live from [`Self::established`] on.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// An earlier agent has counted the connection, and these bytes of it: they are in the log line alone.
    pub fn inherited(&mut self, sent: u64, received: u64) {
        self.meter.series.get_or_init(|| self.telemetry.series().find(&self.labels()));
        self.meter.sent.set(sent);
        self.meter.received.set(received);
    }

    /// The kernel has counted more bytes in both directions; `lasted` once the connection is over.
    pub fn carried(&mut self, sent: u64, received: u64, lasted: Option<Duration>) {
        self.lasted = lasted;
        self.resolve();
        self.meter.sent(usize::try_from(sent).unwrap_or(usize::MAX));
        self.meter.received(usize::try_from(received).unwrap_or(usize::MAX));
    }

    /// Lets go of a connection that goes on without this agent: nothing is written of it here any more.
    pub fn let_go(mut self) {
        self.done = true;
        self.telemetry.metrics().live(self.reporter).dec();
    }

    /// Writes the metrics alone: the connection has its log line already.
    pub fn record_silently(mut self, ending: impl Into<Ending>) {
        self.silent = true;
        self.write(&ending.into());
    }

    /// Writes the log line and the metrics.
    pub fn record(mut self, ending: impl Into<Ending>) {
        self.write(&ending.into());
    }

    /// Counts that the connection has reached `limit`, a word of a closed set.
    pub fn limited(&self, limit: &'static str) {
        self.telemetry.metrics().limited(self.reporter, limit);
    }

    fn labels(&self) -> Labels {
        Labels {
            reporter: self.reporter,
            source_workload: self.source.workload.clone(),
            source_namespace: self.source.namespace.clone(),
            destination_service: self.service.clone(),
            destination_workload: self.destination.workload.clone(),
            destination_namespace: self.destination.namespace.clone(),
            lane: self.lane,
            security: self.security,
        }
    }

    fn resolve(&self) -> Arc<Series> {
        Arc::clone(self.meter.series.get_or_init(|| self.telemetry.series().open(&self.labels())))
    }

    fn write(&mut self, ending: &Ending) {
        self.done = true;
        let series = self.resolve();
        self.telemetry.series().close(&series, ending.outcome);
        self.telemetry.metrics().live(self.reporter).dec();
        let rule = ending.rule.as_deref().or(self.rule.as_deref());
        let decided_here = self.reporter == Reporter::Inbound || self.by_clients_rule;
        if let (true, Some(policy)) = (decided_here, ending.rule.as_ref()) {
            self.telemetry.metrics().denied(policy, ending.outcome);
        }
        if self.silent {
            return;
        }
        let mut destination = side(&self.destination);
        destination.service = self.service.as_ref().map(ToString::to_string);
        self.telemetry.access_log().write(&Line {
            time: rfc3339(SystemTime::now()),
            reporter: self.reporter,
            source: side(&self.source),
            destination,
            orig_dst: self.orig_dst.map(OrigDst::addr),
            lane: self.lane,
            security: self.security,
            rule,
            audited: &self.audited,
            outcome: ending.outcome.as_str(),
            reason: &ending.reason,
            bytes_sent: self.meter.sent.get(),
            bytes_received: self.meter.received.get(),
            duration_ms: milliseconds(self.lasted.unwrap_or_else(|| self.started.elapsed())),
            connect_ms: self.connected.map(milliseconds),
            generation: self.generation,
            round_trip_ms: self.round_trip.map(milliseconds),
            retransmits: self.retransmits,
        });
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if !self.done {
            self.write(&Outcome::AgentDrained.into());
        }
    }
}

pub(super) fn side(party: &Party) -> Side<'_> {
    Side {
        workload: party.workload.as_deref(),
        namespace: party.namespace.as_deref(),
        identity: party.identity.as_ref().map(ToString::to_string),
        service: None,
        ip: party.ip,
        port: party.port,
    }
}

/// Microseconds are as precise as a log line needs.
#[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// Splits an address into the fields of a [`Party`].
impl From<SocketAddr> for Party {
    fn from(addr: SocketAddr) -> Self {
        Self { ip: Some(addr.ip()), port: Some(addr.port()), ..Self::default() }
    }
}
