//! The CNI plugin as a container runtime calls it, against the real agent: no container of an opted-in pod starts
//! outside the mesh, whoever is away.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

mod absent;
mod churn;
mod installed;
mod lagging;
mod restart;
mod settled;
mod surge;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::agent::Agent;
use mesh_tests::cgroup::Cgroup;
use mesh_tests::cni::{Answer, Runtime};
use mesh_tests::kube_api::ApiServer;
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::objects::MODE_LABEL;
use mesh_tests::pod::is_refused;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
const PORT: u16 = 7000;
/// Codes of the CNI specification, and the plugin's own.
const TRY_AGAIN: u64 = 11;
const NOT_CAPTURED: u64 = 100;

/// An API server with the opted-in namespace `shop` and the other one `plain`, and agents that are ready.
fn begin(mesh: &mut Mesh) -> Result<Arc<ApiServer>> {
    let api = mesh.use_api_server_of_strangers()?;
    mesh.objects().put_namespace("shop", true)?;
    mesh.objects().put_namespace("plain", false)?;
    mesh.start()?;
    Ok(api)
}

/// Makes a pod as a node does, up to the point where its containers start.
fn added(mesh: &mut Mesh, side: Side, name: &str, uid: &str) -> Result<Arc<Workload>> {
    let pod = mesh.sandbox(side, name, uid)?;
    mesh.put(&pod, false)?;
    let answer = mesh.runtime(side).add(&pod)?;
    answer.success()?;
    ensure!(answer.printed == Runtime::previous(&pod), "prevResult was altered: {}", answer.printed);
    Ok(pod)
}

/// One attempt, no second one.
fn asks(client: &Workload, to: SocketAddr) -> Result<Value> {
    client.ask("churn", to, &["--count", "1"], WITHIN)
}

fn stage_of(mesh: &Mesh, side: Side, name: &str) -> Result<Value> {
    let status = mesh.agent(side)?.status(mesh.node(side))?;
    let pod = status["pods"].as_array().and_then(|pods| pods.iter().find(|pod| pod["pod"] == name)).cloned();
    Ok(pod.unwrap_or_default())
}

#[test]
fn a_pod_is_in_the_mesh_before_its_containers_start() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        mesh.objects().put_peer_mode("shop", "Strict")?;
        let outsider = added(mesh, Side::A, "plain/outsider", "uid-outsider")?;
        let server = added(mesh, Side::B, "shop/server", "uid-server")?;
        let _echo = server.sample_server("echo", PORT, &[])?;
        let to = SocketAddr::new(server.ip(), PORT);
        // In the first instant: its rules hold.
        let refused = outsider.ask("probe", to, &["--say", "x"], WITHIN)?;
        ensure!(is_refused(&refused), "a strict server took plaintext right after ADD: {refused}");
        mesh.put(&server, true)?;
        mesh.captured(&server)?;

        let client = added(mesh, Side::A, "shop/client", "uid-client")?;
        let answer = asks(&client, to)?;
        ensure!(answer["ok"] == 1, "the first connection after ADD: {answer}");
        let peer = mesh.logged(Side::B, "the client's identity", |line| line.to_string().contains("sa/client"))?;
        ensure!(peer.to_string().contains("mutual_tls"), "{peer}");

        // What the kubelet writes later changes nothing.
        mesh.put(&client, true)?;
        let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
        let (expected, captured) = (metrics.sum("mesh_pods_expected", &[]), metrics.sum("mesh_pods_captured", &[]));
        ensure!((expected, captured) == (1.0, 1.0), "{captured} of {expected}");
        ensure!(asks(&client, to)?["ok"] == 1);
        mesh.runtime(Side::A).check(&client)?.success()
    })
}

#[test]
fn a_pod_that_is_not_opted_in_passes_untouched() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        let (client, server) =
            (added(mesh, Side::A, "plain/client", "uid-1")?, added(mesh, Side::B, "plain/server", "uid-2")?);
        let _echo = server.sample_server("echo", PORT, &[])?;
        ensure!(asks(&client, SocketAddr::new(server.ip(), PORT))?["ok"] == 1);
        for side in Side::BOTH {
            ensure!(mesh.agent(side)?.access_log()?.is_empty(), "the agent of {} saw it", side.node_name());
            ensure!(mesh.agent(side)?.status(mesh.node(side))?["pods"] == json!([]));
        }
        // Its label comes later, and what ADD told is known.
        mesh.put(&client, true)?;
        mesh.put(&server, true)?;
        mesh.objects().put_namespace("plain", true)?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        ensure!(asks(&client, SocketAddr::new(server.ip(), PORT))?["ok"] == 1);
        mesh.logged(Side::B, "the client's identity", |line| line.to_string().contains("sa/client"))?;
        Ok(())
    })
}

#[test]
fn add_waits_for_a_pod_that_the_agent_does_not_know_yet_and_fails_at_its_deadline() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        let late = mesh.sandbox(Side::A, "shop/late", "uid-late")?;
        let runtime = mesh.runtime(Side::A);
        let waiting = runtime.add_later(&late)?;
        wait::until("the agent has heard of it", IN_FORCE_WITHIN, || {
            let book = std::fs::read_to_string(mesh.agent(Side::A)?.state().join("pods.json")).unwrap_or_default();
            wait::holds(book.contains("uid-late"), || book.clone())
        })?;
        mesh.put(&late, false)?;
        runtime.answer(waiting)?.success()?;
        ensure!(stage_of(mesh, Side::A, "shop/late")?["stage"] == "captured");

        let never = mesh.sandbox(Side::A, "shop/never", "uid-never")?;
        let answer = mesh.runtime(Side::A).with("deadlineSeconds", 2).add(&never)?;
        answer.failure(TRY_AGAIN, &["shop/never", "within 2 s", "has not shown pod", "uid-never"])
    })
}

#[test]
fn add_waits_for_the_namespace_of_a_pod_that_came_with_it() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("API server");
        let api = begin(mesh)?;
        // The agent's watch of namespaces is behind that of pods.
        api.faults().forbid("watch", "namespaces");
        api.faults().forbid("list", "namespaces");
        api.faults().drop_watches();
        mesh.objects().put_namespace("new", true)?;
        let pod = mesh.sandbox(Side::A, "new/pod", "uid-pod")?;
        mesh.put(&pod, false)?;
        let answer = mesh.runtime(Side::A).with("deadlineSeconds", 5).add(&pod)?;
        answer.failure(TRY_AGAIN, &["new/pod", "has not shown namespace new"])?;
        api.faults().permit_all();
        let waiting = mesh.runtime(Side::A).with("deadlineSeconds", 120).add_later(&pod)?;
        mesh.runtime(Side::A).answer(waiting)?.success()?;
        ensure!(stage_of(mesh, Side::A, "new/pod")?["stage"] == "captured");
        Ok(())
    })
}

#[test]
fn add_fails_where_the_pods_cgroup_is_not_below_the_attach_point() -> Result<()> {
    scenario(|mesh| {
        let beside = Cgroup::new(mesh.node(Side::A).cgroup().join("beside"))?;
        mesh.agents_run_with("--cgroup", &beside.path().display().to_string());
        mesh.use_api_server_of_strangers()?;
        mesh.objects().put_namespace("shop", true)?;
        mesh.objects().put_namespace("plain", false)?;
        mesh.start_agent(Side::A)?;
        mesh.ready(Side::A)?;
        let pod = mesh.sandbox(Side::A, "shop/pod", "uid-pod")?;
        mesh.put(&pod, false)?;
        let says = ["shop/pod", "no cgroup of it is below --cgroup", "beside", "the kubelet's"];
        mesh.runtime(Side::A).with("deadlineSeconds", 5).add(&pod)?.failure(TRY_AGAIN, &says)?;
        // Who is not to be captured need not be there.
        added(mesh, Side::A, "plain/pod", "uid-plain")?;
        mesh.take_agent(Side::A)?.stop()?;
        Agent::uninstall(mesh.node(Side::A))?;
        mesh.keep(beside);
        Ok(())
    })
}

#[test]
fn del_takes_a_pod_out_and_never_fails() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        let pod = added(mesh, Side::A, "shop/pod", "uid-pod")?;
        mesh.put(&pod, true)?;
        mesh.captured(&pod)?;
        mesh.runtime(Side::A).delete(&pod)?.success()?;
        wait::until("it is withdrawn", IN_FORCE_WITHIN, || {
            let published = mesh.objects().published(Side::A.node_name());
            wait::holds(!published.contains("uid-pod"), || published.clone())
        })?;
        ensure!(stage_of(mesh, Side::A, "shop/pod")?.is_null(), "it is gone, whatever the API server says");
        mesh.runtime(Side::A).delete(&pod)?.success()?;

        // The same pod with a new sandbox.
        mesh.runtime(Side::A).add(&pod)?.success()?;
        ensure!(stage_of(mesh, Side::A, "shop/pod")?["stage"] == "captured");
        let unknown = mesh.sandbox(Side::A, "shop/unknown", "uid-unknown")?;
        mesh.runtime(Side::A).delete(&unknown)?.success()?;
        mesh.take_agent(Side::A)?.stop()?;
        mesh.runtime(Side::A).delete(&pod)?.success()
    })
}

#[test]
fn a_pod_whose_sockets_live_in_a_guest_kernel_is_refused_with_the_way_out() -> Result<()> {
    scenario(|mesh| {
        let api = begin(mesh)?;
        let guest = mesh.sandbox(Side::A, "shop/guest", "uid-guest")?;
        let mut object = serde_norway::from_str::<Value>(&guest.object().yaml())?;
        object["spec"]["runtimeClassName"] = json!("kata-qemu");
        object["status"] = json!({});
        api.put_object(object)?;
        let answer = mesh.runtime(Side::A).add(&guest)?;
        answer.failure(NOT_CAPTURED, &["shop/guest", "guest kernel", "mode: disabled"])?;
        let stage = stage_of(mesh, Side::A, "shop/guest")?;
        ensure!(stage["stage"] == "outside" && stage["reason"].to_string().contains("guest kernel"), "{stage}");

        let host = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": "host", "uid": "uid-host"},
            "spec": {"nodeName": "node-a", "hostNetwork": true, "containers": [{"name": "c", "image": "i"}]},
            "status": {"podIP": mesh.node(Side::A).ip().to_string()}});
        api.put_object(host)?;
        wait::until("it is named", IN_FORCE_WITHIN, || {
            let stage = stage_of(mesh, Side::A, "shop/host")?;
            let says = stage["stage"] == "outside" && stage["reason"].to_string().contains("hostNetwork");
            wait::holds(says, || stage.to_string())
        })?;
        let outside = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?.sum("mesh_pods", &[("stage", "outside")]);
        ensure!(outside == 2.0, "{outside}");
        Ok(())
    })
}

#[test]
fn calls_without_a_pod_are_answered_as_the_specification_has_them() -> Result<()> {
    scenario(|mesh| {
        let runtime = mesh.runtime(Side::A);
        let version = runtime.call("VERSION", Some(&json!({"cniVersion": "1.1.0"})))?;
        version.success()?;
        ensure!(version.printed["cniVersion"] == "1.1.0", "{}", version.printed);
        let versions = version.printed["supportedVersions"].as_array().cloned().unwrap_or_default();
        ensure!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"].iter().all(|one| versions.contains(&json!(one))), "{versions:?}");
        // No agent runs here: a node whose network is not ready would never get one.
        let silent = |command: &str| -> Result<()> {
            let answer = runtime.call(command, None)?;
            answer.success()?;
            ensure!(answer.printed.is_null(), "{command} prints {}", answer.printed);
            Ok(())
        };
        silent("STATUS")?;
        silent("GC")?;
        let error = |answer: Answer, code: u64| {
            ensure!(answer.printed["cniVersion"].is_string() && answer.printed["details"].is_string());
            answer.failure(code, &["mesh-agent: "])
        };
        error(runtime.call("ADD", None)?, 4)?;
        error(runtime.call("NONSENSE", None)?, 4)?;
        error(runtime.call("STATUS", Some(&json!("no configuration")))?, 6)?;
        error(runtime.clone().with("cniVersion", "9.0.0").call("STATUS", None)?, 1)?;
        error(runtime.clone().with("deadlineSeconds", 1000).call("STATUS", None)?, 7)
    })
}
