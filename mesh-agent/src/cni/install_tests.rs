//! What the installer makes of directories like those of a node.

use super::*;

struct Node {
    root: tempfile::TempDir,
    install: CniInstall,
}

impl Node {
    fn with(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let [conf_dir, bin_dir, account] = ["net.d", "bin", "account"].map(|name| root.path().join(name));
        [&conf_dir, &bin_dir, &account].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        files.iter().for_each(|(name, text)| fs::write(conf_dir.join(name), text).unwrap());
        fs::write(account.join("token"), "first\n").unwrap();
        fs::write(account.join("ca.crt"), "PEM").unwrap();
        let install = CniInstall {
            conf_dir,
            bin_dir,
            state_dir: "/var/lib/mesh-agent".into(),
            deadline_seconds: 30,
            exempt_namespaces: vec!["mesh-agent-system".to_owned()],
            api: CniApi::ServiceAccount { server: "https://10.96.0.1:443".to_owned(), folder: account },
        };
        Self { root, install }
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.install.conf_dir.join(name)).unwrap()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names = names(&self.install.conf_dir).unwrap();
        names.sort();
        names
    }

    fn uninstall(&self) {
        uninstall(&self.install.conf_dir, &self.install.bin_dir).unwrap();
    }
}

const LIST: &str = r#"{"name": "k8s", "cniVersion": "0.3.1", "disableCheck": true,
    "plugins": [{"type": "calico", "mtu": 1450, "weights": [1.5, 2]}, {"type": "portmap", "snat": true}]}"#;

#[test]
fn the_entry_comes_last_in_the_first_list_and_goes_without_a_trace() {
    let node = Node::with(&[("10-calico.conflist", LIST), ("87-podman.conflist", LIST)]);
    fs::set_permissions(node.install.conf_dir.join("10-calico.conflist"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(install_entry(&node.install).unwrap(), Some(node.install.conf_dir.join("10-calico.conflist")));
    let list = node.json("10-calico.conflist");
    assert_eq!(list["plugins"][2]["type"], "mesh-agent");
    assert_eq!(list["plugins"][2]["exemptNamespaces"], json!(["mesh-agent-system"]));
    let mode = fs::metadata(node.install.conf_dir.join("10-calico.conflist")).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o644);
    assert_eq!(fs::read_to_string(node.install.conf_dir.join("87-podman.conflist")).unwrap(), LIST);
    assert_eq!(install_entry(&node.install).unwrap(), None, "there is nothing to do twice");
    node.uninstall();
    assert_eq!(node.json("10-calico.conflist"), serde_json::from_str::<Value>(LIST).unwrap());
    assert_eq!(node.names(), ["10-calico.conflist", "87-podman.conflist"]);
}

#[test]
fn the_entry_is_put_back_when_another_rewrites_or_reorders_or_comes_first() {
    let node = Node::with(&[("10-calico.conflist", LIST)]);
    install_entry(&node.install).unwrap();
    fs::write(node.install.conf_dir.join("10-calico.conflist"), LIST).unwrap();
    assert!(install_entry(&node.install).unwrap().is_some());
    let mut list = node.json("10-calico.conflist");
    list["plugins"].as_array_mut().unwrap().reverse();
    fs::write(node.install.conf_dir.join("10-calico.conflist"), list.to_string()).unwrap();
    assert!(install_entry(&node.install).unwrap().is_some());
    assert_eq!(node.json("10-calico.conflist")["plugins"][2]["type"], "mesh-agent");
    fs::write(node.install.conf_dir.join("05-cilium.conflist"), LIST).unwrap();
    assert_eq!(install_entry(&node.install).unwrap(), Some(node.install.conf_dir.join("05-cilium.conflist")));
    node.uninstall();
    for name in ["05-cilium.conflist", "10-calico.conflist"] {
        assert!(!node.json(name).to_string().contains("mesh-agent"), "{name}");
    }
}

#[test]
fn a_single_plugin_is_made_a_list_and_comes_back_as_it_was() {
    let single = r#"{"cniVersion":"0.3.1","name":"flannel","type":"flannel","delegate":{"isDefaultGateway":true}}"#;
    let node = Node::with(&[("10-flannel.conf", single)]);
    install_entry(&node.install).unwrap();
    let list = node.json("10-flannel.conflist");
    assert_eq!(list["plugins"][0], json!({"type": "flannel", "delegate": {"isDefaultGateway": true}}));
    assert_eq!(list["plugins"][1]["type"], "mesh-agent");
    assert_eq!(conflist::first(&node.names()), Some(&"10-flannel.conflist".to_owned()));
    node.uninstall();
    assert_eq!(fs::read_to_string(node.install.conf_dir.join("10-flannel.conf")).unwrap(), single);
    assert_eq!(node.names(), ["10-flannel.conf"]);
}

#[test]
fn a_list_that_others_went_on_with_is_kept_without_us() {
    let node = Node::with(&[("10-x.conf", r#"{"name":"n","type":"bridge"}"#)]);
    install_entry(&node.install).unwrap();
    let mut list = node.json("10-x.conflist");
    list["plugins"].as_array_mut().unwrap().insert(1, json!({"type": "tuning"}));
    fs::write(node.install.conf_dir.join("10-x.conflist"), list.to_string()).unwrap();
    node.uninstall();
    assert_eq!(node.json("10-x.conflist"), json!({"name": "n", "plugins": [{"type": "bridge"}, {"type": "tuning"}]}));
    assert_eq!(node.names(), ["10-x.conflist"]);
}

#[test]
fn what_is_torn_is_left_alone_and_none_is_waited_for() {
    let node = Node::with(&[("10-x.conflist", "{\"plugins\": [{")]);
    assert!(matches!(install_entry(&node.install), Err(InstallError::Unreadable { .. })));
    assert_eq!(fs::read_to_string(node.install.conf_dir.join("10-x.conflist")).unwrap(), "{\"plugins\": [{");
    node.uninstall();
    assert_eq!(node.names(), ["10-x.conflist"]);
    let empty = Node::with(&[]);
    assert!(matches!(install_entry(&empty.install), Err(InstallError::NoConfiguration { .. })));
    let mut nowhere = Node::with(&[]);
    nowhere.install.conf_dir = nowhere.root.path().join("nowhere");
    let error = install_entry(&nowhere.install).unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("mounted"), "{error}");
}

#[test]
fn the_binary_is_this_program_and_is_copied_once() {
    let node = Node::with(&[]);
    assert!(install_binary(&node.install).unwrap());
    assert!(!install_binary(&node.install).unwrap());
    let target = node.install.bin_dir.join("mesh-agent");
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o755);
    fs::write(&target, "an older one").unwrap();
    assert!(install_binary(&node.install).unwrap());
    assert!(is_same(Path::new("/proc/self/exe"), &target));
    assert_eq!(fs::read_dir(&node.install.bin_dir).unwrap().count(), 1, "no draft is left");
}

#[test]
fn the_kubeconfig_is_private_and_follows_the_token() {
    let node = Node::with(&[]);
    assert!(install_kubeconfig(&node.install).unwrap());
    assert!(!install_kubeconfig(&node.install).unwrap());
    let path = node.install.conf_dir.join(KUBECONFIG_NAME);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let read = node.json(KUBECONFIG_NAME);
    assert_eq!(
        (&read["users"][0]["user"]["token"], &read["clusters"][0]["cluster"]["certificate-authority-data"]),
        (&json!("first"), &json!("UEVN"))
    );
    fs::write(node.root.path().join("account/token"), "second").unwrap();
    assert!(install_kubeconfig(&node.install).unwrap());
    assert_eq!(node.json(KUBECONFIG_NAME)["users"][0]["user"]["token"], "second");
    node.uninstall();
    assert!(node.names().is_empty());
}
