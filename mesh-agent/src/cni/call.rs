//! One call of the plugin, read: environment and network configuration. Pure.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::error::{CniError, Code, NEWEST, VERSIONS};
use crate::config::CniEnvironment;

/// Pods of this namespace are never enrolled at ADD: the cluster's own parts must start without the mesh.
const ALWAYS_EXEMPT: &str = "kube-system";
/// How long ADD may wait, in seconds.
const DEADLINE_SECONDS: std::ops::RangeInclusive<u64> = 1..=120;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Delete,
    Check,
    Status,
    Version,
    CollectGarbage,
}

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) operation: Operation,
    /// What it speaks; the answer is in it.
    pub(super) version: String,
    pub(super) conf: Conf,
    /// None: whose network this is, is no pod.
    pub(super) pod: Option<PodOf>,
    pub(super) container: String,
    pub(super) netns: PathBuf,
}

/// The pod, of `CNI_ARGS`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PodOf {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Runtimes of before 2021 do not tell it.
    pub(super) uid: Option<String>,
}

impl PodOf {
    pub(super) fn is_static(&self) -> bool {
        self.uid.as_deref().is_some_and(is_static)
    }
}

/// Whether this is the uid of a static pod: the kubelet's own hash of its manifest (MD5, in hexadecimal), which the API
/// server does not know. Of all other pods it is the API server's, an RFC 9562 UUID.
#[must_use]
pub fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The plugin's entry in the network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Conf {
    #[serde(default)]
    cni_version: Option<String>,
    /// The agent's state directory.
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    #[serde(default = "default_deadline")]
    deadline_seconds: u64,
    #[serde(default)]
    exempt_namespaces: Vec<String>,
    /// How the API server is asked while the agent is away.
    #[serde(default)]
    pub(super) kubeconfig: Option<PathBuf>,
    #[serde(default)]
    pub(super) prev_result: Option<Value>,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/mesh-agent".into()
}

fn default_deadline() -> u64 {
    30
}

impl Conf {
    pub(super) fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds)
    }

    pub(super) fn is_exempt(&self, namespace: &str) -> bool {
        namespace == ALWAYS_EXEMPT || self.exempt_namespaces.iter().any(|exempt| exempt == namespace)
    }

    /// The addresses that the plugins before this one gave the sandbox.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let bad = |what: &str| {
            CniError::new(
                Code::InvalidConfiguration,
                "prevResult",
                format!("`{what}` is not an address like 10.0.0.2/24"),
            )
        };
        let ips = self.prev_result.as_ref().and_then(|result| result.get("ips")).and_then(Value::as_array);
        let read = |ip: &Value| {
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let address = text.split_once('/').map_or(text, |(address, _)| address);
            address.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| bad(text))
        };
        ips.into_iter().flatten().map(read).collect()
    }
}

impl Call {
    /// Reads a call.
    pub(super) fn read(environment: &CniEnvironment, stdin: &[u8]) -> Result<Self, CniError> {
        let operation = operation(&environment.command)?;
        let conf: Conf = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(Code::Undecodable, "the network configuration on stdin", error.to_string())
        })?;
        let version = conf.cni_version.clone().unwrap_or_else(|| NEWEST.to_owned());
        if operation != Operation::Version && !VERSIONS.contains(&&*version) {
            let details = format!("cniVersion {version} is not among {}", VERSIONS.join(", "));
            return Err(CniError::new(Code::IncompatibleVersion, "incompatible CNI version", details));
        }
        if !DEADLINE_SECONDS.contains(&conf.deadline_seconds) {
            let details = format!("{} is not within 1 to 120", conf.deadline_seconds);
            return Err(CniError::new(Code::InvalidConfiguration, "deadlineSeconds", details));
        }
        let needs = |name: &str, value: &str| match value.is_empty() {
            true => Err(CniError::new(Code::InvalidEnvironment, name, "missing; a container runtime sets it")),
            false => Ok(()),
        };
        if matches!(operation, Operation::Add | Operation::Check | Operation::Delete) {
            needs("CNI_CONTAINERID", &environment.container)?;
            needs("CNI_IFNAME", &environment.interface)?;
        }
        if matches!(operation, Operation::Add | Operation::Check) {
            needs("CNI_NETNS", &environment.netns)?;
            if conf.prev_result.is_none() {
                let details =
                    "there is no prevResult: mesh-agent makes no interface, it comes after a plugin that does";
                return Err(CniError::new(Code::InvalidConfiguration, "not the first of a chain", details));
            }
        }
        let pod = pod_of(&environment.args);
        let (container, netns) = (environment.container.clone(), environment.netns.clone().into());
        Ok(Self { operation, version, conf, pod, container, netns })
    }
}

fn operation(command: &str) -> Result<Operation, CniError> {
    Ok(match command {
        "ADD" => Operation::Add,
        "DEL" => Operation::Delete,
        "CHECK" => Operation::Check,
        "STATUS" => Operation::Status,
        "VERSION" => Operation::Version,
        "GC" => Operation::CollectGarbage,
        other => {
            let details = format!("`{other}` is not one of ADD, DEL, CHECK, STATUS, VERSION, GC");
            return Err(CniError::new(Code::InvalidEnvironment, "CNI_COMMAND", details));
        }
    })
}

/// `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…`, among others.
fn pod_of(args: &str) -> Option<PodOf> {
    let value = |key: &str| {
        let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).find(|value| !value.is_empty())
    };
    let (namespace, name) = (value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?);
    Some(PodOf { namespace, name, uid: value("K8S_POD_UID") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(command: &str) -> CniEnvironment {
        CniEnvironment {
            command: command.to_owned(),
            container: "box".to_owned(),
            netns: "/run/netns/x".to_owned(),
            interface: "eth0".to_owned(),
            args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1".to_owned(),
        }
    }

    const CHAINED: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"mesh-agent","prevResult":{"cniVersion":"1.0.0",
        "ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"address":"fd00::2/64"}]}}"#;

    #[test]
    fn a_call_is_read_with_its_pod_and_its_addresses() {
        let call = Call::read(&environment("ADD"), CHAINED.as_bytes()).unwrap();
        let pod = PodOf { namespace: "shop".into(), name: "web".into(), uid: Some("u1".into()) };
        assert_eq!((call.operation, &*call.version, call.pod), (Operation::Add, "1.0.0", Some(pod)));
        let addresses: Vec<String> = call.conf.addresses().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.2", "fd00::2"]);
        assert_eq!(
            (call.conf.deadline(), call.conf.state_dir),
            (Duration::from_secs(30), "/var/lib/mesh-agent".into())
        );
    }

    #[test]
    fn mistakes_have_the_codes_of_the_specification() {
        let with = |change: fn(&mut CniEnvironment)| {
            let mut environment = environment("ADD");
            change(&mut environment);
            environment
        };
        let conf = |from: &str, to: &str| CHAINED.replace(from, to);
        for (environment, conf, code, part) in [
            (environment("add"), CHAINED.to_owned(), 4, "CNI_COMMAND"),
            (with(|e| e.container.clear()), CHAINED.to_owned(), 4, "CNI_CONTAINERID"),
            (with(|e| e.netns.clear()), CHAINED.to_owned(), 4, "CNI_NETNS"),
            (with(|e| e.interface.clear()), CHAINED.to_owned(), 4, "CNI_IFNAME"),
            (environment("ADD"), "{".to_owned(), 6, "stdin"),
            (environment("ADD"), conf("\"1.0.0\",\"name\"", "\"0.1.0\",\"name\""), 1, "0.1.0"),
            (environment("ADD"), conf("prevResult", "other"), 7, "prevResult"),
            (environment("ADD"), conf("\"name\"", "\"deadlineSeconds\":0,\"name\""), 7, "deadlineSeconds"),
        ] {
            let error = Call::read(&environment, conf.as_bytes()).unwrap_err();
            assert_eq!(error.code as u32, code, "{error}");
            let json = error.to_json("1.0.0");
            assert!(json["msg"].as_str().unwrap().contains(part), "{json}");
        }
        let broken = Call::read(&environment("ADD"), conf("10.0.0.2/24", "ten").as_bytes()).unwrap();
        assert_eq!(broken.conf.addresses().unwrap_err().code, Code::InvalidConfiguration);
    }

    #[test]
    fn the_end_of_a_sandbox_needs_neither_netns_nor_result() {
        let mut environment = environment("DEL");
        environment.netns.clear();
        assert!(Call::read(&environment, br#"{"cniVersion":"1.0.0"}"#).is_ok());
    }

    #[test]
    fn exempt_are_kube_system_and_the_list() {
        let conf: Conf = serde_json::from_str(r#"{"exemptNamespaces":["mesh-agent-system"]}"#).unwrap();
        let exempt = ["kube-system", "mesh-agent-system", "shop", ""].map(|namespace| conf.is_exempt(namespace));
        assert_eq!(exempt, [true, true, false, false]);
    }

    #[test]
    fn static_pods_are_known_by_the_kubelets_uid() {
        for (uid, expected) in [
            ("7a2a0fe5c3b2e6ef64d76a3a7a4b8a1e", true),
            ("2b1c6f0e-1111-4222-8333-444455556666", false),
            ("7A2A0FE5C3B2E6EF64D76A3A7A4B8A1E", false),
            ("7a2a0fe5", false),
            ("", false),
        ] {
            assert_eq!(is_static(uid), expected, "{uid}");
        }
    }

    #[test]
    fn whose_network_is_no_pods_has_no_pod() {
        assert_eq!(pod_of("IgnoreUnknown=1"), None);
        assert_eq!(pod_of("K8S_POD_NAMESPACE=a"), None);
        assert_eq!(pod_of("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b").and_then(|pod| pod.uid), None);
    }
}
