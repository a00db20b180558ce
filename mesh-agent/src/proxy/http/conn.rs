//! HTTP connections towards the application: opened over an [`Upstream`], kept while their client's connection lives.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::{Notify, oneshot};

use super::body::Body;
use super::io::{Lender, Returned, lend};
use super::prefixed::Prefixed;
use super::settings;
use crate::model::addr::EndpointAddr;
use crate::model::workload::WorkloadUid;
use crate::proxy::failure::Failure;
use crate::proxy::target::Target;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::Worker;

/// How long the other side may take to end its direction after ours: then the tunnel below can carry another.
const LINGER: Duration = Duration::from_secs(5);
/// What it may still send meanwhile.
const LINGER_BYTES: usize = 256 << 10;
/// How long a body waits for an application to ask for it: as long as curl does.
const CONTINUE: Duration = Duration::from_secs(1);

/// Who a connection leads to, and in which version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct To {
    pub(super) addr: EndpointAddr,
    /// The pod that was there when it was opened.
    pub(super) workload: Option<WorkloadUid>,
    pub(super) h2: bool,
}

/// An open connection.
pub(super) struct Connection {
    to: To,
    sender: Sender,
    /// The connection itself, once the application has agreed to speak something else on it.
    switched: Option<oneshot::Receiver<Prefixed<Upstream>>>,
    /// How many requests it has been given.
    sent: usize,
}

impl To {
    /// The application behind `target`.
    pub(super) fn of(target: &Target, h2: bool) -> Self {
        let workload = target.workload().map(|workload| Arc::clone(&workload.uid));
        Self { addr: target.addr(), workload, h2 }
    }
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// Why a request has no response.
pub(super) enum SendError {
    /// The connection was gone before a byte of it was sent.
    Unsent(Box<Request<Body>>),
    /// The application may have seen it.
    Broken(hyper::Error),
}

impl Connection {
    /// Speaks HTTP over `upstream`.
    ///
    /// # Errors
    /// When the application ends the connection at once.
    pub(super) async fn open(worker: &Rc<Worker>, upstream: Upstream, to: To) -> Result<Self, Failure> {
        let (io, lender) = lend(upstream, &worker.buffers, None);
        let limits = &worker.shared.limits.http;
        let opened = if to.h2 {
            let handshake = settings::client_http2(limits).handshake(io).await;
            handshake.map(|(sender, connection)| {
                let worker = Rc::clone(worker);
                tokio::task::spawn_local(async move {
                    let ended = connection.await;
                    retire(&worker, lender, ended.is_ok()).await;
                });
                (Sender::Http2(sender), None)
            })
        } else {
            settings::client_http1(limits).handshake(io).await.map(|(sender, connection)| {
                let (switch, switched) = oneshot::channel();
                tokio::task::spawn_local(drive_http1(Rc::clone(worker), connection, lender, switch));
                (Sender::Http1(sender), Some(switched))
            })
        };
        let (sender, switched) = opened.map_err(|error| Failure::NotHttp(error.to_string()))?;
        Ok(Self { to, sender, switched, sent: 0 })
    }

    /// Sends one request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        self.sent += 1;
        let request = if self.to.h2 { request } else { expecting(request) };
        let sent = match &mut self.sender {
            Sender::Http1(sender) => match sender.ready().await {
                Ok(()) => sender.try_send_request(request).await,
                Err(_) => return Err(SendError::Unsent(Box::new(request))),
            },
            Sender::Http2(sender) => match sender.ready().await {
                Ok(()) => sender.try_send_request(request).await,
                Err(_) => return Err(SendError::Unsent(Box::new(request))),
            },
        };
        sent.map_err(|mut error| match error.take_message() {
            Some(request) => SendError::Unsent(Box::new(request)),
            None => SendError::Broken(error.into_error()),
        })
    }

    /// After a response that switches protocols: what gives the connection.
    pub(super) fn switched(self) -> Option<oneshot::Receiver<Prefixed<Upstream>>> {
        self.switched
    }

    /// Whether the request sent last was not its first: then the application may have been ending it.
    pub(super) fn was_kept(&self) -> bool {
        self.sent > 1
    }

    /// Who it leads to.
    pub(super) fn to(&self) -> &To {
        &self.to
    }

    /// Whether it leads there.
    pub(super) fn leads(&self, to: &To) -> bool {
        self.to == *to
    }

    /// Whether both lead to the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.leads(&other.to)
    }

    /// Whether it carries several requests at once.
    pub(super) fn is_shared(&self) -> bool {
        self.to.h2
    }

    /// It once more, for one of several requests; `None`: it carries one at a time.
    pub(super) fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => {
                let sender = Sender::Http2(sender.clone());
                Some(Self { to: self.to.clone(), sender, switched: None, sent: 1 })
            }
        }
    }

    /// Whether a request may be sent on it now.
    pub(super) fn can_send(&self) -> bool {
        // hyper says so of a new one only after its first turn.
        self.sent == 0
            || match &self.sender {
                Sender::Http1(sender) => sender.is_ready(),
                Sender::Http2(sender) => sender.is_ready(),
            }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }
}

/// A client that asks first (RFC 9110 §10.1.1) is told to send its body when the application says so.
fn expecting(request: Request<Body>) -> Request<Body> {
    let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !request.headers().get(EXPECT).is_some_and(expects) {
        return request;
    }
    let told = Arc::new(Notify::new());
    let tells = Arc::clone(&told);
    let mut request = request.map(|body| {
        body.after(async move {
            // An application may say nothing, and no client waits for ever.
            let _ = tokio::time::timeout(CONTINUE, told.notified()).await;
        })
    });
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            tells.notify_one();
        }
    });
    request
}

/// Runs an HTTP/1 connection to its end, or until something else is spoken on it.
async fn drive_http1(
    worker: Rc<Worker>,
    mut connection: http1::Connection<super::io::Io<Upstream>, Body>,
    lender: Lender<Upstream>,
    switch: oneshot::Sender<Prefixed<Upstream>>,
) {
    let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let read: Bytes = connection.into_parts().read_buf;
    let Some(back) = lender.take_back().await else { return };
    if ended.is_ok() && !back.ended && !back.shut {
        // Either the application has switched, or nobody has a request for it any more.
        match switch.send(Prefixed::new(read, back.side)) {
            Ok(()) => return,
            Err(side) => {
                let side = side.into_inner();
                return end(&worker, Returned { side, ended: false, shut: false, failure: None }, true).await;
            }
        }
    }
    end(&worker, back, ended.is_ok()).await;
}

async fn retire(worker: &Rc<Worker>, lender: Lender<Upstream>, in_order: bool) {
    if let Some(back) = lender.take_back().await {
        end(worker, back, in_order).await;
    }
}

/// Ends a connection: in order if it can be, so that what it ran over can carry another; else by a reset.
async fn end(worker: &Rc<Worker>, mut back: Returned<Upstream>, in_order: bool) {
    let scratch = &worker.buffers.scratch;
    let mut limit = LINGER_BYTES;
    let finish = async {
        poll_fn(|cx| back.poll_finish(cx)).await.is_ok()
            && poll_fn(|cx| back.poll_discard(cx, scratch, &mut limit)).await
    };
    if in_order && tokio::time::timeout(LINGER, finish).await.unwrap_or(false) {
        back.side.give_back(worker).await;
    } else {
        back.side.reset(worker).await;
    }
}
