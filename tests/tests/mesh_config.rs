//! Bad input: each mistake is named with its place, and does the least harm that is safe.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::agent::{Agent, AgentOptions, CaSource, METRICS};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, scenario};
use mesh_tests::pod::is_refused;
use mesh_tests::programs;
use mesh_tests::topology::Side;
use mesh_tests::wait;

const WITHIN: Duration = Duration::from_secs(60);

/// Waits until the status of the second node's agent has one problem that contains all of `parts`.
fn named(mesh: &Mesh, parts: &[&str]) -> Result<()> {
    wait::until(&format!("a problem with {parts:?} is named"), IN_FORCE_WITHIN, || {
        let status = mesh.agent(Side::B)?.status(mesh.node(Side::B))?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let found = problems.iter().any(|p| parts.iter().all(|part| p.to_string().contains(part)));
        wait::holds(found, || format!("{problems:#?}"))
    })
}

#[test]
fn an_enforcement_object_with_a_mistake_is_named_and_denies_what_it_targets() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("typo");
        mesh.expect_complaint("colour");
        let (client, server) = mesh.shop()?;
        let other = mesh.pod(Side::B, "shop/other")?;
        mesh.captured(&other)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let _other = other.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        let spec = "  targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]\n  rules:\n  - colour: blue\n";
        mesh.objects().put_policy("shop", "typo", spec)?;
        named(mesh, &["authorizationpolicy-shop-typo.yaml", "shop/typo", "spec.rules[0].colour"])?;
        wait::until("its target is denied", IN_FORCE_WITHIN, || {
            let found = client.ask("probe", to, &["--say", "x"], WITHIN)?;
            wait::holds(is_refused(&found), || found.to_string())
        })?;
        let answer = client.ask("churn", SocketAddr::new(other.ip(), 7000), &["--count", "1"], WITHIN)?;
        ensure!(answer["ok"] == 1, "what it does not target is denied too: {answer}");
        mesh.objects().put_policy("shop", "typo", "  rules: [{}]\n")?;
        wait::until("mended, it is in force", IN_FORCE_WITHIN, || {
            let answer = client.ask("churn", to, &["--count", "1"], WITHIN)?;
            wait::holds(answer["ok"] == 1, || answer.to_string())
        })
    })
}

#[test]
fn what_is_wrong_with_pods_is_named_and_the_others_stay() -> Result<()> {
    scenario(|mesh| {
        for word in ["ghost", "twin", "double", "server", "junk"] {
            mesh.expect_complaint(word);
        }
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);

        // A network namespace that is gone.
        let mut ghost = server.object();
        ghost.name = "ghost".to_owned();
        ghost.uid = "uid-ghost".to_owned();
        ghost.ips = vec!["10.244.2.200".parse()?];
        ghost.annotations.insert("mesh-agent.io/netns".to_owned(), "/run/netns/mesh-not-there".to_owned());
        mesh.objects().put_pod(&ghost)?;
        wait::until("the ghost is named", IN_FORCE_WITHIN, || {
            let pods = mesh.agent(Side::B)?.status(mesh.node(Side::B))?["pods"].clone();
            let all = pods.as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|pod| pod["pod"] == "shop/ghost").map(ToString::to_string).unwrap_or_default();
            wait::holds(found.contains("netns"), || pods.to_string())
        })?;

        // Two pods that claim one address: the one whose network has it keeps it.
        let mut twin = server.object();
        twin.name = "twin".to_owned();
        twin.uid = "uid-twin".to_owned();
        twin.annotations.clear();
        mesh.objects().put_pod(&twin)?;
        named(mesh, &["twin", &server.ip().to_string()])?;

        // The same object in a second file, and text that is no object at all.
        mesh.objects().put("double", &server.object().yaml())?;
        named(mesh, &["double.yaml", "shop/server"])?;
        mesh.objects().put("junk", "apiVersion: v1\nkind: [unclosed\n")?;
        named(mesh, &["junk.yaml"])?;

        let answer = client.ask("churn", to, &["--count", "3"], WITHIN)?;
        ensure!(answer["ok"] == 3, "{answer}");
        let ready = mesh_tests::http::get(mesh.node(Side::B).netns(), METRICS, "/readyz")?;
        ensure!(ready.status == 200, "what cannot be captured holds readiness: {ready:?}");
        Ok(())
    })
}

#[test]
fn an_agent_that_cannot_start_says_why() -> Result<()> {
    scenario(|mesh| {
        let node = mesh.node(Side::A);
        let objects = mesh.objects().folder().to_owned();
        let says = |part: &str, instead: &[(&str, &str)]| -> Result<()> {
            let instead = instead.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let options = AgentOptions { objects: objects.clone(), ca: CaSource::Local, instead };
            let said = Agent::start(node, options)?.gives_up()?;
            ensure!(said.contains(part), "`{part}` is not in:\n{said}");
            Ok(())
        };
        says("--metrics `nonsense`", &[("--metrics", "nonsense")])?;
        // A place of cgroup v1, as on a machine that has nothing else.
        says("/proc: ", &[("--cgroup", "/proc")])?;
        says("bpffs", &[("--bpffs", "/proc")])?;
        let file = node.folder().join("not-a-folder");
        std::fs::write(&file, "")?;
        let file = file.display().to_string();
        says(&file, &[("--state-dir", &file)])?;
        let taken = node.netns().run(|| std::net::TcpListener::bind(METRICS))??;
        says(&METRICS.to_string(), &[])?;
        drop(taken);
        Ok(())
    })
}

#[test]
fn without_privileges_the_agent_names_what_it_lacks() -> Result<()> {
    scenario(|mesh| {
        let node = mesh.node(Side::A);
        let state = node.folder().join("nobody");
        std::fs::create_dir(&state)?;
        std::os::unix::fs::chown(&state, Some(65534), Some(65534))?;
        let mut command = Command::new(programs::agent()?);
        command.uid(65534).gid(65534).args(["run", "--node", "node-a", "--metrics", "127.0.0.1:15020"]);
        command.arg("--source").arg(format!("dir:{}", mesh.objects().folder().display()));
        command.arg("--cgroup").arg(node.cgroup()).arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(&state);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it ended as if all were well: {said}");
        ensure!(["CAP_", "privilege", "root"].iter().any(|word| said.contains(word)), "{said}");
        Ok(())
    })
}
