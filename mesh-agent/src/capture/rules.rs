//! The kernel's `policy` map: what each identity of the node may do under each set of rules of its pods.
//!
//! Entries are facts that never change (their key names the rules by content), so they are written before the first
//! pod refers to them and taken away a while after the last one did: whoever reads a pod's entry finds the entries
//! of the rules that it names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use mesh_common::key::{ANY_PORT, Digest, PolicyKey};
use mesh_common::value::{BROKEN_POLICY, POLICY_AGENT, POLICY_ALLOW, POLICY_DENY, PolicyValue};

use super::digest;
use super::error::CaptureError;
use super::kernel::Maps;
use super::linger::Unwanted;
use crate::model::identity::Identity;
use crate::model::workload::{Workload, WorkloadUid};
use crate::policy::compile::{KernelVerdict, table};
use crate::snapshot::Snapshot;

/// Rules, and who asks.
type Pair = (Digest, Digest);

/// What the map holds.
#[derive(Default)]
pub(super) struct Written {
    pairs: HashMap<Pair, Entries>,
    /// The snapshot that it was last brought up to date with, if that worked.
    generation: Option<u64>,
    /// Rules of the last snapshot that could not be written.
    broken: HashSet<Digest>,
}

#[derive(Default)]
struct Entries {
    ports: Vec<u16>,
    /// Written, or found right, by this process.
    checked: bool,
    unwanted: Unwanted,
}

impl Written {
    /// When the first of the entries that no pod refers to any more may go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pairs.values().filter_map(|entries| entries.unwanted.due()).min()
    }
}

/// The name of the rules that hold for `workload`: those that could be written, else such as allow nothing.
pub(super) fn name(maps: &Maps, snapshot: &Snapshot, workload: &Workload) -> Digest {
    let name = digest::of_policies(snapshot.policies_for(&workload.uid), snapshot.trust_domain());
    if maps.rules.broken.contains(&name) { BROKEN_POLICY } else { name }
}

/// Brings the map up to date with the snapshot: once for each, and when entries are due to go.
///
/// # Errors
/// The first entry that could not be written; pods with those rules refuse every connection then.
pub(super) fn sync(maps: &mut Maps, snapshot: &Snapshot) -> Result<(), CaptureError> {
    let now = Instant::now();
    if maps.rules.generation == Some(snapshot.generation()) && maps.rules.due().is_none_or(|due| due > now) {
        return Ok(());
    }
    let (sets, clients) = wanted(snapshot);
    let mut outcome = Ok(());
    maps.rules.broken.clear();
    for (set, uid) in &sets {
        let Some(destination) = snapshot.workload(uid) else { continue };
        for (name, client) in &clients {
            if let Err(error) = write(maps, (*set, *name), || table(snapshot, destination, client)) {
                maps.rules.broken.insert(*set);
                outcome = Err(error);
                break;
            }
        }
    }
    let unwanted = |pair: &Pair| !sets.contains_key(&pair.0) || !clients.contains_key(&pair.1);
    retire(maps, unwanted, now);
    maps.rules.generation = outcome.is_ok().then(|| snapshot.generation());
    outcome
}

/// The sets of rules that select pods of this node, each with one of those pods, and everybody on it who may ask.
fn wanted(snapshot: &Snapshot) -> (BTreeMap<Digest, WorkloadUid>, BTreeMap<Digest, Identity>) {
    let mut sets = BTreeMap::new();
    let mut clients = BTreeMap::new();
    for workload in snapshot.local_workloads().filter(|workload| workload.is_enrolled()) {
        clients.insert(digest::of_identity(&workload.identity), workload.identity.clone());
        let policies = snapshot.policies_for(&workload.uid);
        if !policies.is_empty() {
            sets.insert(digest::of_policies(policies, snapshot.trust_domain()), Arc::clone(&workload.uid));
        }
    }
    (sets, clients)
}

fn write(
    maps: &mut Maps,
    pair: Pair,
    table: impl FnOnce() -> Vec<crate::policy::compile::Line>,
) -> Result<(), CaptureError> {
    let entries = maps.rules.pairs.entry(pair).or_default();
    entries.unwanted.wanted();
    if entries.checked {
        return Ok(());
    }
    for (port, verdict) in table() {
        let port = port.unwrap_or(ANY_PORT);
        let key = PolicyKey { policy: pair.0, identity: pair.1, port, pad: 0 };
        let verdict = match verdict {
            KernelVerdict::Allow => POLICY_ALLOW,
            KernelVerdict::Deny => POLICY_DENY,
            KernelVerdict::Agent => POLICY_AGENT,
        };
        maps.policy.insert(key, PolicyValue { verdict }, 0).map_err(|e| CaptureError::map("policy", &e))?;
        if !entries.ports.contains(&port) {
            entries.ports.push(port);
        }
    }
    entries.checked = true;
    Ok(())
}

fn retire(maps: &mut Maps, unwanted: impl Fn(&Pair) -> bool, now: Instant) {
    let policy = &mut maps.policy;
    maps.rules.pairs.retain(|pair, entries| {
        if !unwanted(pair) || !entries.unwanted.may_go(now) {
            return true;
        }
        for port in &entries.ports {
            let _ = policy.remove(&PolicyKey { policy: pair.0, identity: pair.1, port: *port, pad: 0 });
        }
        false
    });
}
