//! The build script by itself: an agent without its programs never comes out unsaid.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A workspace whose kernel half no compiler takes.
struct Workspace {
    folder: TempDir,
}

impl Workspace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["mesh-agent", "mesh-ebpf/src", "nothing", "target/debug/build/mesh-agent/out"] {
            fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        fs::write(folder.path().join("mesh-ebpf/Cargo.toml"), "[package]\nname = mistaken\n").unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2024", "-o"]).arg(folder.path().join("script")).arg(script);
        assert!(rustc.status().unwrap().success(), "build.rs does not compile by itself");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the script as cargo does; `prepare` changes its environment.
    fn run(&self, profile: &str, prepare: impl FnOnce(&mut Command)) -> (bool, String) {
        let mut script = Command::new(self.path("script"));
        script
            .env("CARGO_MANIFEST_DIR", self.path("mesh-agent"))
            .env("OUT_DIR", self.path("target/debug/build/mesh-agent/out"))
            .env("PROFILE", profile)
            .env_remove("MESH_EBPF_OBJECT");
        prepare(&mut script);
        let Output { status, stdout, stderr } = script.output().unwrap();
        (status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    }
}

#[test]
fn programs_that_do_not_compile_fail_every_build_with_the_compilers_words() {
    let workspace = Workspace::new();
    for profile in ["debug", "release"] {
        let (built, said) = workspace.run(profile, |_| {});
        if said.contains("xtask setup") && !said.contains("does not compile") {
            eprintln!("skipped: no eBPF toolchain here: {said}");
            return;
        }
        assert!(!built && said.contains("name = mistaken"), "{profile}: {said}");
    }
}

#[test]
fn without_the_tools_a_debug_build_says_so_and_a_release_fails() {
    let workspace = Workspace::new();
    let nothing = workspace.path("nothing");
    for (profile, wanted) in [("debug", true), ("release", false)] {
        let (built, said) = workspace.run(profile, |script| {
            script.env("PATH", &nothing).env("MESH_TOOLS_DIR", &nothing);
        });
        assert_eq!(built, wanted, "{profile}: {said}");
        assert!(said.contains("cargo xtask setup") && !said.contains("rustc-cfg=mesh_ebpf"), "{profile}: {said}");
        assert_eq!(said.contains("cargo::warning="), wanted, "{profile}: {said}");
    }
}

#[test]
fn a_prepared_object_is_embedded_or_the_build_fails() {
    let workspace = Workspace::new();
    let (object, missing) = (workspace.path("object"), workspace.path("missing"));
    fs::write(&object, "programs").unwrap();
    for (prepared, wanted) in [(object, true), (missing, false)] {
        let (built, said) = workspace.run("debug", |script| {
            script.env("MESH_EBPF_OBJECT", &prepared);
        });
        assert_eq!((built, said.contains("rustc-cfg=mesh_ebpf\n")), (wanted, wanted), "{said}");
    }
}
