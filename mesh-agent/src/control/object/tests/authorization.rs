//! Authorization policies.

use super::*;
use crate::model::policy::{Action, HostMatch, IdentityMatch, RequestMatch, Rule, Source};
use crate::model::problem::Effect;
use crate::model::route::{HeaderMatch, PathMatch, Pattern, TextMatch};
use crate::model::selector::{LabelSelector, Operator, Requirement};

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
