//! A client's connection: hyper reads its requests, a [`Handler`] answers them.

use std::any::Any;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1::Connection as Http1, http2::Connection as Http2};
use hyper::service::service_fn;
use tokio::sync::oneshot;

use super::body::{Body, BodyError};
use super::framing::Unambiguous;
use super::io::{Io, Returned, lend};
use super::prefixed::Prefixed;
use super::protocol::Spoken;
use super::settings;
use crate::drain::Phase;
use crate::proxy::copy::{Side, both_ways};
use crate::proxy::failure::Failure;
use crate::proxy::recheck::Live;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::Worker;
use crate::telemetry::record::ConnectionRecord;

/// How long a client may go on sending after our last answer, so that it reads the answer before it meets a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// From the answer that switches protocols to the application's connection being ours again.
const SWITCH: Duration = Duration::from_secs(5);

/// What a handler's answer is: an error resets the stream, or the connection.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, BodyError>>>>;

/// Answers requests.
pub(super) trait Handler: 'static {
    /// One request.
    fn answer(self: Rc<Self>, request: Request<Incoming>) -> Answering;

    /// The connection is over, and with it those of its requests that are not.
    fn over(&self, failure: Option<&Failure>);
}

/// The connection to the application after a response that switches protocols. Left by the handler, taken when the
/// client's connection has sent that response.
pub(super) type Switched = Rc<RefCell<Option<Switch>>>;

/// What gives the connection, and what the request that led to it keeps as long as it lasts.
pub(super) struct Switch {
    /// `None`: it cannot be had.
    pub(super) server: Option<oneshot::Receiver<Prefixed<Upstream>>>,
    pub(super) _held: Box<dyn Any>,
}

/// A client's connection.
pub(in crate::proxy) struct Client<'a, S> {
    pub(in crate::proxy) side: Prefixed<S>,
    pub(in crate::proxy) spoken: Spoken,
    pub(in crate::proxy) live: &'a Live,
    pub(in crate::proxy) record: Rc<ConnectionRecord>,
}

/// A client's connection after its last request.
pub(in crate::proxy) struct Served<S> {
    /// The connection; `None`: it is gone.
    pub(in crate::proxy) side: Option<S>,
    /// Both directions have ended: what it ran over can carry another.
    pub(in crate::proxy) ended: bool,
    pub(in crate::proxy) result: Result<(), Failure>,
}

/// Serves the requests of a connection to its end.
pub(super) async fn serve<S: Side + 'static>(
    worker: &Rc<Worker>,
    client: Client<'_, S>,
    handler: Rc<impl Handler>,
    switched: &Switched,
) -> Served<S> {
    let side = match client.spoken {
        Spoken::Http2 => Unambiguous::open(client.side),
        Spoken::Http1 | Spoken::Other => Unambiguous::watched(client.side),
    };
    let (io, lender) = lend(side, &worker.buffers, Some(Rc::clone(&client.record)));
    let served = match client.spoken {
        Spoken::Http2 => serve_http2(worker, io, client.live, handler).await.map(|()| Bytes::new()),
        Spoken::Http1 | Spoken::Other => serve_http1(worker, io, client.live, handler).await,
    };
    if let Err(Failure::Overloaded(limit)) = &served {
        client.record.limited(limit);
    }
    let Some(mut back) = lender.take_back().await else {
        return Served { side: None, ended: false, result: Err(Failure::Reset("client")) };
    };
    let result = match served {
        Ok(read) => match switched.take() {
            None => finish(worker, &mut back, client.live).await,
            Some(switched) => {
                let mut side = Prefixed::new(read, back.side);
                let copied = copy(worker, &mut side, switched, client.live, &client.record).await;
                let side = Some(side.into_inner().into_inner().into_inner());
                return Served { side, ended: copied.is_ok(), result: copied };
            }
        },
        // The answer says what was wrong: the client should get it.
        Err(failure @ (Failure::NotHttp(_) | Failure::Overloaded(_))) => {
            let told = finish(worker, &mut back, client.live).await;
            told.and(Err(failure))
        }
        Err(failure @ Failure::Ended(_)) => Err(failure),
        Err(failure) => Err(back.failure.take().unwrap_or(failure)),
    };
    Served { ended: back.ended && back.shut, side: Some(back.side.into_inner().into_inner()), result }
}

/// Returns what was read beyond the last request.
async fn serve_http1<S: Side>(
    worker: &Rc<Worker>,
    io: Io<S>,
    live: &Live,
    handler: Rc<impl Handler>,
) -> Result<Bytes, Failure> {
    let service = service_fn(|request| Rc::clone(&handler).answer(request));
    let mut connection = settings::server_http1(&worker.shared.limits.http).serve_connection(io, service);
    let stop = Http1::graceful_shutdown;
    let running = Pin::new(&mut connection);
    let ran = run(worker, live, running, stop, |running, cx| running.get_mut().poll_without_shutdown(cx)).await;
    // Before the connection lets its requests go.
    handler.over(ran.as_ref().err());
    ran?;
    Ok(connection.into_parts().read_buf)
}

async fn serve_http2<S: Side + 'static>(
    worker: &Rc<Worker>,
    io: Io<S>,
    live: &Live,
    handler: Rc<impl Handler>,
) -> Result<(), Failure> {
    let resets = Rc::new(settings::resets());
    let service = service_fn(|request| {
        let (asked, answering) = (resets.begin(Instant::now()), Rc::clone(&handler).answer(request));
        async move {
            let answer = answering.await;
            asked.answered();
            answer
        }
    });
    let limits = &worker.shared.limits.http;
    let connection = std::pin::pin!(settings::server_http2(limits).serve_connection(io, service));
    let serving = run(worker, live, connection, Http2::graceful_shutdown, |connection, cx| connection.poll(cx));
    let ran = tokio::select! {
        biased;
        ran = serving => ran,
        () = resets.exceeded() => Err(Failure::Overloaded("rapid_reset")),
    };
    handler.over(ran.as_ref().err());
    ran
}

/// Runs a connection to its end, or until it is ended; a drain lets it finish what it has.
async fn run<C>(
    worker: &Rc<Worker>,
    live: &Live,
    mut connection: Pin<&mut C>,
    stop: impl Fn(Pin<&mut C>),
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<hyper::Result<()>>,
) -> Result<(), Failure> {
    let mut drain = worker.drain.clone();
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ending = live.switch().tripped() => return Err(Failure::Ended(ending)),
            () = drain.reached(Phase::Draining), if !draining => {
                draining = true;
                stop(connection.as_mut());
            }
            ended = poll_fn(|cx| poll(connection.as_mut(), cx)) => return ended.map_err(|error| failure(&error)),
        }
    }
}

/// What hyper's error means. An error of the handler's has been recorded with its request.
fn failure(error: &hyper::Error) -> Failure {
    if let Some(limit) = limit(error) {
        Failure::Overloaded(limit)
    } else if error.is_parse() {
        Failure::NotHttp(error.to_string())
    } else if error.is_user() {
        Failure::Reset("server")
    } else {
        Failure::Reset("client")
    }
}

/// The limit that a client has reached, which hyper or h2 has told it already.
fn limit(error: &hyper::Error) -> Option<&'static str> {
    if error.is_parse_too_large() {
        return Some("head_bytes");
    }
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    // Which of its bounds it was, h2 tells the client alone.
    (error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)).then_some("http2_flood")
}

/// Sends our end of data, and reads on for a while: a client that is still sending would lose the last answer to
/// the reset that closing causes.
async fn finish<S: Side>(worker: &Worker, back: &mut Returned<S>, live: &Live) -> Result<(), Failure> {
    let mut limit = LINGER_BYTES;
    let ended = async {
        if poll_fn(|cx| back.poll_finish(cx)).await.is_ok() {
            poll_fn(|cx| back.poll_discard(cx, &worker.buffers.scratch, &mut limit)).await;
        }
    };
    tokio::select! {
        biased;
        ending = live.switch().tripped() => return Err(Failure::Ended(ending)),
        // What is still open then is closed with what was not read: that is the client's to bear.
        _ = tokio::time::timeout(LINGER, ended) => {}
    }
    Ok(())
}

/// What is spoken after a switch is none of ours: bytes both ways.
async fn copy<S: Side>(
    worker: &Rc<Worker>,
    client: &mut S,
    switched: Switch,
    live: &Live,
    record: &ConnectionRecord,
) -> Result<(), Failure> {
    let lost = || Failure::Reset("server");
    let server = tokio::time::timeout(SWITCH, switched.server.ok_or_else(lost)?).await;
    let mut server = server.map_err(|_| lost())?.map_err(|_| lost())?;
    let copied = both_ways(client, &mut server, &worker.buffers.scratch, live.switch(), record.meter()).await;
    match &copied {
        Ok(()) => server.into_inner().give_back(worker).await,
        Err(_) => server.into_inner().reset(worker).await,
    }
    copied
}
