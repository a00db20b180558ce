//! Pods that an earlier agent had hooked and this one has not enrolled: guarded for as long as they must be, then left
//! as they were found.

use std::collections::HashSet;
use std::sync::Arc;

use super::error::CaptureError;
use super::kernel::Kernel;
use super::netns::Netns;
use super::sync::{Entry, remove_cookie, write_pod};
use super::uninstall::pinned_cookies;
use super::{egress, links, routes, rules, sockets};
use crate::model::workload::Workload;
use crate::snapshot::Snapshot;

impl Kernel {
    /// Whether a hook is in the pod, whoever put it there.
    #[must_use]
    pub fn is_hooked(&self, workload: &Workload) -> bool {
        self.hooked(workload).is_some()
    }

    /// The pod's network namespace, if a hook is in it. A name alone is no claim: another pod's netns may be named.
    fn hooked(&self, workload: &Workload) -> Option<Arc<Netns>> {
        let netns = Netns::of(workload, self.node_inode, &self.enrolments.owners(), &self.config.cgroup).ok()?;
        self.lookup_pin(netns.cookie).exists().then_some(netns)
    }

    /// Keeps a hooked pod under its rules that this agent has not enrolled: to be called before
    /// [`Kernel::come_into_force`], and whenever the snapshot has changed. This agent does not listen there: what is
    /// not decided by the kernel alone goes to one that still does, is refused, or passes without the mesh where the
    /// pod may do without. Pods without a hook are left alone.
    ///
    /// # Errors
    /// What could not be written.
    pub fn guard(&self, workload: &Workload, snapshot: &Snapshot) -> Result<(), CaptureError> {
        let Some(netns) = self.hooked(workload) else { return Ok(()) };
        {
            let mut maps = self.lock_maps();
            let policy = rules::name(&maps, snapshot, workload);
            egress::prepare(&mut maps, snapshot, std::iter::once(workload))?;
            let captures = workload.is_enrolled() && workload.captured.is_some();
            write_pod(&mut maps, Entry { cookie: netns.cookie, captures, lenient: false }, workload, policy)?;
        }
        self.guards.note(&netns, workload);
        if self.in_force() {
            self.settle_guards();
            Ok(())
        } else {
            self.install_lookup(&netns)
        }
    }

    /// Removes the hooks of pods that are gone. `known` are those of this node that are not: also such as could not be
    /// enrolled keep what protects them.
    pub fn reap<'a>(&self, known: impl Iterator<Item = &'a Workload>) {
        let keep: HashSet<u64> =
            known.filter_map(|pod| Netns::named_by(pod, &self.config.cgroup)).map(|netns| netns.cookie).collect();
        for cookie in pinned_cookies(&self.config).filter(|cookie| !keep.contains(cookie)) {
            tracing::info!(netns_cookie = cookie, "removing the hook of a pod that left while no agent ran");
            self.unhook(cookie);
        }
    }

    /// Takes a pod out that an earlier agent had brought in. Returns whether nothing of the mesh is left in it: the way
    /// back of what an agent has delivered stays until the last such connection has ended.
    #[must_use]
    pub fn take_out(&self, workload: &Workload) -> bool {
        // The netns of a deleted pod is gone, and what was in it. One that another pod owns by now is left alone.
        let owners = self.enrolments.owners();
        let others = |netns: &Netns| owners.get(&netns.inode).is_some_and(|owner| *owner != workload.uid);
        let Some(netns) = Netns::named_by(workload, &self.config.cgroup).filter(|netns| !others(netns)) else {
            return true;
        };
        self.unhook(netns.cookie);
        netns.within(|| Ok(sockets::any_marked()? || routes::remove().is_err())).is_ok_and(|left| !left)
    }

    fn unhook(&self, cookie: u64) {
        self.unstage(cookie);
        self.forget_guards(cookie);
        let _ = links::remove(&self.lookup_pin(cookie));
        remove_cookie(&mut self.lock_maps(), cookie);
    }
}
