//! Makes the kernel's maps say what the snapshot says: only differences are written.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use aya::maps::lpm_trie::Key;
use mesh_common::key::{
    CidrKey, Digest, Ip, LISTENER_OUTBOUND, LISTENER_PLAINTEXT, LISTENER_TUNNEL, ListenerKey, PortKey,
};
use mesh_common::value::{BROKEN_POLICY, MeshIpValue, NO_POLICY, POD_CAPTURES, PodValue, PortRule, ShareValue};

use super::error::CaptureError;
use super::kernel::{Kernel, Maps};
use super::pod::EnrolledPod;
use super::written::Last;
use super::{digest, egress, mesh_ips, rules, services};
pub(super) use crate::model::addr::key_ip;
use crate::model::workload::{Workload, WorkloadUid};
use crate::policy::facts;
use crate::proxy::pod_net::PodNet;
use crate::snapshot::Snapshot;

/// What the maps hold, so that a sync costs what changed.
#[derive(Default)]
pub(super) struct Mirror {
    pub(super) mesh_ips: HashMap<Ip, MeshIpValue>,
    port_rules: HashMap<PortKey, PortRule>,
    cidrs: HashSet<(u32, CidrKey)>,
    /// What of a snapshot was written last. `None`: nothing, or not all of it could be.
    last: Option<Last>,
}

/// What is written of a pod besides what it is told.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) cookie: u64,
    /// Its outbound connections go to the agent.
    pub(super) captures: bool,
    /// It takes plaintext although it is strict.
    pub(super) lenient: bool,
}

impl EnrolledPod {
    pub(super) fn entry(&self) -> Entry {
        Entry {
            cookie: self.netns.cookie,
            captures: self.captures.load(Ordering::Relaxed),
            lenient: self.lenient.load(Ordering::Relaxed),
        }
    }
}

impl Kernel {
    pub(super) fn lock_maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes services, mesh addresses and the rules of every enrolled pod. Blocks for as long as it writes.
    ///
    /// # Errors
    /// The first map that cannot be written; the others are brought up to date all the same.
    pub fn sync(&self, snapshot: &Snapshot) -> Result<(), CaptureError> {
        let pods: Vec<_> = self.enrolments.lock().values().cloned().collect();
        let cookies: HashMap<WorkloadUid, u64> = pods.iter().map(|pod| (pod.uid().clone(), pod.netns.cookie)).collect();
        let mut maps = self.lock_maps();
        let mut first_error = Ok(());
        let mut keep = |result: Result<(), CaptureError>| {
            if let Err(error) = result {
                tracing::error!(%error, "the kernel's maps are behind the snapshot");
                if first_error.is_ok() {
                    first_error = Err(error);
                }
            }
        };
        // Rules before the pods that refer to them.
        keep(rules::sync(&mut maps, snapshot));
        let workloads = pods.iter().filter_map(|pod| snapshot.workload(pod.uid()));
        keep(egress::prepare(&mut maps, snapshot, workloads.map(|workload| &**workload)));
        for pod in &pods {
            if let Some(workload) = snapshot.workload(pod.uid()) {
                let policy = rules::name(&maps, snapshot, workload);
                keep(write_pod(&mut maps, pod.entry(), workload, policy));
                self.guards.note(&pod.netns, workload);
            }
        }
        let last = maps.mirror.last.take();
        let written = mesh_ips::sync(&mut maps, snapshot, &cookies, last.as_ref());
        let written = written.and(services::sync(&mut maps, snapshot, &cookies, last.as_ref()));
        maps.mirror.last = written.is_ok().then(|| Last::of(snapshot, cookies));
        keep(written);
        keep(self.settle_egress(&mut maps));
        drop(maps);
        self.settle_guards();
        first_error
    }

    /// When [`Self::sync`] has something to take away even if nothing changes: entries outlive their last reader.
    pub fn next_sync(&self) -> Option<Instant> {
        let maps = self.lock_maps();
        maps.rules.due().into_iter().chain(maps.services_written.due()).min()
    }
}

/// Writes a pod's entry and its port and CIDR rules: rules first, so that no entry is without them. What cannot be
/// written keeps nothing else from being written: the pod then refuses more than it should, never less.
pub(super) fn write_pod(
    maps: &mut Maps,
    Entry { cookie, captures, lenient }: Entry,
    workload: &Workload,
    policy: Digest,
) -> Result<(), CaptureError> {
    let rules = port_rules(cookie, workload, lenient);
    let cidrs = cidr_rules(cookie, workload);
    let ports = sync_port_rules(maps, cookie, &rules);
    // What should be excluded is judged instead.
    let excluded = sync_cidrs(maps, cookie, &cidrs);
    let flags = facts::flags(workload, captures, lenient, policy != NO_POLICY);
    let (policy, flags) =
        if ports.is_ok() { (policy, flags) } else { (BROKEN_POLICY, facts::without_port_rules(flags)) };
    let [ip4, ip6] = facts::own_ips(workload);
    let identity = digest::of_identity(&workload.identity);
    let value = PodValue { ip4, ip6, identity, policy, flags, pad: 0 };
    // Connections of a pod without a share are refused: first.
    let share = give_share(maps, cookie);
    // Refusals that nobody can be told of are counted.
    let told = maps.egress.expect_refusals(cookie, workload);
    let entry = maps.pods.put(cookie, value);
    ports.and(excluded).and(share).and(told).and(entry)
}

/// Never reset while records of its pod stand.
fn give_share(maps: &mut Maps, cookie: u64) -> Result<(), CaptureError> {
    if maps.shares.get(&cookie, 0).is_ok() {
        return Ok(());
    }
    maps.shares.insert(cookie, ShareValue { records: 0 }, 0).map_err(|e| CaptureError::map("shares", &e))
}

/// Writes the capture flag of an entry that is there.
pub(super) fn update_flags(maps: &mut Maps, pod: &EnrolledPod) -> Result<(), CaptureError> {
    let cookie = pod.netns.cookie;
    let Some(mut value) = maps.pods.get(cookie) else { return Ok(()) };
    value.flags =
        if pod.captures.load(Ordering::Relaxed) { value.flags | POD_CAPTURES } else { value.flags & !POD_CAPTURES };
    maps.pods.put(cookie, value)
}

/// Removes everything that the maps hold of one netns.
pub(super) fn remove_cookie(maps: &mut Maps, cookie: u64) {
    maps.pods.remove(cookie);
    let _ = maps.shares.remove(&cookie);
    maps.egress.forget(cookie);
    for kind in [LISTENER_OUTBOUND, LISTENER_TUNNEL, LISTENER_PLAINTEXT] {
        let _ = maps.listeners.remove(&ListenerKey { netns_cookie: cookie, kind, pad: 0 });
    }
    let _ = sync_port_rules(maps, cookie, &HashMap::new());
    let _ = sync_cidrs(maps, cookie, &HashSet::new());
}

fn port_rules(cookie: u64, workload: &Workload, lenient: bool) -> HashMap<PortKey, PortRule> {
    let key = |(port, direction)| PortKey { netns_cookie: cookie, port, direction, pad: 0 };
    let rules = facts::port_rules(workload, lenient).into_iter().map(|(at, rule)| (key(at), rule));
    rules.map(|(key, rule)| (key, PortRule::new(&key, rule))).collect()
}

fn cidr_rules(cookie: u64, workload: &Workload) -> HashSet<(u32, CidrKey)> {
    /// Bits of the cookie in front of the address.
    const COOKIE_BITS: u32 = 64;
    let rule = |net: &ipnet::IpNet| {
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        let data = CidrKey { netns_cookie: cookie.to_ne_bytes(), ip: key_ip(net.network()) };
        (COOKIE_BITS + mapped + u32::from(net.prefix_len()), data)
    };
    workload.exclusions.outbound_cidrs.iter().map(rule).collect()
}

/// A rule that cannot be written is not there, rather than there as it was.
fn sync_port_rules(maps: &mut Maps, cookie: u64, wanted: &HashMap<PortKey, PortRule>) -> Result<(), CaptureError> {
    let mut written = Ok(());
    for (key, rule) in wanted {
        if maps.mirror.port_rules.get(key) == Some(rule) {
            continue;
        }
        match maps.port_rules.insert(key, rule, 0) {
            Ok(()) => {
                maps.mirror.port_rules.insert(*key, *rule);
            }
            Err(error) => {
                written = Err(CaptureError::map("port_rules", &error));
                let _ = maps.port_rules.remove(key);
                maps.mirror.port_rules.remove(key);
            }
        }
    }
    let stale: Vec<PortKey> = maps
        .mirror
        .port_rules
        .keys()
        .filter(|k| k.netns_cookie == cookie && !wanted.contains_key(k))
        .copied()
        .collect();
    for key in stale {
        let _ = maps.port_rules.remove(&key);
        maps.mirror.port_rules.remove(&key);
    }
    written
}

fn sync_cidrs(maps: &mut Maps, cookie: u64, wanted: &HashSet<(u32, CidrKey)>) -> Result<(), CaptureError> {
    let mut written = Ok(());
    for (len, data) in wanted {
        if maps.mirror.cidrs.contains(&(*len, *data)) {
            continue;
        }
        match maps.excluded_cidrs.insert(&Key::new(*len, *data), 1, 0) {
            Ok(()) => {
                maps.mirror.cidrs.insert((*len, *data));
            }
            Err(error) => written = Err(CaptureError::map("excluded_cidrs", &error)),
        }
    }
    let own = cookie.to_ne_bytes();
    let stale: Vec<_> =
        maps.mirror.cidrs.iter().filter(|k| k.1.netns_cookie == own && !wanted.contains(k)).copied().collect();
    for (len, data) in stale {
        let _ = maps.excluded_cidrs.remove(&Key::new(len, data));
        maps.mirror.cidrs.remove(&(len, data));
    }
    written
}
