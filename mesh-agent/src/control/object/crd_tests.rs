//! The CRDs against the decoder: each example of the decoder's tests comes through [`compare`].

use super::*;
use crate::control::object::{Effect, Object, Reading, read};

/// What a CRD cannot say, by a part of the decoder's words: these mistakes reach the decoder.
const UNSAID: [&str; 5] = [
    // Unknown fields are kept, so that they are named and deny.
    "unknown field:",
    // So is null.
    "invalid type: null",
    // CEL has no way to try a pattern.
    "is no pattern",
    // A text or a list: no structural schema has a type for that, and a rule cannot look into it.
    "spec.udp",
    // A path's value that is null counts as missing.
    "requestAttributes.paths[0].value: missing",
];

/// Fails where the API server and the decoder disagree about `value`, which the decoder has read as `reading`:
///
/// - what the decoder takes, the API server takes, and keeps as it is;
/// - what the decoder refuses, the API server refuses, unless a CRD cannot say it;
/// - no enforcement object that the decoder refuses is kept in a form that it takes.
#[track_caller]
pub(in crate::control::object) fn compare(value: &Value, reading: &Reading) {
    let Some(crd) = crd_of(value) else { return };
    let mistakes = match reading {
        Reading::Object(_, _, mistakes) | Reading::Unusable(_, mistakes) => mistakes,
        Reading::Foreign => return,
    };
    let said: Vec<String> = mistakes.iter().map(|mistake| format!("{}: {}", mistake.field, mistake.reason)).collect();
    let kept = mesh_tests::kube_api::kept(&crd, value);
    if said.is_empty() {
        let kept = kept.unwrap_or_else(|error| panic!("the decoder takes what the API server refuses: {error}"));
        assert_eq!(&kept, value, "the API server changes it");
        return;
    }
    let Ok(kept) = kept else { return };
    let unsaid = said.iter().any(|mistake| UNSAID.iter().any(|part| mistake.contains(part)));
    assert!(unsaid, "the API server takes {value}, which the decoder refuses: {said:?}");
    if let Reading::Object(_, object, _) = reading
        && matches!(object, Object::Authorization(_) | Object::Peer(_))
    {
        let Reading::Object(_, after, mistakes) = read(&kept, &[]) else { panic!("{kept} is no object any more") };
        assert!(!mistakes.is_empty(), "the API server makes {kept} of {value}, and the decoder takes that");
        assert_eq!(after.effect_of_mistakes(), object.effect_of_mistakes(), "{value}");
        assert!(after.effect_of_mistakes() != Effect::Partly, "{value}");
    }
}

/// The CRD of an object of ours whose metadata the API server would take.
fn crd_of(value: &Value) -> Option<Value> {
    let metadata = value.get("metadata")?.as_object()?;
    let plain = metadata.iter().all(|(name, value)| match name.as_str() {
        "name" => value.as_str().is_some_and(|name| !name.is_empty()),
        "namespace" => value.is_string(),
        _ => false,
    });
    let is_ours = value.get("apiVersion").and_then(Value::as_str) == Some(crate::control::object::API_VERSION);
    let kind = value.get("kind")?.as_str()?;
    let crd = all().into_iter().find(|crd| crd.pointer("/spec/names/kind").and_then(Value::as_str) == Some(kind));
    crd.filter(|_| plain && is_ours)
}

/// Every schema within `schema`, with its place.
fn each<'a>(schema: &'a Value, at: String, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(&at, schema);
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        each(inner, format!("{at}.{name}"), visit);
    }
    for (name, step) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(name) {
            each(inner, format!("{at}{step}"), visit);
        }
    }
}

fn spec_of(crd: &Value) -> &Value {
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap()
}

#[test]
fn the_schemas_are_structural() {
    for crd in all() {
        let mut count = 0;
        each(spec_of(&crd), crd["metadata"]["name"].to_string(), &mut |at, schema| {
            count += 1;
            for forbidden in ["$ref", "$defs", "$schema", "oneOf", "const", "title", "default"] {
                assert!(schema.get(forbidden).is_none(), "{at}: {forbidden}: {schema}");
            }
            assert!(schema["type"].is_string() || schema[PRESERVE] == true, "{at} has no type: {schema}");
            let is_null = |choice: &Value| choice.is_null();
            assert!(!schema["enum"].as_array().is_some_and(|choices| choices.iter().any(is_null)), "{at}: {schema}");
            let described = schema.get("description").is_some() || at.ends_with("[]") || at.ends_with("{}");
            assert!(described, "{at} says nothing to `kubectl explain`");
        });
        assert!(count > 4, "{crd}");
    }
}

#[test]
fn nothing_is_taken_off_an_object_that_forbids() {
    for crd in all() {
        let keeps = ["AuthorizationPolicy", "PeerPolicy"].contains(&crd["spec"]["names"]["kind"].as_str().unwrap());
        each(spec_of(&crd), crd["metadata"]["name"].to_string(), &mut |at, schema| {
            if schema.get("properties").is_some() {
                assert_eq!(schema[PRESERVE] == true, keeps, "{at}");
                let required = schema["required"].as_array().cloned().unwrap_or_default();
                for (name, property) in schema["properties"].as_object().unwrap() {
                    let optional = !required.contains(&json!(name));
                    assert_eq!(property["nullable"] == true, keeps && optional, "{at}.{name}");
                }
            }
        });
    }
}

#[test]
fn policies_are_marked_as_such_and_have_a_status() {
    for crd in all() {
        let is_policy = crd["spec"]["names"]["kind"] != "CaptureState";
        assert_eq!(crd["metadata"]["labels"]["gateway.networking.k8s.io/policy"] == "Direct", is_policy);
        assert_eq!(crd.pointer("/spec/versions/0/subresources/status").is_some(), is_policy);
        assert_eq!(crd["spec"]["scope"] == "Namespaced", is_policy);
    }
}
