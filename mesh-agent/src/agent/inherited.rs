//! What an earlier agent has left on the node: in force until this one's maps are full, then taken away.

use std::collections::HashMap;
use std::sync::Arc;

use super::pods::Pods;
use super::stage::Stage;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// How often the maps are written anew before programs come into force for which something is missing in them.
const FILLINGS: u32 = 10;

impl Pods {
    /// Whether connections are decided by this agent's programs.
    pub(super) fn in_force(&self) -> bool {
        self.parts.kernel.in_force()
    }

    /// Puts this agent's programs in the place of an earlier one's, once the maps say everything.
    pub(super) fn come_into_force(&mut self, snapshot: &Snapshot, complete: bool) {
        let kernel = &self.parts.kernel;
        for (workload, stage) in self.stages.values() {
            if matches!(stage, Stage::Failed { .. })
                && let Err(error) = kernel.guard(workload, snapshot)
            {
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

    /// Takes away the hooks of pods that left before this agent knew them: once, and when one has left that could not
    /// be enrolled.
    pub(super) fn reap(&mut self, wanted: &HashMap<WorkloadUid, Arc<Workload>>) {
        if !self.reaped && self.in_force() {
            self.parts.kernel.reap(wanted.values().map(|workload| &**workload));
            self.reaped = true;
        }
    }
}
