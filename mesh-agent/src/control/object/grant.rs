//! ReferenceGrant, read only to name its mistakes.
//!
//! A route with a Service parent needs none (GEP-1294): it leads nowhere that its clients could not dial themselves,
//! and the server judges the client's own identity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::decode::{Mistake, decode};

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Spec {
    from: Vec<From>,
    to: Vec<To>,
}

#[derive(Debug, Deserialize)]
struct From {
    #[serde(rename = "group")]
    _group: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "namespace")]
    _namespace: String,
}

#[derive(Debug, Deserialize)]
struct To {
    #[serde(rename = "group")]
    _group: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "name")]
    _name: Option<String>,
}

pub(super) fn read(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<(), Mistake> {
    let (raw, unknown) = decode::<Raw>(value);
    let spec = raw?.spec;
    mistakes.extend(unknown);
    for (field, length) in [("spec.from", spec.from.len()), ("spec.to", spec.to.len())] {
        if !(1..=16).contains(&length) {
            mistakes.push(Mistake::new(field, format!("{length} entries: 1 to 16 are needed")));
        }
    }
    Ok(())
}
