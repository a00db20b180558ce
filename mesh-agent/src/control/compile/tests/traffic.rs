//! Which service ports a traffic policy is for.

use super::*;
use crate::model::traffic::Balancing;

const WEB: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: admin, port: 81}]}\n";

fn policy(namespace: &str, name: &str, target: &str, kind: &str) -> String {
    format!(
        "---\napiVersion: mesh-agent.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{targetRefs: [{{kind: Service, name: {target}}}], loadBalancer: {{type: {kind}}}}}\n"
    )
}

fn balancing(parts: &SnapshotParts, port: u16) -> Option<Balancing> {
    service(parts, "web", port).traffic.as_ref().map(|traffic| traffic.balancing.clone())
}

fn compiled_with(policies: &[String]) -> SnapshotParts {
    let pod = pod("web-1", "10.0.0.1", ", labels: {app: web}", "", "");
    one(&format!("{WEB}{pod}{}", policies.concat()))
}

#[test]
fn a_policy_is_for_every_port_of_its_service_unless_it_names_one() {
    assert_eq!(balancing(&compiled_with(&[]), 80), None);
    let parts = compiled_with(&[
        policy("shop", "all", "web", "LeastRequest"),
        policy("shop", "one", "web, sectionName: http", "RoundRobin"),
    ]);
    check_problems(&parts, &[]);
    assert_eq!(balancing(&parts, 80), Some(Balancing::RoundRobin));
    assert_eq!(balancing(&parts, 81), Some(Balancing::LeastRequest));
}

#[test]
fn the_second_policy_for_a_service_and_one_for_none_are_named() {
    let parts = compiled_with(&[
        policy("shop", "b", "web", "RoundRobin"),
        policy("shop", "a", "web", "LeastRequest"),
        policy("bank", "c", "web", "RoundRobin"),
        policy("shop", "d", "web, sectionName: grpc", "RoundRobin"),
    ]);
    check_problems(
        &parts,
        &[
            "TrafficPolicy shop/b: spec.targetRefs[0]: shop/web:80 has TrafficPolicy a already",
            "TrafficPolicy shop/b: spec.targetRefs[0]: shop/web:81 has TrafficPolicy a already",
            "TrafficPolicy bank/c: spec.targetRefs[0]: there is no Service bank/web",
            "TrafficPolicy shop/d: spec.targetRefs[0]: there is no Service shop/web with a TCP port named `grpc`",
        ],
    );
    assert_eq!(balancing(&parts, 80), Some(Balancing::LeastRequest));
}
