//! Gateway API routes with Service parents: what they match, do and report.
//!
//! The shapes follow `HTTPRoute`, `GRPCRoute`, `TLSRoute` and `TCPRoute` v1 with every default filled in and every
//! reference resolved. What a field means is decided in [`crate::route`]; this folder only holds it.

mod filter;
mod matching;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

pub use self::filter::{AllowList, Cors, Filter, HeaderEdit, Mirror, OriginMatch, PathEdit, Redirect, Rewrite, Scheme};
pub use self::matching::{HeaderMatch, Match, PathMatch, Pattern, QueryMatch, TextMatch};
pub use self::status::{Condition, ParentRef, ParentStatus, Reason, RouteStatus};

/// The routes of one Service port for the clients of one scope.
#[derive(Clone, Debug, PartialEq)]
pub struct PortRoutes {
    /// The parent and the port that its clients dial.
    pub service: ServiceRef,
    /// The namespace whose clients these are for; `None`: everybody without routes of their own (producer routes).
    pub consumer: Option<Arc<str>>,
    /// The one kind in force on this port.
    pub kind: RouteKind,
    /// Every match of every rule, the one to be preferred first.
    pub candidates: Vec<Candidate>,
}

/// One way to match a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What a request must have.
    pub matching: Match,
    /// What becomes of it then.
    pub rule: Arc<Rule>,
}

/// A Service port by name: the key of [`crate::snapshot::Snapshot::service`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceRef {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// `spec.ports[].port`.
    pub port: u16,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// The kinds of route; of two on one port the lesser one is in force (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// `GRPCRoute`.
    Grpc,
    /// `HTTPRoute`.
    Http,
    /// `TLSRoute`.
    Tls,
    /// `TCPRoute`.
    Tcp,
}

impl RouteKind {
    /// The object's kind.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// Whether its rules look into requests.
    #[must_use]
    pub fn is_l7(self) -> bool {
        matches!(self, Self::Grpc | Self::Http)
    }
}

/// The name of a route object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    /// Its kind.
    pub kind: RouteKind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// The name of a rule: the same in every snapshot while its object stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// The object.
    pub route: RouteName,
    /// Its place in `spec.rules`.
    pub index: usize,
    /// `name`, where the rule has one.
    pub name: Option<Arc<str>>,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules[{}]", self.route, self.index)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " `{name}`"))
    }
}

/// What becomes of the requests that a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name.
    pub id: RuleId,
    /// Applied in order, before those of the backend.
    pub filters: Vec<Filter>,
    /// Never empty, unless the rule only redirects.
    pub backends: Vec<Backend>,
    /// Limits on time.
    pub timeouts: Timeouts,
    /// When to try again.
    pub retry: Option<Retry>,
}

/// `timeouts`. Not given and `0s` both mean no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's arrival to the end of the answer, retries included.
    pub request: Option<Duration>,
    /// One attempt.
    pub backend_request: Option<Duration>,
}

/// `retry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often a request may be sent again.
    pub attempts: u32,
    /// Statuses to try again after; failed connections always count.
    pub codes: Vec<StatusCode>,
    /// The least time between two attempts.
    pub backoff: Duration,
}

/// One of a rule's destinations.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Where to.
    pub target: Target,
    /// Its share is this over the sum of all.
    pub weight: u32,
    /// Applied to what goes there.
    pub filters: Vec<Filter>,
}

/// Where a backend reference leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the endpoints of a Service port.
    Service(ServiceRef),
    /// Nowhere.
    Invalid {
        /// Why, as the route's status has it.
        reason: Reason,
        /// Why, in a sentence.
        message: Arc<str>,
    },
}
