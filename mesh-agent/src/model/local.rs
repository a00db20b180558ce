//! What a node knows of its own pods before the API server does, or when it does not say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::workload::WorkloadUid;

/// By pod.
pub type LocalPods = BTreeMap<WorkloadUid, LocalPod>;

/// One pod, as the container runtime has told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalPod {
    /// Its sandbox stands.
    Standing {
        /// Its network namespace.
        netns: PathBuf,
        /// Its addresses; canonical.
        addresses: Vec<IpAddr>,
    },
    /// Its sandbox has been taken down, whatever the API server still says.
    Gone,
}
