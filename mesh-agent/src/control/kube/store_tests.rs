//! What is in force after which sequence of events; no API server is asked.

use serde_json::json;

use super::*;
use crate::control::kube::watch::read;
use crate::control::kube::watched;
use crate::model::local::LocalPod;

/// A store, and the snapshot that it gave last.
struct Scene {
    store: Store,
    parts: SnapshotParts,
    /// How many it has given.
    count: usize,
}

impl Scene {
    /// Waits for every kind.
    fn new() -> Self {
        Self { store: Store::new(&watched(), "node-a", "cluster.local"), parts: SnapshotParts::default(), count: 0 }
    }

    /// Every kind has been listed; `objects` were there.
    fn listed(objects: &[(Kind, Value)]) -> Self {
        let mut scene = Self::new();
        for kind in watched() {
            let of_kind: Vec<Value> = objects.iter().filter(|(of, _)| *of == kind).map(|(_, v)| v.clone()).collect();
            scene.happens(list(kind, &of_kind));
        }
        scene
    }

    fn happens(&mut self, event: Event) -> &mut Self {
        self.store.apply(event);
        if let Some(parts) = self.store.compile() {
            self.parts = parts;
            self.count += 1;
        }
        self
    }

    #[track_caller]
    fn check(&self, pods: &[&str], problems: &[&str]) {
        let names: Vec<&str> = self.parts.workloads.iter().map(|workload| &*workload.name).collect();
        let said: Vec<String> = self.parts.problems.iter().map(ToString::to_string).collect();
        assert_eq!(names, pods);
        assert!(
            said.len() == problems.len() && said.iter().zip(problems).all(|(said, part)| said.contains(part)),
            "{said:#?} are not {problems:?}"
        );
    }
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": "7",
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"nodeName": "node-a", "aFieldOfTomorrow": true, "containers": []},
        "status": {"podIP": ip},
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn version(kind: Kind) -> &'static str {
    kind.api().1.first().copied().expect("a version")
}

fn list(kind: Kind, objects: &[Value]) -> Event {
    Event::Listed(kind, objects.iter().map(|value| read(kind, version(kind), value.clone(), false)).collect())
}

fn put(kind: Kind, object: Value) -> Event {
    let (key, reading) = read(kind, version(kind), object, false);
    Event::Put(key, reading)
}

fn removed(kind: Kind, object: &Value) -> Event {
    Event::Removed(crate::control::object::key(kind, object))
}

#[test]
fn nothing_is_published_before_every_kind_has_been_listed() {
    for missing in watched() {
        let mut scene = Scene::new();
        for kind in watched().into_iter().filter(|kind| *kind != missing) {
            scene.happens(list(kind, &[]));
        }
        scene.happens(Event::Away(missing, "forbidden".to_owned()));
        assert_eq!((scene.count, scene.store.is_complete()), (0, false), "{missing:?}");
        assert!(scene.store.standing_problems()[0].to_string().contains(missing.as_str()), "it is named");
        scene.happens(list(missing, &[]));
        assert_eq!((scene.count, scene.parts.problems.len()), (1, 0), "{missing:?}");
    }
}

#[test]
fn objects_of_the_api_server_are_read_without_their_type_and_with_fields_of_tomorrow() {
    Scene::listed(&[(Kind::Pod, pod("x", "10.0.0.1"))]).check(&["x"], &[]);
}

#[test]
fn an_api_server_that_is_away_leaves_the_last_snapshot_and_says_so_once_for_all_kinds() {
    let mut scene = Scene::listed(&[(Kind::Pod, pod("x", "10.0.0.1"))]);
    for kind in watched() {
        scene.happens(Event::Away(kind, "cannot be watched: refused".to_owned()));
    }
    scene.check(&["x"], &["Namespace, Node, Pod, Service, EndpointSlice"]);
    assert!(scene.parts.problems[0].to_string().ends_with("cannot be watched: refused (keeps_last)"));
    for kind in watched() {
        scene.happens(Event::Connected(kind));
    }
    scene.check(&["x"], &[]);
}

#[test]
fn a_new_list_is_compared_with_what_is_kept() {
    let (x, y, z) = (pod("x", "10.0.0.1"), pod("y", "10.0.0.2"), pod("z", "10.0.0.3"));
    let node = json!({"metadata": {"name": "node-a"}});
    let mut scene = Scene::listed(&[(Kind::Pod, x.clone()), (Kind::Pod, y.clone()), (Kind::Node, node)]);
    scene.happens(list(Kind::Pod, &[z, y]));
    scene.check(&["y", "z"], &[]);
    scene.happens(list(Kind::Pod, &[x]));
    scene.check(&["x"], &[]);
    assert_eq!(scene.store.kept.keys_of(Kind::Node).count(), 1, "of its own kind alone");
}

#[test]
fn what_does_not_change_what_is_kept_compiles_nothing() {
    let mut scene = Scene::listed(&[(Kind::Pod, pod("x", "10.0.0.1"))]);
    let before = scene.count;
    let mut heartbeat = pod("x", "10.0.0.1");
    heartbeat["metadata"]["resourceVersion"] = json!("8");
    heartbeat["status"]["message"] = json!("still here");
    scene.happens(put(Kind::Pod, heartbeat.clone())).happens(removed(Kind::Pod, &pod("y", "10.0.0.2")));
    assert_eq!(scene.count, before);
    heartbeat["metadata"]["labels"] = json!({"a": "b"});
    scene.happens(put(Kind::Pod, heartbeat));
    assert_eq!(scene.count, before + 1);
}

#[test]
fn objects_come_change_and_go() {
    let mut scene = Scene::listed(&[]);
    scene.happens(put(Kind::Pod, pod("x", "10.0.0.1"))).check(&["x"], &[]);
    scene.happens(put(Kind::Pod, pod("x", "10.0.0.9")));
    assert_eq!(
        *scene.parts.workloads.iter().next().expect("a pod").ips,
        ["10.0.0.9".parse::<std::net::IpAddr>().expect("an address")]
    );
    scene.happens(removed(Kind::Pod, &pod("x", "10.0.0.9"))).check(&[], &[]);
}

#[test]
fn a_mistake_keeps_the_last_good_version_and_a_policy_with_one_denies() {
    let mut scene = Scene::listed(&[(Kind::Pod, pod("x", "10.0.0.1"))]);
    let mut broken = pod("x", "10.0.0.2");
    broken["spec"]["hostNetwork"] = json!(7);
    scene.happens(put(Kind::Pod, broken.clone()));
    scene.check(&["x"], &["API server: Pod shop/x: spec.hostNetwork: invalid type"]);
    assert_eq!(
        *scene.parts.workloads.iter().next().expect("a pod").ips,
        ["10.0.0.1".parse::<std::net::IpAddr>().expect("an address")]
    );
    scene.happens(put(Kind::Pod, broken)).check(&["x"], &["spec.hostNetwork"]);

    let good = policy("p", json!({"rules": [{}]}));
    scene.happens(put(Kind::AuthorizationPolicy, good));
    assert!(scene.parts.policies[0].broken.is_none());
    scene.happens(put(Kind::AuthorizationPolicy, policy("p", json!({"rulez": []}))));
    assert!(scene.parts.policies[0].broken.is_some(), "of our own kinds an unknown field is a mistake");
}

#[test]
fn a_kind_that_is_not_served_is_named_and_what_was_kept_of_it_stays() {
    let route = Kind::Route(crate::model::route::RouteKind::Tcp);
    let mut scene = Scene::listed(&[(Kind::AuthorizationPolicy, policy("p", json!({})))]);
    scene.happens(Event::Absent(route)).happens(Event::Absent(Kind::AuthorizationPolicy));
    let named =
        ["authorizationpolicies.mesh-agent.io (v1alpha1)", "tcproutes.gateway.networking.k8s.io (v1 or v1alpha2)"];
    scene.check(&[], &named);
    assert_eq!(scene.parts.policies.len(), 1);
    scene.happens(list(route, &[])).happens(list(Kind::AuthorizationPolicy, &[])).check(&[], &[]);
    assert!(scene.parts.policies.is_empty());
}

#[test]
fn without_the_kinds_that_deny_nothing_begins_and_without_others_it_does() {
    for kind in Kind::ALL {
        let mut store = Store::new(&Kind::ALL, "node-a", "cluster.local");
        for other in Kind::ALL {
            store.apply(if other == kind { Event::Absent(kind) } else { Event::Listed(other, vec![]) });
        }
        assert_eq!(store.compile().is_some(), !kind.is_enforcement(), "{kind:?}");
        store.apply(Event::Listed(kind, vec![]));
        assert!(store.compile().is_some(), "{kind:?}");
        // Once begun nothing holds it up.
        store.apply(Event::Absent(kind));
        assert!(store.is_complete(), "{kind:?}");
    }
}

#[test]
fn a_pods_own_word_for_its_network_namespace_is_not_believed_unless_told_to() {
    let mut claims = pod("x", "10.0.0.1");
    claims["metadata"]["annotations"] = json!({"mesh-agent.io/netns": "/run/netns/other"});
    let scene = Scene::listed(&[(Kind::Pod, claims.clone())]);
    scene.check(&["x"], &["Pod shop/x: metadata.annotations[mesh-agent.io/netns]: not believed"]);
    assert_eq!(scene.parts.workloads.iter().next().expect("a pod").netns, None);

    let mut scene = Scene::listed(&[]);
    let (key, reading) = read(Kind::Pod, "v1", claims, true);
    scene.happens(Event::Put(key, reading)).check(&["x"], &[]);
    assert_eq!(scene.parts.workloads.iter().next().expect("a pod").netns, Some("/run/netns/other".into()));
}

#[test]
fn the_order_of_events_does_not_show() {
    let objects = [pod("x", "10.0.0.1"), pod("y", "10.0.0.1"), pod("z", "10.0.0.3")];
    let mut scene = Scene::listed(&[]);
    objects.iter().for_each(|pod| {
        scene.happens(put(Kind::Pod, pod.clone()));
    });
    let mut reverse = Scene::listed(&[]);
    objects.iter().rev().for_each(|pod| {
        reverse.happens(put(Kind::Pod, pod.clone()));
    });
    assert_eq!(scene.parts, reverse.parts);
}

#[test]
fn what_the_node_itself_knows_goes_over_what_the_api_server_says_of_its_pods() {
    let of_node = |name: &str, ip: &str, node: &str| {
        let mut pod = pod(name, ip);
        pod["spec"]["nodeName"] = json!(node);
        (Kind::Pod, pod)
    };
    let mut scene = Scene::listed(&[
        of_node("x", "", "node-a"),
        of_node("y", "10.0.0.2", "node-a"),
        of_node("z", "10.0.0.3", "node-b"),
    ]);
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let standing = |address: &str| LocalPod::Standing { netns: "/run/netns/n".into(), addresses: vec![ip(address)] };
    let before = scene.count;
    // The address of y, as the API server has it, is the one of x by now.
    let local: LocalPods =
        [("uid-x", standing("10.0.0.2")), ("uid-z", standing("10.0.0.9"))].map(|(uid, pod)| (uid.into(), pod)).into();
    scene.happens(Event::Local(Arc::new(local.clone())));
    let of = |scene: &Scene, name: &str| {
        let found = scene.parts.workloads.iter().find(|workload| &*workload.name == name);
        found.map(|workload| (workload.ips.clone(), workload.netns.clone())).expect("a pod")
    };
    assert_eq!(of(&scene, "x"), (smallvec::smallvec![ip("10.0.0.2")], Some("/run/netns/n".into())));
    assert_eq!(of(&scene, "y"), (smallvec::smallvec![], None), "its address is another pod's");
    assert_eq!(of(&scene, "z"), (smallvec::smallvec![ip("10.0.0.3")], None), "of another node nothing is known here");
    scene.happens(Event::Local(Arc::new(local)));
    assert_eq!(scene.count, before + 1, "nothing has changed");

    let gone: LocalPods = [("uid-x".into(), LocalPod::Gone)].into();
    scene.happens(Event::Local(Arc::new(gone)));
    assert_eq!(
        (of(&scene, "x"), of(&scene, "y").0),
        ((smallvec::smallvec![], None), smallvec::smallvec![ip("10.0.0.2")])
    );
}
