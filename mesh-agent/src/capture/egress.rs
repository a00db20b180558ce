//! What pods may reach outside the mesh: the kernel's `admitted`, and the hooks of datagrams, which are attached only
//! while a pod of the node refuses what is outside.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, MapData};
use aya::programs::CgroupSockAddr;
use mesh_common::key::{ServiceKey, TCP, UDP};
use mesh_common::value::{AdmittedValue, POD_REFUSES_OUTSIDE, POD_UDP_PORTS, POD_UDP_STRICT, ToldValue};

use super::error::CaptureError;
use super::hooks::{self, DATAGRAM};
use super::kernel::{Kernel, Maps};
use super::object::take;
use super::{links, sync};
use crate::model::rare::Rare;
use crate::model::service::Protocol;
use crate::model::workload::Workload;
use crate::policy::egress::word;
use crate::snapshot::Snapshot;

/// The maps of this room.
pub(super) struct Tables {
    pub(super) admitted: BpfHashMap<MapData, ServiceKey, AdmittedValue>,
    told: BpfHashMap<MapData, u64, ToldValue>,
    /// What `admitted` holds.
    written: HashMap<ServiceKey, AdmittedValue>,
    /// The snapshot that it was last brought up to date with.
    generation: Option<u64>,
    /// Whether the hooks of datagrams are in force, as far as this agent has brought them there.
    hooked: Option<bool>,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        let (admitted, told) = (take(ebpf, "admitted")?, take(ebpf, "told")?);
        Ok(Self { admitted, told, written: HashMap::new(), generation: None, hooked: None })
    }

    /// Room for telling the pod's refusals, if it has any to expect.
    pub(super) fn expect_refusals(&mut self, cookie: u64, workload: &Workload) -> Result<(), CaptureError> {
        if !refuses_something(workload) && !workload.is_guarded() {
            self.forget(cookie);
            return Ok(());
        }
        if self.told.get(&cookie, 0).is_ok() {
            return Ok(());
        }
        let none = ToldValue { second: 0, refusals: 0 };
        self.told.insert(cookie, none, 0).map_err(|e| CaptureError::map("told", &e))
    }

    pub(super) fn forget(&mut self, cookie: u64) {
        let _ = self.told.remove(&cookie);
    }

    /// Makes `admitted` say what the snapshot says: what is new first, so that nothing admitted is ever missing.
    fn write(&mut self, snapshot: &Snapshot) -> Result<(), CaptureError> {
        if self.generation == Some(snapshot.generation()) {
            return Ok(());
        }
        let mut wanted = HashMap::new();
        for (to, rule) in snapshot.admitted() {
            let protocol = if to.protocol == Protocol::Tcp { TCP } else { UDP };
            let key = ServiceKey { ip: sync::key_ip(to.addr.ip()), port: to.addr.port(), protocol };
            wanted.insert(key, AdmittedValue { rule: word(*rule) });
        }
        for (key, value) in &wanted {
            if self.written.get(key) != Some(value) {
                self.admitted.insert(key, value, 0).map_err(|e| CaptureError::map("admitted", &e))?;
                self.written.insert(*key, *value);
            }
        }
        self.keep(|key| wanted.contains_key(key));
        self.generation = Some(snapshot.generation());
        Ok(())
    }

    /// Another agent may have changed the hooks.
    pub(super) fn look_again(&mut self) {
        self.hooked = None;
    }

    fn keep(&mut self, wanted: impl Fn(&ServiceKey) -> bool) {
        let admitted = &mut self.admitted;
        self.written.retain(|key, _| {
            let keep = wanted(key);
            if !keep {
                let _ = admitted.remove(key);
            }
            keep
        });
        self.generation = None;
    }
}

/// Lets pods with these workloads reach what is admitted: to be called before their entries are written.
pub(super) fn prepare<'a>(
    maps: &mut Maps,
    snapshot: &Snapshot,
    mut workloads: impl Iterator<Item = &'a Workload>,
) -> Result<(), CaptureError> {
    if workloads.any(refuses_something) { maps.egress.write(snapshot) } else { Ok(()) }
}

fn refuses_something(workload: &Workload) -> bool {
    workload.egress.refused_by.is_some() || workload.udp_refusals != Rare::default()
}

impl Kernel {
    /// Brings the hooks of datagrams to what the pods' entries say, and takes away what no entry needs any more. The
    /// entries count, not the enrolled pods: one that this agent only keeps under its rules has one too.
    ///
    /// Does nothing to hooks while another agent's are in force.
    pub(super) fn settle_egress(&self, maps: &mut Maps) -> Result<(), CaptureError> {
        let flags = maps.pods.flags();
        if flags & (POD_REFUSES_OUTSIDE | POD_UDP_STRICT | POD_UDP_PORTS) == 0 {
            maps.egress.keep(|_| false);
        }
        if !self.in_force() {
            return Ok(());
        }
        let wanted = flags & POD_REFUSES_OUTSIDE != 0;
        if maps.egress.hooked == Some(wanted) {
            return Ok(());
        }
        // What fails half-way is begun again.
        maps.egress.hooked = None;
        if wanted { self.hook_datagrams() } else { self.unhook_datagrams() }?;
        maps.egress.hooked = Some(wanted);
        Ok(())
    }

    fn datagram_pins(&self) -> [(&'static str, PathBuf); 4] {
        DATAGRAM.map(|name| (name, self.config.links().join(name)))
    }

    fn unhook_datagrams(&self) -> Result<(), CaptureError> {
        let mut pins = self.datagram_pins().into_iter();
        pins.try_for_each(|(name, pin)| links::remove(&pin).map_err(|e| CaptureError::kernel(name, &e)))
    }

    fn hook_datagrams(&self) -> Result<(), CaptureError> {
        let pins = self.datagram_pins();
        if pins.iter().all(|(_, pin)| pin.exists()) {
            return Ok(());
        }
        let path = &self.config.cgroup;
        let cgroup = File::open(path).map_err(|source| CaptureError::Cgroup { path: path.clone(), source })?;
        let mut ebpf = self.object.load(None)?;
        for (name, pin) in &pins {
            hooks::install(hooks::load::<CgroupSockAddr>(&mut ebpf, name)?, name, pin, &cgroup)?;
        }
        tracing::info!("datagrams are judged: a pod of this node refuses what is outside the mesh");
        Ok(())
    }
}
