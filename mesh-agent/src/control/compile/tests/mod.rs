//! Objects as YAML → parts: one table or test per field and per rule between objects.

mod egress;
mod routes;
mod services;
mod traffic;
mod workloads;

use super::*;
use crate::control::files::Files;
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::Workload;

/// The parts of `files`, each a name and its text.
fn compiled(files: &[(&str, &str)]) -> SnapshotParts {
    let mut all = Files::default();
    for (name, text) in files {
        all.apply(name, text.as_bytes());
    }
    compile(&all.objects(), &"node-a".into(), &"cluster.local".into())
}

fn one(text: &str) -> SnapshotParts {
    compiled(&[("all.yaml", text)])
}

fn workload<'a>(parts: &'a SnapshotParts, name: &str) -> &'a Workload {
    parts.workloads.iter().find(|workload| &*workload.name == name).unwrap_or_else(|| panic!("no {name}: {parts:?}"))
}

fn service<'a>(parts: &'a SnapshotParts, name: &str, port: u16) -> &'a ServicePort {
    let found = parts.services.iter().find(|service| &*service.name == name && service.port == port);
    found.unwrap_or_else(|| panic!("no {name}:{port}: {parts:?}"))
}

fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect()
}

#[track_caller]
fn check_problems(parts: &SnapshotParts, expected: &[&str]) {
    let got: Vec<String> = parts.problems.iter().map(ToString::to_string).collect();
    let matches = got.len() == expected.len() && expected.iter().all(|part| got.iter().any(|text| text.contains(part)));
    assert!(matches, "expected {expected:?}, got {got:#?}");
}

fn namespace(name: &str, label: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{label}}}}}\n")
}

/// A pod of `shop` on node-a; `extra` are further lines at the left edge or inside `metadata`.
fn pod(name: &str, ip: &str, metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}{metadata}}}\n\
         spec: {{nodeName: node-a{spec}}}\nstatus: {{podIP: {ip}{status}}}\n"
    )
}

fn peer_policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: mesh-agent.io/v1alpha1\nkind: PeerPolicy\nmetadata: {{name: {name}, namespace: \
        {namespace}}}\nspec: {spec}\n"
    )
}

const ENABLED: &str = "mesh-agent.io/mode: enabled";
