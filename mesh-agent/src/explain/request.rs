//! The request that a question may carry, and what policies say of it at the servers.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;

use super::RequestQuestion;
use super::report::Path;
use super::resolve::Found;
use crate::model::identity::PeerIdentity;
use crate::policy::{Flow, RequestFacts, Requests, audited, authorize_request, requests};
use crate::snapshot::Snapshot;

/// The request's head as a client would send it.
pub(super) fn head(request: &RequestQuestion, host: &str) -> Result<Parts, String> {
    let RequestQuestion { method, path, headers } = request;
    if !path.starts_with('/') {
        return Err(format!("`{path}` is not a path that begins with /"));
    }
    let built = Request::builder().method(method.as_str()).uri(path.as_str()).body(());
    let (mut parts, ()) = built.map_err(|error| format!("{method} {path}: {error}"))?.into_parts();
    for (name, value) in headers {
        let wrong = || format!("`{name}: {value}` is not a header");
        let name: HeaderName = name.parse().map_err(|_| wrong())?;
        parts.headers.append(name, HeaderValue::from_str(value).map_err(|_| wrong())?);
    }
    if let (false, Ok(host)) = (parts.headers.contains_key(HOST), HeaderValue::from_str(host)) {
        parts.headers.insert(HOST, host);
    }
    Ok(parts)
}

/// Adds to each path what the policies of its pod say of the request. They decide at the server's node, whatever
/// lane the client's node chooses; a peer is proven on the native and the tunnel lane.
pub(super) fn judge(snapshot: &Snapshot, found: &Found, head: &Parts, paths: &mut [Path]) {
    let facts = RequestFacts::of(head);
    for path in paths {
        let Ok(to) = path.endpoint.parse::<SocketAddr>() else { continue };
        let Some(pod) = snapshot.behind(to.ip(), None).filter(|pod| pod.captured.is_some()) else { continue };
        if requests(snapshot, &pod.uid, to.port()) == Requests::Ignored {
            continue;
        }
        let own = found.source.as_ref().filter(|_| matches!(&*path.lane, "native" | "tunnel"));
        let address = found.source.as_ref().and_then(|source| source.ips.first().copied());
        let flow = Flow {
            destination: Arc::clone(&pod.uid),
            port: to.port(),
            peer: own.map_or(PeerIdentity::Unknown, |source| PeerIdentity::Verified(source.identity.clone())),
            source_ip: found.source_ip.or(address).unwrap_or(to.ip()),
        };
        let verdict = match authorize_request(&flow, &facts, snapshot) {
            Ok(permit) => permit.rule().map_or("permitted".to_owned(), |rule| format!("permitted by {rule}")),
            Err(denial) => format!("denied by {}: {}", denial.rule, denial.reason),
        };
        let audits = audited(snapshot, &flow, Some(&facts));
        let audits = if audits.is_empty() { String::new() } else { format!("; audited by {}", audits.join(", ")) };
        path.request = Some(format!("{verdict}{audits}"));
    }
}
