//! What is told of each request to the CA: one line in the log, one count.

use std::net::SocketAddr;

use super::log_limit::LogLimit;
use super::service::Answer;
use crate::telemetry::CaMetrics;

/// Tells it. Every request is counted; refusals are logged up to a bound, since strangers can cause them.
#[derive(Debug)]
pub(super) struct Audit {
    metrics: CaMetrics,
    limit: LogLimit,
}

impl Audit {
    pub(super) fn new(metrics: CaMetrics) -> Self {
        Self { metrics, limit: LogLimit::default() }
    }

    /// A request has been answered.
    pub(super) fn record(&self, peer: SocketAddr, answer: &Answer) {
        let outcome = answer.outcome().as_str();
        self.metrics.answered(outcome);
        let node = answer.node.as_ref().map_or("-", |node| node.as_str());
        let subject = answer.subject.as_deref().unwrap_or("-");
        match &answer.result {
            Ok(_) => {
                let serial = answer.serial().unwrap_or_default();
                tracing::info!(%peer, node, subject, serial, outcome, "certificate issued");
            }
            Err(rejection) => {
                if let Some(suppressed) = self.limit.admit() {
                    let reason = &rejection.reason;
                    tracing::warn!(%peer, node, subject, outcome, reason, suppressed, "request rejected");
                }
            }
        }
    }

    /// A handshake came to nothing.
    pub(super) fn handshake_refused(&self, peer: SocketAddr, reason: &str) {
        if let Some(suppressed) = self.limit.admit() {
            tracing::warn!(%peer, reason, suppressed, "handshake refused");
        }
    }

    /// No connection could be taken.
    pub(super) fn accept_failed(&self, error: &std::io::Error) {
        if let Some(suppressed) = self.limit.admit() {
            tracing::warn!(%error, suppressed, "accept failed");
        }
    }
}
