//! Who decides while the agent is away: the API server, the file of namespace modes, nobody.

use std::fs;
use std::path::PathBuf;

use super::*;

/// A node without an agent that was there before, with the file that it left; the agent of the other node never was.
struct Absent {
    shop: Arc<Workload>,
    plain: Arc<Workload>,
    labelled: Arc<Workload>,
    modes: PathBuf,
}

/// Pods of an opted-in namespace, of another one, and one there that is opted in by its own label.
fn absent(mesh: &mut Mesh) -> Result<(Arc<ApiServer>, Absent)> {
    let api = mesh.use_api_server_of_strangers()?;
    mesh.objects().put_namespace("shop", true)?;
    mesh.objects().put_namespace("plain", false)?;
    mesh.start_agent(Side::A)?;
    mesh.ready(Side::A)?;
    let modes = mesh.agent(Side::A)?.state().join("namespaces.json");
    wait::until("the agent leaves the modes", IN_FORCE_WITHIN, || {
        let text = fs::read_to_string(&modes).unwrap_or_default();
        wait::holds(text.contains("\"shop\":true") && text.contains("\"plain\":false"), || text.clone())
    })?;
    mesh.take_agent(Side::A)?.kill()?;
    let shop = mesh.sandbox(Side::A, "shop/pod", "uid-shop")?;
    let plain = mesh.sandbox(Side::A, "plain/pod", "uid-plain")?;
    let labelled = mesh.sandbox(Side::A, "plain/labelled", "uid-labelled")?;
    mesh.put(&shop, false)?;
    mesh.put(&plain, false)?;
    let mut object = labelled.object();
    object.labels.insert(MODE_LABEL.to_owned(), "enabled".to_owned());
    object.ips.clear();
    mesh.objects().put_pod(&object)?;
    Ok((api, Absent { shop, plain, labelled, modes }))
}

#[test]
fn without_the_agent_the_file_of_modes_decides_and_without_it_nobody() -> Result<()> {
    scenario(|mesh| {
        let (_api, Absent { shop, plain, labelled, modes }) = absent(mesh)?;
        let runtime = mesh.runtime(Side::A);
        runtime.add(&shop)?.failure(TRY_AGAIN, &["shop/pod", "opted in", "namespaces.json", "agent"])?;
        runtime.add(&plain)?.success()?;
        // Its own label is not in the file, and there is nobody else to ask.
        runtime.add(&labelled)?.success()?;

        // Of another boot it says nothing.
        let text = fs::read_to_string(&modes)?;
        fs::write(&modes, text.replacen("\"boot_id\":\"", "\"boot_id\":\"x", 1))?;
        let unknown = ["is not known", "no kubeconfig", "since the node's start", "exemptNamespaces"];
        runtime.add(&plain)?.failure(TRY_AGAIN, &unknown)?;
        fs::remove_file(&modes)?;
        runtime.add(&plain)?.failure(TRY_AGAIN, &unknown)?;
        runtime.clone().with("exemptNamespaces", json!(["plain"])).add(&plain)?.success()
    })
}

#[test]
fn without_the_agent_the_api_server_knows_better_and_may_be_away_too() -> Result<()> {
    scenario(|mesh| {
        let (api, Absent { shop, plain, labelled, modes }) = absent(mesh)?;
        let runtime = mesh.runtime(Side::A).with("kubeconfig", mesh.kubeconfig()?.display().to_string());
        runtime.add(&shop)?.failure(TRY_AGAIN, &["opted in", "the API server", "agent"])?;
        runtime.add(&labelled)?.failure(TRY_AGAIN, &["opted in", "the API server"])?;
        runtime.add(&plain)?.success()?;
        // Newer than the file.
        mesh.objects().put_namespace("plain", true)?;
        runtime.add(&plain)?.failure(TRY_AGAIN, &["opted in", "the API server"])?;
        mesh.objects().put_namespace("plain", false)?;
        fs::remove_file(&modes)?;
        runtime.add(&plain)?.success()?;
        runtime.add(&shop)?.failure(TRY_AGAIN, &["opted in", "the API server"])?;

        // It does not answer in time, refuses, or is not there: with neither of the two nobody knows.
        api.faults().latency(Duration::from_secs(5));
        runtime.add(&plain)?.failure(TRY_AGAIN, &["is not known", "no answer within 2 s"])?;
        api.faults().latency(Duration::ZERO);
        api.faults().forbid("get", "pods");
        runtime.add(&plain)?.failure(TRY_AGAIN, &["is not known", "(403)"])?;
        api.faults().permit_all();
        api.faults().refuse_connections()?;
        runtime.add(&plain)?.failure(TRY_AGAIN, &["is not known", "the API server does not say"])?;
        runtime.clone().with("exemptNamespaces", json!(["plain"])).add(&plain)?.success()
    })
}

#[test]
fn the_agent_decides_when_it_comes_back_while_add_waits() -> Result<()> {
    scenario(|mesh| {
        let (_api, Absent { shop, .. }) = absent(mesh)?;
        mesh.start_agent(Side::A)?;
        mesh.ready(Side::A)?;
        mesh.runtime(Side::A).add(&shop)?.success()?;
        ensure!(stage_of(mesh, Side::A, "shop/pod")?["stage"] == "captured");
        // Killed and started again under an ADD: the plugin asks the next one.
        let again = mesh.sandbox(Side::A, "shop/again", "uid-again")?;
        let waiting = mesh.runtime(Side::A).add_later(&again)?;
        let agent = mesh.take_agent(Side::A)?.kill_and_restart(mesh.node(Side::A))?;
        mesh.replace_agent(Side::A, agent);
        mesh.put(&again, false)?;
        let answer = mesh.runtime(Side::A).answer(waiting)?;
        // A slow start is one that the kubelet repeats.
        if !answer.is_success {
            answer.failure(TRY_AGAIN, &["agent of this node is away"])?;
            mesh.ready(Side::A)?;
            mesh.runtime(Side::A).add(&again)?.success()?;
        }
        ensure!(stage_of(mesh, Side::A, "shop/again")?["stage"] == "captured");
        Ok(())
    })
}

#[test]
fn the_copied_token_ends_with_the_agents_pod_and_then_the_file_decides() -> Result<()> {
    const SYSTEM: &str = "mesh-agent-system";
    scenario(|mesh| {
        let (api, Absent { shop, plain, modes, .. }) = absent(mesh)?;
        api.put(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SYSTEM}}}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {{namespace: {SYSTEM}, name: mesh-agent}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {SYSTEM}, name: agent}}\n\
             spec: {{nodeName: node-a, serviceAccountName: mesh-agent, containers: []}}\n"
        ))?;
        let token = api.issue_token(SYSTEM, "mesh-agent", &[], Some("agent"), Duration::from_secs(86_400))?;
        let copy = mesh.node(Side::A).folder().join("mesh-agent-kubeconfig");
        ApiServer::write_kubeconfig_of(&copy, &api.url(0)?, &token)?;
        let runtime = mesh.runtime(Side::A).with("kubeconfig", copy.display().to_string());
        runtime.add(&shop)?.failure(TRY_AGAIN, &["opted in", "the API server"])?;
        runtime.add(&plain)?.success()?;

        // The pod is gone, and the next one has not written its own copy yet.
        api.remove("Pod", SYSTEM, "agent")?;
        runtime.add(&shop)?.failure(TRY_AGAIN, &["opted in", "namespaces.json", "agent of this node is away"])?;
        runtime.add(&plain)?.success()?;
        fs::remove_file(&modes)?;
        let why = ["is not known", "does not take the token", "401", "the agent's pod", "no agent has written"];
        for pod in [&shop, &plain] {
            runtime.add(pod)?.failure(TRY_AGAIN, &why)?;
        }
        Ok(())
    })
}

#[test]
fn a_static_pod_is_let_pass_or_not_as_its_namespace_says() -> Result<()> {
    scenario(|mesh| {
        let api = begin(mesh)?;
        // As the kubelet calls it. The API server has nothing of them yet, and later something with another uid.
        let outside = mesh.sandbox(Side::A, "plain/proxy-node-a", "7a2a0fe5c3b2e6ef64d76a3a7a4b8a1e")?;
        let inside = mesh.sandbox(Side::A, "shop/proxy-node-a", "00112233445566778899aabbccddeeff")?;
        let runtime = mesh.runtime(Side::A);
        runtime.add(&outside)?.success()?;
        let refused = ["shop/proxy-node-a", "static pod", "namespace shop is opted in", "--cni-exempt-namespaces"];
        runtime.add(&inside)?.failure(NOT_CAPTURED, &refused)?;
        runtime.clone().with("exemptNamespaces", json!(["shop"])).add(&inside)?.success()?;
        for pod in [&outside, &inside] {
            runtime.delete(pod)?.success()?;
        }

        let modes = mesh.agent(Side::A)?.state().join("namespaces.json");
        mesh.take_agent(Side::A)?.kill()?;
        let runtime = mesh.runtime(Side::A);
        runtime.add(&outside)?.success()?;
        runtime.add(&inside)?.failure(TRY_AGAIN, &["opted in", "namespaces.json"])?;
        fs::remove_file(&modes)?;
        runtime.add(&outside)?.failure(TRY_AGAIN, &["is not known"])?;
        // The API server knows the namespace, and no such pod.
        let runtime = runtime.with("kubeconfig", mesh.kubeconfig()?.display().to_string());
        runtime.add(&outside)?.success()?;
        runtime.add(&inside)?.failure(TRY_AGAIN, &["opted in", "the API server"])?;
        ensure!(api.get("Pod", "plain", "proxy-node-a").is_none());
        Ok(())
    })
}
