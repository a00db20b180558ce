//! A client and a server of little cost of their own, and what the proxies take for what they carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_agent::model::addr::OrigDst;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::rig::Net;

/// A request as small programs send them, and an answer as nginx gives it. The body's last byte ends it.
const REQUEST: &str = "GET /index.html HTTP/1.1\r\nHost: shop.bench.svc\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\
                       Accept-Encoding: gzip\r\n\r\n";
const HEAD: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 01 Jan 2022 00:00:00 GMT\r\n\
                    Content-Type: text/html\r\nContent-Length: 128\r\nLast-Modified: Sat, 01 Jan 2022 00:00:00 GMT\r\n\
                    Connection: keep-alive\r\nETag: \"61cf9880-80\"\r\nAccept-Ranges: bytes\r\n\r\n";
const BODY_END: u8 = b'!';

/// What is asked, over and over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// 128 for 64 bytes.
    Bytes,
    /// The same, on a new connection each time.
    Fresh,
    /// HTTP/1.1.
    Http,
}

/// When to end.
#[derive(Clone, Copy)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// After so many requests in all: for programs that count instructions.
    Count(usize),
}

/// How a client reaches the server.
#[derive(Clone)]
pub struct Path {
    /// What it dials.
    pub server: SocketAddr,
    /// The pod it is in, and where its connections are captured.
    pub via: Option<(Arc<Net>, SocketAddr)>,
}

impl Path {
    async fn connect(&self) -> Result<TcpStream> {
        let stream = match &self.via {
            None => TcpStream::connect(self.server).await?,
            Some((net, outbound)) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(net.ip, 0))?;
                let dialled = OrigDst::new(self.server);
                net.dialled.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(socket.local_addr()?, dialled);
                socket.connect(*outbound).await?
            }
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// First byte of a connection says what it is for: bulk is swallowed, anything else is answered 128 for 64 bytes,
/// `F` once only (the server closes first, so that no client port waits in TIME_WAIT), and `G` begins HTTP.
pub async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut data = vec![0; 4 * 1024];
    let count = stream.read(&mut data).await?;
    if data.first() == Some(&b'B') {
        data.resize(256 * 1024, 0);
    }
    if data.first() == Some(&b'B') {
        while stream.read(&mut data).await? > 0 {}
        return Ok(());
    }
    if data.first() == Some(&b'F') {
        return Ok(stream.write_all(&[b'a'; 128]).await?);
    }
    if data.first() == Some(&b'G') {
        return serve_http(stream, data, count).await;
    }
    let mut have = count;
    loop {
        while have >= 64 {
            stream.write_all(&[b'a'; 128]).await?;
            have -= 64;
        }
        match stream.read(&mut data).await? {
            0 => return Ok(()),
            count => have += count,
        }
    }
}

/// Answers one request at a time.
async fn serve_http(mut stream: TcpStream, mut data: Vec<u8>, mut have: usize) -> Result<()> {
    let mut answer = HEAD.as_bytes().to_vec();
    answer.resize(answer.len() + 127, b'a');
    answer.push(BODY_END);
    loop {
        while !data.get(..have).is_some_and(|request| request.ends_with(b"\r\n\r\n")) {
            match stream.read(data.get_mut(have..).unwrap_or_default()).await? {
                0 => return Ok(()),
                count => have += count,
            }
        }
        stream.write_all(&answer).await?;
        have = 0;
    }
}

/// CPU time of the proxies' threads so far, in seconds.
fn proxies_cpu() -> f64 {
    let mut ticks = 0.0;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").starts_with("proxy-") {
            // Nanoseconds on CPU.
            let stat = read("schedstat");
            ticks += stat.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    ticks / 1e9
}

fn rss_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// What one run of a row measured.
pub struct Measured {
    /// Bytes or requests per second.
    pub rate: f64,
    /// Median of one request, microseconds.
    pub p50: f64,
    /// Seconds of the proxies' CPU per unit of the rate.
    pub cpu: f64,
}

/// Bytes towards the server on `streams` connections.
pub async fn bulk(path: &Path, streams: usize, time: Duration) -> Result<Measured> {
    let (moved, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (started, cpu) = (Instant::now(), proxies_cpu());
    let mut tasks = Vec::new();
    for _ in 0..streams {
        let (path, moved, stop) = (path.clone(), Arc::clone(&moved), Arc::clone(&stop));
        tasks.push(tokio::spawn(async move {
            let mut stream = path.connect().await?;
            let data = vec![b'B'; 256 * 1024];
            while !stop.load(Relaxed) {
                let count = stream.write(&data).await?;
                moved.fetch_add(count as u64, Relaxed);
            }
            stream.shutdown().await?;
            let _ = stream.read(&mut [0; 1]).await;
            anyhow::Ok(())
        }));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Relaxed);
    for task in tasks {
        task.await??;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = moved.load(Relaxed) as f64;
    Ok(Measured { rate: bytes / started.elapsed().as_secs_f64(), p50: 0.0, cpu: (proxies_cpu() - cpu) / bytes })
}

/// Requests on `connections` at once.
pub async fn requests(path: &Path, connections: usize, until: Until, ask: Ask) -> Result<Measured> {
    let (started, cpu) = (Instant::now(), proxies_cpu());
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let path = path.clone();
        tasks.push(tokio::spawn(async move {
            let (mut times, mut answer) = (Vec::new(), [0; 1024]);
            let mut kept = path.connect().await?;
            while match until {
                Until::Time(time) => started.elapsed() < time,
                Until::Count(count) => times.len() < count.div_ceil(connections),
            } {
                let began = Instant::now();
                if ask == Ask::Fresh {
                    kept = path.connect().await?;
                }
                once(&mut kept, ask, &mut answer).await?;
                times.push(began.elapsed());
                if ask == Ask::Fresh {
                    anyhow::ensure!(kept.read(&mut answer).await? == 0, "the server closes first");
                }
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    times.sort();
    let elapsed = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = times.len() as f64;
    let p50 = times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    Ok(Measured { rate: count / elapsed, p50, cpu: (proxies_cpu() - cpu) / count })
}

/// One request and its answer.
async fn once(stream: &mut TcpStream, ask: Ask, answer: &mut [u8; 1024]) -> Result<()> {
    match ask {
        Ask::Bytes => stream.write_all(&[b'q'; 64]).await?,
        Ask::Fresh => stream.write_all(&[b'F'; 64]).await?,
        Ask::Http => {
            stream.write_all(REQUEST.as_bytes()).await?;
            let mut have = 0;
            while have == 0 || answer.get(have - 1) != Some(&BODY_END) {
                let count = stream.read(answer.get_mut(have..).unwrap_or_default()).await?;
                anyhow::ensure!(count > 0, "an answer ends early: {}", String::from_utf8_lossy(answer));
                have += count;
            }
            anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
            return Ok(());
        }
    }
    stream.read_exact(answer.get_mut(..128).unwrap_or_default()).await?;
    Ok(())
}

/// Growth of this process by `COUNT` connections that have each carried a request and are idle, KiB each.
async fn grown(path: &Path) -> Result<f64> {
    const COUNT: usize = 1_000;
    let before = rss_kib();
    let mut held = Vec::new();
    for _ in 0..COUNT {
        let mut stream = path.connect().await?;
        stream.write_all(&[b'q'; 64]).await?;
        stream.read_exact(&mut [0; 128]).await?;
        held.push(stream);
    }
    #[expect(clippy::cast_precision_loss, reason = "a small constant")]
    let each = (rss_kib() - before) / COUNT as f64;
    Ok(each)
}

/// What idle connections cost.
pub async fn memory(direct: &Path, meshed: &Path) -> Result<()> {
    let apps = grown(direct).await?;
    let all = grown(meshed).await?;
    println!("{:<28} {:.1} KiB each in one proxy (applications {apps:.1})", "idle connections", (all - apps) / 2.0);
    Ok(())
}
