//! One connection, watched closely: when it stood, when its first byte came, and how it ended.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
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
    let mut stream = match TcpStream::connect_timeout(&to, within) {
        Ok(stream) => stream,
        Err(error) => {
            print_line(&json!({ "connect": format!("{:?}", error.kind()), "connect_ms": millis(began) }));
            return Ok(());
        }
    };
    let connected = millis(began);
    let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
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
        "own": canonical(own).to_string(),
        "peer": canonical(peer).to_string(),
    }));
    // `--hold-ms N`: stays connected so that the test can change the world around it, then reads again.
    let hold = options.millis("hold-ms", 0)?;
    if !hold.is_zero() {
        hold_open(stream, hold)?;
    }
    Ok(())
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
