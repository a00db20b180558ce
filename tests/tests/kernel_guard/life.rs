//! When a guard is there, and what it does when something is missing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, ensure};
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_common::key::ServiceKey;
use mesh_common::tag::Reference;
use mesh_common::value::AdmittedValue;
use mesh_tests::raw::{self, UDP};
use mesh_tests::topology::Side;
use mesh_tests::{bpf, leftovers};
use socket2::{Domain, Socket, Type};

use crate::bench::*;
use crate::pair::*;
use crate::tricks::{REFUSALS, refused_by};
use crate::world::*;
use crate::{cookie_of, guard, guarded};

fn attached(bench: &Bench, device: &str) -> Result<u32> {
    bench.topology.node(Side::A).netns().run(|| bpf::attached_to_device(device))?
}

fn datagram(world: &World, to: SocketAddr) -> Result<()> {
    let from = SocketAddr::new(world.client.ip(), 4321);
    let packet = raw::ip(from.ip(), to.ip(), UDP, &raw::udp(from, to, b"x"));
    Ok(world.client.netns().run(|| raw::send_ip(to.ip(), &packet))??)
}

#[test]
fn a_guard_comes_when_it_is_asked_for_and_goes_again() -> Result<()> {
    world(|bench, world| {
        ensure!(attached(bench, "pod1")? == 0, "a pod that has not asked pays");
        guard(bench, world)?;
        ensure!(attached(bench, "pod1")? == 2 && attached(bench, "pod2")? == 0, "not there, or a neighbour pays");
        // Whatever the policies do to a pod that refuses nothing, there is nothing to guard.
        bench.replace(guarded(captured_workload(&world.client, PeerMode::Permissive)))?;
        ensure!(attached(bench, "pod1")? == 0, "it stays although nothing is refused");
        guard(bench, world)?;
        bench.kernel.release(world.client.name());
        ensure!(attached(bench, "pod1")? == 0, "it stays in a pod that has left");
        Ok(())
    })
}

#[test]
fn a_killed_agents_guard_refuses_on_and_the_next_agent_takes_it_over() -> Result<()> {
    world(|bench, world| {
        guard(bench, world)?;
        let outside = SocketAddr::new(world.outside.ip(), 9000);
        let again = mesh_agent::capture::Kernel::start(bench.config.clone())?;
        refused_by(bench, Counter::GuardOutside, "a datagram", &|| datagram(world, outside))?;
        let snapshot = bench.snapshot();
        for workload in &bench.workloads {
            again.guard(workload, &snapshot)?;
        }
        again.sync(&snapshot)?;
        let taken = |counter: Counter| again.counters()[counter as usize].1;
        ensure!(taken(Counter::GuardOutside) == 0, "it is in force too soon");
        again.come_into_force()?;
        let before = bench.count(Counter::GuardOutside);
        datagram(world, outside)?;
        mesh_tests::wait::until("the next agent's guard refuses", SOON, || {
            mesh_tests::wait::holds(taken(Counter::GuardOutside) == 1, || "not yet".to_owned())
        })?;
        ensure!(bench.count(Counter::GuardOutside) == before, "both refuse");
        ensure!(attached(bench, "pod1")? == 2, "{} programs", attached(bench, "pod1")?);
        // And goes when nobody asks any more.
        bench.replace(refusing(captured_workload(&world.client, PeerMode::Permissive)))?;
        let snapshot = bench.snapshot();
        for workload in &bench.workloads {
            again.guard(workload, &snapshot)?;
        }
        ensure!(attached(bench, "pod1")? == 0, "it stays");
        Ok(())
    })
}

#[test]
fn a_map_that_lacks_an_entry_refuses_and_counts() -> Result<()> {
    world(|bench, world| {
        guard(bench, world)?;
        let [dns, ..] = world.admitted;
        let before = REFUSALS.map(|counter| bench.count(counter));
        datagram(world, dns)?;
        mesh_tests::wait::until("what is admitted passes", SOON, || {
            mesh_tests::wait::holds(bench.count(Counter::GuardDatagram) > 0, || "not yet".to_owned())
        })?;
        ensure!(REFUSALS.map(|counter| bench.count(counter)) == before, "something is refused");
        empty::<ServiceKey, AdmittedValue>(bench, "admitted")?;
        refused_by(bench, Counter::GuardOutside, "what is admitted no more", &|| datagram(world, dns))?;
        empty::<u64, Reference>(bench, "pods")?;
        refused_by(bench, Counter::GuardNoPod, "a pod without an entry", &|| datagram(world, dns))
    })
}

/// What stood before the guard came: within the mesh it goes on, with the outside it is cut.
#[test]
fn connections_that_stood_go_on_within_the_mesh_alone() -> Result<()> {
    world(|bench, world| {
        let at = SocketAddr::new(world.client.ip(), 7004);
        let listener = world.client.netns().run(|| TcpListener::bind(at))??;
        let mut ends = Vec::new();
        for from in [&world.inside, &world.outside] {
            let other = from.netns().run(|| TcpStream::connect(at))??;
            other.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
            ends.push((other, listener.accept()?.0));
        }
        guard(bench, world)?;
        for ((mut other, mut own), expected) in ends.into_iter().zip([true, false]) {
            own.write_all(b"x")?;
            let came = other.read(&mut [0; 1]);
            ensure!(came.is_ok() == expected, "{came:?}");
        }
        ensure!(bench.count(Counter::GuardOutside) > 0, "it is not counted");
        Ok(())
    })
}

/// The look-up from the node's side does not find a socket that is bound to the pod's device: docs/security.md.
#[test]
fn a_socket_bound_to_its_device_is_not_found() -> Result<()> {
    world(|bench, world| {
        let to = SocketAddr::new(world.inside.ip(), 8080);
        let connect = || {
            world.client.netns().run(|| -> Result<bool> {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind_device(Some(b"eth0"))?;
                Ok(socket.connect_timeout(&to.into(), std::time::Duration::from_millis(500)).is_ok())
            })?
        };
        ensure!(connect()?, "it is refused without a guard too");
        guard(bench, world)?;
        ensure!(!connect()?, "docs/security.md is wrong");
        ensure!(bench.count(Counter::GuardNoSocket) > 0, "it is not counted");
        Ok(())
    })
}

#[test]
fn a_pod_that_cannot_be_guarded_says_so_and_keeps_its_hooks() -> Result<()> {
    world(|bench, world| {
        let node = bench.topology.node(Side::A).netns();
        node.ip(&format!("link add net1 link link0 netns {} type macvlan mode bridge", world.client.netns().name()))?;
        bench.replace(guarded(refusing(captured_workload(&world.client, PeerMode::Permissive))))?;
        let cookie = cookie_of(bench, &world.client)?;
        let problem = bench.kernel.guard_problem(cookie).unwrap_or_default();
        ensure!(problem.contains("net1") && problem.contains("no veth"), "{problem}");
        ensure!(bench.kernel.is_a_guard_missing(), "nobody would try again");
        refused(&world.client, SocketAddr::new(world.outside.ip(), 8080))?;
        world.client.netns().ip("link del net1")?;
        guard(bench, world)?;
        ensure!(!bench.kernel.is_a_guard_missing() && attached(bench, "pod1")? == 2, "it did not recover");
        Ok(())
    })
}

#[test]
fn uninstalling_takes_the_guard_away() -> Result<()> {
    let mut bench = Bench::new()?;
    let pod = bench.pod("client")?;
    let enrolled = bench.enrol(guarded(refusing(captured_workload(&pod, PeerMode::Permissive))))?;
    ensure!(attached(&bench, "pod1")? == 2, "nothing was there");
    // As after a kill: nobody has released the pod.
    mesh_agent::capture::uninstall(&bench.config)?;
    ensure!(attached(&bench, "pod1")? == 0, "programs stayed on the veth");
    drop((enrolled, pod));
    bench.finish()?;
    drop(bench);
    leftovers::nothing_left()
}
