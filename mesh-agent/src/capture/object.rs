//! The object with the programs and maps, and where an instance's maps are pinned.
//!
//! ```text
//! <bpffs>/<instance>/records-<layout>/<map>   connections under way and live ones, and who listens: go from agent to
//!                                             agent, and are the same to all whose records have this layout
//!                    maps-<number>/<map>      what one agent was told and has written: each begins with empty ones
//!                    links/<program>          cgroup links, updated in place
//!                    pods/<netns cookie>      sk_lookup links, one for each enrolled pod
//!                    guards/<…>               guards of pods that have asked for one: see `guards`
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use mesh_common::layout;

use super::error::CaptureError;

#[cfg(mesh_ebpf)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_OBJECT_PATH"));
#[cfg(not(mesh_ebpf))]
static OBJECT: &[u8] = &[];
#[cfg(mesh_ebpf_twin)]
static TWIN: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_TWIN_PATH"));

/// Connections, and what finds them.
const RECORDS: [&str; 8] = ["flows", "orig_dsts", "shares", "listeners", "events", "ASKED", "ACCEPTED", "AGENT_SK"];
/// What guards know: a record too, but not made before somebody is guarded.
const KNOWN: &str = "known";
/// What an agent writes from its snapshots, and counts.
const MAPS: [&str; 15] = [
    "pods",
    "pod_facts",
    "services",
    "service_facts",
    "endpoints",
    "policy",
    "mesh_ips",
    "port_rules",
    "excluded_cidrs",
    "admitted",
    "told",
    "plain",
    "seeks",
    "stats",
    "twin",
];
const MAPS_PREFIX: &str = "maps-";
const RECORDS_PREFIX: &str = "records-";

/// Which object is the kernel half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Half {
    /// The one that this agent was built for.
    #[default]
    Own,
    /// Other programs with records of the same layout. For tests of upgrades: not in release builds.
    #[cfg(mesh_ebpf_twin)]
    Twin,
    /// Other programs that leave the records of others alone, as if their layout were another. For tests of upgrades:
    /// not in release builds.
    #[cfg(mesh_ebpf_twin)]
    Stranger,
}

impl Half {
    pub(super) fn object(self) -> &'static [u8] {
        match self {
            Self::Own => OBJECT,
            #[cfg(mesh_ebpf_twin)]
            Self::Twin | Self::Stranger => TWIN,
        }
    }

    fn layout(self) -> u64 {
        match self {
            Self::Own => layout::RECORDS,
            #[cfg(mesh_ebpf_twin)]
            Self::Twin => layout::RECORDS,
            #[cfg(mesh_ebpf_twin)]
            Self::Stranger => !layout::RECORDS,
        }
    }
}

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
    /// Which object to load.
    pub half: Half,
}

impl KernelConfig {
    pub(super) fn root(&self) -> PathBuf {
        self.bpffs.join(&self.instance)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root().join("links")
    }

    pub(super) fn pods(&self) -> PathBuf {
        self.root().join("pods")
    }

    pub(super) fn guards(&self) -> PathBuf {
        self.root().join("guards")
    }
}

/// The object of one agent, with the directories of its maps.
pub(super) struct Object {
    half: Half,
    deny_errno: i32,
    pub(super) records: PathBuf,
    pub(super) maps: PathBuf,
    /// Directories of maps that were there before.
    pub(super) earlier: Vec<PathBuf>,
}

impl Object {
    /// Makes the instance's directories. The maps are new, whatever an earlier agent has left: it may have been any,
    /// and what it has written may be half of what it was told.
    pub(super) fn place(config: &KernelConfig) -> Result<Self, CaptureError> {
        let fail = |source| CaptureError::Bpffs { path: config.bpffs.clone(), source };
        let records = config.root().join(format!("{RECORDS_PREFIX}{:016x}", config.half.layout()));
        for dir in [config.root(), records.clone(), config.links(), config.pods(), config.guards()] {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(fail)?,
            }
        }
        let mut earlier = map_directories(&config.root()).map_err(fail)?;
        earlier.retain(|dir| *dir != records);
        let maps = config.root().join(format!("{MAPS_PREFIX}{}", next_number(&earlier)));
        fs::create_dir(&maps).map_err(fail)?;
        Ok(Self { half: config.half, deny_errno: config.deny_errno, records, maps, earlier })
    }

    /// Loads the maps; those that are pinned already are used as they are. `pod_cookie` makes the programs of one pod.
    pub(super) fn load(&self, pod_cookie: Option<u64>) -> Result<Ebpf, CaptureError> {
        self.load_for(pod_cookie.unwrap_or_default(), None)
    }

    /// The same for the guards of one pod, whose netns that of the node's side of its veth calls `pod_nsid`.
    pub(super) fn load_guards(&self, pod_cookie: u64, pod_nsid: u32) -> Result<Ebpf, CaptureError> {
        self.load_for(pod_cookie, Some(pod_nsid))
    }

    fn load_for(&self, pod_cookie: u64, guarded_nsid: Option<u32>) -> Result<Ebpf, CaptureError> {
        let mut loader = EbpfLoader::new();
        for (names, dir) in [(&RECORDS[..], &self.records), (&MAPS[..], &self.maps)] {
            for name in names {
                loader.map_pin_path(name, dir.join(name));
            }
        }
        if guarded_nsid.is_some() {
            loader.map_pin_path(KNOWN, self.records.join(KNOWN));
        } else {
            // It takes its memory at once: one entry, of a map that nobody uses, is what others pay.
            loader.map_max_entries(KNOWN, 1);
        }
        let pod_nsid = guarded_nsid.unwrap_or_default();
        loader.override_global("POD_COOKIE", &pod_cookie, true);
        loader.override_global("POD_NSID", &pod_nsid, true);
        loader.override_global("DENY_ERRNO", &self.deny_errno, true);
        loader.load(self.half.object()).map_err(|e| CaptureError::kernel("the object", &e))
    }

    /// Another handle of one of the maps of records.
    pub(super) fn record_map<M: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<M, CaptureError> {
        let data = MapData::from_pin(self.records.join(name)).map_err(|e| CaptureError::map(name, &e))?;
        let map = Map::from_map_data(data).map_err(|e| CaptureError::map(name, &e))?;
        M::try_from(map).map_err(|e| CaptureError::map(name, &e))
    }
}

/// Every directory of maps and records of an instance.
pub(super) fn map_directories(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if [MAPS_PREFIX, RECORDS_PREFIX].iter().any(|prefix| name.starts_with(prefix)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A number that no agent has, as far as one can still see.
fn next_number(earlier: &[PathBuf]) -> u64 {
    let names = earlier.iter().filter_map(|dir| dir.file_name()?.to_str()?.strip_prefix(MAPS_PREFIX));
    names.filter_map(|number| number.parse().ok()).max().unwrap_or(0_u64).wrapping_add(1)
}

/// Takes a map out of a loaded object.
pub(super) fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, CaptureError> {
    let map = ebpf.take_map(name).ok_or_else(|| CaptureError::map(name, &io::Error::other("not in the object")))?;
    M::try_from(map).map_err(|e| CaptureError::map(name, &e))
}

/// A program of a loaded object.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, CaptureError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let found =
        ebpf.program_mut(name).ok_or_else(|| CaptureError::kernel(name, &io::Error::other("not in the object")))?;
    found.try_into().map_err(|e| CaptureError::kernel(name, &e))
}
