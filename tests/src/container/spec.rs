//! What a container runtime makes of a pod template: the configuration of one container for runc (runtime-spec 1.0.2).
//!
//! Follows containerd's CRI plugin where Kubernetes leaves the choice to the runtime: masked paths, mounts that every
//! container has, a cgroup namespace of its own. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::image::ImageConfig;

/// What of a container its pod template does not say.
#[derive(Debug)]
pub struct Place<'a> {
    /// What the image says.
    pub image: &'a ImageConfig,
    /// Its root file system.
    pub root: &'a Path,
    /// The pod's network namespace.
    pub netns: &'a Path,
    /// Values of the downward API, by field path.
    pub fields: BTreeMap<&'static str, String>,
    /// Where each volume is on this machine, by name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// What the kubelet mounts besides, at which place: files and folders, read-only.
    pub more: Vec<(PathBuf, &'static str)>,
    /// What the kubelet sets besides.
    pub env: Vec<(String, String)>,
    /// Path of its cgroup, by which no other has one.
    pub cgroup: String,
    /// Whether it gets a cgroup namespace of its own: by containerd's rule, where there is cgroup v2 alone.
    pub cgroup_namespace: bool,
}

/// The configuration of the one container of `pod`, a pod's spec.
///
/// # Errors
/// For what is asked for and not known here: nothing is left out in silence.
pub fn of(pod: &Value, place: &Place<'_>) -> Result<Value> {
    let container = &pod["containers"][0];
    ensure!(pod["containers"].as_array().is_some_and(|all| all.len() == 1), "one container is expected");
    ensure!(pod["initContainers"].is_null() && container["command"].is_null(), "neither is expected");
    let security = &container["securityContext"];
    ensure!(security["privileged"].is_null(), "privileged");
    let env = environment(container, place)?;
    let capabilities = capabilities(&security["capabilities"])?;
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "uts"}),
        json!({"type": "ipc"}),
        json!({"type": "network", "path": place.netns}),
    ];
    if place.cgroup_namespace {
        namespaces.push(json!({"type": "cgroup"}));
    }
    if pod["hostPID"] != true {
        namespaces.push(json!({"type": "pid"}));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": place.root, "readonly": security["readOnlyRootFilesystem"] == true},
        "hostname": "container",
        "process": {
            "cwd": "/",
            "user": user(pod, security, &place.image.user)?,
            "args": arguments(container, place, &env)?,
            "env": env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            // Kubernetes' default is to allow it.
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
        },
        "mounts": mounts(container, place)?,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": place.cgroup,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

/// The container's own wins over the pod's, and that over the image's.
fn user(pod: &Value, security: &Value, image: &str) -> Result<Value> {
    let (uid, gid) = image.split_once(':').context("the image's user is uid:gid")?;
    let asked = |field: &str, image: &str| -> Result<u64> {
        let asked = security[field].as_u64().or_else(|| pod["securityContext"][field].as_u64());
        asked.map_or_else(|| image.parse().context("a number"), Ok)
    };
    let uid = asked("runAsUser", uid)?;
    // A user that is given without its group has the root group (Kubernetes), never the image's.
    let gid = if security["runAsUser"].is_u64() { "0" } else { gid };
    let gid = asked("runAsGroup", gid)?;
    ensure!(pod["securityContext"]["runAsNonRoot"] != true || uid != 0, "runAsNonRoot, and the user is root");
    let more: Vec<u64> = pod["securityContext"]["fsGroup"].as_u64().into_iter().collect();
    Ok(json!({"uid": uid, "gid": gid, "additionalGids": more}))
}

fn capabilities(wanted: &Value) -> Result<Vec<String>> {
    ensure!(wanted["drop"] == json!(["ALL"]), "the runtime's default capabilities are not known here: drop ALL");
    let added = wanted["add"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(added.map(|name| format!("CAP_{name}")).collect())
}

fn environment(container: &Value, place: &Place<'_>) -> Result<Vec<(String, String)>> {
    let image = place.image.env.iter().filter_map(|line| line.split_once('='));
    let mut all: Vec<(String, String)> = image.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    all.extend(place.env.iter().cloned());
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable without a name")?;
        let value = match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
            (Some(value), None) => value.to_owned(),
            (None, Some(field)) => place.fields.get(field).with_context(|| format!("what is {field}?"))?.clone(),
            _ => bail!("the variable {name} comes from nowhere: {variable}"),
        };
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

/// `$(NAME)` is replaced, as the kubelet does it.
fn arguments(container: &Value, place: &Place<'_>, env: &[(String, String)]) -> Result<Vec<String>> {
    let mut all = place.image.entrypoint.clone();
    for argument in container["args"].as_array().into_iter().flatten() {
        let mut argument = argument.as_str().context("an argument is a text")?.to_owned();
        for (name, value) in env {
            argument = argument.replace(&format!("$({name})"), value);
        }
        ensure!(!argument.contains("$("), "a variable that is not set: {argument}");
        all.push(argument);
    }
    Ok(all)
}

fn mounts(container: &Value, place: &Place<'_>) -> Result<Vec<Value>> {
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for (source, at) in &place.more {
        all.push(bind(source, at, true, "rprivate"));
    }
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let name = mount["name"].as_str().context("a mount without a volume")?;
        let source = place.volumes.get(name).with_context(|| format!("there is no volume {name}"))?;
        ensure!(mount["subPath"].is_null(), "subPath of {name}");
        let propagation = match mount["mountPropagation"].as_str() {
            None | Some("None") => "rprivate",
            Some("HostToContainer") => "rslave",
            Some(other) => bail!("mountPropagation {other}"),
        };
        let at = mount["mountPath"].as_str().context("a mount without a path")?;
        all.push(bind(source, at, mount["readOnly"] == true, propagation));
    }
    Ok(all)
}

fn bind(source: &Path, at: &str, read_only: bool, propagation: &str) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({"destination": at, "type": "bind", "source": source, "options": ["rbind", propagation, access]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployed;

    #[test]
    fn what_the_daemon_set_says_is_what_runc_is_told() {
        let daemon_set = deployed::object("DaemonSet", "mesh-agent").expect("it is there");
        let pod = &daemon_set["spec"]["template"]["spec"];
        let names = pod["volumes"].as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str());
        let image = ImageConfig { entrypoint: vec!["/e".into()], env: vec!["PATH=/p".into()], user: "1:2".into() };
        let mut place = Place {
            image: &image,
            root: Path::new("/root"),
            netns: Path::new("/netns"),
            fields: [("spec.nodeName", "n".to_owned()), ("metadata.namespace", "ns".to_owned())].into(),
            volumes: names.map(|name| (name.to_owned(), Path::new("/v").join(name))).collect(),
            more: Vec::new(),
            env: Vec::new(),
            cgroup: "/c".to_owned(),
            cgroup_namespace: true,
        };
        let config = of(pod, &place).expect("it is understood");
        let process = &config["process"];
        let four = json!(["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]);
        assert_eq!((&process["capabilities"]["bounding"], &process["capabilities"]["effective"]), (&four, &four));
        assert_eq!((&process["user"]["uid"], &process["noNewPrivileges"]), (&json!(0), &json!(true)));
        assert_eq!(config["root"]["readonly"], true);
        let args = process["args"].as_array().expect("arguments");
        assert!(args.starts_with(&[json!("/e"), json!("run")]));
        assert!(args.contains(&json!("--cni-exempt-namespaces=ns")), "{args:?}");
        assert!(process["env"].as_array().expect("env").contains(&json!("NODE_NAME=n")));
        let netns = json!({"destination": "/run/netns", "type": "bind", "source": "/v/netns",
            "options": ["rbind", "rslave", "ro"]});
        assert!(config["mounts"].as_array().expect("mounts").contains(&netns));
        let kinds = config["linux"]["namespaces"].to_string();
        assert!(!kinds.contains("pid") && kinds.contains("/netns"), "{kinds}");

        // What is not known is refused, not left out.
        place.volumes.remove("netns");
        assert!(of(pod, &place).expect_err("a volume is missing").to_string().contains("netns"));
    }
}
