//! How the API server is reached: a kubeconfig, or the pod's service account.

use kube::config::{KubeConfigOptions, Kubeconfig};

use super::ApiAccess;
use crate::control::ControlError;

/// A client that has not spoken yet.
pub(super) async fn client(access: &ApiAccess) -> Result<kube::Client, ControlError> {
    let refused = |reason: String| ControlError::ApiAccess(reason);
    let config = config(access).await.map_err(refused)?;
    kube::Client::try_from(config).map_err(|error| ControlError::ApiAccess(describe(&error)))
}

/// As [`client`], for an operator: without a file and a context it looks where kubectl looks.
pub(super) async fn operators_client(access: &ApiAccess) -> Result<kube::Client, String> {
    let config = match access {
        ApiAccess { kubeconfig: None, context: None } => kube::Config::infer().await.map_err(|error| {
            let way_out = "give --kubeconfig FILE, or KUBECONFIG, as for kubectl";
            format!("no API server is known: {}; {way_out}", describe(&error))
        })?,
        given => config(given).await?,
    };
    kube::Client::try_from(config).map_err(|error| describe(&error))
}

async fn config(access: &ApiAccess) -> Result<kube::Config, String> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let from_file = match (&access.kubeconfig, &access.context) {
        (Some(path), _) => Kubeconfig::read_from(path),
        (None, Some(_)) => Kubeconfig::read(),
        (None, None) => {
            return kube::Config::incluster().map_err(|error| {
                format!(
                    "no API server is known: {}. In a cluster the agent's pod needs its service account's token; \
                     elsewhere give --kubeconfig FILE (or KUBECONFIG), or --source dir:PATH for a directory",
                    describe(&error)
                )
            });
        }
    };
    let file = from_file.map_err(|error| format!("kubeconfig: {}", describe(&error)))?;
    kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(|error| format!("kubeconfig: {}; `kubectl config get-contexts` lists them", describe(&error)))
}

/// An error with what caused it, each said once.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return format!("{} ({})", status.message, status.code);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
