//! Where the objects come from and where captures are published, by what `--source` says. It decides nothing else.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::pods::Publish;
use crate::cni::Book;
use crate::config::{Config, Source};
use crate::control::{self, Cluster, Compilations, DirConfig, KubeConfig, publish_captured};
use crate::snapshot::SnapshotStore;
use crate::telemetry::Registry;

/// What `--source` names, found.
#[derive(Clone, Debug)]
pub(super) enum ObjectSource {
    Dir(PathBuf),
    Kube { cluster: Cluster, trust_netns: bool },
}

impl ObjectSource {
    /// Finds it; reads nothing of it yet.
    pub(super) async fn open(source: &Source) -> Result<Self> {
        Ok(match source {
            Source::Dir(path) => Self::Dir(path.clone()),
            Source::Kube { access, trust_netns } => {
                Self::Kube { cluster: Cluster::open(access).await?, trust_netns: *trust_netns }
            }
        })
    }

    /// Adds the source's own metrics.
    pub(super) fn register(&self, registry: &Registry) {
        if let Self::Kube { cluster, .. } = self {
            registry.register(|r| r.register_collector(Box::new(SourceCollector(cluster.clone()))));
        }
    }

    /// Publishes snapshots for as long as the agent lives.
    pub(super) async fn run(self, config: Config, book: Arc<Book>, snapshots: Arc<SnapshotStore>) -> Result<()> {
        let Config { node, trust_domain, node_local_dns, .. } = config;
        let node_local_dns = Some(node_local_dns);
        match self {
            Self::Dir(path) => {
                let config = DirConfig { path, node, trust_domain, node_local_dns };
                control::run(config, snapshots, std::future::pending()).await?;
            }
            Self::Kube { cluster, trust_netns } => {
                let config = KubeConfig { node, trust_domain, node_local_dns, trust_netns };
                cluster.with_local(book.watch()).run(config, snapshots, std::future::pending()).await?;
            }
        }
        Ok(())
    }

    /// What tells the other agents which pods of `node` are captured.
    pub(super) fn publisher(&self, node: &str) -> Result<Publish> {
        Ok(match self {
            Self::Dir(dir) => {
                let (dir, node) = (dir.clone(), node.to_owned());
                Box::new(move |pods| publish_captured(&dir, &node, pods))
            }
            Self::Kube { cluster, .. } => {
                let publisher = cluster.publisher(node)?;
                Box::new(move |pods| publisher.publish(pods))
            }
        })
    }
}

/// Encodes how the API server is followed.
#[derive(Debug)]
pub(super) struct SourceCollector(pub(super) Cluster);

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kinds = self.0.health();
        let help = "1 while a kind is being watched at the API server, 0 while its last known state stays in force";
        let mut family = encoder.encode_descriptor("mesh_source_connected", help, None, MetricType::Gauge)?;
        for of in &kinds {
            ConstGauge::new(i64::from(of.connected)).encode(family.encode_family(&[("kind", of.kind)])?)?;
        }
        let help = "Lists after the first one: a watch could not be resumed where it stopped";
        let mut family = encoder.encode_descriptor("mesh_source_relists", help, None, MetricType::Counter)?;
        for of in &kinds {
            ConstCounter::new(of.relists).encode(family.encode_family(&[("kind", of.kind)])?)?;
        }
        let help = "Changes of objects that the API server has reported";
        let mut family = encoder.encode_descriptor("mesh_source_events", help, None, MetricType::Counter)?;
        for of in &kinds {
            ConstCounter::new(of.events).encode(family.encode_family(&[("kind", of.kind)])?)?;
        }
        let Compilations { count, time, first } = self.0.compilations();
        let help = "Snapshots compiled from what the API server has reported";
        let metric = encoder.encode_descriptor("mesh_source_compilations", help, None, MetricType::Counter)?;
        ConstCounter::new(count).encode(metric)?;
        let (help, unit) = ("Time that compiling and publishing them took", Some(&Unit::Seconds));
        let metric = encoder.encode_descriptor("mesh_source_compilation", help, unit, MetricType::Counter)?;
        ConstCounter::new(time.as_secs_f64()).encode(metric)?;
        let help = "From the last of the first lists to the first snapshot; 0 before there is one";
        let metric = encoder.encode_descriptor("mesh_source_first_snapshot", help, unit, MetricType::Gauge)?;
        ConstGauge::new(first.as_secs_f64()).encode(metric)
    }
}
