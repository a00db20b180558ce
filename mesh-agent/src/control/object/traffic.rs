//! `TrafficPolicy`: how requests to a Service are spread, sent again and kept from endpoints that fail.
//!
//! ```yaml
//! spec:
//!   targetRefs: [{kind: Service, name: cart}]       # of its own namespace; sectionName: the name of a port
//!   loadBalancer:
//!     type: ConsistentHash                          # or PeakEWMA, LeastRequest, RoundRobin
//!     consistentHash: {type: Header, header: {name: x-user}}   # or Cookie, cookie: {name: …}; or SourceIP
//!   retryConstraint: {budget: {percent: 20, interval: 10s}, minRetryRate: {count: 10, interval: 1s}}
//!   outlierDetection: {consecutive5xxErrors: 5, baseEjectionTime: 30s, maxEjectionTime: 5m, minHealthPercent: 50}
//! ```
//!
//! The shapes are those of Envoy Gateway's `BackendTrafficPolicy`, the Gateway API's GEP-3388 and Istio's
//! `outlierDetection`: there is no standard object for all of it. A part with a mistake is as if absent, and named.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::decode::{Mistake, decode};
use super::meta;
use super::route::duration;
use crate::model::traffic::{Balancing, Ejection, HashKey, RetryBudget, Traffic};

/// One `TrafficPolicy`.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct TrafficPolicy {
    pub(in crate::control) namespace: Arc<str>,
    pub(in crate::control) name: Arc<str>,
    /// Services of its namespace.
    pub(in crate::control) targets: Vec<TrafficTarget>,
    pub(in crate::control) traffic: Arc<Traffic>,
}

/// A Service, or one port of it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct TrafficTarget {
    /// Where it stands.
    pub(in crate::control) field: Arc<str>,
    pub(in crate::control) service: Arc<str>,
    /// `sectionName`: the name of the port; `None`: every port.
    pub(in crate::control) port: Option<Arc<str>>,
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

/// How requests to a Service are spread, sent again and kept from endpoints that fail.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    /// Services of the policy's namespace.
    #[schemars(with = "Vec<RawTarget>", length(min = 1, max = 16))]
    target_refs: Vec<Value>,
    /// Absent: PeakEWMA.
    #[schemars(with = "Option<RawBalancer>")]
    load_balancer: Option<Value>,
    /// When an endpoint that fails is left alone; absent: never.
    #[schemars(with = "Option<RawOutlier>")]
    outlier_detection: Option<Value>,
    /// How many requests may be sent again.
    #[schemars(with = "Option<RawConstraint>")]
    retry_constraint: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RawTarget {
    /// Absent or empty.
    #[serde(default)]
    #[schemars(extend("enum" = [""]))]
    group: String,
    /// Only `Service`.
    #[schemars(extend("enum" = ["Service"]))]
    kind: String,
    /// The Service's name.
    #[schemars(length(min = 1, max = 253))]
    name: String,
    /// The name of one port; absent: every port.
    section_name: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.type == 'ConsistentHash') == has(self.consistentHash)",
    "message": "consistentHash belongs to type ConsistentHash, which needs it",
}]))]
struct RawBalancer {
    /// How an endpoint is chosen.
    #[serde(rename = "type")]
    kind: RawBalancing,
    /// What of a request is hashed.
    consistent_hash: Option<RawHash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
enum RawBalancing {
    #[serde(rename = "PeakEWMA")]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    ConsistentHash,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.type != 'Header' || has(self.header)", "message": "type Header needs header"},
    {"rule": "self.type != 'Cookie' || has(self.cookie)", "message": "type Cookie needs cookie"},
]))]
struct RawHash {
    /// What of a request is hashed.
    #[serde(rename = "type")]
    kind: RawKey,
    /// A header.
    header: Option<RawName>,
    /// A cookie.
    cookie: Option<RawName>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
enum RawKey {
    Header,
    Cookie,
    #[serde(rename = "SourceIP")]
    SourceIp,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct RawName {
    /// Its name.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RawConstraint {
    /// A share of the requests.
    budget: Option<RawBudget>,
    /// What may be sent again in any case.
    min_retry_rate: Option<RawRate>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct RawBudget {
    /// Of the requests within the interval.
    #[schemars(range(max = 100))]
    percent: Option<u32>,
    /// From 100ms to 1h.
    #[schemars(with = "Option<Time>")]
    interval: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct RawRate {
    /// Requests within the interval.
    #[schemars(range(max = 1_000_000))]
    count: Option<u32>,
    /// From 100ms to 1h.
    #[schemars(with = "Option<Time>")]
    interval: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RawOutlier {
    /// Answers of 500 and above in a row; absent: 5.
    #[serde(rename = "consecutive5xxErrors")]
    #[schemars(range(min = 1, max = 1_000_000))]
    consecutive: Option<u32>,
    /// Twice as long each further time; absent: 30s.
    #[schemars(with = "Option<Time>")]
    base_ejection_time: Option<String>,
    /// Absent: 5m.
    #[schemars(with = "Option<Time>")]
    max_ejection_time: Option<String>,
    /// Where fewer endpoints are left all are used; absent: 50.
    #[schemars(range(max = 100))]
    min_health_percent: Option<u32>,
}

/// For the schema alone: what [`time`] reads.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = "^([0-9]{1,5}(h|m|s|ms)){1,4}$", "maxLength" = 32, "x-kubernetes-validations" = [{
    "rule": "duration(self) >= duration('100ms') && duration(self) <= duration('1h')",
    "message": "a duration from 100ms to 1h, such as 10s or 1m30s",
}]))]
struct Time(#[expect(dead_code, reason = "the schema of a text")] String);

/// Reads a `TrafficPolicy`; adds what does not work of it to `mistakes`.
pub(super) fn read(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<TrafficPolicy, Mistake> {
    let (raw, unknown) = decode::<Raw>(value);
    let Raw { metadata, spec, .. } = raw?;
    mistakes.extend(unknown);
    if spec.target_refs.is_empty() {
        return Err(Mistake::new("spec.targetRefs", "empty: it is for no Service"));
    }
    let targets = spec.target_refs.iter().enumerate().filter_map(|(at, raw)| target(at, raw, mistakes)).collect();
    let traffic = Traffic {
        balancing: part("spec.loadBalancer", spec.load_balancer, balancing, mistakes).unwrap_or_default(),
        budget: part("spec.retryConstraint", spec.retry_constraint, budget, mistakes).unwrap_or_default(),
        ejection: part("spec.outlierDetection", spec.outlier_detection, ejection, mistakes),
    };
    let (namespace, name) = (meta::namespace(&metadata), meta::name(&metadata));
    Ok(TrafficPolicy { namespace, name, targets, traffic: Arc::new(traffic) })
}

/// One part of the spec; `None` when it is not there or does not work.
fn part<R: DeserializeOwned, T>(
    field: &str,
    value: Option<Value>,
    check: impl FnOnce(&str, R) -> Result<T, Mistake>,
    mistakes: &mut Vec<Mistake>,
) -> Option<T> {
    let (raw, unknown) = decode::<R>(&value?);
    let below = |mistake: Mistake| {
        let dot = if mistake.field.is_empty() { "" } else { "." };
        Mistake::new(format!("{field}{dot}{}", mistake.field), mistake.reason)
    };
    mistakes.extend(unknown.into_iter().map(below));
    raw.map_err(below).and_then(|raw| check(field, raw)).map_err(|mistake| mistakes.push(mistake)).ok()
}

fn target(at: usize, raw: &Value, mistakes: &mut Vec<Mistake>) -> Option<TrafficTarget> {
    let field = format!("spec.targetRefs[{at}]");
    let check = |field: &str, raw: RawTarget| {
        if !raw.group.is_empty() || raw.kind != "Service" {
            let reason = format!("`{}` of group `{}`: only a Service (group \"\") can be meant", raw.kind, raw.group);
            return Err(Mistake::new(format!("{field}.kind"), reason));
        }
        let port = raw.section_name.map(Arc::from);
        Ok(TrafficTarget { field: field.into(), service: raw.name.into(), port })
    };
    part(&field, Some(raw.clone()), check, mistakes)
}

fn balancing(field: &str, raw: RawBalancer) -> Result<Balancing, Mistake> {
    let hash = match (raw.kind, raw.consistent_hash) {
        (RawBalancing::ConsistentHash, Some(hash)) => hash,
        (RawBalancing::ConsistentHash, None) => {
            let reason = "missing: what of a request is hashed (`type: Header`, `Cookie` or `SourceIP`)";
            return Err(Mistake::new(format!("{field}.consistentHash"), reason));
        }
        (_, Some(_)) => {
            let reason = "only for `type: ConsistentHash`";
            return Err(Mistake::new(format!("{field}.consistentHash"), reason));
        }
        (RawBalancing::PeakEwma, None) => return Ok(Balancing::PeakEwma),
        (RawBalancing::LeastRequest, None) => return Ok(Balancing::LeastRequest),
        (RawBalancing::RoundRobin, None) => return Ok(Balancing::RoundRobin),
    };
    let missing = |name: &str| Mistake::new(format!("{field}.consistentHash.{name}"), "missing");
    let key = match hash.kind {
        RawKey::SourceIp => HashKey::Source,
        RawKey::Cookie => HashKey::Cookie(hash.cookie.ok_or_else(|| missing("cookie"))?.name.into()),
        RawKey::Header => {
            let name = hash.header.ok_or_else(|| missing("header"))?.name;
            let parsed = HeaderName::try_from(name.as_str());
            let wrong = |_| {
                let field = format!("{field}.consistentHash.header.name");
                Mistake::new(field, format!("`{name}` is no header's name"))
            };
            HashKey::Header(parsed.map_err(wrong)?)
        }
    };
    Ok(Balancing::Hash(key))
}

fn budget(field: &str, raw: RawConstraint) -> Result<RetryBudget, Mistake> {
    let mut budget = RetryBudget::STANDARD;
    if let Some(RawBudget { percent, interval }) = raw.budget {
        budget.percent = within(field, "budget.percent", percent.unwrap_or(budget.percent), 0..=100)?;
        budget.interval = time(field, "budget.interval", interval, budget.interval)?;
    }
    if let Some(RawRate { count, interval }) = raw.min_retry_rate {
        budget.min_count = within(field, "minRetryRate.count", count.unwrap_or(budget.min_count), 0..=1_000_000)?;
        budget.min_interval = time(field, "minRetryRate.interval", interval, budget.min_interval)?;
    }
    Ok(budget)
}

fn ejection(field: &str, raw: RawOutlier) -> Result<Ejection, Mistake> {
    let default = Ejection::default();
    let consecutive = raw.consecutive.unwrap_or(default.consecutive);
    let percent = raw.min_health_percent.unwrap_or(default.min_health_percent);
    let base = time(field, "baseEjectionTime", raw.base_ejection_time, default.base)?;
    Ok(Ejection {
        consecutive: within(field, "consecutive5xxErrors", consecutive, 1..=1_000_000)?,
        base,
        max: time(field, "maxEjectionTime", raw.max_ejection_time, default.max.max(base))?,
        min_health_percent: within(field, "minHealthPercent", percent, 0..=100)?,
    })
}

fn within(field: &str, name: &str, value: u32, range: std::ops::RangeInclusive<u32>) -> Result<u32, Mistake> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Mistake::new(format!("{field}.{name}"), format!("{value} is not within {}-{}", range.start(), range.end())))
}

/// The times of GEP-3388 are from a second to an hour; those of ejections may be shorter than a test is long.
fn time(field: &str, name: &str, text: Option<String>, default: Duration) -> Result<Duration, Mistake> {
    const RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);
    let Some(text) = text else { return Ok(default) };
    duration::parse(&text).filter(|time| RANGE.contains(time)).ok_or_else(|| {
        let reason = format!("`{text}` is no duration from 100ms to 1h, such as 10s or 1m30s");
        Mistake::new(format!("{field}.{name}"), reason)
    })
}
