//! The CORS filter.

use http::header::HeaderName;
use serde::Deserialize;

use super::{Checked, at_most, wrong};
use crate::model::route::{AllowList, Cors, OriginMatch, Scheme};

const MAX_ENTRIES: usize = 64;
/// The API's default: browsers ask again after so many seconds.
const DEFAULT_MAX_AGE: u32 = 5;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawCors {
    allow_origins: Option<Vec<String>>,
    allow_credentials: Option<bool>,
    allow_methods: Option<Vec<String>>,
    allow_headers: Option<Vec<String>>,
    expose_headers: Option<Vec<String>>,
    max_age: Option<u32>,
}

pub(super) fn read(field: &str, raw: RawCors) -> Checked<Cors> {
    let origins = raw.allow_origins.unwrap_or_default();
    alone(&format!("{field}.allowOrigins"), &origins)?;
    let read = |(at, text): (usize, &String)| origin(&format!("{field}.allowOrigins[{at}]"), text);
    let origins = origins.iter().enumerate().map(read).collect::<Checked<_>>()?;
    let max_age = raw.max_age.unwrap_or(DEFAULT_MAX_AGE);
    if max_age == 0 {
        return wrong(&format!("{field}.maxAge"), "0: at least one second");
    }
    let expose = raw.expose_headers.unwrap_or_default();
    at_most(&format!("{field}.exposeHeaders"), expose.len(), MAX_ENTRIES)?;
    Ok(Cors {
        origins,
        credentials: raw.allow_credentials.unwrap_or(false),
        methods: list(&format!("{field}.allowMethods"), raw.allow_methods.unwrap_or_default())?,
        headers: list(&format!("{field}.allowHeaders"), raw.allow_headers.unwrap_or_default())?,
        expose: tokens(&format!("{field}.exposeHeaders"), expose)?,
        max_age,
    })
}

/// `*` stands alone.
fn alone(field: &str, entries: &[String]) -> Checked<()> {
    at_most(field, entries.len(), MAX_ENTRIES)?;
    if entries.len() > 1 && entries.iter().any(|entry| entry == "*") {
        return wrong(field, "`*` stands alone");
    }
    Ok(())
}

fn list(field: &str, entries: Vec<String>) -> Checked<AllowList> {
    alone(field, &entries)?;
    tokens(field, entries)
}

/// Methods and header names have the same characters (RFC 9110 §5.6.2).
fn tokens(field: &str, entries: Vec<String>) -> Checked<AllowList> {
    if entries.iter().any(|entry| entry == "*") {
        return Ok(AllowList::Any);
    }
    if let Some(at) = entries.iter().position(|entry| HeaderName::from_bytes(entry.as_bytes()).is_err()) {
        return wrong(&format!("{field}[{at}]"), "not a method or header name");
    }
    Ok(AllowList::Only(entries.into_iter().map(Into::into).collect()))
}

/// `*`, or a scheme and a host whose left end may be `*`, with an optional port.
fn origin(field: &str, text: &str) -> Checked<OriginMatch> {
    if text == "*" {
        return Ok(OriginMatch::Any);
    }
    let parsed = text.split_once("://").and_then(|(scheme, authority)| {
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
            None => (authority, scheme.port()),
        };
        let (wildcard, end) = match host.strip_prefix('*') {
            Some(end) => (true, end),
            None => (false, host),
        };
        // Of `*.example.org` the end is `.example.org`, of `*` nothing.
        let labels = if wildcard { end.strip_prefix('.').unwrap_or(end) } else { end };
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_host = labels.split('.').all(is_label) && (!wildcard || end.starts_with('.'));
        let is_any = wildcard && end.is_empty();
        (is_host || is_any).then(|| OriginMatch::Origin {
            scheme,
            host: end.to_ascii_lowercase().into(),
            wildcard,
            port,
        })
    });
    parsed.map_or_else(|| wrong(field, format!("`{text}` is not an origin such as https://shop.example")), Ok)
}
