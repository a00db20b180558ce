//! Which node a caller in a cluster is: its service account token, judged by the API server, against the CA's own view
//! of the pods (decision 0011). What the caller says of itself decides nothing.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::super::clock::Clock;
use super::super::node::NodeName;
use super::claims;
use super::outcome::{CaOutcome, Rejection};
use crate::control::{ReviewedToken, Unreviewed};
use crate::model::workload::Enrolment;
use crate::snapshot::SnapshotStore;

/// Reviews under way at once: strangers must not make the CA a burden for the API server.
const REVIEWS: usize = 16;
/// How long a caller waits for one, the queue included; less than an agent waits for its certificate.
const REVIEW_DEADLINE: Duration = Duration::from_secs(8);

/// The future of [`TokenReviewer::review`].
pub type ReviewFuture<'a> = Pin<Box<dyn Future<Output = Result<ReviewedToken, Unreviewed>> + Send + 'a>>;

/// Who can say whose a token is.
pub trait TokenReviewer: Debug + Send + Sync + 'static {
    /// Whose `token` is, as one for `audience`.
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> ReviewFuture<'a>;
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::str::FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is not NAMESPACE/NAME")),
        }
    }
}

/// How agents of a cluster prove themselves.
#[derive(Debug)]
pub struct AgentLogin {
    reviewer: Arc<dyn TokenReviewer>,
    snapshots: Arc<SnapshotStore>,
    audience: String,
    agents: Account,
    clock: Arc<dyn Clock>,
    slots: Semaphore,
}

impl AgentLogin {
    /// Takes tokens for `audience` of the service account `agents`, of pods that `snapshots` knows.
    pub fn new(
        reviewer: Arc<dyn TokenReviewer>,
        snapshots: Arc<SnapshotStore>,
        audience: String,
        agents: Account,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { reviewer, snapshots, audience, agents, clock, slots: Semaphore::new(REVIEWS) }
    }

    /// The node whose agent shows `token`.
    pub(super) async fn node(&self, token: &str) -> Result<NodeName, Rejection> {
        let review = async {
            let _slot = self.slots.acquire().await;
            self.reviewer.review(token, &self.audience).await
        };
        match tokio::time::timeout(REVIEW_DEADLINE, review).await {
            Ok(Ok(reviewed)) => self.known(&reviewed),
            Ok(Err(Unreviewed::Refused(words))) => {
                let (outcome, why) = claims::why_refused(token, &self.audience, self.clock.now());
                Err(Rejection::new(outcome, format!("{why} (the API server: {})", words.trim())))
            }
            Ok(Err(Unreviewed::Away(reason))) => Err(Rejection::new(CaOutcome::ReviewFailed, reason)),
            Err(_) => {
                let reason = format!("no answer of the API server within {} s", REVIEW_DEADLINE.as_secs());
                Err(Rejection::new(CaOutcome::ReviewFailed, reason))
            }
        }
    }

    /// The node of the pod that a good token is bound to.
    fn known(&self, reviewed: &ReviewedToken) -> Result<NodeName, Rejection> {
        let ReviewedToken { user, audiences, pod, node } = reviewed;
        let Account { namespace, name } = &self.agents;
        if !audiences.contains(&self.audience) {
            let reason = format!("the API server does not say that the token is for the audience {}", self.audience);
            return Err(Rejection::new(CaOutcome::TokenAudience, reason));
        }
        if *user != format!("system:serviceaccount:{namespace}:{name}") {
            let reason = format!("{user} is not the agents' service account {namespace}/{name}");
            return Err(Rejection::new(CaOutcome::NotAnAgent, reason));
        }
        let Some((pod, uid)) = pod else {
            let reason = "the token is bound to no pod: use a projected service account token";
            return Err(Rejection::new(CaOutcome::TokenUnbound, reason));
        };
        let gone = |reason: String| Rejection::new(CaOutcome::AgentGone, reason);
        let snapshot = self.snapshots.load();
        let known = snapshot.workload(uid).filter(|known| {
            *known.namespace == **namespace
                && *known.name == **pod
                && known.identity.service_account() == name
                && !matches!(known.enrolment, Enrolment::Gone)
        });
        let known = known.ok_or_else(|| gone(format!("there is no pod {namespace}/{pod} with the uid {uid}")))?;
        if node.as_ref().is_some_and(|said| **said != *known.node) {
            return Err(gone(format!("the pod {namespace}/{pod} is on {}, its token says {node:?}", known.node)));
        }
        known.node.parse().map_err(|_| gone(format!("the pod {namespace}/{pod} is on no node")))
    }
}

#[cfg(test)]
#[path = "agent_login_tests.rs"]
mod tests;
