//! `/openapi/v3`, as far as kubectl reads it before it writes: which kinds there are, that the server checks fields
//! itself (`fieldValidation`), and the schemas of CRDs. Kinds that are built in are named without their fields: clients
//! know those.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

use super::kind::Kind;

/// How an object may be patched. Strategic merge is not among them: see [`super::rest`].
const PATCHES: [&str; 3] =
    ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];

/// The document at `path`; none when there is none.
#[must_use]
pub fn document(path: &str, kinds: &[Kind]) -> Option<Value> {
    let at = path.strip_prefix("/openapi/v3")?.trim_matches('/');
    if at.is_empty() {
        let mut paths = Map::new();
        for kind in kinds {
            let at = root(kind);
            if !paths.contains_key(&at) {
                let url = format!("/openapi/v3/{at}?hash={:X}", hash(&of_version(&at, kinds)));
                paths.insert(at, json!({"serverRelativeURL": url}));
            }
        }
        return Some(json!({"paths": paths}));
    }
    kinds.iter().any(|kind| root(kind) == at).then(|| of_version(at, kinds))
}

fn of_version(at: &str, kinds: &[Kind]) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for kind in kinds.iter().filter(|kind| root(kind) == at) {
        let namespace = if kind.namespaced { "namespaces/{namespace}/" } else { "" };
        paths.insert(format!("/{at}/{namespace}{}/{{name}}", kind.plural), json!({"patch": patch(kind)}));
        let mut schema = kind.schema.as_deref().cloned().unwrap_or_else(|| json!({"type": "object"}));
        schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
        schemas.insert(name(kind), schema);
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn patch(kind: &Kind) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let body: Map<String, Value> =
        PATCHES.map(|media| (media.to_owned(), json!({"schema": {"type": "object"}}))).into_iter().collect();
    let parameters = ["dryRun", "fieldManager", "fieldValidation", "force"].map(parameter);
    let reference = format!("#/components/schemas/{}", name(kind));
    json!({
        "operationId": format!("patch{}{}", kind.version, kind.kind), "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": gvk(kind),
        "parameters": parameters,
        "requestBody": {"required": true, "content": body},
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": reference}}}}},
    })
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// `io.mesh-agent.v1alpha1.PeerPolicy`
fn name(kind: &Kind) -> String {
    let group: Vec<&str> = if kind.group.is_empty() { vec!["core"] } else { kind.group.rsplit('.').collect() };
    format!("{}.{}.{}", group.join("."), kind.version, kind.kind)
}

/// `api/v1` or `apis/group/version`
fn root(kind: &Kind) -> String {
    if kind.group.is_empty() { format!("api/{}", kind.version) } else { format!("apis/{}", kind.api_version()) }
}

/// By which clients keep a document.
fn hash(document: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    document.to_string().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_api::kind::{built_in, mesh_crds, of_crd};

    #[test]
    fn each_version_has_its_document_under_an_address_that_changes_with_it() {
        let mut kinds = built_in();
        let index = document("/openapi/v3", &kinds).expect("an index");
        assert!(index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("url").contains("?hash="), "{index}");
        assert!(index["paths"].get("apis/mesh-agent.io/v1alpha1").is_none());
        let core = document("/openapi/v3/api/v1", &kinds).expect("core");
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(patch["parameters"].as_array().expect("some").iter().any(|one| one["name"] == "fieldValidation"));
        kinds.extend(mesh_crds().iter().flat_map(|crd| of_crd(crd).expect("kinds")));
        let own = document("/openapi/v3/apis/mesh-agent.io/v1alpha1", &kinds).expect("ours");
        assert!(own["components"]["schemas"].get("io.mesh-agent.v1alpha1.PeerPolicy").is_some(), "{own}");
        assert_eq!(document("/openapi/v2", &kinds), None);
        assert_eq!(document("/openapi/v3/apis/nobody/v1", &kinds), None);
    }
}
