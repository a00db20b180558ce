//! `AuthorizationPolicy`: GEP-3779's shape, and DENY, AUDIT, namespaces, addresses, negation and requests on top.
//!
//! ```yaml
//! spec:
//!   targetRefs: [{kind: Pod, selector: {matchLabels: {app: web}}}]   # absent: every pod of the namespace
//!   action: ALLOW                                                    # or DENY, AUDIT
//!   rules:
//!   - sources:                                                       # absent: anyone; []: nobody
//!     - {type: ServiceAccount, serviceAccount: {namespace: shop, name: cart}}
//!     - {type: CIDR, cidrs: [10.0.0.0/8], notCidrs: [10.1.0.0/16]}
//!     networkAttributes: {ports: [8080]}
//!     requestAttributes: {methods: [GET], paths: [{value: /api}]}    # see `requests`
//! ```
//!
//! With any mistake the object is kept as broken: it denies what it targets, and its targets are read leniently,
//! up to the whole namespace when they cannot be read (design §5). A field that is there but `null` is a mistake:
//! taken as absent it would mean "anyone".

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::authorization_fields::{Raw, RawAction, RawKind, RawRule, RawSource, RawTarget};
use super::decode::{Mistake, decode};
use super::{Key, meta, requests, whole};
use crate::model::policy::{Action, IdentityMatch, Policy, Rule, Source, Target};

/// Reads an `AuthorizationPolicy` as one policy per target; adds what is wrong with it to `mistakes`.
pub(super) fn read(value: &Value, key: &Key, mistakes: &mut Vec<Mistake>) -> Vec<Arc<Policy>> {
    let (raw, unknown) = decode::<Raw>(value);
    mistakes.extend(unknown);
    if key.name.is_empty() {
        mistakes.push(Mistake::new("metadata.name", "missing"));
    }
    let checked = raw.and_then(|raw| {
        let targets = check_targets(raw.spec.target_refs, &key.namespace)?;
        let rules = raw.spec.rules.into_iter().enumerate();
        let rules: Result<Vec<_>, _> = rules.map(|(index, rule)| check_rule(index, rule, &key.namespace)).collect();
        Ok((targets, raw.spec.action, rules?))
    });
    let (targets, action, rules) = checked.unwrap_or_else(|mistake| {
        mistakes.push(mistake);
        (lenient_targets(value, key), lenient_action(value), Vec::new())
    });
    let action = if is_audit_at_most(mistakes) { action } else { enforcing(action) };
    let broken = mistakes.first().map(|mistake| Arc::from(format!("{}: {}", mistake.field, mistake.reason)));
    let policy = |target| {
        Arc::new(Policy {
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
            action: match action {
                RawAction::Allow => Action::Allow,
                RawAction::Deny => Action::Deny,
                RawAction::Audit => Action::Audit,
            },
            target,
            rules: if broken.is_some() { Vec::new() } else { rules.clone() },
            broken: broken.clone(),
        })
    };
    targets.into_iter().map(policy).collect()
}

/// The action of an object that is broken elsewhere.
fn lenient_action(value: &Value) -> RawAction {
    let action = value.get("spec").and_then(|spec| spec.get("action")).and_then(Value::as_str);
    if action == Some("AUDIT") { RawAction::Audit } else { RawAction::Deny }
}

/// Whether the mistakes leave it beyond doubt what the action is: an AUDIT that may have been a DENY is one.
fn is_audit_at_most(mistakes: &[Mistake]) -> bool {
    let inside =
        |mistake: &Mistake| ["spec.rules", "spec.targetRefs"].iter().any(|part| mistake.field.starts_with(part));
    mistakes.iter().all(inside)
}

fn enforcing(action: RawAction) -> RawAction {
    match action {
        RawAction::Audit => RawAction::Deny,
        other => other,
    }
}

/// The targets of an object that is broken elsewhere; everything it may have meant when they are broken too.
fn lenient_targets(value: &Value, key: &Key) -> Vec<Target> {
    if meta::namespace_is_unreadable(value) {
        return vec![Target::Mesh];
    }
    let Some(refs) = value.get("spec").and_then(|spec| spec.get("targetRefs")) else {
        return vec![whole(&key.namespace)];
    };
    let (refs, unknown) = decode::<Vec<RawTarget>>(refs);
    match refs.and_then(|refs| check_targets(refs, &key.namespace)) {
        Ok(targets) if unknown.is_empty() => targets,
        _ => vec![whole(&key.namespace)],
    }
}

fn check_targets(refs: Vec<RawTarget>, namespace: &Arc<str>) -> Result<Vec<Target>, Mistake> {
    if refs.is_empty() {
        return Ok(vec![whole(namespace)]);
    }
    let check = |(index, target): (usize, RawTarget)| {
        let field = format!("spec.targetRefs[{index}]");
        if target.kind != "Pod" || !matches!(target.group.as_str(), "" | "core") {
            return Err(Mistake::new(format!("{field}.kind"), "only `Pod` with a selector can be targeted"));
        }
        let labels = target.selector.check(&format!("{field}.selector"))?;
        let all = labels.is_empty();
        Ok(if all { whole(namespace) } else { Target::Selector { namespace: Arc::clone(namespace), labels } })
    };
    refs.into_iter().enumerate().map(check).collect()
}

fn check_rule(index: usize, rule: RawRule, namespace: &Arc<str>) -> Result<Rule, Mistake> {
    let field = format!("spec.rules[{index}]");
    let ports = rule.network_attributes.and_then(|attributes| attributes.ports);
    if let Some(ports) = &ports {
        let field = format!("{field}.networkAttributes.ports");
        if ports.is_empty() {
            return Err(Mistake::new(field, "an empty list: name a port, or leave it out for every port"));
        }
        if let Some(at) = ports.iter().position(|port| *port == 0) {
            return Err(Mistake::new(format!("{field}[{at}]"), "0 is not a port"));
        }
    }
    let check = |(at, source)| check_source(&format!("{field}.sources[{at}]"), source, namespace);
    let sources = rule.sources.map(|sources| sources.into_iter().enumerate().map(check).collect());
    let requests = rule.request_attributes.map(|raw| requests::check(&format!("{field}.requestAttributes"), raw));
    Ok(Rule { sources: sources.transpose()?, ports, requests: requests.transpose()? })
}

fn check_source(field: &str, source: RawSource, namespace: &Arc<str>) -> Result<Source, Mistake> {
    let cidrs = source.cidrs.as_deref().map(|cidrs| check_cidrs(&format!("{field}.cidrs"), cidrs)).transpose()?;
    let not_cidrs =
        source.not_cidrs.as_deref().map(|not| check_cidrs(&format!("{field}.notCidrs"), not)).transpose()?;
    if source.kind == RawKind::Cidr && cidrs.is_none() && not_cidrs.is_none() {
        return Err(Mistake::new(field, "type CIDR needs `cidrs` or `notCidrs`"));
    }
    let identity = check_identity(field, source, namespace)?;
    Ok(Source { identity, cidrs, not_cidrs: not_cidrs.unwrap_or_default() })
}

/// An empty list is a mistake: as `cidrs` it would match nobody, which opens a DENY.
fn check_cidrs(field: &str, cidrs: &[String]) -> Result<Vec<IpNet>, Mistake> {
    if cidrs.is_empty() {
        return Err(Mistake::new(field, "an empty list: name a CIDR or leave it out"));
    }
    let parse = |(at, text): (usize, &String)| {
        meta::cidr(text).map_err(|reason| Mistake::new(format!("{field}[{at}]"), reason))
    };
    cidrs.iter().enumerate().map(parse).collect()
}

/// The field that belongs to `type`, and no other one's.
fn check_identity(field: &str, source: RawSource, namespace: &Arc<str>) -> Result<Option<IdentityMatch>, Mistake> {
    let RawSource { kind, service_account, spiffe, namespace: of_namespace, not_identities, .. } = source;
    let given = [
        ("serviceAccount", RawKind::ServiceAccount, service_account.is_some()),
        ("spiffe", RawKind::Spiffe, spiffe.is_some()),
        ("namespace", RawKind::Namespace, of_namespace.is_some()),
        ("notIdentities", RawKind::NotIdentity, not_identities.is_some()),
    ];
    for (name, belongs, is_given) in given {
        if is_given && belongs != kind {
            return Err(Mistake::new(format!("{field}.{name}"), format!("does not belong to type {kind:?}")));
        }
    }
    let missing = |name: &str| Mistake::new(format!("{field}.{name}"), format!("missing: type {kind:?} needs it"));
    Ok(Some(match kind {
        RawKind::Cidr => return Ok(None),
        RawKind::ServiceAccount => {
            let account = service_account.ok_or_else(|| missing("serviceAccount"))?;
            let field = format!("{field}.serviceAccount");
            let of = account.namespace.map_or_else(|| Arc::clone(namespace), Arc::from);
            check_name(&format!("{field}.namespace"), &of)?;
            if account.name != "*" {
                check_name(&format!("{field}.name"), &account.name)?;
            }
            IdentityMatch::ServiceAccount { namespace: of, name: account.name.into() }
        }
        RawKind::Spiffe => {
            let uri = spiffe.ok_or_else(|| missing("spiffe"))?;
            check_spiffe(&format!("{field}.spiffe"), &uri)?;
            IdentityMatch::Spiffe(uri.into())
        }
        RawKind::Namespace => {
            let of = of_namespace.ok_or_else(|| missing("namespace"))?.name;
            check_name(&format!("{field}.namespace.name"), &of)?;
            IdentityMatch::Namespace(of.into())
        }
        RawKind::NotIdentity => {
            let excepted = not_identities.ok_or_else(|| missing("notIdentities"))?;
            IdentityMatch::Not(check_excepted(field, excepted, namespace)?)
        }
    }))
}

fn check_excepted(field: &str, excepted: Vec<RawSource>, namespace: &Arc<str>) -> Result<Vec<IdentityMatch>, Mistake> {
    let field = format!("{field}.notIdentities");
    if excepted.is_empty() {
        return Err(Mistake::new(field, "an empty list: name an identity"));
    }
    let check = |(at, source): (usize, RawSource)| {
        let field = format!("{field}[{at}]");
        let plain = matches!(source.kind, RawKind::ServiceAccount | RawKind::Spiffe | RawKind::Namespace);
        if !plain || source.cidrs.is_some() || source.not_cidrs.is_some() {
            return Err(Mistake::new(field, "only ServiceAccount, SPIFFE and Namespace can be excepted"));
        }
        check_identity(&field, source, namespace)?.ok_or_else(|| Mistake::new(field, "names no identity"))
    };
    excepted.into_iter().enumerate().map(check).collect()
}

/// A name that no object can have would match nobody, which opens a DENY.
fn check_name(field: &str, name: &str) -> Result<(), Mistake> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(Mistake::new(field, format!("`{name}` is not a Kubernetes name")));
    }
    Ok(())
}

fn check_spiffe(field: &str, uri: &str) -> Result<(), Mistake> {
    let is_workload = uri.parse::<crate::model::identity::Identity>();
    is_workload.map(|_| ()).map_err(|error| Mistake::new(field, error))
}
