//! Servers of one purpose each: a thread per connection, a line of JSON per event.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::Builder;

use anyhow::{Context, Result, bail};
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{self, Backlog, setsockopt};
use serde_json::json;

use crate::options::Options;
use crate::pattern;

/// Thousands of connections at once must fit.
const STACK_BYTES: usize = 128 * 1024;

/// Connections that wait for the accepting thread's turn; the kernel's own default limit.
const QUEUE: i32 = 4096;

/// What a server does with one connection; what it returns is printed.
pub type Service = fn(TcpStream, SocketAddr, &Options) -> Result<serde_json::Value>;

/// Serves for ever, a thread per connection, on `--ports N` ports from `--port` on (one by default).
pub fn serve(options: &Options, service: Service) -> Result<()> {
    let port: u16 = options.required("port")?;
    let ports: u16 = options.or("ports", 1)?;
    let shared = Arc::new(Options::parse(std::env::args().skip(2))?);
    let mut last = Ok(());
    std::thread::scope(|scope| -> Result<()> {
        let mut accepting = Vec::new();
        for port in port..port.saturating_add(ports) {
            let listener = listen(port)?;
            let shared = &shared;
            accepting.push(scope.spawn(move || accept(&listener, shared, service)));
        }
        for thread in accepting {
            last = thread.join().unwrap_or_else(|_| bail!("an accepting thread panicked"));
        }
        Ok(())
    })?;
    last
}

/// Listens on every address, of both families.
pub fn listen(port: u16) -> Result<TcpListener> {
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on port {port}"))?;
    // Listening again only changes the queue's length: the standard library's is 128, too short for a burst.
    socket::listen(&listener, Backlog::new(QUEUE)?)?;
    Ok(listener)
}

fn accept(listener: &TcpListener, options: &Arc<Options>, service: Service) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().context("cannot accept")?;
        let options = Arc::clone(options);
        let work = move || {
            let ended = match service(stream, peer, &options) {
                Ok(value) => value,
                Err(error) => json!({ "error": format!("{error:#}") }),
            };
            print_line(&json!({ "peer": canonical(peer).to_string(), "ended": ended }));
        };
        Builder::new().stack_size(STACK_BYTES).spawn(work).context("cannot start a thread")?;
    }
}

/// Prints `value` as one line, whole even when threads print at once.
pub fn print_line(value: &serde_json::Value) {
    let mut line = value.to_string();
    line.push('\n');
    // A reader that has gone away is no reason to stop serving.
    let _ = io::stdout().lock().write_all(line.as_bytes());
}

/// IPv4 peers of a dual-stack socket as what they are.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub fn echo(mut stream: TcpStream, _: SocketAddr, _: &Options) -> Result<serde_json::Value> {
    let mut buffer = vec![0; 16 * 1024];
    let mut total = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
        total += length;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(json!({ "bytes": total }))
}

pub fn greeter(mut stream: TcpStream, peer: SocketAddr, options: &Options) -> Result<serde_json::Value> {
    stream.write_all(b"220 greeter ready\r\n")?;
    echo(stream, peer, options)
}

pub fn sink(stream: TcpStream, _: SocketAddr, _: &Options) -> Result<serde_json::Value> {
    let mut reader = BufReader::new(stream);
    let mut total = 0;
    loop {
        let length = reader.fill_buf()?.len();
        if length == 0 {
            return Ok(json!({ "bytes": total }));
        }
        total += length;
        reader.consume(length);
    }
}

pub fn after_eof(mut stream: TcpStream, peer: SocketAddr, options: &Options) -> Result<serde_json::Value> {
    let got = sink(stream.try_clone()?, peer, options)?;
    pattern::send(&mut stream, 1, options.required("bytes")?)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(got)
}

pub fn early_fin(mut stream: TcpStream, peer: SocketAddr, options: &Options) -> Result<serde_json::Value> {
    stream.write_all(b"bye\n")?;
    stream.shutdown(Shutdown::Write)?;
    sink(stream, peer, options)
}

pub fn reset(mut stream: TcpStream, _: SocketAddr, _: &Options) -> Result<serde_json::Value> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    // Closing with a linger time of zero sends RST.
    setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(json!("reset"))
}
