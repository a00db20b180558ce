//! `mesh-agent.io/protocols` on a Service: what its ports speak, for those whose names and `appProtocol` do not say it,
//! or say it for somebody else.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::decode::Mistake;
use super::service::ServiceSpecPort;
use crate::model::service::Protocol;

/// `80=http,50051=http2,9000=opaque`.
const PROTOCOLS: &str = "mesh-agent.io/protocols";

/// Puts what the annotation says in the place of the ports' `appProtocol`. A part with a mistake changes nothing.
pub(super) fn declare(metadata: &ObjectMeta, ports: &mut [ServiceSpecPort], mistakes: &mut Vec<Mistake>) {
    let text = metadata.annotations.as_ref().and_then(|all| all.get(PROTOCOLS)).map_or("", String::as_str);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if let Err(reason) = one(part, ports) {
            mistakes.push(Mistake::new(format!("metadata.annotations[{PROTOCOLS}]"), reason));
        }
    }
}

fn one(part: &str, ports: &mut [ServiceSpecPort]) -> Result<(), String> {
    let (port, protocol) =
        part.split_once('=').ok_or_else(|| format!("`{part}` is not of the form PORT=PROTOCOL, such as 80=http"))?;
    let (port, protocol) = (port.trim(), protocol.trim());
    let declared = ports.iter_mut().find(|at| at.protocol == Protocol::Tcp && at.port.to_string() == port);
    let declared = declared.ok_or_else(|| format!("`{port}` is no TCP port of this Service (spec.ports[].port)"))?;
    // In the words of `appProtocol`: one reader for both.
    let word = match protocol {
        "http" => "http",
        "http2" => "kubernetes.io/h2c",
        "opaque" => "tcp",
        other => return Err(format!("`{other}` is none of http, http2, opaque")),
    };
    declared.app_protocol = Some(Arc::from(word));
    Ok(())
}
