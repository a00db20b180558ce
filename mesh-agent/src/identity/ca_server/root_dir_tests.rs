//! A root as a mounted Secret holds it: found, made, refused, replaced.

use std::sync::Mutex;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose};
use tempfile::TempDir;

use super::*;
use crate::identity::SystemClock;
use crate::identity::authority::{Purpose, uri_name};
use crate::identity::bundle::TrustBundle;
use crate::identity::chain::{self, Usage};
use crate::identity::key::PrivateKey;
use crate::identity::testing::TRUST_DOMAIN;

fn dir_of(dir: &TempDir) -> RootDir {
    RootDir::new(dir.path().to_owned(), TRUST_DOMAIN, Arc::new(SystemClock))
}

fn new_root() -> NewRoot {
    NewRoot::make(TRUST_DOMAIN, SystemClock.now()).unwrap()
}

fn put(dir: &TempDir, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
}

/// A certificate signed by `root`, checked by the roots that come with it.
fn signs(root: &RootInForce) {
    let authority = root.load();
    let key = PrivateKey::generate().unwrap();
    let name = uri_name("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let signed = authority.sign_own(&key, vec![name], Purpose::Workload, Duration::from_secs(600)).unwrap();
    let bundle = TrustBundle::new(&signed.roots, 0).unwrap();
    chain::verify(&signed.chain[0], &signed.chain[1..], &bundle, SystemClock.now(), Usage::Server).unwrap();
}

/// An API server with at most one Secret.
#[derive(Debug, Default)]
struct Api {
    secret: Mutex<Option<SecretData>>,
    /// Somebody else makes the Secret between the look and the attempt.
    rival: Mutex<Option<SecretData>>,
}

impl RootSecret for Api {
    fn name(&self) -> String {
        "mesh-agent/root".to_owned()
    }

    fn read(&self) -> SecretFuture<'_, Option<SecretData>> {
        Box::pin(std::future::ready(Ok(self.secret.lock().unwrap().clone())))
    }

    fn create(&self, data: SecretData) -> SecretFuture<'_, bool> {
        let mut secret = self.secret.lock().unwrap();
        if let Some(rival) = self.rival.lock().unwrap().take() {
            *secret = Some(rival);
        }
        let made = secret.is_none();
        secret.get_or_insert(data);
        Box::pin(std::future::ready(Ok(made)))
    }
}

fn secret(key: &str, cert: &str) -> SecretData {
    [(KEY, key), (CERT, cert)].map(|(name, text)| (name.to_owned(), Zeroizing::new(text.as_bytes().to_vec()))).into()
}

#[tokio::test]
async fn a_directory_without_a_root_is_an_error_that_names_the_ways_out() {
    let dir = tempfile::tempdir().unwrap();
    let error = dir_of(&dir).open(None).await.unwrap_err().to_string();
    for words in ["tls.key", "--create-root-secret", "cert-manager", &dir.path().display().to_string()] {
        assert!(error.contains(words), "{words}: {error}");
    }
    // As a Secret of the type kubernetes.io/tls that somebody is to fill.
    put(&dir, &[("tls.crt", ""), ("tls.key", "")]);
    assert!(dir_of(&dir).open(None).await.unwrap_err().to_string().contains("holds no tls.key"));
}

#[tokio::test]
async fn a_root_is_made_once_and_all_replicas_use_that_one() {
    let (dir, api) = (tempfile::tempdir().unwrap(), Api::default());
    let first = dir_of(&dir).open(Some(&api)).await.unwrap();
    signs(&first);
    let second = dir_of(&dir).open(Some(&api)).await.unwrap();
    assert_eq!(first.roots_pem(), second.roots_pem());

    // Two that look at the same time: whoever comes second takes what is there.
    let (api, theirs) = (Api::default(), new_root());
    *api.rival.lock().unwrap() = Some(secret(&theirs.key, &theirs.cert));
    let root = dir_of(&dir).open(Some(&api)).await.unwrap();
    assert_eq!(root.roots_pem(), *theirs.cert);

    // What is mounted counts, and nothing is made beside it.
    let (api, mounted) = (Api::default(), new_root());
    put(&dir, &[("tls.crt", &mounted.cert), ("tls.key", &mounted.key)]);
    assert_eq!(dir_of(&dir).open(Some(&api)).await.unwrap().roots_pem(), *mounted.cert);
    assert!(api.secret.lock().unwrap().is_none());
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_is_named_and_left_alone() {
    let (dir, api) = (tempfile::tempdir().unwrap(), Api::default());
    *api.secret.lock().unwrap() = Some(secret("junk", &new_root().cert));
    let error = dir_of(&dir).open(Some(&api)).await.unwrap_err().to_string();
    assert!(error.contains("Secret mesh-agent/root/tls.key") && error.contains("no PKCS #8"), "{error}");
    *api.secret.lock().unwrap() = Some(SecretData::new());
    let error = dir_of(&dir).open(Some(&api)).await.unwrap_err().to_string();
    assert!(error.contains("holds no tls.key"), "{error}");
    assert!(api.secret.lock().unwrap().as_ref().unwrap().is_empty());
}

/// An intermediate below `root`, limited to `usages` if there are any.
fn intermediate(root: &NewRoot, usages: &[ExtendedKeyUsagePurpose]) -> (String, String) {
    let root_key = PrivateKey::from_pem(root.key.as_bytes()).unwrap();
    let root_der = rustls::pki_types::pem::PemObject::from_pem_slice(root.cert.as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&root_der, root_key).unwrap();
    let (key, pkcs8) = PrivateKey::generate_pkcs8().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = usages.to_vec();
    let cert = params.signed_by(&key, &issuer).unwrap();
    (state::pem("PRIVATE KEY", &pkcs8).to_string(), state::pem("CERTIFICATE", cert.der()).to_string())
}

/// A root that may have intermediates, which ours may not.
fn root_for_intermediates() -> NewRoot {
    let (key, pkcs8) = PrivateKey::generate_pkcs8().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "company root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key).unwrap();
    NewRoot { key: state::pem("PRIVATE KEY", &pkcs8), cert: state::pem("CERTIFICATE", cert.der()) }
}

#[tokio::test]
async fn an_intermediate_signs_under_its_root() {
    let (dir, root) = (tempfile::tempdir().unwrap(), root_for_intermediates());
    let (key, cert) = intermediate(&root, &[]);
    put(&dir, &[("tls.crt", &cert), ("tls.key", &key)]);
    let error = dir_of(&dir).open(None).await.unwrap_err().to_string();
    assert!(error.contains("no root beside it"), "{error}");
    put(&dir, &[("ca.crt", &new_root().cert)]);
    let error = dir_of(&dir).open(None).await.unwrap_err().to_string();
    assert!(error.contains("signs nothing that a peer would accept"), "{error}");
    put(&dir, &[("ca.crt", &root.cert)]);
    let opened = dir_of(&dir).open(None).await.unwrap();
    signs(&opened);
    assert_eq!(opened.roots_pem(), *root.cert);
    // The chain within tls.crt, root included, as some issuers write it.
    put(&dir, &[("tls.crt", &format!("{cert}{}", *root.cert)), ("ca.crt", "")]);
    signs(&dir_of(&dir).open(None).await.unwrap());
}

#[tokio::test]
async fn a_root_whose_constraints_forbid_what_it_should_sign_is_refused() {
    let (dir, root) = (tempfile::tempdir().unwrap(), root_for_intermediates());
    // Good for servers alone: what it signs could not dial.
    let (key, cert) = intermediate(&root, &[ExtendedKeyUsagePurpose::ServerAuth]);
    put(&dir, &[("tls.crt", &cert), ("tls.key", &key), ("ca.crt", &root.cert)]);
    let error = dir_of(&dir).open(None).await.unwrap_err().to_string();
    assert!(error.contains("signs nothing that a peer would accept"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_put_in_force_and_a_mistake_is_not() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), new_root(), new_root());
    put(&dir, &[("tls.crt", &old.cert), ("tls.key", &old.key), ("ca.crt", &old.cert)]);
    let root_dir = dir_of(&dir);
    let root = root_dir.open(None).await.unwrap();
    let failures = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&failures);
    let follow = tokio::spawn(root_dir.follow(root.clone(), move || *counted.lock().unwrap() += 1));
    let mut changed = root.watch();

    let both = format!("{}{}", *old.cert, *new.cert);
    put(&dir, &[("ca.crt", &both)]);
    changed.changed().await.unwrap();
    assert_eq!(root.roots_pem(), both);

    // Half of a change: certificate and key do not belong together.
    put(&dir, &[("tls.crt", &new.cert)]);
    tokio::time::sleep(EVERY * 3).await;
    assert_eq!((*failures.lock().unwrap(), root.roots_pem()), (1, both));
    put(&dir, &[("tls.key", &new.key)]);
    changed.changed().await.unwrap();
    assert_eq!(root.roots_pem(), format!("{}{}", *new.cert, *old.cert));
    signs(&root);

    std::fs::remove_file(dir.path().join("tls.key")).unwrap();
    std::fs::remove_file(dir.path().join("tls.crt")).unwrap();
    tokio::time::sleep(EVERY * 3).await;
    signs(&root);
    follow.abort();
}
