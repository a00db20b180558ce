//! What may be written, and what the server makes of it: metadata, generations, the status subresource, versions.
//!
//! Works on the [`Cluster`] alone; the clock is an argument.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::admission::{self, Write};
use super::cluster::Cluster;
use super::failure::Failure;
use super::kind::Kind;
use super::ownership::{self, Manager};
use super::store::Key;
use super::time::seconds;
use super::{patch, schema};

/// A change that somebody asks for.
#[derive(Clone, Debug)]
pub struct Change {
    /// Of which kind.
    pub kind: Kind,
    /// Namespace and name; the name is empty when the object says it.
    pub key: Key,
    /// Who asks, and through which subresource.
    pub manager: Manager,
    /// By the cluster's own components, all at once: the status and the uid come with the object.
    pub whole: bool,
    /// Who asks, as a TokenReview tells it; policies judge by it. Nobody: the cluster's own components.
    pub user: Option<Value>,
    /// Only tell what would be.
    pub dry_run: bool,
    /// When.
    pub now: Timestamp,
}

/// How a PATCH is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// `application/merge-patch+json`
    Merge(Value),
    /// `application/strategic-merge-patch+json`, without lists
    Strategic(Value),
    /// `application/json-patch+json`
    Json(Value),
    /// `application/apply-patch+yaml`
    Apply {
        /// The fields wanted.
        object: Value,
        /// Conflicts are won.
        force: bool,
    },
}

impl Change {
    fn resource(&self) -> String {
        self.kind.resource()
    }

    fn time(&self) -> String {
        seconds(self.now)
    }
}

impl Cluster {
    /// Creates an object; without its status, which is written by itself, unless the change is whole.
    ///
    /// # Errors
    /// As the real server's.
    pub fn create(&mut self, change: &Change, mut object: Value) -> Result<Arc<Value>, Failure> {
        let kind = &change.kind;
        own_fields(kind, &mut object)?;
        if object["metadata"].get("resourceVersion").is_some_and(|version| version != "") {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Failure::new(500, "InternalError", why));
        }
        let key = self.name(change, &mut object)?;
        if self.store.get(&change.resource(), &key).is_some() {
            return Err(Failure::already_exists(&change.resource(), &key.1));
        }
        self.takes_new_content(change, &key)?;
        if kind.status
            && !change.whole
            && !kind.is_core("Node")
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        initial(kind, &key.1, &mut object);
        schema::enforce(kind, &mut object)?;
        let metadata = &mut object["metadata"];
        for set_by_server in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
            if let Some(map) = metadata.as_object_mut() {
                map.remove(set_by_server);
            }
        }
        if !change.whole || metadata["uid"].as_str().is_none_or(str::is_empty) {
            metadata["uid"] = json!(self.new_uid());
        }
        metadata["creationTimestamp"] = json!(change.time());
        if kind.generation {
            metadata["generation"] = json!(1);
        }
        if !change.manager.applies {
            ownership::update(kind, None, &mut object, &change.manager, &change.time());
        }
        self.commit(change, key, object)
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    /// As the real server's: 404, 409 for a version that is not the last.
    pub fn update(&mut self, change: &Change, mut object: Value) -> Result<Arc<Value>, Failure> {
        own_fields(&change.kind, &mut object)?;
        let key = self.name(change, &mut object)?;
        let live = self.live(change, &key)?;
        if change.kind.custom && object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
            let field = "metadata.resourceVersion".to_owned();
            let what = "Invalid value: 0: must be specified for an update".to_owned();
            let full = format!("{}.{}", change.kind.plural, change.kind.group);
            return Err(Failure::invalid(&full, &key.1, &[("FieldValueInvalid", field, what)]));
        }
        self.replace(change, key, &live, object)
    }

    /// Changes an object, or its status; an apply creates what is not there.
    ///
    /// # Errors
    /// As the real server's.
    pub fn patch(&mut self, change: &Change, how: &Patch) -> Result<(Arc<Value>, bool), Failure> {
        let key = change.key.clone();
        let live = self.live(change, &key);
        let (live, object) = match (live, how) {
            (Err(_), Patch::Apply { object, .. }) if !change.manager.status => {
                let mut object = object.clone();
                own_fields(&change.kind, &mut object)?;
                named(change, &mut object)?;
                let empty = json!({"metadata": {}});
                let mut applied =
                    ownership::apply(&change.kind, &empty, &object, &change.manager, true, &change.time())?;
                applied["metadata"]["name"] = json!(key.1);
                return Ok((self.create(change, applied)?, true));
            }
            (Err(missing), _) => return Err(missing),
            (Ok(live), Patch::Merge(changes)) => {
                let mut object = (*live).clone();
                patch::merge(&mut object, changes);
                (live, object)
            }
            (Ok(live), Patch::Strategic(changes)) => {
                let mut object = (*live).clone();
                patch::strategic(&mut object, changes);
                (live, object)
            }
            (Ok(live), Patch::Json(steps)) => {
                let mut object = (*live).clone();
                patch::json(&mut object, steps)?;
                (live, object)
            }
            (Ok(live), Patch::Apply { object, force }) => {
                let mut object = object.clone();
                own_fields(&change.kind, &mut object)?;
                named(change, &mut object)?;
                self.only_its_part(change, &mut object);
                let version = object["metadata"]["resourceVersion"].take();
                let mut object =
                    ownership::apply(&change.kind, &live, &object, &change.manager, *force, &change.time())?;
                if version.is_string() {
                    object["metadata"]["resourceVersion"] = version;
                }
                (live, object)
            }
        };
        let mut object = object;
        own_fields(&change.kind, &mut object)?;
        Ok((self.replace(change, key, &live, object)?, false))
    }

    /// An apply to the status owns nothing else, and the other way round.
    fn only_its_part(&self, change: &Change, object: &mut Value) {
        let Some(map) = object.as_object_mut().filter(|_| change.kind.status) else { return };
        map.retain(|name, _| name == "metadata" || (name == "status") == change.manager.status);
        if change.manager.status {
            // Labels and annotations are not the status's to change.
            let metadata = &mut object["metadata"];
            *metadata = json!({"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]});
        }
    }

    fn replace(&mut self, change: &Change, key: Key, live: &Value, mut object: Value) -> Result<Arc<Value>, Failure> {
        let (resource, kind) = (change.resource(), &change.kind);
        let (old, new) = (&live["metadata"], &object["metadata"]);
        if new["uid"].as_str().is_some_and(|uid| !uid.is_empty() && old["uid"] != uid) {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                new["uid"].as_str().unwrap_or_default(),
                old["uid"].as_str().unwrap_or_default()
            );
            return Err(Failure::conflict(&resource, &key.1, &why));
        }
        let version = new["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && old["resourceVersion"] != version {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Failure::conflict(&resource, &key.1, why));
        }
        if change.manager.status {
            let mut whole = live.clone();
            whole["status"] = object["status"].take();
            whole["metadata"]["managedFields"] = object["metadata"]["managedFields"].take();
            object = whole;
        } else if kind.status && !change.whole {
            object["status"] = live["status"].clone();
        }
        drop_nulls(&mut object);
        schema::enforce(kind, &mut object)?;
        keep_metadata(live, &mut object);
        let changed = parts(live) != parts(&object);
        if changed && kind.generation {
            object["metadata"]["generation"] = json!(old["generation"].as_u64().unwrap_or_default() + 1);
        }
        if !change.manager.applies {
            object["metadata"]["managedFields"] = old["managedFields"].clone();
            drop_nulls(&mut object);
            ownership::update(kind, Some(live), &mut object, &change.manager, &change.time());
        }
        if object == *live {
            // Nothing to write is no event.
            return Ok(self.store.get(&resource, &key).map_or_else(|| Arc::new(object), Arc::clone));
        }
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let waits = object["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or_default() > 0;
        if object["metadata"]["deletionTimestamp"].is_string() && !held && !waits && !change.dry_run {
            self.forget(kind, &key);
            return Ok(Arc::new(object));
        }
        self.commit(change, key, object)
    }

    pub(super) fn live(&self, change: &Change, key: &Key) -> Result<Arc<Value>, Failure> {
        let found = self.store.get(&change.resource(), key).cloned();
        found.ok_or_else(|| Failure::not_found(&change.resource(), &key.1))
    }

    pub(super) fn commit(&mut self, change: &Change, key: Key, mut object: Value) -> Result<Arc<Value>, Failure> {
        drop_nulls(&mut object);
        self.admitted(change, &key, &object)?;
        if change.dry_run {
            return Ok(Arc::new(object));
        }
        if change.kind.is_crd() {
            self.accept_crd(&mut object, &change.time())?;
        }
        let object = self.store.put(&change.resource(), key, object);
        Ok(object)
    }

    fn admitted(&self, change: &Change, key: &Key, object: &Value) -> Result<(), Failure> {
        let Some(user) = &change.user else { return Ok(()) };
        let old = self.store.get(&change.resource(), key).map(|old| &**old);
        let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
        let subresource = change.manager.status.then_some("status");
        admission::validate(self, &Write { kind: &change.kind, operation, subresource, object, old, user })
    }

    /// The object's own name and namespace, which must be those asked for.
    fn name(&self, change: &Change, object: &mut Value) -> Result<Key, Failure> {
        let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        let unnamed = object["metadata"]["name"].as_str().unwrap_or_default().is_empty() && change.key.1.is_empty();
        if unnamed && !prefix.is_empty() {
            let suffix: String = self.new_uid().chars().filter(|letter| *letter != '-').take(5).collect();
            object["metadata"]["name"] = json!(prefix + &suffix);
        }
        named(change, object)
    }

    fn takes_new_content(&self, change: &Change, key: &Key) -> Result<(), Failure> {
        if !change.kind.namespaced {
            return Ok(());
        }
        let namespace = self.store.get("namespaces", &(String::new(), key.0.clone()));
        let Some(namespace) = namespace else { return Err(Failure::not_found("namespaces", &key.0)) };
        if namespace["metadata"]["deletionTimestamp"].is_string() {
            let message = format!(
                "{} \"{}\" is forbidden: unable to create new content in namespace {} because it is being terminated",
                change.resource(),
                key.1,
                key.0
            );
            let mut failure = Failure::new(403, "Forbidden", message).about(&change.resource(), &key.1);
            let cause = json!([{"reason": "NamespaceTerminating", "message": "is being terminated"}]);
            failure.details.insert("causes".to_owned(), cause);
            return Err(failure);
        }
        Ok(())
    }
}

/// Checks `apiVersion` and `kind`, takes them off, and makes sure of `metadata`.
fn own_fields(kind: &Kind, object: &mut Value) -> Result<(), Failure> {
    let Some(map) = object.as_object_mut() else {
        return Err(Failure::bad_request("the body is not an object"));
    };
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
        if let Some(found) = map.remove(field).filter(|found| *found != json!(expected)) {
            let message = format!("the {field} in the data ({found}) does not match the expected {field} ({expected})");
            return Err(Failure::bad_request(message));
        }
    }
    let metadata = map.entry("metadata").or_insert(json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    if metadata.is_object() { Ok(()) } else { Err(Failure::bad_request("metadata is not an object")) }
}

fn named(change: &Change, object: &mut Value) -> Result<Key, Failure> {
    let (namespace, wanted) = &change.key;
    let metadata = &mut object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    if !wanted.is_empty() && !name.is_empty() && name != *wanted {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({wanted})");
        return Err(Failure::bad_request(message));
    }
    let name = if name.is_empty() { wanted.clone() } else { name };
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.:".contains(letter);
    if name.is_empty() || !name.chars().all(plain) {
        let required = name.is_empty();
        let what = if required {
            "Required value: name or generateName is required".to_owned()
        } else {
            format!(
                "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case \
                 alphanumeric characters, '-' or '.'"
            )
        };
        let reason = if required { "FieldValueRequired" } else { "FieldValueInvalid" };
        return Err(Failure::invalid(&change.kind.kind, &name, &[(reason, "metadata.name".to_owned(), what)]));
    }
    let own = metadata["namespace"].as_str().unwrap_or_default();
    if !own.is_empty() && own != namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Failure::bad_request(message));
    }
    metadata["name"] = json!(name);
    if change.kind.namespaced {
        metadata["namespace"] = json!(namespace);
    }
    Ok((namespace.clone(), name))
}

/// What the server fills into a new object of a built-in kind.
fn initial(kind: &Kind, name: &str, object: &mut Value) {
    if kind.is_core("Namespace") {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    } else if kind.is_core("Pod") && object.get("status").is_none() {
        object["status"] = json!({"phase": "Pending"});
    }
}

fn keep_metadata(live: &Value, object: &mut Value) {
    const KEPT: [&str; 8] = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
    ];
    for field in KEPT {
        let value = live["metadata"].get(field);
        let Some(metadata) = object["metadata"].as_object_mut() else { return };
        match value {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

/// Everything but metadata and status: what a generation is of.
fn parts(object: &Value) -> Vec<(&String, &Value)> {
    let parts = object.as_object().into_iter().flatten();
    parts.filter(|(name, _)| !["metadata", "status"].contains(&name.as_str())).collect()
}

/// Nulls at the top and in metadata stand for absent.
fn drop_nulls(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    map.retain(|_, value| !value.is_null());
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
}
