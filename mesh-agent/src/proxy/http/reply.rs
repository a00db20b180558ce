//! Answers of ours, as responses.

use http::header::{CONNECTION, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};

use super::body::Body;
use super::hop;
use super::taken::Share;
use crate::proxy::failure::Failure;
use crate::proxy::worker::{Pod, Worker};
use crate::route::{Answer, AnswerReason, RequestView};
use crate::telemetry::labels::Reporter;

/// Why a request of which the application has seen a part is refused: the client's own fault.
pub(super) const BODY: &str = "its body ended early or cannot be read";

/// Takes a request on, if it can be read in one way only and is within the limits of its pod.
pub(super) fn admit(request: &Parts, pod: &Pod, worker: &Worker, reporter: Reporter) -> Result<Share, Answer> {
    let limits = &worker.shared.limits.http;
    let answer = |reason, why: &str| Answer::new(reason, &RequestView::of(request), why);
    let limited = |limit| worker.shared.telemetry.metrics().limited(reporter, limit);
    if let Some(why) = hop::ambiguity(request) {
        return Err(answer(AnswerReason::BadRequest, why));
    }
    if limits.is_too_large(request) {
        limited("head_bytes");
        let why = format!("its head is larger than {} bytes", limits.head_bytes);
        return Err(answer(AnswerReason::HeadTooLarge, &why));
    }
    pod.taken.request(limits).ok_or_else(|| {
        limited("requests_per_pod");
        let why = format!("the pod has {} requests already", limits.requests_per_pod);
        answer(AnswerReason::Overloaded, &why)
    })
}

/// The response that `answer` is, to a request of `version`.
pub(super) fn response(answer: Answer, version: Version) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    *response.version_mut() = version;
    if answer.reason == AnswerReason::BadRequest && version < Version::HTTP_2 {
        // What follows on the connection cannot be trusted.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether something else than HTTP is spoken on the connection after a response with `status`.
pub(super) fn switches(request: &Parts, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS
        || (request.method == Method::CONNECT && status.is_success() && request.version < Version::HTTP_2)
}

/// The answer to a request that could not be sent to any endpoint.
pub(super) fn unsent(failure: &Failure, request: &RequestView<'_>) -> Answer {
    let reason = match failure {
        Failure::NoEndpoints(_) => AnswerReason::NoEndpoints,
        Failure::Denied(_) => AnswerReason::Denied,
        _ => AnswerReason::Unreachable,
    };
    Answer::new(reason, request, &failure.to_string())
}
