//! TLS of the API server, on the same ports as plain HTTP: the first byte of a connection tells them apart.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// A TLS record of a handshake begins with it (RFC 8446 §5.1); no method of HTTP does.
const HANDSHAKE: u8 = 22;

/// Anything that bytes come from and go to.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The server's certificate with its key.
pub struct Identity {
    /// The certificate, by which clients know the server.
    pub pem: String,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// A new one for these addresses.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(addresses: impl Iterator<Item = SocketAddr>) -> Result<Self> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
        let certificate = CertificateParams::new(names)?.self_signed(&key)?;
        let secret = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .context("the API server's own certificate")?;
        Ok(Self { pem: certificate.pem(), acceptor: Arc::new(config).into() })
    }

    /// The bytes of a connection, out of TLS if the client speaks it.
    ///
    /// # Errors
    /// When it ends before, or a handshake fails.
    pub async fn open(&self, stream: TcpStream) -> io::Result<Box<dyn Io>> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first == [HANDSHAKE] {
            return Ok(Box::new(self.acceptor.accept(stream).await?));
        }
        Ok(Box::new(stream))
    }
}
