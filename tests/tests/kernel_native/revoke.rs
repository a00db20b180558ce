//! Connections that newer rules forbid end; the others do not notice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Result, ensure};
use mesh_agent::model::policy::Action;
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;

use crate::bench::*;
use crate::pair::*;

#[test]
fn a_live_connection_is_judged_with_its_clients_identity() -> Result<()> {
    node(|bench| {
        let Pair { client, server, server_net, .. } = pair(bench, PeerMode::Strict)?;
        let (mut near, mut far) = connected(&client, &server, 8080)?;
        let named = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&named);
        let ended = server_net.end_direct(move |connection| {
            seen.lock().unwrap().push(connection.client.clone());
            true
        })?;
        assert_eq!(ended, []);
        assert_eq!(*named.lock().unwrap(), [Some(client.name().into())], "the client is known by its record");
        near.write_all(b"still")?;
        let mut bytes = [0; 5];
        far.read_exact(&mut bytes)?;

        let ended = server_net.end_direct(|_| false)?;
        assert_eq!(ended.len(), 1);
        ensure!(near.read(&mut bytes).is_err(), "the client's end still stands");
        ensure!(far.read(&mut bytes).is_err(), "the server's end still stands");
        Ok(())
    })
}

/// The verdict of `connect()` is no permit: with TCP_FASTOPEN_CONNECT the SYN leaves with the first write, and the
/// rules may have changed by then.
#[test]
fn the_receiver_decides_by_the_rules_that_hold_when_the_syn_arrives() -> Result<()> {
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Strict)?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let to = SocketAddr::new(server.ip(), 8080);
        // Client and server, data in the SYN without a cookie, for every listener (tcp_fastopen of ip-sysctl).
        for netns in [client.netns(), server.netns()] {
            netns.sysctl("net/ipv4/tcp_fastopen", "1543")?;
        }
        let mut socket = client.netns().run(|| mesh_tests::sys::fast_open_connect(to))??;
        bench.policies = vec![rule("too-late", Action::Deny, Some(client.name()), None)];
        bench.sync()?;
        let written = socket.write(b"x");
        ensure!(written.is_err(), "a SYN under rules that forbid it was taken: {written:?}");
        assert_eq!(counts(bench, [Counter::ConnectNative, Counter::LookupDenied]), [1, 1]);
        Ok(())
    })
}

/// Both ends of a connection.
pub fn connected(
    client: &mesh_tests::pod::Pod,
    server: &mesh_tests::pod::Pod,
    port: u16,
) -> Result<(TcpStream, TcpStream)> {
    let to = SocketAddr::new(server.ip(), port);
    let listener = server.netns().run(|| TcpListener::bind(to))??;
    let near = client.netns().run(|| TcpStream::connect(to))??;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(SOON))?;
    }
    Ok((near, far))
}
