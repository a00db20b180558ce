//! Who a token makes its bearer, row by row.

use std::sync::Mutex;

use super::*;
use crate::identity::SystemClock;
use crate::identity::testing::TRUST_DOMAIN;
use crate::model::identity::Identity;
use crate::model::workload::Workload;
use crate::snapshot::{Snapshot, SnapshotParts};

/// An API server that says what it was told to.
#[derive(Debug)]
struct Says(Mutex<Result<ReviewedToken, Unreviewed>>);

impl TokenReviewer for Says {
    fn review<'a>(&'a self, _token: &'a str, _audience: &'a str) -> ReviewFuture<'a> {
        Box::pin(std::future::ready(self.0.lock().unwrap().clone()))
    }
}

fn pod(uid: &str, name: &str, account: &str, node: &str, enrolment: Enrolment) -> Arc<Workload> {
    Arc::new(Workload {
        app: name.into(),
        node: node.into(),
        host_network: true,
        enrolment,
        ..Workload::new(uid, "mesh-agent", name, Identity::new(TRUST_DOMAIN, "mesh-agent", account).unwrap())
    })
}

fn good() -> ReviewedToken {
    ReviewedToken {
        user: "system:serviceaccount:mesh-agent:mesh-agent".to_owned(),
        audiences: vec!["mesh-agent-ca".to_owned()],
        pod: Some(("agent-1".to_owned(), "u1".to_owned())),
        node: Some("a".to_owned()),
    }
}

async fn outcome(says: Result<ReviewedToken, Unreviewed>) -> Result<String, &'static str> {
    let workloads = vec![
        pod("u1", "agent-1", "mesh-agent", "a", Enrolment::NotAsked),
        pod("u2", "agent-2", "mesh-agent", "a", Enrolment::Gone),
        pod("u3", "agent-3", "mesh-agent", "", Enrolment::NotAsked),
        pod("u4", "other", "other", "a", Enrolment::NotAsked),
    ];
    let store = Arc::new(SnapshotStore::default());
    store.publish(Snapshot::new(1, SnapshotParts { workloads: workloads.into(), ..SnapshotParts::default() }));
    let agents: Account = "mesh-agent/mesh-agent".parse().unwrap();
    let says = Arc::new(Says(Mutex::new(says)));
    let login = AgentLogin::new(says, store, "mesh-agent-ca".to_owned(), agents, Arc::new(SystemClock));
    login.node("x").await.map(|node| node.to_string()).map_err(|rejection| rejection.outcome.as_str())
}

#[tokio::test]
async fn a_token_makes_its_bearer_the_node_of_a_live_agent_or_nobody() {
    assert_eq!(outcome(Ok(good())).await, Ok("a".to_owned()));
    // API servers before 1.30 do not name the node.
    assert_eq!(outcome(Ok(ReviewedToken { node: None, ..good() })).await, Ok("a".to_owned()));

    let user = |user: &str| ReviewedToken { user: user.to_owned(), ..good() };
    let bound = |name: &str, uid: &str| ReviewedToken { pod: Some((name.to_owned(), uid.to_owned())), ..good() };
    for (case, said, word) in [
        ("an API server without audiences", ReviewedToken { audiences: vec![], ..good() }, "token_audience"),
        ("another account", user("system:serviceaccount:mesh-agent:other"), "not_an_agent"),
        ("another namespace", user("system:serviceaccount:shop:mesh-agent"), "not_an_agent"),
        ("a person", user("mesh-agent"), "not_an_agent"),
        ("bound to no pod", ReviewedToken { pod: None, ..good() }, "token_unbound"),
        ("a pod that is gone", bound("agent-9", "u9"), "agent_gone"),
        ("made anew under its name", bound("agent-1", "u9"), "agent_gone"),
        ("another name for the uid", bound("agent-9", "u1"), "agent_gone"),
        ("a pod that is over", bound("agent-2", "u2"), "agent_gone"),
        ("a pod on no node", ReviewedToken { node: None, ..bound("agent-3", "u3") }, "agent_gone"),
        ("a pod of another account", bound("other", "u4"), "agent_gone"),
        ("another node than the pod's", ReviewedToken { node: Some("b".to_owned()), ..good() }, "agent_gone"),
    ] {
        assert_eq!(outcome(Ok(said)).await, Err(word), "{case}");
    }
    assert_eq!(outcome(Err(Unreviewed::Refused("no".to_owned()))).await, Err("token_invalid"));
    assert_eq!(outcome(Err(Unreviewed::Away("no".to_owned()))).await, Err("review_failed"));
}
