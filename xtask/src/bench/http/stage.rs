//! Client and server on two nodes, and a second server beside the client: routes and rules about requests lead every
//! request through both http lanes, which the agents' logs must show.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::{apps, interrupt};

use super::rivals::{self, Rival};
use crate::bench::comparison::Sheet;
use crate::bench::measure::{biggest_rss_mib, h2load, wrk};
use crate::bench::path::{BODY_BYTES, Scene, nothing_attached, port, with_agents};

/// What is measured in a round, in this order but for its beginning.
const OURS: [&str; 3] = ["direct", "a/a", "mesh"];

/// Each request is put to a rule that names its client, its method and its path.
const RULE: &str = "  targetRefs: [{kind: Pod, selector: {matchLabels: {role: server}}}]\n  action: ALLOW\n  rules:\n  \
                    - sources: [{type: ServiceAccount, serviceAccount: {name: client}}]\n    \
                    requestAttributes: {methods: [GET], paths: [{value: /}]}\n";

/// The two nodes.
pub struct Stage {
    _servers: Vec<Process>,
    rivals: Vec<Rival>,
    client: Arc<Workload>,
    far: Target,
    near: Target,
    mesh: Mesh,
    /// What is to be measured: HTTP/1.1 from node to node, and the rest.
    wanted: (bool, bool),
}

/// A server pod and the Service before it.
struct Target {
    pod: Arc<Workload>,
    vip: IpAddr,
}

impl Stage {
    /// Pods, servers, routes and rules; no agent.
    pub fn new(only: Option<&str>) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        mesh.objects().put_namespace("bench", true)?;
        let client = mesh.pod(Side::A, "bench/client")?;
        let mut target = |side, name: &str, number| -> Result<Target> {
            let label = ("role".to_owned(), "server".to_owned());
            let pod = mesh.pod_with(side, &format!("bench/{name}"), |object| object.labels.extend([label]))?;
            let vip = Ipv4Addr::new(10, 96, 0, number).into();
            mesh.objects().put(&format!("service-{name}"), &objects(name, vip))?;
            Ok(Target { pod, vip })
        };
        let (far, near) = (target(Side::B, "far", 200)?, target(Side::A, "near", 201)?);
        mesh.objects().put_policy("bench", "requests", RULE)?;
        let body = "x".repeat(BODY_BYTES);
        let mut servers = Vec::new();
        for target in [&far, &near] {
            servers.push(apps::nginx(&target.pod, port::HTTP, &body)?);
            servers.push(apps::nginx_http2(&target.pod, port::HTTP2, &body)?);
        }
        let wanted = (only.is_none_or(|only| only == "http"), only != Some("http"));
        Ok(Self { _servers: servers, rivals: Vec::new(), client, far, near, mesh, wanted })
    }

    /// Puts the other proxies between client and server; says which are not on this machine.
    pub fn add_rivals(&mut self) -> Result<Vec<String>> {
        let (rivals, absent) = rivals::start(&self.client, &self.far.pod)?;
        self.rivals = rivals;
        Ok(absent)
    }

    /// What the columns of a round are called.
    pub fn columns(&self) -> Vec<&'static str> {
        OURS.into_iter().chain(self.rivals.iter().map(|rival| rival.name)).collect()
    }

    /// One sheet for each column, measured in another order each time.
    pub fn round(&mut self, round: usize, seconds: u32) -> Result<Vec<Sheet>> {
        let columns = OURS.len() + self.rivals.len();
        let mut sheets = vec![Sheet::new(); columns];
        for turn in 0..columns {
            interrupt::check()?;
            let column = (round + turn) % columns;
            let sheet = match column {
                0 | 1 => self.direct(seconds)?,
                2 => self.meshed(seconds)?,
                other => self.rival(other - OURS.len(), seconds)?,
            };
            if let Some(place) = sheets.get_mut(column) {
                *place = sheet;
            }
        }
        Ok(sheets)
    }

    fn direct(&self, seconds: u32) -> Result<Sheet> {
        nothing_attached(&self.mesh, &[&self.client, &self.far.pod, &self.near.pod])?;
        let scene = |target: &Target| Scene::new(&self.client, target.pod.ip(), BTreeMap::new());
        rows(self.wanted, &scene(&self.far), &scene(&self.near), seconds)
    }

    fn meshed(&mut self, seconds: u32) -> Result<Sheet> {
        let Self { client, far, near, mesh, wanted, .. } = self;
        with_agents(mesh, &[client, &far.pod, &near.pod], ("lane", "http"), |proxies| {
            let scene = |target: &Target| {
                let by_service = [port::HTTP, port::HTTP2].map(|port| (port, SocketAddr::new(target.vip, port)));
                Scene::new(client, target.pod.ip(), by_service.into()).accounting(proxies.clone())
            };
            let (far, near) = (scene(far), scene(near));
            let mut sheet = Sheet::from([("rss_idle_mib", biggest_rss_mib(&far)?)]);
            sheet.extend(rows(*wanted, &far, &near, seconds)?);
            sheet.insert("rss_after_mib", biggest_rss_mib(&far)?);
            Ok(sheet)
        })
    }

    fn rival(&self, number: usize, seconds: u32) -> Result<Sheet> {
        nothing_attached(&self.mesh, &[&self.client, &self.far.pod, &self.near.pod])?;
        let Some(rival) = self.rivals.get(number) else { return Ok(Sheet::new()) };
        let through = [(port::HTTP, rival.entry)].into();
        let scene = Scene::new(&self.client, self.far.pod.ip(), through).accounting(rival.pids().to_vec());
        let mut sheet = Sheet::from([("rss_idle_mib", biggest_rss_mib(&scene)?)]);
        sheet.extend(far_rows(&scene, seconds).with_context(|| rival.last_words())?);
        sheet.insert("rss_after_mib", biggest_rss_mib(&scene)?);
        Ok(sheet)
    }
}

/// What is wanted.
fn rows((http, rest): (bool, bool), far: &Scene<'_>, near: &Scene<'_>, seconds: u32) -> Result<Sheet> {
    let mut sheet = if http { far_rows(far, seconds)? } else { Sheet::new() };
    if rest {
        sheet.extend(our_rows(far, near, seconds)?);
    }
    Ok(sheet)
}

/// HTTP/1.1 from node to node.
fn far_rows(scene: &Scene<'_>, seconds: u32) -> Result<Sheet> {
    // The first connection of a path sets things up that later ones only use.
    wrk(scene, 1, 1, 1, false)?;
    let one = wrk(scene, 1, 1, seconds, false)?;
    let before = scene.cpu()?;
    let sixteen = wrk(scene, 1, 16, seconds, false)?;
    let used = (scene.cpu()? - before).as_secs_f64() * 1e6;
    let mut sheet = Sheet::from([
        ("http_1_p50_us", one.p50_us),
        ("http_1_p99_us", one.p99_us),
        ("http_16_per_s", sixteen.per_second),
        ("http_64_per_s", wrk(scene, 1, 64, seconds, false)?.per_second),
        ("connect_1_per_s", wrk(scene, 1, 1, seconds, true)?.per_second),
        ("connect_16_per_s", wrk(scene, 1, 16, seconds, true)?.per_second),
    ]);
    if !scene.proxies.is_empty() {
        sheet.insert("cpu_us_per_request", used / sixteen.requests as f64);
    }
    Ok(sheet)
}

/// HTTP/2 from node to node, and HTTP/1.1 within a node.
fn our_rows(far: &Scene<'_>, near: &Scene<'_>, seconds: u32) -> Result<Sheet> {
    let before = far.cpu()?;
    let one = h2load(far, 1, 16, seconds)?;
    let used = (far.cpu()? - before).as_secs_f64() * 1e6;
    let mut sheet = Sheet::from([
        ("h2_16_per_s", h2load(far, 16, 1, seconds)?.per_second),
        ("h2_1_per_s", one.per_second),
        ("near_1_p50_us", wrk(near, 1, 1, seconds, false)?.p50_us),
        ("near_16_per_s", wrk(near, 1, 16, seconds, false)?.per_second),
    ]);
    if !far.proxies.is_empty() {
        sheet.insert("h2_cpu_us_per_request", used / one.requests as f64);
    }
    Ok(sheet)
}

/// A Service for the pods labelled `name`, and a route for its requests.
fn objects(name: &str, vip: IpAddr) -> String {
    let (http, http2) = (port::HTTP, port::HTTP2);
    let route = |port| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{namespace: bench, name: {name}-{port}}}\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: {name}, port: {port}}}]\n  rules:\n  \
             - matches: [{{path: {{type: PathPrefix, value: /}}}}]\n    \
             backendRefs: [{{name: {name}, port: {port}}}]\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: bench, name: {name}}}\nspec:\n  \
         clusterIPs: [\"{vip}\"]\n  selector: {{app: {name}}}\n  ports:\n  \
         - {{name: http, port: {http}, targetPort: {http}}}\n  \
         - {{name: http2, port: {http2}, targetPort: {http2}, appProtocol: kubernetes.io/h2c}}\n{}{}",
        route(http),
        route(http2)
    )
}
