//! The programs and maps of one instance: loaded, pinned, attached to its cgroup.
//!
//! ```text
//! <bpffs>/<instance>/maps-<object hash>/<map>     reused by an agent with the same kernel half only
//!                    links/<program>              cgroup links, updated in place
//!                    pods/<netns cookie>          sk_lookup links, one for each enrolled pod
//! ```
//! An agent that dies leaves all of it in force: pods with policy stay refused, nothing fails open.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aya::maps::{HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf, SkStorage, SockHash};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use mesh_common::counter::Counter;
use mesh_common::key::{CidrKey, EndpointKey, ListenerKey, PolicyKey, PortKey, ServiceKey};
use mesh_common::tag::Reference;
use mesh_common::value::{EndpointValue, MeshIpValue, OrigDst, PolicyValue, PortRule, ServiceValue, ShareValue};

use super::error::CaptureError;
use super::events::EventReader;
use super::netns::{Netns, cgroup_of, cgroup_path};
use super::pod::Enrolments;
use super::pod_entries::PodEntries;
use super::probe;
use super::records::Records;
use super::sync::Mirror;
use super::uninstall::remove_other_maps;
use super::{links, rules, services};
use crate::sys;

#[cfg(mesh_ebpf)]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_OBJECT_PATH"));
#[cfg(mesh_ebpf)]
const OBJECT_HASH: &str = env!("MESH_EBPF_OBJECT_HASH");
#[cfg(not(mesh_ebpf))]
pub(super) static OBJECT: &[u8] = &[];
#[cfg(not(mesh_ebpf))]
const OBJECT_HASH: &str = "none";

const MAPS: [&str; 19] = [
    "pods",
    "pod_facts",
    "services",
    "service_facts",
    "endpoints",
    "policy",
    "shares",
    "mesh_ips",
    "port_rules",
    "excluded_cidrs",
    "flows",
    "native",
    "orig_dsts",
    "listeners",
    "stats",
    "events",
    "ASKED",
    "ACCEPTED",
    "AGENT_SK",
];
const SOCK_ADDR_PROGRAMS: [&str; 4] = ["mesh_connect4", "mesh_connect6", "mesh_getpeername4", "mesh_getpeername6"];
/// The agent's own cgroup below the attach point: `sock_ops` must see the sockets that it accepts.
pub(super) const OWN_CGROUP: &str = "mesh-agent";

/// Where an instance of the agent lives. Nothing of it is global: several agents share one kernel.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Name of the instance: its directory below `bpffs`.
    pub instance: String,
    /// The cgroup v2 directory above every pod of the node.
    pub cgroup: PathBuf,
    /// A mounted bpffs.
    pub bpffs: PathBuf,
    /// What a connection sees that a policy refuses at `connect()`: `ECONNREFUSED`, or another errno.
    pub deny_errno: i32,
}

impl KernelConfig {
    pub(super) fn root(&self) -> PathBuf {
        self.bpffs.join(&self.instance)
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root().join(format!("maps-{OBJECT_HASH}"))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root().join("links")
    }

    pub(super) fn pods(&self) -> PathBuf {
        self.root().join("pods")
    }
}

/// The kernel half of a running agent.
pub struct Kernel {
    pub(super) config: KernelConfig,
    pub(super) node_inode: u64,
    /// Path of the attach point as /proc/PID/cgroup shows it.
    pub(super) attach_path: String,
    pub(super) maps: Mutex<Maps>,
    pub(super) enrolments: Enrolments,
    pub(super) records: Arc<Records>,
    /// Inode of the cgroup whose probes are proven.
    pub(super) followed: Mutex<Option<u64>>,
    stats: PerCpuArray<MapData, u64>,
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
    pub(super) listeners: SockHash<MapData, ListenerKey>,
    pub(super) mirror: Mirror,
    /// By how much each pod's count of records was wrong at the last sweep.
    pub(super) drifts: BTreeMap<u64, i64>,
    pub(super) rules: rules::Written,
    pub(super) services_written: services::Written,
}

impl Kernel {
    /// Loads the kernel half and attaches it to the cgroup, or takes over what an earlier agent left pinned.
    ///
    /// # Errors
    /// Names what is missing and what to do about it.
    pub fn start(config: KernelConfig) -> Result<Self, CaptureError> {
        // All programs or none: a kernel that refuses one must not be left with the others attached.
        probe::can_run()?;
        let cgroup_error = |source| CaptureError::Cgroup { path: config.cgroup.clone(), source };
        let cgroup = File::open(&config.cgroup).map_err(cgroup_error)?;
        let (mount, attach_path) = cgroup_path(&config.cgroup)
            .ok_or_else(|| cgroup_error(io::Error::new(io::ErrorKind::Unsupported, "not in a cgroup v2 mount")))?;
        for dir in [config.root(), config.maps(), config.links(), config.pods()] {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|source| CaptureError::Bpffs { path: config.bpffs.clone(), source })?,
            }
        }
        let home_cgroup = enter_own_cgroup(&config.cgroup, &mount, &attach_path).map_err(cgroup_error)?;
        let mut ebpf = load(&config, None)?;
        let maps = Maps::take(&mut ebpf)?;
        let stats = take(&mut ebpf, "stats")?;
        attach(&config, &cgroup, &mut ebpf)?;
        remove_other_maps(&config);
        let node = File::open("/proc/self/ns/net").and_then(|file| sys::namespace_inode(&file));
        let node_inode = node.map_err(|e| CaptureError::kernel("/proc/self/ns/net", &e))?;
        let records = Arc::new(Records::take(&mut ebpf)?);
        let maps = Mutex::new(maps);
        let enrolments = Enrolments::default();
        Ok(Self {
            config,
            node_inode,
            attach_path,
            maps,
            enrolments,
            records,
            followed: Mutex::default(),
            stats,
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
        let ring: RingBuf<MapData> = open_pinned(&self.config, "events")?;
        EventReader::new(ring)
    }

    pub(super) fn accepted_map(&self) -> Result<SkStorage<MapData, OrigDst>, CaptureError> {
        open_pinned(&self.config, "ACCEPTED")
    }

    pub(super) fn agent_sk_map(&self) -> Result<SkStorage<MapData, u32>, CaptureError> {
        open_pinned(&self.config, "AGENT_SK")
    }

    /// Attaches `sk_lookup` to one pod's netns, or puts this agent's program into the link that is there.
    pub(super) fn install_lookup(&self, netns: &Netns) -> Result<(), CaptureError> {
        let mut ebpf = load(&self.config, Some(netns.cookie))?;
        let program: &mut SkLookup = program(&mut ebpf, "mesh_lookup")?;
        program.load().map_err(|e| CaptureError::kernel("mesh_lookup", &e))?;
        let fd = program.fd().map_err(|e| CaptureError::kernel("mesh_lookup", &e))?.try_clone();
        let fd = fd.map_err(|e| CaptureError::kernel("mesh_lookup", &e))?;
        links::install("mesh_lookup", &self.lookup_pin(netns.cookie), fd.as_fd(), || {
            let attached = program.attach(netns.file()).and_then(|id| program.take_link(id));
            attached.map(FdLink::from).map_err(|e| CaptureError::kernel("mesh_lookup", &e))
        })
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

impl Kernel {
    /// Puts this agent's programs into the cgroup's links once more.
    pub(super) fn attach(&self) -> Result<(), CaptureError> {
        let path = &self.config.cgroup;
        let cgroup = File::open(path).map_err(|source| CaptureError::Cgroup { path: path.clone(), source })?;
        attach(&self.config, &cgroup, &mut load(&self.config, None)?)
    }
}

impl Maps {
    /// Looks at what the maps hold that another agent has written to.
    pub(super) fn read_again(&mut self) {
        self.mirror = Mirror::of(self);
        self.rules = rules::Written::of(self.policy.keys().filter_map(Result::ok));
        self.pods.read_again();
        self.services_written = services::Written::of(
            self.services.iter().filter_map(Result::ok),
            self.service_facts.iter().filter_map(Result::ok),
            self.endpoints.iter().filter_map(Result::ok),
        );
    }

    fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        let mut maps = Self {
            pods: PodEntries::new(take(ebpf, "pods")?, take(ebpf, "pod_facts")?),
            services: take(ebpf, "services")?,
            service_facts: take(ebpf, "service_facts")?,
            endpoints: take(ebpf, "endpoints")?,
            policy: take(ebpf, "policy")?,
            shares: take(ebpf, "shares")?,
            mesh_ips: take(ebpf, "mesh_ips")?,
            port_rules: take(ebpf, "port_rules")?,
            excluded_cidrs: take(ebpf, "excluded_cidrs")?,
            listeners: take(ebpf, "listeners")?,
            mirror: Mirror::default(),
            drifts: BTreeMap::new(),
            rules: rules::Written::default(),
            services_written: services::Written::default(),
        };
        maps.read_again();
        Ok(maps)
    }
}

pub(super) fn load(config: &KernelConfig, pod_cookie: Option<u64>) -> Result<Ebpf, CaptureError> {
    let dir = config.maps();
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, dir.join(name));
    }
    let cookie = pod_cookie.unwrap_or_default();
    loader.override_global("POD_COOKIE", &cookie, true);
    loader.override_global("DENY_ERRNO", &config.deny_errno, true);
    loader.load(OBJECT).map_err(|e| CaptureError::kernel("the object", &e))
}

pub(super) fn take<M: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, CaptureError> {
    let map = ebpf.take_map(name).ok_or_else(|| CaptureError::map(name, &io::Error::other("not in the object")))?;
    M::try_from(map).map_err(|e| CaptureError::map(name, &e))
}

fn open_pinned<M: TryFrom<Map, Error = aya::maps::MapError>>(
    config: &KernelConfig,
    name: &'static str,
) -> Result<M, CaptureError> {
    let data = MapData::from_pin(config.maps().join(name)).map_err(|e| CaptureError::map(name, &e))?;
    let map = Map::from_map_data(data).map_err(|e| CaptureError::map(name, &e))?;
    M::try_from(map).map_err(|e| CaptureError::map(name, &e))
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, CaptureError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let found =
        ebpf.program_mut(name).ok_or_else(|| CaptureError::kernel(name, &io::Error::other("not in the object")))?;
    found.try_into().map_err(|e| CaptureError::kernel(name, &e))
}

fn attach(config: &KernelConfig, cgroup: &File, ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    for name in SOCK_ADDR_PROGRAMS {
        let fail = |e: aya::programs::ProgramError| CaptureError::kernel(name, &e);
        let program: &mut CgroupSockAddr = program(ebpf, name)?;
        program.load().map_err(fail)?;
        let fd = program.fd().map_err(fail)?.try_clone().map_err(|e| CaptureError::kernel(name, &e))?;
        links::install(name, &config.links().join(name), fd.as_fd(), || {
            // Links are always "multi": the flag is refused for them.
            let attached = program.attach(cgroup, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
            FdLink::try_from(attached.map_err(fail)?).map_err(|e| CaptureError::kernel(name, &e))
        })?;
    }
    let name = "mesh_sockops";
    let fail = |e: aya::programs::ProgramError| CaptureError::kernel(name, &e);
    let program: &mut SockOps = program(ebpf, name)?;
    program.load().map_err(fail)?;
    let fd = program.fd().map_err(fail)?.try_clone().map_err(|e| CaptureError::kernel(name, &e))?;
    links::install(name, &config.links().join(name), fd.as_fd(), || {
        let attached = program.attach(cgroup, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
        FdLink::try_from(attached.map_err(fail)?).map_err(|e| CaptureError::kernel(name, &e))
    })
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
