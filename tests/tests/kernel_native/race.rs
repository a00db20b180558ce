//! The race hunter: many threads connect in every way there is while the rules change under them.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_agent::model::policy::Action;
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_tests::pod::Pod;
use mesh_tests::{scale, sys, wait};

use crate::bench::*;
use crate::pair::*;

/// Allowed by every rule set.
const ALWAYS: u16 = 8001;
/// Allowed by every other one.
const SOMETIMES: u16 = 8002;
/// Forbidden by every one.
const NEVER: u16 = 8003;
const THREADS: usize = 8;

/// The ways in which an application may connect.
const WAYS: [fn(SocketAddr) -> std::io::Result<TcpStream>; 7] = [
    |to| TcpStream::connect(to),
    mapped,
    sys::non_blocking_connect,
    sys::fast_open_send,
    sys::multipath_connect,
    sys::uring_connect,
    sys::connect_again,
];

fn mapped(to: SocketAddr) -> std::io::Result<TcpStream> {
    match to.ip() {
        IpAddr::V4(v4) => TcpStream::connect(SocketAddr::new(v4.to_ipv6_mapped().into(), to.port())),
        IpAddr::V6(_) => TcpStream::connect(to),
    }
}

/// What the threads saw.
#[derive(Default)]
struct Seen {
    allowed_and_refused: AtomicU64,
    forbidden_and_taken: AtomicU64,
    connections: AtomicU64,
}

#[test]
fn rules_that_change_under_connections_lose_none_and_leak_none() -> Result<()> {
    hunt(false)
}

/// With SYN cookies the server looks the connection up again at the last step of its handshake.
#[test]
fn the_same_holds_with_syn_cookies() -> Result<()> {
    hunt(true)
}

fn hunt(cookies: bool) -> Result<()> {
    let wanted: u64 = scale::pick(20_000, 200_000);
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Strict)?;
        for pod in [&client, &server] {
            // Client, server, data without a cookie, every listener; MPTCP is on by default.
            pod.netns().sysctl("net/ipv4/tcp_fastopen", "1543")?;
            pod.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
            pod.netns().sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        }
        if cookies {
            server.netns().sysctl("net/ipv4/tcp_syncookies", "2")?;
        }
        let done = AtomicBool::new(false);
        let seen = Seen::default();
        let rules = |open: bool| {
            let ports = if open { vec![ALWAYS, SOMETIMES] } else { vec![ALWAYS] };
            vec![rule("hunted", Action::Allow, Some(client.name()), Some(ports))]
        };
        bench.policies = rules(false);
        bench.sync()?;
        let listeners = server.netns().run(|| [ALWAYS, SOMETIMES, NEVER].map(listen))?;
        let listeners: Vec<TcpListener> = listeners.into_iter().collect::<std::io::Result<_>>()?;
        std::thread::scope(|scope| -> Result<()> {
            for listener in &listeners {
                scope.spawn(|| accept_until(listener, &done));
            }
            let threads: Vec<_> = (0..THREADS)
                .map(|at| {
                    let (client, server, seen, done) = (&client, &server, &seen, &done);
                    scope.spawn(move || dial_until(at, client, server, wanted, seen, done))
                })
                .collect();
            // An emulated processor that others use as well makes some hundred connections a second.
            let deadline = Instant::now() + Duration::from_secs(scale::pick(300, 600));
            let mut open = false;
            let mut flips = 0;
            while seen.connections.load(Relaxed) < wanted && Instant::now() < deadline {
                open = !open;
                bench.policies = rules(open);
                bench.sync()?;
                flips += 1;
                wait::pause(Duration::from_millis(100));
            }
            done.store(true, Relaxed);
            for thread in threads {
                thread.join().ok().context("a dialler panicked")??;
            }
            ensure!(flips > 3, "the rules changed {flips} times only");
            Ok(())
        })?;
        let [connections, refused, taken] =
            [&seen.connections, &seen.allowed_and_refused, &seen.forbidden_and_taken].map(|count| count.load(Relaxed));
        ensure!(connections >= wanted, "{connections} of {wanted} connections in time");
        ensure!(refused == 0, "{refused} of {connections} were refused although all rules allow them");
        ensure!(taken == 0, "{taken} of {connections} were accepted although all rules forbid them");
        ensure!(bench.count(Counter::ConnectDenied) > 0, "nothing was denied");
        drop(listeners);
        crate::nothing_left(bench)
    })
}

/// The server closes without reading: data in the SYN brings a reset, of a connection that stood; EPIPE when its FIN
/// came before. One that is refused has never left SYN_SENT and sees ECONNREFUSED.
fn was_reset(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
}

/// A dual-stack listener.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port))
}

/// Accepts and closes: the server closes first, so that the client's ports are free again at once. Data that came in
/// the SYN is read before: closing would reset a connection whose SYN-ACK is still under way, and a reset that
/// overtakes it is to the client a refusal.
fn accept_until(listener: &TcpListener, done: &AtomicBool) -> Result<()> {
    listener.set_nonblocking(true)?;
    while !done.load(Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(true)?;
                // Most send none.
                let _ = stream.read(&mut [0; 16]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => wait::pause(Duration::from_micros(200)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn dial_until(at: usize, client: &Pod, server: &Pod, wanted: u64, seen: &Seen, done: &AtomicBool) -> Result<()> {
    client.netns().run(|| {
        let mut turn = at;
        while !done.load(Relaxed) && seen.connections.load(Relaxed) < wanted {
            turn += 1;
            let way = WAYS[turn % WAYS.len()];
            let port = [ALWAYS, SOMETIMES, NEVER, ALWAYS][turn / WAYS.len() % 4];
            let ip = server.ips()[turn / 7 % 2];
            let outcome = way(SocketAddr::new(ip, port));
            seen.connections.fetch_add(1, Relaxed);
            let stood = outcome.as_ref().map_or_else(was_reset, |_| true);
            if stood != (port == ALWAYS) && port != SOMETIMES {
                eprintln!("way {} to {ip} port {port}: {outcome:?}", turn % WAYS.len());
                let wrong = if stood { &seen.forbidden_and_taken } else { &seen.allowed_and_refused };
                wrong.fetch_add(1, Relaxed);
            }
        }
    })
}
