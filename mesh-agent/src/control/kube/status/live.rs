//! An object whose status is the mesh's to write, as the API server has it.

use std::sync::Arc;

use serde_json::Value;

use super::super::{Key, Kind, Reading};
use crate::control::object::{self, ParentReading};
use crate::model::problem::Effect;
use crate::model::route::ParentRef;

/// A `parentRef` that is ours to answer.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control::kube) struct Parent {
    /// As the object has it, defaults included: the status repeats it.
    pub(super) reference: Value,
    /// What it says, or why that cannot be told.
    pub(super) read: Result<ParentRef, String>,
}

/// What the API server has of an object, reduced to what its status is written from.
#[derive(Clone, Debug)]
pub(in crate::control::kube) struct Live {
    pub(super) key: Key,
    /// The version of its kind by which it was read, and will be written.
    pub(super) version: &'static str,
    pub(super) resource_version: String,
    pub(super) generation: i64,
    /// Of a route: the parents that are ours.
    pub(super) parents: Vec<Parent>,
    pub(super) status: Value,
    /// What is wrong with the object alone, and what that leads to; of a route, only where none of it can be used.
    pub(super) mistakes: Vec<String>,
    pub(super) effect: Option<Effect>,
}

/// What of the object is needed before it is reduced.
#[derive(Debug)]
pub(in crate::control::kube) struct Sketch {
    resource_version: String,
    generation: i64,
    references: Vec<Value>,
    status: Value,
}

/// Whether the status of such objects is the mesh's to write.
pub(in crate::control::kube) fn has_status(kind: Kind) -> bool {
    matches!(kind, Kind::Route(_) | Kind::AuthorizationPolicy | Kind::PeerPolicy | Kind::TrafficPolicy)
}

impl Sketch {
    pub(super) fn resource_version(&self) -> &str {
        &self.resource_version
    }

    pub(in crate::control::kube) fn of(value: &Value) -> Self {
        let text = |at: &str| value.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            resource_version: text("/metadata/resourceVersion"),
            generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0),
            references: value.pointer("/spec/parentRefs").and_then(Value::as_array).cloned().unwrap_or_default(),
            status: value.get("status").cloned().unwrap_or(Value::Null),
        }
    }
}

impl Live {
    pub(super) fn new(version: &'static str, sketch: Sketch, key: &Key, reading: &Reading) -> Self {
        let parents = match key.kind {
            Kind::Route(_) => sketch.references.into_iter().filter_map(|one| parent(one, &key.namespace)).collect(),
            _ => Vec::new(),
        };
        let (mistakes, effect) = match reading {
            Reading::Object(_, object, mistakes) if !matches!(key.kind, Kind::Route(_)) => {
                (mistakes.as_slice(), Some(object.effect_of_mistakes()))
            }
            // What stays of it until then is not told from here: another version may be in force.
            Reading::Unusable(_, mistakes) => (mistakes.as_slice(), Some(Effect::Ignored)),
            _ => (&[][..], None),
        };
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Self {
            key: key.clone(),
            version,
            resource_version: sketch.resource_version,
            generation: sketch.generation,
            parents,
            status: sketch.status,
            effect: effect.filter(|_| !mistakes.is_empty()),
            mistakes,
        }
    }
}

/// `None`: another controller's.
fn parent(reference: Value, namespace: &Arc<str>) -> Option<Parent> {
    let read = match object::read_parent(&reference, namespace) {
        ParentReading::Ours(parent) => Ok(parent),
        ParentReading::Wrong(reason) => Err(reason),
        ParentReading::Foreign => return None,
    };
    Some(Parent { reference, read })
}
