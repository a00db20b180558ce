//! The CustomResourceDefinitions of our kinds, made from the types that read them: what a user is told and what the
//! agent understands cannot drift apart.
//!
//! `schemars` gives the schema of each `Spec`; here it becomes a structural one, as the API server wants it. For the
//! kinds that forbid something nothing may be taken off an object on its way to the decoder (decision 0012): fields
//! that the schema does not know are kept, and so is `null`; both are mistakes there, and the object denies.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::{GROUP, Kind, authorization_fields, capture_state, peer_policy, traffic};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// What a CRD has besides the schema of its spec.
struct Described {
    kind: Kind,
    schema: fn() -> Schema,
    /// Printed by `kubectl get`: name, path, type.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

const ACCEPTED: (&str, &str, &str) = ("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status", "string");
const AGE: (&str, &str, &str) = ("Age", ".metadata.creationTimestamp", "date");

const OURS: [Described; 4] = [
    Described {
        kind: Kind::AuthorizationPolicy,
        schema: schema::<authorization_fields::Spec>,
        columns: &[("Action", ".spec.action", "string"), ACCEPTED, AGE],
    },
    Described {
        kind: Kind::PeerPolicy,
        schema: schema::<peer_policy::Spec>,
        columns: &[
            ("Mode", ".spec.mode", "string"),
            ("Egress", ".spec.egress.default", "string"),
            ("Guard", ".spec.guard", "boolean"),
            ACCEPTED,
            AGE,
        ],
    },
    Described {
        kind: Kind::TrafficPolicy,
        schema: schema::<traffic::Spec>,
        columns: &[
            ("Service", ".spec.targetRefs[0].name", "string"),
            ("Balancer", ".spec.loadBalancer.type", "string"),
            ACCEPTED,
            AGE,
        ],
    },
    Described {
        kind: Kind::CaptureState,
        schema: schema::<capture_state::Spec>,
        columns: &[("Node", ".spec.node", "string"), AGE],
    },
];

/// Every CRD of ours, by plural.
pub(in crate::control) fn all() -> Vec<Value> {
    OURS.iter().map(definition).collect()
}

fn schema<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

fn definition(of: &Described) -> Value {
    let (plural, name) = (of.kind.plural(), of.kind.as_str());
    let is_policy = of.kind != Kind::CaptureState;
    let spec = structural((of.schema)().to_value(), of.kind.is_enforcement());
    let description = spec.get("description").cloned().unwrap_or_default();
    let mut properties = BTreeMap::from([
        ("apiVersion", json!({"type": "string"})),
        ("kind", json!({"type": "string"})),
        ("metadata", json!({"type": "object"})),
        ("spec", spec),
    ]);
    let mut metadata = BTreeMap::from([("name", json!(format!("{plural}.{GROUP}")))]);
    let columns = of.columns.iter().map(|(name, path, kind)| json!({"name": name, "jsonPath": path, "type": kind}));
    let mut version = BTreeMap::from([
        ("name", json!("v1alpha1")),
        ("served", json!(true)),
        ("storage", json!(true)),
        ("additionalPrinterColumns", columns.collect()),
    ]);
    if is_policy {
        // GEP-713: tools find policies by it.
        metadata.insert("labels", json!({"gateway.networking.k8s.io/policy": "Direct"}));
        properties.insert("status", policy_status());
        version.insert("subresources", json!({"status": {}}));
    }
    let schema = json!({
        "type": "object", "required": ["spec"], "properties": properties, "description": description,
    });
    version.insert("schema", json!({"openAPIV3Schema": schema}));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": GROUP,
            "scope": if of.kind.is_namespaced() { "Namespaced" } else { "Cluster" },
            "names": {"kind": name, "listKind": format!("{name}List"), "plural": plural,
                      "singular": name.to_ascii_lowercase(), "categories": ["mesh-agent"]},
            "versions": [version],
        },
    })
}

/// What `control::kube::status` writes.
fn policy_status() -> Value {
    let text = |most: u32| json!({"type": "string", "maxLength": most});
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": text(316), "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": text(1_024), "message": text(32_768),
        },
    });
    json!({
        "type": "object",
        "description": "What the mesh makes of it.",
        "properties": {"conditions": {
            "type": "array", "maxItems": 8, "items": condition,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        }},
    })
}

/// A schema as the API server wants it: types alone, `nullable` instead of a type for null, no defaults.
///
/// `keep`: what the schema does not know, and nulls, stay in the object.
fn structural(schema: Value, keep: bool) -> Value {
    let Value::Object(schema) = schema else {
        // `true`: anything. A validation rule cannot look into it.
        return json!({PRESERVE: true});
    };
    let mut schema = without_null(schema);
    for unknown in ["$schema", "title", "default"] {
        schema.remove(unknown);
    }
    format(&mut schema);
    if !schema.contains_key("type") && !schema.contains_key("anyOf") {
        schema.insert(PRESERVE.to_owned(), json!(true));
    }
    if let Some(items) = schema.remove("items") {
        schema.insert("items".to_owned(), structural(items, keep));
    }
    if let Some(values) = schema.remove("additionalProperties") {
        schema.insert("additionalProperties".to_owned(), nullable(structural(values, keep), keep));
    }
    if let Some(Value::Object(properties)) = schema.remove("properties") {
        let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let property = |(name, property): (String, Value)| {
            let stays = keep && !required.contains(&json!(name));
            let property = nullable(structural(property, keep), stays);
            (name, property)
        };
        schema.insert("properties".to_owned(), properties.into_iter().map(property).collect::<Map<_, _>>().into());
        if keep {
            schema.insert(PRESERVE.to_owned(), json!(true));
        }
    }
    schema.into()
}

fn nullable(mut schema: Value, is: bool) -> Value {
    if let Some(schema) = schema.as_object_mut().filter(|_| is) {
        schema.insert("nullable".to_owned(), json!(true));
    }
    schema
}

/// `Option<T>` is a `T` that may be absent.
fn without_null(mut schema: Map<String, Value>) -> Map<String, Value> {
    let null = json!("null");
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| *name != null);
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("enum") {
        choices.retain(|choice| !choice.is_null());
    }
    let choices = schema.get("anyOf").and_then(Value::as_array);
    let is_null = |choice: &Value| choice.get("type") == Some(&null);
    if choices.is_some_and(|choices| choices.len() == 2 && choices.iter().any(is_null))
        && let Some(Value::Array(choices)) = schema.remove("anyOf")
        && let Some(Value::Object(other)) = choices.into_iter().find(|choice| !is_null(choice))
    {
        for (name, value) in other {
            schema.entry(name).or_insert(value);
        }
    }
    schema
}

/// Numbers have the formats of OpenAPI.
fn format(schema: &mut Map<String, Value>) {
    let format = schema.get("format").and_then(Value::as_str);
    let replaced = match format {
        Some("uint16" | "uint32") => "int32",
        Some("uint64") => "int64",
        _ => return,
    };
    schema.insert("format".to_owned(), json!(replaced));
}

#[cfg(test)]
#[path = "crd_tests.rs"]
pub(super) mod tests;
