//! Requests and the rules of HTTPRoute and GRPCRoute.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use http::header::{HOST, HeaderName};

use super::{RequestView, path};
use crate::model::route::{Candidate, HeaderMatch, Match, PathMatch, PortRoutes, QueryMatch, TextMatch};

/// The match that `request` meets; `None`: 404.
#[must_use]
pub fn select<'a>(routes: &'a PortRoutes, request: &RequestView<'_>) -> Option<&'a Candidate> {
    routes.candidates.iter().find(|candidate| miss(&candidate.matching, request).is_none())
}

/// The match that `request` comes nearest to without meeting it, and what stands against it. One whose path holds is
/// nearer than one whose path does not.
#[must_use]
pub fn nearest<'a>(routes: &'a PortRoutes, request: &RequestView<'_>) -> Option<(&'a Candidate, Miss<'a>)> {
    let misses =
        routes.candidates.iter().filter_map(|candidate| Some((candidate, miss(&candidate.matching, request)?)));
    // Of equals the preferred one: `max_by_key` would take the last.
    misses.rev().max_by_key(|(_, miss)| (!matches!(miss.first, Field::Path(_)), miss.held))
}

/// Why a match does not hold.
#[derive(Clone, Copy, Debug)]
pub struct Miss<'a> {
    /// How many of its conditions hold.
    held: usize,
    first: Field<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Field<'a> {
    Path(&'a PathMatch),
    Method(&'a http::Method),
    Header(&'a HeaderMatch),
    Query(&'a QueryMatch),
}

/// The conditions that `request` does not meet; `None`: it meets all of them.
fn miss<'a>(matching: &'a Match, request: &RequestView<'_>) -> Option<Miss<'a>> {
    let path = Some(&matching.path).filter(|wanted| !path_matches(wanted, request.path)).map(Field::Path);
    let method = matching.method.as_ref().filter(|wanted| *wanted != request.method).map(Field::Method);
    let headers = matching.headers.iter().filter(|wanted| !header_matches(wanted, request)).map(Field::Header);
    let query = matching.query.iter().filter(|wanted| !query_matches(wanted, request.query)).map(Field::Query);
    let mut missed = path.into_iter().chain(method).chain(headers).chain(query);
    let first = missed.next()?;
    let asked = 1 + usize::from(matching.method.is_some()) + matching.headers.len() + matching.query.len();
    Some(Miss { held: asked - 1 - missed.count(), first })
}

/// Whether a path is the one wanted.
pub(crate) fn path_matches(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => path == &**exact,
        PathMatch::Prefix(prefix) => path::has_prefix(path, prefix),
        PathMatch::Regex(pattern) => pattern.is_match(path),
        PathMatch::Grpc { service: None, method: None } => true,
        PathMatch::Grpc { service, method } => {
            let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
            let holds = |wanted: &Option<TextMatch>, text: &str| wanted.as_ref().is_none_or(|w| text_matches(w, text));
            parts.is_some_and(|(of, name)| !name.contains('/') && holds(service, of) && holds(method, name))
        }
    }
}

fn text_matches(wanted: &TextMatch, text: &str) -> bool {
    match wanted {
        TextMatch::Exact(exact) => text == &**exact,
        TextMatch::Regex(pattern) => pattern.is_match(text),
    }
}

fn header_matches(wanted: &HeaderMatch, request: &RequestView<'_>) -> bool {
    if wanted.name == HOST {
        return !request.authority.is_empty() && text_matches(&wanted.value, request.authority);
    }
    header_value(request.headers, &wanted.name).is_some_and(|value| text_matches(&wanted.value, &value))
}

/// All values of a header as one (RFC 9110 §5.3); `None` when it is absent or not text.
pub(crate) fn header_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = std::str::from_utf8(values.next()?.as_bytes()).ok()?;
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(std::str::from_utf8(value.as_bytes()).ok()?);
    }
    Some(joined)
}

fn query_matches(wanted: &QueryMatch, query: Option<&str>) -> bool {
    let pairs = query.unwrap_or_default().split('&');
    let mut values = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = values.find(|(name, _)| *decoded(name) == *wanted.name.as_bytes()).map(|(_, value)| decoded(value));
    value.is_some_and(|value| std::str::from_utf8(&value).is_ok_and(|value| text_matches(&wanted.value, value)))
}

/// Undoes `application/x-www-form-urlencoded`: `%41` and `+`. What is no escape stays.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    Cow::Owned(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

impl Miss<'_> {
    /// What stands against `request`, in words.
    #[must_use]
    pub fn describe(&self, request: &RequestView<'_>) -> String {
        match self.first {
            Field::Path(wanted) => format!("path {} is not {}", request.path, Shown(wanted)),
            Field::Method(wanted) => format!("method {} is not {wanted}", request.method),
            Field::Header(wanted) => {
                let value = if wanted.name == HOST {
                    Some(Cow::Borrowed(request.authority)).filter(|authority| !authority.is_empty())
                } else {
                    header_value(request.headers, &wanted.name)
                };
                let found = value.map_or("is absent".to_owned(), |value| format!("`{value}`"));
                format!("header {} {found}, not {}", wanted.name, text(&wanted.value))
            }
            Field::Query(wanted) => format!("query parameter {} is not {}", wanted.name, text(&wanted.value)),
        }
    }
}

/// The path wanted, in words.
pub(crate) fn path_text(wanted: &PathMatch) -> String {
    Shown(wanted).to_string()
}

struct Shown<'a>(&'a PathMatch);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            PathMatch::Exact(path) => write!(f, "exactly {path}"),
            PathMatch::Prefix(prefix) => write!(f, "below {prefix}"),
            PathMatch::Regex(pattern) => write!(f, "matched by `{}`", pattern.as_str()),
            PathMatch::Grpc { service, method } => {
                let part = |part: &Option<TextMatch>| part.as_ref().map_or("*".to_owned(), text);
                write!(f, "/{}/{}", part(service), part(method))
            }
        }
    }
}

/// The text wanted, in words.
pub(crate) fn text(wanted: &TextMatch) -> String {
    match wanted {
        TextMatch::Exact(text) => format!("`{text}`"),
        TextMatch::Regex(pattern) => format!("matched by `{}`", pattern.as_str()),
    }
}

/// A match in words: what a request must have to meet it.
#[must_use]
pub fn describe(matching: &Match) -> String {
    let mut words = vec![format!("path {}", Shown(&matching.path))];
    words.extend(matching.method.as_ref().map(|method| format!("method {method}")));
    words.extend(matching.headers.iter().map(|wanted| format!("header {} {}", wanted.name, text(&wanted.value))));
    words.extend(matching.query.iter().map(|wanted| format!("query {} {}", wanted.name, text(&wanted.value))));
    words.join(", ")
}
