//! `cargo xtask demo`: a mesh of two nodes on this machine, shown from its wire to its metrics.
//!
//! Nothing outside namespaces, cgroups and a temporary folder of its own is touched, and all of it is gone at the
//! end, after a failure and after Ctrl-C too.

mod acts;
mod shop;
mod show;

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use mesh_tests::{interrupt, leftovers};

use crate::{compile, setup, shell};
use shop::Shop;

/// Runs the demo; `--keep` leaves it running until Ctrl-C.
pub fn run(args: &[String]) -> Result<()> {
    let mut keep = false;
    for arg in args {
        match arg.as_str() {
            "--keep" => keep = true,
            other => bail!("`{other}`: the only option is --keep"),
        }
    }
    ensure!(shell::is_root(), "namespaces, cgroups and eBPF need root: sudo cargo xtask demo");
    interrupt::catch()?;
    let began = Instant::now();
    prepare()?;
    let outcome = play(keep, began);
    leftovers::nothing_left()?;
    println!("\nNo namespace, cgroup, pin, link, mount or process of the demo is left.");
    outcome
}

fn prepare() -> Result<()> {
    println!("Building (the first time takes some minutes: a TLS library and the eBPF programs are compiled)");
    setup::ebpf_toolchain()?;
    setup::programs(setup::TOPOLOGY)?;
    compile::workspace_with_programs(&[])?;
    for leftover in leftovers::sweep()? {
        println!("Removed what a run that was killed had left: {leftover:?}");
    }
    Ok(())
}

fn play(keep: bool, began: Instant) -> Result<()> {
    show::title("Two nodes, three enrolled namespaces, one that is not");
    let mut shop = Shop::open(&shell::target_dir()?.join("debug"))?;
    shop.introduce();
    acts::who_talks_to_whom(&mut shop)?;
    acts::what_is_on_the_wire(&mut shop)?;
    acts::neighbours(&mut shop)?;
    acts::a_denied_call(&mut shop)?;
    acts::a_pod_joins_live(&mut shop)?;
    acts::metrics(&shop)?;
    println!("\nAll of this took {:.0} s.", began.elapsed().as_secs_f64());
    if keep {
        shop.what_to_try();
        interrupt::wait();
        println!("\nTaking it down.");
    }
    Ok(())
}

/// `curl` where there is one, else the sample client: either way a program that knows nothing of the mesh.
fn web_client(url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "5", url]);
    command
}
