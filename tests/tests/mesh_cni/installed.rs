//! The plugin's place on the node, kept by the agent while others write the same files.

use std::fs;
use std::path::Path;

use super::*;

/// As an installer of a network writes it.
const LIST: &str =
    r#"{"cniVersion": "0.3.1", "name": "k8s", "plugins": [{"type": "bridge", "mtu": 1400}, {"type": "portmap"}]}"#;

fn types(list: &Path) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(&fs::read_to_string(list)?)?;
    let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
    Ok(plugins.iter().map(|plugin| plugin["type"].as_str().unwrap_or_default().to_owned()).collect())
}

fn is_last(list: &Path) -> Result<()> {
    wait::until("the plugin is in its place", IN_FORCE_WITHIN, || {
        let types = types(list)?;
        wait::holds(types == ["bridge", "portmap", "mesh-agent"], || format!("{types:?}"))
    })
}

#[test]
fn the_agent_keeps_the_plugin_in_its_place_and_takes_it_away_with_itself() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("the CNI plugin is not in its place");
        mesh.use_api_server_of_strangers()?;
        let folder = mesh.node(Side::A).folder().join("cni");
        let (conf, bin) = (folder.join("net.d"), folder.join("bin"));
        [&conf, &bin].into_iter().try_for_each(fs::create_dir_all)?;
        for (option, value) in [
            ("--cni-conf-dir", conf.display().to_string()),
            ("--cni-bin-dir", bin.display().to_string()),
            ("--cni-exempt-namespaces", "mesh-agent-system,other".to_owned()),
            ("--uninstall-on-exit", String::new()),
        ] {
            mesh.agents_run_with(option, &value);
        }
        mesh.start_agent(Side::A)?;
        mesh.ready(Side::A)?;
        // The network's own plugin may come after the agent.
        let list = conf.join("10-net.conflist");
        fs::write(&list, LIST)?;
        is_last(&list)?;
        let entry: Value = serde_json::from_str(&fs::read_to_string(&list)?)?;
        let entry = &entry["plugins"][2];
        ensure!(entry["exemptNamespaces"] == json!(["mesh-agent-system", "other"]), "{entry}");
        ensure!(entry["stateDir"] == mesh.agent(Side::A)?.state().display().to_string(), "{entry}");
        ensure!(entry["kubeconfig"] == mesh.kubeconfig()?.display().to_string(), "{entry}");
        ensure!(bin.join("mesh-agent").is_file());

        // Rewritten by its owner; half written; and another file comes first.
        fs::write(&list, LIST)?;
        is_last(&list)?;
        fs::write(&list, &LIST[..40])?;
        fs::write(&list, LIST)?;
        is_last(&list)?;
        let first = conf.join("05-net.conflist");
        fs::write(&first, LIST)?;
        is_last(&first)?;

        mesh.take_agent(Side::A)?.stop()?;
        for list in [&first, &list] {
            ensure!(serde_json::from_str::<Value>(&fs::read_to_string(list)?)? == serde_json::from_str::<Value>(LIST)?);
        }
        ensure!(fs::read_dir(&bin)?.next().is_none() && fs::read_dir(&conf)?.count() == 2, "something is left");
        Ok(())
    })
}
