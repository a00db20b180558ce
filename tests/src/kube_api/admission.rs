//! ValidatingAdmissionPolicies, run: what a write must be beside being permitted, by conditions over the object and
//! over who asks.
//!
//! Of the real server's: resource rules, match conditions, validations with their messages, `failurePolicy`, bindings
//! that deny. Not here: parameters, variables, message expressions, selectors, audit; a policy that has them is refused
//! when it is put, so nobody takes it for tested.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::failure::Failure;
use super::kind::Kind;
use super::rules;

/// The API group of the policies.
pub const ADMISSION: &str = "admissionregistration.k8s.io";
/// Fields of a policy's spec and of a binding's that are understood.
const POLICY: [&str; 4] = ["failurePolicy", "matchConstraints", "matchConditions", "validations"];
const BINDING: [&str; 2] = ["policyName", "validationActions"];

/// Looks whether a policy or a binding says nothing that is not run here.
///
/// # Errors
/// Names the first such field.
pub fn understood(object: &Value) -> Result<()> {
    let known: &[&str] = match object["kind"].as_str() {
        Some("ValidatingAdmissionPolicy") => &POLICY,
        Some("ValidatingAdmissionPolicyBinding") => &BINDING,
        _ => return Ok(()),
    };
    let fields = object["spec"].as_object().into_iter().flatten().map(|(name, _)| name);
    for field in fields {
        if !known.contains(&field.as_str()) {
            bail!("the API server of the harness runs no {field} of a {}", object["kind"]);
        }
    }
    Ok(())
}

/// A write that is permitted, about to be kept.
#[derive(Debug)]
pub struct Write<'a> {
    /// Of which kind.
    pub kind: &'a Kind,
    /// `CREATE` or `UPDATE`
    pub operation: &'static str,
    /// The subresource that it goes through.
    pub subresource: Option<&'a str>,
    /// What would be kept.
    pub object: &'a Value,
    /// What is there.
    pub old: Option<&'a Value>,
    /// Who asks, as a TokenReview tells it.
    pub user: &'a Value,
}

/// Whether every policy that is bound lets the write pass.
///
/// # Errors
/// As the real server's.
pub fn validate(cluster: &Cluster, write: &Write<'_>) -> Result<(), Failure> {
    let all = |plural: &str| cluster.store.all(&format!("{plural}.{ADMISSION}")).map(|(_, object)| object);
    for binding in all("validatingadmissionpolicybindings") {
        let denies = binding["spec"]["validationActions"].as_array().is_some_and(|all| all.contains(&json!("Deny")));
        let named = all("validatingadmissionpolicies");
        let policy = named.into_iter().find(|policy| policy["metadata"]["name"] == binding["spec"]["policyName"]);
        let Some(policy) = policy.filter(|policy| denies && concerns(policy, write)) else { continue };
        if let Err((reason, why)) = judge(policy, write) {
            let (name, bound) = (&policy["metadata"]["name"], &binding["metadata"]["name"]);
            let plain = |name: &Value| name.as_str().unwrap_or_default().to_owned();
            let (resource, object) = (write.kind.resource(), plain(&write.object["metadata"]["name"]));
            let by = format!("ValidatingAdmissionPolicy '{}' with binding '{}'", plain(name), plain(bound));
            let message = format!("{resource} \"{object}\" is forbidden: {by} denied request: {why}");
            let code = if reason == "Forbidden" { 403 } else { 422 };
            return Err(Failure::new(code, reason, message).about(&resource, &object));
        }
    }
    Ok(())
}

fn concerns(policy: &Value, write: &Write<'_>) -> bool {
    let resource = match write.subresource {
        Some(subresource) => format!("{}/{subresource}", write.kind.plural),
        None => write.kind.plural.clone(),
    };
    let mut rules = policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten();
    rules.any(|rule| {
        let has = |field: &str, wanted: &str| {
            rule[field].as_array().into_iter().flatten().any(|given| given == wanted || given == "*")
        };
        has("apiGroups", &write.kind.group)
            && has("apiVersions", &write.kind.version)
            && has("operations", write.operation)
            && has("resources", &resource)
    })
}

/// Why not: the reason of the answer, and the words.
fn judge(policy: &Value, write: &Write<'_>) -> Result<(), (&'static str, String)> {
    let request = json!({"operation": write.operation, "userInfo": write.user,
        "name": write.object["metadata"]["name"], "namespace": write.object["metadata"]["namespace"]});
    let null = Value::Null;
    let variables = [("object", write.object), ("oldObject", write.old.unwrap_or(&null)), ("request", &request)];
    let ignored = policy["spec"]["failurePolicy"] == "Ignore";
    let run = |expression: &Value, otherwise: bool| {
        let text = expression.as_str().unwrap_or_default();
        match rules::holds(text, &variables) {
            Ok(holds) => Ok(holds),
            Err(_) if ignored => Ok(otherwise),
            Err(why) => Err(("Invalid", format!("expression '{text}' resulted in error: {why}"))),
        }
    };
    for condition in policy["spec"]["matchConditions"].as_array().into_iter().flatten() {
        if !run(&condition["expression"], false)? {
            return Ok(());
        }
    }
    for validation in policy["spec"]["validations"].as_array().into_iter().flatten() {
        if run(&validation["expression"], true)? {
            continue;
        }
        let text = validation["expression"].as_str().unwrap_or_default().trim();
        let message =
            validation["message"].as_str().map_or_else(|| format!("failed expression: {text}"), str::to_owned);
        let reason = if validation["reason"] == "Forbidden" { "Forbidden" } else { "Invalid" };
        return Err((reason, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployed;
    use crate::kube_api::kind::{mesh_crds, of_crd};
    use crate::kube_api::time::now;

    fn judged(policy: &Value, user: &Value, operation: &'static str) -> Result<(), String> {
        let mut cluster = Cluster::new();
        cluster.put(policy.clone(), now()).expect("it is understood");
        let binding = deployed::object("ValidatingAdmissionPolicyBinding", "mesh-agent-capturestates").expect("bound");
        cluster.put(binding, now()).expect("it is understood");
        let kind = mesh_crds().iter().flat_map(|crd| of_crd(crd).expect("kinds")).find(|k| k.kind == "CaptureState");
        let (kind, object) = (kind.expect("a kind"), json!({"metadata": {"name": "node-a"}}));
        let write = Write { kind: &kind, operation, subresource: None, object: &object, old: None, user };
        validate(&cluster, &write).map_err(|failure| format!("{} {}", failure.code, failure.message))
    }

    #[test]
    fn an_agent_is_bound_to_the_node_of_its_token() {
        let policy = deployed::object("ValidatingAdmissionPolicy", "mesh-agent-capturestates").expect("it is there");
        let account = "system:serviceaccount:mesh-agent-system:mesh-agent";
        let of = |name: &str, extra: Value| json!({"username": name, "extra": extra});
        let on = |node: &str| json!({"authentication.kubernetes.io/node-name": [node]});
        let refused = |user: &Value, operation| {
            let why = judged(&policy, user, operation).expect_err("it passes");
            assert!(why.starts_with("403 capturestates.mesh-agent.io \"node-a\" is forbidden: Validating"), "{why}");
            assert!(why.ends_with("the node that its token names, and no other"), "{why}");
        };
        assert_eq!(judged(&policy, &of(account, on("node-a")), "CREATE"), Ok(()));
        refused(&of(account, on("node-b")), "CREATE");
        refused(&of(account, on("node-b")), "UPDATE");
        refused(&of(account, json!({})), "UPDATE");
        // Operators, and what the policy is not about.
        assert_eq!(judged(&policy, &of("admin", json!({})), "UPDATE"), Ok(()));
        assert_eq!(judged(&policy, &of(account, on("node-b")), "DELETE"), Ok(()));
    }

    #[test]
    fn a_policy_that_does_not_run_refuses_unless_it_says_otherwise() {
        let mut policy =
            deployed::object("ValidatingAdmissionPolicy", "mesh-agent-capturestates").expect("it is there");
        policy["spec"]["validations"] = json!([{"expression": "object.missing == 1"}]);
        policy["spec"]["matchConditions"] = json!([]);
        let user = json!({"username": "admin", "extra": {}});
        assert!(judged(&policy, &user, "CREATE").expect_err("it passes").contains("resulted in error"));
        policy["spec"]["failurePolicy"] = json!("Ignore");
        assert_eq!(judged(&policy, &user, "CREATE"), Ok(()));
        policy["spec"]["variables"] = json!([]);
        assert!(understood(&policy).expect_err("it is understood").to_string().contains("variables"));
    }
}
