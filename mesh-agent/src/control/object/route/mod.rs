//! HTTPRoute, GRPCRoute, TLSRoute and TCPRoute: each rule read for itself.
//!
//! A rule with a field that is wrong or unknown is dropped and named: an unknown match or filter field could widen
//! it. The other rules stay (design §5). Defaults are those of the CRDs, and so are the limits and CEL rules: the
//! directory source has no API server that holds them. Whether parents and backends are there is
//! [`crate::control::compile`]'s to see.

mod backend;
mod cors;
pub(super) mod duration;
mod filter;
mod grpc_rule;
mod http_rule;
mod matching;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::decode::{Mistake, decode};
use super::meta;
use crate::model::route::{HeaderMatch, Match, ParentRef, PathMatch, RouteKind, RouteName, Rule, RuleId, Timeouts};

pub(super) use self::http_rule::RawPath;
pub(super) use self::matching::RawNamed;

/// The API group of routes.
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The CRDs' limits.
const MAX_PARENTS: usize = 32;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_MATCHES_OF_A_ROUTE: usize = 128;

/// A route object.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct Route {
    pub(in crate::control) name: RouteName,
    /// Seconds since 1970.
    pub(in crate::control) created: Option<i64>,
    /// `metadata.generation`; 0 where there is none.
    pub(in crate::control) generation: i64,
    /// Parents that are Services; all others are another controller's.
    pub(in crate::control) parents: Vec<ParentRef>,
    /// The rules that could be read. Backend references are not resolved yet; none means the parent's own endpoints.
    pub(in crate::control) rules: Vec<RouteRule>,
    /// What is wrong with rules: dropped ones, and ones of which something does not work.
    pub(in crate::control) flaws: Vec<Arc<str>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct RouteRule {
    /// Alternatives; never empty.
    pub(in crate::control) matches: Vec<Match>,
    pub(in crate::control) rule: Rule,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: Spec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    parent_refs: Option<Vec<Value>>,
    /// Without effect on Service parents (GEP-1294).
    #[serde(rename = "hostnames")]
    _hostnames: Option<Vec<String>>,
    rules: Option<Vec<Value>>,
    /// For Gateways.
    #[serde(rename = "useDefaultGateways")]
    _use_default_gateways: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawParent {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<u16>,
}

/// What is wrong with a rule: all of it that could be seen.
#[derive(Debug)]
struct Mistakes(Vec<Mistake>);

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

type Checked<T> = Result<T, Mistakes>;

impl Mistakes {
    fn first(self) -> Mistake {
        self.0.into_iter().next().unwrap_or_else(|| Mistake::new("", "unreadable"))
    }
}

/// A path to compare with, for other kinds of object.
pub(super) fn check_path(field: &str, raw: RawPath) -> Result<PathMatch, Mistake> {
    http_rule::path(field, raw).map_err(Mistakes::first)
}

/// Headers to compare with, for other kinds of object.
pub(super) fn check_headers(field: &str, raw: Vec<RawNamed>) -> Result<Vec<HeaderMatch>, Mistake> {
    matching::headers(field, raw).map_err(Mistakes::first)
}

/// A host in lower case, for other kinds of object.
pub(super) fn check_host(field: &str, host: &str) -> Result<(), Mistake> {
    matching::hostname(field, host).map_err(Mistakes::first)
}

fn wrong<T>(field: &str, reason: impl std::fmt::Display) -> Checked<T> {
    Err(Mistake::new(field, reason).into())
}

/// Decodes the part of an object at `field`; an unknown field is as bad as a wrong one.
fn part<T: DeserializeOwned>(field: &str, value: &Value) -> Checked<T> {
    let (part, unknown) = decode::<T>(value);
    let below = |mistake: Mistake| Mistake {
        field: if mistake.field.is_empty() { field.to_owned() } else { format!("{field}.{}", mistake.field) },
        reason: mistake.reason,
    };
    match part {
        Ok(part) if unknown.is_empty() => Ok(part),
        Ok(_) => Err(Mistakes(unknown.into_iter().map(below).collect())),
        Err(mistake) => Err(Mistakes(unknown.into_iter().chain([mistake]).map(below).collect())),
    }
}

fn at_most(field: &str, length: usize, most: usize) -> Checked<()> {
    if length > most { wrong(field, format!("{length} entries; the most is {most}")) } else { Ok(()) }
}

/// A rule being read.
struct Reader<'a> {
    kind: RouteKind,
    /// The route's namespace, of references without one.
    namespace: &'a Arc<str>,
    /// What of the rule does not work although the rule stays.
    flaws: Vec<Mistake>,
}

/// Reads a route of `kind`; `repeated` are the paths of keys that stand twice.
pub(super) fn read(
    kind: RouteKind,
    value: &Value,
    repeated: &[String],
    mistakes: &mut Vec<Mistake>,
) -> Result<Route, Mistake> {
    let (raw, unknown) = decode::<Raw>(value);
    let Raw { metadata, spec, .. } = raw?;
    mistakes.extend(unknown);
    let name = RouteName { kind, namespace: meta::namespace(&metadata), name: meta::name(&metadata) };
    let parents = parents(&spec.parent_refs.unwrap_or_default(), &name.namespace, mistakes)?;
    let mut route = Route {
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        generation: metadata.generation.unwrap_or(0),
        parents,
        rules: Vec::new(),
        flaws: Vec::new(),
        name,
    };
    let rules = spec.rules.unwrap_or_else(|| default_rules(kind));
    if rules.is_empty() || rules.len() > MAX_RULES {
        return Err(Mistake::new("spec.rules", format!("{} rules: 1 to {MAX_RULES} are needed", rules.len())));
    }
    for (index, value) in rules.iter().enumerate() {
        route.read_rule(index, value, repeated, mistakes);
    }
    Ok(route)
}

/// Only HTTPRoute has one: everything, to the parent itself.
fn default_rules(kind: RouteKind) -> Vec<Value> {
    if kind == RouteKind::Http { vec![serde_json::json!({})] } else { Vec::new() }
}

impl Route {
    fn read_rule(&mut self, index: usize, value: &Value, repeated: &[String], mistakes: &mut Vec<Mistake>) {
        let field = format!("spec.rules[{index}]");
        let own = |path: &&String| path.strip_prefix(&field).is_some_and(|rest| rest.starts_with('.'));
        let twice: Vec<Mistake> = repeated.iter().filter(own).map(|path| Mistake::new(path, "stands twice")).collect();
        let mut reader = Reader { kind: self.name.kind, namespace: &self.name.namespace, flaws: Vec::new() };
        let read = if twice.is_empty() { reader.rule(&field, value) } else { Err(Mistakes(twice)) };
        let flaws = std::mem::take(&mut reader.flaws);
        match read.and_then(|parts| self.name_rule(&field, index, parts)) {
            Ok(rule) => {
                let text = |flaw: &Mistake| Arc::from(format!("{}: {}", flaw.field, flaw.reason));
                self.flaws.extend(flaws.iter().map(text));
                self.rules.push(rule);
                mistakes.extend(flaws);
            }
            Err(Mistakes(found)) => {
                for Mistake { field: at, reason } in found {
                    self.flaws.push(format!("Dropped Rule rules[{index}]: {at}: {reason}").into());
                    mistakes.push(Mistake { field: at, reason: format!("{reason}; rules[{index}] is dropped") });
                }
            }
        }
    }

    /// Gives a rule its name, which no other rule of the route may have.
    fn name_rule(&self, field: &str, index: usize, parts: RuleParts) -> Checked<RouteRule> {
        let RuleParts { name, matches, mut rule } = parts;
        if name.is_some() && self.rules.iter().any(|other| other.rule.id.name == name) {
            return wrong(&format!("{field}.name"), "another rule has this name");
        }
        let so_far: usize = self.rules.iter().map(|rule| rule.matches.len()).sum();
        at_most("spec.rules.matches", so_far + matches.len(), MAX_MATCHES_OF_A_ROUTE)?;
        rule.id = RuleId { route: self.name.clone(), index, name };
        Ok(RouteRule { matches, rule })
    }
}

/// A rule without its place in the route.
struct RuleParts {
    name: Option<Arc<str>>,
    matches: Vec<Match>,
    rule: Rule,
}

impl RuleParts {
    fn new(name: Option<String>, matches: Vec<Match>, kind: RouteKind, namespace: &Arc<str>) -> Self {
        let route = RouteName { kind, namespace: Arc::clone(namespace), name: "".into() };
        let id = RuleId { route, index: 0, name: None };
        let rule = Rule { id, filters: Vec::new(), backends: Vec::new(), timeouts: Timeouts::default(), retry: None };
        Self { name: name.map(Arc::from), matches, rule }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawL4Rule {
    name: Option<String>,
    backend_refs: Vec<Value>,
}

impl Reader<'_> {
    fn rule(&mut self, field: &str, value: &Value) -> Checked<RuleParts> {
        match self.kind {
            RouteKind::Http => self.http_rule(field, value),
            RouteKind::Grpc => self.grpc_rule(field, value),
            RouteKind::Tls | RouteKind::Tcp => self.l4_rule(field, value),
        }
    }

    /// The one rule of a TCPRoute or TLSRoute: every connection of the port.
    fn l4_rule(&mut self, field: &str, value: &Value) -> Checked<RuleParts> {
        if field != "spec.rules[0]" {
            return wrong(field, "a route of this kind has one rule");
        }
        let raw: RawL4Rule = part(field, value)?;
        if raw.backend_refs.is_empty() {
            return wrong(&format!("{field}.backendRefs"), "an empty list: name a backend");
        }
        let everything =
            Match { path: PathMatch::Prefix("/".into()), method: None, headers: Vec::new(), query: Vec::new() };
        let mut parts = RuleParts::new(raw.name, vec![everything], self.kind, self.namespace);
        parts.rule.backends = self.backends(field, &raw.backend_refs, &[])?;
        Ok(parts)
    }
}

/// The parents that are Services. One that cannot be read is dropped: taken leniently it would be every port.
fn parents(refs: &[Value], namespace: &Arc<str>, mistakes: &mut Vec<Mistake>) -> Result<Vec<ParentRef>, Mistake> {
    if refs.len() > MAX_PARENTS {
        return Err(Mistake::new("spec.parentRefs", format!("{} entries; the most is {MAX_PARENTS}", refs.len())));
    }
    let mut parents = Vec::new();
    let mut seen = HashSet::new();
    for (index, value) in refs.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        match part::<RawParent>(&field, value).and_then(|raw| check_parent(&field, raw, namespace)) {
            Ok(Some(parent)) if seen.insert(parent.clone()) => parents.push(parent),
            Ok(Some(_)) => mistakes.push(Mistake::new(&field, "stands twice")),
            Ok(None) => {}
            Err(Mistakes(found)) => mistakes.extend(found),
        }
    }
    Ok(parents)
}

/// What a `parentRef` alone turns out to be.
pub(in crate::control) enum ParentReading {
    /// A Service.
    Ours(ParentRef),
    /// Another controller's.
    Foreign,
    /// Meant to be a Service; why it cannot be used.
    Wrong(String),
}

/// Reads one `parentRef` of a route in `namespace`.
pub(in crate::control) fn read_parent(value: &Value, namespace: &Arc<str>) -> ParentReading {
    let read = part::<RawParent>("parentRef", value).and_then(|raw| check_parent("parentRef", raw, namespace));
    match read {
        Ok(Some(parent)) => ParentReading::Ours(parent),
        // A Gateway with a field that is new to us is not ours to answer.
        Err(Mistakes(found)) if value.get("kind").and_then(Value::as_str) == Some("Service") => {
            ParentReading::Wrong(found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        }
        Ok(None) | Err(_) => ParentReading::Foreign,
    }
}

fn check_parent(field: &str, raw: RawParent, namespace: &Arc<str>) -> Checked<Option<ParentRef>> {
    let group = raw.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let is_service = raw.kind.as_deref() == Some("Service");
    if is_service && group == GATEWAY_GROUP {
        return wrong(&format!("{field}.group"), format!("`{group}` has no Service: a Service needs `group: \"\"`"));
    }
    if !is_service || !group.is_empty() {
        return Ok(None);
    }
    if raw.port == Some(0) {
        return wrong(&format!("{field}.port"), "0 is not a port");
    }
    if raw.name.is_empty() {
        return wrong(&format!("{field}.name"), "missing");
    }
    Ok(Some(ParentRef {
        namespace: raw.namespace.map_or_else(|| Arc::clone(namespace), Arc::from),
        name: raw.name.into(),
        port: raw.port,
        section_name: raw.section_name.map(Arc::from),
    }))
}
