//! Long streams in both directions at once, and either side's early end of data.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::options::Options;
use crate::pattern;
use crate::servers::print_line;

/// Streams of the two directions differ, so that an echo is not taken for an answer.
const TO_SERVER: u64 = 2;
const TO_CLIENT: u64 = 3;

fn both_ways(stream: &TcpStream, send: u64, check: u64, bytes: u64) -> Result<()> {
    let sender = stream.try_clone()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || {
            pattern::send(&sender, send, bytes).context("sending")?;
            sender.shutdown(Shutdown::Write).context("ending")
        });
        pattern::check(stream, check, bytes).context("receiving")?;
        sending.join().map_err(|_| anyhow!("the sender panicked"))?
    })
}

/// Both directions at once, server's side.
pub fn server(stream: TcpStream, _: SocketAddr, options: &Options) -> Result<Value> {
    let bytes = options.required("bytes")?;
    both_ways(&stream, TO_CLIENT, TO_SERVER, bytes)?;
    Ok(json!({ "intact": bytes }))
}

/// Both directions at once, client's side.
pub fn client(options: &Options) -> Result<()> {
    let bytes = options.required("bytes")?;
    let stream = TcpStream::connect(options.target()?)?;
    both_ways(&stream, TO_SERVER, TO_CLIENT, bytes)?;
    print_line(&json!({ "intact": bytes }));
    Ok(())
}

/// Ends its own data at once and then reads a long answer.
pub fn half_close(options: &Options) -> Result<()> {
    let bytes = options.required("bytes")?;
    let mut stream = TcpStream::connect(options.target()?)?;
    stream.write_all(b"a question\n")?;
    stream.shutdown(Shutdown::Write)?;
    pattern::check(&stream, 1, bytes)?;
    print_line(&json!({ "intact": bytes }));
    Ok(())
}

/// Reads the server's early end of data and then sends.
pub fn late(options: &Options) -> Result<()> {
    let bytes = options.required("bytes")?;
    let mut stream = TcpStream::connect(options.target()?)?;
    let mut farewell = String::new();
    stream.read_to_string(&mut farewell)?;
    ensure!(farewell == "bye\n", "the server said `{farewell}`");
    pattern::send(&stream, 1, bytes)?;
    print_line(&json!({ "sent": bytes }));
    Ok(())
}
