//! The schema of a CRD enforced: unknown fields and nulls pruned, defaults filled in, then types, enums, patterns and
//! bounds checked, then validation rules run ([`super::rules`]). Admission policies are not evaluated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex::Regex;
use serde_json::{Map, Value};

use super::failure::Failure;
use super::kind::Kind;
use super::rules;

/// A field that is wrong: (reason, field, what is wrong).
type Wrong = (&'static str, String, String);

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// Makes `object` what its kind's schema makes of it; kinds without one are left alone.
///
/// # Errors
/// 422 with each field that is wrong.
pub fn enforce(kind: &Kind, object: &mut Value) -> Result<(), Failure> {
    let Some(schema) = &kind.schema else { return Ok(()) };
    let mut wrong = Vec::new();
    for (name, schema) in properties(schema) {
        if ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            continue;
        }
        if let Some(default) = schema.get("default").filter(|_| object.get(name).is_none()) {
            object[name.as_str()] = default.clone();
        }
        if let Some(value) = object.get_mut(name) {
            shape(value, schema);
            check(value, schema, name, &mut wrong);
        }
    }
    required(object, schema, "", &mut wrong);
    if wrong.is_empty() {
        rules::check(object, schema, "", &mut wrong);
    }
    if schema[PRESERVE] != true
        && let Some(map) = object.as_object_mut()
    {
        map.retain(|name, _| name == "metadata" || schema["properties"].get(name).is_some());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let full = if kind.group.is_empty() { kind.kind.clone() } else { format!("{}.{}", kind.kind, kind.group) };
    Err(Failure::invalid(&full, name, &wrong))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// Prunes and fills in.
fn shape(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            for (name, schema) in properties(schema) {
                // A null where nulls are not allowed counts as absent when there is a default.
                let absent = map.get(name).is_none_or(|value| value.is_null() && schema["nullable"] != true);
                if let Some(default) = schema.get("default").filter(|_| absent) {
                    map.insert(name.clone(), default.clone());
                }
            }
            prune(map, schema);
            // What may not be null and has no default is absent.
            map.retain(|name, value| {
                let inner = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                !value.is_null() || inner.is_none_or(|inner| !inner.is_object() || inner["nullable"] == true)
            });
            for (name, value) in map.iter_mut() {
                let inner = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = inner {
                    shape(value, schema);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                list.iter_mut().for_each(|value| shape(value, items));
            }
        }
        _ => {}
    }
}

fn prune(map: &mut Map<String, Value>, schema: &Value) {
    let open = schema.get("additionalProperties").is_some_and(|more| *more != false);
    if schema[PRESERVE] == true || open {
        return;
    }
    map.retain(|name, _| schema["properties"].get(name).is_some());
}

fn check(value: &Value, schema: &Value, at: &str, wrong: &mut Vec<Wrong>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if schema["x-kubernetes-int-or-string"] == true {
        if !value.is_i64() && !value.is_string() {
            let what = format!("Invalid value: {value}: must be an integer or a string");
            wrong.push(("FieldValueTypeInvalid", at.to_owned(), what));
        }
    } else if let Some(wanted) = schema["type"].as_str()
        && !is_a(value, wanted)
    {
        let found = type_of(value);
        let what = format!("Invalid value: \"{found}\": {at} in body must be of type {wanted}: \"{found}\"");
        wrong.push(("FieldValueTypeInvalid", at.to_owned(), what));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let what = format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        wrong.push(("FieldValueNotSupported", at.to_owned(), what));
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = |choice: &Value| {
            let mut wrong = Vec::new();
            check(value, choice, at, &mut wrong);
            wrong.is_empty()
        };
        if !choices.iter().any(fits) {
            let what = format!("Invalid value: {value}: {at} in body must validate at least one schema (anyOf)");
            wrong.push(("FieldValueInvalid", at.to_owned(), what));
        }
    }
    match value {
        Value::String(text) => check_text(text, schema, at, wrong),
        Value::Number(number) => check_number(number.as_f64().unwrap_or_default(), schema, at, wrong),
        Value::Array(list) => {
            let (few, many) = ("should have at least", "must have at most");
            bounds(list.len() as f64, (&schema["minItems"], few), (&schema["maxItems"], many), at, "items", wrong);
            for (place, value) in list.iter().enumerate() {
                check(value, &schema["items"], &format!("{at}[{place}]"), wrong);
            }
            unique_keys(list, schema, at, wrong);
        }
        Value::Object(map) => {
            required(value, schema, at, wrong);
            let (few, many) = ("should have at least", "must have at most");
            let (least, most) = (&schema["minProperties"], &schema["maxProperties"]);
            bounds(map.len() as f64, (least, few), (most, many), at, "items", wrong);
            for (name, value) in map {
                let inner = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = inner {
                    check(value, schema, &format!("{at}.{name}"), wrong);
                }
            }
        }
        _ => {}
    }
}

fn required(value: &Value, schema: &Value, at: &str, wrong: &mut Vec<Wrong>) {
    let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in names.filter(|name| value.get(name).is_none()) {
        let field = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        wrong.push(("FieldValueRequired", field, "Required value".to_owned()));
    }
}

fn check_text(text: &str, schema: &Value, at: &str, wrong: &mut Vec<Wrong>) {
    let length = text.chars().count() as f64;
    let (short, long) = ("should be at least", "may not be more than");
    bounds(length, (&schema["minLength"], short), (&schema["maxLength"], long), at, "chars long", wrong);
    if let Some(format) = schema["format"].as_str().filter(|format| !has_format(text, format)) {
        let what = format!("Invalid value: \"{text}\": {at} in body must be of type {format}: \"{text}\"");
        wrong.push(("FieldValueInvalid", at.to_owned(), what));
    }
    let Some(pattern) = schema["pattern"].as_str() else { return };
    // A pattern that our engine cannot read refuses nothing: the real server would not have taken the CRD.
    if Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text)) {
        let what = format!("Invalid value: \"{text}\": {at} in body should match '{pattern}'");
        wrong.push(("FieldValueInvalid", at.to_owned(), what));
    }
}

/// Formats that we do not know refuse nothing, as at the real server.
fn has_format(text: &str, format: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let most = address.parse().map(|address: IpAddr| if address.is_ipv4() { 32 } else { 128 });
            most.is_ok_and(|most| length.parse::<u8>().is_ok_and(|length| length <= most))
        }),
        _ => true,
    }
}

fn check_number(number: f64, schema: &Value, at: &str, wrong: &mut Vec<Wrong>) {
    let (least, most) = ("should be greater than or equal to", "should be less than or equal to");
    bounds(number, (&schema["minimum"], least), (&schema["maximum"], most), at, "", wrong);
}

fn bounds(size: f64, least: (&Value, &str), most: (&Value, &str), at: &str, unit: &str, wrong: &mut Vec<Wrong>) {
    let mut complain = |bound: &Value, words: &str| {
        let what = format!("Invalid value: {size}: {at} in body {words} {bound} {unit}");
        wrong.push(("FieldValueInvalid", at.to_owned(), what.trim_end().to_owned()));
    };
    if least.0.as_f64().is_some_and(|least| size < least) {
        complain(least.0, least.1);
    }
    if most.0.as_f64().is_some_and(|most| size > most) {
        complain(most.0, most.1);
    }
}

/// Elements of a list with keys have different keys.
fn unique_keys(list: &[Value], schema: &Value, at: &str, wrong: &mut Vec<Wrong>) {
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if keys.is_empty() {
        return;
    }
    let key = |element: &Value| -> Vec<Value> { keys.iter().map(|&key| element[key].clone()).collect() };
    for (place, element) in list.iter().enumerate() {
        if list.iter().take(place).any(|earlier| key(earlier) == key(element)) {
            wrong.push(("FieldValueDuplicate", format!("{at}[{place}]"), format!("Duplicate value: {element}")));
        }
    }
}

fn is_a(value: &Value, wanted: &str) -> bool {
    type_of(value) == wanted || (wanted == "number" && value.is_number())
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::kube_api::kind::{mesh_crds, of_crd};

    fn with(spec: Value) -> Kind {
        let mut kind = of_crd(&mesh_crds().swap_remove(2)).expect("kinds").swap_remove(0);
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": spec}});
        kind.schema = Some(Arc::new(schema));
        kind
    }

    fn refused(schema: Value, spec: Value) -> String {
        let mut object = json!({"metadata": {"name": "web"}, "spec": spec});
        enforce(&with(schema), &mut object).map_or_else(|failure| failure.message, |()| String::new())
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        let check = |schema: Value, good: Value, bad: Value, words: &str| {
            assert_eq!(refused(schema.clone(), good), "", "{schema}");
            let message = refused(schema.clone(), bad);
            assert!(message.contains(words), "{schema}: {message}");
        };
        check(json!({"type": "integer"}), json!(1), json!("x"), "must be of type integer: \"string\"");
        check(json!({"type": "string", "enum": ["a", "b"]}), json!("a"), json!("c"), "supported values: \"a\", \"b\"");
        check(json!({"type": "string", "pattern": "^a+$"}), json!("aa"), json!("ab"), "should match '^a+$'");
        check(json!({"type": "integer", "minimum": 1}), json!(1), json!(0), "greater than or equal to 1");
        check(json!({"type": "string", "maxLength": 1}), json!("a"), json!("ab"), "may not be more than 1 chars long");
        let list = json!({"type": "array", "maxItems": 1, "items": {"type": "string"}});
        check(list.clone(), json!(["a"]), json!(["a", "b"]), "must have at most 1 items");
        check(list, json!(["a"]), json!([1]), "spec[0]");
        let needs = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
        check(needs, json!({"a": 1}), json!({}), "spec.a: Required value");
        let keyed = json!({"type": "array", "x-kubernetes-list-map-keys": ["n"],
            "items": {"type": "object", "properties": {"n": {"type": "string"}}}});
        check(keyed, json!([{"n": "a"}, {"n": "b"}]), json!([{"n": "a"}, {"n": "a"}]), "Duplicate value");
        let either = json!({"x-kubernetes-int-or-string": true});
        check(either, json!("http"), json!(true), "an integer or a string");
        let network = json!({"type": "string", "anyOf": [{"format": "cidr"}, {"format": "ipv6"}]});
        check(network.clone(), json!("10.0.0.0/8"), json!("10.0.0.0/33"), "at least one schema");
        check(network, json!("fd00::1"), json!("10.0.0.1"), "at least one schema");
        let rule = json!([{"rule": "self.a < self.b", "message": "a comes first"}]);
        let ordered = json!({"type": "object", "x-kubernetes-validations": rule,
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}});
        check(ordered, json!({"a": 1, "b": 2}), json!({"a": 2, "b": 1}), "spec: Invalid value: a comes first");
    }

    #[test]
    fn an_object_without_a_required_part_is_refused() {
        let mut object = json!({"metadata": {"name": "web"}});
        let failure = enforce(&with(json!({"type": "object"})), &mut object).expect_err("refused");
        let full = "HTTPRoute.gateway.networking.k8s.io \"web\" is invalid: spec: Required value";
        assert_eq!((failure.code, failure.message.as_str()), (422, full));
    }

    #[test]
    fn unknown_fields_are_pruned_and_defaults_filled_in() {
        let rule = json!({"type": "object", "properties": {
            "port": {"type": "integer", "default": 80}, "host": {"type": "string"}}});
        let schema = json!({"type": "object", "properties": {
            "rules": {"type": "array", "items": rule},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "none": {"type": "string"}, "null": {"type": "string", "nullable": true},
            "open": {"type": "object", PRESERVE: true}}});
        let mut object = json!({"metadata": {"name": "web"}, "extra": 1, "spec": {
            "rules": [{"host": "a", "x": 1}], "labels": {"a": "b", "n": null}, "open": {"y": 1}, "z": 1,
            "none": null, "null": null}});
        enforce(&with(schema), &mut object).expect("taken");
        let expected = json!({"metadata": {"name": "web"}, "spec": {
            "rules": [{"host": "a", "port": 80}], "labels": {"a": "b"}, "open": {"y": 1}, "null": null}});
        assert_eq!(object, expected);
    }
}
