//! `mesh-sample KIND`: small applications that know nothing of any mesh, for the suites, the demo and the bench.
//!
//! Servers run until they are killed and print a line of JSON per event; clients end by themselves and print
//! one object of JSON as their last line. Threads and blocking sockets only, the plainest program there is, but for
//! the application of the Gateway API cases, which needs HTTP/2.

mod churn;
mod gateway;
mod http;
mod latency;
mod options;
mod pattern;
mod probe;
mod send;
mod servers;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use options::Options;

const USAGE: &str = "\
mesh-sample KIND [--option value]...

servers (--port N [--ports N], the number of ports from there on)
  http        --name NAME [--calls HOST:PORT]...: who it is, whom it sees, and what those it calls answer
  echo        sends back what it gets, and its end of data
  greeter     speaks first, then echoes
  sink        reads to the end; prints how many bytes each connection brought
  after-eof   --bytes N: answers only after the client's end of data
  early-fin   ends its own direction at once, then reads to the end
  reset       resets the connection after the first byte
  transfer    --bytes N: sends and checks N bytes at once
  gateway-echo [--port N]... [--grpc N]... [--tcp N]... [--tls N]...: tells what it was asked; takes ?delay=1s,
              ?headers=name:value and ?codes=500:1,200:1, and any upgrade

clients (--to IP:PORT) [--gate FIFO: begin when somebody opens it for writing]
  dial        --every-ms N --count N: a connection at a steady pace; prints each
  churn       --count N --parallel N [--per-second N] --to may be a list: short connections, closed by the client
  burst       --count N: all open at once, then all closed
  chat        --every-ms N --count N: one connection, a line to and fro at a steady pace
  greet       --count N: times the first byte of a server that speaks first
  pingpong    --count N [--bytes N]: one connection, a message to and fro; prints percentiles
  connect     --count N: times connect() alone, then resets; prints percentiles
  hold        --count N: opens connections to an echo server and keeps them until it is killed
  say         --lines-file FILE --connections N: sends each line and wants it back
  shout       --count N --parallel N --bytes N: connect, write, close
  transfer    --bytes N: sends and checks N bytes at once
  half-close  --bytes N: ends its data, then reads the answer of `after-eof`
  late        reads `early-fin`'s end, then sends --bytes N
  probe       [--bind IP] [--say TEXT] [--within-ms N] [--hold-ms N]: connects, waits for the first byte,
              tells what happened
  get         --path PATH: one HTTP request
  gateway-ask --url SCHEME://HOST/PATH [--method M] [--count N] [--keep-alive true] [-H NAME:VALUE]...:
              requests by http, h2c, grpc, tcp or upgrade; prints each answer, line by line
  puppet      --at PATH: makes the sockets that a test asks for, and passes them to it
  send        one datagram by every way there is to send one; prints what became of each
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-sample: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    let options = Options::parse(arguments)?;
    let is_server = options.has("port");
    if options.has("gate") {
        // Returns when somebody opens its other end.
        std::fs::File::open(options.required::<PathBuf>("gate")?).context("--gate")?;
    }
    match kind.as_str() {
        "http" => http::serve(&options),
        "echo" => servers::serve(&options, servers::echo),
        "greeter" => servers::serve(&options, servers::greeter),
        "sink" => servers::serve(&options, servers::sink),
        "after-eof" => servers::serve(&options, servers::after_eof),
        "early-fin" => servers::serve(&options, servers::early_fin),
        "reset" => servers::serve(&options, servers::reset),
        "transfer" if is_server => servers::serve(&options, transfer::server),
        "transfer" => transfer::client(&options),
        "half-close" => transfer::half_close(&options),
        "late" => transfer::late(&options),
        "gateway-echo" => gateway::serve(&options),
        "gateway-ask" => gateway::ask(&options),
        "dial" => churn::dial(&options),
        "churn" => churn::churn(&options),
        "burst" => churn::burst(&options),
        "greet" => churn::greet(&options),
        "pingpong" => latency::pingpong(&options),
        "connect" => latency::connect(&options),
        "hold" => churn::hold(&options),
        "chat" => churn::chat(&options),
        "say" => churn::say(&options),
        "shout" => churn::shout(&options),
        "probe" => probe::probe(&options),
        "get" => http::get(&options),
        "puppet" => mesh_tests::puppet::serve(&options.required::<PathBuf>("at")?, servers::listen),
        "send" => send::send(&options),
        "help" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no kind `{other}`\n\n{USAGE}"),
    }
}
