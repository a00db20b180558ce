//! Client side: each request of a captured connection is routed, balanced and sent on.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::attempt::{Caller, Exchange, Plan, Source, Unanswered};
use super::body::{Body, BodyError};
use super::conn::{Connection, To};
use super::downstream::{self, Answering, Client, Handler, Switch, Switched};
use super::kept::Kept;
use super::prefixed::Prefixed;
use super::protocol::{self, Spoken};
use super::taken::Share;
use super::{hop, mirror, record, reply};
use crate::balance;
use crate::model::addr::OrigDst;
use crate::model::outcome::Outcome;
use crate::model::route::{PortRoutes, Scheme, ServiceRef};
use crate::model::service::AppProtocol;
use crate::model::traffic::Balancing;
use crate::model::workload::Workload;
use crate::proxy::failure::Failure;
use crate::proxy::outbound;
use crate::proxy::recheck::{Live, Standing};
use crate::proxy::target::Target;
use crate::proxy::tcp::TcpSide;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::{Pod, Worker};
use crate::route::{self, Answer, AnswerReason, Dialled, Forward, RequestView, Step};
use crate::snapshot::Snapshot;
use crate::telemetry::labels::{Lane, Reporter, Security};
use crate::telemetry::record::{ConnectionRecord, Party};
use crate::telemetry::request::RequestRecord;
use crate::telemetry::requests::Requests;

/// Why a request has no response of an application's.
enum Unserved {
    /// The mesh answers.
    Answer(Box<Answer>),
    /// The application has reset the stream.
    Reset(BodyError),
}

impl From<Answer> for Unserved {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

/// What answers the requests of one captured connection.
struct Outbound {
    caller: Rc<Caller>,
    dialled: SocketAddr,
    requests: Rc<Requests>,
    switched: Switched,
}

/// A captured connection whose requests are to be read, if it has any.
pub(in crate::proxy) struct Start {
    pub(in crate::proxy) pod: Arc<Pod>,
    pub(in crate::proxy) source: Arc<Workload>,
    pub(in crate::proxy) dialled: OrigDst,
    pub(in crate::proxy) peer: SocketAddr,
    /// Where it goes if it has none; `None`: it is declared to have.
    pub(in crate::proxy) opened: Option<Result<(Upstream, Target), Failure>>,
    /// The Service port whose protocol its first bytes tell; `None`: it is declared.
    pub(in crate::proxy) detected: Option<ServiceRef>,
    /// What was read of it.
    pub(in crate::proxy) read: Vec<u8>,
}

/// How long a client that others before it let expect to begin with a request has for that. Clients send it with their
/// handshake's last packet or right behind it; who waits for a greeting, after all, waits so much longer.
const BEGINS_WITHIN: Duration = Duration::from_millis(20);

/// Whether `client` begins with a request, as the last one did that dialled `service`; what it said is in `read`. Then
/// nothing need be dialled ahead: an endpoint that no request goes to would see a connection that nobody uses.
///
/// # Errors
/// The client's.
pub(in crate::proxy) async fn begins_as_others(
    worker: &Worker,
    service: &ServiceRef,
    client: &mut TcpSide,
    read: &mut Vec<u8>,
) -> Result<bool, Failure> {
    if !worker.shared.balancer.had_requests(service) {
        return Ok(false);
    }
    let spoken = protocol::first_bytes(client, None::<&mut TcpSide>, read, &worker.buffers.scratch);
    match tokio::time::timeout(BEGINS_WITHIN, spoken).await {
        Ok(spoken) => Ok(spoken? != Spoken::Other),
        Err(_) => Ok(false),
    }
}

impl Start {
    /// Serves the connection to its end.
    pub(in crate::proxy) async fn serve(
        mut self,
        worker: &Rc<Worker>,
        mut client: TcpSide,
        live: Live,
        mut record: ConnectionRecord,
    ) {
        let server = self.opened.as_mut().and_then(|opened| opened.as_mut().ok()).map(|(upstream, _)| upstream);
        let spoken = protocol::first_bytes(&mut client, server, &mut self.read, &worker.buffers.scratch);
        let spoken = tokio::select! {
            biased;
            ending = live.switch().tripped() => Err(Failure::Ended(ending)),
            spoken = spoken => spoken,
        };
        if let (Some(service), Ok(spoken)) = (&self.detected, &spoken) {
            worker.shared.balancer.has_requests(service, *spoken != Spoken::Other);
        }
        let first = Bytes::from(std::mem::take(&mut self.read));
        let begun = spoken.and_then(|spoken| match (spoken, self.opened.take()) {
            (Spoken::Other, Some(opened)) => opened.map(|opened| (spoken, Some(opened))),
            (_, opened) => Ok((spoken, opened.and_then(Result::ok))),
        });
        match begun {
            Err(failure) => {
                client.reset();
                record.record(failure.ending());
            }
            Ok((Spoken::Other, Some(opened))) => {
                outbound::opaque(worker, Prefixed::new(first, client), opened, live, record).await;
            }
            Ok((spoken, opened)) => {
                record.destination = Party::from(self.dialled.addr());
                (record.lane, record.security) = (Lane::Http, Security::None);
                record.established();
                let side = Prefixed::new(first, client);
                self.requests(worker, side, spoken, opened, live, record).await;
            }
        }
    }

    async fn requests(
        self,
        worker: &Rc<Worker>,
        side: Prefixed<TcpSide>,
        spoken: Spoken,
        opened: Option<(Upstream, Target)>,
        live: Live,
        record: ConnectionRecord,
    ) {
        live.stand_on(Standing::Destination(None));
        let kept = Kept::within(&worker.kept);
        if let Some((upstream, target)) = opened {
            // Dialled while nobody knew what would be spoken: the first request may use it.
            let to = To::of(&target, spoken == Spoken::Http2);
            if let Ok(connection) = Connection::open(worker, upstream, to).await {
                kept.keep(connection);
            }
        }
        let caller = Caller { worker: Rc::clone(worker), pod: self.pod, source: self.source, peer: self.peer, kept };
        let switched = Switched::default();
        let meant_for = (record.destination.clone(), record.service.clone());
        let telemetry = &worker.shared.telemetry;
        let handler = Outbound {
            caller: Rc::new(caller),
            dialled: self.dialled.addr(),
            requests: Requests::new(telemetry, Reporter::Outbound, record.source.clone(), meant_for, Security::None),
            switched: Rc::clone(&switched),
        };
        let record = Rc::new(record);
        let client = Client { side, spoken, live: &live, record: Rc::clone(&record) };
        let served = downstream::serve(worker, client, Rc::new(handler), &switched).await;
        drop(live);
        let failure = served.result.err();
        if let (Some(side), Some(_)) = (served.side, &failure) {
            side.reset();
        }
        if let Some(record) = Rc::into_inner(record) {
            record.record(failure.map_or(Outcome::Ok.into(), |failure| failure.ending()));
        }
    }
}

impl Handler for Outbound {
    fn answer(self: Rc<Self>, request: Request<Incoming>) -> Answering {
        Box::pin(async move { self.respond(request).await })
    }

    fn over(&self, failure: Option<&Failure>) {
        self.requests.over(record::over(failure));
    }
}

impl Outbound {
    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Body>, BodyError> {
        let arrived = Instant::now();
        let (mut parts, incoming) = request.into_parts();
        let record = self.requests.begin(&parts);
        match self.serve(&mut parts, incoming, arrived, &record).await {
            Ok(response) => Ok(record::follow(record, &parts, response)),
            Err(Unserved::Answer(answer)) => {
                record::answered(record, &answer, None);
                Ok(reply::response(*answer, parts.version))
            }
            Err(Unserved::Reset(error)) => {
                record.ended(record::broken(&error));
                Err(error)
            }
        }
    }

    async fn serve(
        &self,
        parts: &mut Parts,
        body: Incoming,
        arrived: Instant,
        record: &RequestRecord,
    ) -> Result<Response<Body>, Unserved> {
        let share = reply::admit(parts, &self.caller.pod, &self.caller.worker, Reporter::Outbound)?;
        hop::disown(&mut parts.headers);
        hop::clean(&mut parts.headers, parts.version);
        let snapshot = self.caller.worker.shared.snapshots.load();
        let Some((service, routes)) = self.routes(&snapshot) else {
            return Err(Answer::new(AnswerReason::NoEndpoints, &RequestView::of(parts), "the Service is gone").into());
        };
        let forward = match routes.as_deref().map(|routes| self.begin(routes, parts)) {
            None => None,
            Some(Step::Forward(forward)) => {
                record.progress().routed(&forward.rule.id);
                Some(forward)
            }
            Some(Step::Answer(answer)) => return Err(answer.into()),
        };
        let service = forward.as_ref().map_or(service, |forward| forward.target.clone());
        let plan =
            Plan { record: Some(record.progress()), ..self.plan(&snapshot, service, parts, forward.as_ref(), arrived) };
        drop(snapshot);
        self.forward(parts, body, plan, share).await
    }

    /// How a request is sent to the endpoints of `service`.
    fn plan<'a>(
        &self,
        snapshot: &Snapshot,
        service: ServiceRef,
        parts: &Parts,
        forward: Option<&'a Forward<'a>>,
        arrived: Instant,
    ) -> Plan<'a> {
        let port = snapshot.service(&service);
        let traffic = port.and_then(|port| port.traffic.as_deref());
        let key = match traffic.map(|traffic| &traffic.balancing) {
            Some(Balancing::Hash(of)) => balance::key(of, &parts.headers, self.caller.peer.ip()),
            _ => None,
        };
        let budget = traffic.map(|traffic| traffic.budget).unwrap_or_default();
        // The application's version is what its port says, else its client's.
        let declared = port.map(|port| port.protocol());
        let h2 = declared == Some(AppProtocol::Http2) || parts.version == Version::HTTP_2;
        Plan { service, key, budget, forward, h2, arrived, record: None }
    }

    /// The service port dialled, and its routes for this client.
    fn routes(&self, snapshot: &Snapshot) -> Option<(ServiceRef, Option<Arc<PortRoutes>>)> {
        let service = snapshot.service_by_vip(self.dialled)?;
        let routes = snapshot.routes_for(service, &self.caller.source.namespace);
        Some((service.reference(), routes.filter(|routes| routes.kind.is_l7()).cloned()))
    }

    fn begin<'a>(&self, routes: &'a PortRoutes, parts: &Parts) -> Step<'a> {
        let dialled = Dialled { port: self.dialled.port(), scheme: Scheme::Http };
        let balancer = &self.caller.worker.shared.balancer;
        route::begin(routes, &RequestView::of(parts), dialled, |rule| balancer.pick_backend(rule))
    }

    async fn forward(
        &self,
        parts: &Parts,
        body: Incoming,
        plan: Plan<'_>,
        share: Share,
    ) -> Result<Response<Body>, Unserved> {
        let mirrors = plan.forward.map(|forward| forward.mirrors(|n| rand::random_range(0..n.max(1))));
        let mirrors: Vec<ServiceRef> = mirrors.into_iter().flatten().cloned().collect();
        let retries = plan.forward.is_some_and(|forward| forward.rule.retry.is_some());
        let shared = &self.caller.worker.shared;
        let room = || self.caller.pod.taken.room(&shared.limits.http, &shared.telemetry);
        let mut source = Source::new(body, (retries || !mirrors.is_empty()).then(room));
        let exchanged = self.caller.exchange(&plan, parts, &mut source).await;
        mirror::send(&self.caller, mirrors, parts, &source);
        match exchanged {
            Ok(exchange) => Ok(self.pass_on(exchange, parts, &plan, share)),
            // The application's own word to its client.
            Err(Unanswered::Broken(error)) if parts.version == Version::HTTP_2 && record::is_reset(&error) => {
                Err(Unserved::Reset(error.into()))
            }
            Err(Unanswered::Broken(error)) if error.is_user() => {
                Err(Answer::new(AnswerReason::BadRequest, &RequestView::of(parts), reply::BODY).into())
            }
            Err(unanswered) => Err(unanswered.answer(&RequestView::of(parts)).into()),
        }
    }

    fn pass_on(&self, exchange: Exchange, request: &Parts, plan: &Plan<'_>, share: Share) -> Response<Body> {
        let Exchange { response, connection, target } = exchange;
        let (mut parts, incoming) = response.into_parts();
        let switches = reply::switches(request, parts.status);
        hop::clean_response(&mut parts, request.version);
        if let Some(forward) = plan.forward {
            Forward::edit_response(forward, &mut parts.headers);
        }
        if switches {
            *self.switched.borrow_mut() =
                Some(Switch { server: connection.switched(), _held: Box::new((target, share)) });
            return Response::from_parts(parts, Body::empty());
        }
        self.caller.kept.keep(connection);
        let body = Body::answer(&parts, incoming);
        Response::from_parts(parts, body.holding((target, share), plan.deadline()))
    }
}
