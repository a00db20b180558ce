//! CORS: the answer to a preflight, and the headers of an actual cross-origin answer (the Fetch standard, §3.2).

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method};

use super::{Answer, AnswerReason, RequestView};
use crate::model::route::{AllowList, Cors, OriginMatch, Scheme};

/// The answer to `request` if it is a preflight. For an origin that may not ask it has no CORS header, which is how
/// a browser is told.
pub(super) fn preflight(cors: &Cors, request: &RequestView<'_>) -> Option<Answer> {
    let asked = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| request.method == Method::OPTIONS)?;
    let origin = request.headers.get(ORIGIN)?;
    let mut answer = Answer::new(AnswerReason::Preflight, request, "CORS preflight");
    vary(&mut answer.headers);
    if !allow_origin(cors, origin, &mut answer.headers) {
        return Some(answer);
    }
    let headers = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    list(&cors.methods, cors, Some(asked), ACCESS_CONTROL_ALLOW_METHODS, &mut answer.headers);
    list(&cors.headers, cors, headers, ACCESS_CONTROL_ALLOW_HEADERS, &mut answer.headers);
    answer.headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age));
    Some(answer)
}

/// Adds what the answer to an actual request of `origin` needs.
pub(super) fn respond(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    vary(headers);
    if origin.is_some_and(|origin| allow_origin(cors, origin, headers)) {
        list(&cors.expose, cors, None, ACCESS_CONTROL_EXPOSE_HEADERS, headers);
    }
}

/// The answer depends on who asks, so a cache must not give it to others.
fn vary(headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("origin"));
}

fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) -> bool {
    let matches = |entry: &OriginMatch| origin.to_str().is_ok_and(|origin| origin_matches(entry, origin));
    if !cors.origins.iter().any(matches) {
        return false;
    }
    let anyone = !cors.credentials && cors.origins.contains(&OriginMatch::Any);
    let value = if anyone { HeaderValue::from_static("*") } else { origin.clone() };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, value);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    true
}

/// With credentials `*` has no meaning for a browser: what was asked for stands in its place.
fn list(allowed: &AllowList, cors: &Cors, asked: Option<&HeaderValue>, name: HeaderName, headers: &mut HeaderMap) {
    let value = match allowed {
        AllowList::Any if cors.credentials => asked.cloned(),
        AllowList::Any => Some(HeaderValue::from_static("*")),
        AllowList::Only(names) if names.is_empty() => None,
        AllowList::Only(names) => HeaderValue::from_str(&names.join(", ")).ok(),
    };
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// Whether an entry of `allowOrigins` means `origin`. Of an origin without a port the scheme's is meant.
fn origin_matches(entry: &OriginMatch, origin: &str) -> bool {
    let OriginMatch::Origin { scheme, host, wildcard, port } = entry else { return true };
    let Some((found_scheme, authority)) = origin.split_once("://") else { return false };
    let found = match found_scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return false,
    };
    let found_host = super::redirect::host_of(authority).to_ascii_lowercase();
    let found_port = match authority.get(found_host.len()..) {
        Some("") => Some(found.port()),
        Some(rest) => rest.strip_prefix(':').and_then(|port| port.parse().ok()),
        None => None,
    };
    let host_matches = if *wildcard { found_host.ends_with(&**host) } else { found_host == **host };
    found == *scheme && found_port == Some(*port) && host_matches
}
