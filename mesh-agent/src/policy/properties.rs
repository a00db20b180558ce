//! Properties of `authorize`, over generated policies and flows.

use proptest::prelude::*;

use super::tests::{TRUST_DOMAIN, identity, snapshot, web};
use super::*;
use crate::model::identity::Identity;
use crate::model::policy::{IdentityMatch, Rule, Source, Target};
use crate::model::workload::PeerModes;

/// Few names each, so that generated rules and flows meet often.
fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["shop", "bank", "web"])
}

fn identity_match() -> impl Strategy<Value = IdentityMatch> {
    let leaf = prop_oneof![
        (name(), prop::sample::select(vec!["shop", "web", "*"])).prop_map(|(namespace, name)| {
            IdentityMatch::ServiceAccount { namespace: namespace.into(), name: name.into() }
        }),
        name().prop_map(|namespace| IdentityMatch::Namespace(namespace.into())),
        (name(), name()).prop_map(|(namespace, name)| IdentityMatch::Spiffe(
            identity(TRUST_DOMAIN, namespace, name).to_string().into()
        )),
    ];
    prop_oneof![3 => leaf.clone().boxed(), 1 => prop::collection::vec(leaf, 0..3).prop_map(IdentityMatch::Not).boxed()]
}

fn cidr() -> impl Strategy<Value = ipnet::IpNet> {
    prop::sample::select(vec!["10.0.0.0/8", "10.0.0.0/30", "0.0.0.0/0", "fd00::/8"])
        .prop_map(|text| text.parse().expect("cidr"))
}

fn source() -> impl Strategy<Value = Source> {
    let cidrs = || prop::collection::vec(cidr(), 0..2);
    (prop::option::of(identity_match()), prop::option::of(cidrs()), cidrs())
        .prop_map(|(identity, cidrs, not_cidrs)| Source { identity, cidrs, not_cidrs })
}

fn rule() -> impl Strategy<Value = Rule> {
    let ports = prop::collection::vec(prop::sample::select(vec![80_u16, 81]), 0..2);
    (prop::option::of(prop::collection::vec(source(), 0..3)), prop::option::of(ports))
        .prop_map(|(sources, ports)| Rule { sources, ports, requests: None })
}

fn policy() -> impl Strategy<Value = Policy> {
    let target = prop::sample::select(vec![
        Target::Mesh,
        Target::Namespace("shop".into()),
        Target::Namespace("bank".into()),
        Target::Selector {
            namespace: "shop".into(),
            labels: std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]).into(),
        },
    ]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let broken = prop_oneof![9 => Just(None), 1 => Just(Some(Arc::from("mistake")))];
    (target, action, prop::collection::vec(rule(), 0..3), broken).prop_map(|(target, action, rules, broken)| Policy {
        namespace: "shop".into(),
        name: "p".into(),
        action,
        target,
        rules,
        broken,
    })
}

fn flow() -> impl Strategy<Value = Flow> {
    let verified = (prop::sample::select(vec![TRUST_DOMAIN, "elsewhere"]), name(), name())
        .prop_map(|(trust_domain, namespace, name)| PeerIdentity::Verified(identity(trust_domain, namespace, name)));
    let peer = prop_oneof![1 => Just(PeerIdentity::Unknown), 3 => verified];
    let ip = prop::sample::select(vec!["10.0.0.1", "10.9.9.9", "192.0.2.1", "fd00::1", "::ffff:10.0.0.1"]);
    (peer, ip, prop::sample::select(vec![80_u16, 81, 82])).prop_map(|(peer, ip, port)| Flow {
        destination: "web-uid".into(),
        port,
        peer,
        source_ip: ip.parse().expect("address"),
    })
}

fn permitted(policies: &[Policy], flow: &Flow) -> bool {
    authorize(&snapshot(web(PeerModes::default()), policies.to_vec()), flow.clone()).is_ok()
}

/// The semantics again, written as the documentation says them and sharing no code with the real ones.
fn naive(policies: &[Policy], flow: &Flow) -> bool {
    fn names(wanted: &IdentityMatch, peer: &Identity) -> bool {
        let uri = peer.to_string();
        match wanted {
            IdentityMatch::ServiceAccount { namespace, name } if &**name == "*" => {
                uri.starts_with(&format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/"))
            }
            IdentityMatch::ServiceAccount { namespace, name } => {
                uri == format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}")
            }
            IdentityMatch::Namespace(namespace) => {
                uri.starts_with(&format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/"))
            }
            IdentityMatch::Spiffe(wanted) => uri == **wanted,
            IdentityMatch::Not(excepted) => excepted.iter().all(|one| !names(one, peer)),
        }
    }
    let source_matches = |source: &Source, action: Action| {
        let ip = flow.source_ip.to_canonical();
        let identity = match (&source.identity, &flow.peer) {
            (None, _) => true,
            (Some(_), PeerIdentity::Unknown) => action == Action::Deny,
            (Some(wanted), PeerIdentity::Verified(peer)) => names(wanted, peer),
        };
        identity
            && source.cidrs.as_ref().is_none_or(|cidrs| cidrs.iter().any(|cidr| cidr.contains(&ip)))
            && source.not_cidrs.iter().all(|cidr| !cidr.contains(&ip))
    };
    let rule_matches = |rule: &Rule, action: Action| {
        rule.ports.as_ref().is_none_or(|ports| ports.contains(&flow.port))
            && rule.sources.as_ref().is_none_or(|sources| sources.iter().any(|one| source_matches(one, action)))
    };
    let mine: Vec<&Policy> = policies.iter().filter(|p| p.target != Target::Namespace("bank".into())).collect();
    let matches = |action| mine.iter().any(|p| p.action == action && p.rules.iter().any(|r| rule_matches(r, action)));
    let none_allows = mine.iter().all(|p| p.action != Action::Allow);
    mine.iter().all(|p| p.broken.is_none()) && !matches(Action::Deny) && (none_allows || matches(Action::Allow))
}

proptest! {
    #[test]
    fn a_naive_evaluator_agrees(policies in prop::collection::vec(policy(), 0..5), flow in flow()) {
        prop_assert_eq!(permitted(&policies, &flow), naive(&policies, &flow));
    }

    #[test]
    fn adding_a_deny_never_widens_access(
        policies in prop::collection::vec(policy(), 0..4), deny in policy(), at in 0_usize..4, flow in flow(),
    ) {
        let mut more = policies.clone();
        more.insert(at.min(policies.len()), Policy { action: Action::Deny, ..deny });
        prop_assert!(!permitted(&more, &flow) || permitted(&policies, &flow));
    }

    #[test]
    fn removing_an_allow_rule_never_widens_access(
        policies in prop::collection::vec(policy(), 1..4), at in any::<prop::sample::Index>(), flow in flow(),
    ) {
        let mut fewer = policies.clone();
        let policy = at.get(&policies);
        if policy.action == Action::Allow && !policy.rules.is_empty() {
            fewer[at.index(policies.len())].rules.pop();
        }
        prop_assert!(!permitted(&fewer, &flow) || permitted(&policies, &flow));
    }

    #[test]
    fn breaking_a_policy_never_widens_access(
        policies in prop::collection::vec(policy(), 1..4), at in any::<prop::sample::Index>(), flow in flow(),
    ) {
        let mut broken = policies.clone();
        broken[at.index(policies.len())].broken = Some("mistake".into());
        prop_assert!(!permitted(&broken, &flow) || permitted(&policies, &flow));
    }

    #[test]
    fn losing_its_proof_never_lets_a_peer_in_where_identities_are_named(
        policies in prop::collection::vec(policy(), 0..4), flow in flow(),
    ) {
        let unproven = Flow { peer: PeerIdentity::Unknown, ..flow.clone() };
        let stranger = Flow { peer: PeerIdentity::Verified(identity("elsewhere", "nobody", "nobody")), ..flow };
        // Whoever is unknown can do at most what a proven stranger can.
        prop_assert!(!permitted(&policies, &unproven) || permitted(&policies, &stranger));
    }

    #[test]
    fn the_order_of_policies_does_not_decide(policies in prop::collection::vec(policy(), 0..5), flow in flow()) {
        let reversed: Vec<Policy> = policies.iter().rev().cloned().collect();
        prop_assert_eq!(permitted(&policies, &flow), permitted(&reversed, &flow));
    }
}
