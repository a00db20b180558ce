//! Connections that newer rules forbid end; the others do not notice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Result, ensure};
use mesh_agent::capture::{DirectConnection, KernelEvent};
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

/// What an allowed client has sent is the server's to read, however late: the record names the client until both ends
/// are closed.
#[test]
fn a_server_that_still_reads_what_its_client_left_is_judged_by_who_that_was() -> Result<()> {
    node(|bench| {
        let Pair { client, server, client_net, server_net } = pair(bench, PeerMode::Strict)?;
        let mut events = Events::of(bench)?;
        let (mut near, mut far) = connected(&client, &server, 8080)?;
        near.write_all(&[7; 5000])?;
        drop(near);
        let told = events.until(|event| match event {
            KernelEvent::Closed(closed) => Some(*closed),
            KernelEvent::Refused(_) => None,
        })?;
        assert_eq!((told.connection.traffic.sent, told.failed), (5000, false), "the client's end is closed");
        assert_eq!(records(bench)?[&client_net.netns_cookie()], 1, "it counts for as long as the record stays");
        let sweep = bench.kernel.sweep();
        assert_eq!((sweep.live, sweep.orphans), (vec![], 0), "neither live nor lost");
        let own = |connection: &DirectConnection| connection.client.as_deref() == Some(client.name());
        assert_eq!(server_net.end_direct(own)?, [], "what is allowed is ended");
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes)?;
        assert_eq!(bytes, [7; 5000]);

        let (near, forbidden) = connected(&client, &server, 8081)?;
        drop(near);
        let ended = server_net.end_direct(|connection| connection.local.port() != 8081)?;
        assert_eq!(ended.iter().map(|ended| ended.client.as_deref()).collect::<Vec<_>>(), [Some(client.name())]);
        drop((far, forbidden));
        crate::nothing_left(bench)
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
