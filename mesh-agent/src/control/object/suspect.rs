//! Enforcement objects in text that is not YAML.
//!
//! The verdict is a function of the objects present, never of history (design §5): an agent that has just started
//! must deny what one that remembers the file's last good version denies. So what the text was is not asked; what
//! it still says is: where it names one of our enforcement kinds it is taken for a broken object of that kind, in
//! the namespace that its `metadata` shows.

use std::sync::Arc;

use super::{GROUP, Key, Kind, Object, PeerPolicy, meta, whole};
use crate::model::policy::{Action, Policy};

/// The enforcement objects that unreadable `text` must be taken for; `reason` says why it is unreadable.
pub(in crate::control) fn suspects(text: &str, reason: &str) -> Vec<(Key, Object)> {
    // Other groups have an AuthorizationPolicy too.
    let ours = text.contains(GROUP) || !text.contains("apiVersion");
    let kinds = [Kind::AuthorizationPolicy, Kind::PeerPolicy].into_iter();
    let mut found = Vec::new();
    for kind in kinds.filter(|kind| ours && text.contains(kind.as_str())) {
        for (namespace, name) in shown(text) {
            let key = Key { kind, namespace: meta::namespace_or_default(&namespace), name: name.into() };
            let object = suspect(&key, reason, text);
            found.push((key, object));
        }
    }
    found
}

fn suspect(key: &Key, reason: &str, text: &str) -> Object {
    let target = whole(&key.namespace);
    if key.kind == Kind::PeerPolicy {
        let guard = text.contains("guard:");
        return Object::Peer(Arc::new(PeerPolicy::broken(&key.namespace, &key.name, target, guard)));
    }
    Object::Authorization(vec![Arc::new(Policy {
        namespace: Arc::clone(&key.namespace),
        name: Arc::clone(&key.name),
        action: Action::Deny,
        target,
        rules: Vec::new(),
        broken: Some(reason.into()),
    })])
}

/// Namespaces and names that the text's `metadata` show: one, or several in a list of objects. Never none.
fn shown(text: &str) -> Vec<(String, String)> {
    let metadata = text.split("metadata").skip(1);
    let mut shown: Vec<_> =
        metadata.map(|after| (in_metadata(after, "namespace"), in_metadata(after, "name"))).collect();
    if shown.iter().any(|(namespace, _)| !namespace.is_empty()) {
        shown.retain(|(namespace, _)| !namespace.is_empty());
    } else {
        shown.truncate(1);
    }
    if shown.is_empty() {
        shown.push(Default::default());
    }
    shown
}

/// The value of `field` up to the next thing that stands at the left edge; empty when there is none. Good enough
/// for block style, flow style and JSON as tools print them.
fn in_metadata(after: &str, field: &str) -> String {
    let mut lines = after.lines();
    let first = lines.next().unwrap_or_default();
    let block = lines.take_while(|line| line.starts_with([' ', '\t', '#']) || line.trim().is_empty());
    std::iter::once(first).chain(block).find_map(|line| value_of(line, field)).unwrap_or_default()
}

/// `field: value` anywhere in a line, quotes or not.
fn value_of(line: &str, field: &str) -> Option<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    line.match_indices(field).find_map(|(at, _)| {
        let before = line.get(..at)?.chars().next_back();
        let after = line.get(at + field.len()..)?.trim_start_matches(['"', '\'']).trim_start();
        let value = after.strip_prefix(':')?.trim_start().trim_start_matches(['"', '\'']);
        let value: String = value.chars().take_while(|c| is_name(*c)).collect();
        (!before.is_some_and(is_name) && !value.is_empty()).then_some(value)
    })
}
