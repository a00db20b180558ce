//! The ways from a client to a server, and one scenario run on each: direct is what the others are compared with.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload};
use mesh_tests::puppet::Puppet;
use mesh_tests::topology::Side;
use mesh_tests::wait;

/// Nothing here takes this long unless it hangs.
pub const WITHIN: Duration = Duration::from_secs(20);
/// Where the puppets of every server listen.
pub const PORT: u16 = 7100;
/// Where real servers listen.
pub const APP_PORT: u16 = 7200;
const SERVICE_PORT: u16 = 80;
const APP_SERVICE_PORT: u16 = 81;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Nothing of ours: neither end is enrolled.
    Direct,
    /// The tunnel between two nodes, bytes unread.
    Tunnel,
    /// The kernel alone, on one node.
    Native,
    /// A Service with a route on a port that declares nothing, and rules about requests at the server: both nodes look
    /// for requests, and read what is one.
    Http,
    /// The same with a server of the client's node.
    HttpNear,
    /// A Service with a route on a port that declares nothing, without rules about requests at the server: what is no
    /// HTTP passes.
    Detected,
}

/// Where bytes pass as they are, whatever they are.
pub const STREAMS: &[Lane] = &[Lane::Tunnel, Lane::Native, Lane::Detected];
/// Where requests pass.
pub const REQUESTS: &[Lane] = &[Lane::Tunnel, Lane::Native, Lane::Http, Lane::HttpNear];

/// One way from a client to a server.
pub struct Way {
    pub lane: Lane,
    pub client: Arc<Workload>,
    pub server: Arc<Workload>,
    /// The addresses that the client dials, of each family: to the puppet, to a real server.
    to: [[SocketAddr; 2]; 2],
    client_puppet: Arc<Puppet>,
    listener: TcpListener,
}

/// All of them.
pub struct World {
    pub ways: Vec<Way>,
}

/// A connection of a way: the client's end, and where the server's will come.
pub struct Ends<'a> {
    pub client: TcpStream,
    pub way: &'a Way,
    pub dialled: SocketAddr,
}

/// What is compared: a line per event that an application sees.
pub type Transcript = Vec<String>;
pub type Case = (&'static str, fn(&mut Ends<'_>) -> Result<Transcript>);

const ONE_RULE: &str = "  action: DENY\n  rules:\n  - requestAttributes: {methods: [TRACE]}\n";

impl World {
    /// Makes the pods, starts the agents, and waits until each way is what it is called.
    pub fn new(mesh: &mut Mesh) -> Result<Self> {
        for (namespace, enrolled) in [("plain", false), ("shop", true), ("ruled", true)] {
            mesh.objects().put_namespace(namespace, enrolled)?;
        }
        mesh.objects().put_policy("ruled", "not-that", ONE_RULE)?;
        let outside = mesh.pod(Side::A, "plain/client")?;
        let client = mesh.pod(Side::A, "shop/client")?;
        let servers = [
            (Lane::Direct, mesh.pod(Side::B, "plain/server")?),
            (Lane::Tunnel, mesh.pod(Side::B, "shop/server")?),
            (Lane::Native, mesh.pod(Side::A, "shop/near")?),
            (Lane::Http, mesh.pod(Side::B, "ruled/far")?),
            (Lane::HttpNear, mesh.pod(Side::A, "ruled/beside")?),
            (Lane::Detected, mesh.pod(Side::B, "shop/routed")?),
        ];
        for (number, (lane, server)) in (1..).zip(&servers) {
            if matches!(lane, Lane::Http | Lane::HttpNear | Lane::Detected) {
                routed(mesh, server, number)?;
            }
        }
        mesh.start()?;
        for pod in servers.iter().skip(1).map(|(_, pod)| pod).chain([&client]) {
            mesh.captured(pod)?;
        }
        let puppets = [Arc::new(Puppet::new(&outside)?), Arc::new(Puppet::new(&client)?)];
        let mut ways = Vec::new();
        for (number, (lane, server)) in (1..).zip(servers) {
            let (client, puppet) = if lane == Lane::Direct { (&outside, &puppets[0]) } else { (&client, &puppets[1]) };
            let listener = Puppet::new(&server)?;
            let way = Way::new(lane, client, puppet, server, listener.listen(PORT)?, number);
            way.is_what_it_is_called(mesh).with_context(|| format!("the way {lane:?}"))?;
            ways.push(way);
        }
        Ok(Self { ways })
    }

    pub fn way(&self, lane: Lane) -> Result<&Way> {
        self.ways.iter().find(|way| way.lane == lane).with_context(|| format!("no way {lane:?}"))
    }

    /// A connection by each of `lanes`, with both its ends.
    pub fn connections(&self, lanes: &[Lane]) -> Result<Vec<(Ends<'_>, TcpStream)>> {
        let open = |lane: &Lane| {
            let ends = self.way(*lane)?.open(0)?;
            let server = ends.accept()?;
            Ok((ends, server))
        };
        lanes.iter().map(open).collect()
    }

    /// Runs each case direct and on each lane, by each family; every difference is told at the end.
    pub fn same<'a, F>(
        &self,
        lanes: &[Lane],
        families: &[usize],
        cases: impl IntoIterator<Item = (&'a str, F)>,
    ) -> Result<()>
    where
        F: Fn(&mut Ends<'_>) -> Result<Transcript>,
    {
        let mut wrong = String::new();
        for (name, case) in cases {
            for family in families {
                let run = |lane: Lane| self.way(lane)?.open(*family).and_then(|mut ends| case(&mut ends));
                let direct = run(Lane::Direct).with_context(|| format!("{name}, without the mesh"))?;
                for lane in lanes {
                    match run(*lane) {
                        Ok(found) if found == direct => {}
                        Ok(found) => {
                            let _ = writeln!(wrong, "{name}, {lane:?}:\n  direct {direct:#?}\n  meshed {found:#?}");
                        }
                        Err(error) => {
                            let _ = writeln!(wrong, "{name}, {lane:?}: {error:#}\n  direct {direct:#?}");
                        }
                    }
                }
            }
        }
        ensure!(wrong.is_empty(), "applications can tell:\n{wrong}");
        Ok(())
    }

    /// The same for what a real client prints of a real server that runs on every way.
    pub fn same_output(
        &self,
        lanes: &[Lane],
        what: &str,
        client: impl Fn(&Way, SocketAddr) -> Result<String>,
    ) -> Result<()> {
        let run = |lane: Lane| {
            let way = self.way(lane)?;
            client(way, way.app(0)).with_context(|| format!("{what}, {lane:?}"))
        };
        let direct = run(Lane::Direct)?;
        for lane in lanes {
            let found = run(*lane)?;
            ensure!(
                found == direct,
                "{what}, {lane:?}: applications can tell:\n-- direct\n{direct}\n-- meshed\n{found}"
            );
        }
        Ok(())
    }
}

impl Way {
    fn new(
        lane: Lane,
        client: &Arc<Workload>,
        puppet: &Arc<Puppet>,
        server: Arc<Workload>,
        listener: TcpListener,
        number: u8,
    ) -> Self {
        let own = |port| server.ips().map(|ip| SocketAddr::new(ip, port));
        let to = if matches!(lane, Lane::Http | Lane::HttpNear | Lane::Detected) {
            [SERVICE_PORT, APP_SERVICE_PORT].map(|port| vips(number).map(|ip| SocketAddr::new(ip, port)))
        } else {
            [own(PORT), own(APP_PORT)]
        };
        Self { lane, client: Arc::clone(client), server, to, client_puppet: Arc::clone(puppet), listener }
    }

    /// The address of a real server behind this way, by IPv4 (0) or IPv6 (1).
    pub fn app(&self, family: usize) -> SocketAddr {
        self.to[1][family]
    }

    /// Where the server's ends arrive.
    pub fn listener(&self) -> Result<TcpListener> {
        self.listener.set_nonblocking(true)?;
        Ok(self.listener.try_clone()?)
    }

    /// A new connection.
    pub fn open(&self, family: usize) -> Result<Ends<'_>> {
        self.open_by(0, family)
    }

    /// A new connection, by one of the ways to connect.
    pub fn open_by(&self, way: usize, family: usize) -> Result<Ends<'_>> {
        // What a case before has left is nobody's.
        self.listener.set_nonblocking(true)?;
        while self.listener.accept().is_ok() {}
        let dialled = self.to[0][family];
        let client = self.client_puppet.connect_by(way, dialled)?.with_context(|| format!("connect to {dialled}"))?;
        prepare(&client)?;
        Ok(Ends { client, way: self, dialled })
    }

    fn is_what_it_is_called(&self, mesh: &Mesh) -> Result<()> {
        let lane = match self.lane {
            Lane::Direct => return Ok(()),
            Lane::Native => "native",
            Lane::Tunnel => "tunnel",
            Lane::Http | Lane::HttpNear | Lane::Detected => "http",
        };
        wait::until("its connections take its lane", IN_FORCE_WITHIN, || {
            let mut ends = self.open(0)?;
            let transcript =
                crate::http1::exchange(&mut ends, b"GET /lane HTTP/1.1\r\nHost: a\r\n\r\n", crate::http1::OK)?;
            let (own, dialled) = (ends.client.local_addr()?, ends.dialled);
            drop(ends);
            let source = (own.ip().to_string(), dialled.port());
            let lines = mesh.agent(Side::A)?.access_log()?;
            let took = |line: &serde_json::Value| {
                line["lane"] == lane && line["source"]["ip"] == source.0 && line["outcome"] == "ok"
            };
            let is = lines.iter().rev().take(12).any(took);
            wait::holds(is, || format!("{transcript:?} {:#?}", lines.last()))
        })
    }
}

impl Ends<'_> {
    /// The server's end.
    pub fn accept(&self) -> Result<TcpStream> {
        self.way.listener.set_nonblocking(true)?;
        let (server, _) = wait::until("the connection arrives", WITHIN, || Ok(self.way.listener.accept()?))?;
        server.set_nonblocking(false)?;
        prepare(&server)?;
        Ok(server)
    }
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    Ok(())
}

fn vips(number: u8) -> [std::net::IpAddr; 2] {
    [[10, 96, 7, number].into(), [0xfd00, 0x96, 7, 0, 0, 0, 0, u16::from(number)].into()]
}

/// A Service for `server` with a route for everything.
fn routed(mesh: &Mesh, server: &Workload, number: u8) -> Result<()> {
    let object = server.object();
    let (namespace, name) = (&object.namespace, &object.name);
    let [four, six] = vips(number);
    mesh.objects().put(
        &format!("service-{name}"),
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  \
             clusterIPs: [\"{four}\", \"{six}\"]\n  selector: {{app: {name}}}\n  ports:\n  \
             - {{name: any, port: {SERVICE_PORT}, targetPort: {PORT}}}\n  \
             - {{name: app, port: {APP_SERVICE_PORT}, targetPort: {APP_PORT}}}\n"
        ),
    )?;
    let rule = |port: u16| format!("  - backendRefs: [{{name: {name}, port: {port}}}]\n");
    for port in [SERVICE_PORT, APP_SERVICE_PORT] {
        mesh.objects().put(
            &format!("route-{name}-{port}"),
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {{namespace: {namespace}, name: {name}-{port}}}\nspec:\n  \
                 parentRefs: [{{group: \"\", kind: Service, name: {name}, port: {port}}}]\n  rules:\n{}",
                rule(port)
            ),
        )?;
    }
    Ok(())
}
