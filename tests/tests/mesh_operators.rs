//! What an operator sees: endpoints, status, check, and numbers that add up.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::agent::METRICS;
use mesh_tests::http;
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, scenario};
use mesh_tests::pod::is_refused;
use mesh_tests::programs;
use mesh_tests::topology::Side;
use mesh_tests::wait;

const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn metrics_count_what_was_done() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let service = mesh.service("shop/server", 80, 7000)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let answer = client.ask("churn", service[0], &["--count", "30"], WITHIN)?;
        ensure!(answer["ok"] == 30, "{answer}");
        for side in Side::BOTH {
            wait::until("30 connections are counted", IN_FORCE_WITHIN, || {
                let metrics = mesh.agent(side)?.metrics(mesh.node(side))?;
                let labels = [("source_workload", "client"), ("destination_workload", "server"), ("outcome", "ok")];
                let closed = metrics.sum("mesh_connections_closed_total", &labels);
                wait::holds(closed == 30.0, || {
                    format!("{closed} closed on {}: {:#?}", side.node_name(), metrics.samples())
                })
            })?;
            let live = http::get(mesh.node(side).netns(), METRICS, "/livez")?;
            ensure!(live.status == 200, "{live:?}");
        }
        Ok(())
    })
}

#[test]
fn status_tells_who_is_captured_and_under_which_identity() -> Result<()> {
    scenario(|mesh| {
        let (client, _) = mesh.shop()?;
        let status = mesh.agent(Side::A)?.status(mesh.node(Side::A))?;
        let pods = status["pods"].as_array().context("no pods in the status")?;
        let own =
            pods.iter().find(|pod| pod["pod"] == client.object().display_name()).context("the pod is not there")?;
        ensure!(own["stage"] == "captured", "{own}");
        ensure!(own["identity"] == "spiffe://cluster.local/ns/shop/sa/client", "{own}");
        ensure!(status["node"] == "node-a" && status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");
        let identities = status["identities"].as_array().context("no identities in the status")?;
        ensure!(identities.len() == 1 && identities[0]["not_after"].as_i64().is_some_and(|t| t > 0), "{identities:?}");
        // The other node's pods are not this agent's to hold keys for.
        ensure!(!status["identities"].to_string().contains("sa/server"), "{status}");
        Ok(())
    })
}

#[test]
fn no_agent_of_two_nodes_holds_the_root_key() -> Result<()> {
    scenario(|mesh| {
        mesh.shop()?;
        for side in Side::BOTH {
            let mut folders = vec![mesh.agent(side)?.state().to_owned()];
            while let Some(folder) = folders.pop() {
                for entry in folder.read_dir()? {
                    let entry = entry?;
                    ensure!(entry.file_name() != "root.key", "{}", entry.path().display());
                    if entry.file_type()?.is_dir() {
                        folders.push(entry.path());
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_join_token_works_once() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("token");
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        // The same token once more, by an agent that has lost its state.
        let state = mesh.agent(Side::A)?.state().to_owned();
        let options = mesh.take_agent(Side::A)?.stop()?;
        std::fs::rename(&state, state.with_extension("lost"))?;
        mesh.run_agent(Side::A, options)?;
        wait::until("the used token is named", IN_FORCE_WITHIN, || {
            let log = mesh.agent(Side::A)?.log();
            // Certificates are asked for before the pod is taken over; until then the pod goes on without the agent.
            let enrolled = log.matches("enrolled pod=shop/client").count();
            wait::holds(log.contains("token") && enrolled == 2, || log)
        })?;
        let status = mesh.agent(Side::A)?.status(mesh.node(Side::A));
        let status = status.map(|s| s["identities"].to_string()).unwrap_or_default();
        ensure!(!status.contains("\"state\":\"valid\""), "it has certificates: {status}");
        let found = client.ask("probe", SocketAddr::new(server.ip(), 7000), &["--say", "x"], WITHIN)?;
        ensure!(is_refused(&found), "{found}");
        Ok(())
    })
}

#[test]
fn check_says_what_it_looked_at_and_what_to_do() -> Result<()> {
    scenario(|mesh| {
        let node = mesh.node(Side::A);
        let check = |bpffs: &std::path::Path| {
            let mut command = Command::new(programs::agent()?);
            let output = command.arg("check").arg("--bpffs").arg(bpffs).output()?;
            Ok::<_, anyhow::Error>((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
        };
        let (well, said) = check(node.bpffs())?;
        ensure!(well, "{said}");
        for word in ["kernel", "cgroup", "btf", "CAP_BPF"] {
            ensure!(said.contains(word), "{word} not in:\n{said}");
        }
        let (well, said) = check(node.folder())?;
        ensure!(!well && said.contains("mount -t bpf"), "{said}");
        Ok(())
    })
}

/// What a subcommand for the agent of node A prints, and whether it has succeeded.
fn command(mesh: &Mesh, words: &[&str]) -> Result<(bool, String)> {
    let said = mesh.agent(Side::A)?.says(words)?;
    Ok((said.code == 0, said.out + &said.err))
}

#[test]
fn the_log_of_a_running_agent_says_more_for_a_while() -> Result<()> {
    scenario(|mesh| {
        mesh.shop()?;
        let debug = |mesh: &Mesh| Ok::<_, anyhow::Error>(mesh.agent(Side::A)?.log().matches("DEBUG").count());
        ensure!(debug(mesh)? == 0, "{}", mesh.agent(Side::A)?.log());
        let (well, before) = command(mesh, &["logs", "level"])?;
        ensure!(well && before.starts_with("info"), "{before}");
        let (well, said) = command(mesh, &["logs", "level", "nonsense=loud"])?;
        ensure!(!well && said.contains("nonsense=loud") && said.contains("TARGET=LEVEL"), "{said}");
        let (well, said) = command(mesh, &["logs", "level", "mesh_agent=debug", "--seconds", "1"])?;
        ensure!(well && said.starts_with("mesh_agent=debug (started with info"), "{said}");
        wait::until("it is as it was given again", IN_FORCE_WITHIN, || {
            let (_, now) = command(mesh, &["logs", "level"])?;
            wait::holds(now == before, || now.clone())
        })?;
        let (well, recent) = command(mesh, &["logs", "recent"])?;
        ensure!(well && recent.contains("mesh-agent is up") && recent.contains("as it was given again"), "{recent}");
        // Told at INFO: what nobody asked for any more is not written.
        let (well, said) = command(mesh, &["logs", "level", "error", "--seconds", "0"])?;
        ensure!(well && said.starts_with("error"), "{said}");
        let written = mesh.agent(Side::A)?.log().lines().count();
        mesh.objects().put_namespace("shop", false)?;
        wait::until("a pod leaves", IN_FORCE_WITHIN, || {
            let status = mesh.agent(Side::A)?.status(mesh.node(Side::A))?;
            wait::holds(status["pods"][0]["stage"] != "captured", || status.to_string())
        })?;
        let log = mesh.agent(Side::A)?.log();
        ensure!(log.lines().count() == written, "{log}");
        Ok(())
    })
}

#[test]
fn a_bugreport_has_what_is_needed_and_no_secret() -> Result<()> {
    scenario(|mesh| {
        mesh.shop()?;
        let folder = mesh.node(Side::A).folder().join("report");
        std::fs::create_dir_all(&folder)?;
        let archive = folder.join("r.tar");
        let path = archive.to_str().context("a path")?;
        let (well, said) = command(mesh, &["bugreport", "--output", path])?;
        ensure!(well && said.contains("status.json") && said.contains("metrics.txt"), "{said}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&archive)?.permissions());
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        let unpacked = Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(&archive).status()?;
        ensure!(unpacked.success(), "tar cannot read it");
        let part = |name: &str| std::fs::read_to_string(folder.join("mesh-agent-bugreport").join(name));
        ensure!(part("status.json")?.contains("\"captured\""), "{}", part("status.json")?);
        ensure!(part("metrics.txt")?.contains("mesh_pods"), "{}", part("metrics.txt")?);
        ensure!(part("log.txt")?.contains("mesh-agent is up"), "{}", part("log.txt")?);
        ensure!(part("options.txt")?.contains("node-a") && part("check.json")?.contains("findings"), "parts");
        let all = String::from_utf8_lossy(&std::fs::read(&archive)?).into_owned();
        let secrets = std::fs::read_dir(mesh.agent(Side::A)?.state())?.filter_map(|entry| {
            let text = std::fs::read_to_string(entry.ok()?.path()).ok()?;
            text.lines().find(|line| line.len() > 40 && !line.contains("-----")).map(str::to_owned)
        });
        let secrets: Vec<String> = secrets.collect();
        ensure!(!secrets.is_empty() && !secrets.iter().any(|line| all.contains(line)), "a key is in the report");
        ensure!(!all.contains("PRIVATE KEY"), "a key is in the report");
        Ok(())
    })
}

#[test]
fn shells_learn_the_commands() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(programs::agent()?).args(["completions", shell]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && text.contains("bugreport") && text.contains("state-dir"), "{text}");
    }
    Ok(())
}
