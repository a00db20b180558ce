//! Building the workspace, with the kernel half inside the agent.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::shell;

/// What `mesh-agent/build.rs` sets when it has embedded the programs.
const EMBEDDED: &str = "mesh_ebpf";

/// Runs `cargo build` with these arguments; whether its agent has the programs.
pub fn workspace(arguments: &[&str]) -> Result<bool> {
    let mut command = shell::cargo();
    command.args(["build", "--workspace"]).args(arguments);
    eprintln!("$ {}", shell::display(&command));
    build(command.arg("--message-format=json-render-diagnostics"))
}

/// As [`workspace`], where the tools that the programs need are installed.
///
/// # Errors
/// When the build fails, or the agent has no programs in spite of the tools.
pub fn workspace_with_programs(arguments: &[&str]) -> Result<()> {
    if workspace(arguments)? {
        return Ok(());
    }
    // An earlier build, from before the tools were there, is still taken for fresh.
    let script = shell::root().join("mesh-agent/build.rs");
    File::options().write(true).open(&script)?.set_modified(SystemTime::now()).context("cannot touch build.rs")?;
    if workspace(arguments)? {
        return Ok(());
    }
    bail!("the agent was built without its eBPF programs: see cargo's warning above")
}

/// Builds the agent without a need of libraries, and with its programs; gives the binary: the next build replaces it.
///
/// # Errors
/// When the build fails, or the agent has no programs.
pub fn static_agent(debug: bool) -> Result<PathBuf> {
    let mut command = shell::cargo();
    command.args(["rustc", "--package", "mesh-agent", "--bin", "mesh-agent"]);
    if !debug {
        command.arg("--release");
    }
    command.args(["--message-format=json-render-diagnostics", "--"]);
    // Only the last link differs from the usual build's; what maps addresses to lines would be most of the file.
    command.args(["-C", "target-feature=+crt-static", "-C", "strip=debuginfo"]);
    eprintln!("$ {}", shell::display(&command));
    if !build(&mut command)? {
        bail!("the agent was built without its eBPF programs: see cargo's warning above");
    }
    Ok(shell::target_dir()?.join(if debug { "debug" } else { "release" }).join("mesh-agent"))
}

fn build(command: &mut Command) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo does not start")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut embedded = false;
    for line in BufReader::new(stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?).unwrap_or_default();
        embedded |= is_agents_script(&message) && has(&message, EMBEDDED);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the build failed");
    }
    Ok(embedded)
}

fn is_agents_script(message: &serde_json::Value) -> bool {
    let field = |name: &str| message.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    field("reason") == "build-script-executed" && field("package_id").contains("/mesh-agent#")
}

fn has(message: &serde_json::Value, cfg: &str) -> bool {
    let cfgs = message.get("cfgs").and_then(serde_json::Value::as_array);
    cfgs.is_some_and(|cfgs| cfgs.iter().any(|found| found == cfg))
}
