//! `requestAttributes` of an AuthorizationPolicy's rule: what it asks of a request.
//!
//! ```yaml
//! requestAttributes:                    # absent: connections, whatever they carry
//!   methods: [GET, HEAD]
//!   paths: [{value: /api}, {type: Exact, value: /healthz}]    # type absent: PathPrefix
//!   hosts: [shop.example, '*.shop.example']
//!   headers: [{name: x-team, value: blue}]                    # all of them
//! ```
//!
//! A list that is there and empty is a mistake: it would match nothing, which opens a DENY.

use schemars::JsonSchema;
use serde::Deserialize;

use super::authorization_fields::present;
use super::decode::Mistake;
use super::route::{self, RawNamed, RawPath};
use crate::model::policy::{HostMatch, RequestMatch};
use crate::model::route::PathMatch;
use crate::policy::request::canonical;

/// What a rule asks of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.methods) || has(self.paths) || has(self.hosts) || has(self.headers)",
    "message": "asks for nothing: leave it out for every connection",
}]))]
pub(super) struct RawRequests {
    /// One of these methods, in upper case.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 64), regex(pattern = METHOD)))]
    methods: Option<Vec<String>>,
    /// One of these paths, compared in canonical form.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1, max = 64))]
    paths: Option<Vec<RawPath>>,
    /// One of these hosts; `*.` stands for one label or more.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 255), regex(pattern = HOST)))]
    hosts: Option<Vec<String>>,
    /// All of these headers.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1, max = 16))]
    headers: Option<Vec<RawNamed>>,
}

/// Tokens of RFC 9110 without lower case.
const METHOD: &str = "^[A-Z0-9!#$%&'*+.^_`|~-]+$";
const HOST: &str = r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$";

pub(super) fn check(field: &str, raw: RawRequests) -> Result<RequestMatch, Mistake> {
    let RawRequests { methods, paths, hosts, headers } = raw;
    if methods.is_none() && paths.is_none() && hosts.is_none() && headers.is_none() {
        return Err(Mistake::new(field, "asks for nothing: leave it out for every connection"));
    }
    let headers_field = format!("{field}.headers");
    let headers = headers.map(|raw| {
        not_empty(&headers_field, &raw)?;
        if let Some(at) = raw.iter().position(|one| one.name.eq_ignore_ascii_case("host")) {
            return Err(Mistake::new(format!("{headers_field}[{at}].name"), "use `hosts`: HTTP/2 has no such header"));
        }
        route::check_headers(&headers_field, raw)
    });
    Ok(RequestMatch {
        methods: each(&format!("{field}.methods"), methods, check_method)?,
        paths: each(&format!("{field}.paths"), paths, check_path)?,
        hosts: each(&format!("{field}.hosts"), hosts, check_host)?,
        headers: headers.transpose()?.unwrap_or_default(),
    })
}

fn not_empty<T>(field: &str, list: &[T]) -> Result<(), Mistake> {
    if list.is_empty() { Err(Mistake::new(field, "an empty list: name one or leave it out")) } else { Ok(()) }
}

fn each<R, T>(
    field: &str,
    raw: Option<Vec<R>>,
    check: impl Fn(&str, R) -> Result<T, Mistake>,
) -> Result<Option<Vec<T>>, Mistake> {
    let Some(raw) = raw else { return Ok(None) };
    not_empty(field, &raw)?;
    let checked = raw.into_iter().enumerate().map(|(at, one)| check(&format!("{field}[{at}]"), one));
    checked.collect::<Result<_, _>>().map(Some)
}

/// Methods are case-sensitive (RFC 9110 §9.1): `get` would match nothing.
fn check_method(field: &str, name: String) -> Result<http::Method, Mistake> {
    let is_upper = !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_lowercase());
    match name.parse() {
        Ok(method) if is_upper => Ok(method),
        _ => Err(Mistake::new(field, format!("`{name}` is not a method in upper case"))),
    }
}

/// Paths are compared in canonical form, so that is how they are kept.
fn check_path(field: &str, raw: RawPath) -> Result<PathMatch, Mistake> {
    // The default of routes, everything, is no default for a permission.
    if raw.value.is_none() {
        return Err(Mistake::new(format!("{field}.value"), "missing"));
    }
    let canonical = |path: &str| {
        let ambiguous = || Mistake::new(format!("{field}.value"), format!("`{path}` can be read in several ways"));
        canonical(path).ok_or_else(ambiguous)
    };
    Ok(match route::check_path(&format!("{field}.value"), raw)? {
        PathMatch::Exact(path) => PathMatch::Exact(canonical(&path)?.into()),
        PathMatch::Prefix(path) => PathMatch::Prefix(canonical(&path)?.into()),
        other => other,
    })
}

fn check_host(field: &str, host: String) -> Result<HostMatch, Mistake> {
    match host.strip_prefix("*.") {
        Some(end) => route::check_host(field, end).map(|()| HostMatch::Below(format!(".{end}").into())),
        None => route::check_host(field, &host).map(|()| HostMatch::Exact(host.into())),
    }
}
