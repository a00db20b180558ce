//! One connection, watched closely: when it stood, when its first byte came, and how it ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::json;

use crate::options::Options;
use crate::servers::{canonical, print_line};

/// Tells what a client sees that only connects, or sends `--say TEXT`, and waits for the first byte.
///
/// `connect`: `ok` or the error; `read`: `data`, `end`, `silent` or the error.
pub fn probe(options: &Options) -> Result<()> {
    let to = options.target()?;
    let within = options.millis("within-ms", 5000)?;
    let began = Instant::now();
    let mut stream = match connect(to, options.all("bind").next(), within)? {
        Ok(stream) => stream,
        Err(error) => {
            print_line(&json!({ "connect": format!("{:?}", error.kind()), "connect_ms": millis(began) }));
            return Ok(());
        }
    };
    let connected = millis(began);
    // A connection that was reset already has no peer any more; the read tells.
    let address = |address: io::Result<SocketAddr>| address.map(|a| canonical(a).to_string()).unwrap_or_default();
    let (own, peer) = (address(stream.local_addr()), address(stream.peer_addr()));
    stream.set_read_timeout(Some(within))?;
    if let Some(text) = options.all("say").next() {
        // What became of it shows in the read.
        let _ = stream.write_all(text.as_bytes());
    }
    let mut buffer = [0; 256];
    let mut text = String::new();
    let read = match stream.read(&mut buffer) {
        Ok(0) => "end".to_owned(),
        Ok(length) => {
            text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            "data".to_owned()
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => "silent".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    print_line(&json!({
        "connect": "ok",
        "connect_ms": connected,
        "read": read,
        "read_ms": millis(began),
        "text": text,
        "own": own,
        "peer": peer,
    }));
    // `--hold-ms N`: stays connected so that the test can change the world around it, then reads again.
    let hold = options.millis("hold-ms", 0)?;
    if !hold.is_zero() {
        hold_open(stream, hold)?;
    }
    Ok(())
}

/// Connects, from `--bind IP` if given: the outer error is the caller's fault, the inner one is the finding.
fn connect(to: SocketAddr, from: Option<&str>, within: Duration) -> Result<io::Result<TcpStream>> {
    let Some(from) = from else { return Ok(TcpStream::connect_timeout(&to, within)) };
    let from: IpAddr = from.parse()?;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    // A blocking connect() gives up when the time to send has passed.
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(i64::try_from(within.as_millis())?))?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(Ok(TcpStream::from(socket))),
        Err(Errno::EINPROGRESS) => Ok(Err(ErrorKind::TimedOut.into())),
        Err(error) => Ok(Err(error.into())),
    }
}

fn hold_open(mut stream: TcpStream, hold: Duration) -> Result<()> {
    stream.set_read_timeout(Some(hold))?;
    let began = Instant::now();
    let mut byte = [0];
    let read = match stream.read(&mut byte) {
        Ok(0) => "end".to_owned(),
        Ok(_) => "data".to_owned(),
        Err(error) if error.kind() == ErrorKind::WouldBlock => "silent".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    print_line(&json!({ "held": read, "held_ms": millis(began) }));
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
