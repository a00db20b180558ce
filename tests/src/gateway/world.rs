//! The base objects come to life: nodes, agents, pods with servers, Services with addresses and slices.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::answer::{self, Answer};
use super::base::{self, Base, CONSUMER, Deployment, MESH, Member};
use super::case::{Case, Client, Misses};
use super::manifests::{self, Source};
use crate::mesh::{IN_FORCE_WITHIN, Mesh, Workload};
use crate::process::Process;
use crate::topology::Side;
use crate::{programs, wait};

/// A client has ended within this, whatever it was asked to do.
const WITHIN: Duration = Duration::from_secs(60);
/// The file of a test's manifest.
const MANIFEST: &str = "manifest";

/// Where clients and servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All on one node.
    Same,
    /// Both versions on one node, every client on the other.
    Across,
    /// A version on each node; the first one's pod is the client, as upstream has it.
    Split,
}

impl Placement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Same, Self::Across, Self::Split];

    /// In reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Across => "across",
            Self::Split => "split",
        }
    }

    fn side(self, deployment: &Deployment) -> Side {
        let is_server = !deployment.args.is_empty();
        let is_first = deployment.name.ends_with("v1");
        match self {
            Self::Same => Side::A,
            Self::Across => {
                if is_server {
                    Side::B
                } else {
                    Side::A
                }
            }
            Self::Split => {
                if is_server && is_first {
                    Side::A
                } else {
                    Side::B
                }
            }
        }
    }
}

/// The cases' cluster, all of it captured and served.
#[derive(Debug)]
pub struct World<'a> {
    mesh: &'a Mesh,
    placement: Placement,
    pods: Vec<(Deployment, Arc<Workload>)>,
    servers: BTreeMap<String, Process>,
    services: BTreeMap<String, [IpAddr; 2]>,
    asked: Cell<usize>,
}

impl<'a> World<'a> {
    /// Builds the objects of `source`, and ours besides, on a mesh that has neither pods nor agents yet.
    ///
    /// # Errors
    /// When it is not all there in time.
    pub fn build(mesh: &'a mut Mesh, source: &Source, placement: Placement) -> Result<Self> {
        let mut base = Base::read(&source.base()?)?;
        base.services.extend(Base::read(&manifests::more()?)?.services);
        if placement == Placement::Across {
            base.deployments.push(client());
        }
        for namespace in &base.namespaces {
            mesh.objects().put_namespace(namespace, true)?;
        }
        let mut pods = Vec::new();
        for deployment in base.deployments {
            let pod = start_pod(mesh, &deployment, placement.side(&deployment))?;
            pods.push((deployment, pod));
        }
        let services = put_services(mesh, &base.services, &pods)?;
        mesh.start()?;
        let mut servers = BTreeMap::new();
        for (deployment, pod) in &pods {
            mesh.captured(pod)?;
            if !deployment.args.is_empty() {
                servers.insert(deployment.name.clone(), serve(deployment, pod)?);
            }
        }
        Ok(Self { mesh, placement, pods, servers, services, asked: Cell::new(0) })
    }

    /// Applies a test's manifest.
    ///
    /// # Errors
    /// What the system says.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.mesh.objects().put(MANIFEST, manifest)
    }

    /// Deletes what [`Self::apply`] applied.
    ///
    /// # Errors
    /// What the system says.
    pub fn delete(&self) -> Result<()> {
        self.mesh.objects().remove(MANIFEST)
    }

    /// Where clients and servers are.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Path and query of every request that the server of `deployment` got so far.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn targets_at(&self, deployment: &str) -> Result<Vec<String>> {
        let server = self.servers.get(deployment).with_context(|| format!("no server {deployment}"))?;
        let target = |line: &serde_json::Value| Some(line.get("target")?.as_str()?.to_owned());
        Ok(server.lines()?.iter().filter_map(target).collect())
    }

    /// Waits until every agent says of `Kind NAME`, a route of the servers' namespace, these reasons of `Accepted` and
    /// `ResolvedRefs` at its parent.
    ///
    /// # Errors
    /// When one does not in time.
    pub fn told(&self, kind: &str, name: &str, reasons: [&str; 2]) -> Result<()> {
        let route = format!("{kind} {MESH}/{name}");
        Side::BOTH.into_iter().try_for_each(|side| {
            wait::until(&format!("{} tells what became of {route}", side.node_name()), IN_FORCE_WITHIN, || {
                let status = self.mesh.agent(side)?.status(self.mesh.node(side))?;
                let lines = status.get("routes").and_then(serde_json::Value::as_array).context("no routes")?;
                let line = lines.iter().find(|line| line.get("route").is_some_and(|name| *name == route));
                let reason = |field: &str| line.and_then(|line| line.get(field)?.as_str()).unwrap_or_default();
                let found = [reason("accepted_reason"), reason("resolved_refs_reason")];
                wait::holds(found == reasons, || format!("{found:?} instead of {reasons:?}"))
            })
        })
    }

    /// Asks a case's requests, by IPv4 and IPv6 in turn, by a connection for each and all by one in turn, and judges
    /// the answers.
    ///
    /// # Errors
    /// When the client itself fails.
    pub fn ask(&self, case: &Case) -> Result<Misses> {
        // Two in a row are of both kinds of connection, three of both families too.
        let turn = self.asked.get();
        self.asked.set(turn + 1);
        let (authority, address) = self.address(case, turn / 2 % 2)?;
        let answers = self.send(case, &authority, address, turn % 2 == 1)?;
        let host = case.headers.iter().find(|(name, _)| name == "Host");
        Ok(case.judge(&answers, host.map_or(&authority, |(_, value)| value)))
    }

    fn send(&self, case: &Case, authority: &str, to: SocketAddr, keep_alive: bool) -> Result<Vec<Answer>> {
        let mut arguments = vec![
            format!("--url={}://{authority}{}", case.scheme, case.path),
            format!("--method={}", case.method),
            format!("--count={}", case.requests()),
            format!("--keep-alive={keep_alive}"),
        ];
        for (name, value) in &case.headers {
            arguments.extend(["-H".to_owned(), format!("{name}:{value}")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let printed = self.client(case.from)?.ask_later("gateway-ask", to, &arguments)?.finish(WITHIN)?;
        answer::parse(&printed).with_context(|| format!("the client printed something else: {printed}"))
    }

    /// The authority that the client asks for, and where its connection goes: `family` 0 is IPv4, 1 IPv6.
    fn address(&self, case: &Case, family: usize) -> Result<(String, SocketAddr)> {
        let default = if case.scheme == "grpc" { 7070 } else { 80 };
        if let Some(pod) = case.to.strip_prefix("pod:") {
            let (deployment, port) = pod.split_once(':').context("pod:DEPLOYMENT:PORT")?;
            let pod = self.find(MESH, deployment)?;
            let address = SocketAddr::new(*pod.ips().get(family).context("a family")?, port.parse()?);
            return Ok((address.to_string(), address));
        }
        let (host, port) = match case.to.split_once(':') {
            Some((host, port)) => (host, port.parse()?),
            None => (case.to.as_str(), default),
        };
        // The search list of the client's namespace: a name alone is a Service of its own namespace.
        let namespace = if case.from == Client::Consumer { CONSUMER } else { MESH };
        let full = if host.contains('.') { host.to_owned() } else { format!("{host}.{namespace}") };
        let ips = self.services.get(&full).with_context(|| format!("{host} does not resolve in {namespace}"))?;
        // The default port is no part of a URL's authority.
        let authority = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
        Ok((authority, SocketAddr::new(*ips.get(family).context("a family")?, port)))
    }

    fn client(&self, who: Client) -> Result<&Workload> {
        match (who, self.placement) {
            (Client::Consumer, _) => self.find(CONSUMER, "echo-v1"),
            (_, Placement::Across) => self.find(MESH, "client"),
            (Client::Mesh, _) => self.find(MESH, "echo-v1"),
            (Client::Second, _) => self.find(MESH, "echo-v2"),
        }
    }

    fn find(&self, namespace: &str, name: &str) -> Result<&Workload> {
        let own = |(deployment, _): &&(Deployment, _)| (&*deployment.namespace, &*deployment.name) == (namespace, name);
        let found = self.pods.iter().find(own).map(|(_, pod)| &**pod);
        found.with_context(|| format!("the base objects have no Deployment {namespace}/{name}"))
    }
}

/// A client that is none of the servers.
fn client() -> Deployment {
    let labels = [("app".to_owned(), "client".to_owned())].into();
    Deployment { namespace: MESH.to_owned(), name: "client".to_owned(), labels, args: Vec::new() }
}

/// A pod as a Deployment's are called: its name, and two more parts.
fn start_pod(mesh: &mut Mesh, deployment: &Deployment, side: Side) -> Result<Arc<Workload>> {
    let name = format!("{}/{}-abc12-x1y2z", deployment.namespace, deployment.name);
    mesh.pod_with(side, &name, |object| {
        object.labels.clone_from(&deployment.labels);
        object.service_account = "default".to_owned();
    })
}

fn put_services(
    mesh: &Mesh,
    services: &[serde_json::Value],
    pods: &[(Deployment, Arc<Workload>)],
) -> Result<BTreeMap<String, [IpAddr; 2]>> {
    let members = |namespace: &str, selector: &BTreeMap<String, String>| {
        let selected = |(deployment, _): &&(Deployment, Arc<Workload>)| {
            deployment.namespace == namespace
                && selector.iter().all(|(name, value)| deployment.labels.get(name) == Some(value))
        };
        let member = |(_, pod): &(Deployment, Arc<Workload>)| Member {
            pod: pod.object().name,
            node: pod.side().node_name(),
            ips: pod.ips(),
        };
        pods.iter().filter(selected).map(member).collect()
    };
    let mut addresses = BTreeMap::new();
    for (number, service) in (1..).zip(services) {
        let allotted = base::allot(service, number, members);
        mesh.objects().put(&format!("service-{}", allotted.name), &allotted.yaml)?;
        if let Some(ips) = allotted.ips {
            addresses.insert(allotted.name, ips);
        }
    }
    Ok(addresses)
}

fn serve(deployment: &Deployment, pod: &Workload) -> Result<Process> {
    let object = pod.object();
    let mut command = Command::new(programs::sample()?);
    // The certificate and key of the port that speaks TLS are files of upstream's image.
    let file = |argument: &&String| argument.split_once('=').is_some_and(|(_, value)| Path::new(value).is_absolute());
    command.arg("gateway-echo").args(deployment.args.iter().filter(|argument| !file(argument)));
    command.env("HOSTNAME", object.name).env("NAMESPACE", object.namespace);
    command.env("SERVICE_VERSION", deployment.labels.get("version").map_or("", String::as_str));
    // Ports are opened in the order of kinds, `--port` last.
    let value = |name: &str| {
        let of = move |argument: &String| argument.strip_prefix(name).map(str::to_owned);
        deployment.args.iter().filter_map(of).collect::<Vec<_>>()
    };
    let tls = value("--tls=");
    let plain: Vec<String> = value("--port=").into_iter().filter(|port| !tls.contains(port)).collect();
    ensure!(!plain.is_empty(), "{} serves no HTTP", deployment.name);
    let last = plain.last().context("a port")?.parse()?;
    pod.serve(&format!("echo-{}", deployment.name), command, last)
}
