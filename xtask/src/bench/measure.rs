//! The measurements themselves: wrk, iperf3 and the sample clients in the client's pod.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::wait;

use super::path::{Scene, port};
use super::rows::{Row, Sheet};

const GREETINGS: &str = "300";
const BUSY_CONNECTIONS: u32 = 1000;
const HELD_CONNECTIONS: u32 = 1000;
const SLACK: Duration = Duration::from_secs(30);

/// Measures every row on one path.
pub fn all(scene: &Scene<'_>, seconds: u32, sheet: &mut Sheet) -> Result<()> {
    if !scene.proxies.is_empty() {
        sheet.note(Row::RssIdle, biggest_rss_mib(scene)?);
    }
    // The first connection of a path sets things up that later ones only use.
    wrk(scene, 1, 1, 1, false)?;
    streams(scene, seconds, sheet)?;
    keep_alive(scene, seconds, sheet)?;
    for (row, clients) in [(Row::Connect1, 1), (Row::Connect16, 16)] {
        sheet.note(row, wrk(scene, 1, clients, seconds, true)?.per_second);
    }
    let greeted = scene.client.ask("greet", scene.target(port::GREETER), &["--count", GREETINGS], SLACK)?;
    let p50 = greeted.get("p50_us").and_then(serde_json::Value::as_f64).context("greet gives no p50_us")?;
    sheet.note_of(Row::FirstByte, p50, 300);
    if !scene.proxies.is_empty() {
        memory(scene, seconds, sheet)?;
    }
    Ok(())
}

fn streams(scene: &Scene<'_>, seconds: u32, sheet: &mut Sheet) -> Result<()> {
    sheet.note(Row::Stream1, iperf(scene, 1, seconds)?.gbit_per_s);
    let before = scene.cpu()?;
    let four = iperf(scene, 4, seconds)?;
    sheet.note(Row::Stream4, four.gbit_per_s);
    if !scene.proxies.is_empty() {
        sheet.note(Row::CpuPerGb, (scene.cpu()? - before).as_secs_f64() / (four.bytes / 1e9));
    }
    Ok(())
}

fn keep_alive(scene: &Scene<'_>, seconds: u32, sheet: &mut Sheet) -> Result<()> {
    let one = wrk(scene, 1, 1, seconds, false)?;
    sheet.note_of(Row::Http1P50, one.p50_us, one.requests);
    sheet.note_of(Row::Http1P99, one.p99_us, one.requests);
    let before = scene.cpu()?;
    let sixteen = wrk(scene, 1, 16, seconds, false)?;
    sheet.note(Row::Http16Rate, sixteen.per_second);
    sheet.note_of(Row::Http16P50, sixteen.p50_us, sixteen.requests);
    sheet.note_of(Row::Http16P99, sixteen.p99_us, sixteen.requests);
    if !scene.proxies.is_empty() {
        let used = (scene.cpu()? - before).as_secs_f64() * 1e6;
        sheet.note(Row::CpuPerRequest, used / sixteen.requests as f64);
    }
    sheet.note(Row::Http64Rate, wrk(scene, 1, 64, seconds, false)?.per_second);
    Ok(())
}

/// Memory under load, and of connections that only stand.
fn memory(scene: &Scene<'_>, seconds: u32, sheet: &mut Sheet) -> Result<()> {
    let mut busy =
        scene.client.spawn("wrk-busy", wrk_command(scene, 2, BUSY_CONNECTIONS, seconds.max(3) + 2, false))?;
    let mut highest: f64 = 0.0;
    // Sampled until the load ends by itself.
    wait::until("the load has ended", SLACK, || {
        highest = highest.max(biggest_rss_mib(scene)?);
        wait::holds(busy.check_running().is_err(), || "it goes on".to_owned())
    })?;
    sheet.note(Row::RssBusy, highest);

    let count = HELD_CONNECTIONS.to_string();
    let before = rss_kib(scene)?;
    let hold = scene.client.ask_later("hold", scene.target(port::ECHO), &["--count", &count])?;
    wait::until("all connections stand", SLACK, || wait::holds(!hold.lines()?.is_empty(), || hold.stderr()))?;
    let held = rss_kib(scene)? - before;
    sheet.note(Row::PerConnection, held.max(0.0) / f64::from(HELD_CONNECTIONS));
    Ok(())
}

fn rss_of(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("a proxy is gone")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.context("no VmRSS")
}

fn rss_kib(scene: &Scene<'_>) -> Result<f64> {
    scene.proxies.iter().map(|pid| rss_of(*pid)).sum()
}

/// Resident memory of the proxy that has most.
pub fn biggest_rss_mib(scene: &Scene<'_>) -> Result<f64> {
    let all: Result<Vec<f64>> = scene.proxies.iter().map(|pid| rss_of(*pid)).collect();
    Ok(all?.into_iter().fold(0.0, f64::max) / 1024.0)
}

/// What iperf3 measured.
pub struct Iperf {
    /// At the receiver.
    pub gbit_per_s: f64,
    bytes: f64,
}

/// Streams to the server.
pub fn iperf(scene: &Scene<'_>, streams: u32, seconds: u32) -> Result<Iperf> {
    let to = scene.target(port::IPERF);
    let mut command = Command::new("iperf3");
    command.args(["--client", &to.ip().to_string(), "--port", &to.port().to_string(), "--json"]);
    command.args(["--parallel", &streams.to_string(), "--time", &seconds.to_string()]);
    let printed = run(scene, &format!("iperf3-{streams}"), command, seconds)?;
    let printed: serde_json::Value = serde_json::from_str(&printed).context("iperf3 prints no JSON")?;
    let received = |field: &str| {
        let value = printed.pointer(&format!("/end/sum_received/{field}")).and_then(serde_json::Value::as_f64);
        value.with_context(|| format!("iperf3 gives no {field}"))
    };
    Ok(Iperf { gbit_per_s: received("bits_per_second")? / 1e9, bytes: received("bytes")? })
}

/// What wrk measured.
#[derive(Debug, PartialEq)]
pub struct Wrk {
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// Its 99th percentile.
    pub p99_us: f64,
    /// How many there were.
    pub requests: u64,
    /// Requests per second.
    pub per_second: f64,
}

fn wrk_command(scene: &Scene<'_>, threads: u32, connections: u32, seconds: u32, close: bool) -> Command {
    let mut command = Command::new("wrk");
    command.args([&format!("-t{threads}"), &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency"]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}/", scene.target(port::HTTP)));
    command
}

/// Requests to the server; with `close`, each on a connection of its own.
pub fn wrk(scene: &Scene<'_>, threads: u32, connections: u32, seconds: u32, close: bool) -> Result<Wrk> {
    let command = wrk_command(scene, threads, connections, seconds, close);
    parse_wrk(&run(scene, &format!("wrk-{connections}-{close}"), command, seconds)?)
}

/// Runs one client; its output files are new each time, so that what it prints is its own.
fn run(scene: &Scene<'_>, name: &str, command: Command, seconds: u32) -> Result<String> {
    for end in ["out", "err"] {
        let file = scene.client.folder().join(format!("{name}.{end}"));
        if file.exists() {
            std::fs::remove_file(&file)?;
        }
    }
    scene.client.spawn(name, command)?.finish(Duration::from_secs(seconds.into()) + SLACK)
}

fn parse_wrk(text: &str) -> Result<Wrk> {
    if let Some(errors) = text.lines().find(|l| l.contains("Socket errors:") || l.contains("Non-2xx")) {
        // wrk counts as a read error what a server does that closes after each response.
        ensure!(errors.contains("connect 0,") && errors.contains("timeout 0"), "wrk: {}", errors.trim());
    }
    let after = |label: &str| {
        let line = text.lines().map(str::trim).find(|line| line.starts_with(label));
        line.and_then(|line| line.get(label.len()..)).map(str::trim).with_context(|| format!("wrk gives no `{label}`"))
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    Ok(Wrk {
        p50_us: micros(after("50%")?)?,
        p99_us: micros(after("99%")?)?,
        requests: requests.context("wrk gives no number of requests")?,
        per_second: after("Requests/sec:")?.parse().context("wrk's rate is no number")?,
    })
}

/// What h2load measured.
#[derive(Debug, PartialEq)]
pub struct H2load {
    /// How many requests there were.
    pub requests: u64,
    /// Requests per second.
    pub per_second: f64,
}

/// HTTP/2 requests to the server, without TLS, on `connections` with as many `streams` each at a time.
pub fn h2load(scene: &Scene<'_>, connections: u32, streams: u32, seconds: u32) -> Result<H2load> {
    let mut command = Command::new("h2load");
    command.args([&format!("-c{connections}"), &format!("-m{streams}"), &format!("-D{seconds}"), "-t1"]);
    command.arg(format!("http://{}/", scene.target(port::HTTP2)));
    parse_h2load(&run(scene, &format!("h2load-{connections}-{streams}"), command, seconds)?)
}

fn parse_h2load(text: &str) -> Result<H2load> {
    let requests = text.lines().find(|line| line.starts_with("requests:")).context("h2load counts no requests")?;
    ensure!(requests.contains(" 0 failed,") && requests.contains(" 0 errored,"), "h2load: {requests}");
    let codes = text.lines().find(|line| line.starts_with("status codes:")).context("h2load counts no answers")?;
    ensure!(codes.contains(" 0 3xx, 0 4xx, 0 5xx"), "h2load: {codes}");
    let rate =
        text.lines().find_map(|line| line.strip_prefix("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s"));
    let done = requests.split(", ").find_map(|part| part.strip_suffix(" done")?.parse().ok());
    Ok(H2load {
        requests: done.context("h2load gives no number of requests")?,
        per_second: rate.context("h2load gives no rate")?.parse().context("h2load's rate is no number")?,
    })
}

fn micros(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>().with_context(|| format!("`{text}` is no time"))? * factor);
        }
    }
    bail!("`{text}` is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
Running 3s test @ http://10.244.2.10:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   109.20us   50.00us   1.20ms   90.00%
    Req/Sec   113.00k     2.00k  120.00k    70.00%
  Latency Distribution
     50%  105.00us
     75%  120.00us
     90%  150.00us
     99%    1.25ms
  339000 requests in 3.00s, 120.00MB read
Requests/sec: 113000.50
Transfer/sec:     40.00MB
";

    #[test]
    fn what_wrk_prints_is_read() {
        let expected = Wrk { p50_us: 105.0, p99_us: 1250.0, requests: 339_000, per_second: 113_000.5 };
        assert_eq!(parse_wrk(OUTPUT).unwrap(), expected);
    }

    #[test]
    fn what_h2load_prints_is_read() {
        let output = "finished in 3.00s, 52340.33 req/s, 9.43MB/s\n\
                      requests: 157021 total, 157037 started, 157021 done, 157021 succeeded, 0 failed, 0 errored, 0 timeout\n\
                      status codes: 157037 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        assert_eq!(parse_h2load(output).unwrap(), H2load { requests: 157_021, per_second: 52_340.33 });
        assert!(parse_h2load(&output.replace(" 0 5xx", " 7 5xx")).is_err());
        assert!(parse_h2load(&output.replace(" 0 failed", " 7 failed")).is_err());
    }

    #[test]
    fn failed_connections_spoil_a_measurement_and_closed_ones_do_not() {
        let with = |line: &str| parse_wrk(&OUTPUT.replace("Requests/sec", &format!("{line}\nRequests/sec")));
        assert!(with("  Socket errors: connect 0, read 12, write 0, timeout 0").is_ok());
        assert!(with("  Socket errors: connect 3, read 0, write 0, timeout 0").is_err());
        assert!(with("  Non-2xx or 3xx responses: 7").is_err());
    }
}
