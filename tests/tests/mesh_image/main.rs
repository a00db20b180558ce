//! The image as Kubernetes starts it: the containers of `deploy/` under runc, with its capabilities, mounts, arguments
//! and accounts and nothing else; and what is said when one of them is missing.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

mod lacking;
mod roles;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::container::{Installed, NAMESPACE, Running};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::topology::Side;
use mesh_tests::wait;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
const PORT: u16 = 7000;
const AGENT: (&str, &str) = ("DaemonSet", "mesh-agent");
const CA: (&str, &str) = ("Deployment", "mesh-agent-ca");
const CONTROLLER: (&str, &str) = ("Deployment", "mesh-agent-controller");
/// What an installer of a network leaves on a node.
const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "k8s", "plugins": [{"type": "bridge"}]}"#;

/// `deploy/` is installed, the authority serves, and `shop` is opted in and strict.
fn begin(mesh: &mut Mesh) -> Result<(Installed, Running)> {
    let installed = Installed::new(mesh)?;
    for side in Side::BOTH {
        let conf = mesh.node(side).folder().join("cni-conf");
        fs::create_dir_all(&conf)?;
        fs::write(conf.join("10-net.conflist"), NETWORK)?;
    }
    let mut ca = installed.start(mesh, Side::A, CA, |_| {})?;
    ca.ready(mesh.node(Side::A), WITHIN)?;
    wait::until("the roots are published", WITHIN, || {
        let roots = installed.api().get("ConfigMap", NAMESPACE, "mesh-agent-ca-roots");
        roots.map(drop).context("there is no ConfigMap")
    })?;
    mesh.objects().put_namespace("shop", true)?;
    mesh.objects().put_peer_mode("shop", "Strict")?;
    Ok((installed, ca))
}

/// A pod as a node makes it: by the plugin that the agent has installed, from the image.
fn added(mesh: &mut Mesh, side: Side, name: &str, uid: &str) -> Result<Arc<Workload>> {
    let pod = mesh.sandbox(side, name, uid)?;
    mesh.put(&pod, false)?;
    let plugin = mesh.node(side).folder().join("cni-bin/mesh-agent");
    mesh.runtime(side).by(&plugin).add(&pod)?.success()?;
    mesh.put(&pod, true)?;
    Ok(pod)
}

#[test]
fn the_image_enrols_a_pod_with_what_the_daemon_set_gives_it() -> Result<()> {
    scenario(|mesh| {
        let (installed, ca) = begin(mesh)?;
        let mut agents = Vec::new();
        for side in Side::BOTH {
            agents.push((side, installed.start(mesh, side, AGENT, |_| {})?));
        }
        let mut controller = installed.start(mesh, Side::A, CONTROLLER, |_| {})?;
        controller.ready(mesh.node(Side::A), WITHIN)?;
        for (side, agent) in &mut agents {
            agent.ready(mesh.node(*side), WITHIN)?;
            agent.probe(mesh.node(*side), "livenessProbe")?;
            let list = mesh.node(*side).folder().join("cni-conf/10-net.conflist");
            wait::until("the plugin is in its place", IN_FORCE_WITHIN, || {
                let list: Value = serde_json::from_str(&fs::read_to_string(&list)?)?;
                wait::holds(list["plugins"][1]["type"] == "mesh-agent", || list.to_string())
            })?;
        }
        let server = added(mesh, Side::B, "shop/server", "uid-server")?;
        let client = added(mesh, Side::A, "shop/client", "uid-client")?;
        let _echo = server.sample_server("echo", PORT, &[])?;
        let to = SocketAddr::new(server.ip(), PORT);
        // A strict server: nothing but a tunnel reaches it.
        wait::until("the server answers", IN_FORCE_WITHIN, || {
            let answer = client.ask("churn", to, &["--count", "1"], WITHIN)?;
            wait::holds(answer["ok"] == 1, || answer.to_string())
        })?;
        let (_, receiver) = &agents[1];
        wait::until("the receiver logs whom it was", IN_FORCE_WITHIN, || {
            let lines = receiver.process().lines()?;
            let is = |line: &&Value| {
                let text = line.to_string();
                text.contains("/ns/shop/sa/client") && text.contains("mutual_tls")
            };
            lines.iter().find(is).map(drop).with_context(|| json!(lines).to_string())
        })?;
        for (side, running) in
            agents.iter().map(|(side, agent)| (*side, agent)).chain([(Side::A, &ca), (Side::A, &controller)])
        {
            let errors: Vec<String> =
                running.log().lines().filter(|l| l.contains(r#""level":"ERROR""#)).map(str::to_owned).collect();
            ensure!(errors.is_empty(), "{}: {errors:#?}", side.node_name());
        }
        Ok(())
    })
}
