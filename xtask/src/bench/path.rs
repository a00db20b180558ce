//! The ways from client to server that are compared, on one stage that stays the same for all of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::{self, Process, tail};
use mesh_tests::topology::Side;
use mesh_tests::{apps, bpf};

/// 128-byte bodies, as in the table of rivals.
pub const BODY_BYTES: usize = 128;

/// Ports of the server pod.
pub mod port {
    /// nginx.
    pub const HTTP: u16 = 8080;
    /// nginx, HTTP/2 without TLS.
    pub const HTTP2: u16 = 8081;
    /// iperf3.
    pub const IPERF: u16 = 5201;
    /// A server that speaks first.
    pub const GREETER: u16 = 7001;
    /// An echo server.
    pub const ECHO: u16 = 7000;
    /// Those of the tunnel lane's bench.
    pub const ALL: [u16; 4] = [HTTP, IPERF, GREETER, ECHO];
}

/// Another proxy pair.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name in the table.
    pub name: String,
    /// Shell command that puts it between client and server.
    pub up: String,
    /// Shell command that takes it away.
    pub down: String,
}

/// One way from client to server.
#[derive(Clone, Debug)]
pub enum Path {
    /// Nothing between.
    Direct,
    /// The same once more: what differs is noise.
    DirectAgain,
    /// Through our agents.
    Mesh,
    /// Through somebody else's proxies.
    Peer(Peer),
}

impl Path {
    /// Its name in the table.
    pub fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::DirectAgain => "a/a",
            Self::Mesh => "mesh",
            Self::Peer(peer) => &peer.name,
        }
    }
}

/// Nodes, pods and servers.
pub struct Stage {
    _servers: Vec<Process>,
    client: Arc<Workload>,
    server: Arc<Workload>,
    mesh: Mesh,
}

/// What a measurement sees of the stage.
pub struct Scene<'a> {
    /// Where clients run.
    pub client: &'a Workload,
    /// What is to be accounted: the proxies' process ids.
    pub proxies: Vec<u32>,
    targets: BTreeMap<u16, SocketAddr>,
    server: IpAddr,
}

impl<'a> Scene<'a> {
    /// A client, and where it must go; nothing is accounted.
    pub fn new(client: &'a Workload, server: IpAddr, targets: BTreeMap<u16, SocketAddr>) -> Self {
        Scene { client, proxies: Vec::new(), targets, server }
    }

    /// The same with the proxies between, whose processor time and memory count.
    pub fn accounting(self, proxies: Vec<u32>) -> Self {
        Self { proxies, ..self }
    }

    /// Where the client must go to reach a port of the server.
    pub fn target(&self, port: u16) -> SocketAddr {
        self.targets.get(&port).copied().unwrap_or(SocketAddr::new(self.server, port))
    }

    /// Processor time that the proxies have used.
    pub fn cpu(&self) -> Result<Duration> {
        self.proxies.iter().map(|pid| process::cpu(*pid)).sum()
    }
}

impl Stage {
    /// Client on one node, servers on the other, no proxy.
    pub fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        mesh.objects().put_namespace("bench", true)?;
        let client = mesh.pod(Side::A, "bench/client")?;
        let server = mesh.pod(Side::B, "bench/server")?;
        let mut iperf = Command::new("iperf3");
        iperf.args(["--server", "--port", &port::IPERF.to_string()]);
        let servers = vec![
            apps::nginx(&server, port::HTTP, &"x".repeat(BODY_BYTES))?,
            server.serve("iperf3", iperf, port::IPERF)?,
            server.sample_server("greeter", port::GREETER, &[])?,
            server.sample_server("echo", port::ECHO, &[])?,
        ];
        Ok(Self { _servers: servers, client, server, mesh })
    }

    /// Sets `path` up, measures, and takes it away again.
    pub fn on(&mut self, path: &Path, measure: impl FnOnce(&Scene<'_>) -> Result<()>) -> Result<()> {
        match path {
            Path::Direct | Path::DirectAgain => {
                self.nothing_attached()?;
                measure(&self.scene(Vec::new(), BTreeMap::new()))
            }
            Path::Mesh => self.meshed(measure),
            Path::Peer(peer) => {
                self.nothing_attached()?;
                let outcome = self.with_peer(peer, measure);
                let down = self.command(peer, &peer.down);
                outcome.and(down)
            }
        }
    }

    fn scene(&self, proxies: Vec<u32>, targets: BTreeMap<u16, SocketAddr>) -> Scene<'_> {
        Scene::new(&self.client, self.server.ip(), targets).accounting(proxies)
    }

    fn nothing_attached(&self) -> Result<()> {
        nothing_attached(&self.mesh, &[&self.client, &self.server])
    }

    fn meshed(&mut self, measure: impl FnOnce(&Scene<'_>) -> Result<()>) -> Result<()> {
        let (client, server) = (&self.client, &self.server);
        with_agents(&mut self.mesh, &[client, server], ("security", "mutual_tls"), |proxies| {
            measure(&Scene::new(client, server.ip(), BTreeMap::new()).accounting(proxies))
        })
    }

    fn with_peer(&self, peer: &Peer, measure: impl FnOnce(&Scene<'_>) -> Result<()>) -> Result<()> {
        self.command(peer, &peer.up)?;
        let folder = self.peer_folder()?;
        let pids = read(&folder.join("pids"))?;
        let pids: Vec<u32> = pids.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        ensure!(!pids.is_empty(), "{} wrote no process ids to {}", peer.name, folder.join("pids").display());
        let mut targets = BTreeMap::new();
        if let Ok(text) = std::fs::read_to_string(folder.join("targets")) {
            for line in text.lines() {
                let (port, address) = line.split_once(' ').context("a line of `targets` is not PORT IP:PORT")?;
                targets.insert(port.parse()?, address.trim().parse()?);
            }
        }
        measure(&self.scene(pids, targets))
    }

    fn peer_folder(&self) -> Result<PathBuf> {
        let folder = self.client.folder().join("peer");
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Runs one of the peer's commands, with everything it may need in its environment:
    /// `BENCH_FOLDER` (write the process ids to account to `pids` there and, where clients must dial something
    /// else than the server, lines of `PORT IP:PORT` to `targets`), `BENCH_PORTS`, and for each of CLIENT,
    /// SERVER, NODE_A and NODE_B a `BENCH_<it>_NETNS` and `BENCH_<it>_IP`.
    fn command(&self, peer: &Peer, text: &str) -> Result<()> {
        let ports: Vec<String> = port::ALL.iter().map(u16::to_string).collect();
        let mut command = Command::new("sh");
        command.args(["-c", text]).env("BENCH_FOLDER", self.peer_folder()?).env("BENCH_PORTS", ports.join(" "));
        let (a, b) = (self.mesh.node(Side::A), self.mesh.node(Side::B));
        let places = [
            ("CLIENT", self.client.netns(), self.client.ip()),
            ("SERVER", self.server.netns(), self.server.ip()),
            ("NODE_A", a.netns(), a.ip()),
            ("NODE_B", b.netns(), b.ip()),
        ];
        for (name, netns, ip) in places {
            command.env(format!("BENCH_{name}_NETNS"), netns.name()).env(format!("BENCH_{name}_IP"), ip.to_string());
        }
        // Whatever it leaves running is found and killed by this.
        let run_id = a.netns().name().trim_end_matches("-node-a").to_owned();
        let status = command.env(mesh_tests::run::ENV, run_id).status().context("sh does not start")?;
        ensure!(status.success(), "`{text}` of {} failed: {status}", peer.name);
        Ok(())
    }
}

/// Starts an agent on each node, measures, makes sure that both have logged a connection with such a `field`, and takes
/// everything of the agents away again. `measure` gets their process ids.
pub fn with_agents<T>(
    mesh: &mut Mesh,
    pods: &[&Arc<Workload>],
    field: (&str, &str),
    measure: impl FnOnce(Vec<u32>) -> Result<T>,
) -> Result<T> {
    mesh.start()?;
    pods.iter().try_for_each(|pod| mesh.captured(pod))?;
    let proxies: Result<Vec<u32>> = Side::BOTH.into_iter().map(|side| Ok(mesh.agent(side)?.process().pid())).collect();
    let measured = measure(proxies?).with_context(|| last_words(mesh))?;
    for side in Side::BOTH {
        let took = mesh.agent(side)?.access_log()?;
        let (name, value) = field;
        let found = took.iter().any(|line| line.get(name).is_some_and(|found| found == value));
        ensure!(found, "no connection of {} had {name} = {value}", side.node_name());
        mesh.take_agent(side)?.stop()?;
        mesh_tests::agent::Agent::uninstall(mesh.node(side))?;
    }
    let pods: Vec<&Workload> = pods.iter().map(|pod| &***pod).collect();
    nothing_attached(mesh, &pods)?;
    Ok(measured)
}

/// What the agents have said last.
fn last_words(mesh: &Mesh) -> String {
    let said = |side| mesh.agent(side).map(|agent| tail(&agent.process().stdout(), 3) + &tail(&agent.log(), 3));
    Side::BOTH.map(|side| said(side).unwrap_or_default()).concat()
}

/// `Err` while any program is attached to a node's cgroup or to one of the pods.
pub fn nothing_attached(mesh: &Mesh, pods: &[&Workload]) -> Result<()> {
    for side in Side::BOTH {
        let attached = bpf::attached_to_cgroup(mesh.node(side).cgroup())?;
        ensure!(attached == 0, "{attached} programs are attached on {}", side.node_name());
    }
    for pod in pods {
        let attached = bpf::attached_to_netns(pod.netns())?;
        ensure!(attached == 0, "{attached} programs are attached to {}", pod.name());
    }
    Ok(())
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
