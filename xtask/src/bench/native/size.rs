//! One node with few rules and services, then with many, in turns: what a native connect() costs in each.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::{apps, bpf, interrupt, wait};

use super::fact;
use crate::bench::at_rest;
use crate::bench::comparison::{Fact, Sheet};
use crate::bench::path::port;
use crate::bench::rows::Bar;

const FEW_SERVICES: usize = 10;
const MANY_SERVICES: usize = 10_000;
/// Ports that the policy names; each makes an entry for each identity of the node, and so does "any other".
const FEW_PORTS: u16 = 4;
const MANY_PORTS: u16 = 1_000;
/// Pods, each of its own identity, besides client and server; in the mesh only while there is to be much.
const CROWD: usize = 48;
const FEW_ENTRIES: usize = 10;
const MANY_ENTRIES: usize = 50_000;
const CONNECTS: &str = "20000";
const SLACK: Duration = Duration::from_secs(60);
/// An agent whose processor time stands still for this long has nothing to do.
const AT_REST: Duration = Duration::from_millis(300);

/// How much there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Few,
    Many,
}

/// The node.
pub struct Stage {
    _servers: Vec<Process>,
    client: Arc<Workload>,
    server: Arc<Workload>,
    mesh: Mesh,
    counts: [(usize, usize); 2],
}

impl Stage {
    /// All pods and the agent.
    pub fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        mesh.objects().put_namespace("bench", true)?;
        mesh.objects().put_namespace("crowd", false)?;
        let client = mesh.pod(Side::A, "bench/client")?;
        let server = mesh.pod(Side::A, "bench/server")?;
        for number in 0..CROWD {
            mesh.pod(Side::A, &format!("crowd/p{number}"))?;
        }
        let servers = vec![apps::nginx(&server, port::HTTP, "x")?];
        mesh.start_agent(Side::A)?;
        mesh.ready(Side::A)?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        Ok(Self { _servers: servers, client, server, mesh, counts: [(0, 0); 2] })
    }

    /// Few, few once more, many.
    pub fn round(&mut self) -> Result<[Sheet; 3]> {
        interrupt::check()?;
        self.become_size(Size::Few)?;
        let few = [self.rows()?, self.rows()?];
        self.become_size(Size::Many)?;
        let many = self.rows()?;
        let [few, again] = few;
        Ok([few, again, many])
    }

    fn rows(&self) -> Result<Sheet> {
        let pod = SocketAddr::new(self.server.ip(), port::HTTP);
        let service = SocketAddr::new(vip(0), port::HTTP);
        let mut sheet = Sheet::new();
        for (row, to) in [("connect_pod_p50_us", pod), ("connect_service_p50_us", service)] {
            let answer = self.client.ask("connect", to, &["--count", CONNECTS], SLACK)?;
            let p50 = answer.get("p50_us").and_then(serde_json::Value::as_f64);
            sheet.insert(row, p50.context("connect gives no p50_us")?);
        }
        Ok(sheet)
    }

    /// Writes the objects and waits until the kernel's maps have as many entries and the agent has come to rest.
    fn become_size(&mut self, size: Size) -> Result<()> {
        let many = size == Size::Many;
        let objects = self.mesh.objects();
        objects.put_namespace("crowd", many)?;
        objects.put("services", &services(if many { MANY_SERVICES } else { FEW_SERVICES }))?;
        let ports = if many { MANY_PORTS } else { FEW_PORTS };
        let ports: Vec<String> = (port::HTTP..port::HTTP + ports).map(|port| port.to_string()).collect();
        let spec = format!(
            "  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: server}}}}}}]\n  action: ALLOW\n  rules:\n  \
             - sources: [{{type: ServiceAccount, serviceAccount: {{name: client}}}}]\n    \
             networkAttributes: {{ports: [{}]}}\n",
            ports.join(", ")
        );
        objects.put_policy("bench", "server", &spec)?;
        let bpffs = self.mesh.node(Side::A).bpffs();
        let counts = wait::until("the kernel's maps are as big as they are to be", SLACK, || {
            let entries = bpf::map_entries(bpffs)?;
            let count = |map: &str| entries.get(map).copied().unwrap_or(0);
            let counts = (count("policy"), count("services"));
            let right = match size {
                Size::Few => counts == (FEW_ENTRIES, FEW_SERVICES),
                Size::Many => counts.0 >= MANY_ENTRIES && counts.1 >= MANY_SERVICES,
            };
            wait::holds(right, || format!("{} entries and {} services", counts.0, counts.1))?;
            Ok(counts)
        })?;
        if let Some(place) = self.counts.get_mut(usize::from(many)) {
            *place = counts;
        }
        self.at_rest()
    }

    fn at_rest(&self) -> Result<()> {
        at_rest(self.mesh.agent(Side::A)?.process(), AT_REST, Duration::ZERO, SLACK)
    }

    /// How much there really was.
    pub fn facts(&self) -> Result<Vec<Fact>> {
        let metrics = self.mesh.agent(Side::A)?.metrics(self.mesh.node(Side::A))?;
        let exits = |exit: &str| metrics.sum("mesh_kernel_exits_total", &[("exit", exit)]);
        ensure!(exits("connect_native") > 0.0 && exits("connect_captured") == 0.0, "not native");
        let [few, many] = self.counts;
        let count = |key, text, value: usize| fact(key, text, "", Bar::None, value as f64);
        Ok(vec![
            count("policy_entries_few", "policy entries, few", few.0),
            count("services_few", "services, few", few.1),
            count("policy_entries_many", "policy entries, many", many.0),
            count("services_many", "services, many", many.1),
        ])
    }
}

fn vip(number: usize) -> IpAddr {
    let [.., high, low] = number.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 97, high, low))
}

/// The first leads to the server, the others to a pod of the crowd each.
fn services(count: usize) -> String {
    let mut yaml = String::new();
    for number in 0..count {
        let (namespace, app) =
            if number == 0 { ("bench", "server".to_owned()) } else { ("crowd", format!("p{}", number % CROWD)) };
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: s{number}}}\n\
             spec:\n  clusterIPs: [\"{}\"]\n  selector: {{app: {app}}}\n  ports: [{{port: {}}}]\n",
            vip(number),
            port::HTTP
        );
    }
    yaml
}
