//! A successor that the API server has not shown every pod yet which its predecessor has captured.

use mesh_tests::process::Process;
use nix::sys::signal::Signal;

use super::surge::{DIALS, METRICS, dialled, nobody_came_outside_the_mesh, says};
use super::*;

/// Three seconds of a client that dials every 10 ms.
const A_WHILE: usize = 300;

fn dials(client: &Process, more: usize) -> Result<()> {
    let before = dialled(client);
    wait::until("the client dials", WITHIN, || wait::holds(dialled(client) >= before + more, || client.stdout()))
}

#[test]
fn a_pod_that_the_successor_has_not_been_shown_yet_stays_in_the_mesh() -> Result<()> {
    scenario(|mesh| {
        let api = begin(mesh)?;
        mesh.objects().put_namespace("open", true)?;
        let observer = added(mesh, Side::B, "open/observer", "uid-observer")?;
        let _echo = observer.sample_server("echo", PORT, &[])?;
        let known = added(mesh, Side::A, "shop/known", "uid-known")?;
        for pod in [&observer, &known] {
            mesh.put(pod, true)?;
            mesh.captured(pod)?;
        }
        // An API server of several, whose watches are behind the other's.
        api.put("apiVersion: v1\nkind: ServiceAccount\nmetadata: {namespace: plain, name: successor}\n")?;
        let token = api.issue_token("plain", "successor", &[], None, Duration::from_secs(3600))?;
        let kubeconfig = mesh.node(Side::A).folder().join("successor-kubeconfig");
        ApiServer::write_kubeconfig_of(&kubeconfig, &api.url(0)?, &token)?;
        api.faults().stale_watches_of(Some(&token));
        // It prepares, and has no certificates to take over with.
        mesh.ca()?.process().signal(Signal::SIGSTOP)?;
        let kubeconfig = kubeconfig.display().to_string();
        let successor = mesh.beside(Side::A, "agent-2", &[("--metrics", METRICS[0]), ("--kubeconfig", &kubeconfig)])?;
        wait::until("it has listed the pods", WITHIN, || {
            wait::holds(api.faults().is_watched_by(&token, "pods"), || successor.log())
        })?;

        let late = mesh.sandbox(Side::A, "shop/late", "uid-late")?;
        let mut object = late.object();
        // The predecessor has this one's certificate.
        object.service_account = "known".to_owned();
        mesh.objects().put_pod(&object)?;
        mesh.runtime(Side::A).add(&late)?.success()?;
        let to = SocketAddr::new(observer.ip(), PORT);
        let client = late.ask_later("dial", to, &["--every-ms", "10", "--count", DIALS])?;
        dials(&client, 10)?;
        mesh.ca()?.process().signal(Signal::SIGCONT)?;
        says(mesh.agent(Side::A)?, "handing over to another agent")?;
        dials(&client, A_WHILE)?;
        api.faults().stale_watches_of(None);
        let predecessor = mesh.succeed(Side::A, successor)?;
        dials(&client, 10)?;
        nobody_came_outside_the_mesh(mesh)?;
        let lost: Vec<Value> = client.lines()?.into_iter().filter(|line| line["outcome"] != "ok").collect();
        ensure!(lost.is_empty(), "{lost:?}");
        ensure!(stage_of(mesh, Side::A, "shop/late")?["stage"] == "captured");
        mesh.ends_well(predecessor, &[])
    })
}
