//! What the CNI plugin is told (decision 0010): its sandbox goes into the book, and the answer comes once the pod is
//! captured, or cannot be, or after a second, to be asked again. Decides nothing: the snapshot and the pods' stages do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::metrics::Board;
use super::stage::PodReport;
use crate::admin::{EnrolAnswer, EnrolRequest, ReleaseRequest};
use crate::capture::is_below;
use crate::cni::{Book, MODES_NAME, Modes, WRITTEN_EVERY, is_static, write_modes};
use crate::model::workload::{Enrolment, Workload};
use crate::snapshot::Snapshot;

/// How long one question waits: below the admin socket's own deadline.
const HOLD: Duration = Duration::from_secs(1);
/// How often the files of the state directory are looked after when nothing changes.
const KEEP: Duration = WRITTEN_EVERY;

/// Answers the plugin.
pub(super) struct Enroller {
    pub(super) board: Arc<Board>,
    pub(super) book: Arc<Book>,
    /// Where the programs are attached.
    pub(super) cgroup: PathBuf,
}

impl Enroller {
    /// Notes the sandbox and waits until its pod has come as far as it can, or [`HOLD`] is over.
    pub(super) async fn enrol(&self, request: EnrolRequest) -> EnrolAnswer {
        if is_static(&request.uid) {
            return judge_static(&request, &self.board.snapshots.load());
        }
        let request = Arc::new(request);
        let (book, entered) = (Arc::clone(&self.book), Arc::clone(&request));
        let inode = match tokio::task::spawn_blocking(move || book.enter(&entered)).await {
            Ok(Ok(inode)) => inode,
            Ok(Err(error)) => return waiting(unseen(&request, &error.to_string())),
            Err(error) => return waiting(format!("the agent failed: {error}")),
        };
        let mut looks = self.board.watch();
        let deadline = tokio::time::Instant::now() + HOLD;
        loop {
            looks.borrow_and_update();
            let answer = judge(&request, inode, &self.board.snapshots.load(), &self.board.pods());
            match answer {
                EnrolAnswer::Waiting { .. } => {}
                EnrolAnswer::Captured => return self.within_reach(&request).await,
                other => return other,
            }
            match tokio::time::timeout_at(deadline, looks.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return answer,
            }
        }
    }

    /// That the pod is captured, if what runs in it will be below the attach point: elsewhere no program sees it.
    async fn within_reach(&self, request: &EnrolRequest) -> EnrolAnswer {
        let (cgroup, uid) = (self.cgroup.clone(), request.uid.clone());
        match tokio::task::spawn_blocking(move || is_below(&cgroup, &uid)).await {
            Ok(true) => EnrolAnswer::Captured,
            Ok(false) => waiting(format!(
                "no cgroup of it is below --cgroup {}, so that nothing would capture what its containers send: give \
                 the agent the cgroup that the kubelet's are below",
                self.cgroup.display()
            )),
            Err(error) => waiting(format!("the agent failed: {error}")),
        }
    }

    /// Notes that the sandbox is taken down.
    pub(super) async fn release(&self, request: ReleaseRequest) {
        let book = Arc::clone(&self.book);
        // A panic is told by the runtime.
        let _ = tokio::task::spawn_blocking(move || book.leave(&request)).await;
    }

    /// Keeps the book free of pods that are gone, and leaves for the plugin which namespaces are opted in. Never ends.
    pub(super) async fn keep(self: Arc<Self>, state_dir: PathBuf) {
        let mut snapshots = self.board.snapshots.watch();
        let mut ticks = tokio::time::interval(KEEP);
        let mut told = None;
        loop {
            let is_due = tokio::select! {
                _ = ticks.tick() => true,
                changed = snapshots.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            let snapshot = self.board.snapshots.load();
            if snapshot.generation() == 0 {
                continue;
            }
            let namespaces = Arc::clone(snapshot.namespaces());
            let (is_news, dir, book) = (told.as_ref() != Some(&namespaces), state_dir.clone(), Arc::clone(&self.book));
            let work = move || {
                book.prune(|uid| snapshot.workload(uid).is_some(), Instant::now());
                if is_news || is_due {
                    let modes: Modes = namespaces.iter().map(|(name, mode)| (name.to_string(), *mode)).collect();
                    write_modes(&dir, &modes)?;
                }
                Ok::<_, std::io::Error>(namespaces)
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(namespaces)) => told = Some(namespaces),
                Ok(Err(error)) => {
                    let file = state_dir.join(MODES_NAME);
                    tracing::warn!(%error, file = %file.display(), "the modes of the namespaces could not be written");
                }
                // A panic is told by the runtime.
                Err(_) => {}
            }
        }
    }
}

fn waiting(reason: String) -> EnrolAnswer {
    EnrolAnswer::Waiting { reason }
}

fn unknown(namespace: &str) -> EnrolAnswer {
    waiting(format!("the API server has not shown namespace {namespace} to the agent yet"))
}

fn unseen(request: &EnrolRequest, error: &str) -> String {
    format!(
        "the agent cannot note its network namespace {}: {error}; the directory must be mounted into the agent's pod \
         with mountPropagation HostToContainer",
        request.netns.display()
    )
}

/// How far the pod has come whose sandbox has a network namespace with this `inode`. Pure.
fn judge(request: &EnrolRequest, inode: u64, snapshot: &Snapshot, pods: &[PodReport]) -> EnrolAnswer {
    let EnrolRequest { uid, namespace, name, .. } = request;
    if snapshot.generation() == 0 {
        return waiting("the agent has not read the objects yet: its log and `mesh-agent status` say why".to_owned());
    }
    let Some(workload) = snapshot.workload(uid) else {
        return waiting(format!("the API server has not shown pod {namespace}/{name} with uid {uid} to the agent yet"));
    };
    match workload.enrolment {
        // Made just now, and opted in perhaps: its watch may be behind that of the pods.
        Enrolment::NotAsked if !snapshot.namespaces().contains_key(namespace.as_str()) => unknown(namespace),
        Enrolment::NotAsked | Enrolment::HostNetwork => EnrolAnswer::NotAsked,
        Enrolment::GuestKernel => EnrolAnswer::Refused { reason: guest_kernel(workload) },
        Enrolment::Gone => waiting("it has finished, or another pod still owns its address".to_owned()),
        Enrolment::Enrolled => stage(pods.iter().find(|pod| pod.workload.uid == workload.uid), inode),
    }
}

/// A static pod. The API server has it late, and with another uid: its namespace alone decides. In the mesh it can't
/// be, as nobody can say which object of the API server's is its own. Pure.
fn judge_static(request: &EnrolRequest, snapshot: &Snapshot) -> EnrolAnswer {
    let EnrolRequest { namespace, name, .. } = request;
    match snapshot.namespaces().get(namespace.as_str()) {
        Some(false) => EnrolAnswer::NotAsked,
        Some(true) => EnrolAnswer::Refused {
            reason: format!(
                "{name} is a static pod, which cannot be in the mesh, and namespace {namespace} is opted in; move it \
                 to another namespace, or exempt this one (--cni-exempt-namespaces)"
            ),
        },
        None => unknown(namespace),
    }
}

fn guest_kernel(workload: &Workload) -> String {
    format!(
        "pod {} is opted in, but its sockets live in a guest kernel, where nothing can capture them; label it \
         `mesh-agent.io/mode: disabled` to run it outside the mesh",
        workload.display_name()
    )
}

fn stage(report: Option<&PodReport>, inode: u64) -> EnrolAnswer {
    let Some(report) = report else {
        return waiting("it has not been looked at yet".to_owned());
    };
    match report.stage {
        "captured" if report.netns_inode == Some(inode) => EnrolAnswer::Captured,
        "captured" => waiting("an earlier sandbox of it is still captured".to_owned()),
        "joining" => waiting("it waits for its certificate: `mesh-agent status` says what the CA answers".to_owned()),
        "failed" => waiting(format!("it cannot be captured: {}", report.detail)),
        other => waiting(format!("it is {other}")),
    }
}
