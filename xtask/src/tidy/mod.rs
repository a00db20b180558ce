//! `cargo xtask tidy`: rules that no compiler checks, over every file that git tracks. Also an ordinary test.
//!
//! Rules about the text of single files are here, rules about which room may use what in [`edges`].

mod edges;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Longest file, counted up to its tests.
const MAX_FILE_LINES: usize = 400;
/// Longest line of code, in characters; tests hold tables and texts.
const MAX_LINE_CHARS: usize = 120;

/// One tracked text file.
pub struct SourceFile {
    /// Path from the repository's root.
    pub path: String,
    /// Its whole text.
    pub text: String,
}

impl SourceFile {
    /// The lines before the file's tests, numbered from 1; none of a file that is tests as a whole.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let all_tests = ["tests.rs", "/properties.rs"].iter().any(|name| self.path.ends_with(name));
        self.lines().take_while(move |(_, line)| !all_tests && !line.starts_with("#[cfg(test)]"))
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Checks the repository and names every violation.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("`{unknown}`: this task takes no arguments");
    }
    let files = tracked_files()?;
    let violations = violations(&files);
    if violations.is_empty() {
        eprintln!("tidy: {} files, all well", files.len());
        return Ok(());
    }
    bail!("{} violations\n  {}", violations.len(), violations.join("\n  "));
}

/// Every violation of every rule, as `file:line: what`.
fn violations(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        machine_paths(file, &mut found);
        if file.is_rust() {
            rust_text(file, &mut found);
            edges::check(file, &mut found);
        }
    }
    test_targets(files, &mut found);
    found
}

/// Files that git knows or would add; binary ones are left out.
fn tracked_files() -> Result<Vec<SourceFile>> {
    let list = shell::output(shell::command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let mut files = Vec::new();
    for path in list.lines() {
        let full = shell::root().join(path);
        if !full.is_file() {
            continue;
        }
        let bytes = fs::read(&full).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

/// Paths of the machine that somebody happened to work on. Lock files hold checksums only.
fn machine_paths(file: &SourceFile, found: &mut Vec<String>) {
    if Path::new(&file.path).extension().is_some_and(|e| e == "lock") {
        return;
    }
    let folders = ["work", "farm", "root"].map(|folder| format!("/{folder}/"));
    for (number, line) in file.lines() {
        for folder in &folders {
            let absolute = line.match_indices(folder.as_str()).any(|(at, _)| {
                let before = line.get(..at).and_then(|text| text.chars().next_back());
                !before.is_some_and(|c| c.is_alphanumeric() || "._-/}".contains(c))
            });
            if absolute {
                found.push(format!("{}:{number}: a path of one machine: {folder}", file.path));
            }
        }
    }
}

/// What must not stand in Rust code. Spelled in halves, or this file would violate itself.
const FORBIDDEN: [(&str, &str, &str); 4] = [
    ("thread::", "sleep", "wait for a condition, or pace with a timeout on what is awaited"),
    ("to", "do!(", "a stub is not done"),
    ("unimpl", "emented!(", "a stub is not done"),
    ("#[ign", "ore", "a skip must be visible: skip in the command that says so"),
];

fn rust_text(file: &SourceFile, found: &mut Vec<String>) {
    let path = &file.path;
    if !file.text.starts_with("//!") {
        found
            .push(format!("{path}:1: opens with `//!`: what the file does, its place in the flow, what it never does"));
    }
    let length = file.code().count();
    if length > MAX_FILE_LINES {
        found.push(format!("{path}:{MAX_FILE_LINES}: {length} lines before its tests; the most is {MAX_FILE_LINES}"));
    }
    for (number, line) in file.code() {
        let width = line.chars().count();
        if width > MAX_LINE_CHARS {
            found.push(format!("{path}:{number}: {width} characters; the most is {MAX_LINE_CHARS}"));
        }
    }
    for (number, line) in file.lines() {
        for (head, tail, why) in FORBIDDEN {
            let word = format!("{head}{tail}");
            if line.contains(&word) {
                found.push(format!("{path}:{number}: `{word}`: {why}"));
            }
        }
    }
}

/// Suites that need root are no part of a plain `cargo test`, so each file must be declared.
fn test_targets(files: &[SourceFile], found: &mut Vec<String>) {
    let Some(manifest) = files.iter().find(|f| f.path == "tests/Cargo.toml") else { return };
    for file in files {
        let Some(path) = file.path.strip_prefix("tests/tests/").and_then(|p| p.strip_suffix(".rs")) else { continue };
        let name = path.strip_suffix("/main").unwrap_or(path);
        if !name.contains('/') && !manifest.text.contains(&format!("name = \"{name}\"")) {
            found.push(format!("{}:1: not declared in tests/Cargo.toml, so it never runs", file.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        violations(&[SourceFile { path: path.to_owned(), text: text.to_owned() }])
    }

    #[test]
    fn the_repository_is_tidy() {
        let violations = violations(&tracked_files().unwrap());
        assert!(violations.is_empty(), "\n{}", violations.join("\n"));
    }

    #[test]
    fn each_rule_finds_its_violation() {
        let check = |text: &str, what: &str| {
            let found = found("mesh-agent/src/agent.rs", text);
            assert!(found.iter().any(|v| v.contains(what)), "{what} not in {found:?}");
        };
        check("fn main() {}\n", "opens with");
        check(&format!("//! x\n{}", "// y\n".repeat(MAX_FILE_LINES)), "401 lines");
        check(&format!("//! {}\n", "y".repeat(MAX_LINE_CHARS)), "124 characters");
        check(concat!("//! x\nstd::thread::", "sleep(d);\n"), "wait for a condition");
        check(concat!("//! x\nto", "do!()\n"), "not done");
        check(concat!("//! x\n// see /ro", "ot/notes\n"), "a path of one machine");
        check("//! x\nuse crate::model; unsafe {}\n", "sys.rs only");
    }

    #[test]
    fn tests_do_not_count_as_length_and_urls_are_no_machine_paths() {
        let long_tests = format!("//! x\n#[cfg(test)]\n{}", "// y\n".repeat(MAX_FILE_LINES));
        assert_eq!(found("xtask/src/a.rs", &long_tests), Vec::<String>::new());
        assert_eq!(found("README.md", "see https://example.com/ro\u{6f}t/x and target/work/x"), Vec::<String>::new());
    }

    #[test]
    fn a_suite_that_is_not_declared_is_named() {
        let files = [
            ("tests/Cargo.toml", "name = \"mesh_a\""),
            ("tests/tests/mesh_a.rs", "//! a"),
            ("tests/tests/mesh_b.rs", "//! b"),
        ]
        .map(|(path, text)| SourceFile { path: path.to_owned(), text: text.to_owned() });
        let violations = violations(&files);
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(violations[0].contains("mesh_b.rs"));
    }
}
