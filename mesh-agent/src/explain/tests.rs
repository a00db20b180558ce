//! Tables and properties of `explain`: what it says for each kind of connection, and that it says what the deciding
//! functions say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::addr::EndpointAddr;
use crate::model::identity::{Identity, PeerIdentity};
use crate::model::policy::{Action, IdentityMatch, Policy, RequestMatch, Rule, Source as RuleSource, Target};
use crate::model::route::PathMatch;
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::{Captured, Enrolment, Exclusions, PeerMode, PeerModes};
use crate::policy::{Flow, authorize};
use crate::snapshot::SnapshotParts;

const REFUSED_PORTS: [u16; 3] = [15001, 15006, 15008];

/// A captured pod of `shop`, with its own name as service account and `app` label.
pub(super) fn pod(name: &str, node: &str, ip: &str) -> Workload {
    Workload {
        app: name.into(),
        node: node.into(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]).into(),
        ips: smallvec::smallvec![ip.parse().unwrap()],
        captured: Some(Captured { generation: 1, wire: ["h2".into()].into() }),
        ..Workload::new(format!("uid-{name}"), "shop", name, Identity::new("cluster.local", "shop", name).unwrap())
    }
}

fn outside(name: &str, ip: &str) -> Workload {
    Workload { enrolment: Enrolment::NotAsked, captured: None, ..pod(name, "a", ip) }
}

fn strict() -> PeerModes {
    PeerModes { default: PeerMode::Strict, source: "shop/peers".into(), ..PeerModes::default() }
}

/// Node a: client, near, plain (outside the mesh); node b: far.
fn pods() -> Vec<Workload> {
    vec![
        pod("client", "a", "10.0.0.1"),
        pod("near", "a", "10.0.0.2"),
        pod("far", "b", "10.0.1.1"),
        outside("plain", "10.0.0.9"),
    ]
}

fn service(endpoints: &[(&str, &str)]) -> ServicePort {
    let endpoint = |(name, addr): &(&str, &str)| Endpoint {
        workload: Some(format!("uid-{name}").into()),
        ..Endpoint::new(EndpointAddr::new(addr.parse().unwrap()))
    };
    ServicePort {
        namespace: "shop".into(),
        name: "web".into(),
        port: 80,
        vips: vec!["10.96.0.1".parse().unwrap()],
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..ServicePort::default()
    }
}

fn snapshot(workloads: Vec<Workload>, services: Vec<ServicePort>, policies: Vec<Policy>) -> Snapshot {
    let parts = SnapshotParts {
        node: "a".into(),
        trust_domain: "cluster.local".into(),
        workloads: workloads.into_iter().map(Arc::new).collect(),
        services: services.into_iter().map(Arc::new).collect(),
        policies: policies.into_iter().map(Arc::new).collect(),
        ..SnapshotParts::default()
    };
    Snapshot::new(3, parts)
}

/// An ALLOW for `account` on `port` of the pods labelled `app`.
fn only(app: &str, account: &str, port: u16) -> Policy {
    let name = IdentityMatch::ServiceAccount { namespace: "shop".into(), name: account.into() };
    let source = RuleSource { identity: Some(name), ..RuleSource::default() };
    Policy {
        namespace: "shop".into(),
        name: format!("only-{account}").into(),
        action: Action::Allow,
        target: Target::Selector {
            namespace: "shop".into(),
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]).into(),
        },
        rules: vec![Rule { sources: Some(vec![source]), ports: Some(vec![port]), requests: None }],
        broken: None,
    }
}

fn ask(snapshot: &Snapshot, source: &str, destination: &str, port: u16) -> Result<Explanation, String> {
    let question =
        Question { source: source.to_owned(), destination: destination.to_owned(), port: Some(port), request: None };
    explain(snapshot, &question, &REFUSED_PORTS).map(|(explanation, _)| explanation)
}

/// Asks about one that has one path; gives it.
#[track_caller]
fn path(snapshot: &Snapshot, source: &str, destination: &str, port: u16) -> Path {
    let explanation = ask(snapshot, source, destination, port).unwrap();
    assert_eq!(explanation.paths.len(), 1, "{explanation:#?}");
    explanation.paths[0].clone()
}

#[track_caller]
fn check(path: &Path, lane: &str, outcome: &str, exits: &[&str]) {
    let exits: Vec<String> = exits.iter().map(ToString::to_string).collect();
    assert_eq!((&*path.lane, &*path.outcome, &path.exits), (lane, outcome, &exits), "{path:#?}");
    assert_eq!(path.allowed, outcome == "ok", "{path:#?}");
}

#[test]
fn two_pods_of_a_node_are_native_by_name_and_by_address() {
    let snapshot = snapshot(pods(), vec![], vec![]);
    for (source, destination) in
        [("shop/client", "shop/near"), ("10.0.0.1", "10.0.0.2"), ("shop/client", "::ffff:10.0.0.2")]
    {
        let path = path(&snapshot, source, destination, 7000);
        check(&path, "native", "ok", &["connect_native", "lookup_native"]);
        assert_eq!(path.enforced, ["connect() on a", "sk_lookup of shop/near on a"]);
        assert_eq!((&*path.endpoint, path.pod.as_deref()), ("10.0.0.2:7000", Some("shop/near")));
    }
}

#[test]
fn a_refusal_tells_the_rule_and_the_near_miss_wherever_it_is_enforced() {
    for (server, lane, exits, enforced) in [
        ("near", "native", "connect_denied", "connect() on a"),
        ("far", "tunnel", "connect_captured", "the agent on b"),
    ] {
        let snapshot = snapshot(pods(), vec![], vec![only(server, "client", 7000)]);
        let allowed = path(&snapshot, "shop/client", &format!("shop/{server}"), 7000);
        assert!(allowed.allowed && allowed.rule.as_deref() == Some("shop/only-client"), "{allowed:#?}");
        let refused = path(&snapshot, "shop/client", &format!("shop/{server}"), 7001);
        check(&refused, lane, "denied", &[exits]);
        assert_eq!(refused.rule.as_deref(), Some("shop/only-client"));
        assert_eq!(refused.reason, "no ALLOW rule matches; nearest is rules[0]: port 7001 is not one of [7000]");
        assert_eq!(refused.enforced.last().map(String::as_str), Some(enforced));
    }
}

#[test]
fn rules_that_ask_for_addresses_send_neighbours_through_the_agent() {
    let mut policy = only("near", "client", 7000);
    policy.rules[0].sources.as_mut().unwrap()[0].cidrs = Some(vec!["10.0.0.1/32".parse().unwrap()]);
    let snapshot = snapshot(pods(), vec![], vec![policy]);
    let path = path(&snapshot, "shop/client", "shop/near", 7000);
    check(&path, "tunnel", "ok", &["connect_captured"]);
    assert!(path.why.contains("cannot prove"), "{path:#?}");
}

#[test]
fn plaintext_is_judged_by_the_receiver() {
    let mut pods = pods();
    pods[1].peer_mode = strict().into();
    let snapshot = snapshot(pods, vec![], vec![only("far", "client", 7000)]);
    for source in ["shop/plain", "192.0.2.7"] {
        let strict = path(&snapshot, source, "shop/near", 7000);
        check(&strict, "bypass", "plaintext_refused", &["lookup_strict"]);
        assert_eq!(strict.rule.as_deref(), Some("shop/peers"));
        assert_eq!(strict.peer_mode.as_deref(), Some("strict (by shop/peers)"));
        let selected = path(&snapshot, source, "shop/far", 7000);
        check(&selected, "bypass", "denied", &["lookup_plaintext"]);
        assert!(selected.reason.contains("peer unknown is not"), "{selected:#?}");
        check(&path(&snapshot, source, "shop/client", 7000), "bypass", "ok", &["lookup_permissive"]);
        check(&path(&snapshot, source, "shop/client", 15008), "bypass", "bad_target", &["lookup_tunnel"]);
        check(&path(&snapshot, source, "shop/client", 19600), "bypass", "bad_target", &["lookup_agent_port"]);
    }
}

#[test]
fn what_the_mesh_leaves_alone_is_bypassed_and_says_why() {
    let mut pods = pods();
    pods[0].exclusions = Exclusions {
        outbound_ports: thin_vec::thin_vec![5432],
        outbound_cidrs: thin_vec::thin_vec!["10.0.1.0/24".parse().unwrap()],
        ..Exclusions::default()
    }
    .into();
    pods[1].exclusions.inbound_ports = thin_vec::thin_vec![9100];
    pods[1].peer_mode = strict().into();
    let snapshot = snapshot(pods, vec![], vec![]);
    check(&path(&snapshot, "shop/client", "192.0.2.1", 443), "bypass", "ok", &["connect_outside"]);
    check(&path(&snapshot, "shop/client", "shop/plain", 80), "bypass", "ok", &["connect_outside"]);
    check(&path(&snapshot, "shop/client", "127.0.0.1", 80), "bypass", "ok", &["connect_loopback"]);
    check(&path(&snapshot, "shop/client", "shop/client", 80), "bypass", "ok", &["connect_own_ip", "lookup_self"]);
    for (destination, port, exits, exclusion) in [
        ("shop/near", 5432, ["connect_excluded", "lookup_strict"], "exclude-outbound-ports of shop/client names 5432"),
        (
            "shop/far",
            80,
            ["connect_excluded", "lookup_permissive"],
            "exclude-outbound-cidrs of shop/client names 10.0.1.0/24",
        ),
        ("shop/near", 9100, ["connect_native", "lookup_excluded"], "exclude-inbound-ports of shop/near names 9100"),
    ] {
        let explanation = ask(&snapshot, "shop/client", destination, port).unwrap();
        assert_eq!(
            (explanation.paths[0].exits.clone(), explanation.exclusions.len()),
            (exits.map(String::from).to_vec(), 1)
        );
        assert_eq!(explanation.exclusions[0], exclusion);
    }
}

#[test]
fn a_services_endpoints_have_their_lanes_and_shares() {
    let mut services =
        vec![service(&[("near", "10.0.0.2:7000"), ("far", "10.0.1.1:7000"), ("plain", "10.0.0.9:7000")])];
    let policy = only("far", "nobody", 7000);
    let all = snapshot(pods(), services.clone(), vec![policy]);
    for destination in ["shop/web", "10.96.0.1", "web.shop.svc.cluster.local", "10.96.0.1:80"] {
        let explanation = ask(&all, "shop/client", destination, 80).unwrap();
        let lanes: Vec<(&str, bool, u32)> = explanation
            .paths
            .iter()
            .map(|path| (path.lane.as_str(), path.allowed, (path.share * 300.0).round() as u32))
            .collect();
        assert_eq!(lanes, [("native", true, 100), ("tunnel", false, 100), ("plaintext", true, 100)]);
        assert_eq!(explanation.verdict, Verdict::Mixed);
    }
    services[0].affinity = Some(Duration::from_secs(60));
    let pinned = ask(&snapshot(pods(), services, vec![]), "shop/client", "shop/web", 80).unwrap();
    assert!(pinned.paths.iter().all(|path| path.lane != "native"), "{pinned:#?}");
    assert_eq!(pinned.verdict, Verdict::Allowed);
}

#[test]
fn the_walk_of_another_nodes_pod_is_that_nodes() {
    let services = vec![service(&[("near", "10.0.0.2:7000"), ("far", "10.0.1.1:7000")])];
    let mut pods = pods();
    pods.push(pod("friend", "b", "10.0.1.2"));
    let explanation = ask(&snapshot(pods, services, vec![]), "shop/friend", "shop/web", 80).unwrap();
    let lanes: Vec<_> = explanation.paths.iter().map(|p| (p.lane.as_str(), p.pod.as_deref().unwrap())).collect();
    assert_eq!(lanes, [("native", "shop/far"), ("tunnel", "shop/near")]);
}

#[test]
fn a_service_without_endpoints_refuses_at_connect() {
    let snapshot = snapshot(pods(), vec![service(&[])], vec![]);
    let path = path(&snapshot, "shop/client", "shop/web", 80);
    check(&path, "none", "no_endpoints", &["connect_no_endpoints"]);
    assert_eq!(path.enforced, ["connect() on a"]);
}

#[test]
fn a_headless_services_client_chooses() {
    let headless = ServicePort { vips: vec![], ..service(&[("near", "10.0.0.2:7000"), ("far", "10.0.1.1:7000")]) };
    let explanation = ask(&snapshot(pods(), vec![headless], vec![]), "shop/client", "shop/web", 80).unwrap();
    assert_eq!(explanation.destination.dialled, ["10.0.0.2:80", "10.0.1.1:80"]);
    assert_eq!(explanation.paths.len(), 2);
}

#[test]
fn what_is_not_there_is_told_with_what_comes_near() {
    let snapshot = snapshot(pods(), vec![service(&[])], vec![]);
    for (source, destination, port, told) in [
        ("shop/clinet", "shop/near", Some(80), "no pod shop/clinet is known; near: shop/client"),
        ("shop/client", "shop/nera", Some(80), "near: shop/near"),
        ("shop/client", "bank/near", Some(80), "near: shop/near"),
        ("shop/client", "elsewhere/entirely", Some(80), "is known to this agent"),
        ("shop/client", "shop/web", Some(81), "service shop/web has no port 81; it has 80"),
        ("shop/client", "10.96.0.1:8080", None, "of service shop/web, which has no port 8080; it has 80"),
        ("shop/client", "shop/near", None, "needs a port"),
        ("shop/client", "shop/near:81", Some(80), "contradict"),
        ("shop/client", "shop/near", Some(0), "0 is no port"),
        ("shop/client", "shop/near:http", None, "`http` of `shop/near:http` is no port"),
        ("shop/client", "example.com", Some(80), "neither an address"),
        ("10.0.0.1", "fd00::1", Some(80), "different families"),
    ] {
        let question = Question { source: source.to_owned(), destination: destination.to_owned(), port, request: None };
        let error = explain(&snapshot, &question, &[]).unwrap_err();
        assert!(error.contains(told), "{source} {destination} {port:?}: {error}");
    }
}

#[test]
fn what_policies_say_of_a_request_is_told_where_they_ask_for_requests() {
    let admin = RequestMatch { paths: Some(vec![PathMatch::Prefix("/admin".into())]), ..RequestMatch::default() };
    let asks = |app: &str, name: &str, action, requests: Option<RequestMatch>| {
        let rules = vec![Rule { requests, ..Rule::default() }];
        Policy { name: name.into(), action, rules, ..only(app, "x", 0) }
    };
    let policies = vec![
        asks("far", "no-admin", Action::Deny, Some(admin.clone())),
        asks("far", "watch", Action::Audit, Some(admin)),
        asks("near", "all", Action::Allow, None),
    ];
    let snapshot = snapshot(pods(), vec![], policies);
    for (destination, asked, expected, verdict) in [
        ("shop/far", "/admin/x", Some("denied by shop/no-admin: rules[0]"), "ok"),
        ("shop/far", "/shop", Some("permitted"), "ok"),
        ("shop/near", "/admin", None, "ok"),
    ] {
        let request = RequestQuestion { method: "GET".into(), path: asked.into(), headers: vec![] };
        let (source, destination) = ("shop/client".to_owned(), destination.to_owned());
        let question = Question { source, destination, port: Some(80), request: Some(request) };
        let (explanation, _) = explain(&snapshot, &question, &[]).unwrap();
        let path = &explanation.paths[0];
        assert_eq!(&*path.outcome, verdict, "a connection is let in for its requests to be read: {path:?}");
        let told = path.request.as_deref();
        assert_eq!(told.is_some(), expected.is_some(), "{told:?}");
        assert!(expected.is_none_or(|expected| told.unwrap().starts_with(expected)), "{told:?}");
        let audited = told.is_some_and(|told| told.contains("audited by shop/watch"));
        assert_eq!(audited, expected.is_some() && asked.starts_with("/admin"), "{told:?}");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn identity_match() -> impl Strategy<Value = IdentityMatch> {
        let name = || prop::sample::select(vec!["client", "near", "far", "*"]);
        prop_oneof![
            name().prop_map(|name| IdentityMatch::ServiceAccount { namespace: "shop".into(), name: name.into() }),
            Just(IdentityMatch::Namespace("shop".into())),
            Just(IdentityMatch::Not(vec![IdentityMatch::Namespace("bank".into())])),
        ]
    }

    fn policies() -> impl Strategy<Value = Vec<Policy>> {
        let cidrs = prop::option::weighted(0.2, Just(vec!["10.0.0.0/31".parse().unwrap()]));
        let source = (prop::option::of(identity_match()), cidrs).prop_map(|(identity, cidrs)| RuleSource {
            identity,
            cidrs,
            ..RuleSource::default()
        });
        let ports = prop::collection::vec(prop::sample::select(vec![80_u16, 81]), 0..2);
        let rule = (prop::option::of(prop::collection::vec(source, 0..3)), prop::option::of(ports))
            .prop_map(|(sources, ports)| Rule { sources, ports, requests: None });
        let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
        let target = prop::sample::select(vec![
            Target::Mesh,
            Target::Namespace("shop".into()),
            Target::Selector {
                namespace: "shop".into(),
                labels: BTreeMap::from([("app".to_owned(), "near".to_owned())]).into(),
            },
        ]);
        let broken = prop::bool::weighted(0.05);
        let policy =
            (target, action, prop::collection::vec(rule, 0..3), broken).prop_map(|(target, action, rules, broken)| {
                Policy {
                    namespace: "shop".into(),
                    name: "p".into(),
                    action,
                    target,
                    rules,
                    broken: broken.then(|| "a mistake".into()),
                }
            });
        prop::collection::vec(policy, 0..4)
    }

    /// The pods of [`pods`], each in some state.
    fn workloads() -> impl Strategy<Value = Vec<Workload>> {
        let ports = || prop::sample::subsequence(vec![80_u16, 81], 0..=2);
        let modes = (any::<bool>(), ports(), ports()).prop_map(|(strict, ports, lax)| {
            let mode = |strict| if strict { PeerMode::Strict } else { PeerMode::Permissive };
            let ports = ports.iter().map(|p| (*p, mode(!lax.contains(p)))).collect();
            PeerModes { default: mode(strict), ports, ..PeerModes::default() }
        });
        let exclusions = (prop::bool::weighted(0.3), prop::bool::weighted(0.3), prop::bool::weighted(0.1)).prop_map(
            |(inbound, outbound, cidr)| Exclusions {
                inbound_ports: if inbound { thin_vec::thin_vec![81] } else { thin_vec::thin_vec![] },
                outbound_ports: if outbound { thin_vec::thin_vec![81] } else { thin_vec::thin_vec![] },
                outbound_cidrs: if cidr {
                    thin_vec::thin_vec!["10.0.1.0/24".parse().unwrap()]
                } else {
                    thin_vec::thin_vec![]
                },
            },
        );
        let one = (modes, exclusions, prop::bool::weighted(0.8));
        prop::collection::vec(one, 4).prop_map(|states| {
            let mut pods = pods();
            for (pod, (modes, exclusions, captured)) in pods.iter_mut().zip(states) {
                (pod.peer_mode, pod.exclusions) = (modes.into(), exclusions.into());
                pod.captured = pod.captured.take().filter(|_| captured);
            }
            pods
        })
    }

    /// What becomes of it, in three sentences: the mesh's sides of a connection prove themselves, whoever is left out
    /// of it on either side does not, and nothing is asked where nothing of the mesh stands.
    fn expected(snapshot: &Snapshot, source: &Workload, destination: &Workload, port: u16) -> bool {
        let ip: IpAddr = destination.ips[0];
        let meshed = source.captured.is_some()
            && !source.exclusions.outbound_ports.contains(&port)
            && !source.exclusions.outbound_cidrs.iter().any(|cidr| cidr.contains(&ip));
        // Nothing of the mesh stands before it, or the pod talks to its own address.
        if destination.captured.is_none() || source.uid == destination.uid {
            return true;
        }
        // A tunnel is the agent's to judge, and the agent knows no exclusions.
        let without_agent = !meshed || source.node == destination.node;
        if without_agent && destination.exclusions.inbound_ports.contains(&port) {
            return true;
        }
        let peer = if meshed { PeerIdentity::Verified(source.identity.clone()) } else { PeerIdentity::Unknown };
        let flow = Flow { destination: destination.uid.clone(), port, peer, source_ip: source.ips[0] };
        authorize(snapshot, flow).is_ok()
    }

    proptest! {
        #[test]
        fn the_verdict_is_that_of_the_deciding_functions(
            workloads in workloads(), policies in policies(), from in 0..4_usize, to in 0..4_usize, port in 80..83_u16,
        ) {
            let snapshot = snapshot(workloads.clone(), vec![], policies);
            let (source, destination) = (&workloads[from], &workloads[to]);
            let (from, to) = (source.display_name(), destination.display_name());
            let explanation = ask(&snapshot, &from, &to, port).unwrap();
            let wanted = expected(&snapshot, source, destination, port);
            prop_assert_eq!(explanation.verdict == Verdict::Allowed, wanted, "{:#?}", explanation);
            let sum: f64 = explanation.paths.iter().map(|path| path.share).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            for path in &explanation.paths {
                prop_assert_eq!(path.allowed, path.outcome == "ok");
                prop_assert!(!path.reason.is_empty() || path.exits.ends_with(&["connect_loopback".to_owned()]), "{:#?}", path);
            }
        }

        #[test]
        fn a_service_is_its_endpoints(
            workloads in workloads(), policies in policies(), from in 0..4_usize,
            ports in prop::collection::vec(80..83_u16, 4), members in prop::sample::subsequence(vec![0_usize, 1, 2, 3], 0..=4),
        ) {
            let named: Vec<(String, String)> = members
                .iter()
                .map(|at| (workloads[*at].name.to_string(), format!("{}:{}", workloads[*at].ips[0], ports[*at])))
                .collect();
            let endpoints: Vec<(&str, &str)> = named.iter().map(|(name, addr)| (&**name, &**addr)).collect();
            let source = Workload { exclusions: Exclusions::default().into(), ..workloads[from].clone() };
            let mut workloads = workloads;
            workloads[from] = source.clone();
            let snapshot = snapshot(workloads.clone(), vec![service(&endpoints)], policies);
            let explanation = ask(&snapshot, &source.display_name(), "shop/web", 80).unwrap();
            prop_assert_eq!(members.is_empty(), explanation.paths.iter().any(|path| path.outcome == "no_endpoints"));
            for at in members {
                let to = SocketAddr::new(workloads[at].ips[0], ports[at]).to_string();
                let paths: Vec<_> = explanation.paths.iter().filter(|path| path.endpoint == to).collect();
                prop_assert!(!paths.is_empty(), "{} is not among {:#?}", to, explanation.paths);
                // The pod itself, as an endpoint of the service, is a peer like any other.
                if at != from {
                    let wanted = expected(&snapshot, &source, &workloads[at], ports[at]);
                    prop_assert!(paths.iter().all(|path| path.allowed == wanted), "{:#?}", paths);
                }
            }
        }
    }
}
