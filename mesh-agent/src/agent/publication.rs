//! What is told of the node's pods: all that are captured, each time; withdrawn before anything is taken away.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pods::Pods;
use super::stage::{Stage, published};
use crate::control::Published;
use crate::model::workload::WorkloadUid;

impl Pods {
    /// Tells the other agents, if there is news.
    pub(super) fn publish(&mut self) {
        let mut now: BTreeMap<WorkloadUid, Published> = BTreeMap::new();
        for (uid, (workload, stage)) in &self.stages {
            match stage {
                Stage::Captured(member) => {
                    let captured = member.captured.clone();
                    now.insert(Arc::clone(uid), published(workload, captured));
                    self.inherited.remove(uid);
                }
                Stage::Joining(_) => {
                    if let Some(before) = self.inherited.get(uid) {
                        now.insert(Arc::clone(uid), before.clone());
                    }
                }
                _ => {
                    self.inherited.remove(uid);
                }
            }
        }
        if self.stages.is_empty() && self.published.is_none() {
            return;
        }
        // While an earlier agent's programs decide, what that one has published holds.
        if self.published.as_ref() == Some(&now) || !self.parts.kernel.in_force() {
            return;
        }
        let list: Vec<Published> = now.values().cloned().collect();
        match (self.parts.publish)(&list) {
            Ok(()) => self.published = Some(now),
            Err(error) => tracing::error!(%error, "what is captured on this node could not be published"),
        }
    }

    /// Takes every pod out, for an uninstall: published first, then hooks, then what is inside the pods.
    pub(super) fn take_down(&mut self) {
        self.inherited.clear();
        let stages = std::mem::take(&mut self.stages);
        self.publish();
        if self.published.as_ref().is_some_and(|published| !published.is_empty())
            && let Err(error) = (self.parts.publish)(&[])
        {
            tracing::error!(%error, "what was captured on this node could not be withdrawn");
        }
        for (uid, (_, stage)) in stages {
            let (Stage::Joining(member)
            | Stage::Captured(member)
            | Stage::Leaving { member, .. }
            | Stage::Draining(member)) = stage
            else {
                continue;
            };
            self.parts.kernel.release(&uid);
            member.handle.stop_accepting();
            let _ = member.pod.remove_routes();
        }
    }
}
