//! What is to be written, case by case, without an API server.

use std::sync::Arc;

use serde_json::{Value, json};

use super::desired::{Desired, of_policy, of_route};
use super::live::Live;
use super::{CONTROLLER, Key, Kind, Sketch};
use crate::control::kube::watch::read;
use crate::model::problem::Effect;
use crate::model::route::{Condition, ParentRef, ParentStatus, Reason, RouteKind, RouteName, RouteStatus};

const NOW: &str = "2026-01-02T03:04:05Z";
const BEFORE: &str = "2001-01-01T00:00:00Z";

fn live(kind: Kind, value: &Value) -> Live {
    let (key, reading) = read(kind, kind.api().1[0], value.clone(), false);
    Live::new(kind.api().1[0], Sketch::of(value), &key, &reading)
}

fn route(generation: i64, parents: &Value, status: &Value) -> Live {
    let value = json!({
        "metadata": {"name": "r", "namespace": "shop", "generation": generation, "resourceVersion": "7"},
        "spec": {"parentRefs": parents, "rules": [{}]},
        "status": {"parents": status},
    });
    live(Kind::Route(RouteKind::Http), &value)
}

fn web() -> Value {
    json!({"group": "", "kind": "Service", "name": "web", "port": 80})
}

fn said(holds: bool, reason: Reason) -> Condition {
    Condition { holds, reason, message: "why".into() }
}

fn judged(generation: i64, accepted: Condition) -> RouteStatus {
    let parent = ParentRef { namespace: "shop".into(), name: "web".into(), port: Some(80), section_name: None };
    RouteStatus {
        route: RouteName { kind: RouteKind::Http, namespace: "shop".into(), name: "r".into() },
        observed_generation: generation,
        parents: vec![ParentStatus {
            parent,
            accepted,
            resolved_refs: said(true, Reason::ResolvedRefs),
            partially_invalid: None,
        }],
    }
}

/// What is to be written; nothing when the status stands, or waits.
fn written(desired: Desired) -> Option<Value> {
    match desired {
        Desired::Write(_, value) => Some(value),
        Desired::Standing | Desired::Later => None,
    }
}

#[test]
fn what_was_written_stands_and_its_time_changes_with_the_status_alone() {
    let accepted = judged(3, said(true, Reason::Accepted));
    let first = written(of_route(&route(3, &json!([web()]), &json!([])), Some(&accepted), BEFORE)).unwrap();
    assert_eq!(first[0]["conditions"][0]["lastTransitionTime"], BEFORE);
    let standing = of_route(&route(3, &json!([web()]), &first), Some(&accepted), NOW);
    assert_eq!(standing, Desired::Standing);

    let refused = judged(4, said(false, Reason::NoMatchingParent));
    let second = written(of_route(&route(4, &json!([web()]), &first), Some(&refused), NOW)).unwrap();
    let times: Vec<&Value> = (0..2).map(|at| &second[0]["conditions"][at]["lastTransitionTime"]).collect();
    assert_eq!(times, [NOW, BEFORE], "{second}");
    assert_eq!(second[0]["conditions"][1]["observedGeneration"], 4);
}

#[test]
fn nothing_is_said_of_a_version_that_was_not_judged() {
    let older = judged(2, said(true, Reason::Accepted));
    let live = route(3, &json!([web()]), &json!([]));
    assert_eq!(of_route(&live, Some(&older), NOW), Desired::Later);
    assert_eq!(of_route(&live, None, NOW), Desired::Later);
}

#[test]
fn parents_of_others_are_not_answered_and_one_that_stands_twice_once() {
    let accepted = judged(1, said(true, Reason::Accepted));
    let gateway = json!({"name": "gateway"});
    let found =
        written(of_route(&route(1, &json!([web(), gateway, web()]), &json!([])), Some(&accepted), NOW)).unwrap();
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!((&found[0]["parentRef"], found[0]["controllerName"].as_str()), (&web(), Some(CONTROLLER)));
    let alone = of_route(&route(1, &json!([gateway]), &json!([])), None, NOW);
    assert_eq!(alone, Desired::Standing);
}

#[test]
fn a_parent_that_cannot_be_read_is_refused_without_waiting() {
    let wrong = json!({"group": "gateway.networking.k8s.io", "kind": "Service", "name": "web"});
    let found = written(of_route(&route(1, &json!([wrong]), &json!([])), None, NOW)).unwrap();
    let accepted = &found[0]["conditions"][0];
    assert_eq!((accepted["status"].as_str(), accepted["reason"].as_str()), (Some("False"), Some("UnsupportedValue")));
    assert!(accepted["message"].as_str().unwrap().contains("group"), "{accepted}");
}

#[test]
fn a_policy_says_the_gravest_of_what_it_leads_to() {
    let value = json!({"metadata": {"name": "p", "namespace": "shop", "generation": 2}, "spec": {"rules": []},
        "status": {"conditions": [{"type": "Theirs", "status": "True"}]}});
    let live = live(Kind::AuthorizationPolicy, &value);
    assert!(live.mistakes.is_empty(), "{:?}", live.mistakes);
    let problem = |text: &str, effect| (text.to_owned(), effect);
    for (problems, status, words) in [
        (vec![], "True", ""),
        (vec![problem("a", Effect::Partly)], "True", ""),
        (vec![problem("b", Effect::Ignored)], "False", "b; it has no effect"),
        (vec![problem("b", Effect::Ignored), problem("c", Effect::Denies)], "False", "b; c; what it targets is denied"),
        (vec![problem("d", Effect::KeepsLast)], "False", "d; the last good version"),
    ] {
        let found = written(of_policy(&live, &problems, NOW)).unwrap();
        assert_eq!(found[0]["type"], "Theirs");
        assert_eq!(found[1]["status"], status, "{found}");
        assert!(found[1]["message"].as_str().unwrap().starts_with(words), "{found}");
        let partly = problems.iter().any(|(_, effect)| *effect == Effect::Partly);
        assert_eq!(found[2]["type"] == "PartiallyInvalid", partly, "{found}");
    }
}

#[test]
fn a_message_is_cut_where_the_api_would_refuse_it() {
    let mut refused = said(false, Reason::UnsupportedValue);
    refused.message = Arc::from("ä".repeat(40_000));
    let found = written(of_route(&route(1, &json!([web()]), &json!([])), Some(&judged(1, refused)), NOW)).unwrap();
    assert!(found[0]["conditions"][0]["message"].as_str().unwrap().len() <= 32_768);
}

#[test]
fn keys_of_objects_are_those_of_problems() {
    let key = Key { kind: Kind::PeerPolicy, namespace: "shop".into(), name: "p".into() };
    assert_eq!(key.to_string(), "PeerPolicy shop/p");
}
