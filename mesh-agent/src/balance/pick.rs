//! A chosen endpoint, and what becomes of what is sent to it: remembered for those who choose next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::Load;
use super::moment;
use crate::model::addr::EndpointAddr;
use crate::model::service::Endpoint;
use crate::model::traffic::Ejection;

/// What a request counts as that found no connection, or lost it before its answer: an endpoint that fails at once
/// would otherwise seem the quickest of all.
const FAILED: Duration = Duration::from_secs(1);

/// A chosen endpoint. It counts as one connection or request under way until it is dropped.
#[derive(Debug)]
pub struct Pick {
    endpoint: Endpoint,
    load: Arc<Load>,
    ejection: Option<Ejection>,
    born: Instant,
    /// A request was sent and nothing has come of it yet.
    sent: Option<Instant>,
    /// Its one request on probation.
    probes: bool,
}

impl Pick {
    pub(super) fn new(
        endpoint: Endpoint,
        load: Arc<Load>,
        ejection: Option<Ejection>,
        born: Instant,
        now: Instant,
    ) -> Self {
        load.begin();
        let probes = ejection.is_some() && load.with_health(|health| health.chosen(moment(born, now)));
        Self { endpoint, load, ejection, born, sent: None, probes }
    }

    /// The chosen endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> EndpointAddr {
        self.endpoint.addr
    }

    /// A request is sent to it: the time of its answer is counted from `now`.
    pub fn sent_at(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// The head of its answer has come; `failed`: it says that the endpoint could not serve. Returns for how long the
    /// endpoint is ejected, if that is now.
    pub fn answered_at(&mut self, failed: bool, now: Instant) -> Option<Duration> {
        if let Some(sent) = self.sent.take() {
            self.load.observe(now.saturating_duration_since(sent), moment(self.born, now));
        }
        self.judge(failed, now)
    }

    /// It could not be reached, has ended the connection before its answer, or has taken more time than there was.
    /// Returns for how long the endpoint is ejected, if that is now.
    pub fn failed_at(&mut self, now: Instant) -> Option<Duration> {
        let waited = self.sent.take().map_or(FAILED, |sent| now.saturating_duration_since(sent).max(FAILED));
        self.load.observe_at_least(waited, moment(self.born, now));
        self.judge(true, now)
    }

    fn judge(&mut self, failed: bool, now: Instant) -> Option<Duration> {
        let policy = self.ejection?;
        self.probes = false;
        let now = moment(self.born, now);
        self.load.with_health(|health| {
            if failed {
                return health.failed(&policy, now);
            }
            health.succeeded(now);
            None
        })
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.load.end();
        if let Some(sent) = self.sent {
            // Given up by its client: it would have taken at least so long.
            let now = Instant::now();
            self.load.observe_at_least(now.saturating_duration_since(sent), moment(self.born, now));
        }
        if self.probes {
            self.load.with_health(super::health::Health::probe_lost);
        }
    }
}
