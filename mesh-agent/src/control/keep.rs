//! One object as it is kept between two versions of it, whatever source it came from.
//!
//! An object with a mistake: our enforcement kinds deny what they target; every other kind keeps its last good
//! version, if there was one. Pure.

use std::sync::Arc;

use serde_json::Value;

use super::compile::{Found, Objects};
use super::object::{Key, Mistake, Object, Reading};
use crate::model::problem::{Effect, Problem};

/// One object, or one mistake where an object should be.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Option<Key>,
    pub(super) object: Option<Object>,
    pub(super) problems: Vec<Problem>,
}

impl Entry {
    /// What is in force once `value`, found at `location`, turned out to be `reading`. `last_good` takes the last
    /// good version out of where it is kept; it is asked for every object, so that nothing remains of those read.
    pub(super) fn new(
        location: &Arc<str>,
        value: &Value,
        reading: Reading,
        last_good: impl FnOnce(&Key) -> Option<Object>,
    ) -> Self {
        match reading {
            Reading::Foreign => Self { key: None, object: None, problems: Vec::new() },
            Reading::Object(key, object, mistakes) => {
                last_good(&key);
                let effect = object.effect_of_mistakes();
                let problems =
                    mistakes.into_iter().map(|mistake| problem(location, key.to_string().into(), mistake, effect));
                Self { problems: problems.collect(), key: Some(key), object: Some(object) }
            }
            Reading::Unusable(key, mistakes) => {
                let object = key.as_ref().and_then(last_good);
                let effect = if object.is_some() { Effect::KeepsLast } else { Effect::Ignored };
                let title: Arc<str> = key.as_ref().map_or_else(|| describe(value), ToString::to_string).into();
                let problems =
                    mistakes.into_iter().map(|mistake| problem(location, Arc::clone(&title), mistake, effect));
                Self { problems: problems.collect(), key, object }
            }
        }
    }
}

impl Objects {
    /// Adds an object that is in force.
    pub(super) fn add(&mut self, object: Object, location: &Arc<str>) {
        fn found<T>(object: Arc<T>, location: &Arc<str>) -> Found<T> {
            Found { object, location: Arc::clone(location) }
        }
        match object {
            Object::Namespace(one) => self.namespaces.push(found(one, location)),
            Object::Node(one) => self.nodes.push(found(one, location)),
            Object::Pod(one) => self.pods.push(found(one, location)),
            Object::Service(one) => self.services.push(found(one, location)),
            Object::Slice(one) => self.slices.push(found(one, location)),
            Object::CaptureState(one) => self.captures.push(found(one, location)),
            Object::Peer(one) => self.peers.push(found(one, location)),
            Object::Traffic(one) => self.traffic.push(found(one, location)),
            Object::Authorization(targets) => self.policies.extend(targets),
            Object::Route(one) => self.routes.push(found(one, location)),
            Object::ServiceAccount | Object::ReferenceGrant => {}
        }
    }
}

/// `mistake` as people are told of it.
pub(super) fn problem(location: &Arc<str>, object: Arc<str>, mistake: Mistake, effect: Effect) -> Problem {
    let Mistake { field, reason } = mistake;
    Problem { location: Arc::clone(location), object, field: field.into(), reason: reason.into(), effect }
}

/// What to call an object whose kind or name is not known.
fn describe(value: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text(value.get("metadata").and_then(|metadata| metadata.get("name")));
    match (text(value.get("kind")), name) {
        (kind, name) if kind.is_empty() && name.is_empty() => "document".to_owned(),
        (kind, name) => format!("{kind} {name}").trim().to_owned(),
    }
}
