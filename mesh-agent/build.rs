//! Compiles the kernel half (`mesh-ebpf`) and hands the object to `capture`, which embeds it.
//!
//! Two toolchains can do it: rustup's nightly with `rust-src`, or Debian's `rustc-web` with `rust-web-src`;
//! both need `bpf-linker`. `cargo xtask setup` installs what is missing. Without them a debug build goes on, says so
//! here, in `check` and at `run`, and cannot capture: so everything that needs no kernel can be checked anywhere. A
//! release build fails. Where the tools are and the programs do not compile, every build fails.
//! `MESH_EBPF_OBJECT=<file>` embeds a prepared object instead.
//!
//! Debug builds embed a second object, the twin (feature `twin` of `mesh-ebpf`): tests upgrade from one to the other.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";

/// Why there is no object.
enum Failure {
    /// Nothing here can compile one.
    NoTools(String),
    /// What could was given something wrong.
    Broken(String),
}

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(mesh_ebpf, mesh_ebpf_twin)");
    for name in ["MESH_EBPF_OBJECT", "MESH_TOOLS_DIR", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    match embed(release) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::NoTools(why)) if !release => {
            println!("cargo::warning=built without eBPF programs: {why}; `cargo xtask setup` installs the tools");
            ExitCode::SUCCESS
        }
        Err(Failure::NoTools(why)) => {
            eprintln!(
                "an agent without its eBPF programs is no release: {why}; `cargo xtask setup` installs the tools"
            );
            ExitCode::FAILURE
        }
        Err(Failure::Broken(why)) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn embed(release: bool) -> Result<(), Failure> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let root = manifest.parent().expect("the workspace is above").to_path_buf();
    for watched in ["mesh-ebpf/src", "mesh-ebpf/Cargo.toml", "mesh-ebpf/Cargo.lock", "mesh-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let object = out.join("mesh-ebpf.o");
    let prepared = env::var_os("MESH_EBPF_OBJECT");
    match &prepared {
        Some(prepared) => copy(Path::new(prepared), &object)?,
        None => compile(&root.join("mesh-ebpf"), &out, &object, &[])?,
    }
    println!("cargo::rustc-cfg=mesh_ebpf");
    println!("cargo::rustc-env=MESH_EBPF_OBJECT_PATH={}", object.display());
    // A release has no programs but its own.
    if prepared.is_none() && !release {
        let twin = out.join("mesh-ebpf-twin.o");
        compile(&root.join("mesh-ebpf"), &out, &twin, &["--features", "twin"])?;
        println!("cargo::rustc-cfg=mesh_ebpf_twin");
        println!("cargo::rustc-env=MESH_EBPF_TWIN_PATH={}", twin.display());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to).map(drop).map_err(|e| Failure::Broken(format!("{}: {e}", from.display())))
}

fn compile(crate_dir: &Path, out: &Path, object: &Path, features: &[&str]) -> Result<(), Failure> {
    let linker_dir = linker_dir().map_err(Failure::NoTools)?;
    let rustc = compiler().map_err(Failure::NoTools)?;
    let mut path = OsString::from(linker_dir);
    if let Some(old) = env::var_os("PATH") {
        path.push(":");
        path.push(old);
    }
    // One for all profiles, beside them: <target>/<profile>/build/<package>/out is where we are.
    let target_dir = out.ancestors().nth(4).unwrap_or(out).join("ebpf");
    let mut command = Command::new("cargo");
    // What cargo set for this build must not steer the inner one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_") && name != "CARGO_HOME" || name.starts_with("RUST") && name != "RUSTUP_HOME" {
            command.env_remove(name);
        }
    }
    command
        .current_dir(crate_dir)
        .env("PATH", path)
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        // Socket storage exists as BTF maps only, and BTF comes from debug information.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .args(features);
    match rustc {
        Compiler::Nightly => command.env("RUSTUP_TOOLCHAIN", "nightly"),
        Compiler::Debian => command.env("RUSTC", "/usr/bin/rustc"),
    };
    let output = command.output().map_err(|e| Failure::Broken(format!("cargo did not start: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Broken(format!("mesh-ebpf does not compile:\n{said}")));
    }
    copy(&target_dir.join(TARGET).join("release/mesh-ebpf"), object)
}

fn linker_dir() -> Result<PathBuf, String> {
    let tools = env::var_os("MESH_TOOLS_DIR").map(PathBuf::from).or_else(|| {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
        Some(cache.join("mesh-agent/tools"))
    });
    let mut places: Vec<PathBuf> = tools.into_iter().map(|dir| dir.join("bin")).collect();
    places.extend(env::var_os("PATH").iter().flat_map(|path| env::split_paths(path).collect::<Vec<_>>()));
    places.into_iter().find(|dir| dir.join("bpf-linker").is_file()).ok_or_else(|| "bpf-linker not found".to_owned())
}

enum Compiler {
    Nightly,
    Debian,
}

fn compiler() -> Result<Compiler, String> {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    if let Ok(output) = nightly
        && output.status.success()
        && has_core(Path::new(String::from_utf8_lossy(&output.stdout).trim()))
    {
        return Ok(Compiler::Nightly);
    }
    if Path::new("/usr/bin/rustc").is_file() && has_core(Path::new("/usr")) {
        return Ok(Compiler::Debian);
    }
    Err("neither rustup's nightly with rust-src nor Debian's rustc-web with rust-web-src found".to_owned())
}

fn has_core(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}
