//! Metrics of `mesh-agent ca`.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Unit;

use super::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// The metrics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct CaMetrics {
    requests: Family<ByOutcome, Counter>,
    roots: Gauge,
    not_after: Gauge,
    load_failures: Counter,
    published: Gauge,
}

impl CaMetrics {
    /// Adds them to `registry`.
    pub fn register(&self, registry: &Registry) {
        registry.register(|r| {
            let help = "Requests for a certificate by how they ended: issued, or the word of the refusal";
            r.register("mesh_ca_requests", help, self.requests.clone());
            r.register("mesh_ca_roots", "Roots that agents are to trust", self.roots.clone());
            let help = "End of the certificate that signs, in seconds since 1970";
            r.register_with_unit("mesh_ca_root_not_after_timestamp", help, Unit::Seconds, self.not_after.clone());
            let help = "Roots that were found and could not be used; the one before stayed in force";
            r.register("mesh_ca_root_load_failures", help, self.load_failures.clone());
            let help = "1 while the roots in force are known to be published, 0 while they are not";
            r.register("mesh_ca_roots_published", help, self.published.clone());
        });
    }

    /// A request has been answered; the words are a closed set.
    pub fn answered(&self, outcome: &'static str) {
        self.requests.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// This root is in force.
    pub fn root(&self, roots: usize, not_after: SystemTime) {
        self.roots.set(i64::try_from(roots).unwrap_or(i64::MAX));
        let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.not_after.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// A root could not be used.
    pub fn load_failed(&self) {
        self.load_failures.inc();
    }

    /// Whether the roots in force are published.
    pub fn published(&self, are: bool) {
        self.published.set(i64::from(are));
    }
}
