//! Streams: what one end does, the other sees as it would without the mesh.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::scenario;
use mesh_tests::{dial, scale};
use nix::sys::socket::{MsgFlags, send};

use crate::world::{Case, Ends, STREAMS, Transcript, World};

/// Far above what any lane adds, far below any wait for a client that stays silent.
const AT_ONCE: Duration = Duration::from_millis(250);
/// A long answer.
const LONG: usize = 3_000_000;

const CASES: &[Case] = &[
    ("a server that speaks first is heard at once", |ends| {
        let mut server = ends.accept()?;
        let since = Instant::now();
        server.write_all(b"220 ready\r\n")?;
        Ok(vec![told(&mut ends.client, 11)?, format!("at once: {}", since.elapsed() < AT_ONCE)])
    }),
    ("a client that has ended its data reads a long answer", |ends| {
        let mut server = ends.accept()?;
        ends.client.write_all(b"question")?;
        ends.client.shutdown(Shutdown::Write)?;
        let asked = ending(&mut server);
        Ok(vec![asked, answer(server, &mut ends.client)?])
    }),
    ("a server that has ended its data reads on", |ends| {
        let mut server = ends.accept()?;
        server.write_all(b"bye")?;
        server.shutdown(Shutdown::Write)?;
        let bye = ending(&mut ends.client);
        let client = ends.client.try_clone()?;
        Ok(vec![bye, answer(client, &mut server)?])
    }),
    ("a reset by the client", |ends| {
        let mut server = ends.accept()?;
        ends.client.write_all(b"before\n")?;
        let before = told(&mut server, 7)?;
        let client = std::mem::replace(&mut ends.client, server.try_clone()?);
        reset(client)?;
        Ok(vec![before, ending(&mut server)])
    }),
    ("a reset by the server", |ends| {
        let mut server = ends.accept()?;
        server.write_all(b"before")?;
        let before = told(&mut ends.client, 6)?;
        reset(server)?;
        Ok(vec![before, ending(&mut ends.client)])
    }),
    ("a byte at a time", |ends| {
        let mut server = ends.accept()?;
        let mut transcript = Vec::new();
        for byte in 0..64_u8 {
            ends.client.write_all(&[byte])?;
            transcript.push(told(&mut server, 1)?);
            server.write_all(&[byte ^ 0xff])?;
            transcript.push(told(&mut ends.client, 1)?);
        }
        Ok(transcript)
    }),
    ("no byte at all", |ends| {
        let mut server = ends.accept()?;
        ends.client.shutdown(Shutdown::Write)?;
        let first = ending(&mut server);
        drop(server);
        Ok(vec![first, ending(&mut ends.client)])
    }),
    ("addresses", addresses),
    ("options of the client's socket", |ends| {
        let _server = ends.accept()?;
        let client = socket2::SockRef::from(&ends.client);
        client.set_keepalive(true)?;
        client.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(7)))?;
        let idle = client.tcp_keepalive_time()?;
        Ok(vec![format!("{} {idle:?} {}", client.keepalive()?, client.tcp_nodelay()?)])
    }),
    ("out-of-band data leaves what is in band as it was", |ends| {
        let mut server = ends.accept()?;
        ends.client.write_all(b"a\n")?;
        let before = told(&mut server, 2)?;
        send(ends.client.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
        ends.client.write_all(b"cd")?;
        ends.client.shutdown(Shutdown::Write)?;
        Ok(vec![before, ending(&mut server)])
    }),
    ("both at once", |ends| {
        let server = ends.accept()?;
        let bytes = scale::pick(8 << 20, 1 << 30);
        let client = ends.client.try_clone()?;
        let (up, down) = std::thread::scope(|scope| {
            let server_end = scope.spawn(|| both(&server, bytes, 1));
            let client_end = both(&client, bytes, 2);
            (client_end, server_end.join())
        });
        let down = down.ok().context("the server's end panicked")?;
        Ok(vec![up?, down?])
    }),
];

#[test]
fn streams_are_what_they_are_without_the_mesh() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        // Opened first and used last: nothing may have ended them meanwhile.
        let idle = world.connections(STREAMS)?;
        world.same(STREAMS, &[0, 1], CASES.iter().copied())?;
        every_way_to_connect(&world)?;
        crate::tls::server_names_are_seen_and_certificates_are_the_servers_own(&world)?;
        for (mut ends, mut server) in idle {
            ends.client.write_all(b"still")?;
            server.write_all(b"there")?;
            let heard = (told(&mut server, 5)?, told(&mut ends.client, 5)?);
            ensure!(heard == ("still".to_owned(), "there".to_owned()), "{:?}: {heard:?}", ends.way.lane);
        }
        Ok(())
    })
}

fn every_way_to_connect(world: &World) -> Result<()> {
    for lane in STREAMS {
        for (number, (how, _)) in dial::WAYS.iter().enumerate() {
            let way = world.way(*lane)?;
            let mut ends = way.open_by(number, 0).with_context(|| format!("{how}, {lane:?}"))?;
            let mut server = ends.accept().with_context(|| format!("{how}, {lane:?}"))?;
            ends.client.write_all(b"hello")?;
            ends.client.shutdown(Shutdown::Write)?;
            let heard = ending(&mut server);
            let expected = if *how == dial::FAST_OPEN { "xhello, end" } else { "hello, end" };
            ensure!(heard == expected, "{how}, {lane:?}: {heard}");
        }
    }
    Ok(())
}

/// What each end takes itself and the other for. Ports are the kernel's choice, but for those that were dialled.
fn addresses(ends: &mut Ends<'_>) -> Result<Transcript> {
    let server = ends.accept()?;
    let canonical = |address: std::net::SocketAddr| address.ip().to_canonical();
    let (client, way) = (&ends.client, ends.way);
    let family = usize::from(ends.dialled.is_ipv6());
    Ok(vec![
        format!("the client's peer is what it dialled: {}", client.peer_addr()? == ends.dialled),
        format!("its own address is its pod's: {}", canonical(client.local_addr()?) == way.client.ips()[family]),
        format!(
            "the server's peer is the client's pod: {}",
            canonical(server.peer_addr()?) == way.client.ips()[family]
        ),
        format!("its own address is its pod's: {}", canonical(server.local_addr()?) == way.server.ips()[family]),
        format!("its port is the one it listens on: {}", server.local_addr()?.port() == crate::world::PORT),
    ])
}

/// Reads so many bytes.
pub fn told(stream: &mut TcpStream, count: usize) -> Result<String> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes)?;
    Ok(bytes.escape_ascii().to_string())
}

/// Reads to the end: what came, and how it ended.
pub fn ending(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let end = match stream.read_to_end(&mut bytes) {
        Ok(_) => "end".to_owned(),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    format!("{}, {end}", bytes.escape_ascii())
}

/// Sends a long answer from a thread of its own; what came of it.
fn answer(mut from: TcpStream, to: &mut TcpStream) -> Result<String> {
    let bytes: Vec<u8> = pattern(LONG, 3).collect();
    let sent = std::thread::spawn(move || {
        from.write_all(&bytes)?;
        from.shutdown(Shutdown::Write)
    });
    let mut read = Vec::new();
    to.read_to_end(&mut read)?;
    sent.join().ok().context("the sender panicked")??;
    Ok(format!("{} bytes, {}", read.len(), read.iter().copied().eq(pattern(LONG, 3))))
}

fn both(stream: &TcpStream, bytes: usize, seed: usize) -> Result<String> {
    let (mut reader, mut writer) = (stream, stream);
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> std::io::Result<()> {
            let piece: Vec<u8> = pattern(PIECE, seed).collect();
            for _ in 0..bytes / PIECE {
                writer.write_all(&piece)?;
            }
            writer.shutdown(Shutdown::Write)
        });
        let (mut hasher, mut count) = (DefaultHasher::new(), 0);
        let mut piece = vec![0; PIECE];
        loop {
            // By whole pieces, so that their number does not depend on how the bytes came.
            let length = fill(&mut reader, &mut piece)?;
            if length == 0 {
                break;
            }
            count += length;
            hasher.write(&piece[..length]);
        }
        sender.join().ok().context("the sender panicked")??;
        Ok(format!("{count} bytes, {:x}", hasher.finish()))
    })
}

const PIECE: usize = 1 << 20;

fn fill(reader: &mut impl Read, piece: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match reader.read(&mut piece[length..])? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

fn pattern(count: usize, seed: usize) -> impl Iterator<Item = u8> {
    (0..count).map(move |i| ((i / 7 + i / 4099 + seed) % 251) as u8)
}

/// Closes with RST.
pub fn reset(stream: TcpStream) -> Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}
