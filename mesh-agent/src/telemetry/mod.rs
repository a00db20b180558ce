//! What the data path tells the outside: metrics and the access log, written together by one record.
//!
//! This room owns the metrics registry; other rooms register their own metrics in it and `admin` encodes it. It
//! decides nothing and never blocks the data path.

pub mod access_log;
mod ca;
pub mod labels;
pub mod metrics;
pub mod own_log;
pub mod record;
pub mod request;
mod request_line;
pub mod request_series;
pub mod requests;
pub mod series;
pub mod store;
pub mod trace;

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

use access_log::AccessLog;
pub use ca::CaMetrics;
use labels::{Labels, Reporter};
use metrics::Metrics;
use record::ConnectionRecord;
use request_series::{Durations, OwnTime, RequestCollector, RequestStore};
use series::{SeriesCollector, SeriesStore};
use trace::Tracer;
use trace::queue::SpanCollector;

use crate::snapshot::Snapshot;

/// The registry of every metric of the agent.
#[derive(Debug, Default)]
pub struct Registry(Mutex<prometheus_client::registry::Registry>);

impl Registry {
    /// Lets a room register its metrics; full names, without a common prefix.
    pub fn register<T>(&self, register: impl FnOnce(&mut prometheus_client::registry::Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The OpenMetrics 1.0 text of everything registered, `# EOF` included.
    ///
    /// # Errors
    /// When a collector fails to encode; none of ours does.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

/// Which requests have a line in the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestLog {
    /// Each of them.
    #[default]
    All,
    /// Those that did not end in order, or with a status of 400 or more, or with a status of gRPC but 0.
    Failures,
    /// None.
    None,
}

/// What the data path is to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which requests have a line in the access log.
    pub request_log: RequestLog,
    /// Spans; without it there are none, and no header is touched.
    pub tracing: Option<trace::Settings>,
}

/// Metrics and access log of the data path.
#[derive(Debug)]
pub struct Telemetry {
    registry: Arc<Registry>,
    settings: Settings,
    metrics: Metrics,
    series: Arc<SeriesStore>,
    requests: Arc<RequestStore>,
    own_time: Arc<OwnTime>,
    tracer: Option<Tracer>,
    access_log: Arc<AccessLog>,
}

impl Telemetry {
    /// Registers the data path's metrics in `registry` and starts the access log over `out`.
    ///
    /// # Errors
    /// When the log's thread cannot be started.
    pub fn start(
        registry: Arc<Registry>,
        out: Box<dyn Write + Send>,
        settings: Settings,
    ) -> std::io::Result<Arc<Self>> {
        let access_log = Arc::new(AccessLog::start(out)?);
        let series = Arc::new(SeriesStore::default());
        let (requests, own_time) = (Arc::new(RequestStore::default()), Arc::new(OwnTime::default()));
        let tracer = settings.tracing.as_ref().map(|tracing| Tracer::new(tracing.ratio, Arc::default()));
        let metrics = registry.register(|r| {
            if let Some(tracer) = &tracer {
                r.register_collector(Box::new(SpanCollector(Arc::clone(tracer.queue()))));
            }
            r.register_collector(Box::new(SeriesCollector(Arc::clone(&series))));
            r.register_collector(Box::new(RequestCollector(Arc::clone(&requests), Arc::clone(&own_time))));
            r.register_collector(Box::new(LogCollector(Arc::clone(&access_log))));
            Metrics::register(r)
        });
        Ok(Arc::new(Self { registry, settings, metrics, series, requests, own_time, tracer, access_log }))
    }

    /// Opens the record of a connection just accepted.
    #[must_use]
    pub fn open(self: &Arc<Self>, reporter: Reporter) -> ConnectionRecord {
        ConnectionRecord::new(Arc::clone(self), reporter)
    }

    /// Forgets the series of workloads and routes that left the mesh 15 minutes ago. To be called about once a minute.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let workloads: HashSet<(&str, &str)> = snapshot.workloads().iter().map(|w| (&*w.namespace, &*w.app)).collect();
        let gone = |namespace: &Option<Arc<str>>, name: &Option<Arc<str>>| match (namespace, name) {
            (Some(namespace), Some(name)) => !workloads.contains(&(namespace, name)),
            _ => false,
        };
        let vanished = |labels: &Labels| {
            gone(&labels.source_namespace, &labels.source_workload)
                || gone(&labels.destination_namespace, &labels.destination_workload)
        };
        self.series.sweep(vanished);
        let candidates = snapshot.routes().iter().flat_map(|routes| &routes.candidates);
        let rules: HashSet<String> = candidates.map(|candidate| candidate.rule.id.to_string()).collect();
        self.requests.sweep(|labels| {
            let unruled = labels.route.as_deref().is_some_and(|route| !rules.contains(route));
            unruled || vanished(&labels.connection)
        });
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Handles that the data path counts with.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn series(&self) -> &SeriesStore {
        &self.series
    }

    /// Sends the spans of `node` to the collector until [`Self::close_spans`]; `None`: there are none.
    #[must_use]
    pub fn exporter(&self, node: &str) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (tracer, tracing) = (self.tracer.as_ref()?, self.settings.tracing.as_ref()?);
        Some(trace::export::run(Arc::clone(tracer.queue()), tracing.endpoint.clone(), node.to_owned()))
    }

    /// No more spans will come: the exporter ends when it has sent what is there.
    pub fn close_spans(&self) {
        if let Some(tracer) = &self.tracer {
            tracer.queue().close();
        }
    }

    fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_ref()
    }

    fn requests(&self) -> &RequestStore {
        &self.requests
    }

    fn own_time(&self, reporter: Reporter) -> &Durations {
        self.own_time.of(reporter)
    }

    fn request_log(&self) -> RequestLog {
        self.settings.request_log
    }

    fn access_log(&self) -> &AccessLog {
        &self.access_log
    }
}

#[derive(Debug)]
struct LogCollector(Arc<AccessLog>);

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let dropped = ConstCounter::new(self.0.dropped());
        let help = "Access-log lines dropped because the reader of the log was too slow";
        dropped.encode(encoder.encode_descriptor("mesh_access_log_dropped", help, None, dropped.metric_type())?)?;
        let failed = ConstCounter::new(self.0.failed());
        let help = "Writes of the access log that the sink refused";
        failed.encode(encoder.encode_descriptor("mesh_access_log_errors", help, None, failed.metric_type())?)
    }
}

#[cfg(test)]
mod tests;
