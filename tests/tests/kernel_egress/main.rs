//! What may leave the mesh: every way out that was thought of, tried from a pod that refuses what is outside.
//!
//! The test process plays the agent, and mostly an agent that is away.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../kernel_capture/bench.rs"]
mod bench;
mod inbound;
#[path = "../kernel_native/pair.rs"]
#[allow(dead_code, reason = "half of it is the native suite's")]
mod pair;
mod tricks;
mod world;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_agent::capture::KernelEvent;
use mesh_agent::model::egress::Egress;
use mesh_agent::model::workload::{Exclusions, PeerMode, Workload};
use mesh_common::counter::Counter;
use mesh_common::limits::TOLD_PER_SECOND;
use mesh_tests::datagram::WAYS;
use mesh_tests::{bpf, leftovers};

use bench::*;
use pair::*;
use world::*;

#[test]
fn what_is_in_the_mesh_is_reached_as_ever() -> Result<()> {
    world(|bench, world| {
        for ip in world.inside.ips() {
            served(&world.client, SocketAddr::new(ip, 8080))?;
            let to = SocketAddr::new(ip, 5353);
            for (how, way) in WAYS {
                let inbox = inbox(&world.inside, to)?;
                world.client.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how} to {to}: {e}"))?;
                ensure!(arrived(&inbox)?, "{how} to {to} did not arrive");
            }
        }
        served(&world.client, format!("{VIP}:80").parse()?)?;
        ensure!(bench.count(Counter::ConnectEgress) + bench.count(Counter::SendmsgEgress) == 0, "something is refused");
        ensure!(bench.count(Counter::DatagramMesh) >= 18, "{}", bench.count(Counter::DatagramMesh));
        Ok(())
    })
}

#[test]
fn each_built_in_rule_admits_its_destinations_and_no_neighbour_of_them() -> Result<()> {
    world(|bench, world| {
        let [dns, api, node_local, service] = world.admitted;
        for to in [dns, node_local, service] {
            let before = bench.count(Counter::DatagramAdmitted);
            for (how, way) in WAYS {
                world.client.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how} to {to}: {e}"))?;
            }
            ensure!(bench.count(Counter::DatagramAdmitted) >= before + WAYS.len() as u64, "{to} is not counted");
            let beside = SocketAddr::new(to.ip(), to.port() + 1);
            for (how, way) in WAYS {
                refused_way(&world.client, how, way, beside)?;
            }
        }
        // TCP of the same rules: nobody listens there, but the connection leaves.
        for to in [dns, api, node_local] {
            let before = [bench.count(Counter::ConnectAdmitted), bench.count(Counter::ConnectEgress)];
            let _ = probe_briefly(&world.client, to)?;
            let after = [bench.count(Counter::ConnectAdmitted), bench.count(Counter::ConnectEgress)];
            ensure!(after == [before[0] + 1, before[1]], "{to}: {before:?} {after:?}");
            refused(&world.client, SocketAddr::new(to.ip(), to.port() + 1))?;
        }
        Ok(())
    })
}

#[test]
fn hooks_come_with_the_first_pod_that_refuses_and_go_with_the_last() -> Result<()> {
    node(|bench| {
        let attached = |bench: &Bench| bpf::attached_to_cgroup(&bench.config.cgroup);
        let plain = attached(bench)?;
        let pod = bench.pod("client")?;
        let outside = bench.pod("outside")?;
        let to = SocketAddr::new(outside.ip(), 9000);
        let inbox = inbox(&outside, to)?;
        let _gone = bench.enrol(captured_workload(&pod, PeerMode::Permissive))?;
        ensure!(attached(bench)? == plain, "a pod without a rule pays");
        ensure!(entries(bench, "admitted")? == 0 && entries(bench, "told")? == 0, "a pod without a rule pays");

        let free = captured_workload(&pod, PeerMode::Permissive);
        bench.workloads = vec![refusing(free.clone()).into()];
        bench.sync()?;
        ensure!(attached(bench)? == plain + 4, "{} programs instead of {}", attached(bench)?, plain + 4);
        ensure!(entries(bench, "admitted")? > 0 && entries(bench, "told")? == 1, "no maps");
        let sendto = WAYS[1];
        refused_way(&pod, sendto.0, sendto.1, to)?;

        bench.workloads = vec![free.into()];
        bench.sync()?;
        ensure!(attached(bench)? == plain, "hooks stay although nobody refuses");
        ensure!(entries(bench, "admitted")? == 0 && entries(bench, "told")? == 0, "entries stay");
        for (how, way) in WAYS {
            pod.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how} once it is allowed: {e}"))?;
            ensure!(arrived(&inbox)?, "{how} did not arrive");
        }
        Ok(())
    })
}

#[test]
fn a_killed_agents_hooks_refuse_on_and_the_next_agent_takes_them_over() -> Result<()> {
    world(|bench, world| {
        // What pins hold, holds without a process: a second kernel half finds it as after a crash.
        let again = mesh_agent::capture::Kernel::start(bench.config.clone())?;
        let to = SocketAddr::new(world.outside.ip(), 9000);
        for (how, way) in WAYS {
            refused_way(&world.client, how, way, to)?;
        }
        // It can enrol nobody, since the ports are taken; what it keeps under its rules stays refused.
        let snapshot = bench.snapshot();
        again.sync(&snapshot)?;
        for workload in &bench.workloads {
            again.guard(workload, &snapshot)?;
        }
        again.come_into_force()?;
        ensure!(again.in_force(), "it is not in force");
        for (how, way) in WAYS {
            refused_way(&world.client, how, way, to)?;
        }
        refused(&world.client, SocketAddr::new(world.outside.ip(), 8080))?;
        ensure!(again.counters()[Counter::SendmsgEgress as usize].1 > 0, "the first one's hooks still decide");
        // And goes when the rule goes.
        bench.replace(captured_workload(&world.client, PeerMode::Permissive))?;
        let snapshot = bench.snapshot();
        for workload in &bench.workloads {
            again.guard(workload, &snapshot)?;
        }
        again.sync(&snapshot)?;
        world.client.netns().run(|| WAYS[1].1(to))??;
        Ok(())
    })
}

/// What an agent is told while an earlier one's programs decide holds from the moment in which its own do.
#[test]
fn a_rule_that_came_while_an_agent_was_staged_holds_when_it_comes_into_force() -> Result<()> {
    node(|bench| {
        let (client, outside) = (bench.pod("client")?, bench.pod("outside")?);
        let free = captured_workload(&client, PeerMode::Permissive);
        let _gone = bench.enrol(free.clone())?;
        let attached = bpf::attached_to_cgroup(&bench.config.cgroup)?;
        let to = SocketAddr::new(outside.ip(), 9000);
        let again = mesh_agent::capture::Kernel::start(bench.config.clone())?;
        bench.workloads = vec![refusing(free).into()];
        let snapshot = bench.snapshot();
        again.sync(&snapshot)?;
        again.guard(&bench.workloads[0], &snapshot)?;
        ensure!(bpf::attached_to_cgroup(&bench.config.cgroup)? == attached, "it meddles before it is in force");
        client.netns().run(|| WAYS[1].1(to))??;
        again.come_into_force()?;
        for (how, way) in WAYS {
            refused_way(&client, how, way, to)?;
        }
        refused(&client, SocketAddr::new(outside.ip(), 8080))
    })
}

#[test]
fn an_opt_out_that_counts_is_a_way_out() -> Result<()> {
    world(|bench, world| {
        // Control leaves exclusions in place only where the policy lets it: see its tables.
        let excluded = Workload {
            exclusions: Exclusions { outbound_ports: vec![9000].into(), ..Exclusions::default() }.into(),
            ..refusing(captured_workload(&world.client, PeerMode::Permissive))
        };
        bench.replace(excluded)?;
        let to = SocketAddr::new(world.outside.ip(), 9000);
        let inbox = inbox(&world.outside, to)?;
        for (how, way) in WAYS {
            world.client.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how}: {e}"))?;
            ensure!(arrived(&inbox)?, "{how} did not arrive");
        }
        refused_way(&world.client, WAYS[1].0, WAYS[1].1, SocketAddr::new(to.ip(), 9001))
    })
}

#[test]
fn refusals_are_told_so_many_a_second_and_all_counted() -> Result<()> {
    const SENT: u64 = 5_000;
    world(|bench, world| {
        let mut events = Events::of(bench)?;
        let to = SocketAddr::new(world.outside.ip(), 9000);
        refused(&world.client, to)?;
        let told = events.until(|event| match event {
            KernelEvent::Refused(refusal) => Some(*refusal),
            KernelEvent::Closed(_) => None,
        })?;
        assert_eq!((told.exit, told.peer), (Counter::ConnectEgress, to));
        assert_eq!(bench.kernel.pod_by_cookie(told.netns_cookie).as_deref(), Some(world.client.name()));

        let before = bench.count(Counter::SendmsgEgress);
        let began = std::time::Instant::now();
        world.client.netns().run(|| -> Result<()> {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..SENT {
                ensure!(socket.send_to(b"x", to).is_err(), "sent");
            }
            Ok(())
        })??;
        let seconds = began.elapsed().as_secs() + 2;
        let [counted, limited] = [bench.count(Counter::SendmsgEgress) - before, bench.count(Counter::EventLimited)];
        assert_eq!(counted, SENT);
        let told = SENT - limited;
        ensure!(told <= TOLD_PER_SECOND * seconds && told > 0, "{told} told in {seconds} s");
        ensure!(bench.count(Counter::EventLost) == 0, "events are lost");
        Ok(())
    })
}

/// Missing entries, map by map: nothing leaves.
#[test]
fn a_map_that_lacks_an_entry_refuses_and_counts() -> Result<()> {
    use mesh_common::key::{Ip, ServiceKey};
    use mesh_common::tag::Reference;
    use mesh_common::value::{AdmittedValue, MeshIpValue, ToldValue};
    world(|bench, world| {
        empty::<ServiceKey, AdmittedValue>(bench, "admitted")?;
        empty::<ServiceKey, Reference>(bench, "services")?;
        empty::<Ip, MeshIpValue>(bench, "mesh_ips")?;
        empty::<u64, ToldValue>(bench, "told")?;
        let [dns, api, ..] = world.admitted;
        for to in [dns, api, format!("{VIP}:80").parse()?, SocketAddr::new(world.inside.ip(), 8080)] {
            refused(&world.client, to)?;
            for (how, way) in WAYS {
                refused_way(&world.client, how, way, to)?;
            }
        }
        ensure!(bench.count(Counter::EventLimited) > 0, "a refusal that nobody can be told of is not counted");
        Ok(())
    })
}

#[test]
fn uninstalling_takes_the_hooks_away_while_a_pod_refuses() -> Result<()> {
    let mut bench = Bench::new()?;
    let pod = bench.pod("client")?;
    let enrolled = bench.enrol(refusing(captured_workload(&pod, PeerMode::Permissive)))?;
    ensure!(bpf::attached_to_cgroup(&bench.config.cgroup)? > 0, "nothing was there");
    // As after a kill: nobody has released the pod.
    mesh_agent::capture::uninstall(&bench.config)?;
    assert_eq!(bpf::attached_to_cgroup(&bench.config.cgroup)?, 0, "programs stayed on the cgroup");
    drop((enrolled, pod));
    bench.finish()?;
    drop(bench);
    leftovers::nothing_left()
}

/// A pod that refuses is not asked by the hooks for anything but its own flags: a neighbour without a rule goes on.
#[test]
fn neighbours_without_a_rule_go_on() -> Result<()> {
    world(|bench, world| {
        let other = bench.pod("other")?;
        let _gone = bench
            .enrol(Workload { egress: Egress::default().into(), ..captured_workload(&other, PeerMode::Permissive) })?;
        let to = SocketAddr::new(world.outside.ip(), 9000);
        let inbox = inbox(&world.outside, to)?;
        for (how, way) in WAYS {
            other.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how}: {e}"))?;
            ensure!(arrived(&inbox)?, "{how} did not arrive");
        }
        served(&other, SocketAddr::new(world.outside.ip(), 8080)).map(drop)
    })
}
