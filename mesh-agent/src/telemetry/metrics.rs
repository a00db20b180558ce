//! The metrics that are not per label set of a connection: durations, gauges, denials, shed load.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{Reporter, Wire};
use crate::model::outcome::Outcome;

/// From 0.1 ms (a connect within a node) to 10 s (the default deadlines), 1-2.5-5 steps.
pub(super) const DURATION_BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReporter {
    reporter: Reporter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWire {
    reporter: Reporter,
    wire: Wire,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByAudit {
    policy: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPolicy {
    policy: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnswer {
    reporter: Reporter,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLimit {
    reporter: Reporter,
    limit: &'static str,
}

/// One handle per direction, resolved once.
#[derive(Clone, Debug)]
struct PerReporter<M> {
    inbound: M,
    outbound: M,
}

impl<M> PerReporter<M> {
    fn of(&self, reporter: Reporter) -> &M {
        match reporter {
            Reporter::Inbound => &self.inbound,
            Reporter::Outbound => &self.outbound,
        }
    }
}

fn per_reporter<M: Clone, C>(family: &Family<ByReporter, M, C>) -> PerReporter<M>
where
    C: prometheus_client::metrics::family::MetricConstructor<M>,
{
    let of = |reporter| family.get_or_create_owned(&ByReporter { reporter });
    PerReporter { inbound: of(Reporter::Inbound), outbound: of(Reporter::Outbound) }
}

/// Handles of every metric of this file.
#[derive(Debug)]
pub struct Metrics {
    live: PerReporter<Gauge>,
    requests_live: PerReporter<Gauge>,
    connect: PerReporter<Histogram>,
    handshake: PerReporter<Histogram>,
    tunnels: Family<ByWire, Gauge>,
    denials: Family<ByPolicy, Counter>,
    audits: Family<ByAudit, Counter>,
    shed: Family<ByReason, Counter>,
    refused_requests: Family<ByReason, Counter>,
    answers: Family<ByAnswer, Counter>,
    limited: Family<ByLimit, Counter>,
    ejections: Counter,
    accept_errors: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let live = Family::<ByReporter, Gauge>::default();
        let requests_live = Family::<ByReporter, Gauge>::default();
        let histogram: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        let connect = Family::<ByReporter, Histogram, _>::new_with_constructor(histogram);
        let handshake = Family::<ByReporter, Histogram, _>::new_with_constructor(histogram);
        let metrics = Self {
            live: per_reporter(&live),
            requests_live: per_reporter(&requests_live),
            connect: per_reporter(&connect),
            handshake: per_reporter(&handshake),
            tunnels: Family::default(),
            denials: Family::default(),
            audits: Family::default(),
            shed: Family::default(),
            refused_requests: Family::default(),
            answers: Family::default(),
            limited: Family::default(),
            ejections: Counter::default(),
            accept_errors: Counter::default(),
        };
        registry.register("mesh_connections_live", "Accepted connections that have not ended", live);
        registry.register("mesh_requests_live", "Requests of the http lane that are not over", requests_live);
        let help = "From accept until the other side stands";
        registry.register_with_unit("mesh_connect_duration", help, Unit::Seconds, connect);
        let help = "TLS handshakes of tunnels";
        registry.register_with_unit("mesh_handshake_duration", help, Unit::Seconds, handshake);
        registry.register("mesh_tunnels_open", "TLS connections between agents", metrics.tunnels.clone());
        registry.register("mesh_denials", "Connections that a policy refused or ended", metrics.denials.clone());
        let help = "Connections and requests that a policy with the action AUDIT matched";
        registry.register("mesh_audits", help, metrics.audits.clone());
        let help = "Connections reset on accept because a limit was reached";
        registry.register("mesh_connections_shed", help, metrics.shed.clone());
        let help = "Tunnel requests that were not for the pod they came in by, or not requests at all";
        registry.register("mesh_tunnel_requests_refused", help, metrics.refused_requests.clone());
        let help = "Requests that the mesh answered itself, by why";
        registry.register("mesh_request_answers", help, metrics.answers.clone());
        let help = "Times that a limit of the http lane was reached, by which";
        registry.register("mesh_limit_reached", help, metrics.limited.clone());
        let help = "Endpoints left alone for a while because requests to them failed";
        registry.register("mesh_endpoint_ejections", help, metrics.ejections.clone());
        let help = "accept() calls that failed, e.g. for lack of file descriptors";
        registry.register("mesh_accept_errors", help, metrics.accept_errors.clone());
        metrics
    }

    /// Accepted connections that have not ended.
    #[must_use]
    pub fn live(&self, reporter: Reporter) -> &Gauge {
        self.live.of(reporter)
    }

    /// Requests that are not over.
    #[must_use]
    pub fn requests_live(&self, reporter: Reporter) -> &Gauge {
        self.requests_live.of(reporter)
    }

    /// Accept → other side stands.
    #[must_use]
    pub fn connect_duration(&self, reporter: Reporter) -> &Histogram {
        self.connect.of(reporter)
    }

    /// Duration of a TLS handshake.
    #[must_use]
    pub fn handshake_duration(&self, reporter: Reporter) -> &Histogram {
        self.handshake.of(reporter)
    }

    /// Counts a connection that `policy` (a declared object) refused or ended.
    pub fn denied(&self, policy: &Arc<str>, outcome: Outcome) {
        let labels = ByPolicy { policy: Arc::clone(policy), outcome: outcome.as_str() };
        self.denials.get_or_create_owned(&labels).inc();
    }

    /// Counts a connection or request that `policy`, an AUDIT, matched.
    pub fn audited(&self, policy: &Arc<str>) {
        self.audits.get_or_create_owned(&ByAudit { policy: Arc::clone(policy) }).inc();
    }

    /// Counts a connection reset on accept; `limit` names the limit.
    pub fn shed(&self, limit: &'static str) {
        self.shed.get_or_create_owned(&ByReason { reason: limit }).inc();
    }

    /// Counts a refused tunnel request; `reason` is a word of a closed set.
    pub fn refused_request(&self, reason: &'static str) {
        self.refused_requests.get_or_create_owned(&ByReason { reason }).inc();
    }

    /// Counts a request that the mesh answered itself; `reason` is a word of a closed set.
    pub fn answered(&self, reporter: Reporter, reason: &'static str) {
        self.answers.get_or_create_owned(&ByAnswer { reporter, reason }).inc();
    }

    /// Counts that `limit`, a word of a closed set, was reached.
    pub fn limited(&self, reporter: Reporter, limit: &'static str) {
        self.limited.get_or_create_owned(&ByLimit { reporter, limit }).inc();
    }

    /// Counts an endpoint that is left alone for a while.
    pub fn ejected(&self) {
        self.ejections.inc();
    }

    /// Counts a failed `accept()`.
    pub fn accept_error(&self) {
        self.accept_errors.inc();
    }

    /// Counts a tunnel as open until the guard is dropped.
    #[must_use]
    pub fn tunnel_opened(&self, reporter: Reporter, wire: Wire) -> TunnelGuard {
        let gauge = self.tunnels.get_or_create_owned(&ByWire { reporter, wire });
        gauge.inc();
        TunnelGuard(gauge)
    }
}

/// Keeps `mesh_tunnels_open` right whichever way a tunnel ends.
#[derive(Debug)]
pub struct TunnelGuard(Gauge);

impl Drop for TunnelGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
