//! A client that speaks the tunnel's protocol but plays no fair game: any certificate or none, any target.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use h2::client;
use http::{Method, Request, Uri};
use mesh_tests::netns::Netns;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

const WITHIN: Duration = Duration::from_secs(10);

/// What the rogue shows.
pub enum Shown {
    /// No certificate at all.
    Nothing,
    /// One for this SPIFFE id that a CA of its own signed.
    Forged(String),
    /// One for this SPIFFE id that the mesh's CA signed, with the root key of its state folder.
    Genuine(String),
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The TCP connection did not come about.
    NotConnected(String),
    /// The TLS session was refused or ended before any answer.
    NotTrusted(String),
    /// The request was answered with this status.
    Status(u16),
}

/// Sends a CONNECT for `authority` to `to` from inside `netns`.
pub fn connect(netns: &Netns, to: SocketAddr, shown: &Shown, ca: &Path, authority: &str) -> Result<Answer> {
    let config = Arc::new(tls_config(shown, ca)?);
    netns.run(|| {
        let stream = match TcpStream::connect_timeout(&to, WITHIN) {
            Ok(stream) => stream,
            Err(error) => return Ok(Answer::NotConnected(format!("{:?}", error.kind()))),
        };
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let asked = tokio::time::timeout(WITHIN, ask(stream, to, config, authority));
            match asked.await.context("no answer in time")? {
                Ok(status) => Ok(Answer::Status(status)),
                Err(error) => Ok(Answer::NotTrusted(format!("{error:#}"))),
            }
        })
    })?
}

async fn ask(stream: TcpStream, to: SocketAddr, config: Arc<ClientConfig>, authority: &str) -> Result<u16> {
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let tls = TlsConnector::from(config).connect(ServerName::from(to.ip()), stream).await?;
    let (mut requests, connection) = client::handshake(tls).await?;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(Uri::builder().authority(authority).build()?)
        .body(())
        .context("not a request")?;
    let exchange = async {
        let (response, _stream) = requests.send_request(request, false)?;
        Ok::<u16, anyhow::Error>(response.await?.status().as_u16())
    };
    tokio::select! {
        status = exchange => status,
        ended = connection => Err(ended.err().map_or_else(|| anyhow!("the connection ended"), Into::into)),
    }
}

fn tls_config(shown: &Shown, ca: &Path) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match shown {
        Shown::Nothing => builder.with_no_client_auth(),
        Shown::Forged(id) => {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let (chain, key) = leaf(id, &Issuer::new(params, key))?;
            builder.with_client_auth_cert(chain, key)?
        }
        Shown::Genuine(id) => {
            let file = |name: &str| {
                let path = ca.join("ca").join(name);
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
            };
            let issuer = Issuer::from_ca_cert_pem(&file("root.crt")?, KeyPair::from_pem(&file("root.key")?)?)?;
            let (chain, key) = leaf(id, &issuer)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

type Chain = (Vec<CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

fn leaf(id: &str, issuer: &Issuer<'_, KeyPair>) -> Result<Chain> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    let certificate = params.signed_by(&key, issuer)?;
    Ok((vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
}

/// Trusts every server: a rogue does not care whom it robs.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519, SignatureScheme::RSA_PSS_SHA256]
    }
}
