//! A whole mesh: two nodes, one certificate authority, an agent per node, pods and the objects that declare them.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::{Agent, AgentOptions, Ca, CaSource, READY_WITHIN};
use crate::kube_api::ApiServer;
use crate::leftovers;
use crate::objects::{NETNS_ANNOTATION, Objects, PodObject};
use crate::pod::Pod;
use crate::topology::{Node, Side, Sides, Topology};
use crate::wait;

/// A change of the objects is in force within this (design: 1 s; the rest is for a busy machine).
pub const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);

mod sandbox;
mod succession;
mod words;
pub use self::succession::ENDS_WITHIN;
/// The API server's port, at each node's loopback and, for pods, at its address.
pub const API_PORT: u16 = 16443;

/// A pod with the object that declares it.
#[derive(Debug)]
pub struct Workload {
    pod: Pod,
    object: PodObject,
}

impl Deref for Workload {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl Workload {
    /// A copy of its object, to be altered and put again.
    #[must_use]
    pub fn object(&self) -> PodObject {
        self.object.clone()
    }
}

/// The mesh. Dropped in this order: agents first, the world they live in last.
#[derive(Debug)]
pub struct Mesh {
    agents: Sides<Option<Agent>>,
    kept: Vec<Box<dyn Any + Send>>,
    ca: Option<Ca>,
    pods: Vec<Arc<Workload>>,
    objects: Objects,
    topology: Topology,
    services: u8,
    expected: Vec<String>,
    options: Vec<(String, String)>,
}

/// Runs `scenario` on a new mesh without agents, then checks that no agent complained and that nothing is left.
///
/// # Errors
/// The scenario's own, with the agents' last words; complaints; leftovers.
pub fn scenario(scenario: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    let mut mesh = Mesh::new()?;
    let outcome = scenario(&mut mesh);
    let outcome = match outcome {
        Ok(()) => mesh.no_complaints(),
        Err(error) => Err(error.context(mesh.last_words())),
    };
    drop(mesh);
    outcome?;
    leftovers::nothing_left()
}

impl Mesh {
    /// Two nodes and no agent, no pod yet.
    ///
    /// # Errors
    /// What [`Topology::two_nodes`] says.
    pub fn new() -> Result<Self> {
        let topology = Topology::two_nodes()?;
        let objects = Objects::new(topology.run().subfolder("objects")?);
        for side in Side::BOTH {
            let node = topology.node(side);
            objects.put_node(node.name(), node.ip())?;
        }
        Ok(Self {
            agents: Sides::default(),
            kept: Vec::new(),
            ca: None,
            pods: Vec::new(),
            objects,
            topology,
            services: 0,
            expected: Vec::new(),
            options: Vec::new(),
        })
    }

    /// Adds a pod `namespace/name`, with a service account of its own name, labelled `app: <name>`.
    ///
    /// # Errors
    /// What the system says.
    pub fn pod(&mut self, side: Side, name: &str) -> Result<Arc<Workload>> {
        self.pod_with(side, name, |_| {})
    }

    /// Adds a pod whose object is altered before it is written.
    ///
    /// # Errors
    /// What the system says.
    pub fn pod_with(&mut self, side: Side, name: &str, alter: impl FnOnce(&mut PodObject)) -> Result<Arc<Workload>> {
        let (namespace, short) = name.split_once('/').with_context(|| format!("`{name}` is not namespace/name"))?;
        let pod = self.topology.node(side).pod(&format!("{namespace}-{short}"))?;
        let mut object = object(side, (namespace, short), &format!("uid-{namespace}-{short}"));
        object.annotations.insert(NETNS_ANNOTATION.to_owned(), pod.netns().path().display().to_string());
        object.ips = pod.ips().to_vec();
        alter(&mut object);
        self.objects.put_pod(&object)?;
        let workload = Arc::new(Workload { pod, object });
        self.pods.push(Arc::clone(&workload));
        Ok(workload)
    }

    /// Adds a Service for the pods labelled `app: <name>`, and waits until every agent that runs knows it; gives
    /// its address of each family, with the port.
    ///
    /// # Errors
    /// When an agent does not know it in time.
    pub fn service(&mut self, name: &str, port: u16, target: u16) -> Result<[SocketAddr; 2]> {
        let (namespace, short) = name.split_once('/').with_context(|| format!("`{name}` is not namespace/name"))?;
        self.services += 1;
        let ips: [IpAddr; 2] = [
            Ipv4Addr::new(10, 96, 0, self.services).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, self.services.into()).into(),
        ];
        self.objects.put_service(namespace, short, &ips, &[(port, target)])?;
        let addresses = ips.map(|ip| SocketAddr::new(ip, port));
        for side in Side::BOTH {
            self.knows(side, addresses)?;
        }
        Ok(addresses)
    }

    /// Waits until connections of one node's pods to a service's addresses are captured: nothing else leads there.
    fn knows(&self, side: Side, addresses: [SocketAddr; 2]) -> Result<()> {
        let published = self.objects.published(side.node_name());
        let captured = self.pods.iter().find(|pod| pod.side() == side && published.contains(&pod.object.uid));
        let (Some(pod), Some(_)) = (captured, self.agents.of(side)) else { return Ok(()) };
        for address in addresses {
            wait::until(&format!("{} knows {address}", side.node_name()), IN_FORCE_WITHIN, || {
                let found = pod.ask("probe", address, &["--within-ms", "1000"], IN_FORCE_WITHIN)?;
                let unknown = found.get("connect").is_some_and(|connect| connect == "NetworkUnreachable");
                wait::holds(!unknown, || found.to_string())
            })?;
        }
        Ok(())
    }

    /// Agents that are started from now on read the objects from an API server, which each node has at its loopback,
    /// and pods at their node's address.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn use_api_server(&mut self) -> Result<Arc<ApiServer>> {
        self.agents_run_with("--trust-netns-annotation", "");
        self.use_api_server_of_strangers()
    }

    /// As [`Self::use_api_server`], where anybody may create pods: their annotations are not believed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn use_api_server_of_strangers(&mut self) -> Result<Arc<ApiServer>> {
        let listen = |(side, ip): (Side, IpAddr)| -> Result<TcpListener> {
            let at = SocketAddr::new(ip, API_PORT);
            self.topology.node(side).netns().run(|| TcpListener::bind(at))?.with_context(|| format!("API server: {at}"))
        };
        let loopback = Side::BOTH.map(|side| (side, Ipv4Addr::LOCALHOST.into()));
        let link = Side::BOTH.map(|side| (side, self.topology.node(side).ip()));
        let listeners = loopback.into_iter().chain(link).map(listen);
        let api = Arc::new(ApiServer::start(listeners.collect::<Result<_>>()?)?);
        api.install_crds()?;
        self.objects.mirror_to(Arc::clone(&api))?;
        let kubeconfig = self.kubeconfig()?;
        api.write_kubeconfig(&kubeconfig, &api.url(0)?)?;
        self.agents_run_with("--source", "kube");
        self.agents_run_with("--kubeconfig", &kubeconfig.display().to_string());
        Ok(api)
    }

    /// Agents that are started from now on have this option of `run`.
    pub fn agents_run_with(&mut self, option: &str, value: &str) {
        self.options.push((option.to_owned(), value.to_owned()));
    }

    /// Starts the certificate authority and both agents, and waits until they are ready.
    ///
    /// # Errors
    /// When one of them is not ready in time.
    pub fn start(&mut self) -> Result<()> {
        for side in Side::BOTH {
            self.start_agent(side)?;
        }
        Side::BOTH.into_iter().try_for_each(|side| self.ready(side))
    }

    /// Starts the agent of one node, and the certificate authority before it if there is none yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, side: Side) -> Result<()> {
        let node = self.topology.node(side);
        let ca = match &mut self.ca {
            Some(ca) => ca,
            none => none.insert(Ca::start(self.topology.node(Side::A), self.objects.folder())?),
        };
        let source = CaSource::Grpc { address: ca.address(), root: ca.root(), token: ca.token(node)? };
        let options = self.agent_options(source);
        self.run_agent(side, options)
    }

    /// How an agent of this mesh is started that has its certificates from `ca`.
    #[must_use]
    pub fn agent_options(&self, ca: CaSource) -> AgentOptions {
        AgentOptions { objects: self.objects.folder().to_owned(), ca, instead: self.options.clone() }
    }

    /// Starts the agent of one node with given options.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_agent(&mut self, side: Side, options: AgentOptions) -> Result<()> {
        let agent = Agent::start(self.topology.node(side), options)?;
        *self.agents.of_mut(side) = Some(agent);
        Ok(())
    }

    /// Waits until one node's agent is ready.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn ready(&mut self, side: Side) -> Result<()> {
        let agent = self.agents.of_mut(side).as_mut().context("this node has no agent")?;
        agent.ready(self.topology.node(side), READY_WITHIN)
    }

    /// Puts an agent that the test has started into one node's place; gives the one that was there.
    pub fn replace_agent(&mut self, side: Side, agent: Agent) -> Option<Agent> {
        self.agents.of_mut(side).replace(agent)
    }

    /// Takes one node's agent out, to be killed or stopped by the test.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_agent(&mut self, side: Side) -> Result<Agent> {
        self.agents.of_mut(side).take().context("this node has no agent")
    }

    /// One node's agent.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent(&self, side: Side) -> Result<&Agent> {
        self.agents.of(side).as_ref().context("this node has no agent")
    }

    /// The name that everything of this mesh carries.
    #[must_use]
    pub fn run_id(&self) -> &str {
        self.topology.run().id()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, side: Side) -> &Node {
        self.topology.node(side)
    }

    /// The objects that the agents read.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The certificate authority.
    ///
    /// # Errors
    /// When it has not been started.
    pub fn ca(&self) -> Result<&Ca> {
        self.ca.as_ref().context("there is no certificate authority yet")
    }

    /// The usual beginning: enrolled namespace `shop`, `shop/client` on the first node and `shop/server` on the
    /// second, agents ready, both captured.
    ///
    /// # Errors
    /// When it is not all there in time.
    pub fn shop(&mut self) -> Result<(Arc<Workload>, Arc<Workload>)> {
        self.objects.put_namespace("shop", true)?;
        let client = self.pod(Side::A, "shop/client")?;
        let server = self.pod(Side::B, "shop/server")?;
        self.start()?;
        self.captured(&client)?;
        self.captured(&server)?;
        Ok((client, server))
    }

    /// Waits until the agent of `pod`'s node has published the pod as captured.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn captured(&self, pod: &Workload) -> Result<()> {
        wait::until(&format!("{} is captured", pod.object.display_name()), IN_FORCE_WITHIN, || {
            let published = self.objects.published(pod.side().node_name());
            wait::holds(published.contains(&pod.object.uid), || format!("published: {published}"))
        })?;
        Side::BOTH.into_iter().try_for_each(|side| self.knows_captured(side))
    }

    /// Waits until the agent of one node, if it runs, has read everything that is published as captured: until then
    /// its pods go there in plaintext.
    fn knows_captured(&self, side: Side) -> Result<()> {
        let Some(agent) = self.agents.of(side) else { return Ok(()) };
        if agent.metrics(self.node(side)).is_err() {
            // Stopped by the test, on purpose.
            return Ok(());
        }
        wait::until(&format!("{} knows what is captured", side.node_name()), IN_FORCE_WITHIN, || {
            let published = |side: Side| self.objects.published(side.node_name());
            let published: usize = Side::BOTH.map(|side| published(side).matches("uid: ").count()).iter().sum();
            let known = agent.metrics(self.node(side))?.sum("mesh_captured_workloads", &[]);
            wait::holds(known as usize == published, || format!("{known} of {published}"))
        })
    }

    /// Waits until some line of one agent's access log is what `wanted` looks for; gives it.
    ///
    /// # Errors
    /// When there is none in time; with the lines there are.
    pub fn logged(
        &self,
        side: Side,
        what: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let agent = self.agent(side)?;
        wait::until(&format!("{} logs {what}", side.node_name()), IN_FORCE_WITHIN, || {
            let lines = agent.access_log()?;
            let found = lines.iter().find(|line| wanted(line)).cloned();
            found.with_context(|| {
                let all: String = lines.iter().rev().take(10).map(|line| format!("{line}\n")).collect();
                format!("the last lines are:\n{all}")
            })
        })
    }

    /// Keeps what the agents would miss until they are gone.
    pub fn keep(&mut self, what: impl Any + Send) {
        self.kept.push(Box::new(what));
    }

    /// Announces that a line of an agent's log at WARN or above that contains `part` is part of this scenario.
    pub fn expect_complaint(&mut self, part: &str) {
        self.expected.push(part.to_owned());
    }

    fn no_complaints(&self) -> Result<()> {
        let agents = self.agents.iter().filter_map(|(_, agent)| agent.as_ref());
        let complaints: Vec<String> = agents.flat_map(|agent| agent.complaints(&self.expected)).collect();
        ensure!(complaints.is_empty(), "unexpected in the agents' logs:\n{}", complaints.join("\n"));
        Ok(())
    }
}

/// A pod's object before it has a network.
fn object(side: Side, (namespace, name): (&str, &str), uid: &str) -> PodObject {
    PodObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        node: side.node_name().to_owned(),
        service_account: name.to_owned(),
        ready: true,
        ..PodObject::default()
    }
}
