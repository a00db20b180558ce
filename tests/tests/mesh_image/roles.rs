//! The authority's and the CNI plugin's permissions, each taken away in turn: it is named, together with what does not
//! work without it. Those of agent and controller are in `deploy`.

use mesh_tests::deployed::{self, Permission};

use super::*;

/// What the authority says that does not work without a permission.
fn what_fails(permission: &Permission) -> Result<&'static str> {
    Ok(match (permission.verb.as_str(), permission.resource.as_str()) {
        ("create", "tokenreviews") => "request rejected",
        ("list", _) => "cannot be listed",
        ("watch", _) => "cannot be watched",
        (_, "configmaps") => "the roots cannot be published",
        (_, "secrets") => "no root yet",
        _ => anyhow::bail!("what fails without {permission:?}?"),
    })
}

/// A line with both. Quotation marks within a field are escaped.
fn says(log: &str, words: &str, what: &str) -> Result<()> {
    let log = log.replace('\\', "");
    let said = log.lines().any(|line| line.contains(words) && line.contains(what));
    wait::holds(said, || format!("nobody says `{what}`, `{words}`:\n{log}"))
}

#[test]
fn each_permission_of_the_authority_is_missed_by_name() -> Result<()> {
    scenario(|mesh| {
        let installed = Installed::new(mesh)?;
        mesh.objects().put_namespace("shop", true)?;
        let pod = mesh.sandbox(Side::B, "shop/older", "uid-older")?;
        let _echo = pod.sample_server("echo", PORT, &[])?;
        mesh.put(&pod, true)?;
        let mut count = 0;
        for kind in ["ClusterRole", "Role"] {
            let role = deployed::object(kind, CA.1)?;
            for permission in deployed::permissions(&role) {
                installed.api().put_object(deployed::without(&role, &permission))?;
                let missed = authority_misses(mesh, &installed, &permission);
                missed.with_context(|| format!("without {permission:?}"))?;
                count += 1;
            }
            installed.api().put_object(role)?;
        }
        ensure!(count == 11, "{count}");
        Ok(())
    })
}

fn authority_misses(mesh: &Mesh, installed: &Installed, permission: &Permission) -> Result<()> {
    // As on the first start: what an earlier one has made would hide what this one may not do.
    for (kind, name) in [("Secret", "mesh-agent-ca-root"), ("ConfigMap", "mesh-agent-ca-roots")] {
        if installed.api().get(kind, NAMESPACE, name).is_some() {
            installed.api().remove(kind, NAMESPACE, name)?;
        }
    }
    let ca = installed.start(mesh, Side::A, CA, |_| {})?;
    // Somebody must ask before it can be missed that the asker is not known.
    let _asks = match permission.resource.as_str() {
        "tokenreviews" => {
            wait::until("there are roots", WITHIN, || {
                let roots = installed.api().get("ConfigMap", NAMESPACE, "mesh-agent-ca-roots");
                roots.map(drop).context("there is no ConfigMap")
            })?;
            Some(installed.start(mesh, Side::B, AGENT, |_| {})?)
        }
        _ => None,
    };
    let words = format!("cannot {} resource \"{}\"", permission.verb, permission.resource);
    let what = what_fails(permission)?;
    wait::until("it is missed", WITHIN, || says(&ca.log(), &words, what))?;
    // What it needs before it can serve, and what it can serve without.
    let serves = permission.verb != "list" && permission.resource != "secrets";
    let node = mesh.node(Side::A);
    if serves {
        return wait::until("it serves", WITHIN, || ca.probe(node, "readinessProbe"));
    }
    ensure!(ca.probe(node, "readinessProbe").is_err(), "it is ready");
    Ok(())
}

/// The plugin asks the API server while the agent is away, with the kubeconfig that the agent has left.
#[test]
fn each_permission_of_the_plugin_is_missed_by_name() -> Result<()> {
    scenario(|mesh| {
        let (installed, _ca) = begin(mesh)?;
        mesh.objects().put_namespace("plain", false)?;
        let mut agent = installed.start(mesh, Side::A, AGENT, |_| {})?;
        agent.ready(mesh.node(Side::A), WITHIN)?;
        let folder = mesh.node(Side::A).folder().to_owned();
        let (plugin, kubeconfig) = (folder.join("cni-bin/mesh-agent"), folder.join("cni-conf/mesh-agent-kubeconfig"));
        wait::until("the plugin is installed", IN_FORCE_WITHIN, || {
            wait::holds(plugin.is_file() && kubeconfig.is_file(), || "not yet".to_owned())
        })?;
        drop(agent);
        let pod = mesh.sandbox(Side::A, "plain/pod", "uid-plain")?;
        mesh.put(&pod, false)?;
        let add = |mesh: &Mesh| {
            // The file of namespace modes knows less, and would answer where the API server does not.
            let _ = fs::remove_file(folder.join("state/namespaces.json"));
            mesh.runtime(Side::A).by(&plugin).with("kubeconfig", kubeconfig.display().to_string()).add(&pod)
        };
        add(mesh)?.success()?;
        let role = deployed::object("ClusterRole", AGENT.1)?;
        let gets = deployed::permissions(&role).into_iter().filter(|p| p.verb == "get" && p.resource != "nodes");
        let gets: Vec<Permission> = gets.collect();
        ensure!(gets.len() == 2, "{gets:?}");
        for permission in gets {
            installed.api().put_object(deployed::without(&role, &permission))?;
            let words = format!("cannot get resource \"{}\"", permission.resource);
            let answer = add(mesh)?;
            ensure!(!answer.is_success, "without {permission:?} it passes");
            says(answer.message(), &words, "plain/pod").with_context(|| format!("without {permission:?}"))?;
        }
        Ok(())
    })
}
