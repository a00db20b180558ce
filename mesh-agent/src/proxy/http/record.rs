//! Where requests tell their record what becomes of them: the bodies as they pass, the answers as they are given.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use http_body::{Body as _, Frame};

use super::body::{Body, BodyError, Late};
use super::{hop, reply};
use crate::model::outcome::Outcome;
use crate::proxy::failure::Failure;
use crate::proxy::target::Target;
use crate::route::Answer;
use crate::telemetry::labels::{RequestOutcome, Security};
use crate::telemetry::request::{Answered, Progress, RequestRecord};
use crate::telemetry::requests::Server;
use crate::telemetry::trace::context::TRACESTATE;

/// Whose record a body is for.
pub(super) enum Watch {
    /// The body of a request: its bytes are counted.
    Request(Rc<Progress>),
    /// The body of its answer: the request is over when it ends.
    Response(RequestRecord),
}

impl Watch {
    /// Takes note of what comes of a body; `last`: nothing comes after it. Gives itself back while there is more.
    pub(super) fn saw(self, frame: Option<&Result<Frame<Bytes>, BodyError>>, last: bool) -> Option<Self> {
        let data = frame.and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref).map_or(0, Bytes::len);
        let record = match self {
            Self::Request(progress) => {
                progress.sent(data);
                return Some(Self::Request(progress));
            }
            Self::Response(record) => record,
        };
        record.received(data);
        match frame {
            Some(Err(error)) => record.ended(broken(error)),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    record.grpc(trailers);
                }
                if !last {
                    return Some(Self::Response(record));
                }
                record.ended(RequestOutcome::Ok);
            }
            None => record.ended(RequestOutcome::Ok),
        }
        None
    }
}

/// How a request ends whose answer is broken off.
pub(super) fn broken(error: &BodyError) -> RequestOutcome {
    if error.is::<Late>() {
        return RequestOutcome::Timeout;
    }
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if is_reset(error) => RequestOutcome::ServerAborted,
        _ => RequestOutcome::ServerLost,
    }
}

/// Whether the application has reset the stream.
pub(super) fn is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.is_reset() && error.is_remote())
}

/// How the requests end that are not over when their client's connection is.
pub(super) fn over(failure: Option<&Failure>) -> RequestOutcome {
    match failure {
        Some(Failure::Ended(ending)) if ending.outcome == Outcome::Revoked => RequestOutcome::Revoked,
        Some(Failure::Ended(_)) => RequestOutcome::AgentDrained,
        _ => RequestOutcome::ClientLost,
    }
}

/// An application's answer, whose end is the request's.
pub(super) fn follow(record: RequestRecord, request: &Parts, response: Response<Body>) -> Response<Body> {
    let status = response.status();
    record.head(status, response.headers());
    let tunnel = request.method == Method::CONNECT && status.is_success();
    if tunnel || reply::switches(request, status) {
        // What follows is no answer, and may last for days.
        record.ended(RequestOutcome::Switched);
    } else if response.body().is_end_stream() {
        record.ended(RequestOutcome::Ok);
    } else {
        return response.map(|body| body.watched(Watch::Response(record)));
    }
    response
}

/// An answer of ours.
pub(super) fn answered(record: RequestRecord, answer: &Answer, rule: Option<&str>) {
    record.head(answer.status, &answer.headers);
    record.answered(&Answered { reason: answer.reason.as_str(), detail: &answer.detail, rule });
}

/// A request goes on with these headers: in its trace, at a place of its own.
pub(super) fn sends(progress: &Progress, headers: &mut HeaderMap) {
    if progress.sends(headers) {
        hop::retain(headers, |name| *name != TRACESTATE);
    }
}

/// An endpoint as the record knows it.
pub(super) fn server(target: &Target) -> Server<'_> {
    let security = if target.tunnel().is_some() { Security::MutualTls } else { Security::None };
    Server { addr: target.addr().addr(), workload: target.workload().map(|workload: &Arc<_>| workload), security }
}
