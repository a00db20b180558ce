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
