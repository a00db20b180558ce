//! `cargo xtask bench --native`: two pods of one node, plain and through the native lane, by the method of the whole
//! bench; and what a connect() costs with many rules and services against few.

mod lane;
mod size;

use anyhow::Result;

use super::comparison::{Comparison, Fact, Report, Row};
use super::{busy, rows::Bar};

/// Rows of the comparison with unmeshed pods. By a service's address: against the pod's own, unmeshed.
static LANE: [Row; 9] = [
    Row::new("pingpong_p50_us", "64 B ping-pong, 1 conn, p50", "us", Bar::AtMost(1.05)),
    Row::new("pingpong_p99_us", "64 B ping-pong, 1 conn, p99", "us", Bar::None),
    Row::new("stream_1_gbit_s", "TCP 1 stream, throughput", "Gbit/s", Bar::AtLeast(0.97)),
    Row::new("connect_1_per_s", "a connection per request, 1 client, rate", "1/s", Bar::AtLeast(0.90)),
    Row::new("connect_16_per_s", "a connection per request, 16 clients, rate", "1/s", Bar::AtLeast(0.90)),
    Row::new("service_1_per_s", "the same by service, 1 client, rate", "1/s", Bar::AtLeast(0.90)),
    Row::new("service_16_per_s", "the same by service, 16 clients, rate", "1/s", Bar::AtLeast(0.90)),
    Row::new("http_16_per_s", "HTTP keep-alive, 16 conns, rate", "1/s", Bar::None),
    Row::new("http_64_per_s", "HTTP keep-alive, 64 conns, rate", "1/s", Bar::None),
];

/// Rows of the comparison of many rules and services with few.
static SIZE: [Row; 2] = [
    Row::new("connect_pod_p50_us", "connect() to a pod's address, p50", "us", Bar::AtMost(1.2)),
    Row::new("connect_service_p50_us", "connect() to a service's address, p50", "us", Bar::AtMost(1.2)),
];

/// Measures both comparisons; with `only`, the rows of the first whose names begin with
/// one of its words, between commas.
pub fn measure(rounds: usize, seconds: u32, only: Option<&str>) -> Result<Report> {
    let remarks = busy();
    let mut facts = Vec::new();
    let mut lane = Comparison::new("native", &["direct", "a/a", "native"], &LANE);
    let mut stage = lane::Stage::new(only.unwrap_or_default())?;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: one node");
        lane.add(stage.round(round, seconds)?);
    }
    if only.is_some() {
        return Ok(Report { comparisons: vec![lane], facts, remarks });
    }
    // Shown at once: the rest takes a while.
    eprint!("{}", lane.table());
    facts.extend(stage.bulk()?);
    drop(stage);
    let mut size = Comparison::new("size", &["few", "a/a", "many"], &SIZE);
    let mut stage = size::Stage::new()?;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: few and many rules and services");
        size.add(stage.round()?);
    }
    facts.extend(stage.facts()?);
    drop(stage);
    Ok(Report { comparisons: vec![lane, size], facts, remarks })
}

/// What stands for itself, not in comparison.
fn fact(key: &'static str, text: &'static str, unit: &'static str, bar: Bar, value: f64) -> Fact {
    Fact { row: Row::new(key, text, unit, bar), value }
}
