//! What the agent needs beyond root's uid, for its own start and for `mesh-agent check`, which must agree.

use std::fs;

/// One capability.
#[derive(Debug, PartialEq, Eq)]
pub struct Capability {
    /// As in capabilities(7).
    pub name: &'static str,
    /// Its number in capability.h.
    bit: u32,
    /// The calls that need it.
    pub purpose: &'static str,
    /// What becomes of an agent without it; `None`: it does not start.
    pub without: Option<&'static str>,
}

/// All of them. CAP_PERFMON is not among them: CAP_SYS_ADMIN includes it, and is needed anyway. It includes CAP_BPF
/// too, which is asked for all the same, as `deploy/` gives it: the wider one may go one day.
pub const CAPABILITIES: [Capability; 5] = [
    Capability {
        name: "CAP_SYS_ADMIN",
        bit: 21,
        purpose: "setns(2) into the pods' network namespaces, BPF_OBJ_GET and link updates",
        without: None,
    },
    Capability { name: "CAP_BPF", bit: 39, purpose: "bpf(2): loading programs and maps", without: None },
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
        purpose: "attaching network programs, IP_TRANSPARENT and SO_MARK of delivery sockets, rules in the pods",
        without: None,
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        bit: 19,
        purpose: "finding the pods' processes, network namespaces and cgroups below /proc",
        without: None,
    },
    Capability {
        name: "CAP_SYS_RESOURCE",
        bit: 24,
        purpose: "raising the limit of open files",
        without: Some("the limit of open files stays as it is: raise it with ulimit -n for many connections"),
    },
];

impl Capability {
    /// Whether it is among those that are `held`.
    #[must_use]
    pub fn is_in(&self, held: u64) -> bool {
        held >> self.bit & 1 == 1
    }
}

/// The effective capabilities in the text of /proc/PID/status, by bit.
#[must_use]
pub fn effective(status: &str) -> Option<u64> {
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(held.trim(), 16).ok()
}

/// Those without which the agent does not start and which this process does not hold; all when /proc does not say.
pub(super) fn missing() -> Vec<&'static str> {
    let held = fs::read_to_string("/proc/self/status").ok().and_then(|status| effective(&status)).unwrap_or_default();
    let needed = CAPABILITIES.iter().filter(|capability| capability.without.is_none());
    needed.filter(|capability| !capability.is_in(held)).map(|capability| capability.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_the_effective_ones() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\n";
        assert_eq!(effective(status), Some(0x1000));
        assert_eq!(effective("Name:\tx\n"), None);
        let held: Vec<&str> = CAPABILITIES.iter().filter(|one| one.is_in(0x1000)).map(|one| one.name).collect();
        assert_eq!(held, ["CAP_NET_ADMIN"]);
    }
}
