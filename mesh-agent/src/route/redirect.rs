//! RequestRedirect: the `Location` that a client is sent to.

use http::header::{HeaderValue, LOCATION};

use super::filter::with_query;
use super::{Answer, AnswerReason, Dialled, RequestView, path};
use crate::model::route::Redirect;

/// The answer to `request`.
pub(super) fn answer(redirect: &Redirect, request: &RequestView<'_>, dialled: Dialled) -> Answer {
    let location = location(redirect, request, dialled);
    let Ok(value) = HeaderValue::from_str(&location) else {
        return Answer::new(AnswerReason::BadRequest, request, "the redirect's location is no header value");
    };
    let mut answer = Answer::new(AnswerReason::Redirect, request, &location);
    answer.status = redirect.status;
    answer.headers.insert(LOCATION, value);
    answer
}

/// An absolute URI. Port: the redirect's, else that of its scheme, else the one dialled; a scheme's well-known port
/// is left out.
#[must_use]
pub fn location(redirect: &Redirect, request: &RequestView<'_>, dialled: Dialled) -> String {
    let scheme = redirect.scheme.unwrap_or(dialled.scheme);
    let host = redirect.hostname.as_deref().unwrap_or_else(|| host_of(request.authority));
    let by_scheme = redirect.scheme.map_or(dialled.port, crate::model::route::Scheme::port);
    let port = redirect.port.unwrap_or(by_scheme);
    let path = match &redirect.path {
        Some(edit) => path::edited(request.path, edit),
        None => request.path.to_owned(),
    };
    let target = with_query(path, request.query);
    let scheme_text = scheme.as_str();
    if port == scheme.port() {
        format!("{scheme_text}://{host}{target}")
    } else {
        format!("{scheme_text}://{host}:{port}{target}")
    }
}

/// An authority without user and port; an IPv6 address keeps its brackets.
pub(crate) fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.find(']') {
        Some(end) => host.get(..=end).unwrap_or(host),
        None => host.split_once(':').map_or(host, |(host, _)| host),
    }
}
