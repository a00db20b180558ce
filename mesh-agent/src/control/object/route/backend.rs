//! `backendRefs`, and the references of mirrors.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Checked, Reader, at_most, part, wrong};
use crate::model::route::{Backend, Match, Reason, ServiceRef, Target};

const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBackend {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<u16>,
    weight: Option<u32>,
    filters: Option<Vec<Value>>,
}

/// A reference without a weight.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawReference {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<u16>,
}

impl Reader<'_> {
    /// The backends of the rule at `rule`; its matches bound what their filters may be.
    pub(super) fn backends(&mut self, rule: &str, refs: &[Value], matches: &[Match]) -> Checked<Vec<Backend>> {
        at_most(&format!("{rule}.backendRefs"), refs.len(), MAX_BACKENDS)?;
        let mut backends = Vec::with_capacity(refs.len());
        for (index, value) in refs.iter().enumerate() {
            let field = format!("{rule}.backendRefs[{index}]");
            let raw: RawBackend = part(&field, value)?;
            let weight = raw.weight.unwrap_or(1);
            if weight > MAX_WEIGHT {
                return wrong(&format!("{field}.weight"), format!("{weight} is more than {MAX_WEIGHT}"));
            }
            if raw.filters.is_some() && !self.kind.is_l7() {
                return wrong(&format!("{field}.filters"), "a route of this kind has no filters");
            }
            let filters = self.filters(&field, &raw.filters.unwrap_or_default(), matches)?;
            let RawBackend { group, kind, namespace, name, port, .. } = raw;
            let reference = RawReference { group, kind, namespace, name, port };
            backends.push(Backend { target: self.target(&field, reference)?, weight, filters });
        }
        Ok(backends)
    }

    /// Where a reference leads, as far as it says itself.
    pub(super) fn target(&self, field: &str, raw: RawReference) -> Checked<Target> {
        let (group, kind) = (raw.group.unwrap_or_default(), raw.kind.unwrap_or_else(|| "Service".to_owned()));
        if !group.is_empty() || kind != "Service" {
            let message = format!("{field}: {kind} of group `{group}` cannot be a backend; a Service can");
            return Ok(Target::Invalid { reason: Reason::InvalidKind, message: message.into() });
        }
        if raw.name.is_empty() {
            return wrong(&format!("{field}.name"), "missing");
        }
        match raw.port {
            None | Some(0) => wrong(&format!("{field}.port"), "missing: a Service needs one (1-65535)"),
            Some(port) => Ok(Target::Service(ServiceRef {
                namespace: raw.namespace.map_or_else(|| Arc::clone(self.namespace), Arc::from),
                name: raw.name.into(),
                port,
            })),
        }
    }
}
