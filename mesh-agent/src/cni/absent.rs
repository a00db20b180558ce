//! Who decides while the agent is away: the API server, else the file of namespace modes; else nobody, and no container
//! starts.

use std::time::Duration;

use tokio::time::timeout;

use super::call::{Conf, PodOf};
use super::error::{CniError, Code};
use super::{modes, plugin};
use crate::control::{ApiAccess, Asked, asked_by_labels};

/// How long the API server may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Lets a pod pass that is surely not opted in. `away` says how it is known that there is no agent.
pub(super) async fn decide(conf: &Conf, pod: &PodOf, away: &str) -> Result<(), CniError> {
    let by_file = || modes::is_enabled(&conf.state_dir, &pod.namespace);
    let (is_enabled, source) = match ask(conf, pod).await {
        Ok(Asked::Enabled) => (true, "the API server".to_owned()),
        Ok(Asked::NotEnabled) => (false, "the API server".to_owned()),
        Err(no_api) => match by_file() {
            Ok(is_enabled) => (is_enabled, modes::MODES_NAME.to_owned()),
            Err(no_file) => {
                let details = format!(
                    "the agent of this node is away ({away}), and whether the pod is to be in the mesh is not known: \
                     {no_api}; {no_file}. Start the agent, or name the namespace in exemptNamespaces"
                );
                return Err(CniError::new(Code::TryAgainLater, plugin::title(pod), details));
            }
        },
    };
    if !is_enabled {
        return Ok(());
    }
    let details = format!(
        "it is opted in ({source}), and the agent of this node is away ({away}): it must run to capture the pod before \
         its containers start; look at the mesh-agent pod of this node"
    );
    Err(CniError::new(Code::TryAgainLater, plugin::title(pod), details))
}

async fn ask(conf: &Conf, pod: &PodOf) -> Result<Asked, String> {
    let Some(kubeconfig) = conf.kubeconfig.clone() else {
        return Err("no kubeconfig is configured".to_owned());
    };
    let access = ApiAccess { kubeconfig: Some(kubeconfig), context: None };
    // A static pod is there before the object that mirrors it: its namespace decides.
    let name = (!pod.is_static()).then_some(&*pod.name);
    let asked = timeout(ANSWERS_WITHIN, asked_by_labels(&access, &pod.namespace, name)).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWERS_WITHIN.as_secs())));
    asked.map_err(|reason| format!("the API server does not say: {reason}"))
}
