//! Sets of fields, as `metadata.managedFields` records who owns what (FieldsV1), and the fields of an object.
//!
//! A list is one field unless its elements have keys: said by the CRD's schema, or by name for built-in kinds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// The way to a field in the spelling of FieldsV1: `f:spec`, `k:{"type":"Ready"}`.
pub type Path = Vec<String>;
/// A set of fields.
pub type Fields = BTreeSet<Path>;

/// The fields of `object` with their values; an element with keys is also a field, with the value null.
#[must_use]
pub fn leaves(object: &Value, schema: Option<&Value>) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    collect(object, schema, &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, schema: Option<&Value>, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic_map(schema) => {
            for (name, value) in map {
                path.push(format!("f:{name}"));
                collect(value, below(schema, name), path, found);
                path.pop();
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let keys = list_keys(schema, path.last().map_or("", String::as_str));
            let elements: Option<Vec<(String, &Value)>> =
                list.iter().map(|element| Some((element_key(element, &keys)?, element))).collect();
            let Some(elements) = elements else {
                found.insert(path.clone(), value.clone());
                return;
            };
            let items = schema.and_then(|schema| schema.get("items"));
            for (key, element) in elements {
                path.push(key);
                found.insert(path.clone(), Value::Null);
                collect(element, items, path, found);
                path.pop();
            }
        }
        _ => {
            found.insert(path.clone(), value.clone());
        }
    }
}

fn below<'a>(schema: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    let schema = schema?;
    let property = schema.get("properties").and_then(|properties| properties.get(name));
    property.or_else(|| schema.get("additionalProperties"))
}

fn is_atomic_map(schema: Option<&Value>) -> bool {
    schema.is_some_and(|schema| schema["x-kubernetes-map-type"] == "atomic")
}

/// The keys of a list's elements; none when the list is one field.
fn list_keys(schema: Option<&Value>, segment: &str) -> Vec<String> {
    if let Some(schema) = schema.filter(|schema| schema["type"] == "array") {
        let keys = schema["x-kubernetes-list-map-keys"].as_array();
        return keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    let keys: &[&str] = match segment {
        "f:conditions" => &["type"],
        "f:containers" | "f:initContainers" | "f:volumes" | "f:env" => &["name"],
        "f:ownerReferences" => &["uid"],
        "f:podIPs" => &["ip"],
        _ => &[],
    };
    keys.iter().map(|&key| key.to_owned()).collect()
}

fn element_key(element: &Value, keys: &[String]) -> Option<String> {
    let pairs: Option<Map<String, Value>> =
        keys.iter().map(|key| Some((key.clone(), element.get(key)?.clone()))).collect();
    let pairs = pairs.filter(|pairs| !pairs.is_empty())?;
    Some(format!("k:{}", Value::Object(pairs)))
}

/// The value at `path`.
#[must_use]
pub fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, segment| match segment.split_at_checked(2)? {
        ("f:", name) => value.get(name),
        (_, key) => value.as_array()?.iter().find(|element| has_key(element, key)),
    })
}

fn has_key(element: &Value, key: &str) -> bool {
    let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
    !key.is_empty() && key.iter().all(|(name, value)| element.get(name) == Some(value))
}

/// Whether a value only says that something is there: an element with keys, or a map.
#[must_use]
pub fn is_presence(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// Sets the field at `path`, with whatever leads to it. What is only to be there is made, not set.
pub fn set(object: &mut Value, path: &[String], value: &Value) {
    let Some((segment, rest)) = path.split_first() else {
        if !is_presence(value) || !object.is_object() {
            *object = value.clone();
        }
        return;
    };
    match segment.split_at_checked(2) {
        Some(("f:", name)) => {
            if !object.is_object() {
                *object = json!({});
            }
            let Some(map) = object.as_object_mut() else { return };
            set(map.entry(name).or_insert(Value::Null), rest, value);
        }
        Some((_, key)) => {
            if !object.is_array() {
                *object = json!([]);
            }
            let Some(list) = object.as_array_mut() else { return };
            let place = list.iter().position(|element| has_key(element, key)).unwrap_or_else(|| {
                list.push(serde_json::from_str(key).unwrap_or_default());
                list.len() - 1
            });
            if let Some(element) = list.get_mut(place) {
                set(element, rest, value);
            }
        }
        None => {}
    }
}

/// Removes the field at `path`, and what is empty without it.
pub fn unset(object: &mut Value, path: &[String]) {
    let Some((segment, rest)) = path.split_first() else { return };
    match (segment.split_at_checked(2), object) {
        (Some(("f:", name)), Value::Object(map)) => {
            if let Some(inner) = map.get_mut(name) {
                unset(inner, rest);
                if rest.is_empty() || is_empty(inner) {
                    map.remove(name);
                }
            }
        }
        (Some((_, key)), Value::Array(list)) => {
            if let Some(place) = list.iter().position(|element| has_key(element, key)) {
                if let Some(element) = list.get_mut(place) {
                    unset(element, rest);
                }
                if rest.is_empty() {
                    list.remove(place);
                }
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// As FieldsV1.
#[must_use]
pub fn encode(fields: &Fields) -> Value {
    let mut tree = json!({});
    for path in fields {
        let mut node = &mut tree;
        for segment in path {
            node = &mut node[segment];
            if node.is_null() {
                *node = json!({});
            }
        }
        if path.last().is_some_and(|segment| segment.starts_with("k:")) {
            node["."] = json!({});
        }
    }
    tree
}

/// From FieldsV1.
#[must_use]
pub fn decode(tree: &Value) -> Fields {
    let mut fields = Fields::new();
    walk(tree, &mut Vec::new(), &mut fields);
    fields
}

fn walk(node: &Value, path: &mut Path, fields: &mut Fields) {
    let Some(map) = node.as_object() else { return };
    let is_element = path.last().is_some_and(|segment| segment.starts_with("k:"));
    if !path.is_empty() && (map.is_empty() || (is_element && map.contains_key("."))) {
        fields.insert(path.clone());
    }
    for (segment, node) in map.iter().filter(|(segment, _)| *segment != ".") {
        path.push(segment.clone());
        walk(node, path, fields);
        path.pop();
    }
}

/// As messages name it: `.spec.conditions[type="Ready"].status`.
#[must_use]
pub fn display(path: &[String]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment.split_at_checked(2) {
            Some(("f:", name)) => {
                text.push('.');
                text.push_str(name);
            }
            Some((_, key)) => {
                let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let pairs: Vec<String> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
                text.push('[');
                text.push_str(&pairs.join(","));
                text.push(']');
            }
            None => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Value {
        json!({
            "spec": {"mode": "a", "hosts": ["x", "y"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Fit", "status": "False"}]},
        })
    }

    #[test]
    fn fields_go_there_and_back() {
        let fields: Fields = leaves(&object(), None).into_keys().collect();
        let shown: Vec<String> = fields.iter().map(|path| display(path)).collect();
        assert_eq!(
            shown,
            [
                ".spec.hosts",
                ".spec.mode",
                ".status.conditions[type=\"Fit\"]",
                ".status.conditions[type=\"Fit\"].status",
                ".status.conditions[type=\"Fit\"].type",
                ".status.conditions[type=\"Ready\"]",
                ".status.conditions[type=\"Ready\"].status",
                ".status.conditions[type=\"Ready\"].type",
            ]
        );
        assert_eq!(decode(&encode(&fields)), fields);
        let mut copy = json!({});
        for (path, value) in leaves(&object(), None) {
            set(&mut copy, &path, &value);
        }
        assert_eq!(leaves(&copy, None), leaves(&object(), None));
    }

    #[test]
    fn a_schema_says_which_lists_are_one_field() {
        let schema = json!({"properties": {"status": {"properties": {"conditions": {
            "type": "array", "x-kubernetes-list-type": "atomic"}}}}});
        let fields: Vec<String> = leaves(&object(), Some(&schema)).keys().map(|path| display(path)).collect();
        assert_eq!(fields, [".spec.hosts", ".spec.mode", ".status.conditions"]);
    }

    #[test]
    fn what_is_empty_without_a_field_goes_with_it() {
        let mut object = object();
        for path in leaves(&object.clone(), None).into_keys().filter(|path| display(path) != ".spec.mode") {
            unset(&mut object, &path);
        }
        assert_eq!(object, json!({"spec": {"mode": "a"}}));
    }
}
