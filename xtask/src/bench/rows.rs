//! The rows of the table: what is measured, in which direction it is good, and the bar it must reach.

use std::collections::BTreeMap;

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Throughput of one TCP stream.
    Stream1,
    /// Throughput of four.
    Stream4,
    /// Processor seconds of all proxies per GB, four streams.
    CpuPerGb,
    /// Keep-alive HTTP on one connection: median latency.
    Http1P50,
    /// The same: 99th percentile.
    Http1P99,
    /// Keep-alive HTTP on 16 connections: rate.
    Http16Rate,
    /// The same: median latency.
    Http16P50,
    /// The same: 99th percentile.
    Http16P99,
    /// Processor time of all proxies per request, 16 connections.
    CpuPerRequest,
    /// Keep-alive HTTP on 64 connections: rate.
    Http64Rate,
    /// A new connection per request, one client: rate.
    Connect1,
    /// The same with 16 clients.
    Connect16,
    /// A server that speaks first: median time to its first byte.
    FirstByte,
    /// Memory of the bigger proxy, idle.
    RssIdle,
    /// Memory of the bigger proxy with 1,000 busy connections.
    RssBusy,
    /// Memory of all proxies per open idle connection.
    PerConnection,
}

/// How a row is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Ratio to direct, at least.
    AtLeast(f64),
    /// Ratio to direct, at most.
    AtMost(f64),
    /// The value itself, at most.
    ValueAtMost(f64),
    /// No bar.
    None,
}

/// A row's text, unit and bar ("must reach" of the comparison with rivals).
pub struct Meaning {
    /// What it is.
    pub text: &'static str,
    /// Unit of its values.
    pub unit: &'static str,
    /// What it must reach.
    pub bar: Bar,
}

impl Row {
    /// Every row, in the table's order.
    pub const ALL: [Self; 16] = [
        Self::Stream1,
        Self::Stream4,
        Self::CpuPerGb,
        Self::Http1P50,
        Self::Http1P99,
        Self::Http16Rate,
        Self::Http16P50,
        Self::Http16P99,
        Self::CpuPerRequest,
        Self::Http64Rate,
        Self::Connect1,
        Self::Connect16,
        Self::FirstByte,
        Self::RssIdle,
        Self::RssBusy,
        Self::PerConnection,
    ];

    /// Its text, unit and bar.
    pub fn meaning(self) -> Meaning {
        let (text, unit, bar) = match self {
            Self::Stream1 => ("TCP 1 stream, throughput", "Gbit/s", Bar::AtLeast(0.30)),
            Self::Stream4 => ("TCP 4 streams, throughput", "Gbit/s", Bar::AtLeast(0.30)),
            Self::CpuPerGb => ("CPU per GB, both proxies", "s", Bar::ValueAtMost(1.2)),
            Self::Http1P50 => ("HTTP keep-alive, 1 conn, p50", "us", Bar::AtMost(3.6)),
            Self::Http1P99 => ("HTTP keep-alive, 1 conn, p99", "us", Bar::None),
            Self::Http16Rate => ("HTTP keep-alive, 16 conns, rate", "1/s", Bar::AtLeast(0.30)),
            Self::Http16P50 => ("HTTP keep-alive, 16 conns, p50", "us", Bar::None),
            Self::Http16P99 => ("HTTP keep-alive, 16 conns, p99", "us", Bar::None),
            Self::CpuPerRequest => ("CPU per request, both proxies, 16 conns", "us", Bar::ValueAtMost(40.0)),
            Self::Http64Rate => ("HTTP keep-alive, 64 conns, rate", "1/s", Bar::AtLeast(0.33)),
            Self::Connect1 => ("a connection per request, 1 client, rate", "1/s", Bar::AtLeast(0.25)),
            Self::Connect16 => ("a connection per request, 16 clients, rate", "1/s", Bar::AtLeast(0.28)),
            Self::FirstByte => ("server speaks first, median first byte", "us", Bar::ValueAtMost(300.0)),
            Self::RssIdle => ("RSS idle, one agent", "MiB", Bar::ValueAtMost(20.0)),
            Self::RssBusy => ("RSS at 1,000 busy connections, one agent", "MiB", Bar::ValueAtMost(28.0)),
            Self::PerConnection => ("memory per open connection, both proxies", "KiB", Bar::None),
        };
        Meaning { text, unit, bar }
    }

    /// A short name for the JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Stream1 => "stream_1_gbit_s",
            Self::Stream4 => "stream_4_gbit_s",
            Self::CpuPerGb => "cpu_s_per_gb",
            Self::Http1P50 => "http_1_p50_us",
            Self::Http1P99 => "http_1_p99_us",
            Self::Http16Rate => "http_16_per_s",
            Self::Http16P50 => "http_16_p50_us",
            Self::Http16P99 => "http_16_p99_us",
            Self::CpuPerRequest => "cpu_us_per_request",
            Self::Http64Rate => "http_64_per_s",
            Self::Connect1 => "connect_1_per_s",
            Self::Connect16 => "connect_16_per_s",
            Self::FirstByte => "first_byte_us",
            Self::RssIdle => "rss_idle_mib",
            Self::RssBusy => "rss_busy_mib",
            Self::PerConnection => "per_connection_kib",
        }
    }
}

/// What one path gave in one round.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    values: BTreeMap<Row, f64>,
    /// Samples behind the percentiles.
    samples: BTreeMap<Row, u64>,
}

impl Sheet {
    /// Notes a value.
    pub fn note(&mut self, row: Row, value: f64) {
        self.values.insert(row, value);
    }

    /// Notes a percentile with the number of samples behind it.
    pub fn note_of(&mut self, row: Row, value: f64, samples: u64) {
        self.note(row, value);
        self.samples.insert(row, samples);
    }

    /// The value of a row, if this path has one.
    pub fn value(&self, row: Row) -> Option<f64> {
        self.values.get(&row).copied()
    }

    /// How many samples are behind a row's percentile.
    pub fn samples(&self, row: Row) -> u64 {
        self.samples.get(&row).copied().unwrap_or(0)
    }
}
