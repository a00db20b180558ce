//! Which agent a command is about: that of this machine by its socket, or that of a node through the API server
//! (decision 0015). There the same program is run in the agent's container, with the operator's own rights.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{fail, plain, print};
use crate::admin::{self, Request};
use crate::config::EXIT_USAGE;
use crate::control::{AgentPod, ApiAccess, Operator, Ran};

/// What runs in the agent's container.
const PROGRAM: &str = "mesh-agent";
/// How long an agent may take to answer through the API server.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// Agents that are asked at once.
const AT_ONCE: usize = 8;
/// Clap's exit code for what it does not know.
const UNKNOWN_COMMAND: i32 = 2;

/// Where the agent is.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Place {
    /// The agent's state directory, on its own machine
    #[arg(long, env = "MESH_STATE_DIR", default_value = "/var/lib/mesh-agent")]
    pub(super) state_dir: PathBuf,
    /// Ask the agent of this node, through the API server
    #[arg(long, help_heading = "Through the API server")]
    pub(super) node: Option<String>,
    /// Ask the agent of the node that this pod is on
    #[arg(long, value_name = "NAMESPACE/POD", conflicts_with = "node", help_heading = "Through the API server")]
    pub(super) pod: Option<String>,
    #[command(flatten)]
    pub(super) api: Api,
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Api {
    /// A kubeconfig, if not that of kubectl
    #[arg(long, help_heading = "Through the API server")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig, if not the current one
    #[arg(long, help_heading = "Through the API server")]
    context: Option<String>,
    /// The namespace that the agents are in
    #[arg(
        long,
        env = "MESH_AGENT_NAMESPACE",
        default_value = "mesh-agent-system",
        help_heading = "Through the API server"
    )]
    namespace: String,
}

impl Api {
    /// Whether it is asked for by itself: a context alone means the whole cluster.
    pub(super) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// The API server.
    pub(super) async fn open(&self) -> Result<Operator, String> {
        let access = ApiAccess { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        Operator::open(&access, &self.namespace).await.map_err(|error| error.to_string())
    }

    /// The agents' namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Place {
    /// Whether one agent of the cluster is meant.
    pub(super) fn is_a_node(&self) -> bool {
        self.node.is_some() || self.pod.is_some()
    }

    /// Whether all agents of the cluster are meant.
    pub(super) fn is_the_cluster(&self) -> bool {
        !self.is_a_node() && self.api.is_named()
    }

    /// Asks the agent.
    ///
    /// # Errors
    /// A sentence with what to look at.
    pub(super) fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, String> {
        wait(async {
            if !self.is_a_node() {
                if self.api.is_named() {
                    return Err("which agent? --node NODE or --pod NAMESPACE/POD names one".to_owned());
                }
                return self.ask_here(request).await;
            }
            let operator = self.api.open().await?;
            let agent = self.agent(&operator).await?;
            ask_there(&operator, &agent, request).await
        })
    }

    async fn ask_here<T: DeserializeOwned>(&self, request: &Request) -> Result<T, String> {
        let hint = "is an agent with this --state-dir running, and are you its user? From elsewhere: --node NODE";
        admin::ask(&self.state_dir, request).await.map_err(|error| format!("{error}; {hint}"))
    }

    /// Runs this program beside the agent of a node, with the `arguments` for that one, and gives what it has said.
    ///
    /// # Errors
    /// When it was not run.
    pub(super) fn run_there(
        &self,
        arguments: impl FnOnce(&AgentPod) -> Vec<String>,
        within: Duration,
    ) -> Result<Ran, String> {
        wait(async {
            let operator = self.api.open().await?;
            let agent = self.agent(&operator).await?;
            let command = [vec![PROGRAM.to_owned()], arguments(&agent)].concat();
            operator.run(&agent, &command, within).await.map_err(|error| error.to_string())
        })
    }

    async fn agent(&self, operator: &Operator) -> Result<AgentPod, String> {
        let node = match (&self.node, &self.pod) {
            (Some(node), _) => Ok(node.clone()),
            (None, Some(pod)) => operator.node_of(pod).await,
            (None, None) => return Err("no node is named".to_owned()),
        };
        let agent = operator.agent_of(&node.map_err(|error| error.to_string())?).await;
        agent.map_err(|error| error.to_string())
    }
}

/// Asks one agent of the cluster.
///
/// # Errors
/// A sentence that names the node and its agent.
pub(super) async fn ask_there<T: DeserializeOwned>(
    operator: &Operator,
    agent: &AgentPod,
    request: &Request,
) -> Result<T, String> {
    let request = serde_json::to_string(request).map_err(|error| error.to_string())?;
    let command = [PROGRAM.to_owned(), "ask".to_owned(), request];
    let ran = operator.run(agent, &command, ANSWERS_WITHIN).await.map_err(|error| error.to_string())?;
    read(agent, &ran)
}

/// Asks the agent of every node, and gives each node's answer, or why there is none.
pub(super) async fn ask_all<T: DeserializeOwned>(
    operator: &Operator,
    agents: Vec<AgentPod>,
    request: &Request,
) -> Vec<(String, Result<T, String>)> {
    let mut of_node: BTreeMap<String, AgentPod> = BTreeMap::new();
    for agent in agents {
        let better = of_node.get(&agent.node).is_none_or(|other| other.rank() < agent.rank());
        if better {
            of_node.insert(agent.node.clone(), agent);
        }
    }
    let asked = of_node.into_iter().map(|(node, agent)| async move {
        let answer = match agent.running {
            true => ask_there(operator, &agent, request).await,
            false => Err(format!("the agent of node {node} does not run: pod {} is {}", agent.name, agent.state)),
        };
        (node, answer)
    });
    futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await
}

/// What `ask` prints: the answer with the version that gives it.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<'a> {
    version: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    answer: &'a RawValue,
}

fn read<T: DeserializeOwned>(agent: &AgentPod, ran: &Ran) -> Result<T, String> {
    let AgentPod { name, node, ready, .. } = agent;
    let said = plain(ran.stderr.trim().trim_start_matches("mesh-agent: "));
    match ran.code {
        0 => {}
        UNKNOWN_COMMAND => {
            return Err(format!(
                "the agent of node {node} is of a version that cannot be asked from elsewhere ({said}); use the \
                 mesh-agent of its image, {}, in pod {name}",
                agent.image
            ));
        }
        _ if !ready => return Err(format!("the agent of node {node} is not ready (pod {name}): {said}")),
        _ => return Err(format!("the agent of node {node} (pod {name}): {said}")),
    }
    let envelope: Envelope<'_> = serde_json::from_slice(&ran.stdout)
        .map_err(|error| format!("pod {name} of node {node} answers what this version does not read: {error}"))?;
    serde_json::from_str(envelope.answer.get()).map_err(|error| {
        let (theirs, ours) = (&envelope.version, env!("CARGO_PKG_VERSION"));
        format!(
            "the agent of node {node} is version {theirs}, this is {ours}, and its answer is not understood: {error}"
        )
    })
}

/// Runs `work` to its end.
pub(super) fn wait<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(work)
}

/// Arguments of `ask`.
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    /// The request, as JSON.
    request: String,
    /// The agent's state directory.
    #[arg(long, env = "MESH_STATE_DIR", default_value = "/var/lib/mesh-agent")]
    state_dir: PathBuf,
}

/// `mesh-agent ask`: hands a request to the agent beside it. What the other commands run in its container.
pub(super) fn ask(args: &AskArgs) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    let request: Request = match serde_json::from_str(&args.request) {
        Ok(request) => request,
        Err(error) => {
            let _ = fail(&format!("this agent's version, {version}, does not know the request: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let here = Place { state_dir: args.state_dir.clone(), ..Place::default() };
    let answer: Result<Box<RawValue>, String> = here.ask(&request);
    let printed = answer.and_then(|answer| {
        let envelope = Envelope { version: version.into(), answer: &answer };
        serde_json::to_string(&envelope).map_err(|error| error.to_string())
    });
    match printed {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(ready: bool) -> AgentPod {
        AgentPod { name: "mesh-agent-x".into(), node: "node-a".into(), ready, running: true, ..AgentPod::default() }
    }

    fn ran(code: i32, stdout: &str, stderr: &str) -> Ran {
        Ran { code, stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn an_answer_is_read_whatever_else_a_newer_agent_says() {
        let found: Result<u32, String> = read(&agent(true), &ran(0, r#"{"version":"9","answer":7,"more":{}}"#, ""));
        assert_eq!(found, Ok(7));
    }

    #[test]
    fn what_goes_wrong_names_the_node_and_the_way_out() {
        let check = |ready, ran: &Ran, parts: &[&str]| {
            let error = read::<u32>(&agent(ready), ran).unwrap_err();
            assert!(error.contains("node-a") && parts.iter().all(|part| error.contains(part)), "{error}");
        };
        check(true, &ran(2, "", "error: unrecognized subcommand 'ask'\n"), &["version", "unrecognized"]);
        check(false, &ran(1, "", "mesh-agent: admin.sock: refused"), &["not ready", "admin.sock: refused"]);
        check(true, &ran(0, r#"{"version":"9.9","answer":"x"}"#, ""), &["9.9", env!("CARGO_PKG_VERSION")]);
        check(true, &ran(0, "nonsense", ""), &["does not read"]);
    }
}
