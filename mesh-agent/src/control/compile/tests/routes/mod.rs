//! Routes from YAML to what a request becomes: objects, snapshot, matching and filters together.

mod attachment;
mod conformance;
mod explained;
mod manifests;
mod precedence;
mod scope;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use http::request::Parts;
use http::{HeaderMap, Request};

use super::*;
use crate::model::route::{Rule, RuleId, Scheme};
use crate::route::weights::SmoothWeights;
use crate::route::{Dialled, RequestView, Step, begin};
use crate::snapshot::Snapshot;

/// The namespace of the services, and one that only has clients.
pub(super) const MESH: &str = "gateway-conformance-mesh";
pub(super) const CONSUMER: &str = "gateway-conformance-mesh-consumer";

/// The base objects of the mesh suite: three Services over two pods of one namespace, and a client in another.
fn base() -> String {
    let mut text = String::new();
    for (name, ip) in [("echo-v1", "10.0.0.1"), ("echo-v2", "10.0.0.2")] {
        let version = name.strip_prefix("echo-").unwrap();
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-abc12-x1y2z, namespace: {MESH}, uid: {name}, \
             labels: {{app: echo, version: {version}}}}}\nspec: {{nodeName: node-a}}\nstatus: {{podIP: {ip}}}\n"
        );
    }
    for (name, ip, selector) in [
        ("echo", "10.96.0.1", "app: echo"),
        ("echo-v1", "10.96.0.2", "app: echo, version: v1"),
        ("echo-v2", "10.96.0.3", "app: echo, version: v2"),
    ] {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {MESH}}}\n\
             spec:\n  clusterIP: {ip}\n  \
             selector: {{{selector}}}\n  ports:\n  - {{name: http, port: 80, targetPort: 8080, appProtocol: http}}\n  \
             - {{name: http-alt, port: 8080, appProtocol: http}}\n  - {{name: https, port: 443, targetPort: 8443}}\n  \
             - {{name: tcp, port: 9090}}\n  - {{name: grpc, port: 7070, appProtocol: grpc}}\n"
        );
    }
    text
}

/// A snapshot of the base objects and `manifest`, with the weights' state that the balance room would keep.
pub(super) struct World {
    pub(super) snapshot: Snapshot,
    weights: RefCell<HashMap<RuleId, SmoothWeights>>,
}

/// What became of a request.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// `namespace/service:port` whose endpoints got it; `direct` without a route.
    pub(super) backend: String,
    /// Path and query as the backend gets them.
    pub(super) target: String,
    /// The request's headers as the backend gets them.
    pub(super) sent: HeaderMap,
    /// The answer's headers; the backend itself sets none.
    pub(super) answer: HeaderMap,
    /// `namespace/service:port` of each copy.
    pub(super) mirrored: Vec<String>,
}

/// A request in the making. `to` is `service:port` of [`MESH`], or an address and port.
#[derive(Clone, Debug)]
pub(super) struct Call {
    from: &'static str,
    to: String,
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
}

/// A GET of `path` to `echo:80` from the mesh's namespace.
pub(super) fn get(path: &str) -> Call {
    let host = vec![("host".to_owned(), "echo".to_owned())];
    Call { from: MESH, to: "echo:80".to_owned(), method: "GET", path: path.to_owned(), headers: host }
}

impl Call {
    pub(super) fn to(self, to: &str) -> Self {
        let host = to.split(':').next().unwrap_or_default().to_owned();
        Self { to: to.to_owned(), ..self }.host(&host)
    }

    pub(super) fn host(mut self, host: &str) -> Self {
        self.headers.retain(|(name, _)| name != "host");
        self.header("host", host)
    }

    pub(super) fn from(self, from: &'static str) -> Self {
        Self { from, ..self }
    }

    pub(super) fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn parts(&self) -> Parts {
        let mut request = Request::builder().method(self.method).uri(&self.path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(()).expect("a request").into_parts().0
    }
}

impl World {
    pub(super) fn new(manifest: &str) -> Self {
        let parts = one(&format!("{}---\n{manifest}", base()));
        Self { snapshot: Snapshot::new(1, parts), weights: RefCell::default() }
    }

    /// One whose manifest has no mistakes.
    #[track_caller]
    pub(super) fn good(manifest: &str) -> Self {
        let world = Self::new(manifest);
        assert_eq!(world.snapshot.problems()[..], []);
        world
    }

    fn pick(&self, rule: &Rule) -> Option<usize> {
        let mut weights = self.weights.borrow_mut();
        let state = weights.entry(rule.id.clone()).or_default();
        state.pick(rule.backends.iter().map(|backend| backend.weight))
    }

    /// What the driver would do, without the wire.
    #[track_caller]
    pub(super) fn send(&self, call: &Call) -> Reply {
        let mut parts = call.parts();
        let (name, port) = call.to.rsplit_once(':').expect("a port");
        let port: u16 = port.parse().expect("a port");
        let by_vip = name.parse().ok().map(|ip| self.snapshot.service_by_vip(SocketAddr::new(ip, port)));
        let reference = || crate::model::route::ServiceRef { namespace: MESH.into(), name: name.into(), port };
        let service = by_vip.unwrap_or_else(|| self.snapshot.service(&reference()));
        let routes = service.and_then(|service| self.snapshot.routes_for(service, call.from));
        let Some(routes) = routes else {
            return Reply::of(200, "direct".to_owned(), &parts);
        };
        let dialled = Dialled { port, scheme: Scheme::Http };
        let original = parts.clone();
        match begin(routes, &RequestView::of(&original), dialled, |rule| self.pick(rule)) {
            Step::Answer(answer) => {
                let reply = Reply::of(answer.status.as_u16(), answer.reason.as_str().to_owned(), &parts);
                Reply { answer: answer.headers, ..reply }
            }
            Step::Forward(forward) => {
                forward.edit_request(&mut parts).expect("a URI");
                let mut reply = Reply::of(200, forward.target.to_string(), &parts);
                forward.edit_response(&mut reply.answer);
                reply.mirrored = forward.mirrors(|_| 0).iter().map(|to| to.to_string()).collect();
                let endpoints = self.snapshot.service(forward.target).map_or(0, |service| service.endpoints.len());
                if endpoints == 0 { Reply { status: 503, ..reply } } else { reply }
            }
        }
    }

    /// Shares of 500 requests, by backend.
    pub(super) fn shares(&self, call: &Call) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..500 {
            *shares.entry(self.send(call).backend).or_insert(0) += 1;
        }
        shares
    }

    /// `Accepted` and `ResolvedRefs` of the route's parents, as `parent: True Accepted, False BackendNotFound`.
    pub(super) fn conditions(&self, route: &str) -> Vec<String> {
        let of = self.snapshot.route_statuses().iter().filter(|status| &*status.route.name == route);
        let word = |condition: &crate::model::route::Condition| {
            format!("{} {}", if condition.holds { "True" } else { "False" }, condition.reason.as_str())
        };
        let line = |parent: &crate::model::route::ParentStatus| {
            format!("{}: {}, {}", parent.parent, word(&parent.accepted), word(&parent.resolved_refs))
        };
        of.flat_map(|status| &status.parents).map(line).collect()
    }
}

impl Reply {
    fn of(status: u16, backend: String, parts: &Parts) -> Self {
        let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let (sent, answer, mirrored) = (parts.headers.clone(), HeaderMap::new(), Vec::new());
        Self { status, backend, target, sent, answer, mirrored }
    }

    /// All values of a header, joined as the suite joins them; empty when absent.
    pub(super) fn joined(headers: &HeaderMap, name: &str) -> String {
        let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap());
        values.collect::<Vec<_>>().join(",")
    }

    pub(super) fn sent(&self, name: &str) -> String {
        Self::joined(&self.sent, name)
    }

    pub(super) fn answered(&self, name: &str) -> String {
        Self::joined(&self.answer, name)
    }

    /// The backend without namespace and port.
    pub(super) fn service(&self) -> &str {
        let name = self.backend.rsplit_once('/').map_or(&*self.backend, |(_, name)| name);
        name.split(':').next().unwrap_or_default()
    }
}

/// A route of [`MESH`]; `spec` in flow style without its braces.
pub(super) fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}

/// A reference to port 80 of `echo` as a parent, in flow style.
pub(super) const ECHO: &str = "{group: '', kind: Service, name: echo, port: 80}";

/// An HTTPRoute of [`MESH`] on `echo:80` with these rules.
pub(super) fn http(name: &str, rules: &str) -> String {
    route("HTTPRoute", MESH, name, &format!("parentRefs: [{ECHO}], rules: [{rules}]"))
}
