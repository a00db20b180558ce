//! Who may do what by the roles in the cluster (RBAC), when the test wants them enforced.
//!
//! Plain rules of a [`Cluster`]. Not here: groups but those of service accounts, aggregation, escalation checks.

use serde_json::Value;

use super::cluster::Cluster;

/// The group of the kinds of roles.
pub const RBAC: &str = "rbac.authorization.k8s.io";
const ADMIN: &str = "admin";

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// `list`, `patch`, …
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// `pods`, `httproutes/status`
    pub resource: &'a str,
    /// None for all namespaces, and for cluster-wide kinds.
    pub namespace: Option<&'a str>,
    /// None for the collection.
    pub name: Option<&'a str>,
}

/// Whether a role that is bound to `user` permits it.
#[must_use]
pub fn permit(cluster: &Cluster, user: &str, wish: &Wish<'_>) -> bool {
    user == ADMIN || bound(cluster, user, wish).any(|role| permits(role, wish))
}

/// The roles of `user` that count for `wish`.
fn bound<'a>(cluster: &'a Cluster, user: &'a str, wish: &Wish<'a>) -> impl Iterator<Item = &'a Value> {
    let (all, namespace) = ("clusterrolebindings", wish.namespace);
    let everywhere = objects(cluster, all).map(|(_, binding)| binding);
    let here = objects(cluster, "rolebindings").filter(move |(of, _)| Some(*of) == namespace);
    let bindings = everywhere.chain(here.map(|(_, binding)| binding));
    bindings
        .filter(move |binding| is_subject(user, binding))
        .filter_map(move |binding| {
            let (kind, name) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
            let (plural, namespace) =
                if kind == "Role" { ("roles", namespace.unwrap_or_default()) } else { ("clusterroles", "") };
            objects(cluster, plural).find(|(of, role)| *of == namespace && role["metadata"]["name"] == *name)
        })
        .map(|(_, role)| role)
}

fn objects<'a>(cluster: &'a Cluster, plural: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    cluster.store.all(&format!("{plural}.{RBAC}")).map(|((namespace, _), object)| (namespace.as_str(), &**object))
}

fn is_subject(user: &str, binding: &Value) -> bool {
    let mut subjects = binding["subjects"].as_array().into_iter().flatten();
    subjects.any(|subject| {
        let text = |field: &str| subject[field].as_str().unwrap_or_default();
        match text("kind") {
            "User" => text("name") == user,
            "ServiceAccount" => format!("system:serviceaccount:{}:{}", text("namespace"), text("name")) == user,
            _ => false,
        }
    })
}

fn permits(role: &Value, wish: &Wish<'_>) -> bool {
    let mut rules = role["rules"].as_array().into_iter().flatten();
    rules.any(|rule| {
        let has = |field: &str, wanted: &str| {
            let mut given = rule[field].as_array().into_iter().flatten();
            given.any(|one| one == wanted || one == "*")
        };
        let names = rule["resourceNames"].as_array();
        let named =
            names.is_none_or(|names| names.is_empty() || wish.name.is_some_and(|name| names.iter().any(|n| n == name)));
        has("verbs", wish.verb) && has("apiGroups", wish.group) && has("resources", wish.resource) && named
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube_api::time::now;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new();
        let version = format!("{RBAC}/v1");
        let account = json!([{"kind": "ServiceAccount", "namespace": "shop", "name": "web"}]);
        for (kind, namespace, name, body) in [
            ("ClusterRole", None, "reads", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])),
            (
                "Role",
                Some("shop"),
                "writes",
                json!([
                    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["get", "patch"]},
                    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]},
                ]),
            ),
        ] {
            let mut metadata = json!({"name": name});
            let mut binding = json!({"apiVersion": version, "kind": format!("{kind}Binding"),
                "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name}, "subjects": account});
            if let Some(namespace) = namespace {
                metadata["namespace"] = json!(namespace);
                let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                cluster.put(space, now()).expect("put");
            }
            binding["metadata"] = metadata.clone();
            let role = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "rules": body});
            cluster.put(role, now()).expect("put");
            cluster.put(binding, now()).expect("put");
        }
        cluster
    }

    #[test]
    fn a_role_permits_what_it_says_to_whom_it_is_bound_to() {
        let cluster = cluster();
        let check = |user: &str, (verb, resource): (&str, &str), namespace, name, expected: bool| {
            let wish = Wish { verb, group: "", resource, namespace, name };
            assert_eq!(permit(&cluster, user, &wish), expected, "{user} {wish:?}");
        };
        let web = "system:serviceaccount:shop:web";
        check(web, ("list", "pods"), None, None, true);
        check(web, ("list", "pods"), Some("other"), None, true);
        check(web, ("watch", "pods"), None, None, false);
        check(web, ("list", "pods/status"), None, None, false);
        check("system:serviceaccount:shop:other", ("list", "pods"), None, None, false);
        check(web, ("patch", "configmaps"), Some("shop"), Some("mine"), true);
        check(web, ("patch", "configmaps"), Some("shop"), Some("yours"), false);
        check(web, ("patch", "configmaps"), Some("shop"), None, false);
        check(web, ("create", "secrets"), Some("shop"), None, true);
        check(web, ("create", "secrets"), Some("other"), None, false);
        check(ADMIN, ("create", "secrets"), Some("other"), None, true);
    }
}
