//! Tables over single documents: what they become and which mistakes are named.

mod authorization;
mod peer_policy;
mod traffic;

use std::collections::BTreeMap;

use super::*;
use crate::control::document::{Document, documents};
use crate::model::selector::LabelSelector;
use crate::model::workload::Captured;

/// Reads an example. One of our own kinds is given to the API server of the harness as well.
fn read_text(text: &str) -> Reading {
    match documents(text.as_bytes()).pop().expect("a document") {
        Document::Tree { value, repeated } => {
            let reading = read(&value, &repeated);
            if repeated.is_empty() {
                crd::tests::compare(&value, &reading);
            }
            reading
        }
        Document::Unreadable { reason, .. } => panic!("{reason}"),
    }
}

/// The object, with its mistakes as `field: reason`.
fn object(text: &str) -> (Object, Vec<String>) {
    match read_text(text) {
        Reading::Object(_, object, mistakes) => (object, render(mistakes)),
        other => panic!("{other:?}"),
    }
}

fn render(mistakes: Vec<Mistake>) -> Vec<String> {
    mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.field, mistake.reason)).collect()
}

fn authorization(metadata: &str, spec: &str) -> (Vec<Policy>, Vec<String>) {
    let text = format!("apiVersion: {API_VERSION}\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec: {spec}\n");
    match object(&text) {
        (Object::Authorization(policies), mistakes) => {
            (policies.iter().map(|policy| Policy::clone(policy)).collect(), mistakes)
        }
        (other, _) => panic!("{other:?}"),
    }
}

fn peer(metadata: &str, spec: &str) -> (PeerPolicy, Vec<String>) {
    let text = format!("apiVersion: {API_VERSION}\nkind: PeerPolicy\nmetadata: {metadata}\nspec: {spec}\n");
    match object(&text) {
        (Object::Peer(policy), mistakes) => (PeerPolicy::clone(&policy), mistakes),
        (other, _) => panic!("{other:?}"),
    }
}

const SHOP: &str = "{name: p, namespace: shop}";

fn labels(key: &str, value: &str) -> LabelSelector {
    BTreeMap::from([(key.to_owned(), value.to_owned())]).into()
}

fn web() -> Target {
    Target::Selector { namespace: "shop".into(), labels: labels("app", "web") }
}

#[test]
fn an_enforcement_object_is_kept_however_little_of_it_can_be_read() {
    for (text, target) in [
        ("kind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}", Target::Namespace("shop".into())),
        (
            "apiVersion: mesh-agent.io/v2\nkind: AuthorizationPolicy\nmetadata: {namespace: shop}\nspec: {}",
            Target::Namespace("shop".into()),
        ),
        ("apiVersion: mesh-agent.io\nkind: AuthorizationPolicy\nspec: {}", Target::Namespace("default".into())),
        (
            "apiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: \
            [shop]}\nspec: {}",
            Target::Mesh,
        ),
        ("apiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: shop\nspec: 1", Target::Mesh),
        (
            "apiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, \
            owner: me}\nspec: {}",
            Target::Namespace("shop".into()),
        ),
        (
            "apiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: \
            shop}\nspec: {action: ALLOW}\nspec: {action: ALLOW}",
            Target::Namespace("shop".into()),
        ),
    ] {
        let (Object::Authorization(policies), mistakes) = object(text) else { panic!("{text}") };
        assert!(!mistakes.is_empty(), "{text}");
        assert!(policies[0].broken.is_some() && policies[0].target == target, "{text}: {policies:?}");
    }
}

#[test]
fn what_is_not_ours_is_foreign_and_what_cannot_be_used_says_why() {
    for (text, expected) in [
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}", None),
        ("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}", None),
        (
            "apiVersion: mesh-agent.io/v1alpha1\nkind: TelemetryPolicy\nmetadata: {name: x}",
            Some("kind: this version knows no `TelemetryPolicy`"),
        ),
        ("kind: Pod\nmetadata: {name: x}", Some("apiVersion: `` is not v1")),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: x}", Some("apiVersion: `v2` is not v1")),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}", Some("metadata.name: missing")),
        ("apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: x}", Some("kind: stands twice")),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {hostNetwork: 1}",
            Some("spec.hostNetwork: invalid type: integer `1`"),
        ),
        ("apiVersion: v1\nmetadata: {name: x}", Some("not a Kubernetes object")),
        ("just text", Some("not a Kubernetes object")),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\naddressType: \
            IPv5\nendpoints: []",
            Some("addressType: `IPv5` is none"),
        ),
    ] {
        match (read_text(text), expected) {
            (Reading::Foreign, None) => {}
            (Reading::Unusable(_, mistakes), Some(part)) => {
                let mistakes = render(mistakes);
                assert!(mistakes.iter().any(|mistake| mistake.contains(part)), "`{part}` is not in {mistakes:?}");
            }
            (other, _) => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn an_unknown_field_of_a_core_kind_is_named_and_the_rest_works() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespaces: y}\nspec: {containers: [{name: c, ports: \
    [{containerPort: 80, portName: http}]}]}\n";
    let (Object::Pod(pod), mistakes) = object(text) else { panic!("not a pod") };
    assert_eq!(&*pod.name, "x");
    assert_eq!(
        mistakes,
        [
            "metadata.namespaces: unknown field: misspelt, or of another version?",
            "spec.containers[0].ports[0].portName: unknown field: misspelt, or of another version?"
        ]
    );
}

#[test]
fn a_written_capture_state_reads_back() {
    let captured = Captured { generation: 3, wire: ["mesh-http/1".into(), "h2".into()].into() };
    let value = capture_state("node-a", [("uid-1", "shop/web".to_owned(), &captured)].into_iter());
    let text = serde_norway::to_string(&value).expect("text");
    let (Object::CaptureState(state), mistakes) = object(&text) else { panic!("{text}") };
    assert_eq!(mistakes, [""; 0]);
    assert_eq!((&*state.node, &state.pods), ("node-a", &BTreeMap::from([("uid-1".into(), captured)])));
}

#[test]
fn unreadable_text_that_names_an_enforcement_kind_is_taken_for_it() {
    let check = |text: &str, expected: &[&str]| {
        let found: Vec<String> = suspects(text, "torn").iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(found, expected, "{text}");
    };
    let policy = "apiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\n";
    check(
        &format!("{policy}metadata:\n  name: p\n  namespace: shop\nspec:\n  rules: [{{namespace: bank"),
        &["AuthorizationPolicy shop/p"],
    );
    check(&format!("{policy}metadata: {{name: p, namespace: \"shop\"}}\nspec: ["), &["AuthorizationPolicy shop/p"]);
    check(&format!("{policy}metadata:\n  na"), &["AuthorizationPolicy default/<unnamed>"]);
    check(
        &format!("{policy}metadata:\n  name: p\nspec:\n  rules: [{{namespace: bank"),
        &["AuthorizationPolicy default/p"],
    );
    check("{\"kind\": \"PeerPolicy\", \"metadata\": {\"namespace\": \"shop\", \"name\": \"p\"", &["PeerPolicy shop/p"]);
    check(
        "kind: List\nitems: [{kind: PeerPolicy, metadata: {namespace: a, name: x}},\n {metadata: {namespace: b, \
        name: y}",
        &["PeerPolicy a/x", "PeerPolicy b/y"],
    );
    check("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: [", &[]);
    check("kind: Pod\nmetadata: [", &[]);
    let torn = suspects(&format!("{policy}metadata: {{namespace: mesh-agent-system"), "torn");
    let [(_, Object::Authorization(policies))] = &torn[..] else { panic!("{torn:?}") };
    assert_eq!((&policies[0].target, policies[0].broken.as_deref()), (&Target::Mesh, Some("torn")));
}
