//! Server side: each request that reaches a port with rules about requests is put to them, by the proven identity of
//! its client and by the rules as they are at that moment.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;

use super::attempt::{Source, copy, send};
use super::body::{Body, BodyError};
use super::conn::{Connection, To};
use super::downstream::{self, Answering, Client, Handler, Served, Switch, Switched};
use super::in_flight::{Guard, InFlight};
use super::kept::Kept;
use super::prefixed::Prefixed;
use super::protocol::{self, Spoken};
use super::taken::Share;
use super::{hop, record, reply};
use crate::model::addr::EndpointAddr;
use crate::policy::{Denial, Permit, RequestFacts, audited, authorize, authorize_request};
use crate::proxy::connect;
use crate::proxy::copy::{Side, both_ways};
use crate::proxy::failure::Failure;
use crate::proxy::inbound::Carried;
use crate::proxy::recheck::{Live, Standing};
use crate::proxy::tcp::TcpSide;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::{Pod, Worker};
use crate::route::{Answer, AnswerReason, POLICY_HEADER, RequestView};
use crate::telemetry::labels::{Lane, Reporter};
use crate::telemetry::record::ConnectionRecord;
use crate::telemetry::request::RequestRecord;
use crate::telemetry::requests::Requests;

/// What answers the requests of one connection to an application.
struct Inbound {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    /// Who asks, as the application sees it.
    from: SocketAddr,
    target: SocketAddr,
    /// The connection may be; each request is asked for by itself.
    permit: Permit,
    kept: Kept,
    h2: bool,
    switched: Switched,
    in_flight: Rc<InFlight>,
    requests: Rc<Requests>,
}

/// The application's side of a connection.
pub(in crate::proxy) struct Application {
    pub(in crate::proxy) pod: Arc<Pod>,
    pub(in crate::proxy) from: SocketAddr,
    pub(in crate::proxy) target: SocketAddr,
    pub(in crate::proxy) permit: Permit,
    /// Open already: a client learns of a closed port at once.
    pub(in crate::proxy) server: TcpSide,
}

/// Carries one connection to the application, whose requests are to be read. What is no HTTP is passed on only where
/// the rules permit a connection that nobody reads.
pub(in crate::proxy) async fn carry<S: Side + 'static>(
    worker: &Rc<Worker>,
    mut application: Application,
    mut side: S,
    live: Live,
    mut record: ConnectionRecord,
) -> Carried<S> {
    let mut first = Vec::new();
    let spoken = protocol::first_bytes(&mut side, Some(&mut application.server), &mut first, &worker.buffers.scratch);
    let spoken = tokio::select! {
        biased;
        ending = live.switch().tripped() => Err(Failure::Ended(ending)),
        spoken = spoken => spoken,
    };
    match spoken {
        Ok(Spoken::Other) => opaque(worker, application, Prefixed::new(first.into(), side), &live, record).await,
        Ok(spoken) => {
            record.lane = Lane::Http;
            record.established();
            let record = Rc::new(record);
            let side = Prefixed::new(first.into(), side);
            let client = Client { side, spoken, live: &live, record: Rc::clone(&record) };
            let served = serve(worker, application, client).await;
            let record = Rc::into_inner(record).unwrap_or_else(|| worker.shared.telemetry.open(Reporter::Inbound));
            Carried { side: served.side, ended: served.ended, result: served.result, record }
        }
        Err(failure) => {
            application.server.reset();
            Carried { side: Some(side), ended: false, result: Err(failure), record }
        }
    }
}

/// Passes bytes on as they are, if that is permitted.
async fn opaque<S: Side>(
    worker: &Rc<Worker>,
    mut application: Application,
    mut side: Prefixed<S>,
    live: &Live,
    mut record: ConnectionRecord,
) -> Carried<S> {
    record.established();
    let snapshot = worker.shared.snapshots.load();
    let result = match authorize(&snapshot, application.permit.flow().clone()) {
        Err(denial) => Err(denial.into()),
        Ok(permit) => {
            // In the same turn as the decision.
            live.stand_on(Standing::Permit(permit));
            let scratch = &worker.buffers.scratch;
            both_ways(&mut side, &mut application.server, scratch, live.switch(), record.meter()).await
        }
    };
    if result.is_err() {
        application.server.reset();
    }
    Carried { side: Some(side.into_inner()), ended: result.is_ok(), result, record }
}

/// Serves one connection to the application, whose first bytes are HTTP, to its end.
async fn serve<S: Side + 'static>(worker: &Rc<Worker>, application: Application, client: Client<'_, S>) -> Served<S> {
    let Application { pod, from, target, permit, server } = application;
    let h2 = client.spoken == Spoken::Http2;
    let switched = Switched::default();
    let in_flight = Rc::<InFlight>::default();
    client.live.stand_on(Standing::Requests(permit.clone(), Rc::clone(&in_flight)));
    let handler = Inbound {
        worker: Rc::clone(worker),
        pod,
        from,
        target,
        permit,
        kept: Kept::default(),
        h2,
        switched: Rc::clone(&switched),
        in_flight: Rc::clone(&in_flight),
        requests: requests_of(worker, &client.record),
    };
    if let Ok(connection) = Connection::open(worker, Upstream::Plain(server), handler.to()).await {
        handler.kept.keep(connection);
    }
    downstream::serve(worker, client, Rc::new(handler), &switched).await
}

/// The requests of the connection that `record` is about.
fn requests_of(worker: &Worker, record: &ConnectionRecord) -> Rc<Requests> {
    let (telemetry, served) = (&worker.shared.telemetry, (record.destination.clone(), None));
    Requests::new(telemetry, Reporter::Inbound, record.source.clone(), served, record.security)
}

impl Handler for Inbound {
    fn answer(self: Rc<Self>, request: Request<Incoming>) -> Answering {
        Box::pin(async move { self.respond(request).await })
    }

    fn over(&self, failure: Option<&Failure>) {
        self.requests.over(record::over(failure));
    }
}

impl Inbound {
    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Body>, BodyError> {
        let (mut parts, incoming) = request.into_parts();
        let version = parts.version;
        let record = self.requests.begin(&parts);
        let share = match reply::admit(&parts, &self.pod, &self.worker, Reporter::Inbound) {
            Ok(share) => share,
            Err(answer) => return Ok(self.reply(answer, &parts, None, record)),
        };
        hop::disown(&mut parts.headers);
        if let Err(denial) = self.authorize(&parts, &record) {
            let mut answer = Answer::new(AnswerReason::Denied, &RequestView::of(&parts), &denial.reason);
            if self.worker.shared.limits.http.tell_policy
                && let Ok(policy) = HeaderValue::from_str(&denial.rule)
            {
                answer.headers.insert(POLICY_HEADER, policy);
            }
            return Ok(self.reply(answer, &parts, Some(&denial), record));
        }
        // In the same turn as the decision.
        let asked = Rc::new(parts);
        let guard = self.in_flight.enter(&asked);
        let mut parts = copy(&asked);
        hop::clean(&mut parts.headers, version);
        hop::convert(&mut parts, self.h2);
        record::sends(record.progress(), &mut parts.headers);
        let mut source = Source::new(incoming, None);
        match self.exchange(&parts, &mut source, &record).await {
            Ok((response, connection)) => {
                let response = self.pass_on(response, connection, &parts, (guard, share));
                Ok(record::follow(record, &parts, response))
            }
            Err(Err(error)) if error.is_user() => {
                let answer = Answer::new(AnswerReason::BadRequest, &RequestView::of(&parts), reply::BODY);
                Ok(self.reply(answer, &parts, None, record))
            }
            // The application's own word to its client: the stream, or the connection, ends as it ended.
            Err(Err(error)) => {
                let error = error.into();
                record.ended(record::broken(&error));
                Err(error)
            }
            Err(Ok(failure)) => {
                let answer = reply::unsent(&failure, &RequestView::of(&parts));
                Ok(self.reply(answer, &parts, None, record))
            }
        }
    }

    /// Puts the request to the rules now in force.
    fn authorize(&self, parts: &Parts, record: &RequestRecord) -> Result<(), Denial> {
        let snapshot = self.worker.shared.snapshots.load();
        let facts = RequestFacts::of(parts);
        let flow = self.permit.flow();
        record.progress().audited_by(audited(&snapshot, flow, Some(&facts)));
        authorize_request(flow, &facts, &snapshot).map(|_permit| ())
    }

    /// An answer of ours, counted and logged as such.
    fn reply(&self, answer: Answer, request: &Parts, denial: Option<&Denial>, record: RequestRecord) -> Response<Body> {
        if let Some(denial) = denial {
            self.worker.shared.telemetry.metrics().denied(&denial.rule, denial.outcome);
        }
        record::answered(record, &answer, denial.map(|denial| &*denial.rule));
        reply::response(answer, request.version)
    }

    fn to(&self) -> To {
        To { addr: EndpointAddr::new(self.target), workload: None, h2: self.h2 }
    }

    async fn exchange(
        &self,
        parts: &Parts,
        source: &mut Source,
        record: &RequestRecord,
    ) -> Result<(Response<Incoming>, Connection), Result<Failure, hyper::Error>> {
        let progress = record.progress();
        progress.attempt();
        let connect = async || {
            let since = Instant::now();
            let connected = self.connect().await;
            progress.connected(since);
            connected
        };
        let connection = match self.kept.take(&self.to()) {
            Some(connection) => connection,
            None => connect().await.map_err(Ok)?,
        };
        send(connection, (self.target, Some(progress)), parts, source, connect).await
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let within = self.worker.shared.limits.connect;
        let stream = connect::deliver(self.pod.net.as_ref(), self.target, self.from, &self.permit, within).await?;
        Connection::open(&self.worker, Upstream::Plain(TcpSide::new(stream, "server")), self.to()).await
    }

    fn pass_on(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        request: &Parts,
        held: (Guard, Share),
    ) -> Response<Body> {
        let (mut parts, incoming) = response.into_parts();
        let switches = reply::switches(request, parts.status);
        hop::clean_response(&mut parts, request.version);
        hop::disown(&mut parts.headers);
        if switches {
            *self.switched.borrow_mut() = Some(Switch { server: connection.switched(), _held: Box::new(held) });
            return Response::from_parts(parts, Body::empty());
        }
        self.kept.keep(connection);
        let body = Body::answer(&parts, incoming);
        Response::from_parts(parts, body.holding(held, None))
    }
}
