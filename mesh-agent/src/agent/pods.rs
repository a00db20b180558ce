//! The life of this node's pods in the mesh.
//!
//! ```text
//!            enrol                certificate there            not opted in any more
//! opted in ────────► Joining ─────────────────────► Captured ──────────────────────► Leaving
//!    ▲  │ fails                                     published                        withdrawn
//!    │  ▼                                                                            │ LINGER
//!    └ Failed (again every RETRY)                             gone ◄──── Draining ◄──┘ hooks out
//!                                                                  last connection ended
//! ```
//! Runs on a thread of its own, because enrolling blocks. Publishing comes last when a pod joins and first
//! when it leaves: whoever reads that a pod is captured finds its listener (design §3, "no downgrade").

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::inherited::Leaver;
use super::stage::{Complaint, Member, PodReport, Rules, Stage, generation, has_network, published};

use crate::capture::{EnrolledPod, Kernel, NotCaptured};
use crate::control::{ControlError, Published};
use crate::identity::CertStore;
use crate::model::identity::Identity;
use crate::model::workload::{Captured, Enrolment, Workload, WorkloadUid};
use crate::proxy::{PodHandle, PodListeners, Proxy};
use crate::snapshot::Snapshot;
use crate::sys;

/// How long a leaving pod still takes tunnels: an agent that has not read of it yet (its snapshot is at most
/// 1 s old) must not fail.
pub(super) const LINGER: Duration = Duration::from_secs(3);
/// How long a pod that joins while others already talk to it takes plaintext although it is strict: the same
/// second of the others, twice. A pod that was never seen outside the mesh is strict from the start.
const LENIENCY: Duration = Duration::from_secs(2);
/// Pause between attempts to enrol a pod: its netns may come up late.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between attempts to guard a pod that asks for it.
const GUARD_RETRY: Duration = Duration::from_secs(10);

/// Pause between attempts to end what newer rules forbid: where the kernel cannot, it never can.
const RECHECK: Duration = Duration::from_secs(2);

/// What the life of pods needs.
pub(super) struct Parts {
    pub(super) kernel: Arc<Kernel>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) certificates: Arc<CertStore>,
    pub(super) wanted: watch::Sender<BTreeSet<Identity>>,
    pub(super) publish: Publish,
    pub(super) wire: Arc<[Arc<str>]>,
    /// How long a predecessor serves pods that are leaving.
    pub(super) linger: Duration,
}

/// Tells the other agents what is captured on this node: all of it, each time.
pub(super) type Publish = Box<dyn Fn(&[Published]) -> Result<(), ControlError> + Send>;

/// The pods of this node and how far each has come.
pub(super) struct Pods {
    pub(super) parts: Parts,
    pub(super) stages: HashMap<WorkloadUid, (Arc<Workload>, Stage)>,
    /// Published by an earlier agent of this node; kept until this one has enrolled the pod or failed to.
    pub(super) inherited: BTreeMap<WorkloadUid, Published>,
    pub(super) published: Option<BTreeMap<WorkloadUid, Published>>,
    /// Pods that this agent has seen outside the mesh: others may be talking to them.
    seen_outside: HashSet<WorkloadUid>,
    /// Opted-in pods that are not brought in.
    apart: Vec<PodReport>,
    /// How often the maps have been written.
    pub(super) fillings: u32,
    pub(super) reaped: bool,
    /// How often the connections of a pod could not be judged again.
    pub(super) failed_rechecks: u64,
    /// None before the first look.
    pub(super) leavers: Option<Vec<Leaver>>,
}

impl Pods {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            stages: HashMap::new(),
            inherited: BTreeMap::new(),
            published: None,
            seen_outside: HashSet::new(),
            apart: Vec::new(),
            fillings: 0,
            reaped: false,
            failed_rechecks: 0,
            leavers: None,
        }
    }

    /// Brings every pod as far as it can go now. Returns when to look again even if nothing changes.
    pub(super) fn reconcile(&mut self, snapshot: &Snapshot, now: Instant) -> Option<Instant> {
        let wanted: HashMap<WorkloadUid, Arc<Workload>> = snapshot
            .local_workloads()
            .filter(|workload| workload.is_enrolled() && has_network(workload))
            .map(|workload| (Arc::clone(&workload.uid), Arc::clone(workload)))
            .collect();
        self.apart = snapshot.local_workloads().filter_map(PodReport::apart).collect();
        self.note_outsiders(snapshot);
        self.note_leavers(&wanted, snapshot, now);
        self.want_identities(&wanted);
        self.leave(&wanted, snapshot, now);
        // Withdrawn before anything is taken away, published after everything stands.
        self.publish();
        let members = self.stages.len();
        self.join(&wanted, snapshot, now);
        if self.stages.len() > members {
            sys::give_memory_back();
        }
        self.advance(now);
        let synced = self.parts.kernel.sync(snapshot);
        if let Err(error) = &synced {
            tracing::error!(%error, "the kernel's maps could not be brought up to date");
        }
        self.come_into_force(snapshot, synced.is_ok());
        self.publish();
        self.judge_again(snapshot);
        self.reap(&wanted, now);
        self.next_look()
    }

    fn note_outsiders(&mut self, snapshot: &Snapshot) {
        let outside = snapshot.local_workloads().filter(|workload| !workload.is_enrolled());
        self.seen_outside.extend(outside.map(|workload| Arc::clone(&workload.uid)));
        self.seen_outside.retain(|uid| snapshot.workload(uid).is_some());
        if self.published.is_none() && self.stages.is_empty() {
            self.inherited = snapshot
                .local_workloads()
                .filter_map(|workload| {
                    let captured = workload.captured.clone()?;
                    Some((Arc::clone(&workload.uid), published(workload, captured)))
                })
                .collect();
        }
    }

    fn want_identities(&self, wanted: &HashMap<WorkloadUid, Arc<Workload>>) {
        let present = self.stages.values().map(|(workload, _)| workload);
        let set: BTreeSet<Identity> = wanted.values().chain(present).map(|w| w.identity.clone()).collect();
        self.parts.wanted.send_if_modified(|current| {
            let changed = *current != set;
            *current = set;
            changed
        });
    }

    fn join(&mut self, wanted: &HashMap<WorkloadUid, Arc<Workload>>, snapshot: &Snapshot, now: Instant) {
        for (uid, workload) in wanted {
            self.leave_earlier_sandbox(workload);
            match self.stages.get_mut(uid) {
                // It came back while its last connections were ending: their way back stays, and it starts anew.
                Some((_, Stage::Draining(_))) => self.enrol(workload, snapshot, now),
                // It came back before it was gone.
                Some((known, Stage::Leaving { .. })) => {
                    *known = Arc::clone(workload);
                    if let Some((_, Stage::Leaving { member, .. })) = self.stages.remove(uid) {
                        self.stages.insert(Arc::clone(uid), (Arc::clone(workload), Stage::Joining(member)));
                    }
                }
                Some((known, Stage::Failed { again, .. }))
                    if *again <= now || (&known.netns, &known.ips) != (&workload.netns, &workload.ips) =>
                {
                    *known = Arc::clone(workload);
                    self.enrol(workload, snapshot, now);
                }
                Some((known, _)) => *known = Arc::clone(workload),
                None => self.enrol(workload, snapshot, now),
            }
        }
    }

    /// A sandbox that was made anew is another network: of the earlier one nothing is kept.
    fn leave_earlier_sandbox(&mut self, workload: &Workload) {
        let member = self.stages.get(&workload.uid).and_then(|(_, stage)| stage.member());
        if member.is_some_and(|member| member.pod.is_of_an_earlier_sandbox(workload))
            && let Some((_, stage)) = self.stages.remove(&workload.uid)
            && let Some(member) = stage.member()
        {
            tracing::info!(pod = %workload.display_name(), "its sandbox was made anew");
            self.parts.kernel.release(&workload.uid);
            member.handle.stop_accepting();
        }
    }

    fn enrol(&mut self, workload: &Arc<Workload>, snapshot: &Snapshot, now: Instant) {
        let lenient = self.seen_outside.contains(&workload.uid);
        let stage = match self.bring_in(workload, snapshot, lenient) {
            Ok((pod, handle)) => {
                tracing::info!(pod = %workload.display_name(), identity = %workload.identity, "enrolled");
                let captured = Captured { generation: generation(), wire: Arc::clone(&self.parts.wire) };
                let lenient_until = lenient.then(|| now + LENIENCY);
                let rules = Rules::of(workload, snapshot);
                Stage::Joining(Member { pod, handle, captured, lenient_until, rules, complaint: Complaint::default() })
            }
            Err(why) => {
                let known = matches!(self.stages.get(&workload.uid),
                    Some((_, Stage::Failed { why: before, .. })) if before.to_string() == why.to_string());
                if !known {
                    let (pod, reason) = (workload.display_name(), why.as_str());
                    tracing::warn!(%pod, reason, detail = %why, "not captured; trying again");
                }
                Stage::Failed { why, again: now + RETRY }
            }
        };
        self.stages.insert(Arc::clone(&workload.uid), (Arc::clone(workload), stage));
    }

    fn bring_in(
        &self,
        workload: &Workload,
        snapshot: &Snapshot,
        lenient: bool,
    ) -> Result<(Arc<EnrolledPod>, PodHandle), NotCaptured> {
        let (pod, sockets) = self.parts.kernel.enrol(workload, snapshot, lenient)?;
        let added = pod.keep(&sockets).and_then(|()| {
            self.parts.proxy.add_pod(PodListeners {
                pod: Arc::clone(&pod) as _,
                outbound: sockets.outbound,
                tunnel: sockets.tunnel,
                plaintext: sockets.plaintext,
            })
        });
        match added {
            Ok(handle) => Ok((pod, handle)),
            Err(error) => {
                self.parts.kernel.release(&workload.uid);
                let _ = pod.remove_routes();
                Err(NotCaptured::System(format!("the proxy does not take it: {error}")))
            }
        }
    }

    fn leave(&mut self, wanted: &HashMap<WorkloadUid, Arc<Workload>>, snapshot: &Snapshot, now: Instant) {
        let leavers: Vec<WorkloadUid> = self.stages.keys().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        for uid in leavers {
            let Some((workload, stage)) = self.stages.remove(&uid) else { continue };
            let next = match stage {
                Stage::Failed { .. } => {
                    // What an earlier agent had put there goes with it.
                    self.reaped = false;
                    continue;
                }
                Stage::Joining(member) | Stage::Captured(member) => {
                    tracing::info!(pod = %workload.display_name(), "leaving the mesh");
                    if let Err(error) = self.parts.kernel.set_captures(&member.pod, false) {
                        tracing::error!(pod = %workload.display_name(), %error, "its connects are still captured");
                    }
                    // A deleted pod needs no grace: nobody can reach it.
                    let lives = snapshot.workload(&uid).is_some_and(|pod| pod.enrolment != Enrolment::Gone);
                    let linger = if lives { LINGER } else { Duration::ZERO };
                    Stage::Leaving { member, until: now + linger }
                }
                other => other,
            };
            self.stages.insert(uid, (workload, next));
        }
    }

    /// Moves pods on that wait for a certificate, for time or for their last connection.
    fn advance(&mut self, now: Instant) {
        let uids: Vec<WorkloadUid> = self.stages.keys().cloned().collect();
        for uid in uids {
            let Some((workload, stage)) = self.stages.remove(&uid) else { continue };
            if let Some(next) = self.step(&workload, stage, now) {
                self.stages.insert(uid, (workload, next));
            }
        }
    }

    fn step(&self, workload: &Workload, stage: Stage, now: Instant) -> Option<Stage> {
        match stage {
            Stage::Joining(mut member) => {
                member.end_leniency(now);
                if self.parts.certificates.current(&workload.identity).is_none() {
                    return Some(Stage::Joining(member));
                }
                if let Err(error) = self.parts.kernel.set_captures(&member.pod, true) {
                    tracing::error!(pod = %workload.display_name(), %error, "its connects are not captured");
                    return Some(Stage::Joining(member));
                }
                tracing::info!(pod = %workload.display_name(), "captured");
                Some(Stage::Captured(member))
            }
            Stage::Captured(mut member) => {
                member.end_leniency(now);
                Some(Stage::Captured(member))
            }
            Stage::Leaving { member, until } if until <= now => {
                self.parts.kernel.release(&workload.uid);
                member.handle.stop_accepting();
                self.step(workload, Stage::Draining(member), now)
            }
            Stage::Draining(member) if member.handle.live() == 0 => {
                if let Err(error) = member.pod.remove_routes() {
                    // The netns of a deleted pod is gone, and its rules with it.
                    tracing::debug!(pod = %workload.display_name(), %error, "routes for delivery not removed");
                }
                tracing::info!(pod = %workload.display_name(), "left the mesh");
                None
            }
            other => Some(other),
        }
    }

    /// Judges the direct connections of pods whose rules have changed.
    fn judge_again(&mut self, snapshot: &Snapshot) {
        for (workload, stage) in self.stages.values_mut() {
            if let Stage::Captured(member) = stage {
                self.failed_rechecks += u64::from(!member.judge_again(workload, snapshot));
            }
        }
    }

    fn next_look(&self) -> Option<Instant> {
        /// While something is awaited that nobody announces.
        const POLL: Duration = Duration::from_millis(200);
        let when = |stage: &Stage| match stage {
            Stage::Failed { again, .. } => Some(*again),
            Stage::Joining(_) | Stage::Draining(_) => Some(Instant::now() + POLL),
            Stage::Captured(member) => {
                let recheck = member.complaint.stands().then(|| Instant::now() + RECHECK);
                member.lenient_until.into_iter().chain(recheck).min()
            }
            Stage::Leaving { until, .. } => Some(*until),
        };
        let stages = self.stages.values().filter_map(|(_, stage)| when(stage));
        // What could not be written is tried again at the same pace.
        let sync = self.parts.kernel.next_sync().map(|due| due.max(Instant::now() + POLL));
        let awaited = !self.in_force() || self.leavers.as_ref().is_some_and(|leavers| !leavers.is_empty());
        let inherited = awaited.then(|| Instant::now() + POLL);
        let guards = self.parts.kernel.is_a_guard_missing().then(|| Instant::now() + GUARD_RETRY);
        stages.chain(sync).chain(inherited).chain(guards).min()
    }

    /// Where every pod stands.
    pub(super) fn report(&self) -> Vec<PodReport> {
        let stages = self.stages.values().map(|(workload, stage)| stage.report(workload, &self.parts.kernel));
        stages.chain(self.apart.iter().cloned()).collect()
    }

    /// Whether every pod that an earlier agent had captured is served by this one, or cannot be.
    pub(super) fn stand(&self) -> bool {
        let waits = |uid: &WorkloadUid| {
            matches!(self.stages.get(uid), Some((_, Stage::Joining(_)))) && self.inherited.contains_key(uid)
        };
        self.in_force() && !self.stages.keys().any(waits)
    }

    /// Puts everything back as this agent had it, after another one has begun to take over and failed.
    pub(super) fn take_back(&mut self) {
        if let Err(error) = self.parts.kernel.take_back() {
            tracing::error!(%error, "a pod's connections do not come here again");
        }
        // The other one may have published.
        self.published = None;
    }
}
