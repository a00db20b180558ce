//! The CA's decisions, one request at a time, without a wire; and the fixtures they share with `tests`.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;

use super::super::authority::Authority;
use super::super::ca::WORKLOAD_TTL_MAX;
use super::super::ca::signing_request;
use super::super::istio::CertificateRequest;
use super::super::key::PrivateKey;
use super::super::testing::{TRUST_DOMAIN, TestClock, identity};
use super::super::{Clock, NodeIdentity, NodeName, SystemClock};
use super::in_force::RootInForce;
use super::outcome::CaOutcome;
use super::service::{CaService, Caller, Login, response};
use super::*;
use crate::model::identity::Identity;

const HOUR: Duration = Duration::from_secs(3600);

/// Which node has which identities, by hand.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<BTreeMap<&'static str, Vec<Identity>>>);

impl NodeAuthorizer for Table {
    fn may(&self, node: &NodeName, identity: &Identity) -> bool {
        self.0.lock().unwrap().get(node.as_str()).is_some_and(|allowed| allowed.contains(identity))
    }
}

pub(super) fn table() -> Arc<Table> {
    Arc::new(Table(Mutex::new([("a", vec![identity("shop", "web")]), ("b", vec![identity("shop", "db")])].into())))
}

pub(super) fn private_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    dir
}

pub(super) fn node(name: &str) -> NodeIdentity {
    NodeIdentity::new(TRUST_DOMAIN, name.parse().unwrap())
}

fn service(dir: &TempDir) -> CaService {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    CaService {
        root: RootInForce::new(Authority::open(dir.path(), TRUST_DOMAIN, Arc::clone(&clock)).unwrap()),
        login: Login::Join(JoinTokens::open(dir.path(), clock).unwrap()),
        authorizer: table(),
        trust_domain: TRUST_DOMAIN.into(),
        max_ttl: WORKLOAD_TTL_MAX,
    }
}

fn csr(uri: &str) -> String {
    signing_request(&PrivateKey::generate().unwrap(), uri).unwrap()
}

/// Case, caller, CSR, impersonated identity, outcome, and words of the reason.
type Row<'a> = (&'a str, Caller, String, Option<&'a str>, &'a str, &'a str);

#[test]
fn requests_that_must_not_be_granted() {
    let dir = private_dir();
    let service = service(&dir);
    let tokens = JoinTokens::open(dir.path(), Arc::new(SystemClock)).unwrap();
    let token = tokens.create(&"a".parse().unwrap(), HOUR).unwrap();
    let a = || Caller::Node(node("a"));
    let with_token = || Caller::Token(token.clone());
    let (web, db) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db");
    let table: Vec<Row<'_>> = vec![
        ("nobody asks for a workload", Caller::Nobody, csr(web), None, "no_credentials", "needs a node certificate"),
        (
            "nobody asks for a node",
            Caller::Nobody,
            csr("spiffe://cluster.local/node/a"),
            None,
            "no_credentials",
            "needs a join token",
        ),
        (
            "a token asks for a workload",
            with_token(),
            csr(web),
            Some(web),
            "token_scope",
            "good for a node certificate",
        ),
        (
            "a token asks for another node",
            with_token(),
            csr("spiffe://cluster.local/node/b"),
            None,
            "join_token",
            "for another node",
        ),
        (
            "a node asks for another node",
            a(),
            csr("spiffe://cluster.local/node/b"),
            None,
            "other_node",
            "node a may not have",
        ),
        ("a node asks for another node's pod", a(), csr(db), Some(db), "not_on_node", "node a may not have"),
        ("CSR and metadata disagree", a(), csr(web), Some(db), "names_disagree", "several identities"),
        ("metadata smuggles what the CSR hides", a(), csr(db), Some(web), "names_disagree", "several identities"),
        (
            "another trust domain",
            a(),
            csr("spiffe://other/ns/shop/sa/web"),
            None,
            "trust_domain",
            "not of the trust domain",
        ),
        (
            "a node of another trust domain",
            with_token(),
            csr("spiffe://other/node/a"),
            None,
            "trust_domain",
            "not of the trust domain",
        ),
        ("no SPIFFE name", a(), csr("https://web"), None, "bad_request", "neither a workload nor a node"),
        ("control characters", a(), csr(web), Some("x\ny"), "names_disagree", "several identities: spiffe"),
        ("junk", a(), "junk".to_owned(), Some(web), "bad_request", "certificate request"),
        ("RSA or P-384 key", a(), csr_p384(web), Some(web), "bad_request", "not ECDSA P-256"),
        ("DNS name", a(), csr_dns(), Some(web), "bad_request", "not a URI"),
        ("a torn signature", a(), csr_of_another_key(web), Some(web), "bad_request", "signature"),
    ];
    for (case, caller, csr, impersonated, word, words) in table {
        let answer = service.answer(&caller, &CertificateRequest::new(&csr, 3600, impersonated));
        let rejection = answer.result.expect_err(case);
        let text = rejection.to_string();
        assert!(text.contains(words), "{case}: `{words}` is not in `{text}`");
        assert!(!text.contains('\n'), "{case}: {text}");
        assert_eq!(rejection.outcome.as_str(), word, "{case}");
        assert!(text.starts_with(word), "{case}: {text}");
    }
    let good = service.answer(&with_token(), &CertificateRequest::new(&csr("spiffe://cluster.local/node/a"), 0, None));
    assert_eq!(good.outcome(), CaOutcome::Issued, "none of this spent the token");
}

#[test]
fn what_a_csr_asks_for_besides_its_key_is_not_given() {
    let dir = private_dir();
    let service = service(&dir);
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(web.try_into().unwrap())];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let csr = params.serialize_request(&PrivateKey::generate().unwrap()).unwrap().pem().unwrap();
    let answer = service.answer(&Caller::Node(node("a")), &CertificateRequest::new(&csr, i64::MAX, None));
    let answer = response(&answer.result.unwrap());
    let pem = x509_parser::pem::parse_x509_pem(answer.cert_chain[0].as_bytes()).unwrap().1;
    let leaf = pem.parse_x509().unwrap();
    assert!(!leaf.is_ca());
    let eku = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.client_auth && eku.server_auth && !eku.code_signing);
    assert!(leaf.subject().iter().count() == 0, "{}", leaf.subject());
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 24 * 3600);
}

#[test]
fn token_files_hold_no_token_and_are_private() {
    let dir = private_dir();
    let tokens = JoinTokens::open(dir.path(), Arc::new(SystemClock)).unwrap();
    let token = tokens.create(&"a".parse().unwrap(), HOUR).unwrap();
    assert_eq!(token.len(), 43, "256 bits in base64url");
    let files: Vec<_> = fs::read_dir(dir.path().join("tokens")).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let content = fs::read_to_string(files[0].path()).unwrap();
    assert!(!content.contains(token.as_str()) && !files[0].file_name().to_string_lossy().contains(token.as_str()));

    // Expired ones are swept when the store is opened again.
    let later = TestClock::new();
    later.jump(2 * HOUR);
    JoinTokens::open(dir.path(), later).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("tokens")).unwrap().count(), 0);
}

fn csr_p384(uri: &str) -> String {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn csr_dns() -> String {
    let params = rcgen::CertificateParams::new(vec!["web.shop".to_owned()]).unwrap();
    params.serialize_request(&PrivateKey::generate().unwrap()).unwrap().pem().unwrap()
}

/// A CSR whose last signature byte is another.
fn csr_of_another_key(uri: &str) -> String {
    let pem = csr(uri);
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let mut der = parsed.contents;
    let last = der.len() - 1;
    der[last] ^= 1;
    super::super::state::pem("CERTIFICATE REQUEST", &der).to_string()
}
