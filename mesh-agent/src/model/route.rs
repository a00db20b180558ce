//! Gateway API routes with Service parents: what they match, do and report.
//!
//! The shapes follow `HTTPRoute`, `GRPCRoute`, `TLSRoute` and `TCPRoute` v1 with every default filled in and every
//! reference resolved. What a field means is decided in [`crate::route`]; this file only holds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use regex::{Regex, RegexBuilder};

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

/// A text to compare with, or a pattern.
#[derive(Clone, Debug, PartialEq)]
pub enum TextMatch {
    /// The same bytes.
    Exact(Arc<str>),
    /// The pattern matches the whole.
    Regex(Pattern),
}

/// A regular expression that must match the whole of a text, as the Gateway API wants it.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: Arc<str>,
    regex: Regex,
}

/// Bytes that one compiled pattern may take, and its cache: routes are written by many, memory is the node's.
const PATTERN_BYTES: usize = 256 << 10;

impl Pattern {
    /// Compiles `source` (the syntax of the `regex` crate: no look-around, no back-references, linear time).
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn new(source: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(PATTERN_BYTES)
            .dfa_size_limit(PATTERN_BYTES)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => format!("the pattern takes more than {limit} bytes"),
                other => other.to_string().lines().last().unwrap_or_default().to_owned(),
            })?;
        // `a)(b` would close the group above and so escape the anchors.
        Regex::new(source).map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())?;
        Ok(Self { source: source.into(), regex })
    }

    /// Whether all of `text` matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// What a request must have: all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Its path.
    pub path: PathMatch,
    /// Its method; `None`: any.
    pub method: Option<Method>,
    /// Headers, each name once.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, each name once.
    pub query: Vec<QueryMatch>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// The same bytes.
    Exact(Arc<str>),
    /// A prefix of whole segments.
    Prefix(Arc<str>),
    /// A pattern.
    Regex(Pattern),
    /// `/service/method` of gRPC.
    Grpc {
        /// `package.Service`; `None`: any.
        service: Option<TextMatch>,
        /// `Method`; `None`: any.
        method: Option<TextMatch>,
    },
}

/// What a header must be.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its values, joined by `,`.
    pub value: TextMatch,
}

/// What a query parameter must be.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Its name.
    pub name: Arc<str>,
    /// Its first value, decoded.
    pub value: TextMatch,
}

/// Something done to a request or its answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// `RequestHeaderModifier`.
    RequestHeaders(HeaderEdit),
    /// `ResponseHeaderModifier`.
    ResponseHeaders(HeaderEdit),
    /// `URLRewrite`.
    Rewrite(Rewrite),
    /// `RequestRedirect`.
    Redirect(Redirect),
    /// `RequestMirror`.
    Mirror(Mirror),
    /// `CORS`.
    Cors(Cors),
    /// One that this version does not have: it must not be skipped, so its requests are answered 500.
    Unsupported(Arc<str>),
}

/// Edits of a header map: set, then add, then remove; each name once in each list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdit {
    /// Replace all values.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Append a value.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Remove all values.
    pub remove: Vec<HeaderName>,
}

/// An edit of the request's target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The new authority.
    pub hostname: Option<Arc<str>>,
    /// The new path.
    pub path: Option<PathEdit>,
}

/// A new path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// All of it.
    Full(Arc<str>),
    /// The part that matched.
    Prefix {
        /// The prefix of the rule's match.
        matched: Arc<str>,
        /// What stands there instead.
        replacement: Arc<str>,
    },
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None`: the request's.
    pub scheme: Option<Scheme>,
    /// `None`: the request's.
    pub hostname: Option<Arc<str>>,
    /// `None`: by the scheme, else the port dialled.
    pub port: Option<u16>,
    /// `None`: the request's.
    pub path: Option<PathEdit>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// A scheme of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

impl Scheme {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The well-known port.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A copy of requests, whose answer nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub target: Target,
    /// Of `denominator` requests so many are copied.
    pub numerator: u32,
    /// Not 0.
    pub denominator: u32,
}

/// Cross-origin sharing (the Fetch standard's CORS protocol).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Who may ask.
    pub origins: Vec<OriginMatch>,
    /// `Access-Control-Allow-Credentials: true`.
    pub credentials: bool,
    /// `allowMethods`.
    pub methods: AllowList,
    /// `allowHeaders`.
    pub headers: AllowList,
    /// `exposeHeaders`.
    pub expose: AllowList,
    /// Seconds that a preflight's answer may be kept.
    pub max_age: u32,
}

/// A list in which `*` stands for everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowList {
    /// `*`.
    Any,
    /// These.
    Only(Vec<Arc<str>>),
}

impl Default for AllowList {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// An entry of `allowOrigins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginMatch {
    /// `*`.
    Any,
    /// An origin.
    Origin {
        /// Its scheme.
        scheme: Scheme,
        /// Its host in lower case; with `wildcard`, its end (empty: every host).
        host: Arc<str>,
        /// Anything may stand to the left.
        wildcard: bool,
        /// Its port, the scheme's where none is written.
        port: u16,
    },
}

/// What the mesh says of a route object, as its `status` has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteStatus {
    /// The object.
    pub route: RouteName,
    /// `metadata.generation` of what was judged; 0 where the source has none.
    pub observed_generation: i64,
    /// One for each parent that is ours, in the object's order.
    pub parents: Vec<ParentStatus>,
}

/// What the mesh says of a route at one parent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParentStatus {
    /// The reference, as the object has it.
    pub parent: ParentRef,
    /// `Accepted`.
    pub accepted: Condition,
    /// `ResolvedRefs`.
    pub resolved_refs: Condition,
    /// `PartiallyInvalid`, where rules were dropped.
    pub partially_invalid: Option<Condition>,
}

/// A `parentRef` to a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParentRef {
    /// Namespace of the Service, given or the route's.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// `None`: every port.
    pub port: Option<u16>,
    /// The name of a Service port; `None`: every port.
    pub section_name: Option<Arc<str>>,
}

impl fmt::Display for ParentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        self.section_name.as_ref().map_or(Ok(()), |name| write!(f, " port `{name}`"))
    }
}

/// A condition of a route's status. Its type is the field that holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// `True` or `False`.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence; empty where the reason says it all.
    pub message: Arc<str>,
}

/// The reasons of route conditions: the Gateway API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// In force.
    Accepted,
    /// Every reference leads somewhere.
    ResolvedRefs,
    /// The parent, or its port, is not there.
    NoMatchingParent,
    /// The parent cannot have routes, or no rule is left.
    UnsupportedValue,
    /// A route of a more specific kind has the port.
    Conflicted,
    /// A backend is of a kind that cannot be one.
    InvalidKind,
    /// A backend, or its port, is not there.
    BackendNotFound,
}

impl Reason {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::Conflicted => "Conflicted",
            Self::InvalidKind => "InvalidKind",
            Self::BackendNotFound => "BackendNotFound",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_or_nothing() {
        for (source, text, expected) in [
            ("/v[0-9]+", "/v12", true),
            ("/v[0-9]+", "/v12/x", false),
            ("/v[0-9]+", "x/v12", false),
            ("a|b", "ab", false),
            ("a|b", "b", true),
            ("a", "a\n", false),
            ("", "", true),
        ] {
            assert_eq!(Pattern::new(source).expect(source).is_match(text), expected, "{source} on {text:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_says_why() {
        for (source, reason) in
            [("a)(b", "unopened group"), ("[", "unclosed"), ("(?=a)", "look-around"), ("(a{1000}){1000}", "more than")]
        {
            let error = Pattern::new(source).expect_err(source);
            assert!(error.contains(reason), "{source}: {error}");
        }
    }
}
