//! Clusters that are in order, and with one thing amiss at a time.

use base64::Engine;
use serde_json::json;

use super::super::Verdict;
use super::*;
use crate::admin::status::{IdentityStatus, PodStatus};
use crate::control;
use crate::identity::testing::TestCa;

fn pod(name: &str, stage: &str, reason: &str) -> PodStatus {
    let (pod, stage, reason) = (name.to_owned(), stage.to_owned(), reason.to_owned());
    PodStatus { pod, stage, reason, identity: String::new(), mode: String::new(), policies: Vec::new() }
}

fn crd_there(wanted: &Value) -> Value {
    let mut found = wanted.clone();
    found["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
    found
}

fn deployment_of(available: u64) -> Read<Option<Value>> {
    Ok(Some(json!({
        "metadata": {"generation": 2}, "spec": {"replicas": 2},
        "status": {"observedGeneration": 2, "availableReplicas": available},
    })))
}

fn agents_of(desired: u64, ready: u64, updated: u64) -> Read<Option<Value>> {
    Ok(Some(json!({
        "metadata": {"generation": 1},
        "spec": {"template": {"spec": {"containers": [{"args": ["run", "--ca=grpc://mesh-agent-ca.x.svc:15012"]}]}}},
        "status": {"observedGeneration": 1, "desiredNumberScheduled": desired, "numberReady": ready,
                   "updatedNumberScheduled": updated},
    })))
}

fn map_of(pem: &str) -> Option<(String, Read<Option<Value>>)> {
    Some(("roots".to_owned(), Ok(Some(json!({"data": {"root-cert.pem": pem}})))))
}

fn root_pem() -> (String, i64) {
    let ca = TestCa::new("cluster.local");
    let bundle = ca.bundle();
    let der = base64::engine::general_purpose::STANDARD.encode(bundle.roots().next().unwrap());
    let ends = bundle.not_after().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
    (pem, i64::try_from(ends).unwrap())
}

/// A cluster of two nodes in order, whose root ends in a year.
fn well() -> Installed {
    let (pem, ends) = root_pem();
    let a = Status { pods: vec![pod("shop/a", "captured", ""), pod("shop/h", "outside", "x")], ..Status::default() };
    let b = Status { pods: vec![pod("shop/b", "captured", "")], ..Status::default() };
    Installed {
        namespace: "mesh".into(),
        version: "v1.36.0".into(),
        crds: control::crds().into_iter().map(|crd| (crd.clone(), Ok(Some(crd_there(&crd))))).collect(),
        gateway_api: Ok(Some(json!({"versions": [{"version": "v1"}]}))),
        agents: agents_of(2, 2, 2),
        authority: deployment_of(2),
        controller: deployment_of(2),
        roots: map_of(&pem),
        nodes: Ok(vec![("node-a".into(), Ok(a)), ("node-b".into(), Ok(b))]),
        now: ends - 365 * 86_400,
    }
}

/// With `change` there is exactly one thing to complain about.
#[track_caller]
fn check(change: impl FnOnce(&mut Installed), name: &str, verdict: Verdict, words: &str) {
    let mut cluster = well();
    change(&mut cluster);
    let found: Vec<Finding> = all(&cluster).into_iter().filter(|finding| finding.verdict != Verdict::Ok).collect();
    let [only] = found.as_slice() else { panic!("{name}: {found:#?}") };
    assert_eq!((only.name, only.verdict), (name, verdict), "{only:?}");
    let text = format!("{}; {}", only.found, only.remedy);
    assert!(text.contains(words), "`{words}` is not in `{text}`");
    assert!(!only.remedy.is_empty() && !only.purpose.is_empty(), "{only:?}");
}

#[test]
fn a_cluster_in_order_has_nothing_amiss_and_says_what_was_looked_at() {
    let findings = all(&well());
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:#?}");
    let found: Vec<&str> = findings.iter().map(|finding| finding.found.as_str()).collect();
    assert!(found.contains(&"2 of 2 ready, 2 of the newest version"), "{found:?}");
    assert!(found.contains(&"2 of 2 captured") && found.contains(&"2 agents answer"), "{found:?}");
}

#[test]
fn definitions_must_be_there_served_and_of_this_version() {
    let first = |change: fn(&mut Value)| {
        move |cluster: &mut Installed| change(cluster.crds[0].1.as_mut().unwrap().as_mut().unwrap())
    };
    check(|cluster| cluster.crds[0].1 = Ok(None), "crds", Verdict::Fail, "is not there; kubectl apply");
    let unserved = first(|crd| crd["spec"]["versions"][0]["served"] = json!(false));
    check(unserved, "crds", Verdict::Fail, "not served as v1alpha1");
    let refused = first(|crd| crd["status"]["conditions"][0]["status"] = json!("False"));
    check(refused, "crds", Verdict::Fail, "not established");
    let older = first(|crd| crd["spec"]["versions"][0]["schema"] = json!({}));
    check(older, "crds", Verdict::Warn, "another version");
    check(|cluster| cluster.gateway_api = Ok(None), "gateway-api", Verdict::Warn, "not served");
}

#[test]
fn a_rollout_that_is_not_over_is_told_from_one_that_fails() {
    check(|cluster| cluster.agents = agents_of(2, 1, 2), "agents", Verdict::Fail, "1 of 2 ready");
    check(|cluster| cluster.agents = agents_of(2, 2, 1), "agents", Verdict::Warn, "rolling out");
    check(|cluster| cluster.agents = agents_of(0, 0, 0), "agents", Verdict::Fail, "no node");
    check(|cluster| cluster.agents = Ok(None), "agents", Verdict::Fail, "namespace mesh has no DaemonSet");
    check(|cluster| cluster.authority = deployment_of(0), "authority", Verdict::Fail, "0 of 2 available");
    check(|cluster| cluster.authority = deployment_of(1), "authority", Verdict::Warn, "1 of 2 available");
    check(|cluster| cluster.controller = Ok(None), "controller", Verdict::Warn, "no Deployment mesh-agent-controller");
    // Another authority is another's to look after.
    let mut cluster = well();
    let args = cluster.agents.as_mut().unwrap().as_mut().unwrap();
    args["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["--ca=grpc://istiod.istio-system.svc:15012"]);
    (cluster.authority, cluster.roots) = (Ok(None), None);
    assert!(all(&cluster).iter().all(|finding| finding.verdict == Verdict::Ok), "{cluster:?}");
}

#[test]
fn roots_must_be_published_and_last() {
    let (pem, ends) = root_pem();
    check(|cluster| cluster.roots = Some(("r".into(), Ok(None))), "roots", Verdict::Fail, "--publish-roots");
    check(|cluster| cluster.roots = map_of("nonsense"), "roots", Verdict::Fail, "root-cert.pem of ConfigMap roots");
    let lasts = |left: i64| {
        let pem = pem.clone();
        move |cluster: &mut Installed| (cluster.roots, cluster.now) = (map_of(&pem), ends - left)
    };
    check(lasts(-1), "roots", Verdict::Fail, "ago");
    check(lasts(29 * 86_400), "roots", Verdict::Warn, "29 d 0 h; rotate now");
}

#[test]
fn what_agents_say_of_their_nodes_is_told_by_node() {
    let on_b = |change: fn(&mut Status)| {
        move |cluster: &mut Installed| change(cluster.nodes.as_mut().unwrap()[1].1.as_mut().unwrap())
    };
    let failed = on_b(|said| said.pods.push(pod("shop/c", "failed", "no netns")));
    check(failed, "pods", Verdict::Fail, "2 of 3 captured; not shop/c on node-b (no netns)");
    let coming = on_b(|said| said.pods.push(pod("shop/c", "joining", "")));
    check(coming, "pods", Verdict::Warn, "not shop/c on node-b (joining)");
    let expired = on_b(|said| {
        said.identities.push(IdentityStatus {
            identity: "spiffe://x".into(),
            state: "expired".into(),
            not_after: 1,
            error: "refused: no_pod".into(),
        });
    });
    check(expired, "certificates", Verdict::Fail, "spiffe://x on node-b: expired refused: no_pod");
    let lacks = on_b(|said| said.problems = (0..7).map(|n| format!("may not list {n}")).collect());
    check(lacks, "objects", Verdict::Warn, "may not list 4; and 2 more");
    let gone = |cluster: &mut Installed| {
        cluster.nodes.as_mut().unwrap().push(("node-c".into(), Err("node node-c has no agent".into())));
    };
    check(gone, "nodes", Verdict::Fail, "node-c has no agent");
}

#[test]
fn what_may_not_be_read_is_not_called_missing() {
    let refused = || Err("forbidden. Needed: get deployments".to_owned());
    check(|cluster| cluster.authority = refused(), "authority", Verdict::Warn, "Needed: get deployments");
    check(|cluster| cluster.nodes = Err("Needed: list pods".into()), "nodes", Verdict::Warn, "Needed: list pods");
}
