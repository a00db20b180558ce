//! Measures the data path alone: two proxies of this process on loopback addresses, no capture, no namespaces.
//!
//! Each row is run directly and through both proxies, in turn, and printed as a ratio, with the CPU time of the
//! proxies' threads. It shows what a change of the data path does; what users get is `cargo xtask bench`'s to say.
//!
//! `cargo run --release --example data_path -- [seconds per row] [rows...]`
//!
//! With `REQUESTS=n` in the environment the rows of requests are run through the proxies only, once, with so many
//! of them: `valgrind --tool=callgrind` counts the instructions of two such runs, and the difference is what requests
//! cost.

mod load;
mod rig;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use load::{Ask, Measured, Path, Until, bulk, memory, requests, serve};
use mesh_agent::identity::{CertStore, LocalCa, issue};
use mesh_agent::model::identity::Identity;
use mesh_agent::snapshot::{Snapshot, SnapshotParts, SnapshotStore};
use rig::{routed, side, workload};

/// The rows of requests: connections at once, and what is asked.
const REQUESTS: [(&str, usize, Ask); 8] = [
    ("alive 1", 1, Ask::Bytes),
    ("alive 16", 16, Ask::Bytes),
    ("alive 64", 64, Ask::Bytes),
    ("fresh 1", 1, Ask::Fresh),
    ("fresh 16", 16, Ask::Fresh),
    ("http 1", 1, Ask::Http),
    ("http 16", 16, Ask::Http),
    ("http 64", 64, Ask::Http),
];

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
    let (plain, http) =
        (tokio::net::TcpListener::bind((cart_ip, 0)).await?, tokio::net::TcpListener::bind((cart_ip, 0)).await?);
    let workloads = vec![workload("web", web_ip)?, workload("cart", cart_ip)?];
    let mut parts =
        SnapshotParts { trust_domain: "cluster.local".into(), workloads: workloads.into(), ..SnapshotParts::default() };
    let vip = SocketAddr::from(([10, 96, 0, 1], 80));
    routed(&mut parts, vip, http.local_addr()?, "cart");
    snapshots.publish(Snapshot::new(1, parts));
    let (web, cart) = (side("web", web_ip, &snapshots, &certs)?, side("cart", cart_ip, &snapshots, &certs)?);

    let (server, http_server) = (plain.local_addr()?, http.local_addr()?);
    for app in [plain, http] {
        tokio::spawn(async move {
            while let Ok((stream, _)) = app.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    }
    let direct = Path { server, via: None };
    let via = Some((Arc::clone(&web.pod.net), web.pod.outbound));
    let meshed = Path { server, via: via.clone() };
    let (direct_http, meshed_http) = (Path { server: http_server, via: None }, Path { server: vip, via });
    let count = std::env::var("REQUESTS").ok().map(|text| text.parse()).transpose().context("REQUESTS")?;
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
    for (name, connections, ask) in REQUESTS {
        if !wanted(name) {
            continue;
        }
        let (direct, meshed) = if ask == Ask::Http { (&direct_http, &meshed_http) } else { (&direct, &meshed) };
        if let Some(count) = count {
            requests(meshed, connections, Until::Count(count), ask).await?;
            continue;
        }
        let (mut d, mut m) = (vec![], vec![]);
        for _ in 0..3 {
            d.push(requests(direct, connections, Until::Time(time), ask).await?);
            m.push(requests(meshed, connections, Until::Time(time), ask).await?);
        }
        print(name, &d, &m, false);
    }
    if wanted("memory") {
        memory(&direct, &meshed).await?;
    }
    for side in [&web, &cart] {
        side.proxy.shutdown(Duration::from_secs(1)).await;
    }
    Ok(())
}
