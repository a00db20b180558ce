//! One question about one pod, for whoever keeps no state: is it opted in?

use kube::Client;
use kube::core::Request;
use kube::core::params::GetParams;
use serde_json::Value;

use super::connect::{client, describe};
use super::watch::path;
use super::{ApiAccess, Kind};
use crate::control::object::MODE_LABEL;

/// What the labels of a pod and its namespace ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The namespace or the pod is labelled `enabled`. Whether a pod that is labelled `disabled` may leave an opted-in
    /// namespace is for policies to say: it counts as opted in.
    Enabled,
    /// Neither is.
    NotEnabled,
}

/// Reads the labels of a pod and its namespace at the API server.
///
/// # Errors
/// When it cannot be asked or does not answer, in a sentence. There is no deadline: that is the caller's.
pub async fn asked_by_labels(access: &ApiAccess, namespace: &str, pod: &str) -> Result<Asked, String> {
    let client = client(access).await.map_err(|error| error.to_string())?;
    let namespaces = path(Kind::Namespace, "v1");
    let pods = format!("{namespaces}/{namespace}/pods");
    let (of_namespace, of_pod) =
        tokio::join!(is_enabled(&client, &namespaces, namespace), is_enabled(&client, &pods, pod));
    Ok(if of_namespace? || of_pod? { Asked::Enabled } else { Asked::NotEnabled })
}

async fn is_enabled(client: &Client, path: &str, name: &str) -> Result<bool, String> {
    let request = Request::new(path).get(name, &GetParams::default()).map_err(|error| error.to_string())?;
    let object: Value = client.request(request).await.map_err(|error| describe(&error))?;
    let label = object.pointer("/metadata/labels").and_then(|labels| labels.get(MODE_LABEL));
    Ok(label.and_then(Value::as_str) == Some("enabled"))
}
