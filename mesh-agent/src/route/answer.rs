//! Answers that the mesh gives itself, with the reason that tells them from the application's.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::RequestView;

/// The header that says why the mesh answered.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-mesh-agent-reason");
/// Names the policy that denies, where the operator wants clients to know.
pub const POLICY_HEADER: HeaderName = HeaderName::from_static("x-mesh-agent-policy");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why the mesh answers a request itself: one word in header, log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnswerReason {
    /// The port has routes and none matches.
    NoRoute,
    /// The backend drawn does not exist or cannot be one.
    InvalidBackend,
    /// No backend has a weight.
    NoBackend,
    /// The rule has a filter that this version does not know.
    UnsupportedFilter,
    /// The backend's service has no endpoint that may be used.
    NoEndpoints,
    /// A rule sends the client elsewhere.
    Redirect,
    /// The answer to a CORS preflight.
    Preflight,
    /// The rule's time is over.
    Timeout,
    /// The request cannot be forwarded as it is.
    BadRequest,
    /// An authorization policy refuses it.
    Denied,
    /// No endpoint could be connected to.
    Unreachable,
    /// The application ended the connection before its answer.
    UpstreamBroken,
    /// As many requests to the Service were sent again as may be.
    RetryBudget,
    /// The pod has as many requests as it may.
    Overloaded,
    /// The request's head is larger than is let through.
    HeadTooLarge,
}

impl AnswerReason {
    /// Every reason, for metric registration and documentation.
    pub const ALL: [Self; 15] = [
        Self::NoRoute,
        Self::InvalidBackend,
        Self::NoBackend,
        Self::UnsupportedFilter,
        Self::NoEndpoints,
        Self::Redirect,
        Self::Preflight,
        Self::Timeout,
        Self::BadRequest,
        Self::Denied,
        Self::Unreachable,
        Self::UpstreamBroken,
        Self::RetryBudget,
        Self::Overloaded,
        Self::HeadTooLarge,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::InvalidBackend => "invalid_backend",
            Self::NoBackend => "no_backend",
            Self::UnsupportedFilter => "unsupported_filter",
            Self::NoEndpoints => "no_endpoints",
            Self::Redirect => "redirect",
            Self::Preflight => "preflight",
            Self::Timeout => "timeout",
            Self::BadRequest => "bad_request",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::UpstreamBroken => "upstream_broken",
            Self::RetryBudget => "retry_budget",
            Self::Overloaded => "overloaded",
            Self::HeadTooLarge => "head_too_large",
        }
    }

    /// The status of HTTP, and of gRPC (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>); `None`: a gRPC
    /// client gets the HTTP status too.
    fn statuses(self) -> (StatusCode, Option<u8>) {
        match self {
            Self::NoRoute => (StatusCode::NOT_FOUND, Some(GRPC_UNIMPLEMENTED)),
            Self::InvalidBackend | Self::NoBackend | Self::UnsupportedFilter => {
                (StatusCode::INTERNAL_SERVER_ERROR, Some(GRPC_UNAVAILABLE))
            }
            Self::NoEndpoints | Self::Unreachable | Self::RetryBudget | Self::Overloaded => {
                (StatusCode::SERVICE_UNAVAILABLE, Some(GRPC_UNAVAILABLE))
            }
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Some(GRPC_RESOURCE_EXHAUSTED)),
            Self::UpstreamBroken => (StatusCode::BAD_GATEWAY, Some(GRPC_UNAVAILABLE)),
            Self::Redirect => (StatusCode::FOUND, None),
            Self::Preflight => (StatusCode::NO_CONTENT, None),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, Some(GRPC_DEADLINE_EXCEEDED)),
            Self::BadRequest => (StatusCode::BAD_REQUEST, Some(GRPC_INTERNAL)),
            Self::Denied => (StatusCode::FORBIDDEN, Some(GRPC_PERMISSION_DENIED)),
        }
    }
}

const GRPC_DEADLINE_EXCEEDED: u8 = 4;
const GRPC_PERMISSION_DENIED: u8 = 7;
const GRPC_RESOURCE_EXHAUSTED: u8 = 8;
const GRPC_UNIMPLEMENTED: u8 = 12;
const GRPC_INTERNAL: u8 = 13;
const GRPC_UNAVAILABLE: u8 = 14;

/// An answer of the mesh: a head without a body. For a gRPC request it is a trailers-only response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status; 200 for gRPC.
    pub status: StatusCode,
    /// Its headers, [`REASON_HEADER`] among them.
    pub headers: HeaderMap,
    /// Why it is given.
    pub reason: AnswerReason,
    /// One sentence for the log: it may name objects that the client is not to know.
    pub detail: Arc<str>,
}

impl Answer {
    /// The answer to `request` for `reason`; `detail` says which object and why.
    #[must_use]
    pub fn new(reason: AnswerReason, request: &RequestView<'_>, detail: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
        let status = match reason.statuses() {
            (_, Some(code)) if is_grpc(request.headers) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code)));
                headers.insert(GRPC_MESSAGE, HeaderValue::from_static(reason.as_str()));
                StatusCode::OK
            }
            (status, _) => status,
        };
        Self { status, headers, reason, detail: detail.into() }
    }
}

/// Whether a request is gRPC (`application/grpc`, with or without a message format); gRPC-Web is not.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}
