//! Tables for `authorize`: one `check`, one row per sentence of the semantics.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::model::identity::Identity;
use crate::model::policy::{IdentityMatch, Rule, Source, Target};
use crate::model::workload::PeerModes;
use crate::snapshot::SnapshotParts;

pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// A pod of `shop` with label `app: web`, uid `web-uid`.
pub(super) fn web(peer_mode: PeerModes) -> Workload {
    Workload {
        app: "web".into(),
        node: "node-a".into(),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]).into(),
        ips: smallvec::smallvec!["10.0.0.1".parse().expect("address")],
        peer_mode: peer_mode.into(),
        ..Workload::new("web-uid", "shop", "web-1", identity(TRUST_DOMAIN, "shop", "web"))
    }
}

pub(super) fn identity(trust_domain: &str, namespace: &str, service_account: &str) -> Identity {
    Identity::new(trust_domain, namespace, service_account).expect("valid identity")
}

pub(super) fn verified(namespace: &str, service_account: &str) -> PeerIdentity {
    PeerIdentity::Verified(identity(TRUST_DOMAIN, namespace, service_account))
}

pub(super) fn snapshot(workload: Workload, policies: Vec<Policy>) -> Snapshot {
    let parts = SnapshotParts {
        trust_domain: TRUST_DOMAIN.into(),
        workloads: vec![Arc::new(workload)].into(),
        policies: policies.into_iter().map(Arc::new).collect(),
        ..SnapshotParts::default()
    };
    Snapshot::new(7, parts)
}

pub(super) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        namespace: "shop".into(),
        name: name.into(),
        action,
        target: Target::Namespace("shop".into()),
        rules,
        broken: None,
    }
}

pub(super) fn flow(peer: PeerIdentity, port: u16) -> Flow {
    Flow { destination: "web-uid".into(), port, peer, source_ip: "10.0.0.9".parse().expect("address") }
}

pub(super) fn from(sources: Vec<Source>) -> Rule {
    Rule { sources: Some(sources), ..Rule::default() }
}

fn by(identity: IdentityMatch) -> Source {
    Source { identity: Some(identity), ..Source::default() }
}

fn account(namespace: &str, name: &str) -> IdentityMatch {
    IdentityMatch::ServiceAccount { namespace: namespace.into(), name: name.into() }
}

fn cidrs(cidrs: &[&str], not: &[&str]) -> Source {
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("cidr")).collect::<Vec<_>>();
    Source { cidrs: (!cidrs.is_empty()).then(|| parse(cidrs)), not_cidrs: parse(not), ..Source::default() }
}

/// `expected`: the permitting rule (empty for none), or the denying rule with a part of its reason.
#[track_caller]
fn check(policies: Vec<Policy>, flow: Flow, expected: Result<&str, (&str, &str)>) {
    verdict(&snapshot(web(PeerModes::default()), policies), flow, expected);
}

#[track_caller]
fn verdict(snapshot: &Snapshot, flow: Flow, expected: Result<&str, (&str, &str)>) {
    match (authorize(snapshot, flow), expected) {
        (Ok(permit), Ok(rule)) => assert_eq!(permit.rule().map_or("", |rule| rule), rule),
        (Err(denial), Err((rule, part))) => {
            assert_eq!(&*denial.rule, rule, "{denial:?}");
            assert!(denial.reason.contains(part), "`{}` does not contain `{part}`", denial.reason);
        }
        (got, expected) => panic!("expected {expected:?}, got {got:?}"),
    }
}

#[test]
fn without_a_policy_everybody_is_permitted() {
    check(vec![], flow(PeerIdentity::Unknown, 80), Ok(""));
    let elsewhere = Policy { target: Target::Namespace("bank".into()), ..policy("p", Action::Allow, vec![]) };
    check(vec![elsewhere], flow(PeerIdentity::Unknown, 80), Ok(""));
    let other = BTreeMap::from([("app".to_owned(), "db".to_owned())]).into();
    let target = Target::Selector { namespace: "shop".into(), labels: other };
    check(
        vec![Policy { target, ..policy("p", Action::Deny, vec![Rule::default()]) }],
        flow(verified("a", "b"), 80),
        Ok(""),
    );
}

#[test]
fn targets_of_every_kind_select() {
    let app = BTreeMap::from([("app".to_owned(), "web".to_owned())]).into();
    for target in
        [Target::Mesh, Target::Namespace("shop".into()), Target::Selector { namespace: "shop".into(), labels: app }]
    {
        let deny = Policy { target, ..policy("d", Action::Deny, vec![Rule::default()]) };
        check(vec![deny], flow(verified("a", "b"), 80), Err(("shop/d", "rules[0]")));
    }
}

#[test]
fn an_allow_policy_admits_what_it_names_and_nobody_else() {
    let allow = || vec![policy("allow", Action::Allow, vec![from(vec![by(account("shop", "cart"))])])];
    check(allow(), flow(verified("shop", "cart"), 80), Ok("shop/allow"));
    check(
        allow(),
        flow(verified("shop", "mail"), 80),
        Err(("shop/allow", "rules[0]: peer spiffe://cluster.local/ns/shop/sa/mail is not service account shop/cart")),
    );
    check(allow(), flow(PeerIdentity::Unknown, 80), Err(("shop/allow", "peer unknown is not")));
    check(
        vec![policy("none", Action::Allow, vec![])],
        flow(verified("a", "b"), 80),
        Err(("shop/none", "without rules")),
    );
}

#[test]
fn sources_absent_mean_anyone_and_an_empty_list_nobody() {
    let anyone = || vec![policy("p", Action::Allow, vec![Rule::default()])];
    check(anyone(), flow(PeerIdentity::Unknown, 80), Ok("shop/p"));
    let nobody = |action| vec![policy("p", action, vec![from(vec![])])];
    check(nobody(Action::Allow), flow(verified("a", "b"), 80), Err(("shop/p", "matches nobody")));
    check(nobody(Action::Deny), flow(PeerIdentity::Unknown, 80), Ok(""));
}

#[test]
fn identity_matches_mean_what_they_say() {
    let foreign = || PeerIdentity::Verified(identity("elsewhere", "shop", "cart"));
    let spiffe = |uri: &str| IdentityMatch::Spiffe(uri.into());
    let rows = [
        (account("shop", "cart"), verified("shop", "cart"), true),
        (account("shop", "*"), verified("shop", "cart"), true),
        (account("bank", "*"), verified("shop", "cart"), false),
        (account("shop", "cart"), foreign(), false),
        (account("shop", "*"), foreign(), false),
        (IdentityMatch::Namespace("shop".into()), verified("shop", "cart"), true),
        (IdentityMatch::Namespace("shop".into()), foreign(), false),
        (spiffe("spiffe://cluster.local/ns/shop/sa/cart"), verified("shop", "cart"), true),
        (spiffe("spiffe://elsewhere/ns/shop/sa/cart"), foreign(), true),
        (spiffe("spiffe://cluster.local/ns/shop/sa/cart"), foreign(), false),
        (IdentityMatch::Not(vec![account("shop", "cart")]), verified("shop", "cart"), false),
        (IdentityMatch::Not(vec![account("shop", "cart")]), verified("shop", "mail"), true),
        (IdentityMatch::Not(vec![account("shop", "cart"), account("shop", "mail")]), verified("shop", "mail"), false),
        (IdentityMatch::Not(vec![account("shop", "cart")]), foreign(), true),
    ];
    for (wanted, peer, matches) in rows {
        let rules = || vec![from(vec![by(wanted.clone())])];
        let allowed = authorize(
            &snapshot(web(PeerModes::default()), vec![policy("p", Action::Allow, rules())]),
            flow(peer.clone(), 80),
        );
        assert_eq!(allowed.is_ok(), matches, "ALLOW {wanted:?} for {peer}");
        let denied = authorize(
            &snapshot(web(PeerModes::default()), vec![policy("p", Action::Deny, rules())]),
            flow(peer.clone(), 80),
        );
        assert_eq!(denied.is_err(), matches, "DENY {wanted:?} for {peer}");
    }
}

#[test]
fn an_unknown_peer_matches_no_allow_and_every_deny_that_names_an_identity() {
    for wanted in [
        account("shop", "cart"),
        IdentityMatch::Namespace("shop".into()),
        IdentityMatch::Spiffe("spiffe://cluster.local/ns/shop/sa/cart".into()),
        IdentityMatch::Not(vec![account("shop", "cart")]),
    ] {
        let rules = || vec![from(vec![by(wanted.clone())])];
        check(vec![policy("p", Action::Allow, rules())], flow(PeerIdentity::Unknown, 80), Err(("shop/p", "unknown")));
        check(vec![policy("p", Action::Deny, rules())], flow(PeerIdentity::Unknown, 80), Err(("shop/p", "rules[0]")));
    }
}

#[test]
fn cidr_and_port_rules_hold_for_everyone() {
    let near = || vec![policy("p", Action::Allow, vec![from(vec![cidrs(&["10.0.0.0/24"], &["10.0.0.8/29"])])])];
    let at = |ip: &str| Flow { source_ip: ip.parse().expect("address"), ..flow(PeerIdentity::Unknown, 80) };
    check(near(), at("10.0.0.1"), Ok("shop/p"));
    check(near(), at("::ffff:10.0.0.1"), Ok("shop/p"));
    check(near(), at("10.0.1.1"), Err(("shop/p", "10.0.1.1 is in none of 10.0.0.0/24")));
    check(near(), at("10.0.0.9"), Err(("shop/p", "in the excepted 10.0.0.8/29")));
    check(near(), at("fd00::1"), Err(("shop/p", "none of")));
    let ports = |action| vec![policy("p", action, vec![Rule { ports: Some(vec![80, 81]), ..Rule::default() }])];
    check(ports(Action::Allow), flow(PeerIdentity::Unknown, 81), Ok("shop/p"));
    check(ports(Action::Allow), flow(verified("a", "b"), 82), Err(("shop/p", "port 82 is not one of [80, 81]")));
    check(ports(Action::Deny), flow(verified("a", "b"), 81), Err(("shop/p", "on port 81")));
    check(ports(Action::Deny), flow(verified("a", "b"), 82), Ok(""));
}

#[test]
fn fields_of_a_source_are_anded_and_sources_are_ored() {
    let both = Source { identity: Some(account("shop", "cart")), ..cidrs(&["10.1.0.0/16"], &[]) };
    let rules = |sources: Vec<Source>| vec![policy("p", Action::Allow, vec![from(sources)])];
    check(rules(vec![both.clone()]), flow(verified("shop", "cart"), 80), Err(("shop/p", "10.0.0.9 is in none of")));
    check(rules(vec![both.clone(), by(account("shop", "cart"))]), flow(verified("shop", "cart"), 80), Ok("shop/p"));
    // An unproven peer matches the identity of a DENY, but its address must still match.
    check(vec![policy("p", Action::Deny, vec![from(vec![both])])], flow(PeerIdentity::Unknown, 80), Ok(""));
}

#[test]
fn a_deny_wins_over_every_allow_in_any_order() {
    let allow = policy("allow", Action::Allow, vec![Rule::default()]);
    let deny =
        policy("deny", Action::Deny, vec![from(vec![by(account("x", "y"))]), from(vec![by(account("shop", "*"))])]);
    check(vec![allow.clone(), deny.clone()], flow(verified("shop", "cart"), 80), Err(("shop/deny", "rules[1]")));
    check(vec![deny, allow], flow(verified("shop", "cart"), 80), Err(("shop/deny", "rules[1]")));
}

#[test]
fn a_broken_policy_denies_all_it_targets_whatever_its_action() {
    for action in [Action::Allow, Action::Deny] {
        let broken =
            Policy { broken: Some("spec.rulez: unknown field".into()), ..policy("b", action, vec![Rule::default()]) };
        let allow = policy("allow", Action::Allow, vec![Rule::default()]);
        check(vec![allow, broken], flow(verified("a", "b"), 80), Err(("shop/b", "spec.rulez: unknown field")));
    }
}

#[test]
fn the_near_miss_is_the_rule_with_the_fewest_fields_against_it() {
    let far = Rule { ports: Some(vec![1]), ..from(vec![by(account("x", "y"))]) };
    let near = Rule { ports: Some(vec![8080]), ..from(vec![by(account("x", "y")), by(account("shop", "*"))]) };
    let policies =
        vec![policy("far", Action::Allow, vec![far.clone()]), policy("near", Action::Allow, vec![far, near])];
    check(
        policies,
        flow(verified("shop", "cart"), 80),
        Err(("shop/near", "nearest is rules[1]: port 80 is not one of [8080]")),
    );
}

#[test]
fn a_destination_nobody_knows_is_denied() {
    let gone = Flow { destination: "gone".into(), ..flow(verified("a", "b"), 80) };
    check(vec![], gone, Err((NO_SUCH_WORKLOAD, "uid gone")));
}

#[test]
fn strict_ports_refuse_the_unproven_and_name_what_decided() {
    let strict = |source: &str| PeerModes { default: PeerMode::Strict, source: source.into(), ..PeerModes::default() };
    for (modes, port, expected) in [
        (strict("shop/strict"), 80, Some("shop/strict")),
        (strict(""), 80, Some(PEER_MODE)),
        (PeerModes { ports: BTreeMap::from([(80, PeerMode::Permissive)]), ..strict("shop/strict") }, 80, None),
        (
            PeerModes {
                ports: BTreeMap::from([(80, PeerMode::Strict)]),
                port_sources: BTreeMap::from([(80, "shop/port".into())]),
                ..PeerModes::default()
            },
            80,
            Some("shop/port"),
        ),
    ] {
        let snapshot = snapshot(web(modes), vec![]);
        let refused = authorize(&snapshot, flow(PeerIdentity::Unknown, port)).err();
        assert_eq!(refused.as_ref().map(|denial| &*denial.rule), expected);
        assert!(refused.is_none_or(|denial| denial.outcome == Outcome::PlaintextRefused));
        assert!(authorize(&snapshot, flow(verified("a", "b"), port)).is_ok(), "a proven peer passes");
    }
}

#[test]
fn a_permit_is_rechecked_against_what_is_now_in_force() {
    let before = snapshot(web(PeerModes::default()), vec![]);
    let permit = authorize(&before, flow(PeerIdentity::Unknown, 80)).expect("permitted");
    assert_eq!(permit.generation(), 7);

    let same = permit.recheck(&before).expect("still permitted");
    assert_eq!(same.flow(), permit.flow());

    let strict = PeerModes { default: PeerMode::Strict, ..PeerModes::default() };
    let refused = permit.recheck(&snapshot(web(strict), vec![])).expect_err("strict now");
    assert_eq!(refused.outcome, Outcome::PlaintextRefused);

    let deny = policy("d", Action::Deny, vec![Rule::default()]);
    let refused = permit.recheck(&snapshot(web(PeerModes::default()), vec![deny])).expect_err("denied now");
    assert_eq!((refused.outcome, &*refused.rule), (Outcome::Denied, "shop/d"));

    let refused = permit.recheck(&Snapshot::default()).expect_err("the workload is gone");
    assert_eq!(&*refused.rule, NO_SUCH_WORKLOAD);
}

#[test]
fn an_excluded_port_is_judged_by_no_rule_and_the_others_are() {
    let strict = PeerModes { default: PeerMode::Strict, ..PeerModes::default() };
    let mut workload = web(strict);
    workload.exclusions.inbound_ports = thin_vec::thin_vec![9100];
    let snapshot = snapshot(workload, vec![policy("none", Action::Allow, vec![])]);
    let flow = |port| Flow {
        destination: "web-uid".into(),
        port,
        peer: PeerIdentity::Unknown,
        source_ip: "10.0.0.9".parse().unwrap(),
    };
    assert_eq!(authorize(&snapshot, flow(9100)).unwrap().rule().map(|rule| &**rule), Some(EXCLUDED));
    assert_eq!(authorize(&snapshot, flow(9101)).unwrap_err().outcome, Outcome::PlaintextRefused);
}
