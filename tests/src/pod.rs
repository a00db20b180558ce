//! A pod: a network namespace with addresses of both families, and a cgroup below its node's.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::process::{Launch, Process};
use crate::run::Run;
use crate::topology::{Node, Side};
use crate::{programs, wait};

/// Servers listen within this, on a busy machine too.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// A simulated pod.
#[derive(Debug)]
pub struct Pod {
    name: String,
    side: Side,
    ips: [IpAddr; 2],
    // The cgroup first: what runs in it keeps the namespace alive.
    cgroup: Cgroup,
    netns: Netns,
    folder: PathBuf,
    clients: AtomicU32,
    run: Arc<Run>,
}

impl Pod {
    /// Makes namespace and cgroup; [`Node::pod`] connects them.
    pub(crate) fn new(run: &Arc<Run>, node: &Node, name: &str, ips: [IpAddr; 2]) -> Result<Self> {
        let netns = Netns::new(&format!("{}-{name}", run.id()))?;
        let cgroup = Cgroup::new(node.cgroup().join(name))?;
        let folder = run.subfolder(&format!("pods/{name}"))?;
        let side = node.side();
        Ok(Self {
            name: name.to_owned(),
            side,
            ips,
            cgroup,
            netns,
            folder,
            clients: AtomicU32::new(0),
            run: Arc::clone(run),
        })
    }

    /// Its short name, unique in the run.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is on.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Its addresses: IPv4, IPv6.
    #[must_use]
    pub fn ips(&self) -> [IpAddr; 2] {
        self.ips
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ips[0]
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ip6(&self) -> IpAddr {
        self.ips[1]
    }

    /// Its network.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its folder inside the run's.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Starts a program in the pod.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let launch = Launch {
            name,
            folder: &self.folder,
            run_id: self.run.id(),
            netns: Some(self.netns.descriptor()?),
            cgroup_procs: Some(self.cgroup.procs()?),
        };
        Process::start(command, launch)
    }

    /// Starts a server in the pod and waits until it listens on `port`.
    ///
    /// # Errors
    /// When it ends first, or does not listen in time.
    pub fn serve(&self, name: &str, command: Command, port: u16) -> Result<Process> {
        let mut process = self.spawn(name, command)?;
        wait::until(&format!("{name} listens on port {port}"), LISTENS_WITHIN, || {
            if let Err(ended) = process.check_running() {
                return Ok(Err(ended));
            }
            listens(process.pid(), port).map(Ok)
        })??;
        Ok(process)
    }

    /// Starts one of the sample applications (see `mesh-sample help`) in the pod.
    ///
    /// # Errors
    /// When it does not start.
    pub fn sample(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(programs::sample()?);
        command.args(arguments);
        self.spawn(name, command)
    }

    /// Runs a sample client against `to` and gives the last line that it printed, as JSON.
    ///
    /// # Errors
    /// When it fails, or has not ended after `within`.
    pub fn ask(&self, kind: &str, to: SocketAddr, arguments: &[&str], within: Duration) -> Result<Value> {
        self.ask_later(kind, to, arguments)?.answer(within)
    }

    /// Starts a sample client against `to`, whose answer is read later.
    ///
    /// # Errors
    /// When it does not start.
    pub fn ask_later(&self, kind: &str, to: SocketAddr, arguments: &[&str]) -> Result<Process> {
        let name = format!("{}-{kind}", self.clients.fetch_add(1, Ordering::Relaxed));
        let to = to.to_string();
        let arguments: Vec<&str> = [kind, "--to", &to].into_iter().chain(arguments.iter().copied()).collect();
        self.sample(&name, &arguments)
    }

    /// Starts a sample application that serves, and waits until it listens on `port`.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn sample_server(&self, kind: &str, port: u16, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(programs::sample()?);
        command.arg(kind).args(["--port", &port.to_string()]).args(arguments);
        self.serve(&format!("{kind}-{port}"), command, port)
    }
}

/// Whether what the sample client `probe` found is a refusal: at connect, or a reset before the first byte, which
/// is how a proxy refuses. A reset may come so soon that connect() itself reports it.
#[must_use]
pub fn is_refused(found: &Value) -> bool {
    let is = |field: &str, kinds: &[&str]| found.get(field).and_then(Value::as_str).is_some_and(|k| kinds.contains(&k));
    is("connect", &["ConnectionRefused", "ConnectionReset"]) || is("read", &["ConnectionReset"])
}

/// `Ok` if something in the network namespace of process `pid` listens on TCP `port`.
fn listens(pid: u32, port: u16) -> Result<()> {
    // local_address is ADDRESS:PORT in hexadecimal, state 0A = LISTEN (Documentation/networking/proc_net_tcp.rst)
    let suffix = format!(":{port:04X}");
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, _remote, state) = (fields.next(), fields.next(), fields.next());
            if local.is_some_and(|local| local.ends_with(&suffix)) && state == Some("0A") {
                return Ok(());
            }
        }
    }
    bail!("nothing listens on port {port}")
}
