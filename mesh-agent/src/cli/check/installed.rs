//! Whether the mesh of a cluster is in order. Pure.

use serde_json::Value;

use super::cluster::{Installed, Read};
use super::{Finding, bad, ok, warn};
use crate::admin::status::{Status, is_expected};
use crate::cli::table::expiry;
use crate::identity::TrustBundle;

/// The key of the roots' ConfigMap.
const ROOTS_KEY: &str = "root-cert.pem";
/// A root that ends earlier should have a successor by now: every node has to learn of it before.
const ROOT_ENDS_SOON: i64 = 30 * 86_400;
/// More of anything than these are counted, not named.
const NAMED: usize = 5;

/// Everything, in the order in which a person would mend it.
pub(super) fn all(installed: &Installed) -> Vec<Finding> {
    let mut findings = vec![ok("api-server", format!("answers, {}", installed.version), "everything below")];
    findings.extend(installed.crds.iter().map(|(wanted, found)| crd(wanted, found)));
    findings.push(gateway_api(&installed.gateway_api));
    findings.push(agents(installed));
    findings.push(authority(installed));
    findings.extend(installed.roots.iter().map(|(name, found)| roots(name, found, installed.now)));
    findings.push(controller(installed));
    match &installed.nodes {
        Ok(nodes) => findings.extend(of_nodes(nodes)),
        Err(reason) => findings.push(unknown("nodes", reason, "what the agents say of their nodes")),
    }
    findings
}

/// What could not be read is not known to be missing: the right to read it may be.
fn unknown(name: &'static str, reason: &str, purpose: &'static str) -> Finding {
    warn(name, format!("could not be found out: {reason}"), purpose, "check with the rights of docs/install.md")
}

fn crd(wanted: &Value, found: &Read<Option<Value>>) -> Finding {
    let purpose = "policies, and what nodes say of their pods";
    let apply = "kubectl apply -k deploy/kustomize/crds, of this version";
    let name = text(wanted, "/metadata/name");
    let found = match found {
        Ok(Some(found)) => found,
        Ok(None) => return bad("crds", format!("{name} is not there"), purpose, apply),
        Err(reason) => return unknown("crds", reason, purpose),
    };
    let version = text(wanted, "/spec/versions/0/name");
    let versions = found.pointer("/spec/versions").and_then(Value::as_array);
    let served = versions.into_iter().flatten().find(|one| is_served(one, version));
    let Some(served) = served else {
        return bad("crds", format!("{name} is not served as {version}"), purpose, apply);
    };
    if condition(found, "Established") != Some("True") {
        let look = format!("look at its conditions: kubectl get crd {name} -o yaml");
        return bad("crds", format!("{name} is not established"), purpose, look);
    }
    if served.get("schema") != wanted.pointer("/spec/versions/0/schema") {
        let found = format!("{name} is of another version: fields that it does not know are dropped silently");
        return warn("crds", found, purpose, apply);
    }
    ok("crds", format!("{name}, {version}"), purpose)
}

fn is_served(of_crd: &Value, version: &str) -> bool {
    text(of_crd, "/name") == version && of_crd.get("served").and_then(Value::as_bool) == Some(true)
}

fn gateway_api(found: &Read<Option<Value>>) -> Finding {
    let purpose = "HTTPRoutes, GRPCRoutes and the other routes";
    match found {
        Ok(Some(group)) => {
            let versions = group.get("versions").and_then(Value::as_array).into_iter().flatten();
            let versions: Vec<&str> = versions.map(|one| text(one, "/version")).collect();
            ok("gateway-api", format!("served as {}", versions.join(", ")), purpose)
        }
        Ok(None) => warn("gateway-api", "not served", purpose, "install the Gateway API's CRDs if routes are wanted"),
        Err(reason) => unknown("gateway-api", reason, purpose),
    }
}

fn agents(installed: &Installed) -> Finding {
    let purpose = "one agent on every node";
    let Installed { namespace, .. } = installed;
    let look = format!("kubectl -n {namespace} describe daemonset mesh-agent, and the events and logs of its pods");
    let set = match &installed.agents {
        Ok(Some(set)) => set,
        Ok(None) => {
            let found = format!("namespace {namespace} has no DaemonSet mesh-agent");
            return bad("agents", found, purpose, "kubectl apply -k deploy/kustomize, or name another by --namespace");
        }
        Err(reason) => return unknown("agents", reason, purpose),
    };
    let of = |field: &str| number(set, &format!("/status/{field}"));
    let (desired, ready, updated) = (of("desiredNumberScheduled"), of("numberReady"), of("updatedNumberScheduled"));
    let found = format!("{ready} of {desired} ready, {updated} of the newest version");
    match () {
        () if desired == 0 => bad("agents", "no node is to have one", purpose, look),
        () if ready < desired => bad("agents", found, purpose, look),
        () if updated < desired || !is_observed(set) => warn("agents", format!("{found}: rolling out"), purpose, look),
        () => ok("agents", found, purpose),
    }
}

fn authority(installed: &Installed) -> Finding {
    let purpose = "certificates: those that are there stay valid without it, no new pod gets one";
    let args = installed.agents.as_ref().ok().and_then(Option::as_ref);
    let args = args.and_then(|set| set.pointer("/spec/template/spec/containers/0/args")?.as_array());
    let ca = args.into_iter().flatten().filter_map(Value::as_str).find_map(|arg| arg.strip_prefix("--ca="));
    if let Some(other) = ca.filter(|ca| !ca.contains("://mesh-agent-ca.")) {
        return ok("authority", format!("{other}, which is not of this installation"), purpose);
    }
    deployment("authority", "mesh-agent-ca", &installed.authority, installed, purpose)
}

fn controller(installed: &Installed) -> Finding {
    let purpose = "the statuses of routes and policies; traffic does not need it";
    let finding = deployment("controller", "mesh-agent-controller", &installed.controller, installed, purpose);
    // Whatever is wrong with it, nothing stands still.
    if finding.verdict == super::Verdict::Fail {
        return warn("controller", finding.found, purpose, finding.remedy);
    }
    finding
}

fn deployment(
    name: &'static str,
    object: &str,
    found: &Read<Option<Value>>,
    installed: &Installed,
    purpose: &'static str,
) -> Finding {
    let Installed { namespace, .. } = installed;
    let look = format!("kubectl -n {namespace} describe deployment {object}, and the logs of its pods");
    let found = match found {
        Ok(Some(found)) => found,
        Ok(None) => {
            let found = format!("namespace {namespace} has no Deployment {object}");
            return bad(name, found, purpose, "kubectl apply -k deploy/kustomize");
        }
        Err(reason) => return unknown(name, reason, purpose),
    };
    let wanted = found.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let available = number(found, "/status/availableReplicas");
    let said = format!("{available} of {wanted} available");
    match () {
        () if available == 0 => bad(name, said, purpose, look),
        () if available < wanted || !is_observed(found) => warn(name, said, purpose, look),
        () => ok(name, said, purpose),
    }
}

fn roots(name: &str, found: &Read<Option<Value>>, now: i64) -> Finding {
    let purpose = "knowing the authority: an agent without them asks nobody for certificates";
    let map = match found {
        Ok(Some(map)) => map,
        Ok(None) => {
            let look = "the authority publishes it (--publish-roots): look at its log, and at its role";
            return bad("roots", format!("ConfigMap {name} is not there"), purpose, look);
        }
        Err(reason) => return unknown("roots", reason, purpose),
    };
    let pem = map.get("data").and_then(|data| data.get(ROOTS_KEY)).and_then(Value::as_str).unwrap_or_default();
    let bundle = match TrustBundle::from_pem(pem.as_bytes(), 0) {
        Ok(bundle) => bundle,
        Err(error) => {
            let found = format!("{ROOTS_KEY} of ConfigMap {name}: {error}");
            return bad("roots", found, purpose, "look at the authority's log: it writes the ConfigMap anew");
        }
    };
    let ends = bundle.not_after().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let ends = ends.and_then(|at| i64::try_from(at.as_secs()).ok()).unwrap_or_default();
    let said = format!("{} in ConfigMap {name}; the last ends {}", bundle.roots().count(), expiry(ends, now));
    match ends - now {
        left if left <= 0 => bad("roots", said, purpose, "put a new root into the authority's Secret"),
        left if left < ROOT_ENDS_SOON => warn(
            "roots",
            said,
            purpose,
            "rotate now, old and new side by side, so that every node learns of the new one",
        ),
        _ => ok("roots", said, purpose),
    }
}

/// What the agents say, those that are well in one finding each.
fn of_nodes(nodes: &[(String, Read<Status>)]) -> Vec<Finding> {
    let said: Vec<(&str, &Status)> =
        nodes.iter().filter_map(|(node, said)| Some((node.as_str(), said.as_ref().ok()?))).collect();
    let mut findings: Vec<Finding> =
        nodes.iter().filter_map(|(_, said)| said.as_ref().err()).map(|why| silent(why)).collect();
    if findings.is_empty() {
        findings.push(ok("nodes", format!("{} agents answer", said.len()), SILENT));
    }
    findings.push(pods(&said));
    findings.push(certificates(&said));
    findings.push(objects(&said));
    findings
}

const SILENT: &str = "what an agent says of its node";

fn silent(reason: &str) -> Finding {
    let look = "kubectl get pods -A -l app.kubernetes.io/name=mesh-agent -o wide, and the log of that node's";
    bad("nodes", reason, SILENT, look)
}

fn pods(said: &[(&str, &Status)]) -> Finding {
    let purpose = "traffic of opted-in pods in the mesh";
    let all = said.iter().flat_map(|(node, status)| status.pods.iter().map(move |pod| (*node, pod)));
    let expected: Vec<_> = all.filter(|(_, pod)| is_expected(&pod.stage)).collect();
    let (captured, others): (Vec<_>, Vec<_>) = expected.iter().partition(|(_, pod)| pod.stage == "captured");
    let count = format!("{} of {} captured", captured.len(), expected.len());
    if others.is_empty() {
        return ok("pods", count, purpose);
    }
    let named = some(others.iter().map(|(node, pod)| {
        let reason = if pod.reason.is_empty() { &pod.stage } else { &pod.reason };
        format!("{} on {node} ({reason})", pod.pod)
    }));
    let (found, look) = (format!("{count}; not {named}"), "mesh-agent pods --node NODE says why, of each");
    // One that has just come is on its way.
    let fails = others.iter().any(|(_, pod)| pod.stage == "failed");
    if fails { bad("pods", found, purpose, look) } else { warn("pods", found, purpose, look) }
}

fn certificates(said: &[(&str, &Status)]) -> Finding {
    let purpose = "proving who a pod is";
    let all = said.iter().flat_map(|(node, status)| status.identities.iter().map(move |one| (*node, one)));
    let (valid, others): (Vec<_>, Vec<_>) = all.partition(|(_, one)| one.state == "valid");
    if others.is_empty() {
        return ok("certificates", format!("{} valid", valid.len()), purpose);
    }
    let named =
        some(others.iter().map(|(node, one)| format!("{} on {node}: {} {}", one.identity, one.state, one.error)));
    let look = "the authority's log has a word for every refusal; mesh-agent status --node NODE for the rest";
    let found = format!("{} valid; not {named}", valid.len());
    let fails = others.iter().any(|(_, one)| !one.error.is_empty() || one.state == "expired");
    if fails { bad("certificates", found, purpose, look) } else { warn("certificates", found, purpose, look) }
}

/// Objects that are not followed, mistakes in them, and kinds that an agent may not read.
fn objects(said: &[(&str, &Status)]) -> Finding {
    let purpose = "policies and routes as they were meant; rights that an agent lacks are among these";
    let mut problems: Vec<&str> = said.iter().flat_map(|(_, status)| &status.problems).map(String::as_str).collect();
    problems.sort_unstable();
    problems.dedup();
    if problems.is_empty() {
        return ok("objects", "no agent has anything to complain of", purpose);
    }
    let found = some(problems.iter().map(|problem| (*problem).to_owned()));
    warn("objects", found, purpose, "mesh-agent config problems --node NODE lists them, each with its object")
}

/// The first of them, and how many more.
fn some(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    let named = all.take(NAMED).collect::<Vec<_>>().join("; ");
    if more == 0 { named } else { format!("{named}; and {more} more") }
}

/// Whether its status is of what it asks for now.
fn is_observed(object: &Value) -> bool {
    number(object, "/status/observedGeneration") >= number(object, "/metadata/generation")
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|one| text(one, "/type") == kind).map(|one| text(one, "/status"))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn number(object: &Value, pointer: &str) -> u64 {
    object.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

#[cfg(test)]
#[path = "installed_tests.rs"]
mod tests;
