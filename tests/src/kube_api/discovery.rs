//! What is served, as discovery tells it: `/version`, `/api`, `/apis` and the resources of each version.

use serde_json::{Value, json};

use super::kind::Kind;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The document at `path`; none when there is none.
#[must_use]
pub fn document(path: &str, kinds: &[Kind]) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["version"] => Some(version()),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1:6443"}],
        })),
        ["api", "v1"] => resources("", "v1", kinds),
        ["apis"] => {
            let groups: Vec<Value> =
                groups(kinds).iter().filter_map(|group| self::group(group, kinds, false)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] => self::group(group, kinds, true),
        ["apis", group, version] => resources(group, version, kinds),
        _ => None,
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-04-22T00:00:00Z", "goVersion": "go1.26", "compiler": "gc", "platform": "linux/amd64",
    })
}

/// Served here, though nothing of them is stored.
const REVIEWS: &str = "authentication.k8s.io";

fn groups(kinds: &[Kind]) -> Vec<String> {
    let mut groups = vec![REVIEWS.to_owned()];
    for kind in kinds.iter().filter(|kind| !kind.group.is_empty()) {
        if !groups.contains(&kind.group) {
            groups.push(kind.group.clone());
        }
    }
    groups
}

fn versions(group: &str, kinds: &[Kind]) -> Vec<String> {
    let mut versions: Vec<String> = if group == REVIEWS { vec!["v1".to_owned()] } else { Vec::new() };
    for kind in kinds.iter().filter(|kind| kind.group == group) {
        if !versions.contains(&kind.version) {
            versions.push(kind.version.clone());
        }
    }
    // Stable before beta before alpha.
    versions.sort_by_key(|version| (version.contains("alpha"), version.contains("beta")));
    versions
}

fn group(group: &str, kinds: &[Kind], alone: bool) -> Option<Value> {
    let versions = versions(group, kinds);
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let mut document = json!({"name": group, "preferredVersion": versions.first()?, "versions": versions});
    if alone {
        document["kind"] = json!("APIGroup");
        document["apiVersion"] = json!("v1");
    }
    Some(document)
}

fn resources(group: &str, version: &str, kinds: &[Kind]) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.group == group && kind.version == version) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": VERBS,
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        resources.push(resource);
        let mut sub = |name: &str, of: Value, verbs: &[&str]| {
            let mut resource = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": verbs,
            });
            super::patch::merge(&mut resource, &of);
            resources.push(resource);
        };
        if kind.status {
            sub("status", json!({}), &["get", "patch", "update"]);
        }
        if kind.is_core("ServiceAccount") {
            sub("token", json!({"group": REVIEWS, "version": "v1", "kind": "TokenRequest"}), &["create"]);
        }
    }
    if group == REVIEWS && version == "v1" {
        resources.push(json!({
            "name": "tokenreviews", "singularName": "tokenreview", "namespaced": false, "kind": "TokenReview",
            "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_api::kind::{built_in, mesh_crds, of_crd};

    #[test]
    fn groups_come_with_their_crds() {
        let mut kinds = built_in();
        assert_eq!(document("/apis/gateway.networking.k8s.io", &kinds), None);
        kinds.extend(mesh_crds().iter().flat_map(|crd| of_crd(crd).expect("kinds")));
        let group = document("/apis/gateway.networking.k8s.io", &kinds).expect("a group");
        assert_eq!(group["preferredVersion"]["groupVersion"], "gateway.networking.k8s.io/v1");
        assert_eq!(group["versions"].as_array().map(Vec::len), Some(2));
        let beta = document("/apis/gateway.networking.k8s.io/v1beta1", &kinds).expect("a version");
        let names: Vec<&Value> = beta["resources"].as_array().into_iter().flatten().map(|r| &r["name"]).collect();
        assert!(names.contains(&&json!("httproutes/status")) && !names.contains(&&json!("grpcroutes")), "{names:?}");
    }

    #[test]
    fn core_and_versions_are_told() {
        let core = document("/api/v1", &built_in()).expect("core");
        let token = core["resources"].as_array().into_iter().flatten().find(|r| r["name"] == "serviceaccounts/token");
        assert_eq!(token.expect("token")["group"], "authentication.k8s.io");
        assert_eq!(document("/version", &[]).expect("a version")["minor"], "36");
        assert_eq!(document("/api", &[]).expect("versions")["versions"], json!(["v1"]));
        assert_eq!(document("/openapi/v2", &[]), None);
    }
}
