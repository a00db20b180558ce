//! What the http lane holds: nothing that grows with a body's length, and little for a client that is silent.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{Mesh, scenario};
use mesh_tests::scale;
use mesh_tests::topology::Side;
use nix::sys::resource::{Resource, getrlimit};

use crate::http1::{OK, talk};
use crate::message::{Kind, Reader};
use crate::world::{Ends, Lane, WITHIN, World};

/// One agent's share of a connection that waits for its next request: two ends of HTTP/1, and what is between them.
const IDLE_BYTES: u64 = 64 << 10;
/// One agent's share of a body on its way: buffers of the kernel do not count.
const BODY_BYTES: u64 = 8 << 20;
/// What the allocator may keep of anything.
const SLACK_BYTES: u64 = 8 << 20;

/// So many looks without progress: it is held back.
const LOOKS: usize = 50;

fn send(mut stream: &TcpStream, head: &str, bytes: usize, sent: &AtomicUsize) -> Result<()> {
    stream.write_all(head.as_bytes())?;
    let piece = [b'x'; 64 << 10];
    for _ in 0..bytes / piece.len() {
        stream.write_all(&piece)?;
        sent.fetch_add(piece.len(), Ordering::Relaxed);
    }
    Ok(())
}

fn memory(mesh: &Mesh) -> Result<[u64; 2]> {
    Ok([mesh.agent(Side::A)?.process().rss_bytes()?, mesh.agent(Side::B)?.process().rss_bytes()?])
}

fn has_grown(mesh: &Mesh, before: [u64; 2], most: u64, what: &str) -> Result<()> {
    let now = memory(mesh)?;
    let grown = [now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1])];
    eprintln!("{what}: the agents have grown by {} and {} KiB", grown[0] >> 10, grown[1] >> 10);
    ensure!(grown.iter().all(|grown| *grown <= most), "{what}: grown by {grown:?} bytes, more than {most}");
    Ok(())
}

#[test]
fn idle_connections_and_endless_bodies_hold_little() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let way = world.way(Lane::Http)?;
        let request = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
        let open = || -> Result<(Ends<'_>, TcpStream)> {
            let ends = way.open(0)?;
            let server = ends.accept()?;
            talk(&ends.client, &server, request, OK)?;
            Ok((ends, server))
        };
        open().context("the first one")?;

        let before = memory(mesh)?;
        // Both ends of each are this process's.
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let count = scale::pick(300, 10_000.min(descriptors.saturating_sub(500) / 2));
        eprintln!("{count} idle connections");
        let idle: Vec<(Ends<'_>, TcpStream)> = (0..count).map(|_| open()).collect::<Result<_>>()?;
        has_grown(mesh, before, count * IDLE_BYTES + SLACK_BYTES, "idle connections")?;
        for (ends, server) in &idle {
            let [asked, answered] = talk(&ends.client, server, request, OK)?;
            ensure!(asked.starts_with("GET /a") && answered.ends_with("ok"), "{asked} {answered}");
        }
        drop(idle);

        let before = memory(mesh)?;
        let bytes = scale::pick(64 << 20, 10 << 30);
        let (ends, server) = open()?;
        (&ends.client).write_all(request)?;
        Reader::new(&server).message(Kind::Request)?;
        // A server that sends for ever to a client that does not read: it is held back, and the agents hold little.
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
        let sent = Arc::new(AtomicUsize::new(0));
        let sender = {
            let sent = Arc::clone(&sent);
            std::thread::spawn(move || send(&server, &head, bytes, &sent))
        };
        let mut last = (0, 0);
        mesh_tests::wait::until("the sender is held back", WITHIN, || {
            let now = sent.load(Ordering::Relaxed);
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            mesh_tests::wait::holds(now > 0 && last.1 >= LOOKS, || format!("{now} bytes"))
        })?;
        ensure!(sent.load(Ordering::Relaxed) < bytes, "{bytes} bytes have fitted in");
        has_grown(mesh, before, BODY_BYTES + SLACK_BYTES, "a client that does not read")?;
        let mut answer = Reader::new(&ends.client);
        answer.until(b"\r\n\r\n")?;
        let read = answer.skip(bytes)?;
        sender.join().ok().context("the sender panicked")??;
        ensure!(read == bytes, "{read} of {bytes} bytes");
        has_grown(mesh, before, BODY_BYTES + SLACK_BYTES, "a long body")
    })
}
