//! One request, one answer: discovery, the verbs of resources, tokens. Watches are only begun here.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::cluster::{Cluster, DeleteOptions, Deleted};
use super::exec::{self, Containers, Exec};
use super::failure::Failure;
use super::kind::Kind;
use super::ownership::Manager;
use super::render::{self, Form};
use super::request::{Place, Request, place};
use super::roles::{self, Wish};
use super::store::Key;
use super::watch::{self, Watch};
use super::write::{Change, Patch};
use super::{discovery, list, openapi, strict, table};

/// The token of the kubeconfigs that the server writes: it may everything.
pub const ADMIN_TOKEN: &str = "the-harness-is-admin";

/// Who may not do what, as (verb, resource): `("list", "pods")`, `("update", "httproutes/status")`.
pub type Forbidden = [(String, String)];

/// What becomes of a request.
#[derive(Debug)]
pub enum Outcome {
    /// An answer with this code.
    Answer(u16, Vec<u8>),
    /// The same, and the object with this uid goes when its grace is over.
    Going(Vec<u8>, Box<Place>, String, Duration),
    /// Events until further notice.
    Watch(Box<Watch>),
    /// A command to be run in a container.
    Exec(Box<Exec>),
    /// There is no such path.
    Nowhere,
}

/// What decides about a request besides the cluster.
#[derive(Debug)]
pub struct Around<'a> {
    /// Who may not do what.
    pub forbidden: &'a Forbidden,
    /// What runs.
    pub containers: &'a Containers,
}

/// Answers `request`.
///
/// # Errors
/// What the server refuses.
pub fn answer(
    cluster: &mut Cluster,
    request: &Request,
    around: &Around<'_>,
    now: Timestamp,
) -> Result<Outcome, Failure> {
    let forbidden = around.forbidden;
    if matches!(request.path.as_str(), "/healthz" | "/livez" | "/readyz") {
        return Ok(Outcome::Answer(200, b"ok".to_vec()));
    }
    let who = user(cluster, request, now)?;
    let user = who["username"].as_str().unwrap_or_default().to_owned();
    let by = |change: Change| Change { user: Some(who.clone()), ..change };
    if request.path.starts_with("/openapi/") {
        let document = openapi::document(&request.path, cluster.kinds());
        return Ok(document.map_or(Outcome::Nowhere, |text| Outcome::Answer(200, text.to_string().into_bytes())));
    }
    if !request.takes_json() {
        let what = "only the following media types are accepted: application/json";
        return Err(Failure::new(406, "NotAcceptable", what));
    }
    if request.method == "GET"
        && let Some(document) = discovery::document(&request.path, cluster.kinds())
    {
        return Ok(Outcome::Answer(200, document.to_string().into_bytes()));
    }
    if request.path == "/apis/authentication.k8s.io/v1/tokenreviews" && request.method == "POST" {
        let (group, resource) = ("authentication.k8s.io", "tokenreviews");
        let wish = Wish { verb: "create", group, resource, namespace: None, name: None };
        permitted(cluster, &user, &wish, forbidden)?;
        let review = body(request)?;
        return Ok(Outcome::Answer(201, cluster.review_token(&review, now).to_string().into_bytes()));
    }
    let Some(place) = place(&request.path, cluster.kinds()) else { return Ok(Outcome::Nowhere) };
    let verb = verb(request, &place)?;
    let resource = match &place.subresource {
        Some(subresource) => format!("{}/{subresource}", place.kind.plural),
        None => place.kind.plural.clone(),
    };
    let (namespace, name) = (place.namespace.as_deref(), place.name.as_deref());
    let wish = Wish { verb, group: &place.kind.group, resource: &resource, namespace, name };
    permitted(cluster, &user, &wish, forbidden)?;
    match (verb, place.subresource.as_deref()) {
        ("create", Some("token")) => {
            let (namespace, name) = key(&place);
            let answer = cluster.request_token(&namespace, &name, &body(request)?, now)?;
            Ok(Outcome::Answer(201, answer.to_string().into_bytes()))
        }
        ("get" | "create", Some("exec")) => {
            // Whoever upgrades must be permitted both, whichever method it comes by.
            permitted(cluster, &user, &Wish { verb: "create", ..wish }, forbidden)?;
            Ok(Outcome::Exec(Box::new(exec::begin(cluster, around.containers, request, &place)?)))
        }
        ("list", None) => Ok(Outcome::Answer(200, list::answer(cluster, request, &place, now)?)),
        ("watch", None) => Ok(Outcome::Watch(Box::new(watch::begin(cluster, request, &place)?))),
        ("get", None | Some("status")) => get(cluster, request, &place, now),
        ("create", None) => {
            let change = by(change(request, &place, now)?);
            let created = cluster.create(&change, checked(request, &place, body(request)?)?)?;
            Ok(Outcome::Answer(201, shown(request, &place.kind, &created)))
        }
        ("update", None | Some("status")) => {
            let change = by(change(request, &place, now)?);
            let updated = cluster.update(&change, checked(request, &place, body(request)?)?)?;
            Ok(Outcome::Answer(200, shown(request, &place.kind, &updated)))
        }
        ("patch", None | Some("status")) => {
            let (patch, manager) = patch(request, &place)?;
            let change = Change { manager, ..by(change(request, &place, now)?) };
            // An apply that creates is asked about as a creation too.
            if cluster.store.get(&place.kind.resource(), &change.key).is_none() && matches!(patch, Patch::Apply { .. })
            {
                permitted(cluster, &user, &Wish { verb: "create", ..wish }, forbidden)?;
            }
            let (patched, created) = cluster.patch(&change, &patch)?;
            Ok(Outcome::Answer(if created { 201 } else { 200 }, shown(request, &place.kind, &patched)))
        }
        ("delete", None) => delete(cluster, request, place, now),
        ("deletecollection", None) => delete_all(cluster, request, &place, now),
        _ => Err(not_allowed()),
    }
}

/// Who asks, as a TokenReview tells it.
fn user(cluster: &Cluster, request: &Request, now: Timestamp) -> Result<Value, Failure> {
    let unauthorized = || Failure::new(401, "Unauthorized", "Unauthorized");
    match request.token.as_deref() {
        // kubectl sends no token without TLS: whoever has none is admin, as behind `kubectl proxy`.
        None | Some(ADMIN_TOKEN) => Ok(json!({"username": "admin", "groups": ["system:masters"], "extra": {}})),
        Some(word) => {
            let token = cluster.token(word, now).map_err(|_| unauthorized())?;
            let for_us = token.audiences.iter().any(|audience| audience == super::tokens::API_AUDIENCE);
            if for_us { Ok(cluster.user_of(token)) } else { Err(unauthorized()) }
        }
    }
}

fn permitted(cluster: &Cluster, user: &str, wish: &Wish<'_>, forbidden: &Forbidden) -> Result<(), Failure> {
    let Wish { verb, group, resource, namespace, .. } = *wish;
    let refused = forbidden.iter().any(|(what, on)| what == verb && on == resource);
    if refused || (cluster.roles_enforced && !roles::permit(cluster, user, wish)) {
        let place = namespace.map_or("at the cluster scope".to_owned(), |name| format!("in the namespace \"{name}\""));
        return Err(Failure::forbidden(user, verb, resource, group, &place));
    }
    Ok(())
}

fn verb(request: &Request, place: &Place) -> Result<&'static str, Failure> {
    Ok(match (request.method.as_str(), &place.name) {
        ("GET", _) if request.flag("watch") && place.subresource.is_none() => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", None) => "create",
        ("POST", Some(_)) if matches!(place.subresource.as_deref(), Some("token" | "exec")) => "create",
        ("PUT", Some(_)) => "update",
        ("PATCH", Some(_)) => "patch",
        ("DELETE", Some(_)) => "delete",
        ("DELETE", None) => "deletecollection",
        _ => return Err(not_allowed()),
    })
}

fn not_allowed() -> Failure {
    let what = "the server does not allow this method on the requested resource";
    Failure::new(405, "MethodNotAllowed", what)
}

fn get(cluster: &Cluster, request: &Request, place: &Place, now: Timestamp) -> Result<Outcome, Failure> {
    if let Some(asked) = list::version(request)?.filter(|&asked| asked > cluster.store.version()) {
        return Err(Failure::too_large(asked, cluster.store.version()));
    }
    let (resource, key) = (place.kind.resource(), key(place));
    let found = cluster.store.get(&resource, &key).ok_or_else(|| Failure::not_found(&resource, &key.1))?;
    let metadata = json!({"resourceVersion": found["metadata"]["resourceVersion"]});
    let table = request.wants("as=Table").then(|| table::table(&place.kind, &metadata, [&**found].into_iter(), now));
    let table = table.flatten().map(|table| table.to_string().into_bytes());
    Ok(Outcome::Answer(200, table.unwrap_or_else(|| shown(request, &place.kind, found))))
}

/// The object of a request, with no field that its kind does not have if that is asked for.
fn checked(request: &Request, place: &Place, object: Value) -> Result<Value, Failure> {
    if request.parameter("fieldValidation") == "Strict" {
        strict::check(&place.kind, &object)?;
    }
    Ok(object)
}

fn delete(cluster: &mut Cluster, request: &Request, place: Place, now: Timestamp) -> Result<Outcome, Failure> {
    let change = change(request, &place, now)?;
    match cluster.delete(&change, &delete_options(request)?)? {
        Deleted::Gone(object) if place.kind.is_core("Pod") => {
            Ok(Outcome::Answer(200, shown(request, &place.kind, &object)))
        }
        Deleted::Gone(object) => Ok(Outcome::Answer(200, success(&place.kind, &object))),
        Deleted::Going(object, None) => Ok(Outcome::Answer(200, shown(request, &place.kind, &object))),
        Deleted::Going(object, Some(after)) => {
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let text = shown(request, &place.kind, &object);
            Ok(Outcome::Going(text, Box::new(place), uid, after))
        }
    }
}

fn delete_all(cluster: &mut Cluster, request: &Request, place: &Place, now: Timestamp) -> Result<Outcome, Failure> {
    let selector = list::selector(request, place)?;
    let options = delete_options(request)?;
    let meant: Vec<Key> = cluster
        .store
        .all(&place.kind.resource())
        .filter(|(key, object)| {
            place.namespace.as_ref().is_none_or(|namespace| key.0 == *namespace) && selector.matches(object)
        })
        .map(|(key, _)| key.clone())
        .collect();
    let whole = change(request, place, now)?;
    for key in meant {
        cluster.delete(&Change { key, ..whole.clone() }, &options)?;
    }
    let answer = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    Ok(Outcome::Answer(200, answer.to_string().into_bytes()))
}

fn success(kind: &Kind, object: &Value) -> Vec<u8> {
    let metadata = &object["metadata"];
    let mut details = json!({"name": metadata["name"], "kind": kind.plural, "uid": metadata["uid"]});
    if !kind.group.is_empty() {
        details["group"] = json!(kind.group);
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    status.to_string().into_bytes()
}

fn key(place: &Place) -> Key {
    (place.namespace.clone().unwrap_or_default(), place.name.clone().unwrap_or_default())
}

fn change(request: &Request, place: &Place, now: Timestamp) -> Result<Change, Failure> {
    if place.kind.namespaced && place.namespace.is_none() && place.name.is_none() && request.method == "POST" {
        return Err(Failure::bad_request("an empty namespace may not be set during creation"));
    }
    Ok(Change {
        kind: place.kind.clone(),
        key: key(place),
        manager: manager(request, place, false),
        whole: false,
        user: None,
        dry_run: request.parameter("dryRun") == "All",
        now,
    })
}

fn manager(request: &Request, place: &Place, applies: bool) -> Manager {
    let name = match request.parameter("fieldManager") {
        "" => request.user_agent.split('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown"),
        name => name,
    };
    Manager { name: name.to_owned(), applies, status: place.subresource.as_deref() == Some("status") }
}

fn patch(request: &Request, place: &Place) -> Result<(Patch, Manager), Failure> {
    let media = request.content_type.split(';').next().unwrap_or_default().trim();
    let update = manager(request, place, false);
    match media {
        "application/merge-patch+json" => Ok((Patch::Merge(body(request)?), update)),
        "application/json-patch+json" => Ok((Patch::Json(body(request)?), update)),
        // Without lists it is a merge patch; the keys by which lists merge are not known here.
        "application/strategic-merge-patch+json" if !place.kind.custom => {
            let changes = body(request)?;
            if has_list(&changes) {
                return Err(Failure::new(
                    415,
                    "UnsupportedMediaType",
                    "this server merges no lists strategically: use a merge patch or apply",
                ));
            }
            Ok((Patch::Strategic(changes), update))
        }
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            let manager = manager(request, place, true);
            if request.parameter("fieldManager").is_empty() {
                let what = "Required value: is required for apply patch";
                let wrong = [("FieldValueRequired", "fieldManager".to_owned(), what.to_owned())];
                return Err(Failure::invalid("PatchOptions.meta.k8s.io", "", &wrong));
            }
            let object = checked(request, place, body(request)?)?;
            if object["apiVersion"].as_str().is_none() || object["kind"].as_str().is_none() {
                return Err(Failure::bad_request("an apply needs apiVersion and kind in the object"));
            }
            if object["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
                return Err(Failure::bad_request("metadata.managedFields must be nil"));
            }
            Ok((Patch::Apply { object, force: request.flag("force") }, manager))
        }
        other => {
            let what = format!("the body of the request was in an unknown format - \"{other}\" is not accepted");
            Err(Failure::new(415, "UnsupportedMediaType", what))
        }
    }
}

fn has_list(value: &Value) -> bool {
    match value {
        Value::Array(_) => true,
        Value::Object(map) => map.values().any(has_list),
        _ => false,
    }
}

/// The body, in JSON or YAML.
fn body(request: &Request) -> Result<Value, Failure> {
    if request.content_type.contains("protobuf") || request.content_type.contains("cbor") {
        let what = format!("the body of the request was in an unknown format - {}", request.content_type);
        return Err(Failure::new(415, "UnsupportedMediaType", what));
    }
    let json = serde_json::from_slice(&request.body);
    let parsed = json.or_else(|error| {
        let yaml = request.content_type.contains("yaml");
        if yaml { serde_norway::from_slice(&request.body).map_err(|_| error) } else { Err(error) }
    });
    parsed.map_err(|error| Failure::bad_request(format!("the object provided is unrecognized: {error}")))
}

fn delete_options(request: &Request) -> Result<DeleteOptions, Failure> {
    let options = if request.body.is_empty() { json!({}) } else { body(request)? };
    let own = |field: &str| options["preconditions"][field].as_str().map(str::to_owned);
    let grace = request.parameter("gracePeriodSeconds").parse().ok();
    Ok(DeleteOptions {
        grace_seconds: options["gracePeriodSeconds"].as_u64().or(grace),
        uid: own("uid"),
        version: own("resourceVersion"),
    })
}

fn shown(request: &Request, kind: &Kind, object: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    let form = if request.method == "GET" || request.method == "PATCH" { list::form(request) } else { Form::Whole };
    render::object(&mut text, kind, object, form, true);
    text
}
