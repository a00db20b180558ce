//! `PeerPolicy`: whether plaintext peers are let in, by namespace, pod and port.
//!
//! ```yaml
//! spec:
//!   mode: Strict                            # or Permissive; absent: says nothing about ports not named
//!   ports: {"8080": {mode: Permissive}}
//!   selector: {matchLabels: {app: web}}     # absent: every pod of the namespace
//!   allowOptOut: true                       # pods may leave the mesh by label in spite of Strict
//!   udp: all                                # or [53, 5353]: no UDP into strict pods there
//!   egress:
//!     default: refuse                       # or allow: what becomes of what is not in the mesh
//!     allowOptOut: true                     # pods may exclude destinations, or leave, in spite of `refuse`
//!   guard: true                             # what is no socket's is refused at the veth, both ways
//! ```
//!
//! With any mistake it is Strict on every port of what it targets, takes no UDP there and refuses what is not in the
//! mesh; it guards if it says anything of a guard. Its targets are read leniently.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::authorization_fields::present;
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
    pub(in crate::control) egress: Option<EgressRule>,
    pub(in crate::control) udp: Option<UdpPorts>,
    /// Packets are judged at the veth, where the policies of a pod refuse something.
    pub(in crate::control) guard: bool,
}

/// What becomes of what is not in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct EgressRule {
    pub(in crate::control) refuses: bool,
    pub(in crate::control) allow_opt_out: bool,
}

/// Where strict pods take no UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) enum UdpPorts {
    All,
    These(BTreeSet<u16>),
}

impl PeerPolicy {
    /// One that could not be read whole.
    pub(super) fn broken(namespace: &Arc<str>, name: &Arc<str>, target: Target, guard: bool) -> Self {
        Self {
            guard,
            egress: Some(EgressRule { refuses: true, allow_opt_out: false }),
            udp: Some(UdpPorts::All),
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

/// Whether pods accept plaintext, and what they may send out of the mesh.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.mode) || (has(self.ports) && size(self.ports) > 0) || has(self.egress) || \
              (has(self.guard) && self.guard)",
     "message": "neither mode, ports, egress nor guard: it says nothing"},
    {"rule": "!has(self.ports) || self.ports.all(port, port.matches('^[1-9][0-9]{0,4}$') && int(port) <= 65535)",
     "message": "ports are named by number, 1 to 65535"},
]))]
pub(super) struct Spec {
    /// Of every port that is not named; absent: says nothing about them.
    #[serde(default, deserialize_with = "present")]
    mode: Option<RawMode>,
    /// By port number.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 256))]
    ports: BTreeMap<String, RawPort>,
    /// The pods that it is for; absent: every pod of the namespace, and of the mesh in mesh-agent-system.
    #[serde(default, deserialize_with = "present")]
    selector: Option<RawSelector>,
    /// Pods may leave by label or annotation although this is Strict.
    #[serde(default)]
    allow_opt_out: bool,
    /// What becomes of what is not in the mesh; absent: says nothing.
    #[serde(default, deserialize_with = "present")]
    egress: Option<RawEgress>,
    /// `all`, or a list of ports: no UDP comes in there. Only with `mode: Strict`.
    #[serde(default, deserialize_with = "present")]
    udp: Option<Value>,
    /// What is no socket's is refused at the pod's veth.
    #[serde(default)]
    guard: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RawEgress {
    /// What becomes of what is not in the mesh.
    default: RawDefault,
    /// Pods may exclude destinations or leave, although this refuses.
    #[serde(default)]
    allow_opt_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("enum" = ["allow", "Allow", "refuse", "Refuse"]))]
enum RawDefault {
    #[serde(alias = "Allow")]
    Allow,
    #[serde(alias = "Refuse")]
    Refuse,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct RawPort {
    /// Of this port.
    mode: RawMode,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[schemars(extend("enum" = ["Strict", "STRICT", "Permissive", "PERMISSIVE"]))]
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
        Ok(policy) => PeerPolicy::broken(&key.namespace, &key.name, policy.target, mentions_guard(value)),
        Err(mistake) => {
            mistakes.push(mistake);
            PeerPolicy::broken(&key.namespace, &key.name, lenient_target(value, key), mentions_guard(value))
        }
    }
}

fn mentions_guard(value: &Value) -> bool {
    value.get("spec").and_then(|spec| spec.get("guard")).is_some_and(|guard| *guard != Value::Bool(false))
}

fn check(spec: Spec, key: &Key) -> Result<PeerPolicy, Mistake> {
    let says_nothing = spec.mode.is_none() && spec.ports.is_empty() && spec.egress.is_none() && spec.udp.is_none();
    if says_nothing && !spec.guard {
        return Err(Mistake::new("spec", "neither `mode`, `ports`, `egress`, `udp` nor `guard`: it says nothing"));
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
        egress: spec.egress.map(EgressRule::from),
        guard: spec.guard,
        udp: spec.udp.map(|raw| check_udp(&raw, spec.mode.map(PeerMode::from))).transpose()?,
    })
}

impl From<RawEgress> for EgressRule {
    fn from(raw: RawEgress) -> Self {
        Self { refuses: raw.default == RawDefault::Refuse, allow_opt_out: raw.allow_opt_out }
    }
}

fn check_udp(raw: &Value, mode: Option<PeerMode>) -> Result<UdpPorts, Mistake> {
    if mode != Some(PeerMode::Strict) {
        return Err(Mistake::new("spec.udp", "only a strict pod refuses UDP: `mode: Strict` is missing"));
    }
    if raw.as_str() == Some("all") {
        return Ok(UdpPorts::All);
    }
    let ports = raw.as_array().filter(|ports| !ports.is_empty());
    let ports = ports.ok_or_else(|| Mistake::new("spec.udp", "neither `all` nor a list of ports"))?;
    let port = |(at, port): (usize, &Value)| {
        let number = port.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        number.ok_or_else(|| Mistake::new(format!("spec.udp[{at}]"), "not a port (1-65535)"))
    };
    ports.iter().enumerate().map(port).collect::<Result<_, _>>().map(UdpPorts::These)
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
