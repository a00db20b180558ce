//! Tables over the pure functions. Whole manifests run through them in `control::compile`'s tests.

mod cors;
mod edits;
mod matching;
mod order;
mod properties;
mod weights;

use std::sync::Arc;

use http::Request;
use http::request::Parts;

use super::*;
use crate::model::route::{Match, PathMatch, RouteKind, RouteName, RuleId, Timeouts};

/// A request's head; a `uri` with an authority is as HTTP/2 has it.
fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn rule(namespace: &str, name: &str, index: usize) -> Rule {
    let route = RouteName { kind: RouteKind::Http, namespace: namespace.into(), name: name.into() };
    let id = RuleId { route, index, name: None };
    Rule { id, filters: vec![], backends: vec![], timeouts: Timeouts::default(), retry: None }
}

fn matching(path: PathMatch) -> Match {
    Match { path, method: None, headers: vec![], query: vec![] }
}

/// One rule for everything, with these filters, to a service.
fn routes(filters: Vec<Filter>) -> PortRoutes {
    let service = ServiceRef { namespace: "shop".into(), name: "web".into(), port: 80 };
    let backend = Backend { target: Target::Service(service.clone()), weight: 1, filters: vec![] };
    let rule = Rule { filters, backends: vec![backend], ..rule("shop", "r", 0) };
    let candidate =
        crate::model::route::Candidate { matching: matching(PathMatch::Prefix("/".into())), rule: Arc::new(rule) };
    PortRoutes { service, consumer: None, kind: RouteKind::Http, candidates: vec![candidate] }
}

const DIALLED: Dialled = Dialled { port: 80, scheme: Scheme::Http };
