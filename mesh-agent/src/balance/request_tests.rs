//! Which endpoints requests go to: shares, keys, turns, ejection, and what is shared by those who choose.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::tests::{addr, client, endpoint, service, three};
use super::*;
use crate::model::traffic::{HashKey, Traffic};

fn balanced(service: ServicePort, balancing: Balancing) -> ServicePort {
    with(service, Traffic { balancing, ..Traffic::default() })
}

fn with(service: ServicePort, traffic: Traffic) -> ServicePort {
    ServicePort { traffic: Some(Arc::new(traffic)), ..service }
}

/// Sends requests, each answered after what `takes` says before the next comes, and counts where they went.
struct Sender {
    balancer: Balancer,
    dice: SmallRng,
    now: Instant,
}

impl Sender {
    fn new() -> Self {
        let balancer = Balancer::new();
        let now = balancer.born;
        Self { balancer, dice: SmallRng::seed_from_u64(7), now }
    }

    fn choose(&mut self, service: &ServicePort, key: Option<u64>) -> Option<Pick> {
        self.balancer.choose_for_request_at(service, &client(), &[], key, self.now, &mut self.dice)
    }

    /// One request; `answer` says of an endpoint how long it takes, and whether it fails.
    fn send(&mut self, service: &ServicePort, answer: impl Fn(EndpointAddr) -> (u64, bool)) -> EndpointAddr {
        let mut pick = self.choose(service, None).expect("an endpoint");
        let (millis, failed) = answer(pick.addr());
        pick.sent_at(self.now);
        self.now += Duration::from_millis(millis);
        pick.answered_at(failed, self.now);
        pick.addr()
    }

    fn shares(
        &mut self,
        service: &ServicePort,
        count: usize,
        answer: impl Fn(EndpointAddr) -> (u64, bool),
    ) -> HashMap<EndpointAddr, usize> {
        let mut shares = HashMap::new();
        for _ in 0..count {
            *shares.entry(self.send(service, &answer)).or_default() += 1;
        }
        shares
    }
}

fn share(shares: &HashMap<EndpointAddr, usize>, of: &str) -> usize {
    shares.get(&addr(of)).copied().unwrap_or(0)
}

#[test]
fn endpoints_that_answer_alike_get_about_the_same_and_a_slow_one_hardly_anything() {
    let mut sender = Sender::new();
    let alike = sender.shares(&three(), 3_000, |_| (10, false));
    assert!(alike.len() == 3 && alike.values().all(|share| (850..1150).contains(share)), "{alike:?}");

    let slow = addr("10.0.0.2:80");
    let shares = Sender::new().shares(&three(), 3_000, |addr| (if addr == slow { 100 } else { 10 }, false));
    let third = share(&shares, "10.0.0.2:80");
    assert!(third < 300, "ten times as slow: below a tenth of 3,000 instead of a third: {shares:?}");
    assert!(third > 0, "and still looked at: {shares:?}");
}

#[test]
fn a_slow_endpoint_that_recovers_gets_its_share_again() {
    let mut sender = Sender::new();
    let slow = addr("10.0.0.2:80");
    sender.shares(&three(), 1_000, |addr| (if addr == slow { 500 } else { 5 }, false));
    // By and by: its average fades within a minute or so.
    sender.now += Duration::from_secs(60);
    sender.shares(&three(), 4_000, |_| (10, false));
    let after = sender.shares(&three(), 1_000, |_| (10, false));
    assert!(share(&after, "10.0.0.2:80") > 200, "{after:?}");
}

#[test]
fn an_endpoint_that_hangs_or_refuses_does_not_seem_quick() {
    let mut sender = Sender::new();
    sender.shares(&three(), 300, |_| (10, false));
    let mut refuses = loop {
        let pick = sender.choose(&three(), None).expect("an endpoint");
        if pick.addr() == addr("10.0.0.1:80") {
            break pick;
        }
    };
    refuses.failed_at(sender.now);
    drop(refuses);
    let shares = sender.shares(&three(), 200, |_| (10, false));
    assert!(share(&shares, "10.0.0.1:80") < 5, "{shares:?}");
}

#[test]
fn round_robin_takes_turns_and_each_family_has_its_own() {
    let mut sender = Sender::new();
    let both = [three().endpoints, vec![endpoint("[fd00::1]:80"), endpoint("[fd00::2]:80")]].concat();
    let service = balanced(service(both), Balancing::RoundRobin);
    let six = Client { ip: "fd00::9".parse().expect("address"), ..client() };
    let mut shares: HashMap<EndpointAddr, usize> = HashMap::new();
    for _ in 0..30 {
        for client in [&client(), &six] {
            let (balancer, dice) = (&sender.balancer, &mut sender.dice);
            let pick = balancer.choose_for_request_at(&service, client, &[], None, sender.now, dice);
            *shares.entry(pick.expect("an endpoint").addr()).or_default() += 1;
        }
    }
    for (addr, expected) in [("10.0.0.1:80", 10), ("10.0.0.3:80", 10), ("[fd00::1]:80", 15), ("[fd00::2]:80", 15)] {
        assert_eq!(share(&shares, addr), expected, "{addr}");
    }
}

#[test]
fn the_least_busy_of_two_gets_the_request() {
    let mut sender = Sender::new();
    let two = service(vec![endpoint("10.0.0.1:80"), endpoint("10.0.0.2:80")]);
    let two = balanced(two, Balancing::LeastRequest);
    let held: Vec<Pick> = (0..100).map(|_| sender.choose(&two, None).expect("an endpoint")).collect();
    assert_eq!(sender.balancer.live(addr("10.0.0.1:80")), 50);
    assert_eq!(held.len(), 100);
}

#[test]
fn a_key_stays_with_its_endpoint_and_goes_elsewhere_only_when_that_leaves() {
    let mut sender = Sender::new();
    let hashed = balanced(three(), Balancing::Hash(HashKey::Source));
    let home: Vec<EndpointAddr> =
        (0..300).map(|key| sender.choose(&hashed, Some(key)).expect("an endpoint").addr()).collect();
    for (key, home) in home.iter().enumerate() {
        let again = sender.choose(&hashed, Some(key as u64)).expect("an endpoint").addr();
        assert_eq!(again, *home);
    }
    let mut fewer = hashed.clone();
    fewer.endpoints.remove(0);
    for (key, home) in home.iter().enumerate() {
        let after = sender.choose(&fewer, Some(key as u64)).expect("an endpoint").addr();
        assert!(after == *home || *home == addr("10.0.0.1:80"));
    }
    let unkeyed: HashSet<EndpointAddr> = (0..100).filter_map(|_| Some(sender.choose(&hashed, None)?.addr())).collect();
    assert_eq!(unkeyed.len(), 3, "a request without the key goes anywhere");
}

fn ejecting(min_health_percent: u32) -> ServicePort {
    let ejection = Ejection { consecutive: 3, min_health_percent, ..Ejection::default() };
    with(three(), Traffic { ejection: Some(ejection), balancing: Balancing::RoundRobin, ..Traffic::default() })
}

#[test]
fn an_endpoint_that_fails_is_left_alone_and_probed_once_before_it_is_used_again() {
    let mut sender = Sender::new();
    let bad = addr("10.0.0.2:80");
    let before = sender.shares(&ejecting(50), 90, |addr| (1, addr == bad));
    assert_eq!(share(&before, "10.0.0.2:80"), 3, "three in a row, and no more");
    sender.now += Duration::from_secs(31);
    let probe = sender.choose(&ejecting(50), None).expect("an endpoint");
    assert_eq!(probe.addr(), bad, "the first request after its time is the probe");
    for _ in 0..6 {
        assert_ne!(sender.choose(&ejecting(50), None).expect("an endpoint").addr(), bad, "there is one");
    }
    drop(probe);
    assert_eq!(sender.send(&ejecting(50), |_| (1, false)), bad, "one that was given up is made up for");
    let after = sender.shares(&ejecting(50), 90, |_| (1, false));
    assert_eq!(share(&after, "10.0.0.2:80"), 30);
}

#[test]
fn with_too_few_left_all_are_used_unless_the_policy_would_rather_have_none() {
    let mut sender = Sender::new();
    let all = sender.shares(&ejecting(50), 90, |_| (1, true));
    assert_eq!(all.values().sum::<usize>(), 90, "all fail: it is not the endpoints");
    let mut sender = Sender::new();
    for _ in 0..9 {
        sender.send(&ejecting(0), |_| (1, true));
    }
    assert!(sender.choose(&ejecting(0), None).is_none(), "none is better than a failing one");
    assert!(sender.balancer.choose(&ejecting(0), &client(), &[]).is_some(), "connections are not kept from them");
}

#[test]
fn session_affinity_and_zones_go_before_a_policy() {
    let mut sender = Sender::new();
    let pinned = ServicePort { affinity: Some(Duration::from_secs(60)), ..ejecting(50) };
    let first = sender.send(&pinned, |_| (1, true));
    assert!((0..20).all(|_| sender.send(&pinned, |_| (1, true)) == first), "a promise holds, whatever comes of it");

    let mut near = balanced(three(), Balancing::RoundRobin);
    for (endpoint, zone) in near.endpoints.iter_mut().zip(["zone-a", "zone-b", "zone-b"]) {
        endpoint.zones = thin_vec::thin_vec![zone.into()];
    }
    assert!((0..20).all(|_| sender.send(&near, |_| (1, false)) == addr("10.0.0.1:80")), "the client is in zone-a");
}
