//! The status that an object should have, from the one that it has. Pure: the time is an argument.
//!
//! Routes: Gateway API `RouteStatus`, one entry in `parents` for each Service (GEP-1294); entries of other controllers
//! stay. Our policies: `status.conditions`, of which other types stay.

use serde_json::{Value, json};

use super::CONTROLLER;
use super::live::{Live, Parent};
use crate::model::problem::Effect;
use crate::model::route::{Condition, ParentStatus, RouteStatus};

/// What is to be done about an object's status.
#[derive(Debug, PartialEq)]
pub(super) enum Desired {
    /// It is as it should be.
    Standing,
    /// What was judged is not the version that the API server has: one of the two is about to come.
    Later,
    /// This field of the status becomes this.
    Write(&'static str, Value),
}

/// One condition, before it has a time.
struct Said<'a> {
    kind: &'static str,
    holds: bool,
    reason: &'a str,
    message: &'a str,
}

impl<'a> Said<'a> {
    fn of(kind: &'static str, condition: &'a Condition) -> Self {
        Self { kind, holds: condition.holds, reason: condition.reason.as_str(), message: &condition.message }
    }

    /// The condition as the API has it. It keeps the time of one among `before` that says the same.
    fn write(&self, before: &Value, generation: i64, now: &str) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let same = before.as_array().into_iter().flatten().find(|one| one["type"] == self.kind);
        let since = same.filter(|one| one["status"] == status).and_then(|one| one["lastTransitionTime"].as_str());
        json!({
            "type": self.kind,
            "status": status,
            "reason": self.reason,
            "message": shortened(self.message),
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or(now),
        })
    }
}

/// The longest message that metav1.Condition allows.
const LONGEST_MESSAGE: usize = 32_768;

fn shortened(message: &str) -> &str {
    &message[..message.floor_char_boundary(LONGEST_MESSAGE)]
}

/// The status of a route. `judged` is what the newest snapshot says of it.
pub(super) fn of_route(live: &Live, judged: Option<&RouteStatus>, now: &str) -> Desired {
    let before = live.status.get("parents").and_then(Value::as_array).cloned().unwrap_or_default();
    let (ours, mut wanted): (Vec<Value>, Vec<Value>) =
        before.iter().cloned().partition(|entry| entry["controllerName"] == CONTROLLER);
    let mut answered = Vec::new();
    for parent in &live.parents {
        // One that stands twice has one answer.
        if answered.contains(&&parent.reference) {
            continue;
        }
        answered.push(&parent.reference);
        let known = ours.iter().find(|entry| entry["parentRef"] == parent.reference);
        let conditions = known.map_or(&Value::Null, |entry| &entry["conditions"]);
        let Some(conditions) = at_parent(live, parent, judged, conditions, now) else { return Desired::Later };
        wanted.push(json!({
            "parentRef": parent.reference,
            "controllerName": CONTROLLER,
            "conditions": conditions,
        }));
    }
    if wanted == before { Desired::Standing } else { Desired::Write("parents", wanted.into()) }
}

/// `None`: not judged yet.
fn at_parent(
    live: &Live,
    parent: &Parent,
    judged: Option<&RouteStatus>,
    before: &Value,
    now: &str,
) -> Option<Vec<Value>> {
    let write = |said: Said<'_>| said.write(before, live.generation, now);
    let refused = |message: &str| {
        let accepted = Said { kind: "Accepted", holds: false, reason: "UnsupportedValue", message };
        Some(vec![write(accepted)])
    };
    let parent = match &parent.read {
        Err(reason) => return refused(reason),
        Ok(_) if !live.mistakes.is_empty() => return refused(&live.mistakes.join("; ")),
        Ok(parent) => parent,
    };
    let judged = judged.filter(|judged| judged.observed_generation == live.generation)?;
    let ParentStatus { accepted, resolved_refs, partially_invalid, .. } =
        judged.parents.iter().find(|status| status.parent == *parent)?;
    let mut conditions = vec![write(Said::of("Accepted", accepted)), write(Said::of("ResolvedRefs", resolved_refs))];
    conditions.extend(partially_invalid.as_ref().map(|flaws| write(Said::of("PartiallyInvalid", flaws))));
    Some(conditions)
}

/// The status of one of our policies. `problems` is what is wrong with it beside other objects, and what that leads to.
pub(super) fn of_policy(live: &Live, problems: &[(String, Effect)], now: &str) -> Desired {
    let own = live.mistakes.iter().map(|mistake| (mistake, live.effect.unwrap_or(Effect::Ignored)));
    let others =
        problems.iter().filter(|(text, _)| !live.mistakes.contains(text)).map(|(text, effect)| (text, *effect));
    let all: Vec<(&String, Effect)> = own.chain(others).collect();
    let (partly, whole): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, effect)| *effect == Effect::Partly);
    let texts = |of: &[(&String, Effect)]| of.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("; ");
    let meanwhile = match whole.iter().map(|(_, effect)| *effect).max_by_key(|effect| severity(*effect)) {
        Some(Effect::Denies) => "; what it targets is denied until this is mended",
        Some(Effect::KeepsLast) => "; the last good version stays in force until this is mended",
        _ => "; it has no effect until this is mended",
    };
    let (holds, reason, message) = match whole.is_empty() {
        true => (true, "Accepted", String::new()),
        false => (false, "Invalid", texts(&whole) + meanwhile),
    };
    let before = live.status.get("conditions").unwrap_or(&Value::Null);
    let message = &message;
    let mut said = vec![Said { kind: "Accepted", holds, reason, message }];
    let flaws = texts(&partly);
    if !flaws.is_empty() {
        said.push(Said { kind: "PartiallyInvalid", holds: true, reason: "UnsupportedValue", message: &flaws });
    }
    let is_ours = |one: &Value| matches!(one["type"].as_str(), Some("Accepted" | "PartiallyInvalid"));
    let others = before.as_array().into_iter().flatten().filter(|one| !is_ours(one)).cloned();
    let ours = said.iter().map(|said| said.write(before, live.generation, now));
    let wanted = Value::Array(others.chain(ours).collect());
    if wanted == *before { Desired::Standing } else { Desired::Write("conditions", wanted) }
}

fn severity(effect: Effect) -> u8 {
    match effect {
        Effect::Denies => 2,
        Effect::KeepsLast => 1,
        Effect::Ignored | Effect::Partly => 0,
    }
}
