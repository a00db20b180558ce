//! Status back to the API server: what the mesh makes of each route and of each of our policies (decision 0013).
//!
//! The watches tell of every version of these objects, statuses included; the snapshot says what was made of them.
//! Whatever differs is written, against the version that was seen: whoever writes in between wins, and is looked at
//! again. So several controllers agree without a leader: the second finds nothing to write.

mod desired;
mod live;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kube::core::Request;
use kube::core::params::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::desired::Desired;
use self::live::Live;
pub(super) use self::live::{Sketch, has_status};
use super::backoff::Backoff;
use super::connect::describe;
use super::watch::{CONFLICT, NOT_FOUND, code, namespaced, read};
use super::{Key, Kind, Reading};
use crate::model::problem::{Effect, Problem};
use crate::model::route::RouteStatus;
use crate::snapshot::{Snapshot, SnapshotStore};

/// `controllerName` of our entries in a route's status.
pub const CONTROLLER: &str = "mesh-agent.io/controller";
/// Writes at once: the API server has other clients.
const AT_ONCE: usize = 8;
/// How long one write may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// When an object whose version was not the newest is looked at again, should its watch say nothing.
const AGAIN: Duration = Duration::from_secs(2);

/// What the watches say of objects whose status is written.
#[derive(Debug)]
pub(super) enum Told {
    Is(Box<Live>),
    Gone(Key),
}

/// Where the watches say it.
#[derive(Clone, Debug)]
pub(super) struct Tee(mpsc::UnboundedSender<Told>);

impl Tee {
    /// An object as it is now. The receiver lives as long as the watches, or nobody wants to know.
    pub(super) fn is(&self, version: &'static str, sketch: Sketch, key: &Key, reading: &Reading) {
        let _ = self.0.send(Told::Is(Box::new(Live::new(version, sketch, key, reading))));
    }

    pub(super) fn gone(&self, key: &Key) {
        if has_status(key.kind) {
            let _ = self.0.send(Told::Gone(key.clone()));
        }
    }
}

/// How often statuses were written, by how that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusWrites {
    /// The API server has it.
    pub written: u64,
    /// Somebody had written in between; looked at again.
    pub conflict: u64,
    /// The API server took it but did not keep it as written: its CRD is of another version.
    pub altered: u64,
    /// It was refused, or there was no answer; tried again.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    conflict: AtomicU64,
    altered: AtomicU64,
    failed: AtomicU64,
}

/// Reads the counts of a [`StatusWriter`] that runs.
#[derive(Clone, Debug)]
pub struct StatusWritesReader(Arc<Counts>);

impl StatusWritesReader {
    /// What it has written so far.
    #[must_use]
    pub fn read(&self) -> StatusWrites {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { written, conflict, altered, failed } = &*self.0;
        StatusWrites { written: of(written), conflict: of(conflict), altered: of(altered), failed: of(failed) }
    }
}

/// Writes statuses for as long as its source runs.
pub struct StatusWriter {
    client: kube::Client,
    told: mpsc::UnboundedReceiver<Told>,
    counts: Arc<Counts>,
}

impl std::fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusWriter").finish_non_exhaustive()
    }
}

impl StatusWriter {
    pub(super) fn new(client: kube::Client) -> (Self, Tee) {
        let (tee, told) = mpsc::unbounded_channel();
        (Self { client, told, counts: Arc::default() }, Tee(tee))
    }

    /// What counts its writes.
    #[must_use]
    pub fn counts(&self) -> StatusWritesReader {
        StatusWritesReader(Arc::clone(&self.counts))
    }

    /// Runs until the source ends, or is dropped.
    pub async fn run(self, snapshots: Arc<SnapshotStore>) {
        let Self { client, told, counts } = self;
        let work = Work {
            client,
            counts,
            objects: BTreeMap::new(),
            judged: Judged::default(),
            dirty: BTreeSet::new(),
            writing: BTreeSet::new(),
            waiting: BTreeSet::new(),
            altered: BTreeMap::new(),
            complained: None,
        };
        work.run(told, snapshots).await;
    }
}

/// What the newest snapshot says of the objects.
#[derive(Default)]
struct Judged {
    /// Nothing is said before the first snapshot.
    is_complete: bool,
    routes: HashMap<(Kind, Arc<str>, Arc<str>), RouteStatus>,
    /// By `Kind namespace/name`.
    problems: HashMap<Arc<str>, Vec<(String, Effect)>>,
    /// What all of it was read from.
    said: Option<Said>,
}

/// What a snapshot says of routes, and of everything with a mistake.
type Said = (Arc<[RouteStatus]>, Arc<[Problem]>);

impl Judged {
    fn of(snapshot: &Snapshot) -> Self {
        let routes = snapshot.route_statuses().iter().map(|status| {
            let name = &status.route;
            ((Kind::Route(name.kind), Arc::clone(&name.namespace), Arc::clone(&name.name)), status.clone())
        });
        let mut problems: HashMap<Arc<str>, Vec<(String, Effect)>> = HashMap::new();
        for problem in snapshot.problems().iter() {
            let text = if problem.field.is_empty() {
                problem.reason.to_string()
            } else {
                format!("{}: {}", problem.field, problem.reason)
            };
            problems.entry(Arc::clone(&problem.object)).or_default().push((text, problem.effect));
        }
        let said = Some((Arc::clone(snapshot.route_statuses()), Arc::clone(snapshot.problems())));
        Self { is_complete: snapshot.generation() > 0, routes: routes.collect(), problems, said }
    }

    /// Whether this is what `snapshot` says too.
    fn is_of(&self, snapshot: &Snapshot) -> bool {
        let same = |(statuses, problems): &Said| {
            Arc::ptr_eq(statuses, snapshot.route_statuses()) && Arc::ptr_eq(problems, snapshot.problems())
        };
        self.is_complete && self.said.as_ref().is_some_and(same)
    }

    fn desired(&self, live: &Live, now: &str) -> Desired {
        if !self.is_complete {
            return Desired::Later;
        }
        let key = &live.key;
        match key.kind {
            Kind::Route(_) => {
                let name = (key.kind, Arc::clone(&key.namespace), Arc::clone(&key.name));
                desired::of_route(live, self.routes.get(&name), now)
            }
            _ => {
                let problems = self.problems.get(&*key.to_string()).map_or(&[][..], Vec::as_slice);
                desired::of_policy(live, problems, now)
            }
        }
    }
}

/// How a write has ended.
struct Ended {
    key: Key,
    /// The version that was written.
    against: String,
    /// What was written of its status.
    field: &'static str,
    value: Value,
    result: Result<Value, kube::Error>,
}

struct Work {
    client: kube::Client,
    counts: Arc<Counts>,
    objects: BTreeMap<Key, Live>,
    judged: Judged,
    /// To be looked at.
    dirty: BTreeSet<Key>,
    /// Being written.
    writing: BTreeSet<Key>,
    /// To be looked at when the pause is over.
    waiting: BTreeSet<Key>,
    /// What the API server did not keep as it was written, by the version that came of it.
    altered: BTreeMap<Key, String>,
    /// The last failure that was told.
    complained: Option<String>,
}

impl Work {
    async fn run(mut self, mut told: mpsc::UnboundedReceiver<Told>, snapshots: Arc<SnapshotStore>) {
        let mut published = snapshots.watch();
        // What was published before anybody looked counts too.
        published.mark_changed();
        let mut writes: JoinSet<Ended> = JoinSet::new();
        let mut backoff = Backoff::default();
        let mut resume: Option<Instant> = None;
        loop {
            tokio::select! {
                one = told.recv() => match one {
                    Some(one) => self.take(one),
                    None => return,
                },
                changed = published.changed() => {
                    if changed.is_err() { return; }
                    let snapshot = snapshots.load();
                    // Most generations say nothing else of any object.
                    if !self.judged.is_of(&snapshot) {
                        self.judged = Judged::of(&snapshot);
                        self.dirty.extend(self.objects.keys().cloned());
                    }
                }
                Some(ended) = writes.join_next() => {
                    // A write that panicked is a fault of ours; its object is looked at with the next snapshot.
                    if let Ok(ended) = ended {
                        resume = self.ended(ended, &mut backoff).or(resume);
                    }
                }
                () = super::super::sleep_until(resume) => {
                    resume = None;
                    self.dirty.append(&mut self.waiting);
                }
            }
            while let Ok(one) = told.try_recv() {
                self.take(one);
            }
            if resume.is_none() {
                self.write(&mut writes);
            }
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Is(live) => {
                self.dirty.insert(live.key.clone());
                self.objects.insert(live.key.clone(), *live);
            }
            Told::Gone(key) => self.forget(&key),
        }
    }

    fn forget(&mut self, key: &Key) {
        self.objects.remove(key);
        self.altered.remove(key);
        self.dirty.remove(key);
        self.waiting.remove(key);
    }

    fn write(&mut self, writes: &mut JoinSet<Ended>) {
        let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        while writes.len() < AT_ONCE
            && let Some(key) = self.dirty.pop_first()
        {
            let Some(live) = self.objects.get(&key).filter(|_| !self.writing.contains(&key)) else { continue };
            if self.altered.get(&key) == Some(&live.resource_version) {
                continue;
            }
            let Desired::Write(field, value) = self.judged.desired(live, &now) else { continue };
            self.writing.insert(key);
            writes.spawn(patch(self.client.clone(), live.clone(), field, value));
        }
    }

    /// Takes in how a write has ended; until when to pause, if it failed.
    fn ended(&mut self, ended: Ended, backoff: &mut Backoff) -> Option<Instant> {
        let Ended { key, against, field, value: sent, result } = ended;
        self.writing.remove(&key);
        let count = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(value) => {
                backoff.reset();
                self.complained = None;
                count(&self.counts.written);
                let kept = value.pointer(&format!("/status/{field}")) == Some(&sent);
                if !kept {
                    count(&self.counts.altered);
                    tracing::warn!(object = %key, field, "the API server does not keep the status: is its CRD older?");
                }
                self.written(&key, &against, kept, value);
                None
            }
            Err(error) if code(&error) == Some(NOT_FOUND) => {
                self.forget(&key);
                None
            }
            Err(error) if code(&error) == Some(CONFLICT) => {
                count(&self.counts.conflict);
                self.waiting.insert(key);
                Some(Instant::now() + AGAIN)
            }
            Err(error) => {
                count(&self.counts.failed);
                let reason = describe(&error);
                if self.complained.as_ref() != Some(&reason) {
                    tracing::warn!(object = %key, %reason, "a status cannot be written; it is tried further");
                    self.complained = Some(reason);
                }
                self.waiting.insert(key);
                Some(Instant::now() + backoff.next(rand::random()))
            }
        }
    }

    /// What the API server made of a write.
    fn written(&mut self, key: &Key, against: &str, kept: bool, value: Value) {
        self.dirty.insert(key.clone());
        let sketch = Sketch::of(&value);
        if !kept {
            self.altered.insert(key.clone(), sketch.resource_version().to_owned());
        }
        // The watch may have been faster, and know more.
        let Some(before) = self.objects.get(key).filter(|live| live.resource_version == against) else { return };
        let version = before.version;
        let (_, reading) = read(key.kind, version, value, false);
        self.objects.insert(key.clone(), Live::new(version, sketch, key, &reading));
    }
}

/// Writes one field of the status of the version that was seen, and no other version.
async fn patch(client: kube::Client, live: Live, field: &'static str, value: Value) -> Ended {
    let body = json!({"metadata": {"resourceVersion": live.resource_version}, "status": {field: &value}});
    let parameters = PatchParams { field_manager: Some(CONTROLLER.replace('/', ".")), ..PatchParams::default() };
    let request = Request::new(namespaced(live.key.kind, live.version, &live.key.namespace)).patch_subresource(
        "status",
        &live.key.name,
        &parameters,
        &Patch::Merge(body),
    );
    let result = match request {
        Ok(request) => match tokio::time::timeout(ATTEMPT, client.request::<Value>(request)).await {
            Ok(result) => result,
            Err(_) => Err(kube::Error::Service(format!("no answer within {} s", ATTEMPT.as_secs()).into())),
        },
        Err(error) => Err(kube::Error::BuildRequest(error)),
    };
    Ended { key: live.key, against: live.resource_version, field, value, result }
}
