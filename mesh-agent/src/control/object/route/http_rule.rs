//! The rules of an HTTPRoute.

use std::collections::HashSet;

use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::matching::{self, RawNamed, RawType};
use super::{Checked, Mistake, Reader, RuleParts, at_most, duration, part, wrong};
use crate::model::route::{Filter, Match, PathMatch, QueryMatch, Retry, Timeouts};
use std::time::Duration;

const MAX_QUERY: usize = 16;
const MAX_PATH_BYTES: usize = 1024;
/// In CEL, what [`plain_path`] and `policy::request::canonical` refuse.
const PLAIN: &str = r##"(has(self.type) && self.type == 'RegularExpression') || !has(self.value) ||
self.value.matches("^/$|^(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)+/?$")"##;
const NO_DOTS: &str = r"(has(self.type) && self.type == 'RegularExpression') || !has(self.value) ||
!self.value.matches('/([.]|%2[eE]){1,2}(;[^/]*)?(/|$)')";
const NO_SLASHES: &str = "(has(self.type) && self.type == 'RegularExpression') || !has(self.value) ||
!self.value.matches('%(2[fF]|5[cC]|00)')";
/// Each retry is more load for what already fails.
const DEFAULT_ATTEMPTS: u32 = 1;
/// Enough for a restarting endpoint to leave the list, short against what a person notices.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    matches: Option<Vec<RawMatch>>,
    filters: Option<Vec<Value>>,
    backend_refs: Option<Vec<Value>>,
    timeouts: Option<RawTimeouts>,
    retry: Option<RawRetry>,
    session_persistence: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMatch {
    path: Option<RawPath>,
    headers: Option<Vec<RawNamed>>,
    query_params: Option<Vec<RawNamed>>,
    method: Option<String>,
}

/// A path. The schema is that of a permission's in our own kinds, where there is no default for it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.value)", "message": "a value is needed"},
    {"rule": PLAIN, "message": "the path must begin with / and have no empty segment and no character to be encoded"},
    {"rule": NO_DOTS, "message": "the path can be read in several ways: a dot segment"},
    {"rule": NO_SLASHES, "message": "the path can be read in several ways: an encoded slash, backslash or NUL"},
]))]
pub(in crate::control::object) struct RawPath {
    /// How the path is compared; absent: PathPrefix.
    #[serde(rename = "type", default)]
    kind: RawPathType,
    /// The path.
    #[schemars(length(min = 1, max = MAX_PATH_BYTES))]
    pub(in crate::control::object) value: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq)]
enum RawPathType {
    Exact,
    #[default]
    PathPrefix,
    RegularExpression,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTimeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRetry {
    codes: Option<Vec<u16>>,
    attempts: Option<u32>,
    backoff: Option<String>,
}

impl Reader<'_> {
    pub(super) fn http_rule(&mut self, field: &str, value: &Value) -> Checked<RuleParts> {
        let raw: RawRule = part(field, value)?;
        let matches = matching::matches(field, raw.matches, check_match)?;

        let mut parts = RuleParts::new(raw.name, matches, self.kind, self.namespace);
        let refs = raw.backend_refs.unwrap_or_default();
        parts.rule.filters = self.filters(field, &raw.filters.unwrap_or_default(), &parts.matches)?;
        parts.rule.backends = self.backends(field, &refs, &parts.matches)?;
        if !refs.is_empty() && parts.rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_))) {
            return wrong(&format!("{field}.backendRefs"), "a rule that redirects has no backends");
        }
        parts.rule.timeouts = raw.timeouts.map_or(Ok(Timeouts::default()), |raw| timeouts(field, &raw))?;
        parts.rule.retry = raw.retry.map(|raw| retry(&format!("{field}.retry"), raw)).transpose()?;
        self.note_session(field, raw.session_persistence.as_ref());
        Ok(parts)
    }

    /// Stickiness changes no request's meaning: the rule works without it.
    pub(super) fn note_session(&mut self, field: &str, session: Option<&Value>) {
        if session.is_some() {
            let field = format!("{field}.sessionPersistence");
            self.flaws.push(Mistake::new(field, "not supported by this version: requests are balanced without it"));
        }
    }
}

fn check_match(field: &str, raw: RawMatch) -> Checked<Match> {
    Ok(Match {
        path: path(&format!("{field}.path.value"), raw.path.unwrap_or_default())?,
        method: raw.method.map(|name| method(&format!("{field}.method"), &name)).transpose()?,
        headers: matching::headers(&format!("{field}.headers"), raw.headers.unwrap_or_default())?,
        query: query(&format!("{field}.queryParams"), raw.query_params.unwrap_or_default())?,
    })
}

pub(super) fn path(field: &str, raw: RawPath) -> Checked<PathMatch> {
    let value = raw.value.unwrap_or_else(|| "/".to_owned());
    if value.len() > MAX_PATH_BYTES {
        return wrong(field, format!("{} bytes; the most is {MAX_PATH_BYTES}", value.len()));
    }
    match raw.kind {
        RawPathType::RegularExpression => matching::pattern(field, &value).map(PathMatch::Regex),
        RawPathType::Exact => plain_path(field, &value).map(|()| PathMatch::Exact(value.into())),
        RawPathType::PathPrefix => plain_path(field, &value).map(|()| PathMatch::Prefix(value.into())),
    }
}

/// The CRD's rules for paths that are compared: absolute, in normal form, of characters that a path can have.
fn plain_path(field: &str, path: &str) -> Checked<()> {
    if !path.starts_with('/') {
        return wrong(field, format!("`{path}` does not begin with /"));
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if path.contains(part) {
            return wrong(field, format!("`{path}` contains {part}"));
        }
    }
    if path.ends_with("/..") || path.ends_with("/.") {
        return wrong(field, format!("`{path}` ends in a dot segment"));
    }
    if !has_path_characters(path) {
        return wrong(field, format!("`{path}` has a character that must be percent-encoded in a path"));
    }
    Ok(())
}

fn has_path_characters(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !good {
            return false;
        }
    }
    true
}

fn method(field: &str, name: &str) -> Checked<Method> {
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    match name.parse() {
        Ok(method) if METHODS.contains(&name) => Ok(method),
        _ => wrong(field, format!("`{name}` is not one of {}", METHODS.join(", "))),
    }
}

/// Of two parameters with one name the first counts.
fn query(field: &str, raw: Vec<RawNamed>) -> Checked<Vec<QueryMatch>> {
    at_most(field, raw.len(), MAX_QUERY)?;
    let mut seen = HashSet::new();
    let mut query = Vec::with_capacity(raw.len());
    for (index, RawNamed { kind, name, value }) in raw.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let value = match kind {
            RawType::Exact | RawType::RegularExpression => matching::text(&format!("{field}.value"), kind, &value)?,
        };
        if name.is_empty() {
            return wrong(&format!("{field}.name"), "missing");
        }
        if seen.insert(name.clone()) {
            query.push(QueryMatch { name: name.into(), value });
        }
    }
    Ok(query)
}

fn timeouts(rule: &str, raw: &RawTimeouts) -> Checked<Timeouts> {
    let field = format!("{rule}.timeouts");
    let read = |name: &str, text: &Option<String>| {
        text.as_ref().map(|text| duration::read(&format!("{field}.{name}"), text)).transpose()
    };
    let limit = |given: Option<Duration>| given.filter(|duration| !duration.is_zero());
    let (request, backend_request) = (read("request", &raw.request)?, read("backendRequest", &raw.backend_request)?);
    let timeouts = Timeouts { request: limit(request), backend_request: limit(backend_request) };
    if let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
        && backend > request
    {
        return wrong(&format!("{field}.backendRequest"), "longer than `request`");
    }
    Ok(timeouts)
}

fn retry(field: &str, raw: RawRetry) -> Checked<Retry> {
    let attempts = raw.attempts.unwrap_or(DEFAULT_ATTEMPTS);
    if attempts == 0 {
        return wrong(&format!("{field}.attempts"), "0: leave `retry` out for no retries");
    }
    let mut codes = Vec::new();
    for (index, code) in raw.codes.unwrap_or_default().into_iter().enumerate() {
        match StatusCode::from_u16(code) {
            Ok(status) if (400..600).contains(&code) => codes.push(status),
            _ => return wrong(&format!("{field}.codes[{index}]"), format!("{code} is not within 400-599")),
        }
    }
    let backoff = raw.backoff.map(|text| duration::read(&format!("{field}.backoff"), &text)).transpose()?;
    Ok(Retry { attempts, codes, backoff: backoff.unwrap_or(DEFAULT_BACKOFF) })
}
