//! What concerns one connection only and is not passed on, and heads that could be read in two ways.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, StatusCode, Version};

/// Headers by which agents speak to applications and to one another: never an application's.
const OURS: &str = "x-mesh-agent-";
/// Never passed on, whether `Connection` names it or not (RFC 9110 §7.6.1).
fn is_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "te" | "upgrade" | "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Why a request is refused with 400: two servers could read it differently (RFC 9112 §11.2).
pub(super) fn ambiguity(parts: &Parts) -> Option<&'static str> {
    let headers = &parts.headers;
    let several = |name: &HeaderName| headers.get_all(name).iter().nth(1).is_some();
    if headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING) {
        return Some("both Content-Length and Transfer-Encoding");
    }
    if headers.get_all(TRANSFER_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Some("a Transfer-Encoding other than chunked");
    }
    if several(&HOST) {
        return Some("more than one Host");
    }
    if several(&CONTENT_LENGTH) {
        return Some("more than one Content-Length");
    }
    let authority = parts.uri.authority().filter(|_| parts.method != Method::CONNECT);
    let differs = |host: &HeaderValue, authority: &Authority| {
        !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
    };
    match (headers.get(HOST), authority) {
        (Some(host), Some(authority)) if differs(host, authority) => Some("Host is not the target's authority"),
        _ => None,
    }
}

/// Removes what is not passed on. What is left of `Connection` and `Upgrade` is a wish to speak another protocol.
pub(super) fn clean(headers: &mut HeaderMap, version: Version) {
    if !headers.keys().any(is_hop) {
        // `Connection` is one of them: nothing else is named either.
        return;
    }
    let upgrade = headers.get(UPGRADE).filter(|_| version == Version::HTTP_11 && names(headers, "upgrade"));
    let upgrade = upgrade.filter(|wanted| !carries_requests(wanted)).cloned();
    let te = headers.get(TE).and_then(|te| te.to_str().ok()).is_some_and(accepts_trailers);
    let named = named(headers);
    let stays = |name: &HeaderName| !is_hop(name) && !named.contains(name);
    retain(headers, stays);
    if te {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Whether HTTP would be spoken on after the switch, where nobody reads it any more: requests that no rule is asked
/// about. A server that is not asked to switch answers as it is (RFC 9110 §7.8).
fn carries_requests(wanted: &HeaderValue) -> bool {
    let Ok(wanted) = wanted.to_str() else { return true };
    wanted.split(',').map(|protocol| protocol.trim().to_ascii_lowercase()).any(|protocol| {
        ["h2c", "h2", "http", "tls", "connect-udp", "connect-ip"]
            .contains(&protocol.split('/').next().unwrap_or_default())
    })
}

/// Removes what is not passed on of a response, to a request of `version`.
pub(super) fn clean_response(parts: &mut http::response::Parts, version: Version) {
    let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    clean(&mut parts.headers, if switches { Version::HTTP_11 } else { Version::HTTP_2 });
    if version != Version::HTTP_11 {
        // Neither of the others has chunks.
        parts.headers.remove(TRANSFER_ENCODING);
    }
    if version == Version::HTTP_2 || parts.version == Version::HTTP_2 {
        parts.version = version;
    }
}

/// Removes what only an agent may say.
pub(super) fn disown(headers: &mut HeaderMap) {
    retain(headers, |name| !name.as_str().starts_with(OURS));
}

/// Removes headers and leaves the others in their order, which [`HeaderMap::remove`] does not.
pub(super) fn retain(headers: &mut HeaderMap, stays: impl Fn(&HeaderName) -> bool) {
    if headers.keys().all(&stays) {
        return;
    }
    let left = HeaderMap::with_capacity(headers.len());
    let mut last = None;
    for (name, value) in std::mem::replace(headers, left) {
        last = name.or(last);
        if let Some(name) = last.as_ref().filter(|name| stays(name)) {
            headers.append(name.clone(), value);
        }
    }
}

/// The headers that `Connection` names, apart from those that have rules of their own.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    // By far the most name nothing.
    let options = values.flat_map(|value| value.split(',')).map(str::trim);
    let options = options.filter(|name| !["keep-alive", "close"].iter().any(|own| name.eq_ignore_ascii_case(own)));
    let names = options.filter_map(|name| name.parse().ok());
    // Without their framing and their host messages would be others.
    names.filter(|name| ![TE, HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name)).collect()
}

fn names(headers: &HeaderMap, wanted: &str) -> bool {
    let mut values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|name| name.trim().eq_ignore_ascii_case(wanted)))
}

fn accepts_trailers(te: &str) -> bool {
    te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Gives a request the form of the version it goes on in.
pub(super) fn convert(parts: &mut Parts, h2: bool) {
    let from_h2 = parts.version == Version::HTTP_2;
    match (from_h2, h2) {
        (false, true) => to_h2(parts),
        (true, false) => to_h1(parts),
        _ => {}
    }
    if h2 {
        parts.version = Version::HTTP_2;
        for name in [TRANSFER_ENCODING, CONNECTION, UPGRADE] {
            parts.headers.remove(name);
        }
    }
}

/// `:scheme` and `:authority` instead of `Host` (RFC 9113 §8.3.1).
fn to_h2(parts: &mut Parts) {
    let host = parts.headers.remove(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.authority = uri.authority.or(host);
    if parts.method == Method::CONNECT {
        (uri.scheme, uri.path_and_query) = (None, None);
    } else {
        uri.scheme = uri.authority.is_some().then_some(Scheme::HTTP);
        uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    }
    let path = uri.path_and_query.clone();
    // Without an authority only a path is a URI.
    parts.uri = Uri::from_parts(uri).unwrap_or_else(|_| path.map_or_else(Uri::default, Uri::from));
}

/// The origin form and `Host` (RFC 9112 §3.2.1).
fn to_h1(parts: &mut Parts) {
    parts.version = Version::HTTP_11;
    if parts.method == Method::CONNECT {
        return;
    }
    let uri = std::mem::take(&mut parts.uri).into_parts();
    if let Some(host) = uri.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        parts.headers.insert(HOST, host);
    }
    parts.uri = uri.path_and_query.map_or_else(Uri::default, Uri::from);
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let headers = [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
        ];
        let mut parts = parts("/", &headers);
        clean(&mut parts.headers, Version::HTTP_11);
        let mut left: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-other"]);
        assert_eq!(parts.headers["te"], "trailers");
    }

    #[test]
    fn a_wish_to_upgrade_is_passed_on() {
        let mut parts = parts("/", &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        clean(&mut parts.headers, Version::HTTP_11);
        assert_eq!(
            (&parts.headers["connection"], &parts.headers["upgrade"]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
    }

    #[test]
    fn nobody_switches_to_requests_that_nobody_reads() {
        for wanted in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0, HTTP/1.1"] {
            let mut parts = parts("/", &[("connection", "upgrade, http2-settings"), ("upgrade", wanted)]);
            clean(&mut parts.headers, Version::HTTP_11);
            assert!(parts.headers.is_empty(), "{wanted}: {:?}", parts.headers);
        }
    }

    #[test]
    fn framing_and_host_are_not_removed_by_naming_them() {
        let mut parts = parts("/", &[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")]);
        clean(&mut parts.headers, Version::HTTP_11);
        assert!(parts.headers.contains_key(HOST) && parts.headers.contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn heads_with_two_readings_are_refused() {
        let both = [("content-length", "3"), ("transfer-encoding", "chunked")];
        assert!(ambiguity(&parts("/", &both)).is_some());
        assert!(ambiguity(&parts("/", &[("host", "a"), ("host", "a")])).is_some());
        assert!(ambiguity(&parts("http://a/", &[("host", "b")])).is_some());
        assert!(ambiguity(&parts("http://a/", &[("host", "A")])).is_none());
        assert!(ambiguity(&parts("/", &[("host", "a"), ("content-length", "3")])).is_none());
    }

    #[test]
    fn a_request_changes_its_form_with_its_version() {
        let mut to_two = parts("/a%2Fb?c", &[("host", "cart:8080")]);
        convert(&mut to_two, true);
        assert_eq!((to_two.uri.to_string().as_str(), to_two.version), ("http://cart:8080/a%2Fb?c", Version::HTTP_2));
        assert!(!to_two.headers.contains_key(HOST));
        convert(&mut to_two, false);
        assert_eq!((to_two.uri.to_string().as_str(), to_two.version), ("/a%2Fb?c", Version::HTTP_11));
        assert_eq!(to_two.headers[HOST], "cart:8080");
    }

    #[test]
    fn nobody_else_speaks_for_an_agent() {
        let mut parts = parts("/", &[("x-mesh-agent-reason", "denied"), ("x-mesh-agents", "kept")]);
        disown(&mut parts.headers);
        assert_eq!(parts.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-mesh-agents"]);
    }
}
