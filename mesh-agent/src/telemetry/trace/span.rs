//! A finished span, and its account in the words of OpenTelemetry's semantic conventions for HTTP and RPC.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode, Uri, Version};

use super::otlp::{self, KeyValue};
use crate::telemetry::labels::RequestOutcome;
use crate::telemetry::request_line;
use crate::telemetry::request_series::{GrpcStatus, Response};

/// Methods that may be the name of a span (RFC 9110, RFC 5789): others are the client's invention.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];
/// Names of gRPC's statuses, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Statuses of gRPC that are the server's fault: its own span fails by these alone.
const GRPC_SERVERS: [u8; 6] = [2, 4, 12, 13, 14, 15];

/// Whose span it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The client's: its node has sent the request on.
    Client,
    /// The server's: its node has given the request to the application.
    Server,
}

/// What the spans of one request have in common.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose spans they are.
    pub kind: Kind,
    /// Workload and namespace whose spans they are: what a dashboard knows a service by.
    pub workload: (Option<Arc<str>>, Option<Arc<str>>),
    /// The other side's.
    pub peer: (Option<Arc<str>>, Option<Arc<str>>),
    /// Where the client connects from.
    pub client: Option<SocketAddr>,
    /// Where the server listens.
    pub server: Option<SocketAddr>,
    /// The request's method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// Its version.
    pub version: Version,
    /// The rule that it met.
    pub route: Option<Arc<str>>,
    /// What it was answered.
    pub response: Response,
    /// Why the mesh answered.
    pub answered: Option<&'static str>,
}

/// A finished span.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its trace.
    pub trace: u128,
    /// Its own id.
    pub id: u64,
    /// The span that it is part of.
    pub parent: Option<u64>,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    pub end_ns: u64,
    /// Which of the request's attempts it is, from 0.
    pub number: usize,
    /// It was followed by another, with this answer if it had one.
    pub early: Option<Option<StatusCode>>,
    /// What it is about.
    pub request: Arc<Request>,
}

impl Span {
    /// As the protocol has it.
    pub(super) fn message(&self) -> otlp::Span {
        let request = &*self.request;
        let failed = self.failure();
        let mut attributes = request.attributes();
        let status = self.early.map_or(request.response.status, |early| early.map(|status| status.as_u16()));
        if let Some(status) = status {
            attributes.push(KeyValue::int("http.response.status_code", status.into()));
        }
        if let Ok(number @ 1..) = i64::try_from(self.number) {
            attributes.push(KeyValue::int("http.request.resend_count", number));
        }
        if let Some(failed) = &failed {
            attributes.push(KeyValue::text("error.type", failed));
        }
        otlp::Span {
            trace_id: self.trace.to_be_bytes().to_vec(),
            span_id: self.id.to_be_bytes().to_vec(),
            parent_span_id: self.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            name: request.name(),
            kind: match request.kind {
                Kind::Server => otlp::KIND_SERVER,
                Kind::Client => otlp::KIND_CLIENT,
            },
            start_time_unix_nano: self.start_ns,
            end_time_unix_nano: self.end_ns,
            attributes,
            status: failed.map(|_| otlp::Status { code: otlp::STATUS_ERROR }),
        }
    }

    /// Why it counts as failed: a status, or a word of how it ended.
    fn failure(&self) -> Option<String> {
        let Response { status, grpc, outcome } = self.request.response;
        let client = self.request.kind == Kind::Client;
        if let Some(early) = self.early {
            return Some(early.map_or_else(|| "unanswered".to_owned(), |status| status.as_u16().to_string()));
        }
        let fine = [RequestOutcome::Ok, RequestOutcome::Answered, RequestOutcome::Switched].contains(&outcome);
        if !fine {
            return Some(outcome.as_str().to_owned());
        }
        if let Some(grpc) =
            grpc.filter(|grpc| grpc.number().is_none_or(|n| client && n > 0 || GRPC_SERVERS.contains(&n)))
        {
            return Some(grpc_name(grpc).to_owned());
        }
        status.filter(|status| *status >= if client { 400 } else { 500 }).map(|status| status.to_string())
    }
}

impl Request {
    fn name(&self) -> String {
        match self.rpc() {
            Some(method) => method.to_owned(),
            None if METHODS.contains(&self.method) => self.method.as_str().to_owned(),
            None => "HTTP".to_owned(),
        }
    }

    /// `package.Service/Method`, of a request that was answered in gRPC.
    fn rpc(&self) -> Option<&str> {
        self.response.grpc.and_then(|_| self.uri.path().strip_prefix('/'))
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let path = request_line::path(&self.uri);
        let known = METHODS.contains(&self.method);
        let mut attributes = vec![
            KeyValue::text("http.request.method", if known { self.method.as_str() } else { "_OTHER" }),
            KeyValue::text("network.protocol.name", "http"),
            KeyValue::text(
                "network.protocol.version",
                request_line::protocol(self.version).trim_start_matches("HTTP/"),
            ),
            KeyValue::text("mesh_agent.outcome", self.response.outcome.as_str()),
        ];
        let mut text = |key, value: &str| attributes.push(KeyValue::text(key, value));
        if !known {
            text("http.request.method_original", self.method.as_str());
        }
        match (self.kind, self.server) {
            // Its query may hold secrets.
            (Kind::Client, Some(server)) => text("url.full", &format!("http://{server}{path}")),
            _ => {
                text("url.scheme", "http");
                text("url.path", path);
            }
        }
        if let Some(method) = self.rpc() {
            text("rpc.system.name", "grpc");
            text("rpc.method", method);
        }
        if let Some(grpc) = self.response.grpc {
            text("rpc.response.status_code", grpc_name(grpc));
        }
        if let Some(route) = &self.route {
            text("mesh_agent.route", route);
        }
        if let Some(answered) = self.answered {
            text("mesh_agent.answered", answered);
        }
        if let (Some(workload), Some(namespace)) = &self.peer {
            text("mesh_agent.peer", &format!("{namespace}/{workload}"));
        }
        if let (Kind::Server, Some(client)) = (self.kind, self.client) {
            text("client.address", &client.ip().to_string());
        }
        if let Some(server) = self.server {
            text("server.address", &server.ip().to_string());
            attributes.push(KeyValue::int("server.port", server.port().into()));
        }
        attributes
    }
}

fn grpc_name(status: GrpcStatus) -> &'static str {
    let known = status.number().and_then(|number| GRPC.get(usize::from(number)));
    known.copied().unwrap_or("_OTHER")
}
