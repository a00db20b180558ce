//! `cargo xtask bench`: the same two nodes and pods, direct and through the agents, interleaved.
//!
//! Method: every round measures direct, direct once more (the A/A row: what noise alone does) and meshed; ratios
//! are taken within a round, and medians of those over the rounds. While direct is measured none of our programs
//! is attached, which is asserted. Run it on an otherwise idle machine. `--native` does the same for two pods of one
//! node, see [`native`]; `--http` for the http lane, beside other proxies that read requests, see
//! [`http`]; `--scale` is one agent
//! that reads a big cluster, see [`scale`].

mod comparison;
mod http;
mod measure;
mod native;
mod path;
mod report;
mod rows;
mod scale;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::process::Process;
use mesh_tests::{interrupt, leftovers, programs, wait};

use crate::{setup, shell};
use path::{Path, Peer};
use report::Report;
use rows::Sheet;

/// What was asked for.
struct Options {
    rounds: usize,
    seconds: u32,
    peer: Option<Peer>,
    only: Option<String>,
    subject: Subject,
}

/// What is compared with the direct path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// Connections between two nodes.
    Tunnel,
    /// Connections within one node.
    Native,
    /// Requests; beside `rivals`, if wanted.
    Http { rivals: bool },
    /// A cluster of many pods; a small one, if `quick`.
    Scale { quick: bool },
}

/// Measures, prints the table and writes the JSON.
pub fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    ensure!(shell::is_root(), "namespaces, cgroups and eBPF need root: sudo cargo xtask bench");
    interrupt::catch()?;
    setup::ebpf_toolchain()?;
    setup::programs(setup::BENCH)?;
    if let Subject::Http { .. } = options.subject {
        setup::programs(setup::BENCH_HTTP)?;
    }
    shell::run(shell::cargo().args(["build", "--release", "-p", "mesh-agent", "-p", "mesh-tests", "--bins"]))?;
    programs::prefer(shell::target_dir()?.join("release"));
    leftovers::sweep()?;
    let Options { rounds, seconds, subject, .. } = options;
    let printed = match subject {
        Subject::Native => {
            native::measure(rounds, seconds, options.only.as_deref()).map(|report| (report.table(), report.json()))
        }
        Subject::Http { rivals } => http::measure(rounds, seconds, rivals, options.only.as_deref())
            .map(|report| (report.table(), report.json())),
        Subject::Scale { quick } => scale::measure(quick, seconds).map(|report| (report.table(), report.json())),
        Subject::Tunnel => measure(&options).map(|report| (report.table(), report.json())),
    };
    leftovers::nothing_left()?;
    let (table, json) = printed?;
    print!("{table}");
    let file = report_file()?;
    std::fs::write(&file, json).with_context(|| format!("cannot write {}", file.display()))?;
    println!("\nEvery sample: {}", file.display());
    Ok(())
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { rounds: 7, seconds: 3, peer: None, only: None, subject: Subject::Tunnel };
    let (mut name, mut up, mut down, mut alone, mut quick) = (None, None, None, false, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().cloned().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse().context("--rounds is no number")?,
            "--seconds" => options.seconds = value()?.parse().context("--seconds is no number")?,
            "--only" => options.only = Some(value()?),
            "--native" => options.subject = Subject::Native,
            "--http" => options.subject = Subject::Http { rivals: true },
            "--scale" | "scale" => options.subject = Subject::Scale { quick: false },
            "--alone" => alone = true,
            "--quick" => {
                (options.rounds, options.seconds) = (3, 1);
                quick = true;
            }
            "--peer" => name = Some(value()?),
            "--up" => up = Some(value()?),
            "--down" => down = Some(value()?),
            other => bail!("`{other}` is no option of bench"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    options.peer = match (name, up, down) {
        (None, None, None) => None,
        (Some(name), Some(up), Some(down)) => Some(Peer { name, up, down }),
        _ => bail!("--peer, --up and --down belong together"),
    };
    let chosen = options.subject != Subject::Tunnel;
    ensure!(chosen || options.only.is_none(), "--only chooses among the rows of --native and --http");
    ensure!(options.subject == Subject::Tunnel || options.peer.is_none(), "--native and --http compare with no peer");
    match &mut options.subject {
        Subject::Http { rivals } => *rivals = !alone,
        _ => ensure!(!alone, "--alone belongs to --http"),
    }
    if let Subject::Scale { quick: small } = &mut options.subject {
        *small = quick;
    }
    Ok(options)
}

fn measure(options: &Options) -> Result<Report> {
    let mut paths = vec![Path::Direct, Path::DirectAgain, Path::Mesh];
    paths.extend(options.peer.clone().map(Path::Peer));
    let mut stage = path::Stage::new()?;
    let mut report = Report::new(paths.iter().map(|path| path.name().to_owned()).collect());
    busy().into_iter().for_each(|remark| report.remark(remark));
    for round in 1..=options.rounds {
        for path in &paths {
            interrupt::check()?;
            eprintln!("round {round} of {}: {}", options.rounds, path.name());
            let mut sheet = Sheet::default();
            stage.on(path, |scene| measure::all(scene, options.seconds, &mut sheet))?;
            report.add(path.name(), sheet);
        }
    }
    if options.rounds < 7 {
        report.remark(format!("{} rounds prove little: a bar counts as met from 7 rounds on", options.rounds));
    }
    Ok(report)
}

/// Waits until `process` takes no more than `most` of processor time in `span`.
fn at_rest(process: &Process, span: Duration, most: Duration, within: Duration) -> Result<()> {
    wait::until("the agent is at rest", within, || {
        let before = process.cpu()?;
        wait::pause(span);
        let used = process.cpu()? - before;
        wait::holds(used <= most, || format!("{used:?} of processor time in {span:?}"))
    })
}

/// A remark where the machine is not at rest. To be asked before anything is measured.
fn busy() -> Vec<String> {
    // Of the last minute; 0 where it cannot be read.
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    let busy = load > 0.5;
    busy.then(|| format!("the machine was busy before the bench began: load average {load}")).into_iter().collect()
}

fn report_file() -> Result<PathBuf> {
    let folder = shell::target_dir()?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    Ok(folder.join(format!("bench-{now}.json")))
}
