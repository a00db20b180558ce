//! How far one pod has come, and what it is judged by on the way.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::admin::status::is_expected;
use crate::capture::{DirectConnection, EnrolledPod, Kernel, NotCaptured};
use crate::control::Published;
use crate::model::identity::PeerIdentity;
use crate::model::policy::Policy;
use crate::model::rare::Rare;
use crate::model::workload::{Captured, Enrolment, PeerModes, Workload};
use crate::policy::{Flow, authorize};
use crate::proxy::PodHandle;
use crate::snapshot::Snapshot;

/// Where one pod stands, for status and metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct PodReport {
    /// The pod.
    pub workload: Arc<Workload>,
    /// `waiting`, `joining`, `captured`, `leaving`, `draining`, `failed` or `outside`.
    pub stage: &'static str,
    /// For `failed`: the word of [`NotCaptured`]; for `outside`: what keeps it there; for `captured`: `guard` when its
    /// guard is not in force; else empty.
    pub reason: &'static str,
    /// The sentence that goes with it.
    pub detail: Arc<str>,
    /// The network namespace that it is in the mesh with.
    pub netns_inode: Option<u64>,
}

impl PodReport {
    /// One of an opted-in pod that is not brought in; `None` for all others.
    pub(super) fn apart(workload: &Arc<Workload>) -> Option<Self> {
        let (stage, reason, detail) = match workload.enrolment {
            Enrolment::HostNetwork => ("outside", "host_network", "it shares the node's network (hostNetwork)"),
            Enrolment::GuestKernel => {
                ("outside", "guest_kernel", "its sockets live in a guest kernel, where no hook sees them")
            }
            Enrolment::Enrolled if !has_network(workload) => ("waiting", "", "it has no network yet"),
            _ => return None,
        };
        Some(Self { workload: Arc::clone(workload), stage, reason, detail: detail.into(), netns_inode: None })
    }

    /// Whether the pod should be captured.
    pub(super) fn is_expected(&self) -> bool {
        is_expected(self.stage)
    }
}

/// Whether the pod has come so far that there is something to capture.
pub(super) fn has_network(workload: &Workload) -> bool {
    workload.netns.is_some() || !workload.ips.is_empty()
}

pub(super) enum Stage {
    Failed { why: NotCaptured, again: Instant },
    Joining(Member),
    Captured(Member),
    Leaving { member: Member, until: Instant },
    Draining(Member),
}

pub(super) struct Member {
    pub(super) pod: Arc<EnrolledPod>,
    pub(super) handle: PodHandle,
    pub(super) captured: Captured,
    pub(super) lenient_until: Option<Instant>,
    pub(super) rules: Rules,
    pub(super) complaint: Complaint,
}

/// Why something that is tried again and again fails: news only when the cause is another one.
#[derive(Default)]
pub(super) struct Complaint(Option<String>);

impl Complaint {
    /// It has failed once more. Returns whether nobody has been told of this cause.
    fn is_news(&mut self, cause: String) -> bool {
        let news = self.0.as_ref() != Some(&cause);
        self.0 = Some(cause);
        news
    }

    /// It has worked.
    fn over(&mut self) {
        self.0 = None;
    }

    /// Whether it has failed and not worked since.
    pub(super) fn stands(&self) -> bool {
        self.0.is_some()
    }
}

/// What the connections of a pod that came in without the agent were last judged by.
#[derive(PartialEq)]
pub(super) struct Rules {
    pub(super) peer_mode: Rare<PeerModes>,
    pub(super) policies: Vec<Arc<Policy>>,
}

impl Rules {
    pub(super) fn of(workload: &Workload, snapshot: &Snapshot) -> Self {
        Self { peer_mode: workload.peer_mode.clone(), policies: snapshot.policies_for(&workload.uid).to_vec() }
    }
}

impl Stage {
    /// What has been brought in.
    pub(super) fn member(&self) -> Option<&Member> {
        match self {
            Self::Failed { .. } => None,
            Self::Joining(member) | Self::Captured(member) | Self::Leaving { member, .. } | Self::Draining(member) => {
                Some(member)
            }
        }
    }

    /// For status and metrics.
    pub(super) fn report(&self, workload: &Arc<Workload>, kernel: &Kernel) -> PodReport {
        let unguarded = |member: &Member| kernel.guard_problem(member.pod.netns_cookie());
        let (stage, reason, detail) = match self {
            Self::Failed { why, .. } => ("failed", why.as_str(), why.to_string().into()),
            Self::Joining(_) => ("joining", "", "".into()),
            Self::Captured(member) => match unguarded(member) {
                Some(why) => ("captured", "guard", why),
                None => ("captured", "", "".into()),
            },
            Self::Leaving { .. } => ("leaving", "", "".into()),
            Self::Draining(_) => ("draining", "", "".into()),
        };
        let netns_inode = self.member().map(|member| member.pod.netns_inode());
        PodReport { workload: Arc::clone(workload), stage, reason, detail, netns_inode }
    }
}

impl Member {
    /// Ends the time in which plaintext passes although the pod is strict, once it is over.
    pub(super) fn end_leniency(&mut self, now: Instant) {
        if self.lenient_until.is_some_and(|until| until <= now) {
            self.lenient_until = None;
            self.pod.end_leniency();
        }
    }

    /// Ends the connections that came in without the agent and that newer rules forbid. Those of the agent are its
    /// proxy's to end. Returns whether that could be done; if not, it is to be tried again.
    pub(super) fn judge_again(&mut self, workload: &Workload, snapshot: &Snapshot) -> bool {
        let rules = Rules::of(workload, snapshot);
        if self.rules == rules {
            return true;
        }
        match self.pod.end_direct(|connection| may_stay(workload, snapshot, connection)) {
            Ok(ended) => {
                self.rules = rules;
                self.complaint.over();
                for DirectConnection { local, peer, client } in ended {
                    let (pod, lane) = (workload.display_name(), if client.is_some() { "native" } else { "plaintext" });
                    tracing::info!(%pod, %peer, %local, lane, outcome = "revoked", "connection ended by newer rules");
                }
                true
            }
            Err(error) => {
                if self.complaint.is_news(error.to_string()) {
                    let pod = workload.display_name();
                    tracing::error!(%pod, %error, "connections could not be judged again; trying again");
                }
                false
            }
        }
    }
}

fn may_stay(workload: &Workload, snapshot: &Snapshot, connection: &DirectConnection) -> bool {
    let port = connection.local.port();
    let client = connection.client.as_ref().and_then(|uid| snapshot.workload(uid));
    let flow = Flow {
        destination: Arc::clone(&workload.uid),
        port,
        peer: client.map_or(PeerIdentity::Unknown, |client| PeerIdentity::Verified(client.identity.clone())),
        source_ip: connection.peer.ip(),
    };
    authorize(snapshot, flow).is_ok()
}

/// What is told of a pod.
pub(super) fn published(workload: &Workload, captured: Captured) -> Published {
    Published { uid: Arc::clone(&workload.uid), name: workload.display_name(), captured }
}

/// Grows over restarts of the agent, without a file: milliseconds since 1970.
pub(super) fn generation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_until_it_is_over_or_another_one() {
        let mut complaint = Complaint::default();
        let told = ["a", "a", "b", "b", "a"].map(|cause| complaint.is_news(cause.to_owned()));
        assert_eq!(told, [true, false, true, false, true]);
        assert!(complaint.stands());
        complaint.over();
        assert!(!complaint.stands());
        assert!(complaint.is_news("a".to_owned()));
    }
}
