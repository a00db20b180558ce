//! Two nodes: network namespaces with a link between them, each with room for pods.
//!
//! ```text
//!  pod ─ eth0 ═ pod<n> ─ node a ─ link0 ═══ link0 ─ node b ─ pod<n> ═ eth0 ─ pod
//! ```
//! Nodes route, nothing bridges and nothing translates: a pod's address is the same everywhere, as
//! Kubernetes asks. The machine's own network is never touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::{self, Cgroup};
use crate::netns::Netns;
use crate::pod::Pod;
use crate::process::{Launch, Process};
use crate::run::Run;

/// The interface of each node towards the other.
pub const LINK: &str = "link0";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first node.
    A,
    /// The second node.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    fn index(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The node's name in Kubernetes' objects.
    #[must_use]
    pub fn node_name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }
}

/// One of something for each node.
#[derive(Debug, Default)]
pub struct Sides<T> {
    a: T,
    b: T,
}

impl<T> Sides<T> {
    /// The one of `side`.
    #[must_use]
    pub fn of(&self, side: Side) -> &T {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// The one of `side`, to be changed.
    pub fn of_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// Both.
    pub fn iter(&self) -> impl Iterator<Item = (Side, &T)> {
        [(Side::A, &self.a), (Side::B, &self.b)].into_iter()
    }
}

/// Two nodes and what they share.
#[derive(Debug)]
pub struct Topology {
    // Dropped in this order: what uses the run's folder goes first.
    nodes: Sides<Node>,
    run: Arc<Run>,
}

impl Topology {
    /// Makes two nodes with a link between them.
    ///
    /// # Errors
    /// When this is not root, or `ip` or cgroup v2 is missing.
    pub fn two_nodes() -> Result<Self> {
        anyhow::ensure!(nix::unistd::geteuid().is_root(), "namespaces and cgroups need root");
        let run = Arc::new(Run::new()?);
        let a = Node::new(&run, Side::A)?;
        let b = Node::new(&run, Side::B)?;
        // Of different index at each end: the kernel takes a veth pair of equal indices for a physical link
        // and reports its carrier up to a second late, which holds back IPv6.
        let link = format!("link add {LINK} index 101 type veth peer name {LINK} index 102 netns {}", b.netns.name());
        a.netns.ip(&link)?;
        a.join_link()?;
        b.join_link()?;
        Ok(Self { nodes: Sides { a, b }, run })
    }

    /// One of the nodes.
    #[must_use]
    pub fn node(&self, side: Side) -> &Node {
        self.nodes.of(side)
    }

    /// The run that everything here belongs to.
    #[must_use]
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }
}

/// A simulated node: its network, its part of the cgroup tree and its bpffs.
#[derive(Debug)]
pub struct Node {
    side: Side,
    netns: Netns,
    cgroup: Cgroup,
    bpffs: Bpffs,
    folder: PathBuf,
    pods: AtomicU8,
    run: Arc<Run>,
}

impl Node {
    fn new(run: &Arc<Run>, side: Side) -> Result<Self> {
        let name = format!("{}-{}", run.id(), side.node_name());
        let folder = run.subfolder(side.node_name())?;
        let netns = Netns::new(&name)?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let cgroup = Cgroup::new(cgroup::mount()?.join(&name))?;
        let bpffs = Bpffs::mount(run.subfolder(&format!("{}/bpf", side.node_name()))?)?;
        Ok(Self { side, netns, cgroup, bpffs, folder, pods: AtomicU8::new(0), run: Arc::clone(run) })
    }

    fn join_link(&self) -> Result<()> {
        let (own, other) = (self.side, self.side.other());
        self.netns.ip(&format!(
            "addr add {}/30 dev {LINK}\naddr add {}/64 dev {LINK} nodad\nlink set {LINK} up\n\
             route add {}/24 via {}\nroute add {}/64 via {}\n",
            link_v4(own),
            link_v6(own),
            pod_v4(other, 0),
            link_v4(other),
            pod_v6(other, 0),
            link_v6(other),
        ))
    }

    /// Adds a pod to this node; `name` is its short name, unique in the run.
    ///
    /// # Errors
    /// What the system says.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_at(name, self.pods.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Adds a pod with the addresses of one that was disconnected.
    ///
    /// # Errors
    /// What the system says.
    pub fn pod_in_place_of(&self, name: &str, gone: &Pod) -> Result<Pod> {
        self.pod_at(name, number(gone))
    }

    /// Takes a pod's cable away, as the plugin does at DEL that had laid it.
    ///
    /// # Errors
    /// What the system says.
    pub fn disconnect(&self, pod: &Pod) -> Result<()> {
        self.netns.ip(&format!("link del pod{}\n", number(pod)))
    }

    fn pod_at(&self, name: &str, number: u8) -> Result<Pod> {
        let host = number.checked_add(9).filter(|host| *host < 250).context("a node has room for 240 pods")?;
        let ips = [IpAddr::from(pod_v4(self.side, host)), IpAddr::from(pod_v6(self.side, host))];
        let pod = Pod::new(&self.run, self, name, ips)?;
        let gateways = (pod_v4(self.side, 1), pod_v6(self.side, 1));
        let (gateway4, gateway6) = gateways;
        self.netns.ip(&format!(
            "link add pod{number} index {} type veth peer name eth0 netns {}\n\
             addr add {gateway4}/32 dev pod{number}\naddr add {gateway6}/128 dev pod{number} nodad\n\
             link set pod{number} up\nroute add {}/32 dev pod{number}\nroute add {}/128 dev pod{number}\n",
            // Unlike its peer's, as for the link.
            200 + u32::from(number),
            pod.netns().name(),
            ips[0],
            ips[1],
        ))?;
        pod.netns().ip(&format!(
            "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add {gateway4}/32 dev eth0\nroute add default via {gateway4}\n\
             route add {gateway6}/128 dev eth0\nroute add default via {gateway6}\n",
            ips[0], ips[1],
        ))?;
        Ok(pod)
    }

    /// Which one it is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// The node's name in Kubernetes' objects.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.side.node_name()
    }

    /// The node's network.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup above all its pods: where the node's agent attaches.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// A bpffs of its own.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs.path
    }

    /// The node's folder inside the run's.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The node's address on the link.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        link_v4(self.side).into()
    }

    /// Starts a program in the node's network, outside every pod.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let launch = Launch {
            name,
            folder: &self.folder,
            run_id: self.run.id(),
            netns: Some(self.netns.descriptor()?),
            cgroup_procs: None,
        };
        Process::start(command, launch)
    }
}

/// A BPF file system mounted for one node: pins in it vanish with it.
#[derive(Debug)]
struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    fn mount(path: PathBuf) -> Result<Self> {
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount bpffs at {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("harness: cannot unmount {}: {error}", self.path.display());
        }
    }
}

/// Which of its node's pods one is: the reverse of what [`Node::pod_at`] makes of it.
fn number(pod: &Pod) -> u8 {
    match pod.ips()[0] {
        IpAddr::V4(ip) => ip.octets()[3] - 9,
        IpAddr::V6(_) => unreachable!("a pod's first address is IPv4"),
    }
}

fn link_v4(side: Side) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 250, side.index())
}

fn link_v6(side: Side) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x250, 0, 0, 0, 0, 0, side.index().into())
}

/// Address `host` of the node's pods: 0 = the network itself, 1 = their gateway, pods from 10 on.
fn pod_v4(side: Side, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, side.index(), host)
}

fn pod_v6(side: Side, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, side.index().into(), 0, 0, 0, 0, host.into())
}
