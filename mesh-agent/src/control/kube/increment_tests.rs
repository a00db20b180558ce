//! Whatever happens, in whatever order, what is compiled of the changes is what everything together gives.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::*;
use crate::control::kube::store::Store;
use crate::control::kube::watch::read;
use crate::control::kube::{Event, watched};
use crate::control::object::key;
use crate::model::local::LocalPod;
use crate::model::local::LocalPods;
use crate::model::route::RouteKind;

const DOMAIN: &str = "cluster.local";

/// A small world, in which everything is in everything else's way.
struct World {
    random: SmallRng,
}

impl World {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.random.random_range(0..of.len())]
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    fn namespace(&mut self) -> &'static str {
        self.one(&["shop", "bank", "mesh-agent-system"])
    }

    fn ip(&mut self) -> String {
        format!("10.0.0.{}", self.random.random_range(0..6))
    }

    fn pod(&mut self) -> Value {
        let (namespace, name) = (self.namespace(), self.one(&["a", "b", "c", "d", "e"]));
        let uid = if self.chance(0.1) { "uid-shared".to_owned() } else { format!("uid-{namespace}-{name}") };
        let mut labels = json!({"app": self.one(&["web", "cart"])});
        if self.chance(0.2) {
            labels["mesh-agent.io/mode"] = json!(self.one(&["enabled", "disabled"]));
        }
        let ips = [self.ip(), self.ip()];
        let count = self.random.random_range(1..3);
        let second = self.random.random_range(0..4);
        json!({
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid, "labels": labels,
                "annotations": {"mesh-agent.io/exclude-inbound-ports": self.one(&["", "80", "nonsense"])},
            },
            "spec": {
                "nodeName": self.one(&["node-a", "node-b"]), "hostNetwork": self.chance(0.1),
                "serviceAccountName": self.one(&["one", "two", "no/account"]),
                "containers": [{"name": "c", "ports": [{"name": self.one(&["web", "other"]), "containerPort": 8080}]}],
            },
            "status": {
                "podIPs": ips[..count].iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
                "startTime": format!("2026-01-01T00:00:0{second}Z"),
                "phase": self.one(&["Running", "Running", "Running", "Succeeded"]),
                "conditions": [{"type": "Ready", "status": self.one(&["True", "False"])}],
            },
        })
    }

    fn service(&mut self) -> Value {
        let ip =
            if self.chance(0.2) { "None".to_owned() } else { format!("10.96.0.{}", self.random.random_range(1..4)) };
        let mut spec = json!({
            "clusterIP": ip,
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        });
        if self.chance(0.3) {
            spec["externalIPs"] = json!([format!("10.96.0.{}", self.random.random_range(1..4))]);
        }
        if self.chance(0.7) {
            spec["selector"] = json!({"app": self.one(&["web", "cart"])});
        }
        if self.chance(0.3) {
            spec["trafficDistribution"] = json!("PreferSameZone");
        }
        json!({"metadata": {"name": self.one(&["s", "t"]), "namespace": self.namespace()}, "spec": spec})
    }

    fn slice(&mut self) -> Value {
        let endpoints: Vec<Value> = (0..self.random.random_range(0..3))
            .map(|_| json!({"addresses": [self.ip()], "conditions": {"ready": self.chance(0.8)}}))
            .collect();
        json!({
            "metadata": {
                "name": self.one(&["s-1", "s-2", "t-1"]), "namespace": self.namespace(),
                "labels": {"kubernetes.io/service-name": self.one(&["s", "t"])},
            },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        })
    }

    fn policy(&mut self, kind: Kind) -> Value {
        let namespace = self.namespace();
        let selector = json!({"matchLabels": {"app": self.one(&["web", "cart"])}});
        let mut spec = match kind {
            Kind::PeerPolicy => json!({
                "mtls": {"mode": self.one(&["Strict", "Permissive"]), "allowOptOut": self.chance(0.5)},
                "egress": self.one(&["Refuse", "Allow", "Nonsense"]),
            }),
            _ => json!({"action": self.one(&["ALLOW", "DENY", "NONSENSE"]), "rules": [{}]}),
        };
        if self.chance(0.5) {
            spec["selector"] = selector;
        }
        json!({"metadata": {"name": self.one(&["p", "q"]), "namespace": namespace}, "spec": spec})
    }

    fn traffic(&mut self) -> Value {
        let mut target = json!({"group": "", "kind": "Service", "name": self.one(&["s", "t"])});
        if self.chance(0.3) {
            target["sectionName"] = json!(self.one(&["http", "other"]));
        }
        let targets = if self.chance(0.3) {
            json!([target, {"group": "", "kind": "Service", "name": "t"}])
        } else {
            json!([target])
        };
        json!({
            "metadata": {"name": self.one(&["p", "q"]), "namespace": self.namespace()},
            "spec": {"targetRefs": targets, "loadBalancing": {"type": "RoundRobin"}},
        })
    }

    fn route(&mut self) -> Value {
        let service = |name: &str| json!({"group": "", "kind": "Service", "name": name, "port": 80});
        json!({
            "metadata": {"name": self.one(&["r", "s"]), "namespace": self.namespace(), "generation": 1},
            "spec": {
                "parentRefs": [service(self.one(&["s", "t"]))],
                "rules": [{"backendRefs": [service(self.one(&["s", "t", "none"]))]}],
            },
        })
    }

    fn capture_state(&mut self) -> Value {
        let node = self.one(&["node-a", "node-b"]);
        let pods: Vec<Value> = (0..self.random.random_range(0..4))
            .map(|_| {
                let uid = format!("uid-{}-{}", self.namespace(), self.one(&["a", "b", "c"]));
                json!({"uid": uid, "name": "shop/a", "generation": 1, "wire": ["h2"]})
            })
            .collect();
        json!({"metadata": {"name": self.one(&[node, node, "other"])}, "spec": {"node": node, "pods": pods}})
    }

    /// An object of a kind, as likely as what changes in a cluster.
    fn object(&mut self) -> (Kind, Value) {
        match self.random.random_range(0..16) {
            0..4 => (Kind::Pod, self.pod()),
            4 | 5 => (Kind::Service, self.service()),
            6..9 => (Kind::EndpointSlice, self.slice()),
            9 => {
                let labels = if self.chance(0.5) { json!({"mesh-agent.io/mode": "enabled"}) } else { json!({}) };
                (Kind::Namespace, json!({"metadata": {"name": self.namespace(), "labels": labels}}))
            }
            10 => {
                let labels = json!({"topology.kubernetes.io/zone": self.one(&["z1", "z2"])});
                (Kind::Node, json!({"metadata": {"name": self.one(&["node-a", "node-b"]), "labels": labels}}))
            }
            11 => (Kind::PeerPolicy, self.policy(Kind::PeerPolicy)),
            12 => (Kind::AuthorizationPolicy, self.policy(Kind::AuthorizationPolicy)),
            13 => (Kind::TrafficPolicy, self.traffic()),
            14 => (Kind::Route(RouteKind::Http), self.route()),
            _ => (Kind::CaptureState, self.capture_state()),
        }
    }

    fn local(&mut self) -> Event {
        let mut local = LocalPods::default();
        for _ in 0..self.random.random_range(0..3) {
            let uid = format!("uid-{}-{}", self.namespace(), self.one(&["a", "b", "c"]));
            let standing = LocalPod::Standing {
                netns: "/run/netns/n".into(),
                addresses: vec![self.ip().parse().expect("an address")],
            };
            local.insert(uid.into(), if self.chance(0.3) { LocalPod::Gone } else { standing });
        }
        Event::Local(Arc::new(local))
    }

    fn event(&mut self) -> Event {
        let (kind, value) = self.object();
        let version = kind.api().1.first().copied().expect("a version");
        match self.random.random_range(0..20) {
            0 => self.local(),
            1..5 => Event::Removed(key(kind, &value)),
            5 if self.chance(0.2) => Event::Away(kind, "gone fishing".to_owned()),
            6 if self.chance(0.2) => {
                let all = [value, self.object_of(kind)];
                Event::Listed(kind, all.map(|value| read(kind, version, value, false)).into())
            }
            _ => {
                let (key, reading) = read(kind, version, value, false);
                Event::Put(key, reading)
            }
        }
    }

    fn object_of(&mut self, wanted: Kind) -> Value {
        loop {
            let (kind, value) = self.object();
            if kind == wanted {
                return value;
            }
        }
    }
}

#[test]
fn what_is_compiled_of_the_changes_is_what_everything_gives() {
    let (mut workloads, mut services, mut problems, mut routes) = (0, 0, 0, 0);
    for seed in 0..40 {
        let mut world = World { random: SmallRng::seed_from_u64(seed) };
        let mut store = Store::new(&watched(), "node-a", DOMAIN);
        watched().into_iter().for_each(|kind| store.apply(Event::Listed(kind, vec![])));
        // Pods of no concern: what changes is a small part of all.
        for at in 0..60 {
            let metadata = json!({"name": format!("z{at}"), "namespace": "quiet", "uid": format!("quiet-{at}")});
            let value = json!({
                "metadata": metadata, "spec": {"nodeName": "node-c", "containers": []},
                "status": {"podIP": format!("10.9.0.{at}")},
            });
            let (key, reading) = read(Kind::Pod, "v1", value, false);
            store.apply(Event::Put(key, reading));
        }
        for step in 0..150 {
            let mut told = Vec::new();
            for _ in 0..world.random.random_range(1..4) {
                let event = world.event();
                told.push(format!("{event:?}"));
                store.apply(event);
            }
            let Some(parts) = store.compile() else { continue };
            let anew = store.compile_anew(DOMAIN);
            let at = format!("seed {seed}, step {step}: {}", told.join("\n"));
            assert_eq!(parts.problems, anew.problems, "{at}");
            assert_eq!(parts.workloads, anew.workloads, "{at}");
            assert_eq!(parts.services, anew.services, "{at}");
            assert_eq!(parts.udp_services, anew.udp_services, "{at}");
            assert_eq!((&parts.routes, &parts.route_statuses), (&anew.routes, &anew.route_statuses), "{at}");
            assert!(parts == anew, "{at}");
            workloads += parts.workloads.len();
            services += parts.services.len();
            problems += parts.problems.len();
            routes += parts.routes.len();
        }
    }
    // The world is one in which there is something to get wrong.
    assert!(
        workloads > 100_000 && services > 5_000 && problems > 20_000 && routes > 500,
        "{workloads} {services} {problems} {routes}"
    );
}
