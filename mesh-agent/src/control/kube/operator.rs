//! What an operator does through the API server with rights of their own: finds the agent of a node and runs a command
//! in its container (decision 0015). The agent itself never comes here.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Client;
use kube::api::{Api, AttachParams, ListParams};
use kube::core::Request;
use kube::core::params::GetParams;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::connect::{describe, operators_client};
use super::watch::{NOT_FOUND, code, path};
use super::{ApiAccess, Kind};

/// The pods of the DaemonSet.
const AGENTS: &str = "app.kubernetes.io/name=mesh-agent";
/// The agent's container in them.
const CONTAINER: &str = "agent";
/// How long one question to the API server may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// More than the largest answer of an agent.
const LARGEST: u64 = 128 << 20;
/// What one read of a stream holds: an answer of a megabyte should not take a thousand turns.
const STREAM_BYTES: usize = 64 << 10;
const FORBIDDEN: u16 = 403;

/// Why an agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// No API server is known, or it does not answer.
    #[error("{0}")]
    Api(String),
    /// The operator lacks a right.
    #[error("{said}. Needed: {needed} (docs/install.md#rights-of-operators)")]
    Forbidden {
        /// What the API server says.
        said: String,
        /// The right.
        needed: String,
    },
    /// There is no such node.
    #[error("there is no node `{0}`; `kubectl get nodes` lists them")]
    NoNode(String),
    /// There is no such pod.
    #[error("there is no pod `{0}`; `kubectl get pods -A` lists them")]
    NoPod(String),
    /// The pod is not on a node yet.
    #[error("pod `{0}` is not on a node yet: no agent serves it")]
    Unscheduled(String),
    /// The name of the pod is none.
    #[error("`{0}` is not NAMESPACE/POD")]
    PodName(String),
    /// The node has no agent.
    #[error(
        "no agent is on node {node}: namespace {namespace} has no pod labelled {AGENTS} there. If the agents are in \
         another namespace, name it by --namespace; else look at `kubectl -n {namespace} describe daemonset mesh-agent`"
    )]
    NoAgent {
        /// The node.
        node: String,
        /// The agents' namespace.
        namespace: String,
    },
    /// Its agent's container does not run.
    #[error("the agent of node {node} does not run: pod {pod} is {state}; `kubectl -n {namespace} describe pod {pod}`")]
    NotRunning {
        /// The node.
        node: String,
        /// The agent's pod.
        pod: String,
        /// What its status says.
        state: String,
        /// The agents' namespace.
        namespace: String,
    },
    /// The command was not run.
    #[error("in pod {pod} of node {node}: {reason}")]
    NotRun {
        /// The node.
        node: String,
        /// The agent's pod.
        pod: String,
        /// What was said.
        reason: String,
    },
}

/// Where objects of a kind are.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// `/apis/apps/v1`
    pub api: &'static str,
    /// `daemonsets`
    pub plural: &'static str,
    /// Whether they are looked for in the agents' namespace.
    pub is_namespaced: bool,
}

/// A pod of the DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether its container runs.
    pub running: bool,
    /// `Running`, or why it does not run.
    pub state: String,
    /// How often its container was started again.
    pub restarts: u64,
    /// The image, which says the version.
    pub image: String,
    /// When it was made, as the API server writes it.
    pub created: String,
    /// The arguments of its container.
    pub args: Vec<String>,
}

impl AgentPod {
    /// Of two agents of a node the one to be asked has the higher rank.
    #[must_use]
    pub fn rank(&self) -> impl Ord {
        (self.running, self.ready, &self.created)
    }
}

/// What a command has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its output.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: String,
}

/// The API server, by an operator's rights.
#[derive(Clone)]
pub struct Operator {
    client: Client,
    namespace: String,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Operator {
    /// Reads how the API server is reached; the agents are in `namespace`.
    ///
    /// # Errors
    /// [`Unreached::Api`].
    pub async fn open(access: &ApiAccess, namespace: &str) -> Result<Self, Unreached> {
        let client = operators_client(access).await.map_err(Unreached::Api)?;
        Ok(Self { client, namespace: namespace.to_owned() })
    }

    /// The node of the pod `namespace/name`.
    ///
    /// # Errors
    /// When there is none, or it may not be read.
    pub async fn node_of(&self, pod: &str) -> Result<String, Unreached> {
        let (namespace, name) = pod.split_once('/').ok_or_else(|| Unreached::PodName(pod.to_owned()))?;
        let needed = format!("get pods in namespace {namespace}");
        let object = match self.get(&in_namespace(Kind::Pod, namespace), name, &needed).await? {
            Some(object) => object,
            None => return Err(Unreached::NoPod(pod.to_owned())),
        };
        match text(&object, "/spec/nodeName") {
            "" => Err(Unreached::Unscheduled(pod.to_owned())),
            node => Ok(node.to_owned()),
        }
    }

    /// The agent's pod of `node`. Of two, while one takes over from the other, either is as good: they have the same
    /// state folder.
    ///
    /// # Errors
    /// When there is none that runs, or pods may not be listed.
    pub async fn agent_of(&self, node: &str) -> Result<AgentPod, Unreached> {
        let found = self.list_agents(Some(node)).await?;
        let Some(agent) = found.into_iter().max_by(|a, b| a.rank().cmp(&b.rank())) else {
            // Which of both is missing is worth a question more; whoever may not ask gets the likelier answer.
            let nodes = path(Kind::Node, "v1");
            if matches!(self.get(&nodes, node, "get nodes").await, Ok(None)) {
                return Err(Unreached::NoNode(node.to_owned()));
            }
            return Err(Unreached::NoAgent { node: node.to_owned(), namespace: self.namespace.clone() });
        };
        if !agent.running {
            let AgentPod { name: pod, node, state, .. } = agent;
            return Err(Unreached::NotRunning { node, pod, state, namespace: self.namespace.clone() });
        }
        Ok(agent)
    }

    /// The agents' pods of all nodes, by node.
    ///
    /// # Errors
    /// When they may not be listed.
    pub async fn agents(&self) -> Result<Vec<AgentPod>, Unreached> {
        let mut agents = self.list_agents(None).await?;
        agents.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        Ok(agents)
    }

    /// One object that belongs to the installation; `kind` is its resource's path, without a namespace for those of the
    /// agents' namespace.
    ///
    /// # Errors
    /// When it may not be read.
    pub async fn installed(&self, of: &Resource, name: &str) -> Result<Option<Value>, Unreached> {
        let Resource { api, plural, is_namespaced } = of;
        let (path, place) = match is_namespaced {
            true => {
                (format!("{api}/namespaces/{}/{plural}", self.namespace), format!(" in namespace {}", self.namespace))
            }
            false => (format!("{api}/{plural}"), String::new()),
        };
        self.get(&path, name, &format!("get {plural}{place}")).await
    }

    /// What the API server says at a path of its own: its version, a group that it serves.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn about(&self, path: &str) -> Result<Option<Value>, Unreached> {
        let (path, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.get(path, name, "what every account may: the role system:discovery").await
    }

    /// The names of all nodes.
    ///
    /// # Errors
    /// When they may not be listed.
    pub async fn nodes(&self) -> Result<Vec<String>, Unreached> {
        let nodes = self.list(&path(Kind::Node, "v1"), &ListParams::default(), "list nodes").await?;
        Ok(nodes.iter().map(|node| text(node, "/metadata/name").to_owned()).collect())
    }

    /// How many pods each node's agent has published as captured.
    ///
    /// # Errors
    /// When that may not be read.
    pub async fn captured(&self) -> Result<Vec<(String, usize)>, Unreached> {
        let path = path(Kind::CaptureState, "v1alpha1");
        let states = self.list(&path, &ListParams::default(), "list capturestates.mesh-agent.io").await?;
        let count = |state: &Value| state.pointer("/spec/pods").and_then(Value::as_array).map_or(0, Vec::len);
        Ok(states.iter().map(|state| (text(state, "/metadata/name").to_owned(), count(state))).collect())
    }

    /// Runs `command` in the agent's container and gives what it has said. `within` bounds all of it.
    ///
    /// # Errors
    /// When it was not run; an exit code of its own is none.
    pub async fn run(&self, agent: &AgentPod, command: &[String], within: Duration) -> Result<Ran, Unreached> {
        let not_run = |reason| Unreached::NotRun { node: agent.node.clone(), pod: agent.name.clone(), reason };
        let late = |_| not_run(format!("no end within {} s", within.as_secs()));
        timeout(within, self.exec(agent, command)).await.map_err(late)?.map_err(|error| match error {
            NotExecuted::Forbidden(said) => {
                let needed = format!("get and create pods/exec in namespace {}", self.namespace);
                Unreached::Forbidden { said, needed }
            }
            NotExecuted::Failed(reason) => not_run(reason),
        })
    }

    async fn exec(&self, agent: &AgentPod, command: &[String]) -> Result<Ran, NotExecuted> {
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let how = AttachParams {
            container: Some(CONTAINER.to_owned()),
            max_stdout_buf_size: Some(STREAM_BYTES),
            ..AttachParams::default()
        };
        let failed = |error: &dyn std::fmt::Display| NotExecuted::Failed(error.to_string());
        let mut running = pods.exec(&agent.name, command, &how).await.map_err(|error| match code(&error) {
            Some(FORBIDDEN) => NotExecuted::Forbidden(describe(&error)),
            _ => NotExecuted::Failed(describe(&error)),
        })?;
        let streams = (running.stdout(), running.stderr(), running.take_status());
        let (Some(out), Some(err), Some(status)) = streams else {
            return Err(NotExecuted::Failed("the API server gives no streams".to_owned()));
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut out, mut err) = (out.take(LARGEST), err.take(LARGEST));
        let (read, complained, status) =
            tokio::join!(out.read_to_end(&mut stdout), err.read_to_end(&mut stderr), status);
        read.and(complained).map_err(|error| failed(&error))?;
        let status = status.ok_or_else(|| failed(&"the connection ended before the command did"))?;
        let code = exit_code(&status).map_err(NotExecuted::Failed)?;
        Ok(Ran { code, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }

    async fn list_agents(&self, node: Option<&str>) -> Result<Vec<AgentPod>, Unreached> {
        let mut which = ListParams::default().labels(AGENTS);
        if let Some(node) = node {
            which = which.fields(&format!("spec.nodeName={node}"));
        }
        let needed = format!("list pods in namespace {}", self.namespace);
        let pods = self.list(&in_namespace(Kind::Pod, &self.namespace), &which, &needed).await?;
        Ok(pods.iter().map(agent_pod).collect())
    }

    async fn get(&self, path: &str, name: &str, needed: &str) -> Result<Option<Value>, Unreached> {
        let request = Request::new(path).get(name, &GetParams::default());
        let request = request.map_err(|error| Unreached::Api(error.to_string()))?;
        match timeout(ANSWERS_WITHIN, self.client.request(request)).await.map_err(late)? {
            Ok(object) => Ok(Some(object)),
            Err(error) if code(&error) == Some(NOT_FOUND) => Ok(None),
            Err(error) => Err(refused(&error, needed)),
        }
    }

    async fn list(&self, path: &str, which: &ListParams, needed: &str) -> Result<Vec<Value>, Unreached> {
        let request = Request::new(path).list(which).map_err(|error| Unreached::Api(error.to_string()))?;
        let answer = timeout(ANSWERS_WITHIN, self.client.request::<Value>(request)).await.map_err(late)?;
        let mut list = answer.map_err(|error| refused(&error, needed))?;
        let items = list.get_mut("items").map(Value::take);
        Ok(items.and_then(|items| serde_json::from_value(items).ok()).unwrap_or_default())
    }
}

enum NotExecuted {
    Forbidden(String),
    Failed(String),
}

fn late(_: tokio::time::error::Elapsed) -> Unreached {
    Unreached::Api(format!("the API server did not answer within {} s", ANSWERS_WITHIN.as_secs()))
}

fn refused(error: &kube::Error, needed: &str) -> Unreached {
    match code(error) {
        Some(FORBIDDEN) => Unreached::Forbidden { said: describe(error), needed: needed.to_owned() },
        _ => Unreached::Api(format!("the API server: {}", describe(error))),
    }
}

fn in_namespace(kind: Kind, namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{}", kind.plural())
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn agent_pod(pod: &Value) -> AgentPod {
    let containers = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
    let own = containers.and_then(|all| all.iter().find(|status| text(status, "/name") == CONTAINER));
    let running = own.is_some_and(|status| status.pointer("/state/running").is_some());
    let of = |pointer: &str| own.map_or("", |status| text(status, pointer));
    let reasons = [of("/state/waiting/reason"), of("/state/terminated/reason"), text(pod, "/status/phase"), "unknown"];
    let state = if running { "Running" } else { reasons.into_iter().find(|reason| !reason.is_empty()).unwrap_or("") };
    AgentPod {
        name: text(pod, "/metadata/name").to_owned(),
        node: text(pod, "/spec/nodeName").to_owned(),
        ready: own.and_then(|status| status.get("ready")).and_then(Value::as_bool).unwrap_or(false),
        running,
        state: state.to_owned(),
        restarts: own.and_then(|status| status.get("restartCount")).and_then(Value::as_u64).unwrap_or(0),
        image: of("/image").to_owned(),
        created: text(pod, "/metadata/creationTimestamp").to_owned(),
        args: args(pod),
    }
}

fn args(pod: &Value) -> Vec<String> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let own = containers.and_then(|all| all.iter().find(|container| text(container, "/name") == CONTAINER));
    let args = own.and_then(|own| own.get("args")?.as_array()).into_iter().flatten();
    args.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What the last word of an exec says: a `Status`, with the exit code among the causes of a failure.
fn exit_code(status: &Status) -> Result<i32, String> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
    let code = causes.into_iter().flatten().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = code.and_then(|cause| cause.message.as_ref()?.parse().ok());
    code.ok_or_else(|| status.message.clone().unwrap_or_else(|| "it could not be started".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_state_of_an_agents_pod_is_its_containers() {
        let check = |status: Value, expected: (bool, bool, &str)| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a"}, "status": status});
            let found = agent_pod(&pod);
            assert_eq!((found.running, found.ready, found.state.as_str()), expected, "{pod}");
        };
        let of = |state: Value, ready: bool| {
            json!({"phase": "Running", "containerStatuses": [
                {"name": "other", "ready": true, "state": {"running": {}}},
                {"name": "agent", "ready": ready, "state": state}]})
        };
        check(of(json!({"running": {}}), true), (true, true, "Running"));
        check(of(json!({"running": {}}), false), (true, false, "Running"));
        check(of(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false), (false, false, "CrashLoopBackOff"));
        check(json!({"phase": "Pending"}), (false, false, "Pending"));
        check(json!({}), (false, false, "unknown"));
    }

    #[test]
    fn an_exit_code_is_told_from_a_command_that_was_not_run() {
        let check = |status: Value, expected: Result<i32, &str>| {
            let status: Status = serde_json::from_value(status).unwrap();
            assert_eq!(exit_code(&status), expected.map_err(str::to_owned));
        };
        check(json!({"status": "Success"}), Ok(0));
        let causes = json!({"causes": [{"reason": "ExitCode", "message": "3"}]});
        check(json!({"status": "Failure", "reason": "NonZeroExitCode", "details": causes}), Ok(3));
        check(json!({"status": "Failure", "message": "no such file"}), Err("no such file"));
    }
}
