//! Server-side apply: who owns which field, what conflicts, what goes because its only owner no longer wants it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::failure::Failure;
use super::fields::{Fields, Path, at, decode, display, encode, is_presence, leaves, set, unset};
use super::kind::Kind;

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Manager {
    /// `fieldManager`, or what the User-Agent begins with.
    pub name: String,
    /// By apply, not by update.
    pub applies: bool,
    /// Through the status subresource.
    pub status: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Owner {
    manager: Manager,
    api_version: String,
    time: Value,
    fields: Fields,
}

/// Lays `applied` over `live` and gives the outcome, with its `managedFields`.
///
/// # Errors
/// 409 with a cause for each field that another manager owns and that would change, unless `force`.
pub fn apply(
    kind: &Kind,
    live: &Value,
    applied: &Value,
    manager: &Manager,
    force: bool,
    now: &str,
) -> Result<Value, Failure> {
    let schema = kind.schema.as_deref();
    let mut owners = owners(live);
    let wanted = owned_leaves(applied, schema);
    let mut conflicts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, value) in wanted.iter().filter(|(path, value)| differs(live, path, value)) {
        let taken = |other: &Path| other.starts_with(path) || path.starts_with(other.as_slice());
        for owner in owners.iter_mut().filter(|owner| owner.manager != *manager) {
            // An element that holds a field is not the field: owning it does not hinder.
            let before = owner.fields.len();
            let kept: Fields = owner
                .fields
                .iter()
                .filter(|other| is_container(other, path, value) || !taken(other))
                .cloned()
                .collect();
            if kept.len() < before {
                let who = format!("\"{}\" using {}", owner.manager.name, owner.api_version);
                conflicts.entry(who).or_default().push(display(path));
            }
            owner.fields = kept;
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    let mut object = live.clone();
    let mine = owners.iter().position(|owner| owner.manager == *manager);
    let previous = mine.map(|place| owners.remove(place));
    let wanted_fields: Fields = wanted.keys().cloned().collect();
    let gone = previous.iter().flat_map(|owner| owner.fields.difference(&wanted_fields));
    // In the order of paths: an element goes before its fields, by whose keys it is found.
    for path in gone {
        let mut others = owners.iter().flat_map(|owner| &owner.fields).chain(&wanted_fields);
        if !others.any(|other| other.starts_with(path)) {
            unset(&mut object, path);
        }
    }
    for (path, value) in &wanted {
        set(&mut object, path, value);
    }
    let time = previous.filter(|owner| owner.fields == wanted_fields && object == *live).map(|owner| owner.time);
    let time = time.unwrap_or_else(|| json!(now));
    owners.push(Owner { manager: manager.clone(), api_version: kind.api_version(), time, fields: wanted_fields });
    write(&mut object, &owners);
    Ok(object)
}

/// Records in `after` that `manager` has changed it from `before` by an update.
pub fn update(kind: &Kind, before: Option<&Value>, after: &mut Value, manager: &Manager, now: &str) {
    let schema = kind.schema.as_deref();
    let old = before.map(|before| owned_leaves(before, schema)).unwrap_or_default();
    let new = owned_leaves(after, schema);
    let mut owners = before.map(owners).unwrap_or_default();
    let changed: Fields =
        new.iter().filter(|(path, value)| old.get(*path) != Some(value)).map(|(path, _)| path.clone()).collect();
    for owner in &mut owners {
        owner.fields.retain(|path| new.contains_key(path) && !changed.contains(path));
    }
    if !changed.is_empty() {
        match owners.iter_mut().find(|owner| owner.manager == *manager) {
            Some(owner) => {
                owner.fields.extend(changed);
                owner.time = json!(now);
            }
            None => owners.push(Owner {
                manager: manager.clone(),
                api_version: kind.api_version(),
                time: json!(now),
                fields: changed,
            }),
        }
    }
    write(after, &owners);
}

/// The fields that can be owned: what the server sets by itself cannot.
fn owned_leaves(object: &Value, schema: Option<&Value>) -> BTreeMap<Path, Value> {
    let mut found = leaves(object, schema);
    found.retain(|path, _| {
        let mut names = path.iter().map(String::as_str);
        match (names.next(), names.next()) {
            (Some("f:apiVersion" | "f:kind"), _) => false,
            (Some("f:metadata"), Some(field)) => {
                matches!(field, "f:labels" | "f:annotations" | "f:finalizers" | "f:ownerReferences")
            }
            (Some("f:metadata"), None) => false,
            _ => true,
        }
    });
    found
}

fn differs(live: &Value, path: &Path, value: &Value) -> bool {
    match at(live, path) {
        Some(found) if is_presence(value) && found.is_object() => false,
        found => found != Some(value),
    }
}

/// Whether `other` is the element that the field `path` is in, or the other way round.
fn is_container(other: &Path, path: &Path, value: &Value) -> bool {
    let outer = other.len() < path.len() && other.last().is_some_and(|segment| segment.starts_with("k:"));
    outer || (value.is_null() && path.len() < other.len())
}

fn conflict(conflicts: &BTreeMap<String, Vec<String>>) -> Failure {
    let count: usize = conflicts.values().map(Vec::len).sum();
    let mut words = Vec::new();
    let mut causes = Vec::new();
    for (who, fields) in conflicts {
        words.push(format!("conflict with {who}: {}", fields.join(", ")));
        for field in fields {
            let message = format!("conflict with {who}");
            causes.push(json!({"reason": "FieldManagerConflict", "message": message, "field": field}));
        }
    }
    let plural = if count == 1 { "conflict" } else { "conflicts" };
    let message = format!("Apply failed with {count} {plural}: {}", words.join("; "));
    let mut failure = Failure::new(409, "Conflict", message);
    failure.details.insert("causes".to_owned(), json!(causes));
    failure
}

fn owners(object: &Value) -> Vec<Owner> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| Owner {
            manager: Manager {
                name: text(entry, "manager"),
                applies: entry["operation"] == "Apply",
                status: entry["subresource"] == "status",
            },
            api_version: text(entry, "apiVersion"),
            time: entry["time"].clone(),
            fields: decode(&entry["fieldsV1"]),
        })
        .collect()
}

fn write(object: &mut Value, owners: &[Owner]) {
    let entries: Vec<Value> = owners
        .iter()
        .filter(|owner| !owner.fields.is_empty())
        .map(|owner| {
            let mut entry = json!({
                "manager": owner.manager.name,
                "operation": if owner.manager.applies { "Apply" } else { "Update" },
                "apiVersion": owner.api_version,
                "time": owner.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": encode(&owner.fields),
            });
            if owner.manager.status {
                entry["subresource"] = json!("status");
            }
            entry
        })
        .collect();
    if entries.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    } else {
        object["metadata"]["managedFields"] = json!(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_api::kind::built_in;

    fn pods() -> Kind {
        built_in().into_iter().find(|kind| kind.kind == "Pod").expect("pods")
    }

    fn manager(name: &str) -> Manager {
        Manager { name: name.to_owned(), applies: true, status: false }
    }

    fn by(live: &Value, name: &str, applied: Value, force: bool) -> Result<Value, Failure> {
        apply(&pods(), live, &applied, &manager(name), force, "now")
    }

    fn managers(object: &Value) -> Vec<&str> {
        let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        entries.filter_map(|entry| entry["manager"].as_str()).collect()
    }

    #[test]
    fn another_managers_field_conflicts_unless_forced_or_equal() {
        let live = by(&json!({"metadata": {}}), "a", json!({"spec": {"mode": "x", "of": "a"}}), false).expect("made");
        let refused = by(&live, "b", json!({"spec": {"mode": "y"}}), false).expect_err("a conflict");
        assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"a\" using v1: .spec.mode");
        assert_eq!(refused.details["causes"][0]["field"], ".spec.mode");
        let shared = by(&live, "b", json!({"spec": {"mode": "x"}}), false).expect("the same value is no conflict");
        assert_eq!(managers(&shared), ["a", "b"]);
        let forced = by(&live, "b", json!({"spec": {"mode": "y"}}), true).expect("forced");
        assert_eq!(forced["spec"], json!({"mode": "y", "of": "a"}));
        // It is b's now.
        assert!(by(&forced, "a", json!({"spec": {"mode": "x", "of": "a"}}), false).is_err());
    }

    #[test]
    fn what_its_last_owner_no_longer_wants_goes() {
        let live = by(&json!({"metadata": {}}), "a", json!({"spec": {"one": 1, "two": 2}}), false).expect("made");
        let shared = by(&live, "b", json!({"spec": {"one": 1}}), false).expect("shared");
        let left = by(&shared, "a", json!({"spec": {}}), false).expect("left");
        assert_eq!(left["spec"]["two"], Value::Null);
        assert_eq!(left["spec"]["one"], 1);
    }

    #[test]
    fn conditions_of_two_managers_stand_side_by_side() {
        let condition = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True"}]}});
        let live = by(&json!({"metadata": {}}), "a", condition("Ready"), false).expect("made");
        let both = by(&live, "b", condition("Captured"), false).expect("no conflict");
        assert_eq!(both["status"]["conditions"].as_array().map(Vec::len), Some(2));
        let again = by(&both, "b", condition("Captured"), false).expect("no conflict");
        assert_eq!(again, both);
        let without = by(&both, "b", json!({"metadata": {"labels": {"x": "y"}}}), false).expect("no conflict");
        assert_eq!(without["status"], live["status"]);
    }

    #[test]
    fn an_update_takes_what_it_changes() {
        let live = by(&json!({"metadata": {}}), "a", json!({"spec": {"one": 1, "two": 2}}), false).expect("made");
        let mut changed = live.clone();
        changed["spec"]["one"] = json!(3);
        let editor = Manager { name: "edit".to_owned(), applies: false, status: false };
        update(&pods(), Some(&live), &mut changed, &editor, "later");
        assert_eq!(managers(&changed), ["a", "edit"]);
        let refused = by(&changed, "a", json!({"spec": {"one": 1, "two": 2}}), false).expect_err("a conflict");
        assert!(refused.message.contains("\"edit\" using v1: .spec.one"), "{}", refused.message);
    }
}
