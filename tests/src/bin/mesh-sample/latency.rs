//! Clients that time one thing many times over: a round trip on one connection, or `connect()` itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use serde_json::json;

use crate::options::Options;
use crate::servers::print_line;

/// Not counted: the first ones fill caches.
const WARM_UP: usize = 500;

/// `--bytes` to and fro on one connection, `--count` times, one at a time.
pub fn pingpong(options: &Options) -> Result<()> {
    let message = vec![b'p'; options.or("bytes", 64)?];
    let mut answer = vec![0; message.len()];
    let mut stream = TcpStream::connect(options.target()?)?;
    stream.set_nodelay(true)?;
    times(options, || {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    })
}

/// `connect()` alone, `--count` times, one at a time.
pub fn connect(options: &Options) -> Result<()> {
    let to = options.target()?;
    times(options, || {
        let start = Instant::now();
        let stream = TcpStream::connect(to)?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        // Reset: 60 s of TIME_WAIT for each would use up the ports.
        setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        Ok(took)
    })
}

/// Measures `--count` times and prints the percentiles.
fn times(options: &Options, mut once: impl FnMut() -> Result<f64>) -> Result<()> {
    let count: usize = options.required("count")?;
    let mut micros = Vec::with_capacity(count);
    for number in 0..WARM_UP + count {
        let took = once()?;
        if number >= WARM_UP {
            micros.push(took);
        }
    }
    micros.sort_by(f64::total_cmp);
    let at = |part: usize| micros.get(count * part / 100).copied().context("--count must be at least 1");
    print_line(&json!({ "count": count, "p50_us": at(50)?, "p99_us": at(99)? }));
    Ok(())
}
