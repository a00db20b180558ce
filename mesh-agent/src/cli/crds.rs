//! `mesh-agent crds`: the CustomResourceDefinitions of our kinds as YAML, one document each, made from the types that
//! read them. What `cargo xtask deploy` keeps in the repository.

use std::process::ExitCode;

use serde_json::{Map, Value};

use super::{fail, print};
use crate::control;

pub(super) fn run() -> ExitCode {
    let documents: Result<Vec<String>, _> = control::crds().iter().map(document).collect();
    match documents {
        Ok(documents) => {
            print(&documents.concat());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn document(crd: &Value) -> Result<String, serde_norway::Error> {
    Ok(format!("---\n{}", serde_norway::to_string(&sorted(crd))?))
}

/// The same with the fields of each object in the order of their names, whatever a map keeps: the text is compared.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            Value::Object(fields.into_iter().map(|(name, value)| (name.clone(), sorted(value))).collect::<Map<_, _>>())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
