//! Traffic policies.

use std::time::Duration;

use super::*;
use crate::model::traffic::{Balancing, Ejection, HashKey, RetryBudget, Traffic};

fn traffic(spec: &str) -> (Arc<TrafficPolicy>, Vec<String>) {
    let text = format!("apiVersion: {API_VERSION}\nkind: TrafficPolicy\nmetadata: {SHOP}\nspec: {spec}\n");
    match object(&text) {
        (Object::Traffic(policy), mistakes) => (policy, mistakes),
        (other, _) => panic!("{other:?}"),
    }
}

const CART: &str = "targetRefs: [{kind: Service, name: cart}]";

#[test]
fn a_policy_says_how_requests_are_spread_limited_and_kept_from_failing_endpoints() {
    let (policy, mistakes) = traffic(
        "{targetRefs: [{group: '', kind: Service, name: cart, sectionName: http}, {kind: Service, name: till}], \
         loadBalancer: {type: RoundRobin}, \
         retryConstraint: {budget: {percent: 5, interval: 1m}, minRetryRate: {count: 3, interval: 2s}}, \
         outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 1s, maxEjectionTime: 1m, minHealthPercent: 0}}",
    );
    assert_eq!(mistakes, [""; 0]);
    let targets: Vec<(&str, Option<&str>)> =
        policy.targets.iter().map(|target| (&*target.service, target.port.as_deref())).collect();
    assert_eq!(targets, [("cart", Some("http")), ("till", None)]);
    let minute = Duration::from_secs(60);
    let expected = Traffic {
        balancing: Balancing::RoundRobin,
        budget: RetryBudget { percent: 5, interval: minute, min_count: 3, min_interval: Duration::from_secs(2) },
        ejection: Some(Ejection { consecutive: 2, base: Duration::from_secs(1), max: minute, min_health_percent: 0 }),
    };
    assert_eq!(*policy.traffic, expected);
    assert_eq!(*traffic(&format!("{{{CART}}}")).0.traffic, Traffic::default());
    let defaults = traffic(&format!("{{{CART}, outlierDetection: {{}}, retryConstraint: {{}}}}")).0;
    let expected =
        Traffic { ejection: Some(Ejection::default()), budget: RetryBudget::STANDARD, balancing: Balancing::PeakEwma };
    assert_eq!(*defaults.traffic, expected);
}

#[test]
fn each_way_to_balance_has_its_name() {
    for (balancer, expected) in [
        ("{type: PeakEWMA}", Balancing::PeakEwma),
        ("{type: LeastRequest}", Balancing::LeastRequest),
        ("{type: ConsistentHash, consistentHash: {type: SourceIP}}", Balancing::Hash(HashKey::Source)),
        (
            "{type: ConsistentHash, consistentHash: {type: Cookie, cookie: {name: sid}}}",
            Balancing::Hash(HashKey::Cookie("sid".into())),
        ),
        (
            "{type: ConsistentHash, consistentHash: {type: Header, header: {name: X-User}}}",
            Balancing::Hash(HashKey::Header("x-user".parse().unwrap())),
        ),
    ] {
        let (policy, mistakes) = traffic(&format!("{{{CART}, loadBalancer: {balancer}}}"));
        assert_eq!((mistakes, &policy.traffic.balancing), (vec![], &expected), "{balancer}");
    }
}

#[test]
fn a_part_with_a_mistake_is_as_if_absent_and_the_others_hold() {
    let rest = "outlierDetection: {consecutive5xxErrors: 7}";
    for (part, mistake) in [
        ("loadBalancer: {type: Random}", "spec.loadBalancer.type: unknown variant `Random`"),
        ("loadBalancer: {type: ConsistentHash}", "spec.loadBalancer.consistentHash: missing"),
        (
            "loadBalancer: {type: ConsistentHash, consistentHash: {type: Header}}",
            "spec.loadBalancer.consistentHash.header: missing",
        ),
        (
            "loadBalancer: {type: RoundRobin, consistentHash: {type: SourceIP}}",
            "spec.loadBalancer.consistentHash: only for",
        ),
        (
            "loadBalancer: {type: ConsistentHash, consistentHash: {type: Header, header: {name: 'a b'}}}",
            "spec.loadBalancer.consistentHash.header.name: `a b` is no header's name",
        ),
        ("retryConstraint: {budget: {percent: 101}}", "spec.retryConstraint.budget.percent: 101 is not within 0-100"),
        ("retryConstraint: {budget: {interval: soon}}", "spec.retryConstraint.budget.interval: `soon` is no duration"),
        ("retryConstraint: {minRetryRate: {interval: 2h}}", "spec.retryConstraint.minRetryRate.interval: `2h`"),
        ("healthChecks: {}", "spec.healthChecks: unknown field"),
    ] {
        let (policy, mistakes) = traffic(&format!("{{{CART}, {part}, {rest}}}"));
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(mistake), "{part}: {mistakes:?}");
        let ejection = Some(Ejection { consecutive: 7, ..Ejection::default() });
        assert_eq!(*policy.traffic, Traffic { ejection, ..Traffic::default() }, "{part}");
    }
    let (policy, mistakes) = traffic("{targetRefs: [{kind: Gateway, name: g}, {kind: Service, name: cart}]}");
    assert!(mistakes.len() == 1 && mistakes[0].starts_with("spec.targetRefs[0].kind: `Gateway`"), "{mistakes:?}");
    assert_eq!(policy.targets.len(), 1);
    for spec in ["{}", "{targetRefs: []}"] {
        let text = format!("apiVersion: {API_VERSION}\nkind: TrafficPolicy\nmetadata: {SHOP}\nspec: {spec}\n");
        assert!(matches!(read_text(&text), Reading::Unusable(Some(_), _)), "{spec}: the last good version stays");
    }
}
