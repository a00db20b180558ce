//! The kinds that the API server serves: those built in, and those that an installed CRD adds.
//!
//! Plain data; nothing here knows HTTP or holds an object.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::admission::ADMISSION;
use super::roles::RBAC;

/// The group of CustomResourceDefinitions.
pub const CRD_GROUP: &str = "apiextensions.k8s.io";

/// One kind in one version, as discovery shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// API group; empty for core.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// `kind`
    pub kind: String,
    /// The resource's name in paths.
    pub plural: String,
    /// Its name for one.
    pub singular: String,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// There is a status subresource.
    pub status: bool,
    /// It comes from a CRD: items of lists name their kind, updates need a resourceVersion.
    pub custom: bool,
    /// The server counts generations of the spec.
    pub generation: bool,
    /// Its CRD's openAPIV3Schema.
    pub schema: Option<Arc<Value>>,
    /// Names for kubectl.
    pub short_names: Vec<String>,
    /// What kubectl shows: its CRD's additionalPrinterColumns.
    pub columns: Vec<Value>,
}

impl Kind {
    /// `v1` or `group/version`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `httproutes.gateway.networking.k8s.io`: the same for all versions of a kind.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether it is this core kind.
    #[must_use]
    pub fn is_core(&self, kind: &str) -> bool {
        self.group.is_empty() && self.kind == kind
    }

    /// Whether it is the CustomResourceDefinition.
    #[must_use]
    pub fn is_crd(&self) -> bool {
        self.group == CRD_GROUP
    }

    fn built_in(group: &str, kind: &str, plural: &str, namespaced: bool, status: bool) -> Self {
        Self {
            group: group.to_owned(),
            version: "v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_ascii_lowercase(),
            namespaced,
            status,
            custom: false,
            generation: !group.is_empty() || kind == "Pod",
            schema: None,
            short_names: short_names(kind).iter().map(|&name| name.to_owned()).collect(),
            columns: Vec::new(),
        }
    }
}

fn short_names(kind: &str) -> &'static [&'static str] {
    match kind {
        "Namespace" => &["ns"],
        "Node" => &["no"],
        "Pod" => &["po"],
        "Service" => &["svc"],
        "ServiceAccount" => &["sa"],
        "ConfigMap" => &["cm"],
        "Event" => &["ev"],
        "CustomResourceDefinition" => &["crd", "crds"],
        _ => &[],
    }
}

/// The kinds of every cluster.
#[must_use]
pub fn built_in() -> Vec<Kind> {
    let core = |kind, plural, namespaced, status| Kind::built_in("", kind, plural, namespaced, status);
    vec![
        core("Namespace", "namespaces", false, true),
        core("Node", "nodes", false, true),
        core("Pod", "pods", true, true),
        core("Service", "services", true, true),
        core("ServiceAccount", "serviceaccounts", true, false),
        core("ConfigMap", "configmaps", true, false),
        core("Secret", "secrets", true, false),
        core("Event", "events", true, false),
        Kind::built_in("discovery.k8s.io", "EndpointSlice", "endpointslices", true, false),
        Kind::built_in("coordination.k8s.io", "Lease", "leases", true, false),
        Kind::built_in(RBAC, "ClusterRole", "clusterroles", false, false),
        Kind::built_in(RBAC, "ClusterRoleBinding", "clusterrolebindings", false, false),
        Kind::built_in(RBAC, "Role", "roles", true, false),
        Kind::built_in(RBAC, "RoleBinding", "rolebindings", true, false),
        Kind::built_in(ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", false, true),
        Kind::built_in(
            ADMISSION,
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            false,
            false,
        ),
        Kind::built_in("apps", "DaemonSet", "daemonsets", true, true),
        Kind::built_in("apps", "Deployment", "deployments", true, true),
        Kind::built_in("policy", "PodDisruptionBudget", "poddisruptionbudgets", true, true),
        Kind::built_in("networking.k8s.io", "NetworkPolicy", "networkpolicies", true, false),
        Kind::built_in(CRD_GROUP, "CustomResourceDefinition", "customresourcedefinitions", false, true),
    ]
}

/// The kinds that a CustomResourceDefinition adds: one for each version served.
///
/// # Errors
/// When a field that says so is missing.
pub fn of_crd(crd: &Value) -> Result<Vec<Kind>> {
    let text = |at: &str| -> Result<String> {
        let found = crd.pointer(at).and_then(Value::as_str);
        found.map(str::to_owned).with_context(|| format!("the CustomResourceDefinition has no {at}"))
    };
    let (group, kind, plural) = (text("/spec/group")?, text("/spec/names/kind")?, text("/spec/names/plural")?);
    let singular = text("/spec/names/singular").unwrap_or_else(|_| kind.to_ascii_lowercase());
    let namespaced = text("/spec/scope")? == "Namespaced";
    let short_names = strings(crd.pointer("/spec/names/shortNames"));
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array).context("/spec/versions is missing")?;
    let mut kinds = Vec::new();
    for version in versions.iter().filter(|version| version["served"] == true) {
        kinds.push(Kind {
            group: group.clone(),
            version: version["name"].as_str().context("a version has no name")?.to_owned(),
            kind: kind.clone(),
            plural: plural.clone(),
            singular: singular.clone(),
            namespaced,
            status: version.pointer("/subresources/status").is_some(),
            custom: true,
            generation: true,
            schema: version.pointer("/schema/openAPIV3Schema").cloned().map(Arc::new),
            short_names: short_names.clone(),
            columns: version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
        });
    }
    ensure!(!kinds.is_empty(), "no version of {plural}.{group} is served");
    Ok(kinds)
}

/// CustomResourceDefinitions without schemas for the kinds that the mesh reads: the versions served, storage first.
#[must_use]
pub fn mesh_crds() -> Vec<Value> {
    let gateway = "gateway.networking.k8s.io";
    let own = "mesh-agent.io";
    [
        (gateway, "GatewayClass", "gatewayclasses", false, true, vec!["v1", "v1beta1"]),
        (gateway, "Gateway", "gateways", true, true, vec!["v1", "v1beta1"]),
        (gateway, "HTTPRoute", "httproutes", true, true, vec!["v1", "v1beta1"]),
        (gateway, "GRPCRoute", "grpcroutes", true, true, vec!["v1"]),
        (gateway, "TLSRoute", "tlsroutes", true, true, vec!["v1"]),
        (gateway, "TCPRoute", "tcproutes", true, true, vec!["v1"]),
        (gateway, "ReferenceGrant", "referencegrants", true, false, vec!["v1beta1", "v1"]),
        (own, "AuthorizationPolicy", "authorizationpolicies", true, true, vec!["v1alpha1"]),
        (own, "PeerPolicy", "peerpolicies", true, true, vec!["v1alpha1"]),
        (own, "TrafficPolicy", "trafficpolicies", true, true, vec!["v1alpha1"]),
        (own, "CaptureState", "capturestates", false, true, vec!["v1alpha1"]),
    ]
    .into_iter()
    .map(|(group, kind, plural, namespaced, status, versions)| crd(group, kind, plural, namespaced, status, &versions))
    .collect()
}

fn crd(group: &str, kind: &str, plural: &str, namespaced: bool, status: bool, versions: &[&str]) -> Value {
    let subresources = if status { json!({"status": {}}) } else { json!({}) };
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(place, name)| {
            json!({"name": name, "served": true, "storage": place == 0, "subresources": subresources,
                   "schema": {"openAPIV3Schema": open}})
        })
        .collect();
    json!({
        "apiVersion": format!("{CRD_GROUP}/v1"),
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                      "singular": kind.to_ascii_lowercase()},
            "versions": versions,
        },
    })
}

fn strings(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crd_adds_a_kind_for_each_version_served() {
        let mut route = mesh_crds().swap_remove(2);
        let kinds = of_crd(&route).expect("kinds");
        let versions: Vec<String> = kinds.iter().map(Kind::api_version).collect();
        assert_eq!(versions, ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]);
        assert!(kinds.iter().all(|kind| kind.status && kind.namespaced && kind.custom));
        route["spec"]["versions"][1]["served"] = json!(false);
        assert_eq!(of_crd(&route).expect("kinds").len(), 1);
    }
}
