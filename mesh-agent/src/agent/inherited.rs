//! What an earlier agent has left on the node: in force until this one's maps are full, then taken away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::pods::Pods;
use super::stage::Stage;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// How often the maps are written anew before programs come into force for which something is missing in them.
const FILLINGS: u32 = 10;

/// A pod that an earlier agent had brought in, and that is not opted in any more.
pub(super) struct Leaver {
    workload: Arc<Workload>,
    /// Until then it is guarded: a predecessor may still serve it.
    until: Instant,
}

impl Pods {
    /// Whether connections are decided by this agent's programs.
    pub(super) fn in_force(&self) -> bool {
        self.parts.kernel.in_force()
    }

    /// Puts this agent's programs in the place of an earlier one's, once the maps say everything.
    pub(super) fn come_into_force(&mut self, snapshot: &Snapshot, complete: bool) {
        let kernel = &self.parts.kernel;
        let failed = self.stages.values().filter(|(_, stage)| matches!(stage, Stage::Failed { .. }));
        let leavers = self.leavers.iter().flatten().map(|leaver| &leaver.workload);
        for workload in failed.map(|(workload, _)| workload).chain(leavers) {
            if let Err(error) = kernel.guard(workload, snapshot) {
                tracing::error!(pod = %workload.display_name(), %error, "its rules are those of an earlier agent");
            }
        }
        self.fillings += 1;
        // Memory may be short for a moment. What can't be written for longer refuses connections, now or later.
        if kernel.in_force() || !complete && self.fillings < FILLINGS {
            return;
        }
        match kernel.come_into_force() {
            Ok(()) => tracing::info!("this agent's programs are in force"),
            Err(error) => tracing::error!(%error, "an earlier agent's programs are still in force"),
        }
    }

    /// Finds the pods that are leaving while this agent begins; forgets those that come back.
    pub(super) fn note_leavers(
        &mut self,
        wanted: &HashMap<WorkloadUid, Arc<Workload>>,
        snapshot: &Snapshot,
        now: Instant,
    ) {
        let (kernel, until) = (&self.parts.kernel, now + self.parts.linger);
        let found = || {
            let others = snapshot.local_workloads().filter(|workload| !wanted.contains_key(&workload.uid));
            let hooked = others.filter(|workload| kernel.is_hooked(workload));
            hooked.map(|workload| Leaver { workload: Arc::clone(workload), until }).collect()
        };
        self.leavers.get_or_insert_with(found).retain(|leaver| !wanted.contains_key(&leaver.workload.uid));
    }

    /// Takes away what is left in pods that left before this agent knew them; the hooks of those that are gone once,
    /// and when one has left that could not be enrolled.
    pub(super) fn reap(&mut self, wanted: &HashMap<WorkloadUid, Arc<Workload>>, now: Instant) {
        if !self.in_force() {
            return;
        }
        let (kernel, leavers) = (&self.parts.kernel, self.leavers.get_or_insert_default());
        if !self.reaped {
            let leaving = leavers.iter().map(|leaver| &*leaver.workload);
            kernel.reap(wanted.values().map(|workload| &**workload).chain(leaving));
            self.reaped = true;
        }
        leavers.retain(|leaver| leaver.until > now || !kernel.take_out(&leaver.workload));
    }
}
