//! A pod that refuses what is outside, a pod of the mesh, and a pod that is in none.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_agent::capture::EnrolledPod;
use mesh_agent::model::egress::Egress;
use mesh_agent::model::workload::{PeerMode, Workload};
use mesh_tests::datagram::{WORD, Way};
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::Value;

use crate::bench::*;
use crate::pair::*;

pub struct World {
    pub client: Pod,
    /// Enrolled last: the endpoint of the bench's Service. Serves TCP 8080.
    pub inside: Pod,
    /// Serves TCP 8080.
    pub outside: Pod,
    /// Cluster DNS (both protocols), the API server (TCP), node-local DNS (both), a UDP Service: nobody's addresses.
    pub admitted: [SocketAddr; 4],
    _kept: (Arc<EnrolledPod>, Arc<EnrolledPod>, [Process; 2]),
}

/// Makes a workload that refuses what is outside.
pub fn refusing(workload: Workload) -> Workload {
    Workload { egress: Egress { refused_by: Some("test/inside".into()), guarded_by: None }.into(), ..workload }
}

/// Runs `story` with a client that refuses what is outside, and nobody who accepts on the agent's listeners.
pub fn world(story: impl FnOnce(&mut Bench, &World) -> Result<()>) -> Result<()> {
    node(|bench| {
        let (client, inside, outside) = (bench.pod("client")?, bench.pod("inside")?, bench.pod("outside")?);
        let (client_net, _gone) = bench.enrol(refusing(captured_workload(&client, PeerMode::Permissive)))?;
        let (inside_net, _gone) = bench.enrol(captured_workload(&inside, PeerMode::Permissive))?;
        let servers = [inside.sample_server("greeter", 8080, &[])?, outside.sample_server("greeter", 8080, &[])?];
        let admitted = ADMITTED.map(|address| address.parse().expect("an address"));
        let world = World { client, inside, outside, admitted, _kept: (client_net, inside_net, servers) };
        story(bench, &world)
    })
}

/// A socket of `pod` that datagrams to `at` reach.
pub fn inbox(pod: &Pod, at: SocketAddr) -> Result<UdpSocket> {
    let socket = pod.netns().run(|| UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// Whether [`WORD`] has come.
pub fn arrived(inbox: &UdpSocket) -> Result<bool> {
    let mut buffer = [0; 16];
    match inbox.recv(&mut buffer) {
        Ok(length) => Ok(&buffer[..length] == WORD),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sends by `way` and wants ECONNREFUSED.
pub fn refused_way(from: &Pod, how: &str, way: Way, to: SocketAddr) -> Result<()> {
    let sent = from.netns().run(|| way(to))?;
    let refused = sent.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    ensure!(refused, "{how} to {to}: {sent:?}");
    Ok(())
}

/// Everything that reaches a pod's interface, whoever it is for.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn of(pod: &Pod) -> Result<Self> {
        let socket = pod.netns().run(|| -> Result<OwnedFd> {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            Ok(mesh_tests::sys::packet_socket(index, 1 << 20)?)
        })??;
        Ok(Self(socket))
    }

    /// Whether a frame with these bytes comes.
    pub fn carries(&self, bytes: &[u8]) -> Result<bool> {
        let mut frame = [0; 2048];
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) if frame[..length].windows(bytes.len()).any(|window| window == bytes) => return Ok(true),
                // It waits for 50 ms at a time.
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}

/// A connection to an address that may be nobody's.
pub fn probe_briefly(pod: &Pod, to: SocketAddr) -> Result<Value> {
    pod.ask("probe", to, &["--within-ms", "200"], SOON)
}

/// How many entries a map has.
pub fn entries(bench: &Bench, map: &str) -> Result<usize> {
    Ok(mesh_tests::bpf::map_entries(&bench.pins())?[map])
}

/// Takes every entry out of a map.
pub fn empty<K: aya::Pod, V: aya::Pod>(bench: &Bench, name: &str) -> Result<()> {
    let mut map = map::<K, V>(bench, name)?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    ensure!(!keys.is_empty(), "{name} was empty before");
    keys.iter().try_for_each(|key| map.remove(key)).map_err(Into::into)
}
