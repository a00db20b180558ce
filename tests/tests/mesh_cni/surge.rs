//! A rolling upgrade with surge, a restart and a reboot, while pods that the plugin has enrolled go on dialling and the
//! kubelet starts others: nobody is refused where two agents overlap, and nobody passes outside the mesh in any case.

use std::fs;

use anyhow::{Context, bail};
use mesh_tests::cni::Starting;
use mesh_tests::process::Process;
use mesh_tests::scale;
use nix::sys::signal::Signal;

use super::settled::{self, Book};
use super::*;

/// What agents say on their way, in order: at each of these moments pods are added.
const BEGINS: &str = "preparing to take over";
const IN_FORCE: &str = "this agent's programs are in force";
pub const IN_CHARGE: &str = "in charge of this node";
/// Two agents of a node have different addresses in Kubernetes.
pub const METRICS: [&str; 2] = ["127.0.0.1:15021", "127.0.0.1:15022"];
/// More than any scenario lets them.
pub const DIALS: &str = "100000";
/// Of the kubelet, at a node whose agent takes its time.
const ATTEMPTS: usize = 15;
const AGENT_WITHIN: Duration = Duration::from_secs(60);

/// Clients at work all the time, and the servers that tell who has come.
struct Scene {
    serial: usize,
    /// A strict server on the second node.
    strict: SocketAddr,
    /// One that takes plaintext: whoever passes outside the mesh is counted there.
    open: SocketAddr,
    served: Vec<Process>,
    refused: Vec<Process>,
    pods: Vec<Arc<Workload>>,
    servers: Vec<Process>,
}

impl Scene {
    fn start(mesh: &mut Mesh) -> Result<Self> {
        // All of it before the agents: what they are shown later is in force a moment later.
        mesh.use_api_server_of_strangers()?;
        for (namespace, enabled) in [("shop", true), ("open", true), ("plain", false)] {
            mesh.objects().put_namespace(namespace, enabled)?;
        }
        mesh.objects().put_peer_mode("shop", "Strict")?;
        mesh.start()?;
        let mut there = |side, name: &str| -> Result<Arc<Workload>> {
            let pod = added(mesh, side, name, &name.replace('/', "-"))?;
            mesh.put(&pod, true)?;
            Ok(pod)
        };
        let (server, observer) = (there(Side::B, "shop/server")?, there(Side::B, "open/observer")?);
        let (client, neighbour) = (there(Side::A, "shop/client")?, there(Side::A, "shop/neighbour")?);
        let outsider = there(Side::A, "plain/outsider")?;
        let servers = [&server, &observer, &neighbour].map(|pod| pod.sample_server("echo", PORT, &[]));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        [&server, &observer, &client, &neighbour].into_iter().try_for_each(|pod| mesh.captured(pod))?;
        let at = |pod: &Workload| SocketAddr::new(pod.ip(), PORT);
        let dial =
            |from: &Workload, to: SocketAddr| from.ask_later("dial", to, &["--every-ms", "10", "--count", DIALS]);
        let served = [at(&server), at(&observer), at(&neighbour)].map(|to| dial(&client, to));
        let served = served.into_iter().collect::<Result<Vec<_>>>()?;
        let refused = vec![dial(&outsider, at(&server))?];
        let pods = vec![server.clone(), observer.clone(), client, neighbour, outsider];
        let (strict, open) = (at(&server), at(&observer));
        let scene = Self { serial: 0, strict, open, served, refused, pods, servers };
        scene.dials_on()?;
        Ok(scene)
    }

    /// Waits until each client has dialled some times more.
    fn dials_on(&self) -> Result<()> {
        let clients = || self.served.iter().chain(&self.refused);
        let before: Vec<usize> = clients().map(dialled).collect();
        wait::until("the clients dial", WITHIN, || {
            let goes_on = clients().zip(&before).all(|(client, before)| dialled(client) >= before + 10);
            wait::holds(goes_on, || clients().map(Process::stdout).collect())
        })
    }

    /// What became of the connections of those that are to be served, but for `ok`; and nobody else was served.
    fn lost(&self) -> Result<Vec<Value>> {
        let of = |clients: &[Process]| -> Result<Vec<Value>> {
            Ok(clients.iter().map(Process::lines).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        let let_in: Vec<Value> = of(&self.refused)?.into_iter().filter(|line| line["outcome"] == "ok").collect();
        ensure!(let_in.is_empty(), "a strict server took plaintext: {let_in:?}");
        Ok(of(&self.served)?.into_iter().filter(|line| line["outcome"] != "ok").collect())
    }

    /// Sandboxes of new pods whose objects are there; nobody has called the plugin yet.
    fn sandboxes(&mut self, mesh: &mut Mesh, count: usize) -> Result<Vec<Arc<Workload>>> {
        let mut make = || {
            self.serial += 1;
            let pod = mesh.sandbox(Side::A, &format!("shop/new-{}", self.serial), &format!("uid-{}", self.serial))?;
            mesh.put(&pod, false)?;
            Ok(pod)
        };
        (0..count).map(|_| make()).collect()
    }

    /// Begins to start pods; the first thing that their containers do is to ask the server that counts, or the strict
    /// one.
    fn begin(&self, mesh: &Mesh, pods: &[Arc<Workload>]) -> Result<Vec<(Arc<Workload>, Starting)>> {
        let runtime = runtime(mesh)?;
        let begin = |(number, pod): (usize, &Arc<Workload>)| {
            let to = if number % 2 == 0 { self.strict } else { self.open };
            Ok((Arc::clone(pod), runtime.start(pod, "churn", to, &["--count", "1"])?))
        };
        pods.iter().enumerate().map(begin).collect()
    }

    /// Waits for pods that are being started, again and again as the kubelet does where ADD has failed; gives how often
    /// it has. The first connection of each is in the mesh.
    fn all_start(&mut self, mesh: &Mesh, mut starting: Vec<(Arc<Workload>, Starting)>) -> Result<usize> {
        let runtime = runtime(mesh)?;
        let mut failed = 0;
        for _ in 0..ATTEMPTS {
            let mut again = Vec::new();
            for (pod, starting) in starting {
                let (answer, found) = runtime.started(starting)?;
                match found {
                    Some(found) => self.first_is_served(mesh, &pod, &found)?,
                    None => {
                        answer.failure(TRY_AGAIN, &["agent"])?;
                        runtime.delete(&pod)?.success()?;
                        again.push(pod);
                    }
                }
            }
            if again.is_empty() {
                return Ok(failed);
            }
            failed += again.len();
            starting = self.begin(mesh, &again)?;
        }
        bail!("pods do not start although the kubelet has tried {ATTEMPTS} times")
    }

    fn first_is_served(&mut self, mesh: &Mesh, pod: &Arc<Workload>, found: &Value) -> Result<()> {
        ensure!(found["ok"] == 1, "the first connection of {}: {found}", pod.object().display_name());
        mesh.put(pod, true)?;
        self.pods.push(Arc::clone(pod));
        Ok(())
    }
}

fn runtime(mesh: &Mesh) -> Result<Runtime<'_>> {
    Ok(mesh.runtime(Side::A).with("kubeconfig", mesh.kubeconfig()?.display().to_string()))
}

/// How many connections a client has made.
pub fn dialled(client: &Process) -> usize {
    client.stdout().lines().count()
}

pub fn says(agent: &Agent, what: &str) -> Result<()> {
    wait::until(&format!("it says `{what}`"), AGENT_WITHIN, || wait::holds(agent.log().contains(what), || agent.log()))
}

/// Nobody has come to the pods of the second node in plaintext; but for what was refused.
pub fn nobody_came_outside_the_mesh(mesh: &Mesh) -> Result<()> {
    let metrics = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?;
    for exit in ["lookup_plaintext", "lookup_permissive"] {
        let count = metrics.sum("mesh_kernel_exits_total", &[("exit", exit)]);
        ensure!(count == 0.0, "{exit}: {count} connections came outside the mesh");
    }
    Ok(())
}

#[test]
fn the_first_instruction_of_a_container_is_in_the_mesh() -> Result<()> {
    let (batches, batch) = scale::pick((3, 4), (30, 6));
    scenario(|mesh| {
        let mut scene = Scene::start(mesh)?;
        // Nothing but the plugin's own time lies between capture and connect.
        scene.served.clear();
        for number in 0..batches {
            let pods = scene.sandboxes(mesh, batch)?;
            let waits_for_the_ca = number % 2 == 0;
            if waits_for_the_ca {
                mesh.ca()?.process().signal(Signal::SIGSTOP)?;
            }
            let starting = scene.begin(mesh, &pods)?;
            if waits_for_the_ca {
                for pod in &pods {
                    wait::until("it waits for its certificate", WITHIN, || {
                        let stage = stage_of(mesh, Side::A, &pod.object().display_name())?;
                        wait::holds(stage["stage"] == "joining", || stage.to_string())
                    })?;
                }
                mesh.ca()?.process().signal(Signal::SIGCONT)?;
            }
            let failed = scene.all_start(mesh, starting)?;
            ensure!(failed == 0, "{failed} pods needed a second ADD");
        }
        nobody_came_outside_the_mesh(mesh)
    })
}

#[test]
fn an_upgrade_with_surge_refuses_nobody_while_pods_are_added() -> Result<()> {
    let (rounds, batch) = scale::pick((1, 2), (6, 6));
    scenario(|mesh| {
        let mut scene = Scene::start(mesh)?;
        let (mut again, mut last) = (0, None);
        for round in 0..rounds {
            let pods = scene.sandboxes(mesh, 4 * batch)?;
            let mut batches = pods.chunks(batch);
            let mut next = |mesh: &Mesh, scene: &Scene| scene.begin(mesh, batches.next().unwrap_or_default());
            let successor =
                mesh.beside(Side::A, &format!("agent-{}", round + 2), &[("--metrics", METRICS[round % 2])])?;
            let mut starting = Vec::new();
            for moment in [BEGINS, IN_FORCE, IN_CHARGE] {
                starting.extend(next(mesh, &scene)?);
                says(&successor, moment)?;
            }
            starting.extend(next(mesh, &scene)?);
            let predecessor = mesh.succeed(Side::A, successor)?;
            again += scene.all_start(mesh, starting)?;
            scene.dials_on()?;
            mesh.ends_well(predecessor, &[])?;
            last = Some(round);
        }
        scene.dials_on()?;
        let lost = scene.lost()?;
        ensure!(lost.is_empty(), "connections were refused: {lost:?}");
        nobody_came_outside_the_mesh(mesh)?;
        eprintln!("{} upgrades, {} pods, {again} of them by a second ADD", last.map_or(0, |n| n + 1), scene.serial);
        scene.served.clear();
        settled::as_after_a_fresh_start(mesh, Book::Kept)
    })
}

#[test]
fn a_killed_agent_that_starts_again_leaves_nobody_outside() -> Result<()> {
    let (rounds, batch) = scale::pick((1, 2), (5, 6));
    scenario(|mesh| {
        let mut scene = Scene::start(mesh)?;
        for _ in 0..rounds {
            let pods = scene.sandboxes(mesh, 3 * batch)?;
            let mut starting = scene.begin(mesh, &pods[..batch])?;
            let options = mesh.take_agent(Side::A)?.kill()?;
            scene.dials_on()?;
            starting.extend(scene.begin(mesh, &pods[batch..2 * batch])?);
            mesh.run_agent(Side::A, options)?;
            starting.extend(scene.begin(mesh, &pods[2 * batch..])?);
            mesh.ready(Side::A)?;
            scene.all_start(mesh, starting)?;
            scene.dials_on()?;
        }
        eprintln!("{} connections were refused meanwhile", scene.lost()?.len());
        nobody_came_outside_the_mesh(mesh)?;
        scene.served.clear();
        settled::as_after_a_fresh_start(mesh, Book::Kept)
    })
}

#[test]
fn after_a_reboot_nothing_but_the_api_server_is_needed() -> Result<()> {
    let count = scale::pick(4, 30);
    scenario(|mesh| {
        // Of pods whose sandbox is not there again although the API server still has its address.
        mesh.expect_complaint("netns_unknown");
        // The containers of this harness wait in their pod before its ADD.
        mesh.expect_complaint("netns_mismatch");
        let mut scene = Scene::start(mesh)?;
        let pods = scene.sandboxes(mesh, count)?;
        let starting = scene.begin(mesh, &pods)?;
        scene.all_start(mesh, starting)?;
        pods.iter().try_for_each(|pod| mesh.captured(pod))?;
        drop(pods);

        // The first node goes, with all that was on it.
        let Scene { serial, strict, open, served, refused, pods, mut servers } = scene;
        drop((served, refused, servers.pop()));
        mesh.take_agent(Side::A)?.stop()?;
        Agent::uninstall(mesh.node(Side::A))?;
        fs::remove_dir_all(mesh.node(Side::A).folder().join("state"))?;
        let gone: Vec<Arc<Workload>> = pods.into_iter().filter(|pod| pod.side() == Side::A).collect();
        let mut names = Vec::new();
        for pod in gone {
            names.push((pod.object().display_name(), pod.object().uid));
            mesh.remove_sandbox(&pod)?;
        }
        let mut scene =
            Scene { serial, strict, open, served: Vec::new(), refused: Vec::new(), pods: Vec::new(), servers };

        // The kubelet comes before the agent; the API server still has the addresses of before.
        let mut pods = Vec::new();
        for (name, uid) in &names {
            pods.push(mesh.sandbox(Side::A, name, uid)?);
        }
        let outside = pods.extract_if(.., |pod| pod.object().namespace == "plain").next().context("an outsider")?;
        let early = scene.begin(mesh, &pods)?;
        for (pod, starting) in early {
            let (answer, _) = runtime(mesh)?.started(starting)?;
            answer.failure(TRY_AGAIN, &["opted in", "the API server", "agent"])?;
            runtime(mesh)?.delete(&pod)?.success()?;
        }
        runtime(mesh)?.add(&outside)?.success()?;
        mesh.start_agent(Side::A)?;
        let starting = scene.begin(mesh, &pods)?;
        scene.all_start(mesh, starting)?;
        mesh.ready(Side::A)?;
        ensure!(asks(&outside, strict)?["ok"] == 0, "a strict server took plaintext");
        nobody_came_outside_the_mesh(mesh)?;
        mesh.put(&outside, true)?;
        settled::as_after_a_fresh_start(mesh, Book::Kept)
    })
}
