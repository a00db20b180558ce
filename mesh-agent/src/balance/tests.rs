//! One table per kube-proxy field, the distribution, and what is remembered for how long.

use std::collections::HashMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

pub(super) fn addr(text: &str) -> EndpointAddr {
    EndpointAddr::new(text.parse().expect("address"))
}

pub(super) fn endpoint(text: &str) -> Endpoint {
    Endpoint::new(addr(text))
}

pub(super) fn service(endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort { name: "web".into(), namespace: "shop".into(), port: 80, endpoints, ..ServicePort::default() }
}

pub(super) fn client() -> Client {
    Client { ip: "10.1.0.1".parse().expect("address"), node: "node-a".into(), zone: "zone-a".into() }
}

fn terminating(text: &str, serving: bool) -> Endpoint {
    Endpoint { ready: false, serving, terminating: true, ..endpoint(text) }
}

fn on(node: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint { node: node.into(), ..endpoint }
}

fn hinted(zones: &[&str], nodes: &[&str], text: &str) -> Endpoint {
    let all = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
    Endpoint { zones: all(zones), nodes: all(nodes), ..endpoint(text) }
}

/// `expected`: the address of each eligible endpoint, in the order of the service.
#[track_caller]
fn check(service: &ServicePort, client: &Client, expected: &[&str]) {
    let got: Vec<String> = eligible(service, client).iter().map(|endpoint| endpoint.addr.ip().to_string()).collect();
    assert_eq!(got, expected);
}

#[test]
fn only_ready_endpoints_are_used() {
    let not_ready = Endpoint { ready: false, ..endpoint("10.0.0.2:80") };
    check(&service(vec![endpoint("10.0.0.1:80"), not_ready.clone()]), &client(), &["10.0.0.1"]);
    check(&service(vec![not_ready]), &client(), &[]);
    check(&service(vec![]), &client(), &[]);
}

#[test]
fn serving_terminating_endpoints_are_used_only_when_none_is_ready() {
    let leaving = || vec![terminating("10.0.0.1:80", true), terminating("10.0.0.2:80", false)];
    check(&service(leaving()), &client(), &["10.0.0.1"]);
    let mut one_ready = leaving();
    one_ready.push(endpoint("10.0.0.3:80"));
    check(&service(one_ready), &client(), &["10.0.0.3"]);
}

#[test]
fn internal_traffic_policy_local_stays_on_the_node() {
    let local = |endpoints| ServicePort { local_only: true, ..service(endpoints) };
    let here = || on("node-a", endpoint("10.0.0.1:80"));
    let there = || on("node-b", endpoint("10.0.0.2:80"));
    check(&local(vec![here(), there()]), &client(), &["10.0.0.1"]);
    check(&local(vec![there()]), &client(), &[]);
    check(&local(vec![there(), on("node-a", terminating("10.0.0.3:80", true))]), &client(), &["10.0.0.3"]);
    check(&local(vec![endpoint("10.0.0.4:80")]), &Client { node: "".into(), ..client() }, &[]);
    let other_zone = Endpoint { zones: thin_vec::thin_vec!["zone-b".into()], ..here() };
    check(&local(vec![other_zone]), &client(), &["10.0.0.1"]);
}

#[test]
fn zone_hints_are_followed_when_every_ready_endpoint_has_one_and_some_match() {
    let near = || hinted(&["zone-a"], &[], "10.0.0.1:80");
    let far = || hinted(&["zone-b"], &[], "10.0.0.2:80");
    check(&service(vec![near(), far()]), &client(), &["10.0.0.1"]);
    check(&service(vec![near(), far(), endpoint("10.0.0.3:80")]), &client(), &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    check(&service(vec![far()]), &client(), &["10.0.0.2"]);
    check(&service(vec![near(), far()]), &Client { zone: "".into(), ..client() }, &["10.0.0.1", "10.0.0.2"]);
    let unready_without = Endpoint { ready: false, ..endpoint("10.0.0.3:80") };
    check(&service(vec![near(), far(), unready_without]), &client(), &["10.0.0.1"]);
    let near_but_unready = Endpoint { ready: false, ..near() };
    check(&service(vec![near_but_unready, far()]), &client(), &["10.0.0.2"]);
}

#[test]
fn node_hints_go_before_zone_hints() {
    let same_node = || hinted(&["zone-a"], &["node-a"], "10.0.0.1:80");
    let same_zone = || hinted(&["zone-a"], &["node-b"], "10.0.0.2:80");
    let far = || hinted(&["zone-b"], &["node-c"], "10.0.0.3:80");
    check(&service(vec![same_node(), same_zone(), far()]), &client(), &["10.0.0.1"]);
    check(&service(vec![same_zone(), far()]), &client(), &["10.0.0.2"]);
}

#[test]
fn endpoints_of_the_clients_family_are_eligible() {
    let both = service(vec![endpoint("10.0.0.1:80"), endpoint("[fd00::1]:80")]);
    check(&both, &client(), &["10.0.0.1"]);
    check(&both, &Client { ip: "fd00::9".parse().expect("address"), ..client() }, &["fd00::1"]);
    check(&both, &Client { ip: "::ffff:10.1.0.1".parse().expect("address"), ..client() }, &["10.0.0.1"]);
}

pub(super) fn three() -> ServicePort {
    service(vec![endpoint("10.0.0.1:80"), endpoint("10.0.0.2:80"), endpoint("10.0.0.3:80")])
}

#[test]
fn idle_endpoints_get_equal_shares() {
    let (balancer, service, mut dice) = (Balancer::new(), three(), SmallRng::seed_from_u64(7));
    let mut shares: HashMap<EndpointAddr, f64> = HashMap::new();
    for _ in 0..30_000 {
        let pick = balancer.choose_at(&service, &client(), &[], Instant::now(), &mut dice).expect("an endpoint");
        *shares.entry(pick.addr()).or_default() += 1.0 / 10_000.0;
    }
    assert!(shares.len() == 3 && shares.values().all(|share| (0.95..1.05).contains(share)), "{shares:?}");
}

#[test]
fn connections_that_stay_open_spread_evenly() {
    let (balancer, service, mut dice) = (Balancer::new(), three(), SmallRng::seed_from_u64(7));
    let held: Vec<Pick> = (0..300)
        .map(|_| balancer.choose_at(&service, &client(), &[], Instant::now(), &mut dice).expect("an endpoint"))
        .collect();
    for endpoint in &service.endpoints {
        let live = balancer.live(endpoint.addr);
        assert!((95..=105).contains(&live), "{} has {live} of 300", endpoint.addr);
    }
    drop(held);
    assert!(service.endpoints.iter().all(|endpoint| balancer.live(endpoint.addr) == 0));
    balancer.retain(&Table::default(), &[]);
    assert_eq!(balancer.loads.len(), 0, "an endpoint that is gone leaves nothing behind");
}

#[test]
fn a_busy_endpoint_is_never_taken_while_the_other_idles() {
    let (balancer, mut dice) = (Balancer::new(), SmallRng::seed_from_u64(7));
    let busy = service(vec![endpoint("10.0.0.1:80")]);
    let held: Vec<_> = (0..5).map(|_| balancer.choose(&busy, &client(), &[]).expect("an endpoint")).collect();
    let two = service(vec![endpoint("10.0.0.1:80"), endpoint("10.0.0.2:80")]);
    for _ in 0..100 {
        let pick = balancer.choose_at(&two, &client(), &[], Instant::now(), &mut dice).expect("an endpoint");
        assert_eq!(pick.addr(), addr("10.0.0.2:80"));
    }
    assert_eq!(held.len(), 5);
}

#[test]
fn excluded_endpoints_are_not_taken() {
    let (balancer, service) = (Balancer::new(), three());
    let out = [addr("10.0.0.1:80"), addr("10.0.0.3:80")];
    let pick = balancer.choose(&service, &client(), &out).expect("an endpoint");
    assert_eq!(pick.addr(), addr("10.0.0.2:80"));
    let all = [addr("10.0.0.1:80"), addr("10.0.0.2:80"), addr("10.0.0.3:80")];
    assert!(balancer.choose(&service, &client(), &all).is_none());
}

#[test]
fn session_affinity_holds_until_its_timeout_after_the_last_use() {
    let (balancer, mut dice) = (Balancer::new(), SmallRng::seed_from_u64(7));
    let endpoints = (1..=50).map(|n| endpoint(&format!("10.0.0.{n}:80"))).collect();
    let service = ServicePort { affinity: Some(Duration::from_secs(10)), ..service(endpoints) };
    let start = Instant::now();
    let mut choose = |seconds: u64, exclude: &[EndpointAddr]| {
        let now = start + Duration::from_secs(seconds);
        balancer.choose_at(&service, &client(), exclude, now, &mut dice).expect("an endpoint").addr()
    };
    let first = choose(0, &[]);
    assert_eq!([choose(1, &[]), choose(9, &[]), choose(18, &[])], [first; 3], "each use renews the pin");
    assert_ne!(choose(28, &[]), first, "ten seconds without use end it");

    let second = choose(29, &[]);
    let third = choose(30, &[second]);
    assert_ne!(third, second, "an endpoint that the caller excludes is left");
    assert_eq!(choose(31, &[]), third, "and the client is pinned to the new one");
}

#[test]
fn a_pin_dies_with_its_endpoint() {
    let balancer = Balancer::new();
    let pinned = ServicePort { affinity: Some(Duration::from_secs(10)), ..three() };
    let first = balancer.choose(&pinned, &client(), &[]).expect("an endpoint").addr();
    balancer.retain(&vec![Arc::new(pinned.clone())].into(), &[]);
    assert_eq!(balancer.pinned(), 1);

    let mut without = pinned;
    without.endpoints.retain(|endpoint| endpoint.addr != first);
    assert_ne!(balancer.choose(&without, &client(), &[]).expect("an endpoint").addr(), first);
    without.endpoints.clear();
    balancer.retain(&vec![Arc::new(without)].into(), &[]);
    assert_eq!(balancer.pinned(), 0);
}
