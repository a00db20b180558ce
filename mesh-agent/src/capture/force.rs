//! Coming into force where an earlier agent's programs are: not before the maps say everything that this one was
//! told.
//!
//! Until then the earlier programs decide, by their own maps; the records and the listeners are everybody's. So there
//! is no moment without rules, and none at which a connection meets a map that is half full.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::programs::links::FdLink;
use aya::programs::{ProgramFd, SkLookup};

use super::error::CaptureError;
use super::hooks::{self, CgroupHooks, Hook, LOOKUP};
use super::kernel::Kernel;
use super::links;
use super::netns::Netns;

/// Programs that are loaded and not in force yet.
#[derive(Default)]
pub(super) struct Staged(Mutex<Option<Stage>>);

struct Stage {
    cgroup: CgroupHooks,
    pods: BTreeMap<u64, (Arc<Netns>, ProgramFd)>,
}

impl Staged {
    pub(super) fn with(cgroup: CgroupHooks) -> Self {
        Self(Mutex::new(Some(Stage { cgroup, pods: BTreeMap::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel {
    /// Whether connections are decided by this agent's programs and maps.
    #[must_use]
    pub fn in_force(&self) -> bool {
        self.staged.lock().is_none()
    }

    /// Puts this agent's programs in the place of those that an earlier one has left. To be called when every pod that
    /// can be enrolled is, and the maps have been written; does nothing when the programs are in force already.
    ///
    /// # Errors
    /// The first link that could not be updated. The receivers' come first: until all of them have changed, the
    /// earlier programs go on to decide at `connect()`.
    pub fn come_into_force(&self) -> Result<(), CaptureError> {
        let mut staged = self.staged.lock();
        let Some(stage) = &mut *staged else { return Ok(()) };
        for (netns, program) in stage.pods.values() {
            links::install(LOOKUP, &self.lookup_pin(netns.cookie), program.as_fd(), || self.attach_lookup(netns))?;
        }
        stage.cgroup.install(&self.config.cgroup, &self.config.links())?;
        *staged = None;
        drop(staged);
        // Links that an earlier agent has left get these programs.
        self.settle_guards();
        self.settle_egress(&mut self.lock_maps())
    }

    /// Makes one pod's `sk_lookup` this agent's: at once, or when this agent comes into force.
    pub(super) fn install_lookup(&self, netns: &Arc<Netns>) -> Result<(), CaptureError> {
        let mut ebpf = self.object.load(Some(netns.cookie))?;
        let program = hooks::load::<SkLookup>(&mut ebpf, LOOKUP)?;
        if let Some(stage) = &mut *self.staged.lock() {
            let fd = program.fd().map_err(|e| CaptureError::kernel(LOOKUP, &e))?.try_clone();
            let fd = fd.map_err(|e| CaptureError::kernel(LOOKUP, &e))?;
            stage.pods.insert(netns.cookie, (Arc::clone(netns), fd));
            return Ok(());
        }
        hooks::install(program, LOOKUP, &self.lookup_pin(netns.cookie), netns.file())
    }

    /// The pod is not to be hooked any more.
    pub(super) fn unstage(&self, cookie: u64) {
        if let Some(stage) = &mut *self.staged.lock() {
            stage.pods.remove(&cookie);
        }
    }

    /// Puts this agent's programs into the cgroup's links once more.
    pub(super) fn attach(&self) -> Result<(), CaptureError> {
        CgroupHooks::load(self.object.load(None)?)?.install(&self.config.cgroup, &self.config.links())
    }

    fn attach_lookup(&self, netns: &Netns) -> Result<FdLink, CaptureError> {
        let mut ebpf = self.object.load(Some(netns.cookie))?;
        let program = hooks::load::<SkLookup>(&mut ebpf, LOOKUP)?;
        Hook::attach(program, LOOKUP, netns.file())
    }
}
