//! The agent and its certificate authority as programs: started in a node's network, asked over their own
//! endpoints, killed without mercy.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::metrics::Metrics;
use crate::process::{Process, complaints, tail};
use crate::said::Said;
use crate::topology::Node;
use crate::{http, programs, wait};

/// An agent is ready within this when everything it needs is there.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// SPIFFE trust domain of every mesh that the harness makes.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// Where each node's agent serves its metrics, in the node's own network.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
const CA_PORT: u16 = 15012;

/// Where an agent's certificates come from.
#[derive(Clone, Debug)]
pub enum CaSource {
    /// The agent holds the root itself.
    Local,
    /// `mesh-agent ca`, with this node's token.
    Grpc {
        /// Where it listens.
        address: SocketAddr,
        /// Its root certificate.
        root: PathBuf,
        /// The node's join token.
        token: PathBuf,
    },
    /// A CA of a cluster, with the service account token of the node's agent.
    Cluster {
        /// Where it listens.
        address: SocketAddr,
        /// The roots to trust.
        roots: PathBuf,
        /// The token's file.
        token: PathBuf,
    },
}

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Folder of the objects.
    pub objects: PathBuf,
    /// Where its certificates come from.
    pub ca: CaSource,
    /// Options of `run` besides the harness's own, or instead of them; an empty value for one that takes none.
    pub instead: Vec<(String, String)>,
}

impl AgentOptions {
    /// The same with another value for one option of `run`.
    #[must_use]
    pub fn with(mut self, option: &str, value: &str) -> Self {
        self.instead.retain(|(name, _)| name != option);
        self.instead.push((option.to_owned(), value.to_owned()));
        self
    }

    /// Where it can be asked. An address that is none is the agent's to refuse.
    fn metrics(&self) -> SocketAddr {
        let given = self.instead.iter().find(|(name, _)| name == "--metrics");
        given.and_then(|(_, address)| address.parse().ok()).unwrap_or(METRICS)
    }
}

/// One node's agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    options: AgentOptions,
    instance: String,
    state: PathBuf,
    metrics: SocketAddr,
}

impl Agent {
    /// Starts the agent of `node`; it is not ready yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Node, options: AgentOptions) -> Result<Self> {
        Self::start_program(node, options, "agent", &programs::agent()?)
    }

    /// As [`Self::start`], under another name and from another program: beside one that runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_program(node: &Node, options: AgentOptions, name: &str, program: &Path) -> Result<Self> {
        let state = node.folder().join("state");
        fs::create_dir_all(&state)?;
        let instance = instance(node);
        let path = |path: &Path| path.display().to_string();
        let mut arguments = vec![
            ("--node", node.name().to_owned()),
            ("--instance", instance.clone()),
            ("--source", format!("dir:{}", path(&options.objects))),
            ("--cgroup", path(node.cgroup())),
            ("--bpffs", path(node.bpffs())),
            ("--state-dir", path(&state)),
            ("--trust-domain", TRUST_DOMAIN.to_owned()),
            ("--metrics", METRICS.to_string()),
            ("--log-format", "text".to_owned()),
        ];
        match &options.ca {
            CaSource::Local => arguments.push(("--ca", "local".to_owned())),
            CaSource::Grpc { address, root, token } => arguments.extend([
                ("--ca", format!("grpc://{address}")),
                ("--ca-root", path(root)),
                ("--join-token-file", path(token)),
            ]),
            CaSource::Cluster { address, roots, token } => arguments.extend([
                ("--ca", format!("grpc://{address}")),
                ("--ca-root", path(roots)),
                ("--ca-token-file", path(token)),
            ]),
        }
        arguments.retain(|(name, _)| options.instead.iter().all(|(other, _)| other != name));
        arguments.extend(options.instead.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let mut command = Command::new(program);
        let words = arguments.iter().flat_map(|(name, value)| [*name, value]).filter(|word| !word.is_empty());
        command.arg("run").args(words).env_remove("RUST_LOG");
        let process = node.spawn(name, command)?;
        let metrics = options.metrics();
        Ok(Self { process, options, instance, state, metrics })
    }

    /// Waits for `/readyz`.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with its last words.
    pub fn ready(&mut self, node: &Node, within: Duration) -> Result<()> {
        let outcome = wait::until(&format!("the agent of {} is ready", node.name()), within, || {
            if let Err(ended) = self.process.check_running() {
                return Ok(Err(ended));
            }
            let response = http::get(node.netns(), self.metrics, "/readyz")?;
            ensure!(response.status == 200, "/readyz: {} {}", response.status, response.body.trim());
            Ok(Ok(()))
        });
        outcome
            .and_then(|inner| inner)
            .with_context(|| format!("its last words:\n{}", tail(&self.process.stderr(), 15)))
    }

    /// Kills it and starts it again with the same options.
    ///
    /// # Errors
    /// When it cannot be started again.
    pub fn kill_and_restart(self, node: &Node) -> Result<Self> {
        let options = self.kill()?;
        Self::start(node, options)
    }

    /// Kills it (SIGKILL); its pins stay. Gives the options to start it with again.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(mut self) -> Result<AgentOptions> {
        self.process.kill()?;
        Ok(self.options.clone())
    }

    /// Asks it to drain and end (SIGTERM).
    ///
    /// # Errors
    /// When it does not end in time, or with an error.
    pub fn stop(mut self) -> Result<AgentOptions> {
        let status = self.process.stop()?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", tail(&self.process.stderr(), 15));
        Ok(self.options.clone())
    }

    /// Waits until it ends by itself, as one does that was succeeded; gives what it said.
    ///
    /// # Errors
    /// When it runs on, or ends with an error.
    pub fn ends(mut self, within: Duration) -> Result<String> {
        let status = self.process.wait(within)?;
        let said = self.process.stderr();
        ensure!(status.success(), "the agent ended with {status}:\n{}", tail(&said, 15));
        Ok(said)
    }

    /// Takes a stopped agent's programs, maps and pins off the node.
    ///
    /// # Errors
    /// What the agent says.
    pub fn uninstall(node: &Node) -> Result<()> {
        let mut command = Command::new(programs::agent()?);
        command.args(["uninstall", "--instance", &instance(node), "--bpffs"]).arg(node.bpffs());
        command.arg("--cgroup").arg(node.cgroup());
        node.spawn("uninstall", command)?.finish(READY_WITHIN).map(drop)
    }

    /// Waits until it gives up by itself; gives what it said.
    ///
    /// # Errors
    /// When it runs on, or ends as if all were well.
    pub fn gives_up(mut self) -> Result<String> {
        let status = self.process.wait(READY_WITHIN)?;
        let said = self.process.stderr();
        ensure!(!status.success(), "it ended with {status} as if all were well:\n{said}");
        Ok(said)
    }

    /// Scrapes its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, node: &Node) -> Result<Metrics> {
        let response = http::get(node.netns(), self.metrics, "/metrics")?;
        ensure!(response.status == 200, "/metrics: {}", response.status);
        ensure!(response.body.ends_with("# EOF\n"), "/metrics does not end with # EOF");
        Ok(Metrics::parse(&response.body))
    }

    /// The whole lines of its access log so far.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        self.process.lines()
    }

    /// `mesh-agent` with `words`, about this agent.
    ///
    /// # Errors
    /// When it does not start, or is killed.
    pub fn says(&self, words: &[&str]) -> Result<Said> {
        let mut command = Command::new(programs::agent()?);
        command.args(words).arg("--state-dir").arg(&self.state);
        Said::by(command)
    }

    /// `mesh-agent status --json`.
    ///
    /// # Errors
    /// When it fails, or does not print JSON.
    pub fn status(&self, node: &Node) -> Result<Value> {
        let said = self.says(&["status", "--json"])?;
        ensure!(said.code == 0, "status of {}: {}", node.name(), said.err);
        serde_json::from_str(&said.out).context("`mesh-agent status --json` prints no JSON")
    }

    /// `mesh-agent explain SOURCE DESTINATION [PORT] --output json`: its exit code, and what it prints; `Null` when it
    /// has no answer.
    ///
    /// # Errors
    /// When it does not start, or prints something else.
    pub fn explain(&self, question: &[&str]) -> Result<(i32, Value)> {
        let Said { code, out, err } = self.says(&[&["explain"], question, &["--output", "json"]].concat())?;
        if out.is_empty() {
            ensure!(!err.is_empty(), "`mesh-agent explain` ended with {code} and no word");
            return Ok((code, Value::Null));
        }
        Ok((code, serde_json::from_str(&out).context("`mesh-agent explain` prints no JSON")?))
    }

    /// Lines of its log at WARN or above that contain none of `expected`.
    #[must_use]
    pub fn complaints(&self, expected: &[String]) -> Vec<String> {
        complaints(&self.log(), expected)
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// How it was started.
    #[must_use]
    pub fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its instance's name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

fn instance(node: &Node) -> String {
    node.netns().name().to_owned()
}

/// `mesh-agent ca`: the one process that holds the root.
#[derive(Debug)]
pub struct Ca {
    process: Process,
    state: PathBuf,
    address: SocketAddr,
}

impl Ca {
    /// Starts it in `node`'s network and waits until it serves.
    ///
    /// # Errors
    /// When it does not serve in time.
    pub fn start(node: &Node, objects: &Path) -> Result<Self> {
        let state = node.folder().join("ca");
        fs::create_dir_all(&state)?;
        let address = SocketAddr::new(node.ip(), CA_PORT);
        let mut command = Command::new(programs::agent()?);
        command.args(["ca", "--listen", &address.to_string(), "--trust-domain", TRUST_DOMAIN, "--state-dir"]);
        command.arg(&state).arg("--source").arg(format!("dir:{}", objects.display())).env_remove("RUST_LOG");
        let process = node.spawn("ca", command)?;
        let mut ca = Self { process, state, address };
        wait::until("the certificate authority serves", READY_WITHIN, || {
            if let Err(ended) = ca.process.check_running() {
                return Ok(Err(ended));
            }
            ensure!(ca.root().is_file(), "it has no root certificate yet");
            let connected = node.netns().run(|| std::net::TcpStream::connect_timeout(&address, READY_WITHIN))?;
            connected.map(|_| Ok(())).map_err(|error| anyhow!("{address}: {error}"))
        })??;
        Ok(ca)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its root certificate.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.state.join("root.pem")
    }

    /// Its state folder, with the root key.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Makes a join token for `node`; gives the file with it.
    ///
    /// # Errors
    /// What `mesh-agent ca token` says.
    pub fn token(&self, node: &Node) -> Result<PathBuf> {
        let mut command = Command::new(programs::agent()?);
        command.args(["ca", "token", "--node", node.name(), "--state-dir"]).arg(&self.state);
        let output = command.output().context("`mesh-agent ca token` does not start")?;
        if !output.status.success() {
            bail!("`mesh-agent ca token`: {}", String::from_utf8_lossy(&output.stderr));
        }
        let file = node.folder().join("join-token");
        // A secret: the agent reads it only from a file that nobody else can.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&file)?
            .write_all(&output.stdout)?;
        Ok(file)
    }
}
