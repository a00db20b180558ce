//! `as=Table`: what `kubectl get` shows of a kind, in the columns of its CRD.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::kind::Kind;

/// The table of `items`; none of a kind without columns of its own, which clients then show in theirs.
pub fn table<'a>(
    kind: &Kind,
    metadata: &Value,
    items: impl Iterator<Item = &'a Value>,
    now: Timestamp,
) -> Option<Value> {
    if kind.columns.is_empty() {
        return None;
    }
    let definition = |column: &Value| {
        json!({"name": column["name"], "type": column["type"], "format": column["format"].as_str().unwrap_or_default(),
            "description": column["description"].as_str().unwrap_or_default(),
            "priority": column["priority"].as_i64().unwrap_or(0)})
    };
    let name = json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0});
    let definitions: Vec<Value> = [name].into_iter().chain(kind.columns.iter().map(definition)).collect();
    let row = |object: &Value| {
        let own = kind.columns.iter().map(|column| cell(column, object, now));
        let cells: Vec<Value> = [object["metadata"]["name"].clone()].into_iter().chain(own).collect();
        let shown = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"]});
        json!({"cells": cells, "object": shown})
    };
    let rows: Vec<Value> = items.map(row).collect();
    Some(json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows}))
}

fn cell(column: &Value, object: &Value, now: Timestamp) -> Value {
    let found = at(object, column["jsonPath"].as_str().unwrap_or_default());
    match found {
        Some(Value::String(time)) if column["type"] == "date" => {
            time.parse().map_or(json!("<invalid>"), |time: Timestamp| json!(age(now.as_second() - time.as_second())))
        }
        Some(value) => value.clone(),
        None => Value::Null,
    }
}

/// What a JSON path of the forms `.a.b`, `.a[0]` and `.a[?(@.b=="c")].d` leads to.
fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let (mut value, mut rest) = (object, path);
    while !rest.is_empty() {
        if let Some((test, after)) = rest.strip_prefix("[?(@.").and_then(|rest| rest.split_once(")]")) {
            let (field, wanted) = test.split_once("==")?;
            value = value.as_array()?.iter().find(|one| one[field] == wanted.trim_matches('"'))?;
            rest = after;
        } else if let Some((place, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            value = value.get(place.parse::<usize>().ok()?)?;
            rest = after;
        } else {
            let name = rest.strip_prefix('.')?;
            let end = name.find(['.', '[']).unwrap_or(name.len());
            value = value.get(name.get(..end)?)?;
            rest = name.get(end..)?;
        }
    }
    Some(value)
}

/// As kubectl shows it, to one unit.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..10_800 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found_by_their_paths() {
        let object = json!({"metadata": {"name": "x"}, "spec": {"refs": [{"name": "web"}]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "B", "status": "True"}]}});
        for (path, expected) in [
            (".metadata.name", Some(json!("x"))),
            (".spec.refs[0].name", Some(json!("web"))),
            (".spec.refs[1].name", None),
            (".status.conditions[?(@.type==\"B\")].status", Some(json!("True"))),
            (".status.conditions[?(@.type==\"C\")].status", None),
            ("nonsense", None),
        ] {
            assert_eq!(at(&object, path).cloned(), expected, "{path}");
        }
        assert_eq!([5, 119, 120, 10_800, 172_800].map(age), ["5s", "119s", "2m", "3h", "2d"]);
    }
}
