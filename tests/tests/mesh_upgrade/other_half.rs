//! Other programs after a crash, other records, and pins whose like no agent writes any more.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::agent::Agent;
use mesh_tests::mesh::{Mesh, scenario};
use mesh_tests::objects::MODE_LABEL;
use mesh_tests::topology::Side;
use mesh_tests::{bpf, wait};

use super::traffic::Traffic;
use super::{OWN, TWIN, WITHIN, carries, left, succeed};

const STRANGER: &str = "stranger";

/// Of some 3,200 connections this many may be refused when the records have another layout: those that are between
/// `connect()` and their receiver, some 50 us, while the links are updated.
const CAUGHT: usize = 3;

/// The agent of the first node is killed, and one with other programs started, while connections are made that need
/// neither. At most `may_fail` of them may be lost, and none that is denied let through.
fn crashes(half: &str, may_fail: usize, while_away: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("vault", true)?;
        mesh.objects().put_peer_mode("vault", "Strict")?;
        mesh.objects().put_namespace("plain", false)?;
        let safe = mesh.pod(Side::A, "vault/safe")?;
        let friend = mesh.pod(Side::A, "vault/friend")?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        let (client, server) = mesh.shop()?;
        mesh.captured(&safe)?;
        mesh.captured(&friend)?;
        let _echo = [safe.sample_server("echo", 7000, &[])?, server.sample_server("echo", 7000, &[])?];
        let to = SocketAddr::new(safe.ip(), 7000);
        let dial = ["--every-ms", "5", "--count", "1600"];
        let native = friend.ask_later("dial", to, &dial)?;
        let open = friend.ask_later("chat", to, &["--every-ms", "20", "--count", "500"])?;
        let unknown = stranger.ask_later("dial", to, &dial)?;

        let options = mesh.take_agent(Side::A)?.kill()?;
        while_away(mesh)?;
        mesh.run_agent(Side::A, options.with("--kernel-half", half))?;
        mesh.ready(Side::A)?;
        left::one_agents_pins(mesh, Side::A)?;
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "50"], WITHIN)?;
        ensure!(answer["failed"] == 0, "{answer}");
        carries(mesh, Side::A)?;
        let (native, open, unknown) = (native.answer(WITHIN)?, open.answer(WITHIN)?, unknown.answer(WITHIN)?);
        ensure!(unknown["ok"] == 0, "a strict pod took plaintext: {unknown}");
        ensure!(open["failed"] == 0 && open["ok"] == 500, "the open connection failed: {open}");
        let few = native["failed"].as_u64().is_some_and(|failed| failed <= may_fail as u64);
        ensure!(few, "connections failed: {native}");
        ensure!(left::twin_runs(mesh, Side::A)? == (half != OWN), "the wrong programs are in force");
        mesh.take_agent(Side::A)?.stop()?;
        let node = mesh.node(Side::A);
        Agent::uninstall(node)?;
        ensure!(bpf::attached_to_cgroup(node.cgroup())? == 0, "programs are still attached to the cgroup");
        ensure!(bpf::attached_to_netns(safe.netns())? == 0, "programs are still attached to the pod");
        let pins = bpf::pins(node.bpffs())?;
        ensure!(pins.is_empty(), "pins are left: {pins:?}");
        Ok(())
    })
}

#[test]
fn an_agent_with_other_programs_follows_one_that_was_killed_and_leaves_nothing() -> Result<()> {
    crashes(TWIN, 0, |_| Ok(()))
}

#[test]
fn pins_of_a_layout_that_nobody_knows_are_replaced_without_a_hole() -> Result<()> {
    crashes(OWN, CAUGHT, |mesh| {
        // As it once was: everything in one directory, named after the object.
        let [maps, records] = ["maps-", "records-"].map(|prefix| left::folders(mesh, Side::A, prefix));
        let (maps, records) = (maps?.pop().context("no maps")?, records?.pop().context("no records")?);
        for pin in bpf::pins(&records)? {
            fs::rename(pin.path(), maps.join(pin.file_name()))?;
        }
        fs::remove_dir(records)?;
        Ok(fs::rename(&maps, maps.with_file_name("maps-00c0ffee00c0ffee"))?)
    })
}

#[test]
fn an_upgrade_to_other_records_lets_nobody_through_and_loses_no_open_connection() -> Result<()> {
    scenario(|mesh| {
        let traffic = Traffic::start(mesh)?;
        let before = left::folders(mesh, Side::A, "records-")?;
        let predecessor = succeed(mesh, Side::A, "agent-2", STRANGER)?;
        carries(mesh, Side::A)?;
        let lost = traffic.lost()?;
        ensure!(lost.len() <= CAUGHT, "new connections failed: {lost:?}");
        mesh.ends_well(predecessor, &[])?;
        left::one_agents_pins(mesh, Side::A)?;
        ensure!(left::folders(mesh, Side::A, "records-")? != before, "the records are the same");
        ensure!(left::twin_runs(mesh, Side::A)?, "the wrong programs are in force");
        Ok(())
    })
}

#[test]
fn a_pod_that_left_while_no_agent_ran_is_left_as_it_was_found() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let rules =
            || Ok(String::from_utf8(Command::new("ip").args(["-n", server.netns().name(), "rule"]).output()?.stdout)?);
        let _echo = server.sample_server("echo", 7000, &[])?;
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "1"], WITHIN)?;
        let before: String = rules()?;
        ensure!(answer["ok"] == 1 && before.contains("fwmark"), "there was nothing to take away: {answer}, {before}");
        let options = mesh.take_agent(Side::B)?.kill()?;
        let mut object = server.object();
        object.labels.insert(MODE_LABEL.to_owned(), "disabled".to_owned());
        mesh.objects().put_pod(&object)?;
        mesh.run_agent(Side::B, options)?;
        mesh.ready(Side::B)?;
        wait::until("the pod is left as it was found", WITHIN, || {
            let (programs, rules): (u32, Result<String>) = (bpf::attached_to_netns(server.netns())?, rules());
            let rules = rules?;
            wait::holds(programs == 0 && !rules.contains("fwmark"), || format!("{programs} programs, {rules}"))
        })
    })
}
