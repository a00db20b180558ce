//! The guards of pods that have asked for one: programs on the node's side of their veths, pinned like every other.
//!
//! ```text
//! <bpffs>/<instance>/guards/<netns cookie>-<device of the pod>-<in|out>
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{ProgramFd, SchedClassifier, TcAttachType};

use super::error::CaptureError;
use super::hooks;
use super::kernel::Kernel;
use super::links;
use super::netns::Netns;
use super::veth::{self, Outside, Way};
use crate::model::workload::Workload;
use crate::sys;

/// What the pod sends comes in on the node's side, and the other way round.
const PROGRAMS: [(&str, &str, TcAttachType); 2] =
    [("mesh_guard_in", "in", TcAttachType::Egress), ("mesh_guard_out", "out", TcAttachType::Ingress)];

/// Which pods have asked, and how far they have come.
#[derive(Default)]
pub(super) struct Guards(Mutex<BTreeMap<u64, Guarded>>);

struct Guarded {
    netns: Arc<Netns>,
    wanted: bool,
    stands: Result<Vec<Way>, Arc<str>>,
}

impl Guards {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Guarded>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a pod's policies say. In force after [`Kernel::settle_guards`].
    pub(super) fn note(&self, netns: &Arc<Netns>, workload: &Workload) {
        let wanted = workload.is_guarded();
        let nothing = || Guarded { netns: Arc::clone(netns), wanted, stands: Ok(Vec::new()) };
        self.lock().entry(netns.cookie).or_insert_with(nothing).wanted = wanted;
    }

    /// Makes the next [`Kernel::settle_guards`] install all of them once more.
    pub(super) fn anew(&self) {
        self.lock().values_mut().for_each(|guarded| guarded.stands = Ok(Vec::new()));
    }
}

impl Kernel {
    /// Brings the guards of all known pods to what was noted. A guard that cannot stand is named by
    /// [`Kernel::guard_problem`], and tried again the next time; the socket hooks hold without it.
    ///
    /// Does nothing while another agent's programs are in force.
    pub(super) fn settle_guards(&self) {
        if !self.in_force() {
            return;
        }
        let pinned: BTreeSet<u64> = guard_pins(self.config.guards()).map(|(_, (cookie, _))| cookie).collect();
        for (cookie, guarded) in self.guards.lock().iter_mut() {
            if !guarded.wanted {
                if pinned.contains(cookie) {
                    self.remove_guards(*cookie, &[]);
                }
                guarded.stands = Ok(Vec::new());
                continue;
            }
            let stands = self.settle(&guarded.netns, guarded.stands.as_deref().unwrap_or_default());
            if let (Err(why), false) = (&stands, stands == guarded.stands) {
                tracing::error!(netns_cookie = cookie, %why, "a pod's packets are not guarded");
            }
            guarded.stands = stands;
        }
    }

    /// Why the guard of a pod that has asked for one is not in force.
    #[must_use]
    pub fn guard_problem(&self, netns_cookie: u64) -> Option<Arc<str>> {
        let guards = self.guards.lock();
        guards.get(&netns_cookie).filter(|guarded| guarded.wanted)?.stands.clone().err()
    }

    /// Whether some pod that asks for a guard has none.
    #[must_use]
    pub fn is_a_guard_missing(&self) -> bool {
        self.guards.lock().values().any(|guarded| guarded.wanted && guarded.stands.is_err())
    }

    fn settle(&self, netns: &Netns, stands: &[Way]) -> Result<Vec<Way>, Arc<str>> {
        let told = |error: &dyn std::fmt::Display| Arc::from(format!("packets are not guarded: {error}"));
        let ways = veth::ways(netns).map_err(|error| told(&error))?;
        if ways != stands {
            for way in &ways {
                let outside = veth::outside(netns, way).map_err(|error| told(&error))?;
                self.install_guard(netns.cookie, way, &outside).map_err(|error| told(&error))?;
            }
            let keep: Vec<u32> = ways.iter().map(|way| way.index).collect();
            self.remove_guards(netns.cookie, &keep);
        }
        Ok(ways)
    }

    /// Both directions; what comes in first, because it tells the other what is known.
    fn install_guard(&self, cookie: u64, way: &Way, outside: &Outside) -> Result<(), CaptureError> {
        let mut ebpf = self.object.load_guards(cookie, outside.pod_nsid)?;
        for (name, suffix, side) in PROGRAMS {
            let program = hooks::load::<SchedClassifier>(&mut ebpf, name)?;
            let fd = program.fd().map_err(|e| CaptureError::kernel(name, &e))?.try_clone();
            let fd: ProgramFd = fd.map_err(|e| CaptureError::kernel(name, &e))?;
            let pin = self.config.guards().join(format!("{cookie}-{}-{suffix}", way.index));
            links::install(name, &pin, fd.as_fd(), || attach(program, name, outside, side))?;
        }
        Ok(())
    }

    /// Takes a pod's guards away, but for those of the devices `keep`.
    pub(super) fn remove_guards(&self, cookie: u64, keep: &[u32]) {
        for (pin, at) in guard_pins(self.config.guards()).filter(|(_, at)| at.0 == cookie && !keep.contains(&at.1)) {
            if let Err(error) = links::remove(&pin) {
                tracing::error!(netns_cookie = cookie, device = at.1, %error, "a guard could not be taken away");
            }
        }
    }

    /// Nothing of the pod is to be guarded any more.
    pub(super) fn forget_guards(&self, cookie: u64) {
        self.guards.lock().remove(&cookie);
        self.remove_guards(cookie, &[]);
    }
}

fn attach(
    program: &mut SchedClassifier,
    name: &str,
    outside: &Outside,
    side: TcAttachType,
) -> Result<FdLink, CaptureError> {
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = sys::within_netns(outside.netns.as_fd(), || {
        program.attach_with_options(&outside.device, side, first).and_then(|id| program.take_link(id))
    });
    let link = attached.map_err(|e| CaptureError::kernel(name, &e))?.map_err(|e| CaptureError::kernel(name, &e))?;
    link.try_into().map_err(|e| CaptureError::kernel(name, &e))
}

/// Every guard's pin, with the pod's cookie and its device.
fn guard_pins(dir: PathBuf) -> impl Iterator<Item = (PathBuf, (u64, u32))> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        let mut parts = path.file_name()?.to_str()?.split('-');
        let at = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some((path, at))
    })
}
