//! The record of one request: filled by the http lane on the way, written once at its end.
//!
//! The end is that of the answer's body, wherever it comes from; a record that is dropped before it belongs to a
//! client that went away.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, Version};

use super::RequestLog;
use super::access_log::{Side, rfc3339};
use super::labels::{Lane, Reporter, RequestOutcome};
use super::record::{Party, milliseconds, side};
use super::request_line::{self, Line};
use super::request_series::{Counted, GrpcStatus, Response};
use super::requests::{End, Requests, Server};
use super::trace::context::Context;
use super::trace::{self, Kind, Traced};
use crate::model::route::RuleId;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// An answer of the mesh's own, for the log.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// Why, in a word: the header `x-mesh-agent-reason` has it too.
    pub reason: &'static str,
    /// Why, in a sentence that names the object.
    pub detail: &'a str,
    /// The policy that refused the request.
    pub rule: Option<&'a str>,
}

/// What has become of a request so far. Written to by its attempts and its bodies.
#[derive(Debug)]
pub struct Progress {
    of: Rc<Requests>,
    started: Instant,
    method: Method,
    uri: Uri,
    version: Version,
    parent: Option<Context>,
    traced: Option<Traced>,
    route: RefCell<Option<Arc<str>>>,
    end: RefCell<Option<Rc<End>>>,
    audited: RefCell<Vec<Arc<str>>>,
    attempts: Cell<u32>,
    connecting: Cell<Duration>,
    upstream: Cell<Duration>,
    waited: Cell<Duration>,
    head: Cell<Option<Duration>>,
    status: Cell<Option<StatusCode>>,
    grpc: Cell<Option<GrpcStatus>>,
    request_bytes: Cell<u64>,
    response_bytes: Cell<u64>,
}

impl Progress {
    pub(super) fn new(of: Rc<Requests>, head: &Parts) -> Self {
        let telemetry = &of.telemetry;
        let read = telemetry.request_log() != RequestLog::None || telemetry.tracer().is_some();
        let parent = if read { Context::of(&head.headers) } else { None };
        let traced = telemetry.tracer().map(|tracer| tracer.begin(parent));
        Self {
            started: Instant::now(),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            parent,
            traced,
            of,
            route: RefCell::default(),
            end: RefCell::default(),
            audited: RefCell::default(),
            attempts: Cell::default(),
            connecting: Cell::default(),
            upstream: Cell::default(),
            waited: Cell::default(),
            head: Cell::default(),
            status: Cell::default(),
            grpc: Cell::default(),
            request_bytes: Cell::default(),
            response_bytes: Cell::default(),
        }
    }

    /// It has met a route's rule.
    pub fn routed(&self, rule: &RuleId) {
        *self.route.borrow_mut() = Some(self.of.route(rule));
    }

    /// These AUDIT policies match it.
    pub fn audited_by(&self, policies: Vec<Arc<str>>) {
        policies.iter().for_each(|policy| self.of.telemetry.metrics().audited(policy));
        *self.audited.borrow_mut() = policies;
    }

    /// An attempt begins.
    pub fn attempt(&self) {
        self.attempts.set(self.attempts.get().saturating_add(1));
    }

    /// It is to be sent to `server`.
    pub fn chosen(&self, server: Server<'_>) {
        let end = self.of.end(self.route.borrow().as_ref(), Some(server));
        *self.end.borrow_mut() = Some(end);
    }

    /// A connection for it was being opened since then.
    pub fn connected(&self, since: Instant) {
        self.connecting.set(self.connecting.get().saturating_add(since.elapsed()));
    }

    /// An application had it since then, and has answered or broken it off.
    pub fn returned(&self, since: Instant) {
        self.upstream.set(self.upstream.get().saturating_add(since.elapsed()));
    }

    /// So long it waits for its next attempt.
    pub fn waits(&self, wait: Duration) {
        self.waited.set(self.waited.get().saturating_add(wait));
    }

    /// It is sent on with these headers. Whether a `tracestate` among them is another trace's.
    pub fn sends(&self, headers: &mut HeaderMap) -> bool {
        self.traced.as_ref().is_some_and(|traced| traced.sends(headers))
    }

    /// What came of an attempt that is followed by another.
    pub fn sends_again(&self, status: Option<StatusCode>) {
        if let Some(traced) = &self.traced {
            traced.sends_again(status);
        }
    }

    /// Its body is sent from the beginning.
    pub fn body_begins(&self) {
        self.request_bytes.set(0);
    }

    /// Bytes of its body were sent on.
    pub fn sent(&self, bytes: usize) {
        self.request_bytes.set(self.request_bytes.get().saturating_add(bytes as u64));
    }

    /// Whether it came by HTTP/2, where a client can give up one request.
    fn is_stream(&self) -> bool {
        self.version >= Version::HTTP_2
    }
}

/// A request's record; writes itself.
#[derive(Debug)]
pub struct RequestRecord {
    progress: Rc<Progress>,
    done: bool,
}

impl RequestRecord {
    pub(super) fn new(progress: Progress) -> Self {
        Self { progress: Rc::new(progress), done: false }
    }

    /// What others write to.
    #[must_use]
    pub fn progress(&self) -> &Rc<Progress> {
        &self.progress
    }

    /// The head of its answer is on its way to the client.
    pub fn head(&self, status: StatusCode, headers: &HeaderMap) {
        self.progress.head.set(Some(self.progress.started.elapsed()));
        self.progress.status.set(Some(status));
        self.grpc(headers);
    }

    /// Bytes of its answer's body were passed on.
    pub fn received(&self, bytes: usize) {
        let counted = &self.progress.response_bytes;
        counted.set(counted.get().saturating_add(bytes as u64));
    }

    /// The trailers of its answer, or the head of one that is nothing else.
    pub fn grpc(&self, headers: &HeaderMap) {
        if let Some(status) = headers.get(GRPC_STATUS) {
            self.progress.grpc.set(Some(GrpcStatus::parse(status.as_bytes())));
        }
    }

    /// It is over.
    pub fn ended(mut self, outcome: RequestOutcome) {
        self.write(outcome, None);
    }

    /// The mesh has answered it.
    pub fn answered(mut self, answer: &Answered<'_>) {
        let Requests { telemetry, reporter, .. } = &*self.progress.of;
        telemetry.metrics().answered(*reporter, answer.reason);
        self.write(RequestOutcome::Answered, Some(answer));
    }

    fn write(&mut self, outcome: RequestOutcome, answer: Option<&Answered<'_>>) {
        self.done = true;
        let progress = &*self.progress;
        let of = &*progress.of;
        let duration = progress.started.elapsed();
        of.telemetry.metrics().requests_live(of.reporter).dec();
        let end = progress.end.take().unwrap_or_else(|| of.end(progress.route.borrow().as_ref(), None));
        let response = Response {
            status: progress.status.get().map(|status| status.as_u16()),
            grpc: progress.grpc.get(),
            outcome,
        };
        end.series.count(&Counted {
            response,
            duration,
            request_bytes: progress.request_bytes.get(),
            response_bytes: progress.response_bytes.get(),
            retries: progress.attempts.get().saturating_sub(1),
        });
        if let (Some(tracer), Some(traced)) = (of.telemetry.tracer(), &progress.traced) {
            tracer.end(traced, progress.started, || progress.spans_of(&end, response, answer));
        }
        let own = progress.own_time();
        if let Some(own) = own {
            of.telemetry.own_time(of.reporter).observe(own);
        }
        if of.telemetry.request_log().takes(&response) {
            self.log(&end, response, (duration, own), answer);
        }
    }

    fn log(
        &self,
        end: &End,
        response: Response,
        (duration, own): (Duration, Option<Duration>),
        answer: Option<&Answered<'_>>,
    ) {
        let progress = &*self.progress;
        let of = &*progress.of;
        let service = of.service.as_ref();
        let destination = end.json.get_or_init(|| {
            request_line::render(&Side { service: service.map(ToString::to_string), ..side(&end.party) })
        });
        let nonzero = |duration: Duration| (!duration.is_zero()).then(|| milliseconds(duration));
        of.telemetry.access_log().write(&Line {
            time: rfc3339(SystemTime::now()),
            reporter: of.reporter,
            source: of.source_json.get_or_init(|| request_line::render(&side(&of.source))),
            destination,
            lane: Lane::Http,
            security: end.security,
            method: progress.method.as_str(),
            path: request_line::path(&progress.uri),
            protocol: request_line::protocol(progress.version),
            route: end.route.as_deref(),
            status: response.status,
            grpc_status: response.grpc.and_then(GrpcStatus::number),
            outcome: response.outcome,
            answered: answer.map(|answer| answer.reason),
            detail: answer.map_or("", |answer| answer.detail),
            rule: answer.and_then(|answer| answer.rule),
            audited: &progress.audited.borrow(),
            request_bytes: progress.request_bytes.get(),
            response_bytes: progress.response_bytes.get(),
            duration_ms: milliseconds(duration),
            head_ms: progress.head.get().map(milliseconds),
            upstream_ms: nonzero(progress.upstream.get()),
            connect_ms: nonzero(progress.connecting.get()),
            waited_ms: nonzero(progress.waited.get()),
            own_ms: own.map(milliseconds),
            attempts: progress.attempts.get(),
            trace_id: progress.trace().map(Context::trace_id),
        });
    }
}

impl Progress {
    /// The trace that it is part of.
    fn trace(&self) -> Option<&Context> {
        self.traced.as_ref().map(Traced::context).or(self.parent.as_ref())
    }

    /// What its spans say.
    fn spans_of(&self, end: &End, response: Response, answer: Option<&Answered<'_>>) -> trace::Request {
        let name = |party: &Party| (party.workload.clone(), party.namespace.clone());
        let addr = |party: &Party| party.ip.map(|ip| SocketAddr::new(ip, party.port.unwrap_or(0)));
        let (kind, own, peer) = match self.of.reporter {
            Reporter::Outbound => (Kind::Client, &self.of.source, &end.party),
            Reporter::Inbound => (Kind::Server, &end.party, &self.of.source),
        };
        trace::Request {
            kind,
            workload: name(own),
            peer: name(peer),
            client: addr(&self.of.source),
            server: addr(&end.party),
            method: self.method.clone(),
            uri: self.uri.clone(),
            version: self.version,
            route: end.route.clone(),
            response,
            answered: answer.map(|answer| answer.reason),
        }
    }

    /// What the agent itself has added to the time until the answer's head.
    fn own_time(&self) -> Option<Duration> {
        let others = [&self.upstream, &self.connecting, &self.waited].into_iter().map(Cell::get).sum();
        self.head.get().map(|head| head.saturating_sub(others))
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.done {
            let alone =
                if self.progress.is_stream() { RequestOutcome::ClientAborted } else { RequestOutcome::ClientLost };
            self.write(self.progress.of.over.get().unwrap_or(alone), None);
        }
    }
}

impl RequestLog {
    /// Whether a request answered like this has a line.
    fn takes(self, response: &Response) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Failures => {
                let ended = matches!(response.outcome, RequestOutcome::Ok | RequestOutcome::Switched);
                let fine = response.status.is_some_and(|status| status < 400);
                !(ended && fine && matches!(response.grpc, None | Some(GrpcStatus::Known(0))))
            }
        }
    }
}
