//! `cargo xtask bench --scale`: one agent that reads a big cluster from an API server. What it holds, how soon it
//! begins, how soon a change is in force, and what a steady rate of changes costs.

mod cluster;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::kube_api::ApiServer;
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::Process;
use mesh_tests::puppet::Puppet;
use mesh_tests::topology::Side;
use mesh_tests::{interrupt, wait};
use serde_json::json;

use super::comparison::{Fact, Report, Row};
use super::rows::Bar;
use super::stats::median;
use super::{at_rest, busy};
use cluster::Size;

const SMALL: Size = Size { nodes: 100, pods: 5_000, services: 1_000, policies: 250 };
const FULL: Size = Size { nodes: 1_000, pods: 100_000, services: 20_000, policies: 5_000 };
/// The whole cluster is read within this.
const READ: Duration = Duration::from_secs(300);
const SLACK: Duration = Duration::from_secs(60);
/// An agent whose processor time stands still for this long has nothing to do.
const AT_REST: Duration = Duration::from_millis(500);
const PORT: u16 = 7000;
const VIP: &str = "10.31.0.1";
/// Changes of one endpoint that are timed.
const FLIPS: usize = 40;
const RATE: u32 = 1_000;

/// Measures it; `quick`: a small cluster, to see that it works.
pub fn measure(quick: bool, seconds: u32) -> Result<Report> {
    let remarks = busy();
    let size = if quick { SMALL } else { FULL };
    let mut facts = Vec::new();
    let mut mesh = Mesh::new()?;
    let api = mesh.use_api_server()?;
    eprintln!("generating {size:?}");
    cluster::put(&api, &size)?;
    mesh.objects().put_namespace("bench", true)?;
    let client = mesh.pod(Side::A, "bench/client")?;
    let server = mesh.pod(Side::A, "bench/server")?;
    let echo = server.sample_server("echo", PORT, &[])?;
    let flip = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: flip, namespace: bench}}\n\
        spec: {{clusterIP: {VIP}, selector: {{app: server}}, ports: [{{name: x, port: 80, targetPort: {PORT}}}]}}\n"
    );
    api.put(&flip)?;
    let mut stage = Stage { size, api, client, server, mesh, _echo: echo };
    stage.flip(true)?;
    facts.extend(stage.start()?);
    let puppet = Puppet::new(&stage.client)?;
    facts.extend(stage.changes(&puppet)?);
    facts.extend(stage.churn(&puppet, seconds.max(10))?);
    Ok(Report { comparisons: Vec::new(), facts, remarks })
}

fn fact(key: &'static str, text: &'static str, unit: &'static str, bar: Bar, value: f64) -> Fact {
    Fact { row: Row::new(key, text, unit, bar), value }
}

struct Stage {
    size: Size,
    api: Arc<ApiServer>,
    client: Arc<Workload>,
    server: Arc<Workload>,
    mesh: Mesh,
    _echo: Process,
}

impl Stage {
    /// From the start of the agent to its first snapshot and to rest.
    fn start(&mut self) -> Result<Vec<Fact>> {
        interrupt::check()?;
        eprintln!("the agent starts");
        let began = Instant::now();
        self.mesh.start_agent(Side::A)?;
        let node = self.mesh.node(Side::A);
        let agent = self.mesh.agent(Side::A)?;
        wait::until("the agent knows the cluster", READ, || {
            let known = agent.metrics(node)?.sum("mesh_workloads", &[]);
            wait::holds(known as usize == self.size.pods + 2, || format!("{known} pods"))
        })?;
        let known = began.elapsed().as_secs_f64();
        let sums = agent.metrics(node)?;
        let first = sums.sum("mesh_source_first_snapshot_seconds", &[]);
        wait::until("both pods are captured", READ, || {
            let published = self.mesh.objects().published(node.name());
            let both = [&self.client, &self.server].iter().all(|pod| published.contains(&pod.object().uid));
            wait::holds(both, || published.clone())
        })?;
        let captured = began.elapsed().as_secs_f64();
        self.at_rest()?;
        let process = agent.process();
        let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
        let cpu = process.cpu()?.as_secs_f64();
        Ok(vec![
            fact("pods", "pods", "", Bar::None, self.size.pods as f64),
            fact("services", "services", "", Bar::None, self.size.services as f64),
            fact("policies", "policies", "", Bar::None, self.size.policies as f64),
            fact("read_s", "from the start until all is known", "s", Bar::None, known),
            fact("first_snapshot_s", "from the last list to the first snapshot", "s", Bar::ValueAtMost(5.0), first),
            fact("captured_s", "from the start until pods are captured", "s", Bar::None, captured),
            fact("start_cpu_s", "processor time until rest", "s", Bar::None, cpu),
            fact("rss_mb", "RSS at rest", "MB", Bar::ValueAtMost(300.0), process.rss_bytes()? as f64 / 1e6),
            fact("peak_mib", "RSS, peak", "MiB", Bar::None, mib(process.peak_rss_bytes()?)),
        ])
    }

    /// The one endpoint of the client's Service, ready or not.
    fn flip(&self, ready: bool) -> Result<()> {
        self.api.put_object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "flip-abcde", "namespace": "bench",
                "labels": {"kubernetes.io/service-name": "flip"}},
            "endpoints": [{"addresses": [self.server.ip()], "nodeName": self.mesh.node(Side::A).name(),
                "conditions": {"ready": ready, "serving": ready, "terminating": false}}],
            "ports": [{"name": "x", "port": PORT, "protocol": "TCP"}]}))
    }

    /// How soon the client's connections meet a change, in milliseconds.
    fn flip_and_wait(&self, puppet: &Puppet, ready: bool) -> Result<f64> {
        let to: SocketAddr = format!("{VIP}:80").parse()?;
        let began = Instant::now();
        self.flip(ready)?;
        while puppet.connect(to)?.is_ok() != ready {
            ensure!(began.elapsed() < SLACK, "the endpoint's change is not met within {SLACK:?}");
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    fn changes(&self, puppet: &Puppet) -> Result<Vec<Fact>> {
        eprintln!("one change at a time");
        self.flip_and_wait(puppet, false)?;
        self.at_rest()?;
        let before = self.mesh.agent(Side::A)?.process().cpu()?;
        let mut took = Vec::new();
        for round in 0..FLIPS {
            interrupt::check()?;
            took.push(self.flip_and_wait(puppet, round % 2 == 0)?);
            self.at_rest()?;
        }
        let cpu = (self.mesh.agent(Side::A)?.process().cpu()? - before).as_secs_f64() * 1e3 / FLIPS as f64;
        took.sort_by(f64::total_cmp);
        let worst = took.last().copied().unwrap_or(f64::NAN);
        Ok(vec![
            fact(
                "change_ms",
                "one endpoint's change to enforced, median",
                "ms",
                Bar::ValueAtMost(50.0),
                median(&took).unwrap_or(f64::NAN),
            ),
            fact("change_worst_ms", "the same, worst", "ms", Bar::None, worst),
            fact("change_cpu_ms", "processor time for one change", "ms", Bar::None, cpu),
        ])
    }

    /// Changes of endpoints all over the cluster, at a steady rate.
    fn churn(&self, puppet: &Puppet, seconds: u32) -> Result<Vec<Fact>> {
        eprintln!("{RATE} changes a second for {seconds} s");
        let process = self.mesh.agent(Side::A)?.process();
        self.flip_and_wait(puppet, true)?;
        self.at_rest()?;
        let (began, before) = (Instant::now(), process.cpu()?);
        let every = Duration::from_secs(1) / RATE;
        let mut lags = Vec::new();
        let changes = seconds * RATE;
        for at in 0..changes {
            interrupt::check()?;
            // Each Service's first endpoint becomes unready, and the next time round ready again.
            let service = at as usize % self.size.services;
            let ready = (at as usize / self.size.services) % 2 == 1;
            self.api.put_object(cluster::slice(service, &self.size, ready))?;
            if at % RATE == RATE / 2 {
                lags.push(self.flip_and_wait(puppet, (at / RATE) % 2 == 1)?);
            }
            // The machine's processors are the agent's and the API server's.
            if let Some(early) = (every * at).checked_sub(began.elapsed()) {
                wait::pause(early);
            }
        }
        let took = began.elapsed();
        let cpu = (process.cpu()? - before).as_secs_f64() / took.as_secs_f64();
        let rate = f64::from(changes) / took.as_secs_f64();
        lags.sort_by(f64::total_cmp);
        Ok(vec![
            fact("churn_per_s", "changes a second, sent", "1/s", Bar::None, rate),
            fact("churn_cores", "processors taken meanwhile", "", Bar::ValueAtMost(1.0), cpu),
            fact(
                "churn_change_ms",
                "a change to enforced meanwhile, median",
                "ms",
                Bar::None,
                median(&lags).unwrap_or(f64::NAN),
            ),
            fact("churn_rss_mb", "RSS afterwards", "MB", Bar::ValueAtMost(300.0), process.rss_bytes()? as f64 / 1e6),
        ])
    }

    fn at_rest(&self) -> Result<()> {
        at_rest(self.mesh.agent(Side::A)?.process(), AT_REST, AT_REST / 25, SLACK)
    }
}
