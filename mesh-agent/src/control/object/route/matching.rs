//! Matches: headers and patterns, which HTTPRoute and GRPCRoute share.

use std::collections::HashSet;

use http::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Checked, MAX_MATCHES, at_most, wrong};
use crate::model::route::{HeaderMatch, Match, Pattern, TextMatch};

const MAX_HEADERS: usize = 16;
const MAX_VALUE_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq)]
pub(in crate::control::object) enum RawType {
    #[default]
    Exact,
    RegularExpression,
}

/// A header or query parameter. The schema is that of a header in our own kinds.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!self.name.matches('(?i)^host$')", "message": "use hosts: HTTP/2 has no such header",
}]))]
pub(in crate::control::object) struct RawNamed {
    /// How the value is compared; absent: Exact.
    #[serde(rename = "type", default)]
    pub(super) kind: RawType,
    /// Its name.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub(in crate::control::object) name: String,
    /// Its value.
    #[schemars(length(min = 1, max = MAX_VALUE_BYTES))]
    pub(super) value: String,
}

/// The matches of a rule; one that matches everything where it has none.
pub(super) fn matches<R: Default>(
    rule: &str,
    raw: Option<Vec<R>>,
    check: impl Fn(&str, R) -> Checked<Match>,
) -> Checked<Vec<Match>> {
    let raw = raw.filter(|matches| !matches.is_empty()).unwrap_or_else(|| vec![R::default()]);
    at_most(&format!("{rule}.matches"), raw.len(), MAX_MATCHES)?;
    raw.into_iter().enumerate().map(|(at, raw)| check(&format!("{rule}.matches[{at}]"), raw)).collect()
}

/// The header matches at `field`; of two with one name the first counts.
pub(super) fn headers(field: &str, raw: Vec<RawNamed>) -> Checked<Vec<HeaderMatch>> {
    at_most(field, raw.len(), MAX_HEADERS)?;
    let mut seen = HashSet::new();
    let mut headers = Vec::with_capacity(raw.len());
    for (index, RawNamed { kind, name, value }) in raw.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = header_name(&format!("{field}.name"), &name)?;
        let value = text(&format!("{field}.value"), kind, &value)?;
        if seen.insert(name.clone()) {
            headers.push(HeaderMatch { name, value });
        }
    }
    Ok(headers)
}

/// A text of the type given.
pub(super) fn text(field: &str, kind: RawType, value: &str) -> Checked<TextMatch> {
    if value.is_empty() || value.len() > MAX_VALUE_BYTES {
        return wrong(field, format!("{} bytes: 1 to {MAX_VALUE_BYTES} are needed", value.len()));
    }
    match kind {
        RawType::Exact => Ok(TextMatch::Exact(value.into())),
        RawType::RegularExpression => pattern(field, value).map(TextMatch::Regex),
    }
}

pub(super) fn pattern(field: &str, source: &str) -> Checked<Pattern> {
    Pattern::new(source).or_else(|reason| wrong(field, format!("`{source}` is no pattern: {reason}")))
}

pub(super) fn header_name(field: &str, name: &str) -> Checked<HeaderName> {
    name.parse().or_else(|_| wrong(field, format!("`{name}` is not a header name")))
}

pub(super) fn header_value(field: &str, value: &str) -> Checked<HeaderValue> {
    let trimmed = !value.is_empty() && value.trim() == value;
    let value_ok = trimmed && value.is_ascii() && value.len() <= MAX_VALUE_BYTES;
    match value.parse() {
        Ok(parsed) if value_ok => Ok(parsed),
        _ => wrong(field, format!("`{value}` is not a header value")),
    }
}

/// A host as filters write it.
pub(super) fn hostname(field: &str, host: &str) -> Checked<()> {
    let label = |label: &str| {
        let ends = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let bytes = label.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(inner)
    };
    if host.len() <= 253 && host.split('.').all(label) {
        return Ok(());
    }
    wrong(field, format!("`{host}` is not a host name in lower case"))
}
