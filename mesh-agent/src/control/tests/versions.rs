//! Which version of what is in force, after which sequence of file contents.

use proptest::prelude::*;

use super::{peer, pod, policy};
use crate::control::compile::{Objects, compile};
use crate::control::files::Files;
use crate::model::policy::Target;
use crate::model::workload::PeerMode;

/// Applies (file, text) in turn.
fn after(versions: &[(&str, &str)]) -> Files {
    let mut files = Files::default();
    for (name, text) in versions {
        files.apply(name, text.as_bytes());
    }
    files
}

/// Names of the pods in force with their first address.
fn pods(objects: &Objects) -> Vec<String> {
    objects.pods.iter().map(|pod| format!("{} {}", pod.object.name, pod.object.ips[0])).collect()
}

/// Names of the policies in force; broken ones with a `!`.
fn policies(objects: &Objects) -> Vec<String> {
    let name = |broken, name: &str| format!("{name}{}", if broken { "!" } else { "" });
    objects.policies.iter().map(|policy| name(policy.broken.is_some(), &policy.name)).collect()
}

#[track_caller]
fn check_problems(objects: &Objects, expected: &[&str]) {
    let got: Vec<String> = objects.problems.iter().map(ToString::to_string).collect();
    let matches = got.len() == expected.len() && expected.iter().all(|part| got.iter().any(|text| text.contains(part)));
    assert!(matches, "expected {expected:?}, got {got:#?}");
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_last_good_version() {
    let broken = pod("x", "10.0.0.2").replace("spec: {", "spec: {hostNetwork: 7, ");
    let objects = after(&[("a.yaml", &pod("x", "10.0.0.1")), ("a.yaml", &broken)]).objects();
    assert_eq!(pods(&objects), ["x 10.0.0.1"]);
    check_problems(
        &objects,
        &["a.yaml: Pod shop/x: spec.hostNetwork: invalid type: integer `7`, expected a boolean \
    (keeps_last)"],
    );

    let objects = after(&[("a.yaml", &broken)]).objects();
    assert!(pods(&objects).is_empty());
    check_problems(&objects, &["spec.hostNetwork: invalid type: integer `7`, expected a boolean (ignored)"]);

    let mended = after(&[("a.yaml", &pod("x", "10.0.0.1")), ("a.yaml", &broken), ("a.yaml", &pod("x", "10.0.0.3"))]);
    assert_eq!(pods(&mended.objects()), ["x 10.0.0.3"]);
    check_problems(&mended.objects(), &[]);
}

#[test]
fn a_syntax_error_keeps_what_is_missing_and_takes_what_can_be_read() {
    let good = pod("x", "10.0.0.1") + &pod("y", "10.0.0.2");
    let torn = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: x,\n".to_owned() + &pod("y", "10.0.0.9");
    let objects = after(&[("a.yaml", &good), ("a.yaml", &torn)]).objects();
    assert_eq!(pods(&objects), ["y 10.0.0.9", "x 10.0.0.1"]);
    check_problems(&objects, &["a.yaml: document: not YAML"]);
    assert_eq!(objects.problems[0].effect.as_str(), "keeps_last");

    let again = after(&[("a.yaml", &good), ("a.yaml", &torn), ("a.yaml", "{")]).objects();
    assert_eq!(pods(&again), ["x 10.0.0.1", "y 10.0.0.9"], "kept objects stay kept");
    let gone = after(&[("a.yaml", &good), ("a.yaml", "")]);
    assert!(pods(&gone.objects()).is_empty(), "an empty file holds nothing");
}

#[test]
fn a_removed_file_takes_its_objects_with_it_and_an_unavailable_one_keeps_them() {
    let mut files = after(&[("a.yaml", &pod("x", "10.0.0.1")), ("b.yaml", &policy("p", "{}"))]);
    files.unavailable("a.yaml", "cannot be read: denied".to_owned());
    files.unavailable("c.yaml", "cannot be read: denied".to_owned());
    assert_eq!(pods(&files.objects()), ["x 10.0.0.1"]);
    check_problems(
        &files.objects(),
        &[
            "a.yaml: file: cannot be read: denied (keeps_last)",
            "c.yaml: file: cannot \
    be read: denied (ignored)",
        ],
    );
    files.remove("a.yaml");
    files.remove("c.yaml");
    files.remove("b.yaml");
    assert!(pods(&files.objects()).is_empty() && policies(&files.objects()).is_empty());
    check_problems(&files.objects(), &[]);
}

#[test]
fn of_an_object_in_two_files_the_first_by_name_is_in_force_in_any_order() {
    let (first, second) = (pod("x", "10.0.0.1"), pod("x", "10.0.0.2"));
    for versions in [[("a.yaml", &*first), ("b.yaml", &*second)], [("b.yaml", &*second), ("a.yaml", &*first)]] {
        let objects = after(&versions).objects();
        assert_eq!(pods(&objects), ["x 10.0.0.1"]);
        check_problems(
            &objects,
            &["b.yaml: Pod shop/x: metadata.name: defined in a.yaml too, which is in force \
        (ignored)"],
        );
    }
    let within = after(&[("a.yaml", &(first + &second))]).objects();
    assert_eq!(pods(&within), ["x 10.0.0.1"]);
    check_problems(&within, &["a.yaml: Pod shop/x: metadata.name: defined in a.yaml too"]);
}

#[test]
fn an_enforcement_object_in_two_files_denies_for_both() {
    let (one, two) = (policy("p", "{targetRefs: [{kind: Pod, selector: {matchLabels: {a: b}}}]}"), policy("p", "{}"));
    let files = after(&[("a.yaml", &one), ("b.yaml", &two), ("c.yaml", &policy("q", "{}"))]);
    assert_eq!(policies(&files.objects()), ["p!", "p!", "q"]);
    assert!(matches!(files.objects().policies[0].target, Target::Selector { .. }));
    check_problems(
        &files.objects(),
        &["b.yaml: AuthorizationPolicy shop/p: metadata.name: defined in a.yaml too: \
    neither can be trusted (denies)"],
    );

    let permissive = peer("m", "{mode: Permissive, allowOptOut: true}");
    let objects = after(&[("a.yaml", &permissive), ("b.yaml", &permissive)]).objects();
    assert!(
        objects.peers.iter().all(|peer| peer.object.default == Some(PeerMode::Strict) && !peer.object.allow_opt_out)
    );
}

#[test]
fn a_policy_with_a_mistake_denies_at_once_and_the_mistake_is_named() {
    let objects = after(&[("a.yaml", &policy("p", "{}")), ("a.yaml", &policy("p", "{rulez: []}"))]).objects();
    assert_eq!(policies(&objects), ["p!"]);
    check_problems(
        &objects,
        &["a.yaml: AuthorizationPolicy shop/p: spec.rulez: unknown field: misspelt, or of \
    another version? (denies)"],
    );
}

#[test]
fn text_that_is_not_yaml_but_names_a_policy_denies_its_namespace() {
    let good = policy("p", "{targetRefs: [{kind: Pod, selector: {matchLabels: {a: b}}}]}");
    let torn = good.replace("}}}]}", "}}");
    let objects = after(&[("a.yaml", &(pod("x", "10.0.0.1") + &good)), ("a.yaml", &torn)]).objects();
    assert_eq!(policies(&objects), ["p!"]);
    assert_eq!(objects.policies[0].target, Target::Namespace("shop".into()));
    assert_eq!(pods(&objects), ["x 10.0.0.1"]);
    check_problems(&objects, &["AuthorizationPolicy shop/p: not YAML", "a.yaml: document: not YAML"]);
}

#[test]
fn the_items_of_a_list_are_objects_of_their_own() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: \
    shop}, status: {podIP: 10.0.0.1}}\n\
                - {apiVersion: v1, kind: Pod, metadata: {name: b, name: c}}\n";
    let objects = after(&[("a.yaml", list)]).objects();
    assert_eq!(pods(&objects), ["a 10.0.0.1"]);
    check_problems(&objects, &["Pod default/c: metadata.name: stands twice (ignored)"]);
}

/// Contents that a file may have at one time or another.
fn content() -> impl Strategy<Value = String> {
    let good = policy("p", "{targetRefs: [{kind: Pod, selector: {matchLabels: {a: b}}}], rules: [{}]}");
    prop::sample::select(vec![
        String::new(),
        "}{ neither YAML\n nor anything: [".to_owned(),
        good.clone(),
        good.clone() + &policy("q", "{action: DENY}"),
        good.replace("rules", "rulez"),
        good.replace("}]}", "}"),
        policy("q", "{targetRefs: 1}"),
        peer("m", "{mode: Permissive}"),
        peer("m", "{mode: Permissive, ports: {x: y}}"),
        peer("m", "{mode: [").clone(),
        pod("x", "10.0.0.1") + &good,
        pod("x", "10.0.0.1") + "---\n}{",
        pod("x", "10.0.0.1").replace("spec: {", "spec: {hostNetwork: 7, "),
    ])
}

proptest! {
    /// § The verdict is a function of the objects present, never of history.
    #[test]
    fn an_agent_that_remembers_enforces_what_one_just_started_does(
        history in prop::collection::vec((prop::sample::select(vec!["a.yaml", "b.yaml"]), content()), 0..8),
    ) {
        let mut last: std::collections::BTreeMap<&str, &str> = std::collections::BTreeMap::new();
        last.extend(history.iter().map(|(name, text)| (*name, text.as_str())));
        let old = after(&history.iter().map(|(name, text)| (*name, text.as_str())).collect::<Vec<_>>()).objects();
        let fresh = after(&last.into_iter().collect::<Vec<_>>()).objects();
        prop_assert_eq!(&old.policies, &fresh.policies);
        let peers = |objects: &Objects| objects.peers.iter().map(|peer| (*peer.object).clone()).collect::<Vec<_>>();
        prop_assert_eq!(peers(&old), peers(&fresh));
    }

    /// Nobody's input, however odd, makes the agent panic.
    #[test]
    fn any_text_compiles(text in "[ \
    -~\n]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>()) {
        let good = pod("x", "10.0.0.1") + &policy("p", "{rules: [{sources: []}]}") + &peer("m", "{mode: Strict}");
        let cut = good.get(..at.index(good.len())).unwrap_or_default().to_owned();
        for content in [text.as_bytes(), &bytes, (cut.clone() + &text).as_bytes(), (text.clone() + &good).as_bytes()] {
            let mut files = Files::default();
            files.apply("a.yaml", good.as_bytes());
            files.apply("a.yaml", content);
            compile(&files.objects(), &"node-a".into(), &"cluster.local".into());
        }
    }
}

#[test]
fn the_documented_examples_are_read_without_a_mistake() {
    let text = include_str!("../../../../docs/configuration.md");
    let examples: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 4);
    let objects = after(&[("all.yaml", &examples.join("---\n"))]).objects();
    check_problems(&objects, &[]);
    let counts = [objects.policies.len(), objects.peers.len(), objects.traffic.len(), objects.captures.len()];
    assert_eq!(counts, [1; 4]);
}
