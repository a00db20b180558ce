//! Filters in the order in which a rule lists them: on the way in, on the way back, and those that answer.

use http::HeaderMap;
use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Uri};

use super::{Answer, AnswerReason, Dialled, RequestView, cors, path, redirect};
use crate::model::route::{Filter, HeaderEdit, Rewrite};

/// The answer that the first of `filters` gives which answers; `None`: the request goes on.
pub(super) fn answer(filters: &[Filter], request: &RequestView<'_>, dialled: Dialled) -> Option<Answer> {
    let mut answer = filters.iter().find_map(|filter| match filter {
        Filter::Redirect(to) => Some(redirect::answer(to, request, dialled)),
        Filter::Cors(cors) => cors::preflight(cors, request),
        Filter::Unsupported(kind) => {
            let detail = format!("filter {kind} is not supported by this version");
            Some(Answer::new(AnswerReason::UnsupportedFilter, request, &detail))
        }
        _ => None,
    })?;
    if answer.reason == AnswerReason::Redirect {
        // A browser follows a redirect of another origin only where it may read it.
        edit_response(filters.iter(), request.headers.get(http::header::ORIGIN), &mut answer.headers);
    }
    Some(answer)
}

/// Applies what changes the request.
pub(super) fn edit_request<'a>(filters: impl Iterator<Item = &'a Filter>, parts: &mut Parts) -> Result<(), Answer> {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(edit) => edit_request_headers(edit, parts)?,
            Filter::Rewrite(rewrite) => edit_target(rewrite, parts)?,
            _ => {}
        }
    }
    Ok(())
}

/// Applies what changes the answer; `origin` is the request's.
pub(super) fn edit_response<'a>(
    filters: impl Iterator<Item = &'a Filter>,
    origin: Option<&HeaderValue>,
    headers: &mut HeaderMap,
) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(edit) => edit_headers(edit, headers),
            Filter::Cors(cors) => cors::respond(cors, origin, headers),
            _ => {}
        }
    }
}

/// `Host` is the request's authority, wherever its version of HTTP keeps it.
fn edit_request_headers(edit: &HeaderEdit, parts: &mut Parts) -> Result<(), Answer> {
    let host = |list: &[(HeaderName, HeaderValue)]| list.iter().find(|(name, _)| name == HOST).map(|(_, v)| v.clone());
    let authority = host(&edit.set).filter(|_| parts.uri.authority().is_some());
    edit_headers(edit, &mut parts.headers);
    match authority.as_ref().map(|value| value.to_str()) {
        None | Some(Err(_)) => Ok(()),
        Some(Ok(authority)) => replace_uri(parts, Some(authority), None),
    }
}

/// Set, add, remove.
fn edit_headers(edit: &HeaderEdit, headers: &mut HeaderMap) {
    for (name, value) in &edit.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &edit.add {
        headers.append(name, value.clone());
    }
    for name in &edit.remove {
        headers.remove(name);
    }
}

fn edit_target(rewrite: &Rewrite, parts: &mut Parts) -> Result<(), Answer> {
    let authority = rewrite.hostname.as_deref().filter(|_| parts.uri.authority().is_some());
    let target = rewrite.path.as_ref().map(|edit| with_query(path::edited(parts.uri.path(), edit), parts.uri.query()));
    if authority.is_some() || target.is_some() {
        replace_uri(parts, authority, target)?;
    }
    if let Some(hostname) = &rewrite.hostname
        && (parts.uri.authority().is_none() || parts.headers.contains_key(HOST))
    {
        let value = HeaderValue::from_str(hostname).map_err(|_| refused(parts, "the new host is no header value"))?;
        parts.headers.insert(HOST, value);
    }
    Ok(())
}

/// `path?query`.
pub(super) fn with_query(path: String, query: Option<&str>) -> String {
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

fn replace_uri(parts: &mut Parts, authority: Option<&str>, target: Option<String>) -> Result<(), Answer> {
    let mut uri = parts.uri.clone().into_parts();
    if let Some(authority) = authority {
        uri.authority = Some(authority.parse::<Authority>().map_err(|_| refused(parts, "the new host is no host"))?);
    }
    if let Some(target) = target {
        let target = target.parse::<PathAndQuery>().map_err(|_| refused(parts, "the new path is no path"))?;
        uri.path_and_query = Some(target);
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| refused(parts, "the new target is no URI"))?;
    Ok(())
}

fn refused(parts: &Parts, detail: &str) -> Answer {
    Answer::new(AnswerReason::BadRequest, &RequestView::of(parts), detail)
}
