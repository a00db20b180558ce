//! `cargo xtask TASK`: the project's own commands, one file or folder per task.
//!
//! Tasks may install what they need and run other programs; nothing of the product lives here.

// Tests may panic: that is how they fail.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

mod bench;
mod check;
mod compile;
mod conformance;
mod demo;
mod deploy;
mod image;
mod kernels;
mod setup;
mod shell;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask TASK

  demo             a mesh of two nodes, shown from its wire to its metrics  [--keep]
  bench            direct against meshed on the same two nodes  [--rounds N] [--seconds N] [--quick]
                   [--native]: two pods of one node, and what many rules and services cost a connect()
                   [--http] [--alone]: the http lane, beside Envoy, HAProxy and nginx where they are, or alone
                   [--peer NAME --up COMMAND --down COMMAND]: another proxy pair on the same topology
  conformance      the Gateway API mesh cases, on one node and on two, as a table; a miss fails
                   [same|across|split]... [--within SECONDS] [PART-OF-A-TEST'S-NAME]...
  setup            install what building the programs and running the suites needs
  test             unit, kernel, mesh and conformance suites, and the kernel suites under Linux 6.1
                   [--long] [unit|kernel|mesh|conformance|guest]... [-- TEST-ARGS]
  kernels          the kernel suites under Debian's 6.1, 6.12 and newest kernel, emulated
                   [6.1|6.12|newest]... [--update: look for newer packages] [-- TEST-ARGS]
  check            rustfmt, clippy, tidy, cargo-deny, rustdoc, deploy/ against the code
  deploy           write what of deploy/ is made from the code  [--check: say what differs]
  image            the container image, without a daemon, in target/release
                   [--debug] [--output FOLDER] [--root FOLDER: its root file system alone]
  tidy             the rules of ARCHITECTURE.md and of style that no compiler checks
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = args.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(64);
    };
    let done = match task.as_str() {
        "demo" => demo::run(rest),
        "deploy" => deploy::run(rest),
        "image" => image::run(rest),
        "bench" => bench::run(rest),
        "conformance" => conformance::run(rest),
        "setup" => setup::run(rest),
        "test" => test::run(rest),
        "kernels" => kernels::run(rest),
        "check" => check::run(rest),
        "tidy" => tidy::run(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => {
            eprint!("there is no task `{other}`\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask {task}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
