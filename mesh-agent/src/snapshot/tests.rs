//! What can be looked up in a snapshot, and who hears of a new one.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::model::addr::EndpointAddr;
use crate::model::identity::Identity;
use crate::model::policy::{Action, Target};
use crate::model::service::Endpoint;

fn workload(namespace: &str, name: &str, node: &str, ips: &[&str], app: &str) -> Arc<Workload> {
    Arc::new(Workload {
        app: app.into(),
        node: node.into(),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]).into(),
        ips: ips.iter().map(|ip| ip.parse().expect("ip")).collect(),
        ..Workload::new(
            format!("uid-{name}"),
            namespace,
            name,
            Identity::new("cluster.local", namespace, app).expect("identity"),
        )
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
        ]
        .into(),
        services: vec![Arc::new(service)].into(),
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

/// What can be asked of a snapshot, with every answer.
fn answers(snapshot: &Snapshot) -> Vec<String> {
    let ips = (0..8).map(|last| IpAddr::from([10, 0, 0, last]));
    let by_ip = ips.clone().map(|ip| format!("{ip} {:?}", snapshot.workload_by_ip(ip)));
    let vips = ips.map(|ip| SocketAddr::new(ip, 80));
    let by_vip = vips.map(|vip| format!("{vip} {:?}", snapshot.service_by_vip(vip)));
    let of_pod = snapshot.workloads().iter().map(|workload| {
        let names: Vec<&str> = snapshot.policies_for(&workload.uid).iter().map(|policy| &*policy.name).collect();
        format!("{} {names:?} {:?}", workload.uid, snapshot.workload(&workload.uid))
    });
    let local = snapshot.local_workloads().map(|workload| format!("local {}", workload.uid));
    let services = snapshot.services().iter().flat_map(|service| {
        ["shop", "bank"].map(|namespace| format!("{service:?} {:?}", snapshot.routes_for(service, namespace)))
    });
    let admitted: BTreeMap<_, _> = snapshot.admitted().iter().collect();
    by_ip.chain(by_vip).chain(of_pod).chain(local).chain(services).chain([format!("{admitted:?}")]).collect()
}

#[test]
fn a_chain_of_generations_ends_where_its_last_parts_do() {
    let mut random = rand::rngs::SmallRng::seed_from_u64(7);
    let mut snapshot = Snapshot::new(1, SnapshotParts { node: "a".into(), ..SnapshotParts::default() });
    for generation in 2..600 {
        let mut parts = snapshot.parts.clone();
        for _ in 0..random.random_range(1..4) {
            change(&mut parts, &mut random);
        }
        snapshot = snapshot.next(parts.clone());
        // Asked in some generations only: what was not asked for is not there to be handed on.
        if random.random_bool(0.5) {
            let (got, wanted) = (answers(&snapshot), answers(&Snapshot::new(generation, parts)));
            for (got, wanted) in got.iter().zip(&wanted) {
                assert_eq!(got, wanted, "generation {generation}");
            }
            assert_eq!(got.len(), wanted.len());
        }
        assert_eq!(snapshot.generation(), generation);
    }
}

/// Changes one thing of a small world in which everything is in everything else's way.
fn change(parts: &mut SnapshotParts, random: &mut rand::rngs::SmallRng) {
    let text =
        |random: &mut rand::rngs::SmallRng, texts: &[&str]| texts[random.random_range(0..texts.len())].to_owned();
    let ip = |random: &mut rand::rngs::SmallRng| format!("10.0.0.{}", random.random_range(0..8));
    match random.random_range(0..8) {
        0..3 => {
            let (namespace, name) = (text(random, &["shop", "bank"]), text(random, &["u", "v", "w", "x"]));
            let taken: Vec<IpAddr> = parts.workloads.iter().flat_map(|one| one.ips.clone()).collect();
            // A snapshot is given one owner of each address.
            let ips: Vec<String> = [ip(random), ip(random)]
                .into_iter()
                .filter(|ip| !taken.iter().any(|taken| taken.to_string() == *ip))
                .collect();
            let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
            let (node, app) = (text(random, &["a", "b"]), text(random, &["web", "cart"]));
            parts.workloads.put(workload(&namespace, &name, &node, &ips, &app));
        }
        3 => parts.workloads.remove(&format!("uid-{}", text(random, &["u", "v", "w", "x"])).into()),
        4 | 5 => {
            let (namespace, name) = match random.random_range(0..3) {
                0 => ("default".to_owned(), "kubernetes".to_owned()),
                _ => (text(random, &["shop", "bank"]), text(random, &["s", "t"])),
            };
            let vip = ip(random).parse().expect("ip");
            let taken = parts.services.iter().any(|service| service.vips.contains(&vip));
            let addr = EndpointAddr::new(SocketAddr::new(ip(random).parse().expect("ip"), 80));
            let service = ServicePort {
                namespace: namespace.into(),
                name: name.into(),
                port: 80,
                vips: if taken { Vec::new() } else { vec![vip] },
                endpoints: vec![Endpoint::new(addr)],
                ..ServicePort::default()
            };
            let table = if random.random_bool(0.2) { &mut parts.udp_services } else { &mut parts.services };
            table.put(Arc::new(service));
        }
        6 => {
            let (service, at) = (parts.services.iter().next().cloned(), random.random_range(0..2));
            let Some(service) = service else { return };
            let consumer = [None, Some("bank".into())][at].clone();
            let kind = crate::model::route::RouteKind::Http;
            parts.routes =
                vec![Arc::new(PortRoutes { service: service.reference(), consumer, kind, candidates: vec![] })];
            parts.services.remove(&service.reference());
            if at == 0 {
                parts.services.put(service);
            }
        }
        _ => {
            let web = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
            let target = match random.random_range(0..3) {
                0 => Target::Mesh,
                1 => Target::Namespace("shop".into()),
                _ => Target::Selector { namespace: "bank".into(), labels: web.into() },
            };
            match random.random_range(0..3) {
                0 => drop(parts.policies.pop()),
                1 => parts.policies.reverse(),
                _ => parts.policies.push(policy(&text(random, &["p", "q", "r"]), target)),
            }
        }
    }
}

#[test]
fn publishing_wakes_whoever_watches_and_readers_see_the_new_one() {
    let store = SnapshotStore::default();
    let watch = store.watch();
    assert_eq!((store.load().generation(), watch.has_changed().ok()), (0, Some(false)));
    store.publish(snapshot());
    assert_eq!((store.load().generation(), *watch.borrow(), watch.has_changed().ok()), (3, 3, Some(true)));
}
