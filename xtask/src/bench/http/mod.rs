//! `cargo xtask bench --http`: requests from node to node through the http lane of both agents, plain and beside other
//! proxies that read requests: a pair of hops each, one in either pod, with mTLS between them.

mod certificates;
mod rivals;
mod stage;

use anyhow::{Result, ensure};

use super::comparison::{Comparison, Report, Row};
use super::{busy, rows::Bar};
use stage::Stage;

/// Every row. Same-node and HTTP/2 rows are ours alone.
static ROWS: [Row; 14] = [
    Row::new("http_1_p50_us", "keep-alive, 1 conn, p50", "us", Bar::AtMost(6.0)),
    Row::new("http_1_p99_us", "keep-alive, 1 conn, p99", "us", Bar::None),
    Row::new("http_16_per_s", "keep-alive, 16 conns, rate", "1/s", Bar::AtLeast(0.18)),
    Row::new("http_64_per_s", "keep-alive, 64 conns, rate", "1/s", Bar::AtLeast(0.20)),
    Row::new("cpu_us_per_request", "CPU per request, both proxies, 16 conns", "us", Bar::ValueAtMost(75.0)),
    Row::new("connect_1_per_s", "a connection per request, 1 client, rate", "1/s", Bar::AtLeast(0.25)),
    Row::new("connect_16_per_s", "a connection per request, 16 clients, rate", "1/s", Bar::AtLeast(0.28)),
    Row::new("h2_16_per_s", "HTTP/2, 16 conns of 1 stream, rate", "1/s", Bar::None),
    Row::new("h2_1_per_s", "HTTP/2, 1 conn of 16 streams, rate", "1/s", Bar::None),
    Row::new("h2_cpu_us_per_request", "CPU per request, both proxies, 1 conn of 16 streams", "us", Bar::None),
    Row::new("near_1_p50_us", "same node, keep-alive, 1 conn, p50", "us", Bar::None),
    Row::new("near_16_per_s", "same node, keep-alive, 16 conns, rate", "1/s", Bar::None),
    Row::new("rss_idle_mib", "RSS before, bigger proxy", "MiB", Bar::None),
    Row::new("rss_after_mib", "RSS after, bigger proxy", "MiB", Bar::None),
];

/// Measures the http lane and, if wanted, the other proxies; with `only`, what every proxy has (`http`) or what is ours
/// alone (`own`).
pub fn measure(rounds: usize, seconds: u32, with_rivals: bool, only: Option<&str>) -> Result<Report> {
    ensure!(matches!(only, None | Some("http" | "own")), "--only is `http` or `own`");
    let mut remarks = busy();
    let mut stage = Stage::new(only)?;
    if with_rivals {
        remarks.extend(stage.add_rivals()?);
    }
    let mut comparison = Comparison::new("http", &stage.columns(), &ROWS);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: the http lane");
        comparison.add(stage.round(round, seconds)?);
    }
    if rounds < 7 {
        remarks.push(format!("{rounds} rounds prove little: a bar counts as met from 7 rounds on"));
    }
    Ok(Report { comparisons: vec![comparison], facts: Vec::new(), remarks })
}
