//! What `deploy/` installs, read from its own files: tests take roles, arguments and mounts from there, so that none of
//! it is written down twice.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// `deploy/` of this repository.
#[must_use]
pub fn folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("deploy")
}

/// The objects of one file or folder below `deploy/kustomize`, namespaces first, then in the order of the files' names.
///
/// # Errors
/// When there is none, or one is no YAML.
pub fn objects(of: &str) -> Result<Vec<Value>> {
    let path = folder().join("kustomize").join(of);
    let mut files = vec![path.clone()];
    if path.is_dir() {
        files = fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
    }
    let mut objects = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("kustomization.yaml")) {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        objects.extend(documents(&text).with_context(|| file.display().to_string())?);
    }
    // Nothing is put into a namespace that is not there.
    objects.sort_by_key(|object| object["kind"] != "Namespace");
    Ok(objects)
}

/// The objects of a YAML text of several documents.
///
/// # Errors
/// When it is none.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        let object = Value::deserialize(document)?;
        if !object.is_null() {
            documents.push(object);
        }
    }
    Ok(documents)
}

/// The one object of this kind and name in `deploy/kustomize/base`.
///
/// # Errors
/// When there is none.
pub fn object(kind: &str, name: &str) -> Result<Value> {
    let mut all = objects("base")?.into_iter();
    let found = all.find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.with_context(|| format!("deploy/kustomize/base has no {kind} {name}"))
}

/// Name and tag of the image, as `deploy/kustomize` gives them to every container.
///
/// # Errors
/// When they are not where they should be.
pub fn image() -> Result<String> {
    let text = fs::read_to_string(folder().join("kustomize/base/kustomization.yaml"))?;
    let renamed = documents(&text)?.into_iter().next().context("an empty kustomization")?;
    let one = &renamed["images"][0];
    let name = one["newName"].as_str().or(one["name"].as_str()).context("the kustomization names no image")?;
    let tag = one["newTag"].as_str().context("the kustomization has no tag")?;
    Ok(format!("{name}:{tag}"))
}

/// One permission of a role: what taking it away takes away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// Its place among the role's rules.
    pub rule: usize,
    /// API group.
    pub group: String,
    /// `pods`, `httproutes/status`
    pub resource: String,
    /// `list`, `patch`, …
    pub verb: String,
}

/// Each permission of `role`.
#[must_use]
pub fn permissions(role: &Value) -> Vec<Permission> {
    let mut all = Vec::new();
    for (place, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        let texts = |field: &str| -> Vec<String> {
            let list = rule[field].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        for group in texts("apiGroups") {
            for resource in texts("resources") {
                for verb in texts("verbs") {
                    all.push(Permission { rule: place, group: group.clone(), resource: resource.clone(), verb });
                }
            }
        }
    }
    all
}

/// `role` without one permission. Its rule becomes one for each resource.
#[must_use]
pub fn without(role: &Value, permission: &Permission) -> Value {
    let mut role = role.clone();
    let Some(rules) = role["rules"].as_array_mut().filter(|rules| permission.rule < rules.len()) else { return role };
    let rule = rules.remove(permission.rule);
    for resource in rule["resources"].as_array().into_iter().flatten() {
        let mut one = rule.clone();
        one["resources"] = Value::Array(vec![resource.clone()]);
        if *resource == *permission.resource
            && let Some(verbs) = one["verbs"].as_array_mut()
        {
            verbs.retain(|verb| *verb != *permission.verb);
        }
        rules.push(one);
    }
    role
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_permission_is_taken_and_the_others_stay() {
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["list", "watch"]},
            {"apiGroups": ["x"], "resources": ["pods"], "verbs": ["list"]},
        ]});
        let all = permissions(&role);
        assert_eq!(all.len(), 5);
        for permission in &all {
            let rest = permissions(&without(&role, permission));
            let is = |other: &Permission| {
                let same = |p: &Permission| (p.group.clone(), p.resource.clone(), p.verb.clone());
                same(other) == same(permission)
            };
            assert!(rest.len() == 4 && !rest.iter().any(is), "{permission:?}: {rest:?}");
        }
    }

    #[test]
    fn every_container_is_of_the_one_image_of_this_version() {
        assert_eq!(image().expect("it has one"), format!("mesh-agent:v{}", env!("CARGO_PKG_VERSION")));
        let base = objects("base").expect("it is there");
        let pods = base.iter().map(|object| &object["spec"]["template"]["spec"]["containers"]);
        let containers: Vec<&Value> = pods.flat_map(|list| list.as_array().into_iter().flatten()).collect();
        assert_eq!(containers.len(), 3);
        for container in containers {
            // kustomize puts the tag behind this name; what runs is the image's entrypoint.
            assert!(container["image"] == "mesh-agent" && container["command"].is_null(), "{container}");
        }
    }

    #[test]
    fn what_is_deployed_is_read() {
        let daemon_set = object("DaemonSet", "mesh-agent").expect("it is there");
        assert_eq!(daemon_set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"], 1);
        assert_eq!(objects("crds").expect("they are there").len(), 4);
    }
}
