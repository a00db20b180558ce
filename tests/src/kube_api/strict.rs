//! `fieldValidation=Strict`: an object with a field that its kind does not have is refused. Of a CRD its schema says
//! which there are; of kinds that are built in, the types made from Kubernetes' own OpenAPI.

use k8s_openapi::api::{admissionregistration, apps, coordination, core, discovery, networking, policy, rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure::Failure;
use super::kind::Kind;

/// # Errors
/// 400 with each field that is not known, or what cannot be read.
pub fn check(kind: &Kind, object: &Value) -> Result<(), Failure> {
    let mut unknown = Vec::new();
    let refused = |why: String| {
        let Kind { kind, version, .. } = kind;
        Failure::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    };
    match &kind.schema {
        Some(schema) => by_schema(object, schema, "", true, &mut unknown),
        None => match typed(kind, object) {
            Some(Ok(read)) => lost(object, &read, "", &mut unknown),
            Some(Err(error)) => return Err(refused(error.to_string())),
            None => {}
        },
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let unknown: Vec<String> = unknown.iter().map(|field| format!("unknown field \"{field}\"")).collect();
    Err(refused(format!("strict decoding error: {}", unknown.join(", "))))
}

fn by_schema(value: &Value, schema: &Value, at: &str, is_root: bool, unknown: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let own = schema["properties"].get(name);
                let inner = own.or_else(|| schema.get("additionalProperties").filter(|more| **more != false));
                // Fields of every object, which schemas do not repeat.
                let common = is_root && ["apiVersion", "kind", "metadata"].contains(&name.as_str());
                match inner {
                    _ if common => {}
                    Some(inner) => by_schema(value, inner, &join(at, name), false, unknown),
                    None if schema.get("type").is_none() => {}
                    None => unknown.push(join(at, name)),
                }
            }
        }
        Value::Array(list) => {
            for (place, value) in list.iter().enumerate() {
                by_schema(value, &schema["items"], &format!("{at}[{place}]"), false, unknown);
            }
        }
        _ => {}
    }
}

/// Fields of `whole` that are not in what was `read` of it.
fn lost(whole: &Value, read: &Value, at: &str, unknown: &mut Vec<String>) {
    match (whole, read) {
        (Value::Object(whole), Value::Object(read)) => {
            for (name, value) in whole.iter().filter(|(_, value)| !value.is_null()) {
                match read.get(name) {
                    Some(read) => lost(value, read, &join(at, name), unknown),
                    None => unknown.push(join(at, name)),
                }
            }
        }
        (Value::Array(whole), Value::Array(read)) => {
            for (place, (value, read)) in whole.iter().zip(read).enumerate() {
                lost(value, read, &format!("{at}[{place}]"), unknown);
            }
        }
        _ => {}
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// The object as its type reads it; `None` for kinds whose types are not known here.
fn typed(kind: &Kind, object: &Value) -> Option<serde_json::Result<Value>> {
    Some(match kind.kind.as_str() {
        "Namespace" => read::<core::v1::Namespace>(object),
        "Node" => read::<core::v1::Node>(object),
        "Pod" => read::<core::v1::Pod>(object),
        "Service" => read::<core::v1::Service>(object),
        "ServiceAccount" => read::<core::v1::ServiceAccount>(object),
        "ConfigMap" => read::<core::v1::ConfigMap>(object),
        "Secret" => read::<core::v1::Secret>(object),
        "EndpointSlice" => read::<discovery::v1::EndpointSlice>(object),
        "Lease" => read::<coordination::v1::Lease>(object),
        "ClusterRole" => read::<rbac::v1::ClusterRole>(object),
        "ClusterRoleBinding" => read::<rbac::v1::ClusterRoleBinding>(object),
        "Role" => read::<rbac::v1::Role>(object),
        "RoleBinding" => read::<rbac::v1::RoleBinding>(object),
        "ValidatingAdmissionPolicy" => read::<admissionregistration::v1::ValidatingAdmissionPolicy>(object),
        "ValidatingAdmissionPolicyBinding" => {
            read::<admissionregistration::v1::ValidatingAdmissionPolicyBinding>(object)
        }
        "DaemonSet" => read::<apps::v1::DaemonSet>(object),
        "Deployment" => read::<apps::v1::Deployment>(object),
        "PodDisruptionBudget" => read::<policy::v1::PodDisruptionBudget>(object),
        "NetworkPolicy" => read::<networking::v1::NetworkPolicy>(object),
        "CustomResourceDefinition" => read::<CustomResourceDefinition>(object),
        _ => return None,
    })
}

fn read<T: DeserializeOwned + Serialize>(object: &Value) -> serde_json::Result<Value> {
    serde_json::from_value::<T>(object.clone()).and_then(serde_json::to_value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::kube_api::kind::built_in;

    fn refusal(kind: &Kind, object: Value) -> String {
        check(kind, &object).map_or_else(|failure| failure.message, |()| String::new())
    }

    #[test]
    fn fields_that_a_kind_does_not_have_are_named() {
        let kinds = built_in();
        let pod = kinds.iter().find(|kind| kind.kind == "Pod").expect("pods");
        let with = |extra: Value| {
            let mut container = json!({"name": "a", "image": "i", "ports": [{"containerPort": 80}]});
            crate::kube_api::patch::merge(&mut container, &extra);
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}})
        };
        assert_eq!(refusal(pod, with(json!({}))), "");
        let words = "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
                     \"spec.containers[0].imag\"";
        assert_eq!(refusal(pod, with(json!({"imag": "i"}))), words);
        assert!(refusal(pod, with(json!({"ports": 1}))).contains("cannot be handled as a Pod: "));
        let mut own = pod.clone();
        own.schema = Some(Arc::new(json!({"type": "object", "properties": {"spec": {"type": "object", "properties":
            {"a": {"type": "object", "additionalProperties": {"type": "string"}}}}}})));
        assert_eq!(refusal(&own, json!({"kind": "X", "metadata": {}, "spec": {"a": {"any": "x"}}})), "");
        assert!(refusal(&own, json!({"spec": {"b": 1}})).contains("unknown field \"spec.b\""));
        assert!(refusal(&own, json!({"sepc": {}})).contains("unknown field \"sepc\""));
    }
}
