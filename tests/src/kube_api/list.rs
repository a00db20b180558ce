//! LIST: which objects, at which version, and in which pieces.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::failure::Failure;
use super::render::{self, Form};
use super::request::{Place, Request};
use super::selector::Selector;
use super::store::{Key, Objects};
use super::table;

/// A token of the list that goes on from here at the newest version.
const NEWEST: u64 = 0;

/// Answers a LIST.
///
/// # Errors
/// 410 for a version that is forgotten, 504 for one to come, 400 and 422 for what does not fit together.
pub fn answer(cluster: &Cluster, request: &Request, place: &Place, now: Timestamp) -> Result<Vec<u8>, Failure> {
    let selector = selector(request, place)?;
    let (version, from, objects) = state(cluster, request, place)?;
    let limit = match request.parameter("limit").parse::<usize>() {
        // The cache serves whatever it has, whole.
        Ok(limit) if limit > 0 && request.parameter("resourceVersion") != "0" => limit,
        _ => usize::MAX,
    };
    let meant = |key: &Key, object: &Arc<Value>| {
        place.namespace.as_ref().is_none_or(|namespace| key.0 == *namespace)
            && place.name.as_ref().is_none_or(|name| key.1 == *name)
            && selector.matches(object)
    };
    let after = |key: &Key| from.as_ref().is_none_or(|from| key > from);
    let rest: Vec<(&Key, &Arc<Value>)> =
        objects.iter().filter(|(key, object)| after(key) && meant(key, object)).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (true, Some((last, _))) = (rest.len() > limit, rest.get(limit.saturating_sub(1))) {
        metadata["continue"] = json!(token(version, last));
        if selector.is_everything() {
            metadata["remainingItemCount"] = json!(rest.len() - limit);
        }
    }
    let items = rest.iter().take(limit).map(|(_, object)| object.as_ref());
    if request.wants("as=Table")
        && let Some(table) = table::table(&place.kind, &metadata, items.clone(), now)
    {
        return Ok(table.to_string().into_bytes());
    }
    let mut text = Vec::new();
    render::list(&mut text, &place.kind, &metadata, items, form(request));
    Ok(text)
}

/// Both selectors of a request.
///
/// # Errors
/// 400 for what does not parse.
pub fn selector(request: &Request, place: &Place) -> Result<Selector, Failure> {
    Selector::parse(&place.kind, request.parameter("labelSelector"), request.parameter("fieldSelector"))
}

/// The form that a request asks for.
#[must_use]
pub fn form(request: &Request) -> Form {
    let partial = request.wants("as=PartialObjectMetadata") || request.wants("as=PartialObjectMetadataList");
    if partial { Form::Metadata } else { Form::Whole }
}

/// The version of a query; none when it is not given.
///
/// # Errors
/// 400 for what is no version.
pub fn version(request: &Request) -> Result<Option<u64>, Failure> {
    match request.parameter("resourceVersion") {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            let what =
                format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing: invalid syntax");
            Failure::bad_request(what)
        }),
    }
}

/// 422 for a parameter that does not go with the others.
#[must_use]
pub fn wrong_option(field: &str, what: &str) -> Failure {
    Failure::invalid("ListOptions.meta.k8s.io", "", &[("FieldValueForbidden", field.to_owned(), what.to_owned())])
}

fn state(cluster: &Cluster, request: &Request, place: &Place) -> Result<(u64, Option<Key>, Objects), Failure> {
    let (resource, current) = (place.kind.resource(), cluster.store.version());
    let asked = version(request)?;
    let how = request.parameter("resourceVersionMatch");
    let at = |version: u64| cluster.store.objects_at(&resource, version);
    if !request.parameter("continue").is_empty() {
        if asked.is_some_and(|asked| asked != 0) {
            return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (version, from) = parse_token(request.parameter("continue"))
            .ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
        if version == NEWEST {
            return Ok((current, Some(from), at(current)?));
        }
        let objects = at(version).map_err(|_| {
            let mut failure = Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list",
            );
            failure.go_on = Some(token(NEWEST, &from));
            failure
        })?;
        return Ok((version, Some(from), objects));
    }
    match (how, asked) {
        ("", _) | ("NotOlderThan", Some(_)) | ("Exact", Some(1..)) => {}
        ("NotOlderThan" | "Exact", None) => {
            let what = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(wrong_option("resourceVersionMatch", what));
        }
        ("Exact", Some(_)) => {
            let what = "Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
            return Err(wrong_option("resourceVersionMatch", what));
        }
        (other, _) => {
            let what = format!("Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\"");
            return Err(wrong_option("resourceVersionMatch", &what));
        }
    }
    if let Some(asked) = asked.filter(|&asked| asked > current) {
        return Err(Failure::too_large(asked, current));
    }
    let version = asked.filter(|_| how == "Exact").unwrap_or(current);
    Ok((version, None, at(version)?))
}

fn token(version: u64, last: &Key) -> String {
    let words = json!({"v": "meta.k8s.io/v1", "rv": version, "start": [last.0, last.1]});
    URL_SAFE_NO_PAD.encode(words.to_string())
}

fn parse_token(text: &str) -> Option<(u64, Key)> {
    let words: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let part = |place: usize| words["start"].get(place).and_then(Value::as_str).map(str::to_owned);
    Some((words["rv"].as_u64()?, (part(0)?, part(1)?)))
}
