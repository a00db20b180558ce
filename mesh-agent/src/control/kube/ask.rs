//! One question about one pod, for whoever keeps no state: is it opted in?

use kube::Client;
use kube::core::Request;
use kube::core::params::GetParams;
use serde_json::Value;

use super::connect::{client, describe};
use super::watch::path;
use super::{ApiAccess, Kind};
use crate::control::object::MODE_LABEL;

/// Who asks has shown no token, or one that is not valid any more.
const UNAUTHORIZED: u16 = 401;

/// What the labels of a pod and its namespace ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The namespace or the pod is labelled `enabled`. Whether a pod that is labelled `disabled` may leave an opted-in
    /// namespace is for policies to say: it counts as opted in.
    Enabled,
    /// Neither is.
    NotEnabled,
}

/// Reads the labels of a namespace and, if it is to be there, of a pod in it at the API server.
///
/// # Errors
/// When it cannot be asked or does not answer, in a sentence. There is no deadline: that is the caller's.
pub async fn asked_by_labels(access: &ApiAccess, namespace: &str, pod: Option<&str>) -> Result<Asked, String> {
    let client = client(access).await.map_err(|error| error.to_string())?;
    let namespaces = path(Kind::Namespace, "v1");
    let pods = format!("{namespaces}/{namespace}/pods");
    let of_pod = async {
        match pod {
            Some(pod) => is_enabled(&client, &pods, pod).await,
            None => Ok(false),
        }
    };
    let (of_namespace, of_pod) = tokio::join!(is_enabled(&client, &namespaces, namespace), of_pod);
    Ok(if of_namespace? || of_pod? { Asked::Enabled } else { Asked::NotEnabled })
}

async fn is_enabled(client: &Client, path: &str, name: &str) -> Result<bool, String> {
    let request = Request::new(path).get(name, &GetParams::default()).map_err(|error| error.to_string())?;
    let object: Value = client.request(request).await.map_err(|error| refusal(&error))?;
    let label = object.pointer("/metadata/labels").and_then(|labels| labels.get(MODE_LABEL));
    Ok(label.and_then(Value::as_str) == Some("enabled"))
}

/// The plugin has a copy of the token of the agent's pod.
fn refusal(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == UNAUTHORIZED => format!(
            "it does not take the token ({}, {UNAUTHORIZED}), which is that of the agent's pod and ends with it",
            status.message
        ),
        other => describe(other),
    }
}
