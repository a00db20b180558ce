//! One request, from its route to an endpoint's response: attempts, endpoints, time.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{Body, deadline};
use super::conn::{Connection, SendError, To};
use super::hop;
use super::kept::Kept;
use super::record::{self, Watch};
use super::replay::Recorder;
use super::taken::Room;
use crate::balance::Client;
use crate::model::addr::EndpointAddr;
use crate::model::route::{Rule, ServiceRef};
use crate::model::traffic::RetryBudget;
use crate::model::workload::Workload;
use crate::proxy::failure::Failure;
use crate::proxy::target::{Candidates, Goal, Target};
use crate::proxy::upstream;
use crate::proxy::worker::{Pod, Worker};
use crate::route::{Answer, AnswerReason, Forward, RequestView, retry};
use crate::telemetry::labels::Reporter;
use crate::telemetry::request::Progress;

/// Who asks, and what the attempts of its connection share.
pub(super) struct Caller {
    pub(super) worker: Rc<Worker>,
    pub(super) pod: Arc<Pod>,
    pub(super) source: Arc<Workload>,
    pub(super) peer: SocketAddr,
    pub(super) kept: Rc<Kept>,
}

/// A request's body, for one attempt or several.
pub(super) enum Source {
    /// There is none.
    Empty,
    /// It passes through; `None` while it does.
    Once(Option<Body>),
    /// It is kept as it passes.
    Again(Recorder),
}

impl Source {
    /// `again`: it may have to be sent more than once, and there is this room to keep it.
    pub(super) fn new(incoming: Incoming, again: Option<Room>) -> Self {
        match again {
            _ if incoming.is_end_stream() => Self::Empty,
            Some(room) => Self::Again(Recorder::new(incoming, room)),
            None => Self::Once(Some(Body::incoming(incoming))),
        }
    }

    fn body(&mut self, record: Option<&Rc<Progress>>) -> Body {
        let body = match self {
            Self::Empty => return Body::empty(),
            Self::Once(body) => body.take().unwrap_or_else(Body::empty),
            Self::Again(recorder) => Body::replay(recorder.body()),
        };
        let Some(record) = record else { return body };
        record.body_begins();
        body.watched(Watch::Request(Rc::clone(record)))
    }

    /// Takes back a body of which nothing was sent.
    fn restore(&mut self, unsent: Body) {
        if let Self::Once(body) = self {
            *body = Some(unsent);
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_some(),
            Self::Again(recorder) => recorder.can_repeat(),
        }
    }

    /// Whether a request may be sent again although an application may have seen it (RFC 9110 §9.2.2), on a connection
    /// that was ending at the time.
    pub(super) fn may_repeat(&self, head: &Parts) -> bool {
        const IDEMPOTENT: [Method; 6] =
            [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
        IDEMPOTENT.contains(&head.method) && self.can_repeat()
    }

    /// All of it, if it has come and was kept.
    pub(super) fn whole(&self) -> Option<Bytes> {
        match self {
            Self::Empty => Some(Bytes::new()),
            Self::Once(_) => None,
            Self::Again(recorder) => recorder.whole(),
        }
    }
}

/// A response and what it came over.
pub(super) struct Exchange {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    pub(super) target: Target,
}

/// Why a request has no response.
pub(super) enum Unanswered {
    /// No endpoint could be reached.
    Unsent(Failure),
    /// The application may have seen it, and ended the connection or the stream.
    Broken(hyper::Error),
    /// The filters made something of it that is no request.
    Refused(Box<Answer>),
    /// The rule's time was over.
    Late,
    /// It may not be sent again: too many have been.
    OverBudget,
}

/// How a request is to be sent.
pub(super) struct Plan<'a> {
    /// The service port whose endpoints may answer.
    pub(super) service: ServiceRef,
    /// What it is hashed by, if it is.
    pub(super) key: Option<u64>,
    /// How many requests to that service may be sent again.
    pub(super) budget: RetryBudget,
    /// The rule it met, if it met one.
    pub(super) forward: Option<&'a Forward<'a>>,
    /// The application speaks HTTP/2.
    pub(super) h2: bool,
    /// When the request came.
    pub(super) arrived: Instant,
    /// What becomes of it is told here; `None`: it is a copy.
    pub(super) record: Option<&'a Rc<Progress>>,
}

impl Plan<'_> {
    fn note(&self, tell: impl FnOnce(&Progress)) {
        if let Some(record) = self.record {
            tell(record);
        }
    }

    fn rule(&self) -> Option<&Rule> {
        self.forward.map(|forward| forward.rule)
    }

    /// When the whole answer must be there.
    pub(super) fn deadline(&self) -> Option<Instant> {
        deadline(self.arrived, self.rule().and_then(|rule| rule.timeouts.request))
    }
}

impl Caller {
    /// Sends the request until it is answered, or may not be sent again.
    pub(super) async fn exchange(
        &self,
        plan: &Plan<'_>,
        head: &Parts,
        source: &mut Source,
    ) -> Result<Exchange, Unanswered> {
        let balancer = &self.worker.shared.balancer;
        if plan.rule().is_some_and(|rule| rule.retry.is_some()) {
            balancer.requested(&plan.service, &plan.budget);
        }
        let (mut retries, mut tried) = (0, Vec::new());
        loop {
            let outcome = self.attempt(plan, head, source, &mut tried).await;
            let retry = plan.rule().and_then(|rule| rule.retry.as_ref()).filter(|_| source.can_repeat());
            let Some(retry) = retry.filter(|retry| is_retriable(retry, &outcome)) else { return outcome };
            retries += 1;
            let Some(wait) = retry::wait_before(retry, retries, |n| rand::random_range(0..n)) else { return outcome };
            let until = Instant::now() + wait;
            if plan.deadline().is_some_and(|deadline| deadline <= until) {
                // There is no time for another: what there is, is the answer.
                return outcome;
            }
            let status = outcome.as_ref().ok().map(|exchange| exchange.response.status());
            if let Ok(Exchange { connection, .. }) = outcome {
                self.kept.keep(connection);
            }
            if !balancer.may_retry(&plan.service, &plan.budget) {
                self.worker.shared.telemetry.metrics().limited(Reporter::Outbound, "retry_budget");
                return Err(Unanswered::OverBudget);
            }
            plan.note(|record| {
                record.sends_again(status);
                record.waits(wait);
            });
            tokio::time::sleep_until(until).await;
        }
    }

    /// One attempt: several endpoints while none has seen the request, those of earlier attempts last.
    async fn attempt(
        &self,
        plan: &Plan<'_>,
        head: &Parts,
        source: &mut Source,
        tried: &mut Vec<EndpointAddr>,
    ) -> Result<Exchange, Unanswered> {
        plan.note(Progress::attempt);
        let each = plan.rule().and_then(|rule| rule.timeouts.backend_request);
        let until = [plan.deadline(), deadline(Instant::now(), each)].into_iter().flatten().min();
        let mut parts = copy(head);
        if let Some(forward) = plan.forward {
            forward.edit_request(&mut parts).map_err(|answer| Unanswered::Refused(Box::new(answer)))?;
        }
        hop::convert(&mut parts, plan.h2);
        plan.note(|record| record::sends(record, &mut parts.headers));
        let balancer = &self.worker.shared.balancer;
        let client = Client::new(&self.source, self.peer.ip());
        let goal = Goal::Request(plan.service.clone(), plan.key);
        let mut candidates = Candidates::new(balancer, client, goal).avoiding(tried);
        let mut failed = None;
        loop {
            let snapshot = self.worker.shared.snapshots.load();
            let mut target = candidates.next(&snapshot, failed.take()).map_err(Unanswered::Unsent)?;
            plan.note(|record| record.chosen(record::server(&target)));
            tried.push(target.addr());
            let Some(sent) = within(until, self.to_endpoint(plan, &parts, source, &mut target)).await else {
                self.ejected(plan, target.failed(), &target);
                return Err(Unanswered::Late);
            };
            match sent {
                Ok((response, connection)) => {
                    self.ejected(plan, target.answered(says_failed(&response)), &target);
                    return Ok(Exchange { response, connection, target });
                }
                Err(Ok(failure)) => {
                    if failure.is_retryable() {
                        self.ejected(plan, target.failed(), &target);
                    }
                    failed = Some(failure);
                }
                Err(Err(error)) => {
                    // What the client has broken off says nothing of the endpoint.
                    if !error.is_user() {
                        self.ejected(plan, target.failed(), &target);
                    }
                    return Err(Unanswered::Broken(error));
                }
            }
        }
    }

    /// Sends it to one endpoint, on a connection that is kept or a new one. The inner error is [`send`]'s.
    async fn to_endpoint(
        &self,
        plan: &Plan<'_>,
        parts: &Parts,
        source: &mut Source,
        target: &mut Target,
    ) -> Result<(Response<Incoming>, Connection), Result<Failure, hyper::Error>> {
        let connection = self.connection(plan, target).await.map_err(Ok)?;
        target.sent();
        let fresh = async || self.fresh(plan, target).await;
        send(connection, (target.addr().addr(), plan.record), parts, source, fresh).await
    }

    /// Counts and logs an endpoint that is ejected now.
    fn ejected(&self, plan: &Plan<'_>, out_for: Option<Duration>, target: &Target) {
        let Some(out_for) = out_for else { return };
        self.worker.shared.telemetry.metrics().ejected();
        let (endpoint, service) = (target.addr(), &plan.service);
        tracing::info!(%endpoint, %service, ?out_for, "left alone: requests to it failed (outlierDetection)");
    }

    /// A connection that is kept, else a new one.
    async fn connection(&self, plan: &Plan<'_>, target: &Target) -> Result<Connection, Failure> {
        let to = To::of(target, plan.h2);
        self.kept.take_or_open(&to, async || self.fresh(plan, target).await).await
    }

    async fn fresh(&self, plan: &Plan<'_>, target: &Target) -> Result<Connection, Failure> {
        let since = Clock::now();
        let opened = upstream::open(&self.worker, &self.pod, &self.source, self.peer, target).await;
        plan.note(|record| record.connected(since));
        Connection::open(&self.worker, opened?, To::of(target, plan.h2)).await
    }
}

/// Sends a request on `connection`, and on a fresh one if that had ended before. The inner error: `to` cannot be
/// connected to, or the request was broken off.
pub(super) async fn send(
    mut connection: Connection,
    (to, record): (SocketAddr, Option<&Rc<Progress>>),
    parts: &Parts,
    source: &mut Source,
    fresh: impl AsyncFn() -> Result<Connection, Failure>,
) -> Result<(Response<Incoming>, Connection), Result<Failure, hyper::Error>> {
    let mut request = Request::from_parts(copy(parts), source.body(record));
    // A connection that was kept may have been ended by the application since; so may, in theory, each fresh one.
    for _ in 0..2 {
        let since = Clock::now();
        let sent = connection.send(request).await;
        if let Some(record) = record {
            record.returned(since);
        }
        match sent {
            Ok(response) => return Ok((response, connection)),
            Err(SendError::Unsent(unsent)) => request = *unsent,
            Err(SendError::Broken(_)) if connection.was_kept() && source.may_repeat(parts) => {
                request = Request::from_parts(copy(parts), source.body(record));
            }
            Err(SendError::Broken(error)) => return Err(Err(error)),
        }
        connection = match fresh().await {
            Ok(connection) => connection,
            Err(failure) => {
                source.restore(request.into_body());
                return Err(Ok(failure));
            }
        };
    }
    source.restore(request.into_body());
    let reason = "it ends every connection before a request".to_owned();
    Err(Ok(Failure::Tunnel { with: to, reason }))
}

fn is_retriable(retry: &crate::model::route::Retry, outcome: &Result<Exchange, Unanswered>) -> bool {
    match outcome {
        Ok(exchange) => retry::is_retriable(retry, exchange.response.status()),
        Err(Unanswered::Unsent(failure)) => failure.is_retryable(),
        Err(Unanswered::Broken(_)) => true,
        Err(Unanswered::Late) => retry::is_retriable(retry, http::StatusCode::GATEWAY_TIMEOUT),
        Err(Unanswered::Refused(_) | Unanswered::OverBudget) => false,
    }
}

/// Whether an answer says that its endpoint could not serve.
fn says_failed(response: &Response<Incoming>) -> bool {
    /// gRPC's `UNAVAILABLE`, of an answer that is nothing but its head.
    const UNAVAILABLE: &[u8] = b"14";
    let grpc_status = response.headers().get("grpc-status");
    response.status().is_server_error() || grpc_status.is_some_and(|status| status.as_bytes() == UNAVAILABLE)
}

/// `None`: it took longer.
async fn within<T>(until: Option<Instant>, what: impl Future<Output = T>) -> Option<T> {
    match until {
        None => Some(what.await),
        Some(until) => tokio::time::timeout_at(until, what).await.ok(),
    }
}

/// A head to change and send, with what hyper remembers of the names' case.
pub(super) fn copy(head: &Parts) -> Parts {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = head.method.clone();
    parts.uri = head.uri.clone();
    parts.version = head.version;
    parts.headers = head.headers.clone();
    parts.extensions = head.extensions.clone();
    parts
}

impl Unanswered {
    /// What the client is told.
    pub(super) fn answer(&self, request: &RequestView<'_>) -> Answer {
        match self {
            Self::Unsent(failure) => super::reply::unsent(failure, request),
            Self::Broken(error) => Answer::new(AnswerReason::UpstreamBroken, request, &error.to_string()),
            Self::Refused(answer) => (**answer).clone(),
            Self::Late => Answer::new(AnswerReason::Timeout, request, "the rule's time was over"),
            Self::OverBudget => {
                let why = "it failed, and as many requests to the Service were sent again as may be (retryConstraint)";
                Answer::new(AnswerReason::RetryBudget, request, why)
            }
        }
    }
}
