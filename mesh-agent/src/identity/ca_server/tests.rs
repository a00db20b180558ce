//! `mesh-agent ca` and its clients over loopback: joining, asking, and everything that must not be granted.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::super::ca::{WORKLOAD_TTL_MAX, issue, signing_request};
use super::super::key::PrivateKey;
use super::super::testing::{TRUST_DOMAIN, TestCa, TestClock, identity};
use super::super::{CaAuth, CaClient, CertError, Clock, GrpcCa, GrpcTarget, NodeLogin, SystemClock};
use super::service_tests::{node, private_dir, table};
use super::*;
use crate::model::identity::Identity;
use crate::telemetry::CaMetrics;

const HOUR: Duration = Duration::from_secs(3600);

fn settings(dir: &TempDir, listen: SocketAddr) -> CaServerSettings {
    CaServerSettings {
        trust_domain: TRUST_DOMAIN.to_owned(),
        listen,
        names: Vec::new(),
        max_ttl: WORKLOAD_TTL_MAX,
        setting: CaSetting::Alone(dir.path().to_owned()),
    }
}

/// A CA on loopback.
struct Running {
    dir: TempDir,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::start_in(private_dir(), "127.0.0.1:0".parse().unwrap(), Arc::new(SystemClock)).await
    }

    async fn start_in(dir: TempDir, listen: SocketAddr, clock: Arc<dyn Clock>) -> Self {
        let server = CaServer::bind_with_clock(settings(&dir, listen), table(), CaMetrics::default(), clock);
        let server = server.await.unwrap();
        let address = server.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self { dir, address, stop: Some(stop), task }
    }

    async fn stop(mut self) -> (TempDir, SocketAddr) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap();
        (self.dir, self.address)
    }

    fn token(&self, node: &str) -> Zeroizing<String> {
        self.token_at(node, Arc::new(SystemClock))
    }

    fn token_at(&self, node: &str, clock: Arc<dyn Clock>) -> Zeroizing<String> {
        JoinTokens::open(self.dir.path(), clock).unwrap().create(&node.parse().unwrap(), HOUR).unwrap()
    }

    fn target(&self) -> GrpcTarget {
        GrpcTarget { address: self.address.to_string(), root_file: self.dir.path().join(ROOT_FILE), server_name: None }
    }

    /// An agent of `node` that keeps its state in `state`; `token` is written to a file for it.
    fn agent(&self, node_name: &str, state: &Path, token: Option<&str>) -> GrpcCa {
        self.agent_at(node_name, state, token, Arc::new(SystemClock))
    }

    fn agent_at(&self, node_name: &str, state: &Path, token: Option<&str>, clock: Arc<dyn Clock>) -> GrpcCa {
        let file: Option<PathBuf> = token.map(|token| {
            let file = state.join("token");
            fs::write(&file, format!("{token}\n")).unwrap();
            file
        });
        let login = NodeLogin::new(node(node_name), state, file);
        GrpcCa::with_clock(self.target(), CaAuth::Node(login), clock).unwrap()
    }
}

async fn ask(ca: &dyn CaClient, who: &Identity) -> Result<super::super::Issued, CertError> {
    issue(ca, who, WORKLOAD_TTL_MAX, SystemTime::now()).await
}

fn refusal(result: Result<super::super::Issued, CertError>) -> String {
    match result {
        Err(CertError::CaRefused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_node_joins_with_its_token_and_gets_what_its_pods_need() {
    let (ca, state) = (Running::start().await, private_dir());
    let agent = ca.agent("a", state.path(), Some(&ca.token("a")));
    let issued = ask(&agent, &identity("shop", "web")).await.unwrap();
    assert_eq!(issued.credential.identity(), &identity("shop", "web"));
    assert_eq!(issued.trust.roots().count(), 1);

    let file = state.path().join("node/node.pem");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(ca.dir.path().join("tokens")).unwrap().count(), 0, "the token is spent");
}

#[tokio::test]
async fn a_restarted_agent_needs_no_new_token() {
    let (ca, state) = (Running::start().await, private_dir());
    let token = ca.token("a");
    ask(&ca.agent("a", state.path(), Some(&token)), &identity("shop", "web")).await.unwrap();
    ask(&ca.agent("a", state.path(), None), &identity("shop", "web")).await.unwrap();
    // Nor does it mind the spent one.
    ask(&ca.agent("a", state.path(), Some(&token)), &identity("shop", "web")).await.unwrap();
}

#[tokio::test]
async fn a_restarted_ca_knows_its_nodes() {
    let (ca, state) = (Running::start().await, private_dir());
    let agent = ca.agent("a", state.path(), Some(&ca.token("a")));
    ask(&agent, &identity("shop", "web")).await.unwrap();
    let (dir, address) = ca.stop().await;

    let error = ask(&agent, &identity("shop", "web")).await.unwrap_err();
    assert!(matches!(error, CertError::CaUnreachable { .. }), "{error}");
    let _ca = Running::start_in(dir, address, Arc::new(SystemClock)).await;
    ask(&agent, &identity("shop", "web")).await.unwrap();
}

#[tokio::test]
async fn a_token_is_good_once() {
    let (ca, first, second) = (Running::start().await, private_dir(), private_dir());
    let token = ca.token("a");
    ask(&ca.agent("a", first.path(), Some(&token)), &identity("shop", "web")).await.unwrap();
    let reason = refusal(ask(&ca.agent("a", second.path(), Some(&token)), &identity("shop", "web")).await);
    assert!(reason.contains("node a") && reason.contains("used before"), "{reason}");
}

#[tokio::test]
async fn of_two_agents_with_one_token_at_once_one_gets_in() {
    let (ca, first, second) = (Running::start().await, private_dir(), private_dir());
    let token = ca.token("a");
    let (one, two) = (ca.agent("a", first.path(), Some(&token)), ca.agent("a", second.path(), Some(&token)));
    let web = identity("shop", "web");
    let (one, two) = tokio::join!(ask(&one, &web), ask(&two, &web));
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1);
}

#[tokio::test]
async fn a_token_for_another_node_is_refused_and_stays_good_for_its_own() {
    let (ca, a, b) = (Running::start().await, private_dir(), private_dir());
    let token = ca.token("a");
    let reason = refusal(ask(&ca.agent("b", b.path(), Some(&token)), &identity("shop", "db")).await);
    assert!(reason.contains("node b") && reason.contains("for another node"), "{reason}");
    ask(&ca.agent("a", a.path(), Some(&token)), &identity("shop", "web")).await.unwrap();
}

#[tokio::test]
async fn an_expired_or_invented_token_is_refused() {
    let (ca, state) = (Running::start().await, private_dir());
    let token = ca.token_at("a", TestClock::behind(2 * HOUR));
    let reason = refusal(ask(&ca.agent("a", state.path(), Some(&token)), &identity("shop", "web")).await);
    assert!(reason.contains("expired"), "{reason}");
    for invented in ["x", "../tokens", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let reason = refusal(ask(&ca.agent("a", state.path(), Some(invented)), &identity("shop", "web")).await);
        assert!(reason.contains("unknown"), "{reason}");
    }
}

#[tokio::test]
async fn without_token_and_certificate_the_way_out_is_named() {
    let (ca, state) = (Running::start().await, private_dir());
    let error = ask(&ca.agent("a", state.path(), None), &identity("shop", "web")).await.unwrap_err();
    assert!(matches!(&error, CertError::NotJoined { .. }), "{error}");
    assert!(error.to_string().contains("mesh-agent ca token --node a"), "{error}");
}

#[tokio::test]
async fn an_identity_without_a_pod_on_the_node_is_refused_by_name() {
    let (ca, state) = (Running::start().await, private_dir());
    let agent = ca.agent("a", state.path(), Some(&ca.token("a")));
    let reason = refusal(ask(&agent, &identity("shop", "db")).await);
    assert!(reason.contains("node a") && reason.contains("spiffe://cluster.local/ns/shop/sa/db"), "{reason}");
    assert!(reason.contains("no enrolled pod"), "{reason}");
}

#[tokio::test]
async fn a_ca_that_the_root_file_does_not_vouch_for_is_not_asked() {
    let (ca, state) = (Running::start().await, private_dir());
    let token = ca.token("a");
    let root = state.path().join("other.crt");
    fs::write(&root, super::super::state::pem("CERTIFICATE", &TestCa::new("other").root).as_bytes()).unwrap();
    fs::write(state.path().join("token"), token.as_bytes()).unwrap();
    let login = NodeLogin::new(node("a"), state.path(), Some(state.path().join("token")));
    let target = GrpcTarget { root_file: root, ..ca.target() };
    let agent = GrpcCa::new(target, CaAuth::Node(login)).unwrap();
    let error = ask(&agent, &identity("shop", "web")).await.unwrap_err();
    assert!(matches!(error, CertError::CaUnreachable { .. }), "{error}");
    assert_eq!(fs::read_dir(ca.dir.path().join("tokens")).unwrap().count(), 1, "the token was not shown to it");
}

#[tokio::test]
async fn a_missing_or_broken_root_file_is_named() {
    let state = private_dir();
    let root_file = state.path().join("root.crt");
    for (content, words) in [(None, "is missing"), (Some("junk"), "no certificate")] {
        if let Some(content) = content {
            fs::write(&root_file, content).unwrap();
        }
        let target = GrpcTarget { address: "127.0.0.1:1".into(), root_file: root_file.clone(), server_name: None };
        fs::write(state.path().join("token"), "x").unwrap();
        let login = NodeLogin::new(node("a"), state.path(), Some(state.path().join("token")));
        let error =
            ask(&GrpcCa::new(target, CaAuth::Node(login)).unwrap(), &identity("shop", "web")).await.unwrap_err();
        assert!(matches!(&error, CertError::StateDir { path, .. } if *path == root_file), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_node_certificate_that_cannot_be_used_is_named() {
    let (ca, state) = (Running::start().await, private_dir());
    ask(&ca.agent("a", state.path(), Some(&ca.token("a"))), &identity("shop", "web")).await.unwrap();
    let file = state.path().join("node/node.pem");
    let good = fs::read(&file).unwrap();
    let error =
        async |node: &str| ask(&ca.agent(node, state.path(), None), &identity("shop", "web")).await.unwrap_err();

    let of_another = error("b").await.to_string();
    assert!(
        of_another.contains("is for spiffe://cluster.local/node/a") && of_another.contains("node.pem"),
        "{of_another}"
    );
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let readable = error("a").await.to_string();
    assert!(readable.contains("open to other users (mode 0644)"), "{readable}");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    let torn = error("a").await.to_string();
    assert!(torn.contains("join again with a new token"), "{torn}");
}

#[tokio::test]
async fn a_workload_certificate_opens_nothing_at_the_ca() {
    let (ca, state) = (Running::start().await, private_dir());
    let agent = ca.agent("a", state.path(), Some(&ca.token("a")));
    let issued = ask(&agent, &identity("shop", "web")).await.unwrap();
    // The same caller with the workload's key instead of the node's.
    let caller = agent.caller_for_tests();
    let csr = signing_request(&PrivateKey::generate().unwrap(), &identity("shop", "web").to_string()).unwrap();
    let key = issued.credential.weak_key().upgrade().unwrap();
    let proof = super::super::grpc::Proof::Certificate(key);
    let error = caller.call(proof, &csr, "web", None, HOUR).await.unwrap_err();
    assert!(matches!(&error, CertError::CaUnreachable { .. }), "the handshake ends: {error}");
}

#[tokio::test]
async fn the_root_is_replaced_without_a_node_joining_again() {
    let (ca, state, other) = (Running::start().await, private_dir(), private_dir());
    let agent = ca.agent("a", state.path(), Some(&ca.token("a")));
    let web = identity("shop", "web");
    let before = ask(&agent, &web).await.unwrap();
    super::super::LocalCa::open(other.path(), TRUST_DOMAIN).unwrap();
    let new = |file: &str| other.path().join("ca").join(file);
    let restart = async |ca: Running| {
        let (dir, address) = ca.stop().await;
        Running::start_in(dir, address, Arc::new(SystemClock)).await
    };

    // 1. The new root is trusted, the old one signs.
    let file = |ca: &Running, name: &str| ca.dir.path().join("ca").join(name);
    fs::copy(new("root.crt"), file(&ca, "extra-roots.crt")).unwrap();
    let ca = restart(ca).await;
    let both = ask(&agent, &web).await.unwrap();
    assert_eq!(both.trust.roots().count(), 2);
    let by = |issued: &super::super::Issued, root: &super::super::Issued| {
        let (leaf, rest) = issued.credential.chain().split_first().unwrap();
        super::super::chain::verify(leaf, rest, &root.trust, SystemTime::now(), super::super::chain::Usage::Client)
    };
    by(&both, &before).unwrap();

    // 2. The new root signs, the old one is trusted; the node's certificate is of the old one.
    fs::copy(file(&ca, "root.crt"), file(&ca, "extra-roots.crt")).unwrap();
    fs::copy(new("root.crt"), file(&ca, "root.crt")).unwrap();
    fs::copy(new("root.key"), file(&ca, "root.key")).unwrap();
    let ca = restart(ca).await;
    let after = ask(&agent, &web).await.unwrap();
    assert!(by(&after, &before).is_err(), "signed by the new root");
    by(&after, &both).unwrap();
    by(&before, &after).unwrap();

    // 3. The old root is gone, and with it the node's certificate if it was not renewed.
    fs::remove_file(file(&ca, "extra-roots.crt")).unwrap();
    let _ca = restart(ca).await;
    assert!(ask(&agent, &web).await.is_err());
}

#[tokio::test]
async fn a_node_certificate_is_renewed_at_half_life_and_a_lost_one_needs_a_token() {
    let clock = TestClock::new();
    let as_clock = || Arc::clone(&clock) as Arc<dyn Clock>;
    let ca = Running::start_in(private_dir(), "127.0.0.1:0".parse().unwrap(), as_clock()).await;
    let state = private_dir();
    let agent = ca.agent_at("a", state.path(), Some(&ca.token_at("a", as_clock())), as_clock());
    let web = identity("shop", "web");
    let ask_now = async |agent: &GrpcCa| issue(agent, &web, WORKLOAD_TTL_MAX, clock.now()).await;
    ask_now(&agent).await.unwrap();
    let first = fs::read(state.path().join("node/node.pem")).unwrap();

    clock.jump(4 * 24 * HOUR);
    let mut keep = agent.keep_ready();
    let renewed = async {
        while fs::read(state.path().join("node/node.pem")).unwrap() == first {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = &mut keep => {}
        renewed = tokio::time::timeout(Duration::from_secs(10), renewed) => renewed.expect("renewed at half-life"),
    }
    drop(keep);
    // Past the first certificate's end, inside the second's.
    clock.jump(4 * 24 * HOUR);
    ask_now(&agent).await.unwrap();
    ask_now(&ca.agent_at("a", state.path(), None, as_clock())).await.unwrap();
    // And the CA's own certificate has been made anew several times by now.

    clock.jump(8 * 24 * HOUR);
    let error = ask_now(&ca.agent_at("a", state.path(), None, as_clock())).await.unwrap_err();
    assert!(matches!(error, CertError::NotJoined { .. }), "{error}");
}

#[tokio::test]
async fn a_name_is_needed_to_listen_on_every_address_and_a_taken_port_is_named() {
    let dir = private_dir();
    let bind = async |listen: &str| {
        CaServer::bind(settings(&dir, listen.parse().unwrap()), table(), CaMetrics::default()).await
    };
    let error = bind("0.0.0.0:0").await.unwrap_err();
    assert!(error.to_string().contains("--name"), "{error}");
    let taken = bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = bind(&address).await.unwrap_err();
    assert!(matches!(error, CertError::Listen { .. }) && error.to_string().contains(&address), "{error}");
}
