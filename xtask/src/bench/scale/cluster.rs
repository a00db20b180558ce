//! A generated cluster, as an API server has it: every pod enrolled and captured, every Service with its slice.

use anyhow::Result;
use mesh_tests::kube_api::ApiServer;
use serde_json::{Value, json};

/// How big it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub nodes: usize,
    pub pods: usize,
    pub services: usize,
    pub policies: usize,
}

/// As many pods to a namespace.
const PODS_OF_A_NAMESPACE: usize = 500;
/// As many pods to a Deployment, with one service account and one Service.
const PODS_OF_AN_APP: usize = 5;
/// The kubelet's own limit is 110.
const ZONES: usize = 3;

impl Size {
    fn namespaces(&self) -> usize {
        self.pods.div_ceil(PODS_OF_A_NAMESPACE)
    }

    fn apps(&self) -> usize {
        self.pods.div_ceil(PODS_OF_AN_APP)
    }
}

/// Puts all of it there.
pub fn put(api: &ApiServer, size: &Size) -> Result<()> {
    for at in 0..size.namespaces() {
        let labels = json!({"mesh-agent.io/mode": "enabled", "kubernetes.io/metadata.name": namespace(at)});
        api.put_object(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace(at), "labels": labels}}))?;
    }
    for at in 0..size.nodes {
        api.put_object(node(at))?;
        api.put_object(capture_state(at, size))?;
    }
    (0..size.pods).try_for_each(|at| api.put_object(pod(at, size)))?;
    for at in 0..size.services {
        api.put_object(service(at, size))?;
        api.put_object(slice(at, size, true))?;
    }
    (0..size.policies).try_for_each(|at| api.put_object(policy(at, size)))
}

fn namespace(at: usize) -> String {
    format!("team-{at:04}")
}

/// The namespace of an app.
fn home(app: usize) -> String {
    namespace(app * PODS_OF_AN_APP / PODS_OF_A_NAMESPACE)
}

fn node_name(at: usize) -> String {
    format!("worker-{at:05}")
}

fn ip(pod: usize) -> String {
    format!("10.{}.{}.{}", 64 + pod / 65_536, pod / 256 % 256, pod % 256)
}

fn uid(pod: usize) -> String {
    format!("6c1f0d1e-7b1c-4b7e-9d2a-{pod:012}")
}

fn node(at: usize) -> Value {
    let labels = json!({"topology.kubernetes.io/zone": format!("zone-{}", at % ZONES), "kubernetes.io/os": "linux"});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node_name(at), "labels": labels},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

fn pod(at: usize, size: &Size) -> Value {
    let app = at / PODS_OF_AN_APP;
    let name = format!("app-{app:05}-6d4cf56db6-{at:06}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": home(app), "uid": uid(at), "generateName": format!("app-{app:05}-6d4cf56db6-"),
            "labels": {"app": format!("app-{app:05}"), "pod-template-hash": "6d4cf56db6", "team": home(app)},
            "annotations": {"prometheus.io/scrape": "true", "example.com/revision": "12"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": format!("app-{app:05}-6d4cf56db6"), "uid": "0f0f0f0f-0000-4000-8000-000000000000"}],
        },
        "spec": {
            "nodeName": node_name(at % size.nodes), "serviceAccountName": format!("app-{app:05}"),
            "containers": [{"name": "main", "image": format!("registry.example/app-{app:05}:1.2.3"),
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true}]}],
            "volumes": [{"name": "token", "projected": {"sources": []}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        },
        "status": {
            "phase": "Running", "podIP": ip(at), "podIPs": [{"ip": ip(at)}], "hostIP": "192.0.2.1",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        },
    })
}

fn capture_state(at: usize, size: &Size) -> Value {
    let pods = (at..size.pods).step_by(size.nodes);
    let pods: Vec<Value> = pods
        .map(|pod| {
            json!({"uid": uid(pod), "name": format!("{}/{pod}", home(pod / PODS_OF_AN_APP)),
            "generation": 1, "wire": ["mesh-raw/1", "h2"]})
        })
        .collect();
    json!({"apiVersion": "mesh-agent.io/v1alpha1", "kind": "CaptureState", "metadata": {"name": node_name(at)},
        "spec": {"node": node_name(at), "pods": pods}})
}

/// The app that a Service is for: several may be for one.
fn app_of(service: usize, size: &Size) -> usize {
    service % size.apps()
}

fn service(at: usize, size: &Size) -> Value {
    let app = app_of(at, size);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("svc-{at:05}"), "namespace": home(app)},
        "spec": {"clusterIP": format!("10.{}.{}.{}", 32 + at / 65_536, at / 256 % 256, at % 256),
            "selector": {"app": format!("app-{app:05}")}, "type": "ClusterIP",
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}})
}

/// The slice of a Service; its first endpoint is ready or not.
pub fn slice(at: usize, size: &Size, first_is_ready: bool) -> Value {
    let app = app_of(at, size);
    let pods = (app * PODS_OF_AN_APP)..((app + 1) * PODS_OF_AN_APP).min(size.pods);
    let endpoints: Vec<Value> = pods
        .enumerate()
        .map(|(place, pod)| {
            let ready = first_is_ready || place > 0;
            json!({"addresses": [ip(pod)], "nodeName": node_name(pod % size.nodes),
                "zone": format!("zone-{}", pod % size.nodes % ZONES),
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "targetRef": {"kind": "Pod", "name": format!("app-{app:05}-{pod:06}"), "namespace": home(app)}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("svc-{at:05}-abcde"), "namespace": home(app),
            "labels": {"kubernetes.io/service-name": format!("svc-{at:05}")}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

/// Who may call an app: two others, on one port.
fn policy(at: usize, size: &Size) -> Value {
    let app = at % size.apps();
    let caller = |other: usize| {
        let account =
            json!({"name": format!("app-{:05}", other % size.apps()), "namespace": home(other % size.apps())});
        json!({"type": "ServiceAccount", "serviceAccount": account})
    };
    json!({"apiVersion": "mesh-agent.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": format!("allow-{at:05}"), "namespace": home(app)},
        "spec": {"action": "ALLOW",
            "targetRefs": [{"kind": "Pod", "selector": {"matchLabels": {"app": format!("app-{app:05}")}}}],
            "rules": [{"sources": [caller(app + 1), caller(app + 2)], "networkAttributes": {"ports": [8080]}}]}})
}
