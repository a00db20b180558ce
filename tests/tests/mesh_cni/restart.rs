//! Agents that come late, again, or after a reboot: what is in the mesh is found, and nothing passes meanwhile.

use std::fs;

use super::*;

/// A server on the second node and a client on the first that talk by tunnel; what they run.
fn talking(mesh: &mut Mesh) -> Result<(Arc<Workload>, Arc<Workload>, SocketAddr)> {
    let server = added(mesh, Side::B, "shop/server", "uid-server")?;
    let client = added(mesh, Side::A, "shop/client", "uid-client")?;
    for pod in [&server, &client] {
        mesh.put(pod, true)?;
        mesh.captured(pod)?;
    }
    let to = SocketAddr::new(server.ip(), PORT);
    Ok((client, server, to))
}

fn restarted(mesh: &mut Mesh, side: Side) -> Result<()> {
    let agent = mesh.take_agent(side)?.kill_and_restart(mesh.node(side))?;
    mesh.replace_agent(side, agent);
    mesh.ready(side)
}

#[test]
fn an_agent_that_starts_again_finds_its_pods_by_the_book_or_by_their_processes() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        mesh.objects().put_peer_mode("shop", "Strict")?;
        let (client, server, to) = talking(mesh)?;
        let _echo = server.sample_server("echo", PORT, &[])?;
        let _lives = client.sample_server("echo", PORT, &[])?;
        ensure!(asks(&client, to)?["ok"] == 1);
        restarted(mesh, Side::A)?;
        ensure!(asks(&client, to)?["ok"] == 1, "ready means captured");

        // A pod whose book entry is all there is: no container runs in it yet.
        let empty = added(mesh, Side::A, "shop/empty", "uid-empty")?;
        restarted(mesh, Side::A)?;
        ensure!(
            stage_of(mesh, Side::A, "shop/empty")?["stage"] == "captured",
            "{}",
            stage_of(mesh, Side::A, "shop/empty")?
        );
        ensure!(asks(&empty, to)?["ok"] == 1);
        mesh.runtime(Side::A).delete(&empty)?.success()?;
        mesh.objects().remove(&empty.object().file_name())?;
        mesh.remove_sandbox(&empty)?;
        drop(empty);

        for side in Side::BOTH {
            let agent = mesh.take_agent(side)?;
            let book = agent.state().join("pods.json");
            ensure!(book.is_file(), "there is no book");
            let options = agent.kill()?;
            fs::remove_file(book)?;
            mesh.run_agent(side, options)?;
            mesh.ready(side)?;
        }
        for (side, name) in [(Side::A, "shop/client"), (Side::B, "shop/server")] {
            let stage = stage_of(mesh, side, name)?;
            ensure!(stage["stage"] == "captured", "ready, and not found by its processes: {stage}");
        }
        ensure!(asks(&client, to)?["ok"] == 1);
        Ok(())
    })
}

#[test]
fn pods_that_were_there_before_agent_and_plugin_are_captured_before_readiness() -> Result<()> {
    scenario(|mesh| {
        mesh.use_api_server_of_strangers()?;
        mesh.objects().put_namespace("shop", true)?;
        mesh.objects().put_peer_mode("shop", "Strict")?;
        // Nobody has called a plugin, as on a node that the mesh is installed on.
        let (server, client) =
            (mesh.sandbox(Side::B, "shop/server", "uid-1")?, mesh.sandbox(Side::A, "shop/client", "uid-2")?);
        let (_echo, _lives) = (server.sample_server("echo", PORT, &[])?, client.sample_server("echo", PORT, &[])?);
        mesh.put(&server, true)?;
        mesh.put(&client, true)?;
        mesh.start()?;
        for (side, name) in [(Side::A, "shop/client"), (Side::B, "shop/server")] {
            ensure!(stage_of(mesh, side, name)?["stage"] == "captured", "{}", stage_of(mesh, side, name)?);
        }
        mesh.captured(&server)?;
        ensure!(asks(&client, SocketAddr::new(server.ip(), PORT))?["ok"] == 1);
        Ok(())
    })
}

#[test]
fn after_a_reboot_the_first_pods_wait_for_the_agent() -> Result<()> {
    scenario(|mesh| {
        // Of pods whose sandbox is not there again although the API server still has its address.
        mesh.expect_complaint("netns_unknown");
        begin(mesh)?;
        let (client, server, to) = talking(mesh)?;
        let kubeconfig = mesh.kubeconfig()?.display().to_string();
        // The node goes: hooks, sockets, sandboxes; its files are of another boot.
        let options = mesh.take_agent(Side::A)?.stop()?;
        mesh_tests::agent::Agent::uninstall(mesh.node(Side::A))?;
        let state = mesh.node(Side::A).folder().join("state");
        for file in ["pods.json", "namespaces.json"] {
            let text = fs::read_to_string(state.join(file))?;
            ensure!(text.contains("boot_id"), "{text}");
            fs::write(state.join(file), text.replacen("\"boot_id\":\"", "\"boot_id\":\"x", 1))?;
        }
        fs::remove_file(state.join("admin.sock"))?;
        mesh.remove_sandbox(&client)?;
        drop(client);

        // The kubelet starts the same pod, with a new sandbox and another address, before the agent. The API server
        // still has the address of before.
        let _echo = server.sample_server("echo", PORT, &[])?;
        let client = mesh.sandbox(Side::A, "shop/client", "uid-client")?;
        let runtime = mesh.runtime(Side::A).with("kubeconfig", kubeconfig);
        runtime.add(&client)?.failure(TRY_AGAIN, &["opted in", "the API server", "agent"])?;
        runtime.delete(&client)?.success()?;
        mesh.run_agent(Side::A, options)?;
        mesh.ready(Side::A)?;
        mesh.runtime(Side::A).add(&client)?.success()?;
        ensure!(asks(&client, to)?["ok"] == 1, "the first connection after ADD");
        mesh.logged(Side::B, "the client's identity", |line| line.to_string().contains("sa/client"))?;
        Ok(())
    })
}

#[test]
fn an_address_that_another_pod_gets_is_that_pods_at_once() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        let (client, server, to) = talking(mesh)?;
        let _echo = server.sample_server("echo", PORT, &[])?;
        ensure!(asks(&client, to)?["ok"] == 1);
        // Its sandbox is gone, its object is not: the API server still says that the address is its own.
        mesh.runtime(Side::A).delete(&client)?.success()?;
        mesh.remove_sandbox(&client)?;
        let address = client.ip();
        let next = mesh.sandbox_in_place_of(Side::A, "shop/next", "uid-next", Some(&client))?;
        ensure!(next.ip() == address);
        mesh.put(&next, false)?;
        mesh.runtime(Side::A).add(&next)?.success()?;
        let answer = asks(&next, to)?;
        ensure!(answer["ok"] == 1, "{answer}");
        let line = mesh.logged(Side::B, "the next one's identity", |line| line.to_string().contains("sa/next"))?;
        ensure!(line.to_string().contains("mutual_tls"), "{line}");
        Ok(())
    })
}

#[test]
fn labels_that_come_and_go_take_effect_on_running_pods() -> Result<()> {
    scenario(|mesh| {
        begin(mesh)?;
        let pod = added(mesh, Side::A, "plain/pod", "uid-pod")?;
        mesh.put(&pod, true)?;
        let labelled = |mesh: &Mesh, mode: Option<&str>| {
            let mut object = pod.object();
            object.ips = pod.ips().to_vec();
            mode.map(|mode| object.labels.insert(MODE_LABEL.to_owned(), mode.to_owned()));
            mesh.objects().put_pod(&object)
        };
        let withdrawn = |mesh: &Mesh| {
            wait::until("it is withdrawn", IN_FORCE_WITHIN, || {
                let published = mesh.objects().published(Side::A.node_name());
                wait::holds(!published.contains("uid-pod"), || published.clone())
            })
        };
        labelled(mesh, Some("enabled"))?;
        mesh.captured(&pod)?;
        labelled(mesh, None)?;
        withdrawn(mesh)?;
        mesh.objects().put_namespace("plain", true)?;
        mesh.captured(&pod)?;
        labelled(mesh, Some("disabled"))?;
        withdrawn(mesh)?;
        labelled(mesh, None)?;
        mesh.captured(&pod)?;
        mesh.objects().put_namespace("plain", false)?;
        withdrawn(mesh)
    })
}
