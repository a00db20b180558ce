//! The DaemonSet with one thing less at a time: what is missing is named, and nothing is called ready.

use mesh_tests::deployed;

use super::*;

/// What is taken from the container, and what must be said.
struct Lack {
    what: String,
    named: String,
    without: Box<dyn Fn(&mut Value)>,
}

/// Each capability and each mount of the DaemonSet, and its view of the node's processes.
fn everything() -> Result<Vec<Lack>> {
    let daemon_set = deployed::object("DaemonSet", "mesh-agent")?;
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    let mut all = Vec::new();
    let mut add =
        |what: String, named: String, without: Box<dyn Fn(&mut Value)>| all.push(Lack { what, named, without });
    for capability in container["securityContext"]["capabilities"]["add"].as_array().context("capabilities")? {
        let (capability, name) = (capability.clone(), capability.as_str().context("a name")?);
        let without = Box::new(move |spec: &mut Value| {
            let held = &mut spec["containers"][0]["securityContext"]["capabilities"]["add"];
            held.as_array_mut().into_iter().for_each(|held| held.retain(|held| *held != capability));
        });
        add(format!("capability {name}"), format!("CAP_{name}"), without);
    }
    for mount in container["volumeMounts"].as_array().context("mounts")? {
        let (mount, path) = (mount.clone(), mount["mountPath"].as_str().context("a path")?.to_owned());
        let what = format!("mount {path}");
        let without = Box::new(move |spec: &mut Value| {
            let mounts = spec["containers"][0]["volumeMounts"].as_array_mut();
            mounts.into_iter().for_each(|mounts| mounts.retain(|other| *other != mount));
        });
        add(what, path, without);
    }
    add("hostPID".to_owned(), "hostPID".to_owned(), Box::new(|spec| spec["hostPID"] = json!(false)));
    Ok(all)
}

/// An opted-in pod is there already: an agent that cannot capture it is not ready.
#[test]
fn whatever_the_daemon_set_gives_is_missed_by_name() -> Result<()> {
    scenario(|mesh| {
        let (installed, _ca) = begin(mesh)?;
        let older = mesh.sandbox(Side::B, "shop/older", "uid-older")?;
        let _echo = older.sample_server("echo", PORT, &[])?;
        mesh.put(&older, true)?;
        let everything = everything()?;
        ensure!(everything.len() == 13, "{}", everything.len());
        for lack in &everything {
            let mut agent = installed.start(mesh, Side::B, AGENT, &*lack.without)?;
            let missed = match lack.named.as_str() {
                // Nothing is wrong before a pod comes whose network namespace is there.
                "/run/netns" => agent.ready(mesh.node(Side::B), WITHIN).and_then(|()| refuses_pods(mesh)),
                // Nor for a pod that its runtime announces: those that cannot be captured hold nobody up.
                "hostPID" => names(&agent, &lack.named),
                _ => names(&agent, &lack.named).and_then(|()| {
                    let ready = agent.probe(mesh.node(Side::B), "readinessProbe");
                    ensure!(ready.is_err(), "it is ready");
                    Ok(())
                }),
            };
            missed.with_context(|| format!("without {}:\n{}", lack.what, agent.log()))?;
        }
        // The same with everything.
        installed.start(mesh, Side::B, AGENT, |_| {})?.ready(mesh.node(Side::B), WITHIN)
    })
}

/// The agent names what it lacks, in its log or in its status.
fn names(agent: &Running, named: &str) -> Result<()> {
    wait::until(&format!("{named} is missed"), WITHIN, || {
        let said = agent.log() + &agent.status().unwrap_or_default();
        wait::holds(said.contains(named), || "it is not named".to_owned())
    })
}

fn refuses_pods(mesh: &mut Mesh) -> Result<()> {
    let plugin = mesh.node(Side::B).folder().join("cni-bin/mesh-agent");
    let pod = mesh.sandbox(Side::B, "shop/new", "uid-new")?;
    mesh.put(&pod, false)?;
    wait::until("the plugin is there", IN_FORCE_WITHIN, || wait::holds(plugin.is_file(), || "no file".to_owned()))?;
    let answer = mesh.runtime(Side::B).with("deadlineSeconds", 3).by(&plugin).add(&pod)?;
    ensure!(!answer.is_success && answer.message().contains("/run/netns"), "{}", answer.printed);
    Ok(())
}
