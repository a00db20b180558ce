//! A container runtime, as far as a CNI plugin sees one: environment, stdin, stdout and exit code.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mesh::Workload;
use crate::objects::PodObject;
use crate::process::Process;
use crate::programs;
use crate::topology::Node;

/// The longest deadline that a test configures, and a slow machine.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

static CALLS: AtomicU32 = AtomicU32::new(0);

/// The runtime of one node, with the plugin's entry of its network configuration.
#[derive(Clone, Debug)]
pub struct Runtime<'a> {
    node: &'a Node,
    conf: Value,
    /// Where the plugin is; that of this build when not given.
    plugin: Option<PathBuf>,
}

/// A pod on its way: ADD, and its first container, which is there and begins when ADD has succeeded, not before.
#[derive(Debug)]
pub struct Starting {
    call: Process,
    container: Process,
}

/// What a call of the plugin gave.
#[derive(Debug)]
pub struct Answer {
    /// Whether it ended with 0.
    pub is_success: bool,
    /// What it printed; `Null` when nothing.
    pub printed: Value,
}

impl Answer {
    /// The code of its error; 0 after a success.
    #[must_use]
    pub fn code(&self) -> u64 {
        self.printed["code"].as_u64().unwrap_or_default()
    }

    /// The message of its error.
    #[must_use]
    pub fn message(&self) -> &str {
        self.printed["msg"].as_str().unwrap_or_default()
    }

    /// `Err` with its message unless it has succeeded.
    ///
    /// # Errors
    /// When it has failed.
    pub fn success(&self) -> Result<()> {
        ensure!(self.is_success, "the plugin failed: {}", self.printed);
        Ok(())
    }

    /// `Err` unless it has failed with `code` and says each of `parts`.
    ///
    /// # Errors
    /// When it has succeeded, or said something else.
    pub fn failure(&self, code: u64, parts: &[&str]) -> Result<()> {
        let says = parts.iter().all(|part| self.message().contains(part));
        ensure!(!self.is_success && self.code() == code && says, "no failure {code} with {parts:?}: {}", self.printed);
        Ok(())
    }
}

impl<'a> Runtime<'a> {
    /// Of `node`, whose agent has its usual state folder.
    pub(crate) fn of(node: &'a Node) -> Self {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "test", "type": "mesh-agent", "stateDir": node.folder().join("state"),
        });
        Self { node, conf, plugin: None }
    }

    /// The same with a key of the plugin's entry set.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.conf[key] = value.into();
        self
    }

    /// The same with the plugin at this place.
    #[must_use]
    pub fn by(mut self, plugin: &Path) -> Self {
        self.plugin = Some(plugin.to_owned());
        self
    }

    /// What the plugins before this one have made of a pod.
    #[must_use]
    pub fn previous(pod: &Workload) -> Value {
        let ips: Vec<Value> =
            pod.ips().iter().map(|ip| json!({"address": format!("{ip}/32"), "interface": 0})).collect();
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": pod.netns().path()}], "ips": ips,
            "dns": {"nameservers": ["10.96.0.10"]}})
    }

    /// ADD of a pod's sandbox.
    ///
    /// # Errors
    /// When it does not end.
    pub fn add(&self, pod: &Workload) -> Result<Answer> {
        self.answer(self.add_later(pod)?)
    }

    /// ADD whose answer is read later, by [`Self::answer`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_later(&self, pod: &Workload) -> Result<Process> {
        self.call_later("ADD", (Some(pod), None), &self.conf_of(pod))
    }

    /// ADD of a pod whose container asks `to` as its first instruction: the process is placed in the pod's cgroup and
    /// network before, and is let go by ADD's success itself, as a runtime's is by its FIFO. See [`Self::started`].
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn start(&self, pod: &Workload, kind: &str, to: SocketAddr, arguments: &[&str]) -> Result<Starting> {
        let gate = pod.folder().join(format!("gate-{}", CALLS.fetch_add(1, Ordering::Relaxed)));
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU)?;
        let mut program = Command::new(programs::sample()?);
        program.args([kind, "--to", &to.to_string(), "--gate"]).arg(&gate).args(arguments);
        let container = pod.spawn(&format!("container-of-{}", pod.name()), program)?;
        let call = self.call_later("ADD", (Some(pod), Some(&gate)), &self.conf_of(pod))?;
        Ok(Starting { call, container })
    }

    /// What became of [`Self::start`]: what ADD answered, and what the container found if it was let go.
    ///
    /// # Errors
    /// When one of them does not end.
    pub fn started(&self, starting: Starting) -> Result<(Answer, Option<Value>)> {
        let Starting { call, container } = starting;
        let answer = self.answer(call)?;
        let found = answer.is_success.then(|| container.answer(ENDS_WITHIN)).transpose()?;
        Ok((answer, found))
    }

    /// CHECK of a pod's sandbox.
    ///
    /// # Errors
    /// When it does not end.
    pub fn check(&self, pod: &Workload) -> Result<Answer> {
        self.answer(self.call_later("CHECK", (Some(pod), None), &self.conf_of(pod))?)
    }

    /// DEL of a pod's sandbox.
    ///
    /// # Errors
    /// When it does not end.
    pub fn delete(&self, pod: &Workload) -> Result<Answer> {
        self.answer(self.call_later("DEL", (Some(pod), None), &self.conf)?)
    }

    /// A call that concerns no pod, with this text on stdin or the plugin's entry.
    ///
    /// # Errors
    /// When it does not end.
    pub fn call(&self, command: &str, stdin: Option<&Value>) -> Result<Answer> {
        self.answer(self.call_later(command, (None, None), stdin.unwrap_or(&self.conf))?)
    }

    fn conf_of(&self, pod: &Workload) -> Value {
        let mut conf = self.conf.clone();
        conf["prevResult"] = Self::previous(pod);
        conf
    }

    /// A call, perhaps about a pod, perhaps with a FIFO at which somebody waits for its success.
    fn call_later(
        &self,
        command: &str,
        (pod, gate): (Option<&Workload>, Option<&Path>),
        stdin: &Value,
    ) -> Result<Process> {
        let name = format!("cni-{}", CALLS.fetch_add(1, Ordering::Relaxed));
        let file = self.node.folder().join(format!("{name}.json"));
        fs::write(&file, stdin.to_string())?;
        // A runtime gives no arguments.
        let mut program = Command::new("sh");
        let plugin = self.plugin.clone().map_or_else(programs::agent, Ok)?;
        let script = if gate.is_some() { "\"$0\" < \"$1\" && : > \"$2\"" } else { "exec \"$0\" < \"$1\"" };
        program.args(["-c", script]).arg(plugin).arg(&file).args(gate);
        program.env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin");
        if let Some(pod) = pod {
            environment(&mut program, pod.netns().path().as_path(), &container(pod), &pod.object());
        }
        self.node.spawn(&name, program)
    }

    /// What a call that was started has given.
    ///
    /// # Errors
    /// When it does not end, or prints something else than JSON.
    pub fn answer(&self, mut call: Process) -> Result<Answer> {
        let status = call.wait(ENDS_WITHIN)?;
        let (printed, said) = (call.stdout(), call.stderr());
        let printed = match printed.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("the plugin prints no JSON: {text} {said}"))?,
        };
        Ok(Answer { is_success: status.success(), printed })
    }
}

/// The id of a pod's sandbox: its network namespace's name serves.
fn container(pod: &Workload) -> String {
    pod.netns().name().to_owned()
}

fn environment(program: &mut Command, netns: &Path, container: &str, object: &PodObject) {
    let PodObject { namespace, name, uid, .. } = object;
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container};\
         K8S_POD_UID={uid}"
    );
    program.env("CNI_CONTAINERID", container).env("CNI_NETNS", netns).env("CNI_IFNAME", "eth0").env("CNI_ARGS", args);
}
