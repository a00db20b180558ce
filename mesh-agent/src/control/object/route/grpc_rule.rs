//! The rules of a GRPCRoute.

use serde::Deserialize;
use serde_json::Value;

use super::matching::{self, RawNamed, RawType};
use super::{Checked, Reader, RuleParts, part, wrong};
use crate::model::route::{Match, PathMatch, TextMatch};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    matches: Option<Vec<RawMatch>>,
    filters: Option<Vec<Value>>,
    backend_refs: Option<Vec<Value>>,
    session_persistence: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct RawMatch {
    method: Option<RawMethod>,
    headers: Option<Vec<RawNamed>>,
}

#[derive(Debug, Deserialize)]
struct RawMethod {
    #[serde(rename = "type", default)]
    kind: RawType,
    service: Option<String>,
    method: Option<String>,
}

impl Reader<'_> {
    pub(super) fn grpc_rule(&mut self, field: &str, value: &Value) -> Checked<RuleParts> {
        let raw: RawRule = part(field, value)?;
        let matches = matching::matches(field, raw.matches, check_match)?;

        let mut parts = RuleParts::new(raw.name, matches, self.kind, self.namespace);
        parts.rule.filters = self.filters(field, &raw.filters.unwrap_or_default(), &parts.matches)?;
        parts.rule.backends = self.backends(field, &raw.backend_refs.unwrap_or_default(), &parts.matches)?;
        self.note_session(field, raw.session_persistence.as_ref());
        Ok(parts)
    }
}

fn check_match(field: &str, raw: RawMatch) -> Checked<Match> {
    let headers = matching::headers(&format!("{field}.headers"), raw.headers.unwrap_or_default())?;
    let path = match raw.method {
        None => PathMatch::Grpc { service: None, method: None },
        Some(raw) => method(&format!("{field}.method"), raw)?,
    };
    Ok(Match { path, method: None, headers, query: Vec::new() })
}

fn method(field: &str, raw: RawMethod) -> Checked<PathMatch> {
    // An empty name is none (the API's own reading).
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (service, method) = (given(raw.service), given(raw.method));
    if service.is_none() && method.is_none() {
        return wrong(field, "neither `service` nor `method`");
    }
    let read = |name: &str, text: Option<String>, is_name: fn(&str) -> bool| -> Checked<Option<TextMatch>> {
        let Some(text) = text else { return Ok(None) };
        let field = format!("{field}.{name}");
        if raw.kind == RawType::Exact && !is_name(&text) {
            return wrong(&field, format!("`{text}` is not a {name} name of gRPC"));
        }
        matching::text(&field, raw.kind, &text).map(Some)
    };
    let is_service = |text: &str| text.strip_prefix('.').unwrap_or(text).split('.').all(is_identifier);
    Ok(PathMatch::Grpc {
        service: read("service", service, is_service)?,
        method: read("method", method, is_identifier)?,
    })
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
