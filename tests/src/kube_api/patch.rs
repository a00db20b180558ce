//! Merge patches (RFC 7386), strategic ones without lists, and JSON patches (RFC 6902).

use serde_json::{Map, Value};

use super::failure::Failure;

/// What is to be done with a map, in a strategic merge patch.
const DIRECTIVE: &str = "$patch";

/// Merges `patch` into `object`.
pub fn merge(object: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(map) = object.as_object_mut() else { return };
    for (name, change) in changes {
        if change.is_null() {
            map.remove(name);
        } else {
            merge(map.entry(name).or_insert(Value::Null), change);
        }
    }
}

/// Merges `patch`, which has no lists, into `object`; a map that says `$patch: replace` takes the place of the one that
/// is there.
pub fn strategic(object: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else { return merge(object, patch) };
    if changes.get(DIRECTIVE).is_some_and(|directive| directive == "replace") || !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(map) = object.as_object_mut() else { return };
    for (name, change) in changes.iter().filter(|(name, _)| *name != DIRECTIVE) {
        if change.is_null() {
            map.remove(name);
        } else {
            strategic(map.entry(name).or_insert(Value::Null), change);
        }
    }
}

/// Applies the operations of a JSON patch in order.
///
/// # Errors
/// 422 for a test that fails and a path that is not there, 400 for what is no patch.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Failure> {
    let steps = patch.as_array().ok_or_else(|| Failure::bad_request("a JSON patch is a list of operations"))?;
    steps.iter().try_for_each(|step| one(object, step))
}

fn one(object: &mut Value, step: &Value) -> Result<(), Failure> {
    let text = |field: &str| step[field].as_str().ok_or_else(|| Failure::bad_request(format!("`{field}` is missing")));
    let path = text("path")?;
    let missing = || Failure::new(422, "Invalid", format!("the server rejected our request: no `{path}` to patch"));
    match text("op")? {
        "add" => add(object, path, step["value"].clone()).ok_or_else(missing),
        "remove" => take(object, path).map(drop).ok_or_else(missing),
        "replace" => object.pointer_mut(path).map(|at| *at = step["value"].clone()).ok_or_else(missing),
        "test" if object.pointer(path) == step.get("value") => Ok(()),
        "test" => Err(Failure::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: testing value {path} failed"),
        )),
        "copy" => {
            let value = object.pointer(text("from")?).cloned().ok_or_else(missing)?;
            add(object, path, value).ok_or_else(missing)
        }
        "move" => {
            let value = take(object, text("from")?).ok_or_else(missing)?;
            add(object, path, value).ok_or_else(missing)
        }
        other => Err(Failure::bad_request(format!("unexpected kind of operation: {other}"))),
    }
}

fn parent<'a>(object: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((object.pointer_mut(parent)?, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    match parent(object, path)? {
        (Value::Object(map), name) => {
            map.insert(name, value);
        }
        (Value::Array(list), place) => {
            let place = if place == "-" { list.len() } else { place.parse().ok().filter(|&at| at <= list.len())? };
            list.insert(place, value);
        }
        _ => return None,
    }
    Some(())
}

fn take(object: &mut Value, path: &str) -> Option<Value> {
    match parent(object, path)? {
        (Value::Object(map), name) => map.remove(&name),
        (Value::Array(list), place) => {
            let place = place.parse().ok().filter(|&at: &usize| at < list.len())?;
            Some(list.remove(place))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_sets_and_removes_and_replaces_lists() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
        merge(&mut object, &json!({"a": {"b": null, "d": {"e": 3}}, "list": [3]}));
        assert_eq!(object, json!({"a": {"c": 2, "d": {"e": 3}}, "list": [3]}));
    }

    #[test]
    fn the_operations_of_a_json_patch_are_done_in_order() {
        let check = |patch: Value, expected: Option<Value>| {
            let mut object = json!({"a": {"b/c": 1}, "list": [1, 2]});
            let done = super::json(&mut object, &patch);
            assert_eq!(done.ok().map(|()| object), expected, "{patch}");
        };
        check(json!([{"op": "add", "path": "/list/-", "value": 3}]), Some(json!({"a": {"b/c": 1}, "list": [1, 2, 3]})));
        check(json!([{"op": "remove", "path": "/a/b~1c"}]), Some(json!({"a": {}, "list": [1, 2]})));
        check(json!([{"op": "move", "from": "/list", "path": "/a/x"}]), Some(json!({"a": {"b/c": 1, "x": [1, 2]}})));
        check(
            json!([{"op": "test", "path": "/list/0", "value": 1}, {"op": "replace", "path": "/list/0", "value": 9}]),
            Some(json!({"a": {"b/c": 1}, "list": [9, 2]})),
        );
        check(json!([{"op": "test", "path": "/list/0", "value": 2}]), None);
        check(json!([{"op": "replace", "path": "/none", "value": 2}]), None);
        check(json!([{"op": "remove", "path": "/list/7"}]), None);
        check(json!({"op": "add"}), None);
    }
}
