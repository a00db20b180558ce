//! Routes and traffic policies as they were compiled.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Wanted, spare};
use crate::model::route::{Backend, Candidate, Filter, HeaderEdit, PathEdit, PortRoutes, Rule, Target};
use crate::model::traffic::{Balancing, HashKey, Traffic};
use crate::route::l7;

/// Those of a Service port are wanted with the Service, and with each route whose rules are there.
pub(super) fn are_wanted(at: &PortRoutes, wanted: &Wanted) -> bool {
    let of_route = |candidate: &Candidate| {
        let route = &candidate.rule.id.route;
        wanted.is(&route.namespace, &route.name)
    };
    wanted.is(&at.service.namespace, &at.service.name) || at.candidates.iter().any(of_route)
}

pub(super) fn document(at: &PortRoutes) -> Value {
    spare(json!({
        "service": at.service.to_string(),
        "kind": at.kind.as_str(),
        "forClientsOf": at.consumer.as_deref(),
        // The one that is preferred first.
        "matches": at.candidates.iter().map(|candidate| matched(at, candidate)).collect::<Vec<_>>(),
    }))
}

fn matched(at: &PortRoutes, Candidate { matching, rule }: &Candidate) -> Value {
    let Rule { id, filters, backends, timeouts, retry } = &**rule;
    let retry = retry.as_ref().map(|retry| {
        let codes: Vec<u16> = retry.codes.iter().map(http::StatusCode::as_u16).collect();
        json!({"attempts": retry.attempts, "codes": codes, "backoff": duration(retry.backoff)})
    });
    spare(json!({
        "rule": id.to_string(),
        "when": at.kind.is_l7().then(|| l7::describe(matching)),
        "filters": filters.iter().map(filter).collect::<Vec<_>>(),
        "backends": backends.iter().map(backend).collect::<Vec<_>>(),
        "requestTimeout": timeouts.request.map(duration),
        "attemptTimeout": timeouts.backend_request.map(duration),
        "retry": retry,
    }))
}

fn backend(backend: &Backend) -> Value {
    let (to, refused) = match &backend.target {
        Target::Service(service) => (Some(service.to_string()), None),
        Target::Invalid { reason, message } => (None, Some(format!("{}: {message}", reason.as_str()))),
    };
    let filters: Vec<String> = backend.filters.iter().map(filter).collect();
    spare(json!({"to": to, "refused": refused, "weight": backend.weight, "filters": filters}))
}

fn filter(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(edit) => format!("request headers: {}", header_edit(edit)),
        Filter::ResponseHeaders(edit) => format!("answer's headers: {}", header_edit(edit)),
        Filter::Rewrite(rewrite) => {
            let host = rewrite.hostname.as_ref().map(|host| format!("host {host}"));
            let path = rewrite.path.as_ref().map(path_edit);
            format!("rewritten to {}", host.into_iter().chain(path).collect::<Vec<_>>().join(", "))
        }
        Filter::Redirect(redirect) => {
            let scheme = redirect.scheme.map(|scheme| scheme.as_str().to_owned());
            let host = redirect.hostname.as_ref().map(|host| format!("host {host}"));
            let port = redirect.port.map(|port| format!("port {port}"));
            let path = redirect.path.as_ref().map(path_edit);
            let to: Vec<String> = [scheme, host, port, path].into_iter().flatten().collect();
            format!("redirected with {} to {}", redirect.status.as_u16(), to.join(", "))
        }
        Filter::Mirror(mirror) => {
            let to = match &mirror.target {
                Target::Service(service) => service.to_string(),
                Target::Invalid { message, .. } => format!("nowhere: {message}"),
            };
            format!("{} of {} copied to {to}", mirror.numerator, mirror.denominator)
        }
        Filter::Cors(cors) => {
            let credentials = if cors.credentials { ", with credentials" } else { "" };
            format!("CORS for {} origins{credentials}", cors.origins.len())
        }
        Filter::Unsupported(name) => format!("{name}: not known to this version, answered 500"),
    }
}

/// The names alone: a value may be a credential.
fn header_edit(edit: &HeaderEdit) -> String {
    let words = |verb: &str, names: Vec<&str>| (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")));
    let set = words("set", edit.set.iter().map(|(name, _)| name.as_str()).collect());
    let add = words("add", edit.add.iter().map(|(name, _)| name.as_str()).collect());
    let remove = words("remove", edit.remove.iter().map(http::HeaderName::as_str).collect());
    [set, add, remove].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn path_edit(edit: &PathEdit) -> String {
    match edit {
        PathEdit::Full(path) => format!("path {path}"),
        PathEdit::Prefix { matched, replacement } => format!("path with {replacement} for {matched}"),
    }
}

/// What a `TrafficPolicy` says of a Service port.
pub(super) fn traffic(traffic: &Traffic) -> Value {
    let balancing = match &traffic.balancing {
        Balancing::PeakEwma => "PeakEWMA".to_owned(),
        Balancing::LeastRequest => "LeastRequest".to_owned(),
        Balancing::RoundRobin => "RoundRobin".to_owned(),
        Balancing::Hash(HashKey::Header(name)) => format!("Hash of header {name}"),
        Balancing::Hash(HashKey::Cookie(name)) => format!("Hash of cookie {name}"),
        Balancing::Hash(HashKey::Source) => "Hash of the client's address".to_owned(),
    };
    let ejection = traffic.ejection.map(|ejection| {
        json!({
            "consecutive": ejection.consecutive,
            "base": duration(ejection.base),
            "max": duration(ejection.max),
            "minHealthPercent": ejection.min_health_percent,
        })
    });
    let budget = traffic.budget;
    spare(json!({
        "balancing": balancing,
        "retryBudget": {
            "percent": budget.percent,
            "interval": duration(budget.interval),
            "minCount": budget.min_count,
            "minInterval": duration(budget.min_interval),
        },
        "outlierDetection": ejection,
    }))
}

fn duration(duration: Duration) -> String {
    format!("{duration:?}")
}
