//! The per-connection counters, one [`Series`] per label set, resolved once per connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, exemplar::Exemplar};
use prometheus_client::registry::Unit;

use super::labels::{Ended, Labels};
use super::store::{Counters, Store};
use crate::model::outcome::Outcome;

pub(super) const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

/// The counters of one label set.
#[derive(Debug)]
pub struct Series {
    opened: AtomicU64,
    closed: [AtomicU64; Outcome::ALL.len()],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    touched: AtomicU64,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            opened: AtomicU64::new(0),
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

impl Counters for Series {
    fn touched(&self) -> &AtomicU64 {
        &self.touched
    }
}

/// The series of connections.
pub type SeriesStore = Store<Labels, Series>;

impl SeriesStore {
    /// Counts an opened connection and returns its series.
    pub fn open(&self, labels: &Labels) -> Arc<Series> {
        let series = self.find(labels);
        series.opened.fetch_add(1, Relaxed);
        series
    }

    /// Counts the end of a connection that [`Self::open`] counted.
    pub fn close(&self, series: &Series, outcome: Outcome) {
        if let Some(count) = series.closed.get(outcome as usize) {
            count.fetch_add(1, Relaxed);
        }
        self.touch(series);
    }

    fn encode_each(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        metric: (&str, &str, Option<&Unit>),
        value: impl Fn(&Series) -> u64,
    ) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor(metric.0, metric.1, metric.2, MetricType::Counter)?;
        self.series().iter().try_for_each(|(labels, series)| encode_one(&mut family, labels, value(series)))
    }
}

pub(super) fn encode_one(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> std::fmt::Result {
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
            let map = store.series();
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
        overflow.encode_counter(&store.overflowed(), NO_EXEMPLAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_its_own_index() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{outcome}");
        }
    }
}
