//! What a rule may ask of a request, and how a request answers: method, path, host, headers.
//!
//! § Whatever could be read in two ways works against the peer in both directions, as an unproven identity does: it
//! matches no ALLOW and every DENY that asks for it. A path is compared in one canonical form (RFC 3986 §6.2.2); one
//! that servers disagree about (empty and dot segments, encoded slashes) is ambiguous.

use std::borrow::Cow;
use std::fmt;

use http::header::{HOST, HeaderMap};
use http::request::Parts;

use crate::model::policy::{Action, HostMatch, RequestMatch};
use crate::model::route::{HeaderMatch, PathMatch, TextMatch};

/// One request at the server's node, as far as a decision needs it.
#[derive(Clone, Debug)]
pub struct RequestFacts<'a> {
    method: &'a http::Method,
    path: &'a str,
    /// The ways in which a server may read the path; `None`: nobody knows.
    readings: Option<Vec<String>>,
    /// In lower case, without port and final dot; empty when the request names none.
    host: String,
    headers: &'a HeaderMap,
}

impl<'a> RequestFacts<'a> {
    /// The facts of a request's head, as it goes to the application.
    #[must_use]
    pub fn of(parts: &'a Parts) -> Self {
        let header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = parts.uri.authority().map(http::uri::Authority::as_str).or(header).unwrap_or_default();
        let host = crate::route::host_of(authority).trim_end_matches('.').to_ascii_lowercase();
        let path = parts.uri.path();
        Self { method: &parts.method, path, readings: readings(path), host, headers: &parts.headers }
    }
}

/// The path in canonical form: unreserved characters decoded, other escapes in upper case; `None`: ambiguous.
#[must_use]
pub fn canonical(path: &str) -> Option<String> {
    let mut canonical = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at_checked(at)?;
        canonical.push_str(before);
        let digits = escape.get(1..3)?;
        let byte = u8::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        match byte {
            b'/' | b'\\' | 0 => return None,
            _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => canonical.push(char::from(byte)),
            _ => canonical.push_str(&escape.get(..3)?.to_ascii_uppercase()),
        }
        rest = escape.get(3..)?;
    }
    canonical.push_str(rest);
    let mut segments = canonical.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        // A path may end in `/`; an empty segment before the end is what servers merge or keep.
        let is_inner_empty = segment.is_empty() && segments.peek().is_some();
        if is_inner_empty || matches!(without_parameters(segment), "." | "..") {
            return None;
        }
    }
    (!canonical.contains('\\')).then_some(canonical)
}

/// Some servers drop what follows `;` in a segment before they look at the path.
fn readings(path: &str) -> Option<Vec<String>> {
    let canonical = canonical(path)?;
    if !canonical.contains(';') {
        return Some(vec![canonical]);
    }
    let bare = canonical.split('/').map(without_parameters).collect::<Vec<_>>().join("/");
    // `/;/admin` without its parameters has an empty segment.
    let bare = self::canonical(&bare)?;
    Some(vec![canonical, bare])
}

fn without_parameters(segment: &str) -> &str {
    segment.split(';').next().unwrap_or_default()
}

/// The part of a rule that does not hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum RequestField<'a> {
    /// Nobody reads this connection's requests.
    Unread,
    Method(&'a [http::Method]),
    Path(&'a [PathMatch]),
    Host(&'a [HostMatch]),
    Header(&'a HeaderMatch),
}

/// The first part of `wanted` that `request` does not meet.
pub(super) fn miss<'a>(
    wanted: &'a RequestMatch,
    action: Action,
    request: &RequestFacts<'_>,
) -> Option<RequestField<'a>> {
    let against = action != Action::Allow;
    let methods = wanted.methods.as_deref().filter(|methods| !methods.contains(request.method));
    let paths = wanted.paths.as_deref().filter(|paths| !path_holds(paths, against, request));
    let hosts = wanted.hosts.as_deref().filter(|hosts| !host_holds(hosts, against, request));
    let header = wanted.headers.iter().find(|header| !header_holds(header, against, request));
    let methods = methods.map(RequestField::Method);
    methods.or(paths.map(RequestField::Path)).or(hosts.map(RequestField::Host)).or(header.map(RequestField::Header))
}

fn path_holds(paths: &[PathMatch], against: bool, request: &RequestFacts<'_>) -> bool {
    // What asks for nothing is met by everything, however it is read.
    if paths.iter().any(|path| matches!(path, PathMatch::Prefix(prefix) if &**prefix == "/")) {
        return true;
    }
    let matches = |reading: &String| paths.iter().any(|path| crate::route::l7::path_matches(path, reading));
    match &request.readings {
        None => against,
        Some(readings) if against => readings.iter().any(matches),
        Some(readings) => readings.iter().all(matches),
    }
}

fn host_holds(hosts: &[HostMatch], against: bool, request: &RequestFacts<'_>) -> bool {
    if request.host.is_empty() {
        return against;
    }
    hosts.iter().any(|wanted| match wanted {
        HostMatch::Exact(host) => request.host == **host,
        HostMatch::Below(end) => request.host.ends_with(&**end),
    })
}

/// Several values are one, joined; against the peer each of them counts as well.
fn header_holds(wanted: &HeaderMatch, against: bool, request: &RequestFacts<'_>) -> bool {
    if !request.headers.contains_key(&wanted.name) {
        return false;
    }
    let holds = |text: &str| match &wanted.value {
        TextMatch::Exact(exact) => text == &**exact,
        TextMatch::Regex(pattern) => pattern.is_match(text),
    };
    let Some(joined) = crate::route::l7::header_value(request.headers, &wanted.name) else { return against };
    let each = || request.headers.get_all(&wanted.name).iter().filter_map(|value| value.to_str().ok());
    holds(&joined) || (against && each().any(holds))
}

impl RequestField<'_> {
    /// What stands against `request`, in words.
    pub(super) fn describe(&self, request: Option<&RequestFacts<'_>>) -> String {
        let Some(request) = request else {
            return "it asks for requests, and this connection is not read as HTTP".to_owned();
        };
        match self {
            Self::Unread => "it asks for requests".to_owned(),
            Self::Method(methods) => format!("method {} is not one of {}", request.method, list(methods)),
            Self::Path(paths) => {
                let shown: Vec<String> = paths.iter().map(crate::route::l7::path_text).collect();
                let why = if request.readings.is_none() { "can be read in several ways and" } else { "" };
                let words = format!("path {} {why} is not {}", request.path, shown.join(" or "));
                words.replace("  ", " ")
            }
            Self::Host(hosts) => format!("host `{}` is not one of {}", request.host, list(hosts)),
            Self::Header(header) => {
                let value = crate::route::l7::header_value(request.headers, &header.name);
                let value = value.map_or(Cow::Borrowed("absent"), |value| Cow::Owned(format!("`{value}`")));
                format!("header {} is {value}", header.name)
            }
        }
    }
}

fn list<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
