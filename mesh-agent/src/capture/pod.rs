//! One enrolled pod: its listeners and sockets inside its netns, its entry in the kernel's maps.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, SkStorage};
use mesh_common::limits::{CAPTURE_PORT_FIRST, PLAINTEXT_PORT, TUNNEL_PORT};
use mesh_common::value::{AGENT_DELIVERY, AGENT_UPSTREAM, LANE_CAPTURED, LANE_CAPTURED_REST, OrigDst as KernelOrigDst};
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{CaptureError, NotCaptured};
use super::handover::KeptListeners;
use super::kernel::Kernel;
use super::netns::{self, Netns};
use super::records::Records;
use super::{egress, links, routes, rules, sync};
use crate::model::addr::{OrigDst, Scope};
use crate::model::workload::{Workload, WorkloadUid};
use crate::proxy::pod_net::{PodNet, SocketUse};
use crate::snapshot::Snapshot;
use crate::sys;

/// Connections that wait to be accepted; the kernel caps it at the netns' `net.core.somaxconn` (4,096).
const BACKLOG: i32 = 65_535;

/// The agent's listening sockets inside one pod, non-blocking.
#[derive(Debug)]
pub struct PodSockets {
    /// Captured outbound connections.
    pub outbound: TcpListener,
    /// Tunnels from other agents, port 15008.
    pub tunnel: TcpListener,
    /// Plaintext that a policy must judge.
    pub plaintext: TcpListener,
}

/// One enrolled pod's network.
pub struct EnrolledPod {
    uid: WorkloadUid,
    pub(super) netns: Arc<Netns>,
    accepted: SkStorage<MapData, KernelOrigDst>,
    agent_sk: Mutex<SkStorage<MapData, u32>>,
    pub(super) records: Arc<Records>,
    pub(super) captures: AtomicBool,
    pub(super) lenient: AtomicBool,
    pub(super) kept: KeptListeners,
    /// Whether the way back of deliveries stands.
    routed: AtomicBool,
}

/// Who is enrolled, by uid.
#[derive(Default)]
pub(super) struct Enrolments(Mutex<HashMap<WorkloadUid, Arc<EnrolledPod>>>);

impl Enrolments {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<WorkloadUid, Arc<EnrolledPod>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owners(&self) -> HashMap<u64, WorkloadUid> {
        self.lock().values().map(|pod| (pod.netns.inode, Arc::clone(&pod.uid))).collect()
    }
}

impl Kernel {
    /// Puts the agent's listeners and hooks into a pod. Inbound rules hold from here on; outbound connections
    /// are captured after [`Kernel::set_captures`]. `lenient` lets plaintext pass although the pod is strict,
    /// for a pod that joins while others already talk to it (see [`EnrolledPod::end_leniency`]).
    ///
    /// Blocks for some milliseconds: not for an async thread.
    ///
    /// # Errors
    /// Why the pod is not captured; nothing of it remains then but what an earlier agent had put there.
    pub fn enrol(
        &self,
        workload: &Workload,
        snapshot: &Snapshot,
        lenient: bool,
    ) -> Result<(Arc<EnrolledPod>, PodSockets), NotCaptured> {
        let netns = Netns::of(workload, self.node_inode, &self.enrolments.owners(), &self.config.cgroup)?;
        if let Some((pid, cgroup)) = netns.process_outside(&self.attach_path) {
            return Err(NotCaptured::Cgroup { pid, cgroup });
        }
        let sockets = open_sockets(&netns)?;
        let pod = Arc::new(EnrolledPod {
            uid: Arc::clone(&workload.uid),
            accepted: self.accepted_map()?,
            agent_sk: Mutex::new(self.agent_sk_map()?),
            records: Arc::clone(&self.records),
            netns,
            captures: AtomicBool::new(false),
            lenient: AtomicBool::new(lenient),
            kept: KeptListeners::default(),
            routed: AtomicBool::new(false),
        });
        // A pod that an earlier agent served keeps capturing while this one takes over.
        let inherited = self.lookup_pin(pod.netns.cookie).exists();
        pod.captures.store(inherited && workload.captured.is_some(), Ordering::Relaxed);
        if let Err(error) = self.install_pod(&pod, workload, snapshot, &sockets) {
            // What protects it already stays: see `guard`.
            if !inherited {
                self.remove_pod(&pod);
            }
            return Err(error.into());
        }
        self.enrolments.lock().insert(Arc::clone(&pod.uid), Arc::clone(&pod));
        self.records.enter(pod.netns.cookie, Arc::clone(&pod.uid));
        Ok((pod, sockets))
    }

    fn install_pod(
        &self,
        pod: &EnrolledPod,
        workload: &Workload,
        snapshot: &Snapshot,
        sockets: &PodSockets,
    ) -> Result<(), CaptureError> {
        {
            let mut maps = self.lock_maps();
            // First: an earlier agent's programs see that somebody listens, and send connections here.
            pod.steer_to(sockets, &mut maps)?;
            if let Err(error) = rules::sync(&mut maps, snapshot) {
                tracing::error!(%error, "pods with rules that could not be written refuse every connection");
            }
            // Before the pod's entry: from then on what is not admitted is refused.
            egress::prepare(&mut maps, snapshot, std::iter::once(workload))?;
            let policy = rules::name(&maps, snapshot, workload);
            sync::write_pod(&mut maps, pod.entry(), workload, policy)?;
        }
        self.install_lookup(&pod.netns)
    }

    /// Takes the hooks out of a pod: new connections are as without the mesh, those that stand go on. Their
    /// way back ([`EnrolledPod::remove_routes`]) must stay until the last delivered one has ended.
    pub fn release(&self, uid: &str) -> Option<Arc<EnrolledPod>> {
        let pod = self.enrolments.lock().remove(uid)?;
        self.remove_pod(&pod);
        Some(pod)
    }

    fn remove_pod(&self, pod: &EnrolledPod) {
        pod.kept.let_go();
        self.unstage(pod.netns.cookie);
        // The hooks go first: they drop whatever has no entry in the map.
        self.forget_guards(pod.netns.cookie);
        if let Err(error) = links::remove(&self.lookup_pin(pod.netns.cookie)) {
            tracing::error!(uid = %pod.uid, %error, "the pod's sk_lookup link could not be unpinned");
        }
        sync::remove_cookie(&mut self.lock_maps(), pod.netns.cookie);
        self.records.leave(pod.netns.cookie);
    }

    /// Switches the capture of outbound connections.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_captures(&self, pod: &EnrolledPod, captures: bool) -> Result<(), CaptureError> {
        pod.captures.store(captures, Ordering::Relaxed);
        sync::update_flags(&mut self.lock_maps(), pod)
    }

    /// The enrolled pod whose netns has this cookie.
    #[must_use]
    pub fn pod_by_cookie(&self, cookie: u64) -> Option<WorkloadUid> {
        self.records.pod(cookie)
    }
}

impl EnrolledPod {
    /// Cookie of its network namespace.
    #[must_use]
    pub fn netns_cookie(&self) -> u64 {
        self.netns.cookie
    }

    /// Inode of its network namespace: no other has it while this pod is enrolled.
    #[must_use]
    pub fn netns_inode(&self) -> u64 {
        self.netns.inode
    }

    /// Whether the pod's sandbox is another one by now: what its network namespace's path leads to is not this one.
    #[must_use]
    pub fn is_of_an_earlier_sandbox(&self, workload: &Workload) -> bool {
        let now = workload.netns.as_deref().and_then(|path| netns::inode_at(path).ok());
        now.is_some_and(|inode| inode != self.netns.inode)
    }

    /// Ends the time in which plaintext passed although the pod is strict; the next sync writes it.
    pub fn end_leniency(&self) {
        self.lenient.store(false, Ordering::Relaxed);
    }

    /// Takes rule, table and sysctl out of the pod's netns. Delivered connections that still stand are cut.
    ///
    /// # Errors
    /// What netlink says.
    pub fn remove_routes(&self) -> io::Result<()> {
        self.netns.within(routes::remove)
    }

    /// The way back of what is delivered stands from the first delivery on. Not before: one rule in a netns makes
    /// each of its connections dearer by several microseconds, for as long as the netns lives, and a pod whose peers
    /// are all on its node needs none.
    fn deliverable(&self) -> io::Result<()> {
        if !self.routed.load(Ordering::Acquire) {
            // Twice at a time is once: what is there already stays.
            self.netns.within(routes::install).map_err(|e| io::Error::new(e.kind(), format!("way back: {e}")))?;
            self.routed.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn mark_own(&self, socket: &Socket, purpose: u32) -> io::Result<()> {
        let mut map = self.agent_sk.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(&socket.as_fd(), purpose, 0).map_err(io::Error::other)
    }
}

impl PodNet for EnrolledPod {
    fn uid(&self) -> &WorkloadUid {
        &self.uid
    }

    fn original_destination(&self, accepted: BorrowedFd<'_>) -> Option<(OrigDst, Scope)> {
        let orig = self.accepted.get(&accepted, 0).ok()?;
        let ip = IpAddr::from(orig.ip).to_canonical();
        let scope = match orig.lane {
            LANE_CAPTURED => Scope::All,
            LANE_CAPTURED_REST => Scope::Rest,
            _ => return None,
        };
        Some((OrigDst::new(SocketAddr::new(ip, orig.port)), scope))
    }

    fn proven_client(&self, local: SocketAddr, peer: SocketAddr) -> Option<WorkloadUid> {
        self.records.client(self.netns.cookie, local, peer)
    }

    fn socket(&self, to: SocketAddr, purpose: SocketUse) -> io::Result<Socket> {
        let domain = Domain::for_address(to);
        let socket =
            self.netns.within(|| Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP)))?;
        match purpose {
            SocketUse::Upstream => self.mark_own(&socket, AGENT_UPSTREAM)?,
            SocketUse::Delivery { client } => {
                self.deliverable()?;
                self.mark_own(&socket, AGENT_DELIVERY)?;
                show_client(&socket, client.ip())?;
            }
        }
        Ok(socket)
    }
}

/// Binds to the client's own address, which is not this host's (see `routes`).
fn show_client(socket: &Socket, client: IpAddr) -> io::Result<()> {
    match client {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(routes::MARK)?;
    sys::set_bind_address_no_port(socket.as_fd())?;
    socket.bind(&SocketAddr::new(client, 0).into())
}

fn open_sockets(netns: &Netns) -> Result<PodSockets, NotCaptured> {
    let open = |port| {
        netns.within(|| listen(port)).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => NotCaptured::PortInUse { port },
            _ => NotCaptured::System(format!("listening on port {port} inside the pod: {error}")),
        })
    };
    Ok(PodSockets { outbound: open(CAPTURE_PORT_FIRST)?, tunnel: open(TUNNEL_PORT)?, plaintext: open(PLAINTEXT_PORT)? })
}

/// A dual-stack listener; IPv4 only where the kernel has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let (socket, any): (_, IpAddr) = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            (socket, std::net::Ipv6Addr::UNSPECIFIED.into())
        }
        Err(_) => {
            (Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?, std::net::Ipv4Addr::UNSPECIFIED.into())
        }
    };
    // An old and a new agent listen side by side during an upgrade.
    socket.set_reuse_port(true)?;
    // Connections of an earlier agent may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
