//! Whether one rule matches one flow, and when it does not, which of its fields says so.
//!
//! § What is not proven is unknown, and unknown works against the peer in both directions: it matches no
//! identity that an ALLOW names (not even "anyone but X") and every identity that a DENY names. Addresses and
//! ports are compared for everybody.

use std::fmt;

use super::request::{self, RequestField};
use super::{Flow, Sight};
use crate::model::identity::{Identity, PeerIdentity};
use crate::model::policy::{Action, IdentityMatch, Rule, Source};

/// Why a rule does not match: how near it came, and the first field that stood against it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Miss<'a> {
    /// Fields that did match; grows with nearness.
    pub(super) matched: u8,
    field: Field<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Field<'a> {
    Ports(&'a [u16]),
    Nobody,
    Identity(&'a IdentityMatch),
    Cidrs(&'a Source),
    NotCidrs(&'a Source),
    Requests(RequestField<'a>),
}

/// Matches `rule` of a policy with `action` against `flow` and what is seen of its requests; `trust_domain` is the
/// local one, which service account and namespace sources are of (GEP-3779).
pub(super) fn rule<'a>(
    rule: &'a Rule,
    action: Action,
    flow: &Flow,
    sight: Sight<'_>,
    trust_domain: &str,
) -> Result<(), Miss<'a>> {
    let sources = sources(rule, action, flow, trust_domain);
    match &rule.ports {
        Some(ports) if !ports.contains(&flow.port) => {
            let matched = sources.map_or_else(|miss| miss.matched, |()| ALL_OF_A_SOURCE);
            return Err(Miss { matched, field: Field::Ports(ports) });
        }
        _ => sources.map_err(|miss| Miss { matched: miss.matched + 1, ..miss })?,
    }
    let missed = match (&rule.requests, sight) {
        (None, _) => None,
        // What nobody reads is unknown, and works against the peer.
        (Some(_), Sight::Opaque) => (action == Action::Allow).then_some(RequestField::Unread),
        // Each request will be judged: what may match some of them refuses none yet.
        (Some(_), Sight::EachRequest) => (action != Action::Allow).then_some(RequestField::Unread),
        (Some(wanted), Sight::Request(facts)) => request::miss(wanted, action, facts),
    };
    missed.map_or(Ok(()), |field| Err(Miss { matched: ALL_OF_A_SOURCE + 1, field: Field::Requests(field) }))
}

/// Identity, CIDRs, negated CIDRs.
const ALL_OF_A_SOURCE: u8 = 3;

/// Sources are alternatives: one that matches is enough; of those that do not, the nearest is told.
fn sources<'a>(rule: &'a Rule, action: Action, flow: &Flow, trust_domain: &str) -> Result<(), Miss<'a>> {
    let Some(sources) = &rule.sources else {
        return Ok(());
    };
    let mut nearest = Miss { matched: 0, field: Field::Nobody };
    for (index, candidate) in sources.iter().enumerate() {
        match source(candidate, action, flow, trust_domain) {
            Ok(()) => return Ok(()),
            Err(miss) if index == 0 || miss.matched > nearest.matched => nearest = miss,
            Err(_) => {}
        }
    }
    Err(nearest)
}

/// The fields of one source must all match.
fn source<'a>(source: &'a Source, action: Action, flow: &Flow, trust_domain: &str) -> Result<(), Miss<'a>> {
    let ip = flow.source_ip.to_canonical();
    let identity_misses = source.identity.as_ref().filter(|wanted| !identity(wanted, action, &flow.peer, trust_domain));
    let outside = source.cidrs.as_ref().is_some_and(|cidrs| !cidrs.iter().any(|cidr| cidr.contains(&ip)));
    let excepted = source.not_cidrs.iter().any(|cidr| cidr.contains(&ip));

    let field = match identity_misses {
        Some(wanted) => Field::Identity(wanted),
        None if outside => Field::Cidrs(source),
        None if excepted => Field::NotCidrs(source),
        None => return Ok(()),
    };
    let misses = u8::from(identity_misses.is_some()) + u8::from(outside) + u8::from(excepted);
    Err(Miss { matched: ALL_OF_A_SOURCE - misses, field })
}

fn identity(wanted: &IdentityMatch, action: Action, peer: &PeerIdentity, trust_domain: &str) -> bool {
    match peer {
        PeerIdentity::Verified(peer) => names(wanted, peer, trust_domain),
        PeerIdentity::Unknown => action != Action::Allow,
    }
}

fn names(wanted: &IdentityMatch, peer: &Identity, trust_domain: &str) -> bool {
    let local = || peer.trust_domain() == trust_domain;
    match wanted {
        IdentityMatch::ServiceAccount { namespace, name } => {
            local() && peer.namespace() == &**namespace && (&**name == "*" || peer.service_account() == &**name)
        }
        IdentityMatch::Namespace(namespace) => local() && peer.namespace() == &**namespace,
        IdentityMatch::Spiffe(uri) => peer.to_string() == **uri,
        IdentityMatch::Not(excepted) => !excepted.iter().any(|one| names(one, peer, trust_domain)),
    }
}

impl Miss<'_> {
    /// The field that stood against `flow`, in words.
    pub(super) fn describe(&self, flow: &Flow, sight: Sight<'_>) -> String {
        let ip = flow.source_ip.to_canonical();
        match self.field {
            Field::Ports(ports) => format!("port {} is not one of {ports:?}", flow.port),
            Field::Requests(field) => match sight {
                Sight::Request(facts) => field.describe(Some(facts)),
                Sight::Opaque | Sight::EachRequest => field.describe(None),
            },
            Field::Nobody => "`sources: []` matches nobody".to_owned(),
            Field::Identity(wanted) => format!("peer {} is not {}", flow.peer, Named(wanted)),
            Field::Cidrs(source) => {
                let cidrs: Vec<String> = source.cidrs.iter().flatten().map(ToString::to_string).collect();
                format!("source address {ip} is in none of {}", cidrs.join(", "))
            }
            Field::NotCidrs(source) => {
                let cidr = source.not_cidrs.iter().find(|cidr| cidr.contains(&ip));
                format!("source address {ip} is in the excepted {}", cidr.map(ToString::to_string).unwrap_or_default())
            }
        }
    }
}

struct Named<'a>(&'a IdentityMatch);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IdentityMatch::ServiceAccount { namespace, name } if &**name == "*" => {
                write!(f, "a service account of {namespace}")
            }
            IdentityMatch::ServiceAccount { namespace, name } => write!(f, "service account {namespace}/{name}"),
            IdentityMatch::Namespace(namespace) => write!(f, "of namespace {namespace}"),
            IdentityMatch::Spiffe(uri) => f.write_str(uri),
            IdentityMatch::Not(excepted) => {
                f.write_str("a proven identity other than ")?;
                for (index, one) in excepted.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{}", Self(one))?;
                }
                Ok(())
            }
        }
    }
}
