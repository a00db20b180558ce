//! The per-connection counters, one [`Series`] per label set, resolved once per connection.
//!
//! One look-up finds everything a connection will ever count, so that the data path touches only atomics.
//! The number of series is bounded, and a workload that left the mesh takes its series along.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, exemplar::Exemplar};
use prometheus_client::registry::Unit;

use super::labels::{Ended, Labels};
use crate::model::outcome::Outcome;

/// More label sets than a node's pods can need (110 pods × 90 peers); beyond it names collapse to `other`.
pub const MAX_SERIES: usize = 10_000;
/// How long the series of a vanished workload stays readable (design §8).
pub const LINGER: Duration = Duration::from_secs(15 * 60);

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

/// The counters of one label set.
#[derive(Debug)]
pub struct Series {
    opened: AtomicU64,
    live: AtomicI64,
    closed: [AtomicU64; Outcome::ALL.len()],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// Seconds after [`SeriesStore::born`] of the last opening or ending.
    touched: AtomicU64,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            opened: AtomicU64::new(0),
            live: AtomicI64::new(0),
            closed: std::array::from_fn(|_| AtomicU64::new(0)),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            touched: AtomicU64::new(0),
        }
    }
}

impl Series {
    /// Counts bytes that the source sent.
    pub fn add_sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes that the source received.
    pub fn add_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Relaxed);
    }

    /// Connections that ended with `outcome`.
    #[must_use]
    pub fn closed(&self, outcome: Outcome) -> u64 {
        self.closed.get(outcome as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Every series of this agent.
#[derive(Debug)]
pub struct SeriesStore {
    born: Instant,
    by_labels: RwLock<HashMap<Labels, Arc<Series>>>,
    overflowed: AtomicU64,
}

impl Default for SeriesStore {
    fn default() -> Self {
        Self { born: Instant::now(), by_labels: RwLock::default(), overflowed: AtomicU64::new(0) }
    }
}

impl SeriesStore {
    /// Counts an opened connection and returns its series.
    pub fn open(&self, labels: &Labels) -> Arc<Series> {
        let series = self.inherit(labels);
        series.opened.fetch_add(1, Relaxed);
        series
    }

    /// The series of a connection that an earlier agent has counted as opened.
    pub fn inherit(&self, labels: &Labels) -> Arc<Series> {
        let series = self.find(labels);
        series.live.fetch_add(1, Relaxed);
        self.touch(&series);
        series
    }

    /// Counts the end of a connection that [`Self::open`] counted.
    pub fn close(&self, series: &Series, outcome: Outcome) {
        if let Some(count) = series.closed.get(outcome as usize) {
            count.fetch_add(1, Relaxed);
        }
        series.live.fetch_sub(1, Relaxed);
        self.touch(series);
    }

    /// Forgets series without live connections whose workloads `known` no longer names (called with each name
    /// and namespace of a label set) and that nothing has touched for [`LINGER`].
    pub fn sweep(&self, known: impl Fn(&str, &str) -> bool) {
        let now = self.seconds();
        let gone = |namespace: &Option<Arc<str>>, name: &Option<Arc<str>>| match (namespace, name) {
            (Some(namespace), Some(name)) => !known(namespace, name),
            _ => false,
        };
        self.by_labels.write().unwrap_or_else(PoisonError::into_inner).retain(|labels, series| {
            let vanished = gone(&labels.source_namespace, &labels.source_workload)
                || gone(&labels.destination_namespace, &labels.destination_workload);
            let quiet = now.saturating_sub(series.touched.load(Relaxed)) >= LINGER.as_secs();
            !(vanished && quiet && series.live.load(Relaxed) == 0)
        });
    }

    fn find(&self, labels: &Labels) -> Arc<Series> {
        let full = {
            let map = self.by_labels.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(series) = map.get(labels) {
                return Arc::clone(series);
            }
            map.len() >= MAX_SERIES
        };
        let labels = if full {
            self.overflowed.fetch_add(1, Relaxed);
            labels.overflow()
        } else {
            labels.clone()
        };
        let mut map = self.by_labels.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(map.entry(labels).or_default())
    }

    fn touch(&self, series: &Series) {
        series.touched.store(self.seconds(), Relaxed);
    }

    fn seconds(&self) -> u64 {
        self.born.elapsed().as_secs()
    }

    fn encode_each(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        metric: (&str, &str, Option<&Unit>),
        value: impl Fn(&Series) -> u64,
    ) -> std::fmt::Result {
        let map = self.by_labels.read().unwrap_or_else(PoisonError::into_inner);
        let mut family = encoder.encode_descriptor(metric.0, metric.1, metric.2, MetricType::Counter)?;
        map.iter().try_for_each(|(labels, series)| encode_one(&mut family, labels, value(series)))
    }
}

fn encode_one(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> std::fmt::Result {
    family.encode_family(labels)?.encode_counter(&value, NO_EXEMPLAR)
}

/// Registered with the registry; shares the store with the data path.
#[derive(Debug)]
pub(super) struct SeriesCollector(pub Arc<SeriesStore>);

impl Collector for SeriesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let store = &self.0;
        let opened = ("mesh_connections_opened", "Connections accepted and given a destination", None);
        store.encode_each(&mut encoder, opened, |s| s.opened.load(Relaxed))?;
        let sent = ("mesh_sent", "Bytes that the source sent to the destination", Some(&Unit::Bytes));
        store.encode_each(&mut encoder, sent, |s| s.sent_bytes.load(Relaxed))?;
        let received = ("mesh_received", "Bytes that the source received from the destination", Some(&Unit::Bytes));
        store.encode_each(&mut encoder, received, |s| s.received_bytes.load(Relaxed))?;
        {
            let map = store.by_labels.read().unwrap_or_else(PoisonError::into_inner);
            let help = "Connections that ended, by how";
            let mut family = encoder.encode_descriptor("mesh_connections_closed", help, None, MetricType::Counter)?;
            for (labels, series) in map.iter() {
                for outcome in Outcome::ALL {
                    let count = series.closed(outcome);
                    if count > 0 {
                        encode_one(&mut family, &Ended(labels, outcome), count)?;
                    }
                }
            }
        }
        let help = "Connections counted under `other` because the number of label sets reached its bound";
        let mut overflow =
            encoder.encode_descriptor("mesh_connections_series_overflow", help, None, MetricType::Counter)?;
        overflow.encode_counter(&store.overflowed.load(Relaxed), NO_EXEMPLAR)
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Lane, Reporter, Security};
    use super::*;

    fn labels(source: &str) -> Labels {
        Labels {
            reporter: Reporter::Outbound,
            source_workload: Some(source.into()),
            source_namespace: Some("shop".into()),
            destination_service: None,
            destination_workload: None,
            destination_namespace: None,
            lane: Lane::Tunnel,
            security: Security::MutualTls,
        }
    }

    #[test]
    fn an_outcome_is_its_own_index() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{outcome}");
        }
    }

    #[test]
    fn names_beyond_the_bound_collapse_into_one_series() {
        let store = SeriesStore::default();
        for n in 0..MAX_SERIES + 10 {
            store.open(&labels(&n.to_string()));
        }
        let map = store.by_labels.read().unwrap();
        assert_eq!(map.len(), MAX_SERIES + 1);
        assert_eq!(map[&labels("0").overflow()].opened.load(Relaxed), 10);
        assert_eq!(store.overflowed.load(Relaxed), 10);
    }

    #[test]
    fn only_quiet_series_of_vanished_workloads_are_forgotten() {
        let born = Instant::now().checked_sub(LINGER * 2).unwrap();
        let store = SeriesStore { born, ..SeriesStore::default() };
        let old = store.open(&labels("old"));
        store.close(&old, Outcome::Ok);
        old.touched.store(0, Relaxed);
        let busy = store.open(&labels("busy"));
        busy.touched.store(0, Relaxed);
        let known = store.open(&labels("known"));
        store.close(&known, Outcome::Ok);
        known.touched.store(0, Relaxed);
        let recent = store.open(&labels("recent"));
        store.close(&recent, Outcome::Ok);

        store.sweep(|_, name| name == "known");

        let mut left: Vec<_> = store.by_labels.read().unwrap().keys().flat_map(|l| l.source_workload.clone()).collect();
        left.sort();
        assert_eq!(left, ["busy".into(), "known".into(), "recent".into()] as [Arc<str>; 3]);
    }
}
