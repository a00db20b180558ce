//! Every way in which a peer must not get in, and the few in which it must.

use rcgen::{ExtendedKeyUsagePurpose, IsCa};
use rustls::ClientConfig;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;

use super::*;
use crate::identity::testing::{Leaf, TestCa, identity};
use crate::identity::{CertFault, TrustBundle};
use crate::model::outcome::Outcome;

const H2: &[&[u8]] = &[b"h2"];
const DAY: Duration = Duration::from_secs(24 * 3600);

fn web() -> Identity {
    identity("shop", "web")
}

fn db() -> Identity {
    identity("shop", "db")
}

fn wire() -> (DuplexStream, DuplexStream) {
    duplex(64 * 1024)
}

/// Client `web` presents what `client` says, server `db` what `server` says; both trust `ca`.
async fn handshake(
    ca: &TestCa,
    client: crate::identity::Issued,
    server: crate::identity::Issued,
) -> (Result<Peer, TlsError>, Result<Peer, TlsError>) {
    let (client_store, server_store) = (ca.store(&[]), ca.store(&[]));
    client_store.install(client);
    server_store.install(server);
    for store in [&client_store, &server_store] {
        store.set_trust(ca.bundle());
    }
    let (client, server) = (Tls::new(client_store), Tls::new(server_store));
    let (near, far) = wire();
    let (own, expected) = (web(), db());
    let dial = async {
        let (mut stream, peer) = client.connect(near, &own, &expected, H2).await?;
        // The server's verdict on the client arrives with its first bytes.
        match stream.read_u8().await {
            Ok(_) => Ok(peer),
            Err(error) => Err(TlsError::of_io(error)),
        }
    };
    let answer = async {
        let (mut stream, peer) = server.accept(far, &expected, H2).await?;
        stream.write_u8(1).await.map_err(TlsError::of_io)?;
        Ok(peer)
    };
    tokio::join!(dial, answer)
}

fn good(ca: &TestCa, identity: &Identity) -> crate::identity::Issued {
    ca.issued(identity, &Leaf::named(&[&identity.to_string()]))
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = TestCa::new("root");
    let (client, server) = handshake(&ca, good(&ca, &web()), good(&ca, &db())).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!((client.identity(), client.alpn()), (&db(), &b"h2"[..]));
    assert_eq!((server.identity(), server.alpn()), (&web(), &b"h2"[..]));
}

/// One certificate that proves nothing, and the reason.
fn bad_leaves() -> Vec<(&'static str, Leaf, CertFault)> {
    let (web, now) = (web().to_string(), SystemTime::now());
    let good = Leaf::named(&[&web]);
    let node = "spiffe://cluster.local/node/a";
    let foreign = "spiffe://elsewhere/ns/shop/sa/web";
    let workload = "workload identity";
    vec![
        ("expired", Leaf { not_before: now - 2 * DAY, not_after: now - DAY, ..good.clone() }, CertFault::Expired),
        (
            "not yet valid",
            Leaf { not_before: now + DAY, not_after: now + 2 * DAY, ..good.clone() },
            CertFault::NotYetValid,
        ),
        ("no SAN", Leaf { names: vec![], ..good.clone() }, CertFault::UriSans(0)),
        ("two URI SANs", Leaf::named(&[&web, &db().to_string()]), CertFault::UriSans(2)),
        ("the same SAN twice", Leaf::named(&[&web, &web]), CertFault::UriSans(2)),
        (
            "DNS SAN only",
            Leaf { names: vec![rcgen::SanType::DnsName("web".try_into().unwrap())], ..good.clone() },
            CertFault::UriSans(0),
        ),
        ("other URI", Leaf::named(&["https://web"]), CertFault::Name { uri: "https://web".into(), wanted: workload }),
        ("node certificate", Leaf::named(&[node]), CertFault::Name { uri: node.into(), wanted: workload }),
        (
            "other trust domain",
            Leaf::named(&[foreign]),
            CertFault::TrustDomain { uri: foreign.into(), ours: "cluster.local".into() },
        ),
    ]
}

#[tokio::test]
async fn a_client_whose_certificate_proves_nothing_is_refused_by_name_of_the_fault() {
    let ca = TestCa::new("root");
    let usage = Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::named(&[&web().to_string()]) };
    let no_usage = Leaf { usages: vec![], ..usage.clone() };
    let mut table = bad_leaves();
    table.push(("server's certificate", usage, CertFault::Usage("clientAuth")));
    table.push(("no usage at all", no_usage, CertFault::Usage("clientAuth")));
    for (case, leaf, fault) in table {
        // A store hands out no expired certificate, so the forger's store must believe it is valid.
        let mut issued = ca.issued(&web(), &leaf);
        issued.credential = issued.credential.believed_valid();
        let (client, server) = handshake(&ca, issued, good(&ca, &db())).await;
        let server = server.expect_err(case);
        assert!(matches!(&server, TlsError::PeerCertificate { fault: f } if *f == fault), "{case}: {server}");
        assert_eq!(server.outcome(), Outcome::TlsFailed, "{case}");
        let client = client.expect_err(case);
        assert!(matches!(client, TlsError::RefusedByPeer { .. } | TlsError::Io(_)), "{case}: {client}");
    }
}

#[tokio::test]
async fn a_server_whose_certificate_proves_nothing_is_refused_by_name_of_the_fault() {
    let ca = TestCa::new("root");
    let usage = Leaf { usages: vec![ExtendedKeyUsagePurpose::ClientAuth], ..Leaf::named(&[&db().to_string()]) };
    let mut table = bad_leaves();
    table.push(("client's certificate", usage, CertFault::Usage("serverAuth")));
    for (case, leaf, fault) in table {
        let mut issued = ca.issued(&db(), &leaf);
        issued.credential = issued.credential.believed_valid();
        let (client, server) = handshake(&ca, good(&ca, &web()), issued).await;
        let client = client.expect_err(case);
        assert!(matches!(&client, TlsError::PeerCertificate { fault: f } if *f == fault), "{case}: {client}");
        assert!(server.is_err(), "{case}");
    }
}

#[tokio::test]
async fn a_certificate_of_a_foreign_ca_is_refused_even_under_the_same_name() {
    let (ca, other, same_name) = (TestCa::new("root"), TestCa::new("other"), TestCa::new("root"));
    for foreign in [&other, &same_name] {
        let (_, server) = handshake(&ca, good(foreign, &web()), good(&ca, &db())).await;
        let error = server.unwrap_err();
        assert!(matches!(error, TlsError::PeerCertificate { fault: CertFault::Untrusted }), "{error}");
        let (client, _) = handshake(&ca, good(&ca, &web()), good(foreign, &db())).await;
        let error = client.unwrap_err();
        assert!(matches!(error, TlsError::PeerCertificate { fault: CertFault::Untrusted }), "{error}");
    }
}

#[tokio::test]
async fn a_workload_cannot_sign_for_another() {
    let ca = TestCa::new("root");
    // A leaf that claims to be a CA, used as the leaf; and an honest leaf used as an issuer.
    let claims_ca =
        Leaf { is_ca: IsCa::Ca(rcgen::BasicConstraints::Unconstrained), ..Leaf::named(&[&web().to_string()]) };
    let (_, server) = handshake(&ca, ca.issued(&web(), &claims_ca), good(&ca, &db())).await;
    assert!(matches!(server.unwrap_err(), TlsError::PeerCertificate { .. }));

    let issued = ca.issued_below_a_leaf(&web());
    let (_, server) = handshake(&ca, issued, good(&ca, &db())).await;
    assert!(matches!(server.unwrap_err(), TlsError::PeerCertificate { .. }));
}

#[tokio::test]
async fn another_workload_than_expected_is_a_mismatch_that_names_both() {
    let ca = TestCa::new("root");
    let other = identity("shop", "impostor");
    let (client_tls, server_tls) = (Tls::new(ca.store(&[&web()])), Tls::new(ca.store(&[&other])));
    let (near, far) = wire();
    let (own, expected) = (web(), db());
    let (client, server) =
        tokio::join!(client_tls.connect(near, &own, &expected, H2), server_tls.accept(far, &other, H2));
    let error = client.unwrap_err();
    assert_eq!(error.outcome(), Outcome::IdentityMismatch);
    assert!(
        matches!(&error, TlsError::IdentityMismatch { expected, presented } if *expected == db() && *presented == other)
    );
    assert!(error.to_string().contains("sa/db") && error.to_string().contains("sa/impostor"), "{error}");
    assert!(server.is_err(), "the client must not have shown itself");
}

/// A client of the library's own making towards server `db`.
async fn odd_client(ca: &TestCa, certificate: bool, alpn: Option<&[u8]>) -> TlsError {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::PeerVerifier::any_of(
            "cluster.local",
            Arc::new(ca.bundle()),
        )));
    let mut config = if certificate {
        let (key, cert) = ca.forge(&Leaf::named(&[&web().to_string()]));
        builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::new(
            vec![cert],
            key.signer(),
        ))))
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let server = Tls::new(ca.store(&[&db()]));
    let (near, far) = wire();
    let own = db();
    let name = rustls::pki_types::ServerName::try_from("db").unwrap();
    let (_, server) =
        tokio::join!(TlsConnector::from(Arc::new(config)).connect(name, near), server.accept(far, &own, H2));
    server.map(|(_, peer)| peer).expect_err("must be refused")
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let error = odd_client(&TestCa::new("root"), false, Some(b"h2")).await;
    assert!(matches!(error, TlsError::NoPeerCertificate), "{error}");
}

/// A ClientHello of RFC 5246: no `supported_versions`, so TLS 1.2 is the best it can do.
fn tls_1_2_client_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d, // supported_groups: x25519
        0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03, // signature_algorithms: ecdsa_secp256r1_sha256
        0x00, 0x10, 0x00, 0x05, 0x00, 0x03, 0x02, b'h', b'2', // ALPN
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]); // random
    body.extend([0x00]); // session id
    body.extend([0x00, 0x02, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    body.extend([0x01, 0x00]); // compression: null
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(u16::try_from(body.len() + 4).unwrap().to_be_bytes());
    record.extend([0x01, 0x00]);
    record.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    record.extend(body);
    record
}

#[tokio::test]
async fn a_client_of_tls_1_2_is_refused() {
    let server = Tls::new(TestCa::new("root").store(&[&db()]));
    let (mut near, far) = wire();
    near.write_all(&tls_1_2_client_hello()).await.unwrap();
    let error = server.accept(far, &db(), H2).await.unwrap_err();
    assert!(matches!(error, TlsError::Incompatible { .. }), "{error}");
}

#[tokio::test]
async fn a_client_without_a_common_application_protocol_is_refused() {
    for alpn in [None, Some(&b"http/1.1"[..])] {
        let error = odd_client(&TestCa::new("root"), true, alpn).await;
        assert!(matches!(error, TlsError::Incompatible { .. }), "{error}");
    }
}

#[tokio::test]
async fn plaintext_is_refused_at_once() {
    let server = Tls::new(TestCa::new("root").store(&[&db()]));
    let (mut near, far) = wire();
    near.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await.unwrap();
    let error = server.accept(far, &db(), H2).await.unwrap_err();
    assert!(matches!(error, TlsError::Protocol { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_at_the_deadline() {
    let tls = Tls::new(TestCa::new("root").store(&[&db(), &web()])).with_deadline(Duration::from_secs(3));
    let began = tokio::time::Instant::now();
    let (_near, far) = wire();
    let error = tls.accept(far, &db(), H2).await.unwrap_err();
    assert!(matches!(error, TlsError::Timeout { .. }), "{error}");
    let (near, _far) = wire();
    let error = tls.connect(near, &web(), &db(), H2).await.unwrap_err();
    assert!(matches!(error, TlsError::Timeout { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), 6);
}

#[tokio::test]
async fn without_an_own_certificate_there_is_no_handshake() {
    let tls = Tls::new(TestCa::new("root").store(&[]));
    let (near, mut far) = wire();
    let error = tls.connect(near, &web(), &db(), H2).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NoCertificate);
    let mut byte = [0];
    assert_eq!(far.read(&mut byte).await.unwrap(), 0, "not a byte was sent");
}

#[tokio::test]
async fn the_session_is_tls_1_3_with_the_hybrid_group_and_no_server_name() {
    let ca = TestCa::new("root");
    let (client, server) = (Tls::new(ca.store(&[&web()])), Tls::new(ca.store(&[&db()])));
    let (near, far) = wire();
    let (own, expected) = (web(), db());
    let (client, server) = tokio::join!(client.connect(near, &own, &expected, H2), server.accept(far, &expected, H2));
    let (client, server) = (client.unwrap().0, server.unwrap().0);
    let session = server.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(session.server_name(), None);
    assert_eq!(client.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

#[test]
fn a_configuration_is_made_once_per_certificate_and_bundle() {
    let ca = TestCa::new("root");
    let store = ca.store(&[&web()]);
    let tls = Tls::new(Arc::clone(&store));
    let server = || tls.configs.server(&web(), H2).unwrap().config;
    let client = |expected: Identity| tls.configs.client(&web(), &expected, H2).unwrap().config;
    let (first_server, first_client) = (server(), client(db()));
    assert!(Arc::ptr_eq(&first_server, &server()) && Arc::ptr_eq(&first_client, &client(db())));
    assert!(!Arc::ptr_eq(&first_client, &client(web())), "another expectation");

    store.install(good(&ca, &web()));
    let renewed = server();
    assert!(!Arc::ptr_eq(&first_server, &renewed), "a renewed certificate takes effect");
    store.set_trust(TestCa::new("new").bundle());
    assert!(!Arc::ptr_eq(&renewed, &server()), "a new bundle takes effect");
}

#[test]
fn no_configuration_keeps_a_key_that_the_store_has_dropped() {
    let store = TestCa::new("root").store(&[&web()]);
    let tls = Tls::new(Arc::clone(&store));
    let key = store.current(&web()).unwrap().weak_key();
    let server = tls.configs.server(&web(), H2).unwrap().config;
    let client = tls.configs.client(&web(), &db(), H2).unwrap().config;
    store.remove(&web());
    assert!(key.upgrade().is_none());
    drop((server, client));
}

#[tokio::test]
async fn two_roots_are_trusted_at_once_and_a_withdrawn_one_no_longer() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let both = TrustBundle::new(&[old.root.clone(), new.root.clone()], 0).unwrap();
    let (client_store, server_store) = (old.store(&[&web()]), new.store(&[&db()]));
    let (client, server) = (Tls::new(Arc::clone(&client_store)), Tls::new(Arc::clone(&server_store)));
    let (own, expected) = (web(), db());
    let attempt = async || {
        let (near, far) = wire();
        let (client, server) =
            tokio::join!(client.connect(near, &own, &expected, H2), server.accept(far, &expected, H2));
        (client.is_ok(), server.is_ok())
    };
    assert_eq!(attempt().await, (false, false), "different roots");
    client_store.set_trust(both.clone());
    server_store.set_trust(both);
    assert_eq!(attempt().await, (true, true), "both roots on both sides");
    server_store.set_trust(new.bundle());
    assert!(!attempt().await.1, "the old root was withdrawn at the server");
}

#[tokio::test]
async fn renewing_certificates_under_load_breaks_no_handshake() {
    const HANDSHAKES: u32 = 300;
    let ca = Arc::new(TestCa::new("root"));
    let store = ca.store(&[&web(), &db()]);
    let tls = Arc::new(Tls::new(Arc::clone(&store)));
    let (own, expected) = (web(), db());
    let renewals = async {
        for _ in 0..HANDSHAKES {
            store.install(good(&ca, &own));
            store.install(good(&ca, &expected));
            tokio::task::yield_now().await;
        }
    };
    let load = async {
        let mut serials = std::collections::BTreeSet::new();
        for n in 0..HANDSHAKES {
            let (near, far) = wire();
            let (client, server) = tokio::join!(tls.connect(near, &own, &expected, H2), tls.accept(far, &expected, H2));
            client.unwrap_or_else(|e| panic!("handshake {n}: {e}"));
            server.unwrap_or_else(|e| panic!("handshake {n}: {e}"));
            serials.insert(store.current(&own).unwrap().generation());
        }
        serials.len()
    };
    let (rotations_seen, ()) = tokio::join!(load, renewals);
    assert!(rotations_seen > 10, "only {rotations_seen} rotations happened during the load");
}
