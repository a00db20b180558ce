//! The programs and maps of one instance: loaded, pinned, attached to its cgroup.
//!
//! An agent that dies leaves all of it in force: pods with policy stay refused, nothing fails open. The next one begins
//! with maps of its own and comes into force when they are full (`force`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aya::Ebpf;
use aya::maps::{HashMap, LpmTrie, MapData, PerCpuArray, RingBuf, SkStorage, SockHash};
use mesh_common::counter::Counter;
use mesh_common::key::{CidrKey, EndpointKey, ListenerKey, PlainKey, PolicyKey, PortKey, ServiceKey};
use mesh_common::tag::Reference;
use mesh_common::value::{
    EndpointValue, MeshIpValue, OrigDst, PlainValue, PolicyValue, PortRule, ServiceValue, ShareValue,
};

use super::error::CaptureError;
use super::events::EventReader;
use super::force::Staged;
use super::guards::Guards;
use super::hooks::CgroupHooks;
use super::netns::{cgroup_of, cgroup_path};
use super::object::{KernelConfig, Object, take};
use super::pod::Enrolments;
use super::pod_entries::PodEntries;
use super::records::Records;
use super::sync::Mirror;
use super::{egress, links, probe, rules, services};
use crate::sys;

/// The agent's own cgroup below the attach point: `sock_ops` must see the sockets that it accepts.
pub(super) const OWN_CGROUP: &str = "mesh-agent";

/// The kernel half of a running agent.
pub struct Kernel {
    pub(super) config: KernelConfig,
    pub(super) object: Object,
    pub(super) staged: Staged,
    pub(super) node_inode: u64,
    /// Path of the attach point as /proc/PID/cgroup shows it.
    pub(super) attach_path: String,
    pub(super) maps: Mutex<Maps>,
    pub(super) enrolments: Enrolments,
    pub(super) guards: Guards,
    pub(super) records: Arc<Records>,
    /// Inode of the cgroup whose probes are proven.
    pub(super) followed: Mutex<Option<u64>>,
    stats: PerCpuArray<MapData, u64>,
    pub(super) plain: HashMap<MapData, PlainKey, PlainValue>,
    home_cgroup: Option<PathBuf>,
}

/// The maps that the control side writes; one writer at a time.
pub(super) struct Maps {
    pub(super) pods: PodEntries,
    pub(super) services: HashMap<MapData, ServiceKey, Reference>,
    pub(super) service_facts: HashMap<MapData, u32, ServiceValue>,
    pub(super) endpoints: HashMap<MapData, EndpointKey, EndpointValue>,
    pub(super) policy: HashMap<MapData, PolicyKey, PolicyValue>,
    pub(super) shares: HashMap<MapData, u64, ShareValue>,
    pub(super) mesh_ips: HashMap<MapData, [u8; 16], MeshIpValue>,
    pub(super) port_rules: HashMap<MapData, PortKey, PortRule>,
    pub(super) excluded_cidrs: LpmTrie<MapData, CidrKey, u32>,
    pub(super) egress: egress::Tables,
    pub(super) listeners: SockHash<MapData, ListenerKey>,
    pub(super) mirror: Mirror,
    /// By how much each pod's count of records was wrong at the last sweep.
    pub(super) drifts: BTreeMap<u64, i64>,
    pub(super) rules: rules::Written,
    pub(super) services_written: services::Written,
}

impl Kernel {
    /// Loads the kernel half. Where nothing is attached it comes into force at once; where an earlier agent's programs
    /// are, they stay in force until [`Kernel::come_into_force`].
    ///
    /// # Errors
    /// Names what is missing and what to do about it.
    pub fn start(config: KernelConfig) -> Result<Self, CaptureError> {
        // All programs or none: a kernel that refuses one must not be left with the others attached.
        probe::can_run()?;
        let cgroup_error = |source| CaptureError::Cgroup { path: config.cgroup.clone(), source };
        File::open(&config.cgroup).map_err(cgroup_error)?;
        let (mount, attach_path) = cgroup_path(&config.cgroup)
            .ok_or_else(|| cgroup_error(io::Error::new(io::ErrorKind::Unsupported, "not in a cgroup v2 mount")))?;
        let object = Object::place(&config)?;
        let home_cgroup = enter_own_cgroup(&config.cgroup, &mount, &attach_path).map_err(cgroup_error)?;
        let mut ebpf = object.load(None)?;
        let maps = Mutex::new(Maps::take(&mut ebpf)?);
        let stats = take(&mut ebpf, "stats")?;
        let plain = take(&mut ebpf, "plain")?;
        let records = Arc::new(Records::take(&mut ebpf)?);
        let mut hooks = CgroupHooks::load(ebpf)?;
        let staged = if links::any(&config.links()) || links::any(&config.pods()) {
            Staged::with(hooks)
        } else {
            hooks.install(&config.cgroup, &config.links())?;
            Staged::default()
        };
        let node = File::open("/proc/self/ns/net").and_then(|file| sys::namespace_inode(&file));
        let node_inode = node.map_err(|e| CaptureError::kernel("/proc/self/ns/net", &e))?;
        Ok(Self {
            config,
            object,
            staged,
            node_inode,
            attach_path,
            maps,
            enrolments: Enrolments::default(),
            guards: Guards::default(),
            records,
            followed: Mutex::default(),
            stats,
            plain,
            home_cgroup,
        })
    }

    /// Every exit counter with its sum over all CPUs.
    #[must_use]
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        let sum =
            |counter: &Counter| self.stats.get(&(*counter as u32), 0).map_or(0, |values| values.iter().copied().sum());
        Counter::ALL.iter().map(|counter| (*counter, sum(counter))).collect()
    }

    /// The stream of refusals and ends. To be taken once, within a runtime.
    ///
    /// # Errors
    /// When the pinned ring cannot be opened.
    pub fn events(&self) -> Result<EventReader, CaptureError> {
        let ring: RingBuf<MapData> = self.object.record_map("events")?;
        EventReader::new(ring)
    }

    pub(super) fn accepted_map(&self) -> Result<SkStorage<MapData, OrigDst>, CaptureError> {
        self.object.record_map("ACCEPTED")
    }

    pub(super) fn agent_sk_map(&self) -> Result<SkStorage<MapData, u32>, CaptureError> {
        self.object.record_map("AGENT_SK")
    }

    pub(super) fn lookup_pin(&self, cookie: u64) -> PathBuf {
        self.config.pods().join(cookie.to_string())
    }

    /// Leaves the agent's cgroup, so that it can be removed with the instance.
    pub fn leave_cgroup(&self) {
        if let Some(home) = &self.home_cgroup {
            let _ = fs::write(home.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(self.config.cgroup.join(OWN_CGROUP));
        }
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: PodEntries::new(take(ebpf, "pods")?, take(ebpf, "pod_facts")?),
            services: take(ebpf, "services")?,
            service_facts: take(ebpf, "service_facts")?,
            endpoints: take(ebpf, "endpoints")?,
            policy: take(ebpf, "policy")?,
            shares: take(ebpf, "shares")?,
            mesh_ips: take(ebpf, "mesh_ips")?,
            port_rules: take(ebpf, "port_rules")?,
            excluded_cidrs: take(ebpf, "excluded_cidrs")?,
            egress: egress::Tables::take(ebpf)?,
            listeners: take(ebpf, "listeners")?,
            mirror: Mirror::default(),
            drifts: BTreeMap::new(),
            rules: rules::Written::default(),
            services_written: services::Written::default(),
        })
    }
}

/// Moves the agent below the attach point, unless it is there. Returns where it was.
fn enter_own_cgroup(cgroup: &Path, mount: &Path, attach_path: &str) -> io::Result<Option<PathBuf>> {
    let current = cgroup_of("self").unwrap_or_default();
    let own = cgroup.join(OWN_CGROUP);
    if !attach_path.is_empty() && current.starts_with(&format!("{attach_path}/")) {
        return Ok(None);
    }
    match fs::create_dir(&own) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    fs::write(own.join("cgroup.procs"), "0")?;
    Ok(Some(mount.join(current.trim_start_matches('/'))))
}
