//! The chained plugin: what a container runtime asks, and what it is told (decision 0010). Makes no interface.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::absent;
use super::call::{Call, Operation, PodOf};
use super::error::{CniError, Code, NEWEST, VERSIONS};
use crate::admin::{self, AdminError, EnrolAnswer, EnrolRequest, ReleaseRequest, Request};
use crate::config::CniEnvironment;

/// How long an agent that is being replaced is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions.
const PACE: Duration = Duration::from_millis(50);
/// DEL is not held up by an agent that does not answer.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is printed on stdout, and whether the call has succeeded.
pub struct Outcome {
    /// The result or the error, or nothing.
    pub printed: Option<Value>,
    /// Whether the process is to end with 0.
    pub is_success: bool,
}

/// Does what the runtime asks.
#[must_use]
pub fn call(environment: &CniEnvironment, stdin: &[u8]) -> Outcome {
    match Call::read(environment, stdin).map_err(|error| (error, NEWEST.to_owned())).and_then(answer) {
        Ok(printed) => Outcome { printed, is_success: true },
        Err((error, version)) => Outcome { printed: Some(error.to_json(&version)), is_success: false },
    }
}

fn answer(call: Call) -> Result<Option<Value>, (CniError, String)> {
    let version = call.version.clone();
    let done = match call.operation {
        Operation::Version => Ok(Some(json!({"cniVersion": NEWEST, "supportedVersions": VERSIONS}))),
        // Not whether the agent is there: see decision 0010. That the configuration can be read is known by now.
        Operation::Status | Operation::CollectGarbage => Ok(None),
        Operation::Add => block_on(add(&call)).map(|()| Some(result(&call))),
        Operation::Check => block_on(check(&call)).map(|()| None),
        Operation::Delete => block_on(delete(&call)).map(|()| None),
    };
    done.map_err(|error| (error, version))
}

fn block_on<T>(work: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CniError::new(Code::Io, "the plugin cannot start", error.to_string()))?.block_on(work)
}

/// `prevResult` as it came; the specification has it say its version.
fn result(call: &Call) -> Value {
    let mut result = call.conf.prev_result.clone().unwrap_or_default();
    if let Some(result) = result.as_object_mut() {
        result.entry("cniVersion").or_insert_with(|| json!(call.version));
    }
    result
}

/// What the agent says, or that it is not there, or that the deadline came first.
enum Heard {
    Answer(EnrolAnswer),
    Absent(String),
    Nothing,
}

async fn add(call: &Call) -> Result<(), CniError> {
    let Some((pod, request)) = question(call)? else { return Ok(()) };
    let deadline = Instant::now() + call.conf.deadline();
    let mut absent_since = None;
    let mut reason = "the agent does not answer".to_owned();
    loop {
        let heard = ask(&call.conf.state_dir, &request, deadline).await;
        let now = Instant::now();
        reason = match heard {
            Heard::Answer(EnrolAnswer::Captured | EnrolAnswer::NotAsked) => return Ok(()),
            Heard::Answer(EnrolAnswer::Refused { reason }) => {
                return Err(CniError::new(Code::NotCaptured, title(pod), reason));
            }
            Heard::Answer(EnrolAnswer::Waiting { reason }) => {
                absent_since = None;
                reason
            }
            Heard::Absent(reason) if now.duration_since(*absent_since.get_or_insert(now)) >= PATIENCE => {
                return absent::decide(&call.conf, pod, &reason).await;
            }
            Heard::Absent(reason) => reason,
            // What it said last is why.
            Heard::Nothing => reason,
        };
        if now >= deadline {
            let details = format!(
                "not captured within {} s, and its containers do not start outside the mesh: {reason}",
                call.conf.deadline().as_secs()
            );
            return Err(CniError::new(Code::TryAgainLater, title(pod), details));
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The sandbox is as ADD left it: in the mesh, if it is to be.
async fn check(call: &Call) -> Result<(), CniError> {
    let Some((pod, request)) = question(call)? else { return Ok(()) };
    match ask(&call.conf.state_dir, &request, Instant::now() + call.conf.deadline()).await {
        Heard::Answer(EnrolAnswer::Captured | EnrolAnswer::NotAsked) => Ok(()),
        Heard::Answer(EnrolAnswer::Refused { reason }) => Err(CniError::new(Code::NotCaptured, title(pod), reason)),
        Heard::Answer(EnrolAnswer::Waiting { reason }) | Heard::Absent(reason) => {
            Err(CniError::new(Code::TryAgainLater, title(pod), reason))
        }
        Heard::Nothing => Err(CniError::new(Code::TryAgainLater, title(pod), "the agent does not answer")),
    }
}

/// Never fails: whoever is not known needs nothing, and an agent that is away finds out by itself.
async fn delete(call: &Call) -> Result<(), CniError> {
    if let Some(PodOf { uid: Some(uid), .. }) = &call.pod {
        let request = Request::Release(ReleaseRequest { uid: uid.clone(), container: call.container.clone() });
        let _ = timeout(FAREWELL, admin::ask::<Value>(&call.conf.state_dir, &request)).await;
    }
    Ok(())
}

/// What the agent is to be asked; `None`: nothing, this pod passes.
fn question(call: &Call) -> Result<Option<(&PodOf, Request)>, CniError> {
    let Some(pod) = &call.pod else { return Ok(None) };
    if call.conf.is_exempt(&pod.namespace) {
        return Ok(None);
    }
    let Some(uid) = pod.uid.clone() else {
        let details = "CNI_ARGS has no K8S_POD_UID; containerd has told it since 1.5, CRI-O since 1.22";
        return Err(CniError::new(Code::InvalidEnvironment, title(pod), details));
    };
    let request = EnrolRequest {
        uid,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        container: call.container.clone(),
        netns: real(&call.netns),
        addresses: call.conf.addresses()?,
    };
    Ok(Some((pod, Request::Enrol(request))))
}

/// The path without links in its directory: /var/run is /run on the node, and need not be in the agent's container.
/// Its last part stays: in /proc it is a link to nowhere.
fn real(netns: &Path) -> PathBuf {
    let parts = netns.parent().and_then(|dir| dir.canonicalize().ok()).zip(netns.file_name());
    parts.map_or_else(|| netns.to_owned(), |(dir, name)| dir.join(name))
}

async fn ask(state_dir: &Path, request: &Request, deadline: Instant) -> Heard {
    match tokio::time::timeout_at(deadline, admin::ask(state_dir, request)).await {
        Ok(Ok(answer)) => Heard::Answer(answer),
        Ok(Err(AdminError::Socket { source, path })) if source.kind() == io::ErrorKind::TimedOut => {
            Heard::Answer(EnrolAnswer::Waiting { reason: format!("the agent at {} does not answer", path.display()) })
        }
        // Nobody listens, or it went away in the middle, or is of a version that does not know the question.
        Ok(Err(error)) => Heard::Absent(error.to_string()),
        Err(_) => Heard::Nothing,
    }
}

pub(super) fn title(pod: &PodOf) -> String {
    format!("pod {}/{}", pod.namespace, pod.name)
}
