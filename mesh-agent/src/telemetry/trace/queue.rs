//! Spans on their way out: a bounded buffer between the data path and the exporter. When it is full a span is dropped
//! and counted; nobody waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tokio::sync::Notify;

use super::Span;

/// About 2 MiB, or one second of 4,000 recorded requests a second.
pub const MAX_SPANS: usize = 4096;
/// So many wake the exporter before its time.
const HALF: usize = MAX_SPANS / 2;

/// Spans that are not exported yet, and what became of the others.
#[derive(Debug, Default)]
pub struct Queue {
    spans: Mutex<Vec<Span>>,
    wake: Notify,
    closed: AtomicBool,
    full: AtomicU64,
    pub(super) exported: AtomicU64,
    pub(super) unreachable: AtomicU64,
    pub(super) rejected: AtomicU64,
}

impl Queue {
    /// Adds spans, as long as there is room.
    pub fn push(&self, spans: impl Iterator<Item = Span>) {
        let length = {
            let mut queue = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            for span in spans {
                if queue.len() < MAX_SPANS {
                    queue.push(span);
                } else {
                    self.full.fetch_add(1, Relaxed);
                }
            }
            queue.len()
        };
        if length >= HALF {
            self.wake.notify_one();
        }
    }

    /// Takes everything.
    pub(super) fn take(&self) -> Vec<Span> {
        std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// No more will come: the exporter sends what is there and ends.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// Registered with the registry.
#[derive(Debug)]
pub(in crate::telemetry) struct SpanCollector(pub Arc<Queue>);

impl Collector for SpanCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let exported = ConstCounter::new(self.0.exported.load(Relaxed));
        let help = "Spans that the collector has taken";
        exported.encode(encoder.encode_descriptor("mesh_spans_exported", help, None, MetricType::Counter)?)?;
        let help = "Spans that no collector has: `full`, the queue was; it was `unreachable`; it has `rejected` them";
        let mut family = encoder.encode_descriptor("mesh_spans_dropped", help, None, MetricType::Counter)?;
        let reasons = [("full", &self.0.full), ("unreachable", &self.0.unreachable), ("rejected", &self.0.rejected)];
        for (reason, count) in reasons {
            ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
