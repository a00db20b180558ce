//! Copies of requests (RequestMirror): sent beside the request, and nobody waits for their answers.

use std::rc::Rc;
use std::time::Duration;

use http::request::Parts;
use tokio::time::Instant;

use super::attempt::{Caller, Plan, Source, copy};
use super::body::Body;
use crate::model::route::ServiceRef;
use crate::model::traffic::RetryBudget;

/// How long an endpoint may take to answer a copy.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends copies of a request to `targets`. A body that is not known whole by now, or was too long to be kept, is not
/// copied: its request is left out.
pub(super) fn send(caller: &Rc<Caller>, targets: Vec<ServiceRef>, head: &Parts, source: &Source) {
    if targets.is_empty() {
        return;
    }
    let Some(content) = source.whole() else {
        return tracing::debug!(uri = %head.uri, "not mirrored: its body is longer than what is kept");
    };
    for service in targets {
        let (caller, head, content) = (Rc::clone(caller), copy(head), content.clone());
        tokio::task::spawn_local(async move {
            let h2 = head.version == http::Version::HTTP_2;
            let budget = RetryBudget::default();
            let plan = Plan { service, key: None, budget, forward: None, h2, arrived: Instant::now(), record: None };
            let mut source = Source::Once(Some(Body::full(content)));
            let exchange = caller.exchange(&plan, &head, &mut source);
            // Whatever comes of it: a copy has no client.
            let _ = tokio::time::timeout(PATIENCE, exchange).await;
        });
    }
}
