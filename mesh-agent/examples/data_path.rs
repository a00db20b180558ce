//! Measures the data path alone: two proxies of this process on loopback addresses, no capture, no namespaces.
//!
//! Each row is run directly and through both proxies, in turn, and printed as a ratio, with the CPU time of the
//! proxies' threads. It shows what a change of the data path does; what users get is `cargo xtask bench`'s to say.
//!
//! `cargo run --release --example data_path -- [seconds per row] [rows...]`

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use mesh_agent::balance::Balancer;
use mesh_agent::identity::{CertStore, LocalCa, issue};
use mesh_agent::model::addr::{OrigDst, Scope};
use mesh_agent::model::egress::{Egress, UdpRefusals};
use mesh_agent::model::identity::Identity;
use mesh_agent::model::workload::{Captured, Enrolment, Exclusions, PeerModes, Workload, WorkloadUid};
use mesh_agent::proxy::pod_net::{PodNet, SocketUse};
use mesh_agent::proxy::{Deps, Limits, PodHandle, PodListeners, Proxy, TUNNEL_PORT, WIRE};
use mesh_agent::snapshot::{Snapshot, SnapshotParts, SnapshotStore};
use mesh_agent::telemetry::{Registry, Settings, Telemetry};
use mesh_agent::tls::Tls;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

struct Net {
    uid: WorkloadUid,
    ip: IpAddr,
    dialled: Mutex<HashMap<SocketAddr, OrigDst>>,
}

impl PodNet for Net {
    fn uid(&self) -> &WorkloadUid {
        &self.uid
    }

    fn original_destination(&self, accepted: BorrowedFd<'_>) -> Option<(OrigDst, Scope)> {
        let client = SockRef::from(&accepted).peer_addr().ok()?.as_socket()?;
        Some((self.dialled.lock().ok()?.remove(&client)?, Scope::All))
    }

    fn proven_client(&self, _local: SocketAddr, _peer: SocketAddr) -> Option<WorkloadUid> {
        None
    }

    fn socket(&self, to: SocketAddr, purpose: SocketUse) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
        let source = match purpose {
            SocketUse::Upstream => self.ip,
            SocketUse::Delivery { client } => client.ip(),
        };
        socket.bind(&SocketAddr::new(source, 0).into())?;
        Ok(socket)
    }
}

struct Pod {
    net: Arc<Net>,
    outbound: SocketAddr,
    _handle: PodHandle,
}

/// One pod of `name` behind a proxy of its own.
struct Side {
    pod: Pod,
    proxy: Proxy,
}

fn side(name: &str, ip: Ipv4Addr, snapshots: &Arc<SnapshotStore>, certs: &Arc<CertStore>) -> Result<Side> {
    let proxy = Proxy::new(Deps {
        snapshots: Arc::clone(snapshots),
        balancer: Arc::new(Balancer::new()),
        tls: Arc::new(Tls::new(Arc::clone(certs))),
        telemetry: Telemetry::start(Arc::new(Registry::default()), Box::new(std::io::sink()), Settings::default())?,
        limits: limits(),
        workers: 2,
        reserved_ports: vec![],
    })?;
    let listen = |port| -> Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(ip.into(), port).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    let (outbound, tunnel, plaintext) = (listen(0)?, listen(TUNNEL_PORT)?, listen(0)?);
    let net = Arc::new(Net { uid: name.into(), ip: ip.into(), dialled: Mutex::default() });
    let addr = outbound.local_addr()?;
    let pod = Arc::clone(&net) as Arc<dyn PodNet>;
    let _handle = proxy.add_pod(PodListeners { pod, outbound, tunnel, plaintext })?;
    Ok(Side { pod: Pod { net, outbound: addr, _handle }, proxy })
}

fn workload(name: &str, ip: Ipv4Addr) -> Result<Arc<Workload>> {
    Ok(Arc::new(Workload {
        uid: name.into(),
        namespace: "bench".into(),
        name: name.into(),
        app: name.into(),
        node: name.into(),
        zone: "".into(),
        labels: std::collections::BTreeMap::new(),
        identity: Identity::new("cluster.local", "bench", name)?,
        ips: vec![ip.into()],
        host_network: false,
        ports: vec![],
        probe_ports: Vec::new(),
        enrolment: Enrolment::Enrolled,
        captured: Some(Captured { generation: 1, wire: wire().into_iter().map(Into::into).collect() }),
        peer_mode: PeerModes::default(),
        exclusions: Exclusions::default(),
        egress: Egress::default(),
        udp_refusals: UdpRefusals::default(),
        netns: None,
        terminating: false,
    }))
}

/// The defaults, with the number of connections of their own that `RAW` in the environment gives.
fn limits() -> Limits {
    let mut limits = Limits::default();
    if let Some(count) = std::env::var("RAW").ok().and_then(|text| text.parse().ok()) {
        limits.raw_per_peer = count;
    }
    limits
}

/// What the destination publishes: everything, or the protocols that `WIRE` in the environment names.
fn wire() -> Vec<String> {
    match std::env::var("WIRE") {
        Ok(list) => list.split(',').map(str::to_owned).collect(),
        Err(_) => WIRE.iter().map(|alpn| (*alpn).to_owned()).collect(),
    }
}

/// How a client reaches the server.
#[derive(Clone)]
struct Path {
    server: SocketAddr,
    via: Option<(Arc<Net>, SocketAddr)>,
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
/// `F` once only (the server closes first, so that no client port waits in TIME_WAIT).
async fn serve(mut stream: TcpStream) -> Result<()> {
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
struct Measured {
    /// Bytes or requests per second.
    rate: f64,
    /// Median of one request, microseconds.
    p50: f64,
    /// Seconds of the proxies' CPU per unit of the rate.
    cpu: f64,
}

async fn bulk(path: &Path, streams: usize, time: Duration) -> Result<Measured> {
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

async fn requests(path: &Path, connections: usize, time: Duration, fresh: bool) -> Result<Measured> {
    let (started, cpu) = (Instant::now(), proxies_cpu());
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let path = path.clone();
        tasks.push(tokio::spawn(async move {
            let (mut times, mut answer) = (Vec::new(), [0; 128]);
            let mut kept = path.connect().await?;
            while started.elapsed() < time {
                let began = Instant::now();
                if fresh {
                    kept = path.connect().await?;
                }
                kept.write_all(&[if fresh { b'F' } else { b'q' }; 64]).await?;
                kept.read_exact(&mut answer).await?;
                times.push(began.elapsed());
                if fresh {
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

async fn memory(direct: &Path, meshed: &Path) -> Result<()> {
    let apps = grown(direct).await?;
    let all = grown(meshed).await?;
    println!("{:<28} {:.1} KiB each in one proxy (applications {apps:.1})", "idle connections", (all - apps) / 2.0);
    Ok(())
}

fn print(name: &str, direct: &[Measured], meshed: &[Measured], bytes: bool) {
    let median = |runs: &[Measured], of: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let (d, m) = (median(direct, |r| r.rate), median(meshed, |r| r.rate));
    let cpu = median(meshed, |r| r.cpu);
    if bytes {
        println!("{name:<28} {:.3} of {:.2} GB/s   {:.2} CPU s/GB", m / d, d / 1e9, cpu * 1e9);
    } else {
        let (dp, mp) = (median(direct, |r| r.p50), median(meshed, |r| r.p50));
        println!(
            "{name:<28} {:.3} of {d:.0}/s   p50 {mp:.0} us = {:.2}x   {:.1} CPU us each",
            m / d,
            mp / dp,
            cpu * 1e6
        );
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse()).context("seconds per row")?;
    let rows: Vec<String> = arguments.collect();
    let time = Duration::from_secs_f64(seconds);
    let state = tempfile::tempdir()?;
    let ca = LocalCa::open(state.path(), "cluster.local")?;
    let certs = Arc::new(CertStore::new("cluster.local"));
    for name in ["web", "cart"] {
        let identity = Identity::new("cluster.local", "bench", name)?;
        certs.install(issue(&ca, &identity, Duration::from_secs(3_600), SystemTime::now()).await?);
    }
    let process = u8::try_from(std::process::id() % 250)?;
    let (web_ip, cart_ip) = (Ipv4Addr::new(127, 9, process, 1), Ipv4Addr::new(127, 9, process, 2));
    let snapshots = Arc::new(SnapshotStore::default());
    let workloads = vec![workload("web", web_ip)?, workload("cart", cart_ip)?];
    let parts = SnapshotParts { trust_domain: "cluster.local".into(), workloads, ..SnapshotParts::default() };
    snapshots.publish(Snapshot::new(1, parts));
    let (web, cart) = (side("web", web_ip, &snapshots, &certs)?, side("cart", cart_ip, &snapshots, &certs)?);

    let app = tokio::net::TcpListener::bind((cart_ip, 0)).await?;
    let server = app.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = app.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    let direct = Path { server, via: None };
    let meshed = Path { server, via: Some((Arc::clone(&web.pod.net), web.pod.outbound)) };
    let wanted = |name: &str| rows.is_empty() || rows.iter().any(|row| name.contains(row.as_str()));
    for (name, count) in [("bulk 1", 1), ("bulk 4", 4)] {
        if wanted(name) {
            let (mut d, mut m) = (vec![], vec![]);
            for _ in 0..3 {
                d.push(bulk(&direct, count, time).await?);
                m.push(bulk(&meshed, count, time).await?);
            }
            print(name, &d, &m, true);
        }
    }
    for (name, count, fresh) in [
        ("alive 1", 1, false),
        ("alive 16", 16, false),
        ("alive 64", 64, false),
        ("fresh 1", 1, true),
        ("fresh 16", 16, true),
    ] {
        if wanted(name) {
            let (mut d, mut m) = (vec![], vec![]);
            for _ in 0..3 {
                d.push(requests(&direct, count, time, fresh).await?);
                m.push(requests(&meshed, count, time, fresh).await?);
            }
            print(name, &d, &m, false);
        }
    }
    if wanted("memory") {
        memory(&direct, &meshed).await?;
    }
    for side in [&web, &cart] {
        side.proxy.shutdown(Duration::from_secs(1)).await;
    }
    Ok(())
}
