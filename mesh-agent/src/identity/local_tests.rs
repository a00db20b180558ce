//! The embedded CA and every way in which its state directory can be wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::identity::ca::{WORKLOAD_TTL_MAX, issue};
use crate::identity::testing::{TRUST_DOMAIN, TestCa, identity};

fn open(dir: &TempDir) -> Result<LocalCa, CertError> {
    LocalCa::open(dir.path(), TRUST_DOMAIN)
}

fn private_temp_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    dir
}

fn mode(path: PathBuf) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn the_root_is_made_once_private_and_found_again() {
    let dir = private_temp_dir();
    let first = open(&dir).unwrap().trust().unwrap();
    let again = open(&dir).unwrap().trust().unwrap();
    assert!(first.same_roots(&again));
    assert_eq!(mode(dir.path().join("ca")), 0o700);
    assert_eq!(mode(dir.path().join("ca/root.key")), 0o600);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["ca"], "no leftovers");
}

#[tokio::test]
async fn a_leaf_has_the_one_name_both_usages_and_a_day() {
    let dir = private_temp_dir();
    let ca = open(&dir).unwrap();
    let web = identity("shop", "web");
    let issued = issue(&ca, &web, WORKLOAD_TTL_MAX * 5, std::time::SystemTime::now()).await.unwrap();
    let leaf = issued.credential.chain().first().unwrap().clone();
    let (_, x509) = X509Certificate::from_der(&leaf).unwrap();
    let san = x509.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names.len(), 1);
    assert!(san.critical, "the subject is empty");
    let eku = x509.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.client_auth && eku.server_auth && !eku.any);
    assert!(!x509.is_ca());
    let life = issued.credential.not_after().duration_since(issued.credential.not_before()).unwrap();
    assert_eq!(life, WORKLOAD_TTL_MAX);
    let backdated = std::time::SystemTime::now().duration_since(issued.credential.not_before()).unwrap();
    assert!((60..70).contains(&backdated.as_secs()), "{backdated:?}");
}

#[tokio::test]
async fn an_identity_of_another_trust_domain_is_refused() {
    let dir = private_temp_dir();
    let foreign: Identity = "spiffe://elsewhere/ns/shop/sa/web".parse().unwrap();
    let error =
        issue(&open(&dir).unwrap(), &foreign, WORKLOAD_TTL_MAX, std::time::SystemTime::now()).await.unwrap_err();
    assert!(matches!(error, CertError::CaRefused { .. }), "{error}");
}

#[tokio::test]
async fn extra_roots_are_handed_out_beside_the_signing_one() {
    let dir = private_temp_dir();
    open(&dir).unwrap();
    let old = TestCa::new("old root");
    fs::write(dir.path().join("ca/extra-roots.crt"), crate::identity::state::pem("CERTIFICATE", &old.root).as_bytes())
        .unwrap();
    let issued = issue(&open(&dir).unwrap(), &identity("shop", "web"), WORKLOAD_TTL_MAX, std::time::SystemTime::now())
        .await
        .unwrap();
    assert_eq!(issued.trust.roots().count(), 2);
    assert!(issued.trust.roots().any(|root| *root == old.root));
}

/// Breaks a good state dir with `harm`; the error must name `file` and contain `words`.
fn check(file: &str, words: &[&str], harm: impl FnOnce(&Path)) {
    let dir = private_temp_dir();
    open(&dir).unwrap();
    harm(dir.path());
    let error = open(&dir).expect_err(file);
    let CertError::StateDir { path, fault, remedy } = &error else { panic!("{file}: {error}") };
    assert_eq!(path.components().as_path(), dir.path().join(file).components().as_path(), "{error}");
    for word in words {
        assert!(fault.contains(word) || remedy.contains(word), "{file}: no `{word}` in `{error}`");
    }
    assert!(!remedy.is_empty());
}

#[test]
fn a_partial_state_dir_is_refused_with_the_way_out() {
    check("ca/root.key", &["is missing", "restore"], |d| fs::remove_file(d.join("ca/root.key")).unwrap());
    check("ca/root.crt", &["is missing", "restore"], |d| fs::remove_file(d.join("ca/root.crt")).unwrap());
}

#[test]
fn a_broken_state_dir_is_refused_with_the_file_named() {
    check("ca/root.key", &["no PKCS #8"], |d| fs::write(d.join("ca/root.key"), "junk").unwrap());
    check("ca/root.key", &["no PKCS #8"], |d| fs::write(d.join("ca/root.key"), "").unwrap());
    check("ca/root.crt", &["no certificate"], |d| fs::write(d.join("ca/root.crt"), "junk").unwrap());
    check("ca/extra-roots.crt", &["no certificate"], |d| fs::write(d.join("ca/extra-roots.crt"), "").unwrap());
    check("ca/root.key", &["70000 bytes"], |d| fs::write(d.join("ca/root.key"), vec![b'x'; 70_000]).unwrap());
    check("ca/root.crt", &["does not belong to the key"], |d| {
        let other = private_temp_dir();
        open(&other).unwrap();
        fs::copy(other.path().join("ca/root.crt"), d.join("ca/root.crt")).unwrap();
    });
    check("ca/root.crt", &["not a CA"], |d| {
        let pem = fs::read(d.join("ca/root.key")).unwrap();
        let pkcs8 = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let key = crate::identity::key::PrivateKey::from_pkcs8(pkcs8.secret_pkcs8_der()).unwrap();
        let cert: CertificateDer<'_> = rcgen::CertificateParams::default().self_signed(&key).unwrap().into();
        fs::write(d.join("ca/root.crt"), crate::identity::state::pem("CERTIFICATE", &cert).as_bytes()).unwrap();
    });
}

#[test]
fn a_key_that_others_could_read_is_refused() {
    for mode in [0o604, 0o640, 0o666] {
        check("ca/root.key", &["open to other users", &format!("{mode:04o}"), "chmod 0600"], |d| {
            fs::set_permissions(d.join("ca/root.key"), Permissions::from_mode(mode)).unwrap();
        });
    }
    check("", &["open to other users", "chmod go-w"], |d| {
        fs::set_permissions(d, Permissions::from_mode(0o777)).unwrap();
    });
    check("ca", &["open to other users", "chmod 0700"], |d| {
        fs::set_permissions(d.join("ca"), Permissions::from_mode(0o755)).unwrap();
    });
}

#[test]
fn a_key_that_is_no_plain_file_is_refused() {
    check("ca/root.key", &["symbolic link"], |d| {
        fs::rename(d.join("ca/root.key"), d.join("elsewhere")).unwrap();
        symlink(d.join("elsewhere"), d.join("ca/root.key")).unwrap();
    });
    check("ca/root.key", &["not a regular file"], |d| {
        fs::remove_file(d.join("ca/root.key")).unwrap();
        nix::unistd::mkfifo(&d.join("ca/root.key"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    check("ca", &["not a directory"], |d| {
        fs::remove_dir_all(d.join("ca")).unwrap();
        fs::write(d.join("ca"), "").unwrap();
    });
}

#[test]
fn a_state_dir_of_another_trust_domain_is_refused() {
    let dir = private_temp_dir();
    open(&dir).unwrap();
    let error = LocalCa::open(dir.path(), "elsewhere").unwrap_err();
    assert!(error.to_string().contains("root of spiffe://cluster.local"), "{error}");
}

#[test]
fn two_processes_that_start_at_once_agree_on_one_root() {
    let dir = private_temp_dir();
    let open = || LocalCa::open(dir.path(), TRUST_DOMAIN).unwrap().trust().unwrap();
    let bundles: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for bundle in &bundles {
        assert!(bundle.same_roots(&bundles[0]));
    }
}
