//! Whether a container has the node's folders, which the DaemonSet gives it. On the node itself it always has. Pure.

use std::path::{Path, PathBuf};

use super::{Finding, bad, ok, warn};

/// A folder that agent and node must share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    pub(super) is: Is,
    pub(super) path: PathBuf,
    pub(super) sight: Sight,
    /// Why nothing can be made in it; `None` where something can, or where nothing is to be.
    pub(super) read_only: Option<String>,
}

/// What a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    /// What is pinned.
    Bpffs,
    /// The cgroups of all pods.
    Cgroup,
    /// `--state-dir`.
    State,
    /// Named network namespaces.
    Netns,
    /// Where runtimes look for network configurations and plugins.
    Cni,
}

/// A folder as this process sees it, beside what process 1 sees there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The same one.
    Same,
    /// Both have none.
    Neither,
    /// Process 1 has one, this process has none.
    Absent,
    /// This process has one of its own.
    Own,
    /// It could not be looked at.
    Unknown(String),
}

impl Is {
    fn name(self) -> &'static str {
        match self {
            Self::Bpffs => "node-bpffs",
            Self::Cgroup => "node-cgroup",
            Self::State => "node-state",
            Self::Netns => "node-netns",
            Self::Cni => "node-cni",
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::Bpffs => "programs and maps that are in force while the agent is away",
            Self::Cgroup => "attaching above all pods of the node, and finding a pod's processes",
            Self::State => "the sockets by which the CNI plugin and the next agent find this one",
            Self::Netns => "the network namespaces that the container runtime names to the CNI plugin",
            Self::Cni => "keeping the CNI plugin installed, so that pods wait until they are captured",
        }
    }

    /// Whether the agent does not start, or is of no use, without the node's.
    fn is_needed(self) -> bool {
        self != Self::Bpffs
    }
}

/// Whether `folder` will do.
pub(super) fn shared(folder: &Folder) -> Finding {
    let (name, purpose, path) = (folder.is.name(), folder.is.purpose(), folder.path.display());
    let mount = || format!("mount the node's {path} there (hostPath), as deploy/kustomize/base/agent.yaml does");
    let lacking = |found: String| {
        if folder.is.is_needed() { bad(name, found, purpose, mount()) } else { warn(name, found, purpose, mount()) }
    };
    match (&folder.sight, &folder.read_only) {
        (Sight::Absent, _) => lacking(format!("{path} is not there, but on the node it is")),
        (Sight::Own, _) => lacking(format!("{path} is not the node's")),
        (Sight::Unknown(reason), _) => {
            warn(name, format!("could not be found out: {reason}"), purpose, "check as root, with CAP_SYS_PTRACE")
        }
        (_, Some(reason)) => bad(name, reason.clone(), purpose, mount()),
        (Sight::Same, None) => ok(name, format!("{path}, the node's"), purpose),
        (Sight::Neither, None) => ok(name, format!("{path} is not there yet"), purpose),
    }
}

/// Whether process 1 is the node's, by which all else here is told.
pub(super) fn process_one(is_the_nodes: bool) -> Finding {
    let purpose = "finding the pods' processes, of which no runtime has told, and the kubelet";
    if is_the_nodes {
        return ok("process-1", "the node's", purpose);
    }
    let found = "process 1 is in this process' own cgroup: a container's, not the node's";
    warn("process-1", found, purpose, "give the pod hostPID: true; outside of a container this is nothing")
}

/// The nearest of `path` and what is above it that `is_there`.
pub(super) fn nearest(path: &Path, is_there: impl Fn(&Path) -> bool) -> Option<&Path> {
    path.ancestors().find(|path| is_there(path))
}
