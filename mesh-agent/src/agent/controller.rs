//! Another composition root, without a node: the source of an API server, and the statuses that go back to it.
//! It touches no kernel and holds no key.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::Stop;
use super::source::SourceCollector;
use crate::admin::{self, Condition, Readiness};
use crate::control::{ApiAccess, Cluster, KubeConfig, StatusWritesReader};
use crate::snapshot::SnapshotStore;
use crate::telemetry::Registry;

/// What `mesh-agent controller` is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How the API server is reached.
    pub access: ApiAccess,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Address of the metrics endpoint.
    pub metrics: SocketAddr,
}

/// Writes statuses until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, with the way out. An API server that does not answer is no error.
pub fn run(settings: Settings) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(settings))
}

/// Serves until SIGTERM or SIGINT, or until the source fails.
async fn serve(settings: Settings) -> Result<()> {
    let Settings { access, trust_domain, metrics: address } = settings;
    let mut stop = Stop::on_signals()?;
    let mut cluster = Cluster::open(&access).await?;
    let writer = cluster.status_writer();
    let (registry, snapshots) = (Arc::new(Registry::default()), Arc::new(SnapshotStore::default()));
    let (source, writes) = (SourceCollector(cluster.clone()), WritesCollector(writer.counts()));
    registry.register(|r| {
        r.register_collector(Box::new(source));
        r.register_collector(Box::new(writes));
    });
    let ready = Arc::new(Readiness::waiting(&[(Condition::Source, "the objects have not been read yet")]));
    let metrics = admin::serve_metrics(address, registry, Arc::clone(&ready)).await.context("--metrics")?;
    tracing::info!(metrics = %address, "the controller is up");

    // It is no node: no pod is its own.
    let config = KubeConfig::new("", trust_domain);
    let mut published = snapshots.watch();
    let complete = async {
        if published.wait_for(|generation| *generation > 0).await.is_ok() {
            ready.holds(Condition::Source);
        }
        std::future::pending::<()>().await;
    };
    let source = cluster.run(config, Arc::clone(&snapshots), std::future::pending());
    tokio::select! {
        ended = source => Err(ended.err().map_or_else(|| anyhow!("the source of objects ended"), anyhow::Error::new)),
        () = writer.run(Arc::clone(&snapshots)) => Err(anyhow!("the writer of statuses ended")),
        () = complete => Ok(()),
        () = metrics => Err(anyhow!("the metrics endpoint ended")),
        () = stop.told() => Ok(()),
    }
}

/// Encodes how often statuses were written.
#[derive(Debug)]
struct WritesCollector(StatusWritesReader);

impl Collector for WritesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let writes = self.0.read();
        let help = "Statuses written to the API server, by how that ended";
        let mut family = encoder.encode_descriptor("mesh_status_writes", help, None, MetricType::Counter)?;
        for (outcome, count) in [
            ("written", writes.written),
            ("conflict", writes.conflict),
            ("altered", writes.altered),
            ("failed", writes.failed),
        ] {
            ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}
