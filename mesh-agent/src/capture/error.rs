//! Why the kernel half does not stand, for the node or for one pod.

use std::io;
use std::path::PathBuf;

/// A fault that concerns the whole node: the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The agent was built without the programs.
    #[error("this mesh-agent was built without eBPF programs: run `cargo xtask setup`, then build it again")]
    NotBuilt,
    /// The process may not do what it must.
    #[error("missing privileges: {}; run as root, or grant them", .0.join(", "))]
    Privileges(Vec<&'static str>),
    /// The bpffs directory cannot be used.
    #[error(
        "{path}: not a mounted bpffs ({source}); mount it with `mount -t bpf bpf {path}` or name another with --bpffs"
    )]
    Bpffs {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The attach point cannot be used.
    #[error("{path}: cannot attach to this cgroup ({source}); --cgroup must name a directory of a cgroup v2 mount")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused the object, a program or a map.
    #[error("the kernel refused {what}: {reason}; `mesh-agent check` says what this kernel lacks")]
    Kernel {
        /// Program or map.
        what: String,
        /// The kernel's words, with the verifier's when there are any.
        reason: String,
    },
    /// A map update failed.
    #[error("map {map}: {reason}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// The kernel's words.
        reason: String,
    },
}

impl CaptureError {
    pub(super) fn kernel(what: &str, error: &dyn std::error::Error) -> Self {
        Self::Kernel { what: what.to_owned(), reason: chain(error) }
    }

    pub(super) fn map(map: &'static str, error: &dyn std::error::Error) -> Self {
        Self::Map { map, reason: chain(error) }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why one opted-in pod is not captured. The word is the `reason` label of the metric and of `status`.
#[derive(Debug, thiserror::Error)]
pub enum NotCaptured {
    /// Nobody names its network namespace, and no process of it is found.
    #[error(
        "no network namespace is known: the container runtime has told of none, no annotation mesh-agent.io/netns is \
         believed, and below --cgroup no process of the pod is seen (an agent in a pod needs hostPID)"
    )]
    NetnsUnknown,
    /// The named network namespace is not there.
    #[error("{path}: {source}")]
    NetnsGone {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The named network namespace is another's.
    #[error("netns mismatch: {0}")]
    NetnsMismatch(String),
    /// Its processes are outside the attach point.
    #[error("process {pid} of the pod is in cgroup {cgroup}, outside the attach point: its connects are not seen")]
    Cgroup {
        /// One of its processes.
        pid: i32,
        /// Where that is.
        cgroup: String,
    },
    /// A port that the agent needs is taken.
    #[error("port {port} is in use inside the pod")]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// Something else failed.
    #[error("{0}")]
    System(String),
}

impl NotCaptured {
    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NetnsUnknown => "netns_unknown",
            Self::NetnsGone { .. } => "netns_gone",
            Self::NetnsMismatch(_) => "netns_mismatch",
            Self::Cgroup { .. } => "cgroup",
            Self::PortInUse { .. } => "port_in_use",
            Self::System(_) => "system",
        }
    }
}

impl From<CaptureError> for NotCaptured {
    fn from(error: CaptureError) -> Self {
        Self::System(error.to_string())
    }
}
