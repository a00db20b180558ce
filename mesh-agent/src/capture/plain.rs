//! Who has come to the pods without proving anything, as the receivers' hooks have written it down. Nothing is decided
//! by it: it says whom a strict mode would refuse.

use std::net::IpAddr;
use std::time::Duration;

use super::kernel::Kernel;
use crate::model::workload::WorkloadUid;
use crate::sys;

/// Somebody who came to a pod's port without proof, since this agent's programs are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// The pod.
    pub pod: WorkloadUid,
    /// Its port.
    pub port: u16,
    /// From where.
    pub source: IpAddr,
    /// Connections, repeated SYNs included.
    pub count: u64,
    /// How long ago the last one was.
    pub ago: Duration,
}

impl Kernel {
    /// Everybody who is remembered, for pods that are enrolled now.
    #[must_use]
    pub fn unproven(&self) -> Vec<Unproven> {
        let now = sys::monotonic_ns();
        // An entry that makes room while this reads is one of those that came longest ago.
        let entries = self.plain.iter().flatten();
        let of = entries.filter_map(|(key, value)| {
            let ago = Duration::from_nanos(now.saturating_sub(value.last_ns));
            let pod = self.pod_by_cookie(key.netns_cookie)?;
            let source = IpAddr::from(key.ip).to_canonical();
            Some(Unproven { pod, port: key.port, source, count: value.count, ago })
        });
        of.collect()
    }
}
