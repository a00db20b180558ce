//! What a rule does to a request and to its answer.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::Target;

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
