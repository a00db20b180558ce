//! How requests to a Service are spread over its endpoints, sent again and kept from endpoints that fail: what its
//! `TrafficPolicy` says, with every default filled in.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// What holds for the requests to one Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Which endpoint a request goes to.
    pub balancing: Balancing,
    /// How many requests may be sent again.
    pub budget: RetryBudget,
    /// When an endpoint that fails is left alone; `None`: never.
    pub ejection: Option<Ejection>,
}

/// How an endpoint is chosen for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    /// Of two drawn at random, rather the one that answers sooner and has less to do.
    #[default]
    PeakEwma,
    /// Of two drawn at random the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// The one that the request's key belongs to.
    Hash(HashKey),
}

/// What of a request is its key. A request without it goes as by [`Balancing::PeakEwma`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The values of this header.
    Header(HeaderName),
    /// The value of this cookie.
    Cookie(Arc<str>),
    /// The client's address.
    Source,
}

/// How many requests may be sent again: a share of those that came, and a number that is always allowed. The shape is
/// that of the Gateway API's `retryConstraint` (GEP-3388).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of 100 requests that came within [`Self::interval`].
    pub percent: u32,
    /// What the share is counted over.
    pub interval: Duration,
    /// Always allowed within [`Self::min_interval`].
    pub min_count: u32,
    /// What that number is counted over.
    pub min_interval: Duration,
}

impl RetryBudget {
    /// What holds of a `retryConstraint` that does not say otherwise.
    pub const STANDARD: Self =
        Self { percent: 20, interval: Duration::from_secs(10), min_count: 10, min_interval: Duration::from_secs(1) };
}

/// Without a `retryConstraint` a route's `retry` is a promise to whoever wrote it, kept for every request until what is
/// sent again would be a storm of its own.
impl Default for RetryBudget {
    fn default() -> Self {
        Self { min_count: 100, ..Self::STANDARD }
    }
}

/// When an endpoint is left alone because of its answers. Words and defaults are those of Istio's `outlierDetection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// So many failed requests in a row: answers of 500 and above, and none at all.
    pub consecutive: u32,
    /// For how long the first time; each further time without a rest in between doubles it.
    pub base: Duration,
    /// For how long at most.
    pub max: Duration,
    /// With a smaller share of endpoints in use than this, all are used.
    pub min_health_percent: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { consecutive: 5, base: Duration::from_secs(30), max: Duration::from_secs(300), min_health_percent: 50 }
    }
}
