//! The containers of `deploy/`, from the image, under runc, in a mesh of the harness: what a kubelet and its runtime
//! make of the DaemonSet and the Deployments (decision 0014).
//!
//! Replaced is what one machine cannot give two nodes: where hostPath volumes are, and the cgroup above the pods.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

mod dns;
mod runc;
mod spec;
mod volumes;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::dns::Dns;
use self::runc::Container;
use self::spec::Place;
use self::volumes::Volumes;
use crate::image::Image;
use crate::kube_api::ApiServer;
use crate::mesh::{API_PORT, Mesh};
use crate::metrics::Metrics;
use crate::pod::Pod;
use crate::process::{Process, tail};
use crate::topology::{Node, Side};
use crate::{cgroup, deployed, http, netns, run, wait};

/// The namespace of `deploy/`.
pub const NAMESPACE: &str = "mesh-agent-system";
/// Where the account's token is in a container.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The folder of a node's agent, below the node's own.
const STATE: &str = "state";
const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// A cluster in which `deploy/` is installed.
#[derive(Debug)]
pub struct Installed {
    api: Arc<ApiServer>,
    image: Image,
    root: PathBuf,
    folder: PathBuf,
    dns: Dns,
    resolver: IpAddr,
    started: AtomicU32,
}

/// A pod of `deploy/` with its container.
#[derive(Debug)]
pub struct Running {
    container: Container,
    pod: Pod,
    /// Its object's name.
    name: String,
    spec: Value,
    /// The image's program, where it was unpacked.
    program: PathBuf,
    /// Its node's state folder.
    state: PathBuf,
}

impl Installed {
    /// Installs `deploy/` into the mesh' API server, whose roles count from now on, and unpacks the image.
    ///
    /// # Errors
    /// What the API server refuses, and when there is no image.
    pub fn new(mesh: &mut Mesh) -> Result<Self> {
        let api = mesh.use_api_server_of_strangers()?;
        for object in [deployed::objects("crds")?, deployed::objects("base")?].concat() {
            api.put_object(object)?;
        }
        api.faults().enforce_roles(true);
        let folder = mesh.node(Side::A).folder().join("containers");
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let image = Image::built()?;
        image.unpack(&root)?;
        let dns = Dns::start(mesh.node(Side::A))?;
        let resolver = mesh.node(Side::A).ip();
        Ok(Self { api, image, root, folder, dns, resolver, started: AtomicU32::new(0) })
    }

    /// The API server.
    #[must_use]
    pub fn api(&self) -> &Arc<ApiServer> {
        &self.api
    }

    /// Starts the container of a DaemonSet or Deployment of `deploy/` on one node, with its pod's spec altered.
    ///
    /// # Errors
    /// What a kubelet would not start.
    pub fn start(
        &self,
        mesh: &Mesh,
        side: Side,
        (kind, name): (&str, &str),
        alter: impl FnOnce(&mut Value),
    ) -> Result<Running> {
        let mut template = deployed::object(kind, name)?["spec"]["template"].take();
        alter(&mut template["spec"]);
        let (node, spec) = (mesh.node(side), &mut template["spec"]);
        replace_cgroup(spec, node)?;
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let pod_name = format!("{name}-{number}");
        let pod = node.pod(&format!("poduid-{pod_name}"))?;
        spec["nodeName"] = json!(node.name());
        let ips: Vec<Value> = pod.ips().iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        self.api.put_object(json!({
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"namespace": NAMESPACE, "name": pod_name, "uid": format!("uid-{pod_name}"),
                "labels": template["metadata"]["labels"]},
            "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
        }))?;
        let IpAddr::V4(address) = pod.ip() else { bail!("a pod's first address is IPv4") };
        // A Service of the same name, with this pod behind it.
        self.dns.put(&format!("{name}.{NAMESPACE}.{CLUSTER_DOMAIN}"), address);
        let spec = template["spec"].take();
        let id = format!("{}-{pod_name}", mesh.run_id());
        let config = self.config(node, &pod, &pod_name, &spec, mesh.run_id())?;
        let container = Container::start(id, &pod, &config, &self.folder)?;
        let entry = self.image.config.entrypoint.first().context("the image runs nothing")?;
        let program = self.root.join(entry.trim_start_matches('/'));
        Ok(Running { container, pod, name: pod_name, spec, program, state: node.folder().join(STATE) })
    }

    fn config(&self, node: &Node, pod: &Pod, name: &str, spec: &Value, run: &str) -> Result<Value> {
        let host = host(node)?;
        let folder = self.folder.join("volumes").join(name);
        let volumes = Volumes { api: &self.api, namespace: NAMESPACE, pod: name, spec, folder, host: &host };
        let files = self.folder.join("files").join(name);
        fs::create_dir_all(&files)?;
        let (hosts, resolv) = (files.join("hosts"), files.join("resolv.conf"));
        fs::write(&hosts, format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n", pod.ip()))?;
        let search = format!("{NAMESPACE}.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN} cluster.local");
        fs::write(&resolv, format!("nameserver {}\nsearch {search}\noptions ndots:5\n", self.resolver))?;
        let (at, root) = (pod.netns().path(), files.join("root"));
        linked(&self.root, &root)?;
        spec::of(
            spec,
            &Place {
                image: &self.image.config,
                root: &root,
                netns: &at,
                fields: [("spec.nodeName", node.name().to_owned()), ("metadata.namespace", NAMESPACE.to_owned())]
                    .into(),
                volumes: volumes.make()?,
                more: vec![(volumes.service_account()?, ACCOUNT), (hosts, "/etc/hosts"), (resolv, "/etc/resolv.conf")],
                env: vec![
                    ("KUBERNETES_SERVICE_HOST".to_owned(), node.ip().to_string()),
                    ("KUBERNETES_SERVICE_PORT".to_owned(), API_PORT.to_string()),
                    // By it what a killed run leaves is found.
                    (run::ENV.to_owned(), run.to_owned()),
                ],
                cgroup: format!("/{run}-{name}"),
                cgroup_namespace: cgroup::mount()? == Path::new("/sys/fs/cgroup"),
            },
        )
    }
}

impl Running {
    /// Waits until its readiness probe succeeds.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with its last words.
    pub fn ready(&mut self, node: &Node, within: Duration) -> Result<()> {
        let ready = wait::until(&format!("{} is ready", self.name), within, || {
            if let Err(ended) = self.container.process_mut().check_running() {
                return Ok(Err(ended));
            }
            Ok(Ok(self.probe(node, "readinessProbe")?))
        });
        ready.and_then(|inner| inner).with_context(|| format!("its last words:\n{}", tail(&self.log(), 15)))
    }

    /// One probe of its pod's spec, as the kubelet makes it.
    ///
    /// # Errors
    /// When it fails; with the answer.
    pub fn probe(&self, node: &Node, which: &str) -> Result<()> {
        let get = &self.spec["containers"][0][which]["httpGet"];
        let path = get["path"].as_str().context("a probe without a path")?;
        let response = http::get(node.netns(), self.metrics_address(&get["port"])?, path)?;
        ensure!(response.status == 200, "{path}: {} {}", response.status, response.body.trim());
        Ok(())
    }

    fn metrics_address(&self, name: &Value) -> Result<SocketAddr> {
        let ports = self.spec["containers"][0]["ports"].as_array().into_iter().flatten();
        let port =
            ports.into_iter().find(|port| port["name"] == *name).context("a probe of a port that is not there")?;
        let port = port["containerPort"].as_u64().context("a port has a number")?;
        Ok(SocketAddr::new(self.pod.ip(), u16::try_from(port)?))
    }

    /// Scrapes it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, node: &Node) -> Result<Metrics> {
        let response = http::get(node.netns(), self.metrics_address(&json!("metrics"))?, "/metrics")?;
        ensure!(response.status == 200, "/metrics: {}", response.status);
        Ok(Metrics::parse(&response.body))
    }

    /// `mesh-agent status --json` by the program in its image, from the node.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<String> {
        let mut status = Command::new(&self.program);
        let output = status.args(["status", "--json", "--state-dir"]).arg(&self.state).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.container.process().stderr()
    }

    /// The runtime, whose output and exit code are the container's.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.container.process()
    }

    /// The same, to be waited for.
    pub fn process_mut(&mut self) -> &mut Process {
        self.container.process_mut()
    }
}

/// Another root of the same files: the runtime makes folders in it where something is mounted.
fn linked(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            linked(&source, &target)?;
        } else {
            fs::hard_link(&source, &target).with_context(|| format!("cannot link {}", target.display()))?;
        }
    }
    Ok(())
}

/// Where the node's paths are on this machine.
fn host(node: &Node) -> Result<BTreeMap<&'static str, PathBuf>> {
    let own = |name: &str| node.folder().join(name);
    Ok([
        ("/sys/fs/bpf", node.bpffs().to_owned()),
        ("/sys/fs/cgroup", cgroup::mount()?),
        ("/var/lib/mesh-agent", own(STATE)),
        ("/run/netns", PathBuf::from(netns::FOLDER)),
        ("/etc/cni/net.d", own("cni-conf")),
        ("/opt/cni/bin", own("cni-bin")),
    ]
    .into())
}

/// As `components/cgroupfs` does it: the node's pods are elsewhere.
fn replace_cgroup(spec: &mut Value, node: &Node) -> Result<()> {
    let arguments = spec["containers"][0]["args"].as_array_mut().context("a container without arguments")?;
    let name = node.cgroup().file_name().context("a cgroup has a name")?.to_string_lossy().into_owned();
    for argument in
        arguments.iter_mut().filter(|argument| argument.as_str().is_some_and(|a| a.starts_with("--cgroup=")))
    {
        *argument = json!(format!("--cgroup=/sys/fs/cgroup/{name}"));
    }
    Ok(())
}
