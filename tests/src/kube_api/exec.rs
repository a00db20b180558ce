//! `pods/exec` over WebSocket, as clients of Kubernetes speak it: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! The API server upgrades first and says afterwards, in a `Status` on the last channel, what became of the command.
//! Containers are the test's: which program of this machine stands behind which name. Not here: standard input, TTYs,
//! SPDY.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::cluster::Cluster;
use super::failure::Failure;
use super::request::{Place, Request};

/// The protocols that are spoken, the best first. In v5 a client can end its standard input alone.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
/// What one message carries at most, as of a kubelet.
const PIECE: usize = 32 << 10;
/// Pieces on their way to a client that reads slowly.
const PIECES: usize = 16;

/// What stands for a container.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// The programs in it: name, and the file on this machine.
    pub programs: BTreeMap<String, PathBuf>,
    /// Environment of what is run in it; nothing else is there.
    pub environment: Vec<(String, String)>,
}

/// Which containers run, by namespace, pod and name.
pub type Containers = BTreeMap<(String, String, String), Container>;

/// A command that is to be run.
#[derive(Debug)]
pub struct Exec {
    container: Option<Container>,
    name: String,
    command: Vec<String>,
    stdout: bool,
    stderr: bool,
    /// `Sec-WebSocket-Accept`
    pub accept: String,
    /// `Sec-WebSocket-Protocol`
    pub protocol: &'static str,
}

/// Looks whether a request asks for something that can be run.
///
/// # Errors
/// What the API server refuses before it upgrades.
pub fn begin(cluster: &Cluster, containers: &Containers, request: &Request, place: &Place) -> Result<Exec, Failure> {
    let namespace = place.namespace.clone().unwrap_or_default();
    let pod = place.name.clone().unwrap_or_default();
    let key = (namespace.clone(), pod.clone());
    let object = cluster.store.get("pods", &key).ok_or_else(|| Failure::not_found("pods", &pod))?;
    let name = container_of(object, &pod, request.parameter("container"))?;
    if object["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        return Err(Failure::bad_request(format!("pod {pod} does not have a host assigned")));
    }
    let command = request.all("command");
    if command.is_empty() {
        return Err(Failure::bad_request("you must specify at least 1 command for the container"));
    }
    let Some(upgrade) = &request.upgrade else {
        return Err(Failure::bad_request("Upgrade request required"));
    };
    let offered: Vec<&str> = upgrade.protocols.split(',').map(str::trim).collect();
    let Some(protocol) = PROTOCOLS.into_iter().find(|protocol| offered.contains(protocol)) else {
        return Err(Failure::bad_request(format!("unable to negotiate protocol: client supports {offered:?}")));
    };
    Ok(Exec {
        container: containers.get(&(namespace, pod, name.clone())).cloned(),
        name,
        command,
        stdout: request.flag("stdout"),
        stderr: request.flag("stderr"),
        accept: derive_accept_key(upgrade.key.as_bytes()),
        protocol,
    })
}

fn container_of(object: &Value, pod: &str, asked: &str) -> Result<String, Failure> {
    let declared = object["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = declared.iter().filter_map(|container| container["name"].as_str()).collect();
    match (asked, names.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => {
            let what =
                format!("a container name must be specified for pod {pod}, choose one of: [{}]", names.join(" "));
            Err(Failure::bad_request(what))
        }
        (asked, names) if names.contains(&asked) => Ok(asked.to_owned()),
        (asked, _) => Err(Failure::bad_request(format!("container {asked} is not valid for pod {pod}"))),
    }
}

/// Runs the command, once the client has switched.
pub async fn serve(exec: Exec, upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    // Each channel begins with an empty message, so that the client knows that it is there.
    for channel in [STDOUT, STDERR, STATUS] {
        if socket.send(Message::binary(vec![channel])).await.is_err() {
            return;
        }
    }
    let status = match exec.start() {
        Ok(child) => {
            // Whoever hangs up takes the command down.
            let mut child = Running(child);
            let mut pieces = pieces(&mut child.0, exec.stdout, exec.stderr);
            loop {
                tokio::select! {
                    piece = pieces.recv() => match piece {
                        Some(piece) => if socket.send(Message::binary(piece)).await.is_err() { return },
                        None => break,
                    },
                    heard = socket.next() => if !matches!(heard, Some(Ok(message)) if !message.is_close()) { return },
                }
            }
            // Both ends of its output are closed: it has ended, or is about to.
            match tokio::task::spawn_blocking(move || child.0.wait()).await {
                Ok(Ok(ended)) => ended_with(&exec.command, ended.code().unwrap_or(137)),
                _ => internal("the command could not be waited for"),
            }
        }
        Err(reason) => internal(&reason),
    };
    let mut last = vec![STATUS];
    last.extend(status.to_string().into_bytes());
    if socket.send(Message::binary(last)).await.is_ok() {
        let _ = socket.close(None).await;
    }
}

impl Exec {
    fn start(&self) -> Result<Child, String> {
        let Some(container) = &self.container else {
            return Err(format!("unable to upgrade connection: container not found (\"{}\")", self.name));
        };
        let (program, arguments) = self.command.split_first().ok_or("no command")?;
        let file = container.programs.get(program).ok_or_else(|| {
            format!("error executing command in container: exec: \"{program}\": executable file not found in $PATH")
        })?;
        let of = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut command = Command::new(file);
        command.args(arguments).env_clear().envs(container.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(of(self.stdout)).stderr(of(self.stderr));
        command.spawn().map_err(|error| error.to_string())
    }
}

/// A command that is ended with whoever waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command says, in messages; ends when it says nothing any more.
fn pieces(child: &mut Child, stdout: bool, stderr: bool) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let out = child.stdout.take().filter(|_| stdout).map(|out| (STDOUT, Box::new(out) as Box<dyn Read + Send>));
    let err = child.stderr.take().filter(|_| stderr).map(|err| (STDERR, Box::new(err) as Box<dyn Read + Send>));
    for (channel, stream) in out.into_iter().chain(err) {
        let sender = sender.clone();
        tokio::task::spawn_blocking(move || forward(channel, stream, &sender));
    }
    receiver
}

fn forward(channel: u8, mut stream: Box<dyn Read + Send>, sender: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let length = stream.read(&mut buffer)?;
        let Some(read) = buffer.get(..length).filter(|read| !read.is_empty()) else { return Ok(()) };
        let mut piece = vec![channel];
        piece.extend_from_slice(read);
        if sender.blocking_send(piece).is_err() {
            return Ok(());
        }
    }
}

fn ended_with(command: &[String], code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    let what = format!("error executing command {command:?}, exit code {code}");
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: {what}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(reason: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {reason}"),
        "details": {"causes": [{"message": reason}]},
    })
}
