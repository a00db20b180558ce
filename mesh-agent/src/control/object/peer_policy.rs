//! `PeerPolicy`: whether plaintext peers are let in, by namespace, pod and port.
//!
//! ```yaml
//! spec:
//!   mode: Strict                            # or Permissive; absent: says nothing about ports not named
//!   ports: {"8080": {mode: Permissive}}
//!   selector: {matchLabels: {app: web}}     # absent: every pod of the namespace
//!   allowOptOut: true                       # pods may leave the mesh by label in spite of Strict
//! ```
//!
//! With any mistake it is Strict on every port of what it targets, and its targets are read leniently.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::authorization::present;
use super::decode::{Mistake, decode};
use super::selector::RawSelector;
use super::{Key, meta, whole};
use crate::model::policy::Target;
use crate::model::workload::PeerMode;

/// One `PeerPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct PeerPolicy {
    pub(in crate::control) namespace: Arc<str>,
    pub(in crate::control) name: Arc<str>,
    pub(in crate::control) target: Target,
    /// Mode of every port not in `ports`; `None` leaves them to other policies.
    pub(in crate::control) default: Option<PeerMode>,
    pub(in crate::control) ports: BTreeMap<u16, PeerMode>,
    pub(in crate::control) allow_opt_out: bool,
}

impl PeerPolicy {
    /// One that could not be read whole.
    pub(super) fn broken(namespace: &Arc<str>, name: &Arc<str>, target: Target) -> Self {
        Self {
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
            target,
            default: Some(PeerMode::Strict),
            ports: BTreeMap::new(),
            allow_opt_out: false,
        }
    }

    /// What it says about `port`.
    pub(in crate::control) fn mode(&self, port: u16) -> Option<PeerMode> {
        self.ports.get(&port).copied().or(self.default)
    }

    /// `namespace/name`.
    pub(in crate::control) fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
    spec: Spec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default, deserialize_with = "present")]
    mode: Option<RawMode>,
    #[serde(default)]
    ports: BTreeMap<String, RawPort>,
    #[serde(default, deserialize_with = "present")]
    selector: Option<RawSelector>,
    #[serde(default)]
    allow_opt_out: bool,
}

#[derive(Debug, Deserialize)]
struct RawPort {
    mode: RawMode,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum RawMode {
    #[serde(alias = "STRICT")]
    Strict,
    #[serde(alias = "PERMISSIVE")]
    Permissive,
}

impl From<RawMode> for PeerMode {
    fn from(mode: RawMode) -> Self {
        match mode {
            RawMode::Strict => Self::Strict,
            RawMode::Permissive => Self::Permissive,
        }
    }
}

/// Reads a `PeerPolicy`; adds what is wrong with it to `mistakes`.
pub(super) fn read(value: &Value, key: &Key, mistakes: &mut Vec<Mistake>) -> PeerPolicy {
    let (raw, unknown) = decode::<Raw>(value);
    mistakes.extend(unknown);
    if key.name.is_empty() {
        mistakes.push(Mistake::new("metadata.name", "missing"));
    }
    match raw.and_then(|raw| check(raw.spec, key)) {
        Ok(policy) if mistakes.is_empty() => policy,
        Ok(policy) => PeerPolicy::broken(&key.namespace, &key.name, policy.target),
        Err(mistake) => {
            mistakes.push(mistake);
            PeerPolicy::broken(&key.namespace, &key.name, lenient_target(value, key))
        }
    }
}

fn check(spec: Spec, key: &Key) -> Result<PeerPolicy, Mistake> {
    if spec.mode.is_none() && spec.ports.is_empty() {
        return Err(Mistake::new("spec", "neither `mode` nor `ports`: it says nothing"));
    }
    let mut ports = BTreeMap::new();
    for (port, raw) in spec.ports {
        let number = port.parse().ok().filter(|number| *number != 0);
        let number = number.ok_or_else(|| Mistake::new(format!("spec.ports.{port}"), "not a port (1-65535)"))?;
        ports.insert(number, raw.mode.into());
    }
    Ok(PeerPolicy {
        namespace: Arc::clone(&key.namespace),
        name: Arc::clone(&key.name),
        target: check_target(spec.selector, key)?,
        default: spec.mode.map(PeerMode::from),
        ports,
        allow_opt_out: spec.allow_opt_out,
    })
}

fn check_target(selector: Option<RawSelector>, key: &Key) -> Result<Target, Mistake> {
    let labels = selector.unwrap_or_default().check("spec.selector")?;
    let all = labels.is_empty();
    Ok(if all { whole(&key.namespace) } else { Target::Selector { namespace: Arc::clone(&key.namespace), labels } })
}

fn lenient_target(value: &Value, key: &Key) -> Target {
    if meta::namespace_is_unreadable(value) {
        return Target::Mesh;
    }
    let Some(selector) = value.get("spec").and_then(|spec| spec.get("selector")) else {
        return whole(&key.namespace);
    };
    let (selector, unknown) = decode::<RawSelector>(selector);
    match selector.and_then(|selector| check_target(Some(selector), key)) {
        Ok(target) if unknown.is_empty() => target,
        _ => whole(&key.namespace),
    }
}
