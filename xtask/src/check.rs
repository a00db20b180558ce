//! `cargo xtask check`: everything a machine can say about the code without running it.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::Tool;
use crate::{deploy, shell, tidy};

/// A check's name and what runs it.
type Step = (&'static str, fn() -> Result<()>);

/// Runs every check, also after one fails, so that one run names everything.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("`{unknown}`: this task takes no arguments");
    }
    let steps: [Step; 6] = [
        ("tidy", || tidy::run(&[])),
        ("rustfmt", rustfmt),
        ("clippy", clippy),
        ("rustdoc", rustdoc),
        ("cargo-deny", deny),
        ("deploy", || deploy::run(&["--check".to_owned()])),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        if let Err(error) = step() {
            eprintln!("check: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    eprintln!("check: all well");
    Ok(())
}

fn rustfmt() -> Result<()> {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    // Not a member of the workspace: it is built for another target.
    if !shell::root().join("mesh-ebpf/src/main.rs").is_file() {
        return Ok(());
    }
    shell::run(shell::cargo().args(["fmt", "--manifest-path", "mesh-ebpf/Cargo.toml", "--check"]))
}

fn clippy() -> Result<()> {
    // The suites that need root are left out of a plain `cargo test`, and so of `--all-targets` too.
    for targets in [&["--all-targets"][..], &["--test", "*"]] {
        let mut clippy = shell::cargo();
        clippy.args(["clippy", "--workspace", "--quiet"]).args(targets).args(["--", "-D", "warnings"]);
        shell::run(&mut clippy)?;
    }
    Ok(())
}

fn rustdoc() -> Result<()> {
    let mut doc = shell::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings");
    shell::run(&mut doc)
}

fn deny() -> Result<()> {
    let deny = Tool::CARGO_DENY.ensure()?;
    shell::run(shell::command(&deny).args(["--all-features", "check", "licenses", "bans", "sources"]))?;
    let database = shell::succeeds(bounded(&deny).args(["fetch", "db"]));
    if !database {
        eprintln!("check: advisories skipped: the advisory database cannot be fetched from here");
        return Ok(());
    }
    shell::run(shell::command(&deny).args(["--all-features", "check", "advisories"]))
}

/// The advisory database lies in a git repository: where the network drops packets, fetching it would hang.
fn bounded(program: &std::path::Path) -> Command {
    let mut command = shell::command("timeout");
    command.arg("60").arg(program);
    command
}
