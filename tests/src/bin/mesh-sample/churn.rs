//! Clients that open many connections and count what became of each.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use crate::options::Options;
use crate::servers::print_line;

/// Nothing takes longer unless it hangs.
const WITHIN: Duration = Duration::from_secs(20);

/// Counts of outcomes: `ok`, or the kind of the error.
#[derive(Default)]
struct Counts {
    outcomes: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    fn add(&self, result: &io::Result<()>) {
        let outcome = outcome(result);
        if let Ok(mut outcomes) = self.outcomes.lock() {
            *outcomes.entry(outcome).or_default() += 1;
        }
    }

    fn print(&self, began: Instant) -> Result<()> {
        let outcomes = self.outcomes.lock().map_err(|_| anyhow!("a thread panicked"))?;
        let ok = outcomes.get("ok").copied().unwrap_or(0);
        let failed: u64 = outcomes.values().sum::<u64>() - ok;
        let seconds = began.elapsed().as_secs_f64();
        print_line(&json!({ "ok": ok, "failed": failed, "outcomes": *outcomes, "seconds": seconds }));
        Ok(())
    }
}

fn outcome(result: &io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a line and wants it back.
fn ping(stream: &mut TcpStream) -> io::Result<()> {
    const LINE: &[u8] = b"are you there\n";
    stream.write_all(LINE)?;
    let mut answer = [0; LINE.len()];
    stream.read_exact(&mut answer)?;
    if answer == LINE { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// One whole short connection, closed by the client.
fn once(to: SocketAddr) -> io::Result<()> {
    ping(&mut connect(to)?)
}

/// Lets `interval` pass since `last`.
fn pace(last: Instant, interval: Duration) {
    while let Some(left) = interval.checked_sub(last.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// A connection every `--every-ms`, whatever became of the one before.
pub fn dial(options: &Options) -> Result<()> {
    let to = options.target()?;
    let every = options.millis("every-ms", 5)?;
    let count: u64 = options.required("count")?;
    let began = Instant::now();
    let counts = Counts::default();
    std::thread::scope(|scope| {
        for number in 0..count {
            let start = Instant::now();
            let counts = &counts;
            scope.spawn(move || {
                let result = once(to);
                let at = start.duration_since(began).as_millis();
                let took = start.elapsed().as_millis();
                print_line(&json!({ "n": number, "at_ms": at, "took_ms": took, "outcome": outcome(&result) }));
                counts.add(&result);
            });
            pace(start, every);
        }
    });
    counts.print(began)
}

/// One connection on which a line goes to and fro every `--every-ms`.
pub fn chat(options: &Options) -> Result<()> {
    let every = options.millis("every-ms", 20)?;
    let count: u64 = options.required("count")?;
    let mut stream = connect(options.target()?)?;
    let began = Instant::now();
    let counts = Counts::default();
    for _ in 0..count {
        let start = Instant::now();
        let result = ping(&mut stream);
        counts.add(&result);
        if result.is_err() {
            break;
        }
        pace(start, every);
    }
    counts.print(began)
}

/// Work by `parallel` threads until `count` connections are done, in order of `targets`.
fn parallel(options: &Options, one: impl Fn(SocketAddr) -> io::Result<()> + Sync) -> Result<()> {
    let targets = options.targets()?;
    let count: u64 = options.required("count")?;
    let threads: u64 = options.or("parallel", 16)?;
    let per_second: u64 = options.or("per-second", 0)?;
    // Each thread keeps its share of the common pace.
    let interval =
        if per_second == 0 { Duration::ZERO } else { Duration::from_secs(threads).div_f64(per_second as f64) };
    let next = AtomicU64::new(0);
    let counts = Counts::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let start = Instant::now();
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let index = usize::try_from(number).unwrap_or(0) % targets.len();
                    if let Some(target) = targets.get(index) {
                        counts.add(&one(*target));
                    }
                    pace(start, interval);
                }
            });
        }
    });
    counts.print(began)
}

/// Short connections.
pub fn churn(options: &Options) -> Result<()> {
    parallel(options, once)
}

/// Connections that write and close without reading.
pub fn shout(options: &Options) -> Result<()> {
    let bytes: usize = options.or("bytes", 100)?;
    let text = vec![b'!'; bytes];
    parallel(options, |to| {
        let mut stream = connect(to)?;
        stream.write_all(&text)
    })
}

/// Sends each line of `--lines-file` on a connection of its own among `--connections`, and wants it back.
pub fn say(options: &Options) -> Result<()> {
    let to = options.target()?;
    let file: String = options.required("lines-file")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let connections: usize = options.or("connections", 10)?;
    let lines: Vec<&str> = text.lines().collect();
    let began = Instant::now();
    let counts = Counts::default();
    for share in lines.chunks(lines.len().div_ceil(connections).max(1)) {
        let mut stream = connect(to)?;
        for line in share {
            let mut answer = vec![0; line.len()];
            let result = stream.write_all(line.as_bytes()).and_then(|()| stream.read_exact(&mut answer));
            let result = result
                .and_then(|()| if answer == line.as_bytes() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) });
            counts.add(&result);
        }
    }
    counts.print(began)
}

/// Connects `--count` times, one after the other, and times the first byte of a server that speaks first.
pub fn greet(options: &Options) -> Result<()> {
    let to = options.target()?;
    let count: usize = options.required("count")?;
    let mut micros = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        connect(to)?.read_exact(&mut [0])?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    micros.sort_by(f64::total_cmp);
    let at = |part: usize| micros.get(count * part / 100).copied().unwrap_or_default();
    print_line(&json!({ "count": count, "p50_us": at(50), "p99_us": at(99) }));
    Ok(())
}

/// Opens `--count` connections, uses each once, says so and keeps them open until it is killed.
pub fn hold(options: &Options) -> Result<()> {
    let to = options.target()?;
    let count: usize = options.required("count")?;
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(to)?;
        ping(&mut stream)?;
        open.push(stream);
    }
    print_line(&json!({ "open": open.len() }));
    loop {
        std::thread::park();
    }
}

/// Opens `--count` connections, uses each, then closes all of them.
pub fn burst(options: &Options) -> Result<()> {
    let to = options.target()?;
    let count: u64 = options.required("count")?;
    let began = Instant::now();
    let counts = Counts::default();
    let mut open: Vec<io::Result<TcpStream>> = (0..count).map(|_| connect(to)).collect();
    for stream in &mut open {
        let result = match stream {
            Ok(stream) => ping(stream).and_then(|()| stream.shutdown(Shutdown::Write)),
            Err(error) => Err(error.kind().into()),
        };
        counts.add(&result);
    }
    drop(open);
    counts.print(began)
}
