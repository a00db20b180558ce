//! Tables over single documents: what they become and which mistakes are named.

use std::collections::BTreeMap;

use super::peer_policy::EgressRule;
use super::*;
use crate::control::document::{Document, documents};
use crate::model::policy::{Action, HostMatch, IdentityMatch, RequestMatch, Rule, Source};
use crate::model::problem::Effect;
use crate::model::route::{HeaderMatch, PathMatch, Pattern, TextMatch};
use crate::model::selector::{LabelSelector, Operator, Requirement};
use crate::model::workload::{Captured, PeerMode};

fn read_text(text: &str) -> Reading {
    match documents(text.as_bytes()).pop().expect("a document") {
        Document::Tree { value, repeated } => read(&value, &repeated),
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
fn a_whole_authorization_policy_is_read_field_by_field() {
    let (policies, mistakes) = authorization(
        SHOP,
        "
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: web}}}, {group: core, kind: Pod, selector: {}}]
  action: DENY
  enforcementLevel: Network
  rules:
  - sources:
    - {type: ServiceAccount, serviceAccount: {name: cart}}
    - {type: ServiceAccount, serviceAccount: {namespace: bank, name: '*'}, notCidrs: [10.0.0.1]}
    - {type: SPIFFE, spiffe: spiffe://a/ns/b/sa/c}
    - {type: Namespace, namespace: {name: bank}}
    - {type: CIDR, cidrs: [10.0.0.0/8, '::ffff:10.0.0.0/104', fd00::/8]}
    - type: NotIdentity
      notIdentities: [{type: Namespace, namespace: {name: bank}}, {type: ServiceAccount, serviceAccount: {name: x}}]
    networkAttributes: {ports: [80, 443]}
  - {sources: []}
  - {}
",
    );
    assert_eq!(mistakes, [""; 0]);
    let account =
        |namespace: &str, name: &str| IdentityMatch::ServiceAccount { namespace: namespace.into(), name: name.into() };
    let by = |identity| Source { identity: Some(identity), ..Source::default() };
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().expect("net")).collect::<Vec<_>>();
    let sources = vec![
        by(account("shop", "cart")),
        Source { not_cidrs: nets(&["10.0.0.1/32"]), ..by(account("bank", "*")) },
        by(IdentityMatch::Spiffe("spiffe://a/ns/b/sa/c".into())),
        by(IdentityMatch::Namespace("bank".into())),
        Source { cidrs: Some(nets(&["10.0.0.0/8", "10.0.0.0/8", "fd00::/8"])), ..Source::default() },
        by(IdentityMatch::Not(vec![IdentityMatch::Namespace("bank".into()), account("shop", "x")])),
    ];
    let rules = vec![
        Rule { sources: Some(sources), ports: Some(vec![80, 443]), requests: None },
        Rule { sources: Some(vec![]), ..Rule::default() },
        Rule::default(),
    ];
    let policy = |target| Policy {
        namespace: "shop".into(),
        name: "p".into(),
        action: Action::Deny,
        target,
        rules: rules.clone(),
        broken: None,
    };
    assert_eq!(policies, [policy(web()), policy(Target::Namespace("shop".into()))]);
}

#[test]
fn what_a_policy_leaves_out_has_its_documented_meaning() {
    for (metadata, spec, target) in [
        (SHOP, "{}", Target::Namespace("shop".into())),
        ("{name: p}", "{rules: []}", Target::Namespace("default".into())),
        ("{name: p, namespace: mesh-agent-system}", "{}", Target::Mesh),
        ("{name: p, namespace: mesh-agent-system}", "{targetRefs: [{kind: Pod, selector: {}}]}", Target::Mesh),
        (SHOP, "{targetRefs: [{kind: Pod, selector: {matchLabels: {app: web}}}]}", web()),
        (
            SHOP,
            "{targetRefs: [{kind: Pod, selector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}}]}",
            Target::Selector {
                namespace: "shop".into(),
                labels: LabelSelector {
                    labels: BTreeMap::new(),
                    expressions: vec![Requirement { key: "a".into(), operator: Operator::NotIn(vec!["b".into()]) }],
                },
            },
        ),
    ] {
        let (policies, mistakes) = authorization(metadata, spec);
        assert_eq!((mistakes.len(), policies.len()), (0, 1), "{spec}: {mistakes:?}");
        assert_eq!(policies[0].target, target, "{metadata} {spec}");
        assert_eq!((policies[0].action, policies[0].rules.len()), (Action::Allow, 0));
    }
}

/// A policy with a mistake in `spec`: named, and broken for `target`.
#[track_caller]
fn check_broken(spec: &str, mistake: &str, target: Target) {
    let (policies, mistakes) = authorization(SHOP, spec);
    assert!(mistakes.iter().any(|text| text.contains(mistake)), "`{mistake}` is not in {mistakes:?}");
    assert_eq!(policies.len(), 1);
    assert!(policies[0].broken.is_some() && policies[0].rules.is_empty(), "{spec}");
    assert_eq!(policies[0].target, target, "{spec}");
}

#[test]
fn every_mistake_of_a_policy_is_named_and_breaks_it_for_its_targets() {
    let all = || Target::Namespace("shop".into());
    check_broken("{rulez: []}", "spec.rulez: unknown field", all());
    check_broken("{action: WATCH}", "spec.action: unknown variant `WATCH`", all());
    check_broken("{enforcementLevel: Application}", "spec.enforcementLevel: unknown variant", all());
    check_broken("{targetRefs: [{kind: Service, selector: {}}]}", "spec.targetRefs[0].kind: only `Pod`", all());
    check_broken("{targetRefs: [{kind: Pod}]}", "spec.targetRefs[0]: missing field `selector`", all());
    check_broken(
        "{targetRefs: [{kind: Pod, selector: {matchLabel: {a: b}}}]}",
        "spec.targetRefs[0].selector.matchLabel: unknown",
        all(),
    );
    check_broken(
        "{targetRefs: [{kind: Pod, selector: {matchLabels: {app: 1}}}]}",
        "spec.targetRefs[0].selector.matchLabels.app: invalid type",
        all(),
    );
    let wrong = "{targetRefs: [{kind: Pod, selector: {matchExpressions: [{key: a, operator: In}]}}]}";
    check_broken(wrong, "spec.targetRefs[0].selector.matchExpressions[0].values: In and NotIn need", all());
    for (rule, mistake) in [
        ("{source: []}", "rules[0].source: unknown field"),
        ("{sources: null}", "rules[0].sources: invalid type: null"),
        ("{networkAttributes: null}", "rules[0].networkAttributes: invalid type: null"),
        ("{networkAttributes: {ports: []}}", "rules[0].networkAttributes.ports: an empty list"),
        ("{networkAttributes: {ports: [80, 0]}}", "rules[0].networkAttributes.ports[1]: 0 is not a port"),
        (
            "{networkAttributes: {ports: [65536]}}",
            "rules[0].networkAttributes.ports[0]: invalid value: integer `65536`",
        ),
        ("{requestAttributes: null}", "rules[0].requestAttributes: invalid type: null"),
        ("{requestAttributes: {}}", "rules[0].requestAttributes: asks for nothing"),
        ("{requestAttributes: {path: []}}", "rules[0].requestAttributes.path: unknown field"),
        ("{requestAttributes: {methods: []}}", "requestAttributes.methods: an empty list"),
        ("{requestAttributes: {methods: [get]}}", "requestAttributes.methods[0]: `get` is not a method in upper case"),
        ("{requestAttributes: {methods: ['G T']}}", "requestAttributes.methods[0]: `G T`"),
        ("{requestAttributes: {paths: []}}", "requestAttributes.paths: an empty list"),
        ("{requestAttributes: {paths: [{}]}}", "requestAttributes.paths[0].value: missing"),
        ("{requestAttributes: {paths: [{value: null}]}}", "requestAttributes.paths[0].value: missing"),
        ("{requestAttributes: {paths: [{value: admin}]}}", "paths[0].value: `admin` does not begin with /"),
        ("{requestAttributes: {paths: [{value: /a/../b}]}}", "paths[0].value: `/a/../b` contains /../"),
        ("{requestAttributes: {paths: [{value: /a%5Cb}]}}", "paths[0].value: `/a%5Cb` can be read in several ways"),
        ("{requestAttributes: {paths: [{type: RegularExpression, value: '['}]}}", "paths[0].value: `[` is no pattern"),
        ("{requestAttributes: {hosts: []}}", "requestAttributes.hosts: an empty list"),
        ("{requestAttributes: {hosts: [A]}}", "requestAttributes.hosts[0]: `A` is not a host name"),
        ("{requestAttributes: {hosts: ['*']}}", "requestAttributes.hosts[0]: `*` is not a host name"),
        ("{requestAttributes: {headers: []}}", "requestAttributes.headers: an empty list"),
        ("{requestAttributes: {headers: [{name: Host, value: a}]}}", "headers[0].name: use `hosts`"),
        ("{requestAttributes: {headers: [{name: a}]}}", "requestAttributes.headers[0]: missing field `value`"),
        ("{sources: [{type: Node}]}", "rules[0].sources[0].type: unknown variant `Node`"),
        ("{sources: [{}]}", "rules[0].sources[0]: missing field `type`"),
        ("{sources: [{type: ServiceAccount}]}", "rules[0].sources[0].serviceAccount: missing"),
        ("{sources: [{type: ServiceAccount, serviceAccount: {}}]}", "serviceAccount: missing field `name`"),
        ("{sources: [{type: ServiceAccount, serviceAccount: {name: Cart}}]}", "serviceAccount.name: `Cart` is not"),
        (
            "{sources: [{type: ServiceAccount, serviceAccount: {name: a, namespace: '*'}}]}",
            "serviceAccount.namespace: `*`",
        ),
        ("{sources: [{type: SPIFFE, spiffe: cart}]}", "sources[0].spiffe: `cart` is not of the form"),
        (
            "{sources: [{type: SPIFFE, spiffe: spiffe://a/ns/b/sa/c, namespace: {name: b}}]}",
            "sources[0].namespace: does not belong",
        ),
        ("{sources: [{type: CIDR}]}", "sources[0]: type CIDR needs"),
        ("{sources: [{type: CIDR, cidrs: []}]}", "sources[0].cidrs: an empty list"),
        ("{sources: [{type: CIDR, cidrs: [10.0.0.0/33]}]}", "sources[0].cidrs[0]: `10.0.0.0/33` is not a CIDR"),
        ("{sources: [{type: CIDR, notCidrs: [here]}]}", "sources[0].notCidrs[0]: `here` is not a CIDR"),
        ("{sources: [{type: NotIdentity, notIdentities: []}]}", "sources[0].notIdentities: an empty list"),
        ("{sources: [{type: NotIdentity, notIdentities: [{type: CIDR, cidrs: ['::/0']}]}]}", "notIdentities[0]: only"),
    ] {
        let spec = format!("{{rules: [{rule}], targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: web}}}}}}]}}");
        check_broken(&spec, mistake, web());
    }
}

#[test]
fn what_a_rule_asks_of_requests_is_read_in_canonical_form() {
    let (policies, mistakes) = authorization(
        SHOP,
        "
  action: AUDIT
  rules:
  - requestAttributes:
      methods: [GET, M-SEARCH]
      paths: [{value: /%61pi/}, {type: Exact, value: /caf%c3%a9}, {type: RegularExpression, value: '/v[0-9]'}]
      hosts: [shop.example, '*.shop.example']
      headers: [{name: X-Team, value: blue}]
",
    );
    assert_eq!(mistakes, [""; 0]);
    let requests = RequestMatch {
        methods: Some(vec!["GET".parse().unwrap(), "M-SEARCH".parse().unwrap()]),
        paths: Some(vec![
            PathMatch::Prefix("/api/".into()),
            PathMatch::Exact("/caf%C3%A9".into()),
            PathMatch::Regex(Pattern::new("/v[0-9]").unwrap()),
        ]),
        hosts: Some(vec![HostMatch::Exact("shop.example".into()), HostMatch::Below(".shop.example".into())]),
        headers: vec![HeaderMatch { name: "x-team".parse().unwrap(), value: TextMatch::Exact("blue".into()) }],
    };
    assert_eq!(policies[0].rules, [Rule { requests: Some(requests), ..Rule::default() }]);
    assert_eq!(policies[0].action, Action::Audit);
}

#[test]
fn a_broken_audit_denies_only_where_it_may_have_been_something_else() {
    for (text, action, effect) in [
        ("spec: {action: AUDIT, rules: [{x: 1}]}", Action::Audit, Effect::Ignored),
        ("spec: {action: AUDIT, rules: 1}", Action::Audit, Effect::Ignored),
        ("spec: {action: AUDIT, targetRefs: [{}]}", Action::Audit, Effect::Ignored),
        ("spec: {action: DENY, action: AUDIT}", Action::Deny, Effect::Denies),
        ("spec: {action: DENY}\nspec: {action: AUDIT}", Action::Deny, Effect::Denies),
        ("spec: {action: AUDIT, actions: DENY}", Action::Deny, Effect::Denies),
        ("spec: {action: Audit}", Action::Deny, Effect::Denies),
    ] {
        let head = format!("apiVersion: {API_VERSION}\nkind: AuthorizationPolicy\nmetadata: {SHOP}\n{text}\n");
        let (found, mistakes) = object(&head);
        assert_eq!(found.effect_of_mistakes(), effect, "{text}");
        let Object::Authorization(policies) = found else { panic!("{text}") };
        assert!(policies[0].action == action && policies[0].broken.is_some() && !mistakes.is_empty(), "{text}");
    }
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
fn peer_policies_are_read_in_both_spellings() {
    let (policy, mistakes) = peer(
        SHOP,
        "{mode: STRICT, ports: {8080: {mode: Permissive}, '9090': {mode: PERMISSIVE}}, selector: {matchLabels: \
        {app: web}}, allowOptOut: true}",
    );
    assert_eq!(mistakes, [""; 0]);
    let ports = BTreeMap::from([(8080, PeerMode::Permissive), (9090, PeerMode::Permissive)]);
    let expected = PeerPolicy {
        namespace: "shop".into(),
        name: "p".into(),
        target: web(),
        default: Some(PeerMode::Strict),
        ports,
        allow_opt_out: true,
        egress: None,
        udp: None,
    };
    assert_eq!(policy, expected);
    let (policy, _) = peer("{name: p, namespace: mesh-agent-system}", "{mode: Permissive}");
    assert_eq!((policy.target, policy.default), (Target::Mesh, Some(PeerMode::Permissive)));
}

#[test]
fn a_broken_peer_policy_is_strict_for_what_it_targets() {
    let all = || Target::Namespace("shop".into());
    for (spec, mistake, target) in [
        ("{}", "spec: neither `mode`, `ports`, `egress` nor `udp`", all()),
        ("{mode: Off}", "spec.mode: unknown variant `Off`", all()),
        ("{mode: null}", "spec.mode: invalid type: null", all()),
        ("{mode: Permissive, modes: x}", "spec.modes: unknown field", all()),
        ("{mode: Permissive, ports: {http: {mode: Strict}}}", "spec.ports.http: not a port", all()),
        ("{mode: Permissive, ports: {80: Strict}}", "spec.ports.80: invalid type", all()),
        ("{mode: Permissive, selector: {matchLabels: {app: web}}, x: 1}", "spec.x: unknown field", web()),
        ("{mode: Maybe, selector: {matchLabels: {app: web}}}", "spec.mode: unknown variant", web()),
        ("{mode: Permissive, selector: {labels: {app: web}}}", "spec.selector.labels: unknown field", all()),
        ("{mode: Permissive, selector: null}", "spec.selector: invalid type: null", all()),
        ("{egress: {}}", "spec.egress: missing field `default`", all()),
        ("{egress: null}", "spec.egress: invalid type: null", all()),
        ("{egress: {default: refuse, guard: true}}", "spec.egress.guard: unknown field", all()),
        ("{egress: {default: deny}}", "spec.egress.default: unknown variant `deny`", all()),
        ("{egress: {default: allow, optOut: true}}", "spec.egress.optOut: unknown field", all()),
        ("{egres: {default: allow}, mode: Permissive}", "spec.egres: unknown field", all()),
        ("{udp: all}", "spec.udp: only a strict pod refuses UDP", all()),
        ("{mode: Permissive, udp: all}", "spec.udp: only a strict pod refuses UDP", all()),
        ("{mode: Strict, udp: some}", "spec.udp: neither `all` nor a list of ports", all()),
        ("{mode: Strict, udp: []}", "spec.udp: neither `all` nor a list of ports", all()),
        ("{mode: Strict, udp: [53, 0]}", "spec.udp[1]: not a port", all()),
        ("{mode: Strict, udp: null}", "spec.udp", all()),
    ] {
        let (policy, mistakes) = peer(SHOP, spec);
        assert!(mistakes.iter().any(|text| text.contains(mistake)), "`{mistake}` is not in {mistakes:?}");
        assert_eq!(policy, PeerPolicy::broken(&"shop".into(), &"p".into(), target), "{spec}");
    }
}

#[test]
fn peer_policies_say_what_may_leave_the_mesh_and_what_udp_comes_in() {
    let rule = |refuses, allow_opt_out| Some(EgressRule { refuses, allow_opt_out });
    for (spec, egress, udp) in [
        ("{egress: {default: refuse}}", rule(true, false), None),
        ("{egress: {default: Refuse}}", rule(true, false), None),
        ("{egress: {default: allow, allowOptOut: true}}", rule(false, true), None),
        ("{mode: Strict, udp: all}", None, Some(UdpPorts::All)),
        ("{mode: Strict, udp: [53, 5353]}", None, Some(UdpPorts::These([53, 5353].into()))),
    ] {
        let (policy, mistakes) = peer(SHOP, spec);
        assert_eq!(mistakes, [""; 0], "{spec}");
        assert_eq!((policy.egress, policy.udp), (egress, udp), "{spec}");
    }
}

#[test]
fn what_is_not_ours_is_foreign_and_what_cannot_be_used_says_why() {
    for (text, expected) in [
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}", None),
        ("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}", None),
        (
            "apiVersion: mesh-agent.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: x}",
            Some("kind: this version knows no `TrafficPolicy`"),
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
    let captured = Captured { generation: 3, wire: vec!["mesh-http/1".into(), "h2".into()] };
    let text = render_capture_state("node-a", [("uid-1", "shop/web".to_owned(), &captured)].into_iter()).expect("text");
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
