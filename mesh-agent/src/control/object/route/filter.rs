//! Filters of HTTPRoute and GRPCRoute.

use std::collections::HashSet;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use serde::Deserialize;
use serde_json::Value;

use super::backend::RawReference;
use super::cors::{self, RawCors};
use super::{Checked, Mistake, Reader, at_most, matching, part, wrong};
use crate::model::route::{
    Filter, HeaderEdit, Match, Mirror, PathEdit, PathMatch, Redirect, Rewrite, RouteKind, Scheme,
};

const MAX_FILTERS: usize = 16;
const MAX_EDITS: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFilter {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Option<RawEdit>,
    response_header_modifier: Option<RawEdit>,
    request_mirror: Option<RawMirror>,
    request_redirect: Option<RawRedirect>,
    url_rewrite: Option<RawRewrite>,
    cors: Option<RawCors>,
}

#[derive(Debug, Deserialize)]
struct RawEdit {
    set: Option<Vec<RawHeader>>,
    add: Option<Vec<RawHeader>>,
    remove: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct RawHeader {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMirror {
    backend_ref: RawReference,
    percent: Option<u32>,
    fraction: Option<RawFraction>,
}

#[derive(Debug, Deserialize)]
struct RawFraction {
    numerator: u32,
    denominator: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRedirect {
    scheme: Option<RawScheme>,
    hostname: Option<String>,
    path: Option<RawPathEdit>,
    port: Option<u16>,
    status_code: Option<u16>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawScheme {
    Http,
    Https,
}

#[derive(Debug, Deserialize)]
struct RawRewrite {
    hostname: Option<String>,
    path: Option<RawPathEdit>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPathEdit {
    #[serde(rename = "type")]
    kind: RawPathEditType,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
enum RawPathEditType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

/// The filters that a kind of route may have and this version does.
fn is_supported(kind: RouteKind, name: &str) -> bool {
    match name {
        "RequestHeaderModifier" | "ResponseHeaderModifier" | "RequestMirror" => true,
        "RequestRedirect" | "URLRewrite" | "CORS" => kind == RouteKind::Http,
        _ => false,
    }
}

impl Reader<'_> {
    /// The filters of the rule or backend at `owner`.
    pub(super) fn filters(&mut self, owner: &str, values: &[Value], matches: &[Match]) -> Checked<Vec<Filter>> {
        at_most(&format!("{owner}.filters"), values.len(), MAX_FILTERS)?;
        let mut seen = HashSet::new();
        let mut filters = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            let field = format!("{owner}.filters[{index}]");
            let Some(kind) = value.get("type").and_then(Value::as_str) else {
                return wrong(&format!("{field}.type"), "missing");
            };
            if !is_supported(self.kind, kind) {
                let reason = format!("filter {kind} is not supported: its requests are answered 500");
                self.flaws.push(Mistake::new(format!("{field}.type"), reason));
                filters.push(Filter::Unsupported(kind.into()));
                continue;
            }
            if !seen.insert(kind.to_owned()) && kind != "RequestMirror" {
                return wrong(&format!("{field}.type"), format!("{kind} stands twice"));
            }
            filters.push(self.filter(&field, part(&field, value)?, matches)?);
        }
        if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
            return wrong(&format!("{owner}.filters"), "RequestRedirect and URLRewrite exclude one another");
        }
        Ok(filters)
    }

    fn filter(&self, field: &str, raw: RawFilter, matches: &[Match]) -> Checked<Filter> {
        let given = [
            ("RequestHeaderModifier", raw.request_header_modifier.is_some()),
            ("ResponseHeaderModifier", raw.response_header_modifier.is_some()),
            ("RequestMirror", raw.request_mirror.is_some()),
            ("RequestRedirect", raw.request_redirect.is_some()),
            ("URLRewrite", raw.url_rewrite.is_some()),
            ("CORS", raw.cors.is_some()),
        ];
        if let Some((other, _)) = given.iter().find(|(name, is_given)| *is_given && *name != raw.kind) {
            return wrong(field, format!("the fields of {other} do not belong to type {}", raw.kind));
        }
        let at = |name: &str| format!("{field}.{name}");
        Ok(if let Some(raw) = raw.request_header_modifier {
            Filter::RequestHeaders(edit(&at("requestHeaderModifier"), raw)?)
        } else if let Some(raw) = raw.response_header_modifier {
            Filter::ResponseHeaders(edit(&at("responseHeaderModifier"), raw)?)
        } else if let Some(raw) = raw.request_mirror {
            Filter::Mirror(self.mirror(&at("requestMirror"), raw)?)
        } else if let Some(raw) = raw.request_redirect {
            Filter::Redirect(redirect(&at("requestRedirect"), raw, matches)?)
        } else if let Some(raw) = raw.url_rewrite {
            Filter::Rewrite(rewrite(&at("urlRewrite"), raw, matches)?)
        } else if let Some(raw) = raw.cors {
            Filter::Cors(cors::read(&at("cors"), raw)?)
        } else {
            return wrong(field, format!("type {} needs its fields", raw.kind));
        })
    }

    fn mirror(&self, field: &str, raw: RawMirror) -> Checked<Mirror> {
        let (numerator, denominator) = match (raw.percent, raw.fraction) {
            (None, None) => (100, 100),
            (Some(percent), None) => (percent, 100),
            (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
            (Some(_), Some(_)) => return wrong(field, "`percent` and `fraction` exclude one another"),
        };
        if denominator == 0 || numerator > denominator {
            return wrong(field, format!("{numerator} of {denominator} is no share"));
        }
        let target = self.target(&format!("{field}.backendRef"), raw.backend_ref)?;
        Ok(Mirror { target, numerator, denominator })
    }
}

fn edit(field: &str, raw: RawEdit) -> Checked<HeaderEdit> {
    let mut remove = Vec::new();
    let names = raw.remove.unwrap_or_default();
    at_most(&format!("{field}.remove"), names.len(), MAX_EDITS)?;
    for (index, name) in names.iter().enumerate() {
        remove.push(matching::header_name(&format!("{field}.remove[{index}]"), name)?);
    }
    Ok(HeaderEdit {
        set: headers(&format!("{field}.set"), raw.set.unwrap_or_default())?,
        add: headers(&format!("{field}.add"), raw.add.unwrap_or_default())?,
        remove,
    })
}

/// Of two headers with one name the first counts.
fn headers(field: &str, raw: Vec<RawHeader>) -> Checked<Vec<(HeaderName, HeaderValue)>> {
    at_most(field, raw.len(), MAX_EDITS)?;
    let mut seen = HashSet::new();
    let mut headers = Vec::with_capacity(raw.len());
    for (index, RawHeader { name, value }) in raw.into_iter().enumerate() {
        let name = matching::header_name(&format!("{field}[{index}].name"), &name)?;
        let value = matching::header_value(&format!("{field}[{index}].value"), &value)?;
        if seen.insert(name.clone()) {
            headers.push((name, value));
        }
    }
    Ok(headers)
}

fn redirect(field: &str, raw: RawRedirect, matches: &[Match]) -> Checked<Redirect> {
    let status = raw.status_code.unwrap_or(302);
    let status = match StatusCode::from_u16(status) {
        Ok(code) if [301, 302, 303, 307, 308].contains(&status) => code,
        _ => return wrong(&format!("{field}.statusCode"), format!("{status} is not 301, 302, 303, 307 or 308")),
    };
    if raw.port == Some(0) {
        return wrong(&format!("{field}.port"), "0 is not a port");
    }
    let scheme = raw.scheme.map(|scheme| match scheme {
        RawScheme::Http => Scheme::Http,
        RawScheme::Https => Scheme::Https,
    });
    let Rewrite { hostname, path } = rewrite(field, RawRewrite { hostname: raw.hostname, path: raw.path }, matches)?;
    Ok(Redirect { scheme, hostname, port: raw.port, path, status })
}

fn rewrite(field: &str, raw: RawRewrite, matches: &[Match]) -> Checked<Rewrite> {
    if let Some(hostname) = &raw.hostname {
        matching::hostname(&format!("{field}.hostname"), hostname)?;
    }
    let path = raw.path.map(|raw| path_edit(&format!("{field}.path"), raw, matches)).transpose()?;
    Ok(Rewrite { hostname: raw.hostname.map(Into::into), path })
}

fn path_edit(field: &str, raw: RawPathEdit, matches: &[Match]) -> Checked<PathEdit> {
    match (raw.kind, raw.replace_full_path, raw.replace_prefix_match) {
        (RawPathEditType::ReplaceFullPath, Some(full), None) => {
            replacement(&format!("{field}.replaceFullPath"), &full)?;
            Ok(PathEdit::Full(full.into()))
        }
        (RawPathEditType::ReplacePrefixMatch, None, Some(new)) => {
            replacement(&format!("{field}.replacePrefixMatch"), &new)?;
            let [Match { path: PathMatch::Prefix(matched), .. }] = matches else {
                return wrong(field, "ReplacePrefixMatch needs exactly one match, of type PathPrefix");
            };
            Ok(PathEdit::Prefix { matched: matched.clone(), replacement: new.into() })
        }
        (kind, ..) => wrong(field, format!("type {kind:?} needs the field of its name and no other")),
    }
}

/// Empty, or a path: what is put together from it is then a URI.
fn replacement(field: &str, path: &str) -> Checked<()> {
    let is_path = path.starts_with('/')
        && !path.contains(['?', '#'])
        && path.is_ascii()
        && path.parse::<PathAndQuery>().is_ok_and(|parsed| parsed.query().is_none());
    if path.is_empty() || is_path { Ok(()) } else { wrong(field, format!("`{path}` is not a path that begins with /")) }
}
