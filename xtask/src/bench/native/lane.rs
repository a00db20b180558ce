//! Two pods of one node with servers in one of them: measured without any program of ours, and with the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::agent::Agent;
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::{apps, interrupt};

use super::fact;
use crate::bench::comparison::{Fact, Sheet};
use crate::bench::measure::{iperf, wrk};
use crate::bench::path::{BODY_BYTES, Scene, nothing_attached, port};
use crate::bench::rows::Bar;

/// As many as a 99th percentile needs.
const ROUND_TRIPS: &str = "100000";
const BULK_SECONDS: u32 = 30;
const SLACK: Duration = Duration::from_secs(60);
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 200));
const RULE: &str = "  targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]\n  action: ALLOW\n  rules:\n  \
                    - sources: [{type: ServiceAccount, serviceAccount: {name: client}}]\n";
const MIB: f64 = 1024.0 * 1024.0;

/// The node.
pub struct Stage {
    _servers: Vec<Process>,
    client: Arc<Workload>,
    server: Arc<Workload>,
    mesh: Mesh,
    rss: Option<(u64, u64)>,
    /// What the names of the rows to measure begin with, one of these: empty for all of them. The rows of a service are
    /// compared with those of a pod's address.
    only: String,
}

impl Stage {
    /// Both pods, the servers, no agent.
    pub fn new(only: &str) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        mesh.objects().put_namespace("bench", true)?;
        let client = mesh.pod(Side::A, "bench/client")?;
        let server = mesh.pod(Side::A, "bench/server")?;
        // So that each connection is judged by a rule.
        mesh.objects().put_policy("bench", "server", RULE)?;
        let ports = [(port::HTTP, port::HTTP)];
        mesh.objects().put_service("bench", "server", &[VIP], &ports)?;
        let mut iperf = Command::new("iperf3");
        iperf.args(["--server", "--port", &port::IPERF.to_string()]);
        let servers = vec![
            apps::nginx(&server, port::HTTP, &"x".repeat(BODY_BYTES))?,
            server.serve("iperf3", iperf, port::IPERF)?,
            server.sample_server("echo", port::ECHO, &[])?,
        ];
        Ok(Self { _servers: servers, client, server, mesh, rss: None, only: only.to_owned() })
    }

    /// Direct, direct once more, and native, in another order each time.
    pub fn round(&mut self, round: usize, seconds: u32) -> Result<[Sheet; 3]> {
        let mut sheets = [const { Sheet::new() }; 3];
        for turn in 0..sheets.len() {
            interrupt::check()?;
            let path = (round + turn) % sheets.len();
            let sheet = if path == 2 { self.native(seconds)? } else { self.direct(seconds)? };
            if let Some(place) = sheets.get_mut(path) {
                *place = sheet;
            }
        }
        Ok(sheets)
    }

    fn direct(&self, seconds: u32) -> Result<Sheet> {
        nothing_attached(&self.mesh, &[&self.client, &self.server])?;
        let mut sheet = self.rows(seconds)?;
        // What a service's address is compared with.
        for (service, pod) in [("service_1_per_s", "connect_1_per_s"), ("service_16_per_s", "connect_16_per_s")] {
            let value = sheet.get(pod).copied();
            sheet.extend(value.map(|value| (service, value)));
        }
        Ok(sheet)
    }

    fn native(&mut self, seconds: u32) -> Result<Sheet> {
        self.start()?;
        let before = self.mesh.agent(Side::A)?.process().rss_bytes()?;
        let mut sheet = self.rows(seconds)?;
        let by_service = [(port::HTTP, SocketAddr::new(VIP, port::HTTP))].into();
        let scene = Scene::new(&self.client, self.server.ip(), by_service);
        for (row, clients) in [("service_1_per_s", 1), ("service_16_per_s", 16)] {
            if !self.wants(row) {
                continue;
            }
            sheet.insert(row, wrk(&scene, 1, clients, seconds, true)?.per_second);
        }
        self.rss = Some((before, self.mesh.agent(Side::A)?.process().rss_bytes()?));
        self.stop()?;
        Ok(sheet)
    }

    fn rows(&self, seconds: u32) -> Result<Sheet> {
        let scene = Scene::new(&self.client, self.server.ip(), BTreeMap::new());
        let mut sheet = Sheet::new();
        // The first connection of a path sets things up that later ones only use.
        wrk(&scene, 1, 1, 1, false)?;
        if self.wants("pingpong") {
            let trips = self.client.ask("pingpong", scene.target(port::ECHO), &["--count", ROUND_TRIPS], SLACK)?;
            for (row, field) in [("pingpong_p50_us", "p50_us"), ("pingpong_p99_us", "p99_us")] {
                let value = trips.get(field).and_then(serde_json::Value::as_f64);
                sheet.insert(row, value.with_context(|| format!("pingpong gives no {field}"))?);
            }
        }
        if self.wants("stream") {
            sheet.insert("stream_1_gbit_s", iperf(&scene, 1, seconds)?.gbit_per_s);
        }
        for (row, clients, close) in [
            ("connect_1_per_s", 1, true),
            ("connect_16_per_s", 16, true),
            ("http_16_per_s", 16, false),
            ("http_64_per_s", 64, false),
        ] {
            if self.wants(row) {
                sheet.insert(row, wrk(&scene, 1, clients, seconds, close)?.per_second);
            }
        }
        Ok(sheet)
    }

    /// Whether a row, or rows whose names begin like this, are to be measured.
    fn wants(&self, row: &str) -> bool {
        self.only.split(',').any(|only| row.starts_with(only) || only.starts_with(row))
    }

    /// The agent's processor time while 30 s of data go by, and its memory before and after a round.
    pub fn bulk(&mut self) -> Result<Vec<Fact>> {
        eprintln!("{BULK_SECONDS} s of data");
        self.start()?;
        let agent = self.mesh.agent(Side::A)?.process();
        let before = agent.cpu()?;
        iperf(&Scene::new(&self.client, self.server.ip(), BTreeMap::new()), 1, BULK_SECONDS)?;
        let used = agent.cpu()? - before;
        self.stop()?;
        let percent = 100.0 * used.as_secs_f64() / f64::from(BULK_SECONDS);
        let (before, after) = self.rss.context("no round was measured")?;
        Ok(vec![
            fact("agent_cpu_percent", "agent, CPU during 30 s of data", "% of a core", Bar::ValueAtMost(1.0), percent),
            fact("rss_before_mib", "agent, RSS before a round", "MiB", Bar::None, before as f64 / MIB),
            fact("rss_after_mib", "agent, RSS after a round", "MiB", Bar::None, after as f64 / MIB),
        ])
    }

    fn start(&mut self) -> Result<()> {
        self.mesh.start_agent(Side::A)?;
        self.mesh.ready(Side::A)?;
        self.mesh.captured(&self.client)?;
        self.mesh.captured(&self.server)
    }

    /// Ends the agent and takes everything of it away, having made sure that the kernel carried it all.
    fn stop(&mut self) -> Result<()> {
        let node = self.mesh.node(Side::A);
        let metrics = self.mesh.agent(Side::A)?.metrics(node)?;
        let exits = |exit: &str| metrics.sum("mesh_kernel_exits_total", &[("exit", exit)]);
        ensure!(exits("connect_native") > 0.0, "no connection went natively");
        for other in ["connect_captured", "connect_fallback", "connect_outside"] {
            ensure!(exits(other) == 0.0, "{} connections took another exit: {other}", exits(other));
        }
        self.mesh.take_agent(Side::A)?.stop()?;
        Agent::uninstall(self.mesh.node(Side::A))?;
        nothing_attached(&self.mesh, &[&self.client, &self.server])
    }
}
