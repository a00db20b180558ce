//! Authorization policies as they were compiled.

use serde_json::{Value, json};

use super::spare;
use crate::model::policy::{IdentityMatch, Policy, RequestMatch, Rule, Source, Target};
use crate::model::route::TextMatch;
use crate::model::selector::{LabelSelector, Operator, Requirement};
use crate::route::l7;

pub(super) fn document(policy: &Policy) -> Value {
    let target = match &policy.target {
        Target::Mesh => json!("every pod of the mesh"),
        Target::Namespace(namespace) => json!(format!("every pod of namespace {namespace}")),
        Target::Selector { namespace, labels } => json!(format!("pods of {namespace} with {}", selector(labels))),
    };
    spare(json!({
        "namespace": &*policy.namespace,
        "name": &*policy.name,
        "action": policy.action.to_string(),
        "target": target,
        // Of a broken one: everybody is refused.
        "broken": policy.broken.as_deref(),
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
    }))
}

fn selector(selector: &LabelSelector) -> String {
    let labels = selector.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.expressions.iter().map(|Requirement { key, operator }| match operator {
        Operator::In(values) => format!("{key} in ({})", values.join(", ")),
        Operator::NotIn(values) => format!("{key} notin ({})", values.join(", ")),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    });
    let all: Vec<String> = labels.chain(expressions).collect();
    if all.is_empty() { "any labels".to_owned() } else { all.join(", ") }
}

fn rule(rule: &Rule) -> Value {
    // Absent and empty are not the same here: anybody, and nobody.
    let sources = rule.sources.as_ref().map_or_else(
        || json!("anybody, proven or not"),
        |sources| match sources.as_slice() {
            [] => json!("nobody"),
            sources => Value::Array(sources.iter().map(source).collect()),
        },
    );
    spare(json!({"sources": sources, "ports": rule.ports, "requests": rule.requests.as_ref().map(requests)}))
}

fn source(source: &Source) -> Value {
    let cidrs = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    spare(json!({
        "identity": source.identity.as_ref().map(identity),
        "cidrs": source.cidrs.as_deref().map(cidrs),
        "notCidrs": cidrs(&source.not_cidrs),
    }))
}

fn identity(matched: &IdentityMatch) -> String {
    match matched {
        IdentityMatch::ServiceAccount { namespace, name } => format!("service account {namespace}/{name}"),
        IdentityMatch::Namespace(namespace) => format!("any service account of {namespace}"),
        IdentityMatch::Spiffe(id) => id.to_string(),
        IdentityMatch::Not(others) => {
            format!("none of: {}", others.iter().map(identity).collect::<Vec<_>>().join("; "))
        }
    }
}

fn requests(requests: &RequestMatch) -> Value {
    let RequestMatch { methods, paths, hosts, headers } = requests;
    let header = |name: &http::HeaderName, value: &TextMatch| format!("{name} {}", l7::text(value));
    spare(json!({
        "methods": methods.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "paths": paths.as_ref().map(|all| all.iter().map(l7::path_text).collect::<Vec<_>>()),
        "hosts": hosts.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "headers": headers.iter().map(|wanted| header(&wanted.name, &wanted.value)).collect::<Vec<_>>(),
    }))
}
