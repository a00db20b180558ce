//! Kubernetes objects as YAML files, as the agents read them; each file is swapped whole. With an API server beside
//! the files, their objects are there too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::kube_api::ApiServer;

/// The label by which a namespace or a pod joins the mesh.
pub const MODE_LABEL: &str = "mesh-agent.io/mode";
/// The annotation by which a pod names its network namespace.
pub const NETNS_ANNOTATION: &str = "mesh-agent.io/netns";

/// A folder of objects.
#[derive(Debug)]
pub struct Objects {
    folder: PathBuf,
    api: Option<Arc<ApiServer>>,
}

/// A Pod.
#[derive(Clone, Debug, Default)]
pub struct PodObject {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`
    pub annotations: BTreeMap<String, String>,
    /// `spec.nodeName`
    pub node: String,
    /// `spec.serviceAccountName`
    pub service_account: String,
    /// `status.podIPs`
    pub ips: Vec<IpAddr>,
    /// Declared container ports.
    pub ports: Vec<u16>,
    /// The Ready condition.
    pub ready: bool,
}

impl Objects {
    /// Uses `folder`, which exists.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, api: None }
    }

    /// From now on an API server has the objects too, those of before included.
    ///
    /// # Errors
    /// What it refuses.
    pub fn mirror_to(&mut self, api: Arc<ApiServer>) -> Result<()> {
        let files = fs::read_dir(&self.folder)?.map(|entry| entry.map(|entry| entry.path()));
        let mut files = files.collect::<Result<Vec<_>, _>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        // Nothing is put into a namespace that is not there.
        files
            .sort_by_key(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("namespace-")));
        files.iter().try_for_each(|path| api.put(&fs::read_to_string(path)?))?;
        self.api = Some(api);
        Ok(())
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `yaml` as the file `name.yaml`, in one step for whoever watches.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(&self, name: &str, yaml: &str) -> Result<()> {
        if let Some(api) = &self.api {
            let (before, after) = (keys(&self.text(name))?, keys(yaml)?);
            api.put(yaml)?;
            let mut gone = before.iter().filter(|key| !after.contains(key));
            gone.try_for_each(|(kind, namespace, name)| api.remove(kind, namespace, name))?;
        }
        // Not a name that the source reads.
        let draft = self.folder.join(format!(".{name}.draft"));
        fs::write(&draft, yaml).with_context(|| format!("cannot write {}", draft.display()))?;
        fs::rename(&draft, self.file(name)).with_context(|| format!("cannot put {name}.yaml"))
    }

    /// Removes the file `name.yaml`.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, name: &str) -> Result<()> {
        if let Some(api) = &self.api {
            for (kind, namespace, name) in keys(&self.text(name))? {
                api.remove(&kind, &namespace, &name)?;
            }
        }
        fs::remove_file(self.file(name)).with_context(|| format!("cannot remove {name}.yaml"))
    }

    /// What stands in the file `name.yaml`; empty when there is none.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// What the agent of `node` has published as captured, as text; empty before it has.
    #[must_use]
    pub fn published(&self, node: &str) -> String {
        let Some(api) = &self.api else { return self.text(&format!("captured.{node}")) };
        let state = api.get("CaptureState", "", node).unwrap_or_default();
        state.get("spec").and_then(|spec| serde_norway::to_string(spec).ok()).unwrap_or_default()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.yaml"))
    }

    /// Puts a Namespace, opted in or not.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_namespace(&self, name: &str, enabled: bool) -> Result<()> {
        let labels = if enabled { format!("\n  labels: {{{MODE_LABEL}: enabled}}") } else { String::new() };
        let yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}{labels}\n");
        self.put(&format!("namespace-{name}"), &yaml)
    }

    /// Puts a Node.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_node(&self, name: &str, ip: IpAddr) -> Result<()> {
        let yaml = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n\
             status:\n  addresses:\n  - {{type: InternalIP, address: \"{ip}\"}}\n"
        );
        self.put(&format!("node-{name}"), &yaml)
    }

    /// Puts a Pod.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_pod(&self, pod: &PodObject) -> Result<()> {
        self.put(&pod.file_name(), &pod.yaml())
    }

    /// Puts a Service for the pods labelled `app: <name>`, with these addresses and (port, target port) pairs.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_service(&self, namespace: &str, name: &str, ips: &[IpAddr], ports: &[(u16, u16)]) -> Result<()> {
        let ips: Vec<String> = ips.iter().map(|ip| format!("\"{ip}\"")).collect();
        let ports: String = ports
            .iter()
            .map(|(port, target)| format!("  - {{name: tcp-{port}, port: {port}, targetPort: {target}}}\n"))
            .collect();
        let yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {namespace}\n  name: {name}\n\
             spec:\n  clusterIPs: [{}]\n  selector: {{app: {name}}}\n  ports:\n{ports}",
            ips.join(", ")
        );
        self.put(&format!("service-{namespace}-{name}"), &yaml)
    }

    /// Puts an `AuthorizationPolicy` with this `spec`, indented by two.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_policy(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        self.put_own("AuthorizationPolicy", namespace, name, spec)
    }

    /// Puts a `PeerPolicy` of `mode` for a whole namespace.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_peer_mode(&self, namespace: &str, mode: &str) -> Result<()> {
        self.put_own("PeerPolicy", namespace, "peers", &format!("  mode: {mode}\n"))
    }

    /// Writes a `PeerPolicy`; `spec` is its YAML, indented by two.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_peer_policy(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        self.put_own("PeerPolicy", namespace, name, spec)
    }

    fn put_own(&self, kind: &str, namespace: &str, name: &str, spec: &str) -> Result<()> {
        let yaml = format!(
            "apiVersion: mesh-agent.io/v1alpha1\nkind: {kind}\n\
             metadata:\n  namespace: {namespace}\n  name: {name}\nspec:\n{spec}"
        );
        self.put(&format!("{}-{namespace}-{name}", kind.to_ascii_lowercase()), &yaml)
    }
}

/// Kind, namespace and name of each object of `yaml`.
fn keys(yaml: &str) -> Result<Vec<(String, String, String)>> {
    let mut keys = Vec::new();
    for document in serde_norway::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document)?;
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        if !object.is_null() {
            keys.push((text("/kind"), text("/metadata/namespace"), text("/metadata/name")));
        }
    }
    Ok(keys)
}

impl PodObject {
    /// The file it is put in.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("pod-{}-{}", self.namespace, self.name)
    }

    /// `namespace/name`.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// As YAML.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {}\n  name: {}\n  uid: {}\n",
            self.namespace, self.name, self.uid
        );
        for (field, map) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
            let _ = writeln!(yaml, "  {field}: {{{}}}", pairs.join(", "));
        }
        let ports: Vec<String> = self.ports.iter().map(|port| format!("{{containerPort: {port}}}")).collect();
        let ips: Vec<String> = self.ips.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
        let ready = if self.ready { "True" } else { "False" };
        let _ = write!(
            yaml,
            "spec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n  - {{name: app, ports: [{}]}}\n\
             status:\n  phase: Running\n  podIPs: [{}]\n  conditions:\n  - {{type: Ready, status: \"{ready}\"}}\n",
            self.node,
            self.service_account,
            ports.join(", "),
            ips.join(", "),
        );
        yaml
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_written_as_a_cluster_would_have_it() {
        let pod = PodObject {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u1".into(),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            node: "node-a".into(),
            service_account: "web".into(),
            ips: vec!["10.0.0.1".parse().expect("an address")],
            ports: vec![80, 443],
            ready: true,
            ..PodObject::default()
        };
        let expected = "\
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: web
  uid: u1
  labels: {app: \"web\"}
  annotations: {}
spec:
  nodeName: node-a
  serviceAccountName: web
  containers:
  - {name: app, ports: [{containerPort: 80}, {containerPort: 443}]}
status:
  phase: Running
  podIPs: [{ip: \"10.0.0.1\"}]
  conditions:
  - {type: Ready, status: \"True\"}
";
        assert_eq!(pod.yaml(), expected);
    }
}
