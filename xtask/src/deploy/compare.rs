//! What Helm makes of the chart against what kustomize makes of its folder, as objects: equal where both are given.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use mesh_tests::deployed::documents;
use serde_json::{Value, json};

use super::{CHART, KUSTOMIZE};
use crate::setup::{self, Tool};
use crate::shell;

/// A chart is installed into a namespace that is there, or that `--create-namespace` makes.
const OF_KUSTOMIZE_ALONE: [&str; 1] = ["Namespace"];
/// Overlays' components, with the values that switch them on in the chart.
const COMPONENTS: [(&str, &[&str]); 4] = [
    ("monitoring", &["podMonitor.enabled=true", "dashboard.enabled=true"]),
    ("network-policy", &["networkPolicy.enabled=true"]),
    ("cgroupfs", &["cgroup=/sys/fs/cgroup/kubepods"]),
    ("k3s", &["cni.confDir=/var/lib/rancher/k3s/agent/etc/cni/net.d", "cni.binDir=/var/lib/rancher/k3s/data/cni"]),
];

/// Objects by kind, namespace and name.
type Objects = BTreeMap<String, Value>;

/// Compares the two, plain and with each component.
///
/// # Errors
/// Names each object that differs, and where.
pub fn charts() -> Result<()> {
    setup::programs(&[setup::KUBECTL])?;
    let helm = Tool::HELM.ensure()?;
    let folder = shell::target_dir()?.join("deploy");
    let all = COMPONENTS.map(Some).into_iter().chain([None]);
    for component in all {
        let (name, values) = component.unwrap_or(("plain", &[]));
        let overlay = folder.join(name);
        fs::create_dir_all(&overlay)?;
        let root = pathdiff(&overlay)?;
        let mut text = format!("resources: [\"{root}/{KUSTOMIZE}\"]\n");
        if component.is_some() {
            text.push_str(&format!("components: [\"{root}/{KUSTOMIZE}/components/{name}\"]\n"));
        }
        fs::write(overlay.join("kustomization.yaml"), text)?;
        let rendered = shell::output(shell::command("kubectl").arg("kustomize").arg(&overlay))?;
        let mut template = shell::command(&helm);
        template.args(["template", "mesh-agent", CHART, "--include-crds", "--namespace", "mesh-agent-system"]);
        template.args(["--kube-version", "1.33.0"]);
        template.args(values.iter().flat_map(|value| ["--set", *value]));
        let templated = shell::output(&mut template)?;
        let differences = differences(&objects(&rendered)?, &objects(&templated)?);
        if !differences.is_empty() {
            bail!("{name}: kustomize and Helm differ\n  {}", differences.join("\n  "));
        }
    }
    Ok(())
}

/// The way up to the repository's root: kustomize takes no absolute paths.
fn pathdiff(from: &std::path::Path) -> Result<String> {
    let (from, root) = (from.canonicalize()?, shell::root().canonicalize()?);
    let ups = from.components().count() - 1;
    let root = root.to_str().context("the repository's path is no text")?;
    Ok(format!("{}{}", vec![".."; ups].join("/"), root))
}

fn objects(text: &str) -> Result<Objects> {
    let named = |object: Value| {
        let field = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or("-").to_owned();
        (format!("{} {}/{}", field("/kind"), field("/metadata/namespace"), field("/metadata/name")), object)
    };
    Ok(documents(text)?.into_iter().map(named).collect())
}

fn differences(ours: &Objects, theirs: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for (name, object) in ours {
        match theirs.get(name) {
            Some(other) => compare(object, other, name, &mut found),
            None if OF_KUSTOMIZE_ALONE.iter().any(|kind| name.starts_with(&format!("{kind} "))) => {}
            None => found.push(format!("{name}: not in the chart")),
        }
    }
    found.extend(
        theirs.keys().filter(|name| !ours.contains_key(*name)).map(|name| format!("{name}: only in the chart")),
    );
    found
}

fn compare(ours: &Value, theirs: &Value, at: &str, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let (a, b) = (a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null));
                compare(a, b, &format!("{at}.{name}"), found);
            }
        }
        // A patch may put them into another order, which has no meaning.
        (Value::Array(a), Value::Array(b)) if by_key(a).is_some() && by_key(b).is_some() => {
            compare(&json!(by_key(a)), &json!(by_key(b)), at, found);
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(place, (a, b))| compare(a, b, &format!("{at}[{place}]"), found));
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{at}: {a} and {b}")),
    }
}

/// The elements of a list of volumes, mounts, variables or ports, by what tells them apart.
fn by_key(list: &[Value]) -> Option<BTreeMap<&str, &Value>> {
    let key = |element: &'_ Value| ["mountPath", "name"].into_iter().find(|key| element.get(key).is_some());
    let key = key(list.first()?)?;
    let keyed: Option<BTreeMap<&str, &Value>> =
        list.iter().map(|element| Some((element.get(key)?.as_str()?, element))).collect();
    keyed.filter(|keyed| keyed.len() == list.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_with_their_place() {
        let of = |text: &str| objects(text).unwrap();
        let ours =
            of("kind: A\nmetadata: {name: x}\nspec: {n: 1, l: [a, b]}\n---\nkind: Namespace\nmetadata: {name: n}\n");
        assert_eq!(differences(&ours, &ours), [""; 0]);
        let theirs = of("kind: A\nmetadata: {name: x}\nspec: {n: 2, l: [a]}\n---\nkind: B\nmetadata: {name: x}\n");
        let (one, other) =
            (of("kind: A\nl: [{name: a}, {name: b, n: 1}]"), of("kind: A\nl: [{name: b, n: 2}, {name: a}]"));
        assert_eq!(differences(&one, &other), ["A -/-.l.b.n: 1 and 2"]);
        let expected = ["A -/x.spec.l: [\"a\",\"b\"] and [\"a\"]", "A -/x.spec.n: 1 and 2", "B -/x: only in the chart"];
        assert_eq!(differences(&ours, &theirs), expected);
    }
}
