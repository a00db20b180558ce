//! TLS of the applications' own: it passes as it is.

use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, Stream};

use crate::world::{Ends, Lane, STREAMS, Transcript, World};

const NAME: &str = "secret.example";

/// One certificate for every way, so that what is seen can be compared.
pub fn server_names_are_seen_and_certificates_are_the_servers_own(world: &World) -> Result<()> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = client;
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (client, server) = (Arc::new(client), Arc::new(server));
    world.same(STREAMS, &[0], [("the application's own TLS", |ends: &mut Ends<'_>| talk(ends, &client, &server))])?;
    let found = talk(&mut world.way(Lane::Direct)?.open(0)?, &client, &server)?;
    ensure!(found[0].contains(NAME), "{found:?}");
    Ok(())
}

fn talk(ends: &mut Ends<'_>, client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Transcript> {
    let mut stream = ends.client.try_clone()?;
    let client = Arc::clone(client);
    let asking = std::thread::spawn(move || -> Result<String> {
        let mut session = ClientConnection::new(client, ServerName::try_from(NAME)?)?;
        let mut tls = Stream::new(&mut session, &mut stream);
        tls.write_all(b"hello")?;
        let mut answer = [0; 5];
        tls.read_exact(&mut answer)?;
        let certificate = session.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
        let sum: u64 = certificate.iter().map(|byte| u64::from(*byte)).sum();
        Ok(format!("{} from {sum}, {:?}", answer.escape_ascii(), session.protocol_version()))
    });
    let mut stream = ends.accept()?;
    let mut session = ServerConnection::new(Arc::clone(server))?;
    let mut tls = Stream::new(&mut session, &mut stream);
    let mut asked = [0; 5];
    tls.read_exact(&mut asked)?;
    tls.write_all(b"there")?;
    tls.flush()?;
    let seen = format!("{} for {:?} by {:?}", asked.escape_ascii(), session.server_name(), session.alpn_protocol());
    Ok(vec![seen, asking.join().ok().context("the client panicked")??])
}
