//! What can be looked up in a snapshot, and who hears of a new one.

use std::collections::BTreeMap;

use super::*;
use crate::model::egress::{Egress, UdpRefusals};
use crate::model::identity::Identity;
use crate::model::policy::Action;
use crate::model::workload::{Enrolment, Exclusions, PeerModes};

fn workload(namespace: &str, name: &str, node: &str, ips: &[&str], app: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("uid-{name}").into(),
        namespace: namespace.into(),
        name: name.into(),
        app: app.into(),
        node: node.into(),
        zone: "".into(),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        identity: Identity::new("cluster.local", namespace, app).expect("identity"),
        ips: ips.iter().map(|ip| ip.parse().expect("ip")).collect(),
        host_network: false,
        ports: Vec::new(),
        probe_ports: Vec::new(),
        enrolment: Enrolment::Enrolled,
        captured: None,
        peer_mode: PeerModes::default(),
        exclusions: Exclusions::default(),
        egress: Egress::default(),
        udp_refusals: UdpRefusals::default(),
        netns: None,
        terminating: false,
    })
}

fn policy(name: &str, target: Target) -> Arc<Policy> {
    Arc::new(Policy {
        namespace: "shop".into(),
        name: name.into(),
        action: Action::Allow,
        target,
        rules: Vec::new(),
        broken: None,
    })
}

fn snapshot() -> Snapshot {
    let web = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let service = ServicePort {
        name: "web".into(),
        port: 80,
        vips: vec!["10.96.0.1".parse().expect("ip"), "fd96::1".parse().expect("ip")],
        ..ServicePort::default()
    };
    let parts = SnapshotParts {
        node: "a".into(),
        workloads: vec![
            workload("shop", "web-1", "a", &["10.0.0.1", "fd00::1"], "web"),
            workload("shop", "web-2", "b", &["10.0.0.2"], "web"),
            workload("shop", "cart", "a", &["10.0.0.3"], "cart"),
            workload("bank", "web", "b", &[], "web"),
        ],
        services: vec![Arc::new(service)],
        policies: vec![
            policy("all", Target::Mesh),
            policy("shop", Target::Namespace("shop".into())),
            policy("web", Target::Selector { namespace: "shop".into(), labels: web.into() }),
        ],
        ..SnapshotParts::default()
    };
    Snapshot::new(3, parts)
}

#[test]
fn what_is_in_a_snapshot_is_found_by_each_of_its_keys() {
    let snapshot = snapshot();
    let name = |workload: Option<&Arc<Workload>>| workload.map(|workload| workload.name.to_string());
    assert_eq!(name(snapshot.workload("uid-cart")).as_deref(), Some("cart"));
    assert_eq!(name(snapshot.workload_by_ip("fd00::1".parse().expect("ip"))).as_deref(), Some("web-1"));
    assert_eq!(name(snapshot.workload_by_ip("10.0.0.9".parse().expect("ip"))), None);
    let by_vip = |text: &str| snapshot.service_by_vip(text.parse().expect("address")).is_some();
    assert!(by_vip("10.96.0.1:80") && by_vip("[fd96::1]:80") && !by_vip("10.96.0.1:81"));
    assert_eq!(snapshot.local_workloads().count(), 2);
}

#[test]
fn each_workload_has_the_policies_that_select_it_in_their_order() {
    let snapshot = snapshot();
    let names = |uid: &str| snapshot.policies_for(uid).iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names("uid-web-1"), ["all", "shop", "web"]);
    assert_eq!(names("uid-web-2"), ["all", "shop", "web"]);
    assert_eq!(names("uid-cart"), ["all", "shop"]);
    assert_eq!(names("uid-web"), ["all"], "the same labels in another namespace");
    assert!(names("uid-none").is_empty());
}

#[test]
fn publishing_wakes_whoever_watches_and_readers_see_the_new_one() {
    let store = SnapshotStore::default();
    let watch = store.watch();
    assert_eq!((store.load().generation(), watch.has_changed().ok()), (0, Some(false)));
    store.publish(snapshot());
    assert_eq!((store.load().generation(), *watch.borrow(), watch.has_changed().ok()), (3, 3, Some(true)));
}
