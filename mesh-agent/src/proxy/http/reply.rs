//! Answers of ours, as responses.

use http::header::{CONNECTION, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};

use super::body::Body;
use crate::proxy::failure::Failure;
use crate::route::{Answer, AnswerReason, RequestView};

/// Why a request of which the application has seen a part is refused: the client's own fault.
pub(super) const BODY: &str = "its body ended early or cannot be read";

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
