//! `cargo xtask deploy`: writes what of `deploy/` is made from the code or from the kustomize base; with `--check` it
//! only says what differs, and compares what Helm and kustomize make of it.

mod chart;
mod compare;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

const CRDS: &str = "deploy/kustomize/crds";
const KUSTOMIZE: &str = "deploy/kustomize";
const CHART: &str = "deploy/helm/mesh-agent";
const HEAD: &str = "# Written by `cargo xtask deploy` from the types that read it: change those.\n";

/// Files of the kustomize folder that are templates of the chart, with what each depends on.
const TEMPLATES: [(&str, Option<&str>); 10] = [
    ("base/agent-rbac.yaml", None),
    ("base/agent.yaml", None),
    ("base/capture-policy.yaml", None),
    ("base/ca-rbac.yaml", Some(".Values.ca.enabled")),
    ("base/ca.yaml", Some(".Values.ca.enabled")),
    ("base/controller-rbac.yaml", Some(".Values.controller.enabled")),
    ("base/controller.yaml", Some(".Values.controller.enabled")),
    ("components/monitoring/podmonitor.yaml", Some(".Values.podMonitor.enabled")),
    ("components/monitoring/dashboard.yaml", Some(".Values.dashboard.enabled")),
    ("components/network-policy/networkpolicy.yaml", Some(".Values.networkPolicy.enabled")),
];

/// Writes every file, or names those that differ.
pub fn run(args: &[String]) -> Result<()> {
    let check = match args {
        [] => false,
        [only] if only == "--check" => true,
        _ => bail!("this task takes --check or nothing"),
    };
    let mut differing = Vec::new();
    // The chart's copies of the CRDs come after the CRDs themselves.
    for files in [crds as fn() -> Result<Vec<(PathBuf, String)>>, chart_files] {
        for (path, text) in files()? {
            if settle(&path, &text, check)? {
                differing.push(path.display().to_string());
            }
        }
    }
    match (check, differing.is_empty()) {
        (true, false) => bail!("run `cargo xtask deploy`: not as the code has it: {}", differing.join(", ")),
        (true, true) => compare::charts()?,
        (false, false) => eprintln!("deploy: written: {}", differing.join(", ")),
        (false, true) => {}
    }
    eprintln!("deploy: everything is as the code has it");
    Ok(())
}

/// Writes one file unless it is there as it should be; whether it was not.
fn settle(path: &Path, text: &str, check: bool) -> Result<bool> {
    let full = shell::root().join(path);
    if fs::read_to_string(&full).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    if !check {
        let folder = full.parent().context("a file has a folder")?;
        fs::create_dir_all(folder)?;
        fs::write(&full, text).with_context(|| format!("cannot write {}", full.display()))?;
    }
    Ok(true)
}

/// Each CRD, with its file.
fn crds() -> Result<Vec<(PathBuf, String)>> {
    shell::run(shell::cargo().args(["build", "--quiet", "--package", "mesh-agent", "--bin", "mesh-agent"]))?;
    let agent = shell::target_dir()?.join("debug/mesh-agent");
    let printed = shell::output(shell::command(agent).arg("crds"))?;
    printed.split("---\n").filter(|document| !document.is_empty()).map(crd_file).collect()
}

fn crd_file(document: &str) -> Result<(PathBuf, String)> {
    let name = document.lines().find_map(|line| line.strip_prefix("    plural: "));
    let name = name.context("a CRD has no plural")?;
    Ok((Path::new(CRDS).join(format!("{name}.yaml")), format!("{HEAD}{document}")))
}

/// The chart's templates, and its copies of the CRDs: Helm wants them inside.
fn chart_files() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for (file, condition) in TEMPLATES {
        let from = shell::root().join(KUSTOMIZE).join(file);
        let text = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let template = chart::template(&text, condition).with_context(|| file.to_owned())?;
        let name = Path::new(file).file_name().context("a file has a name")?;
        let head = format!("# Written by `cargo xtask deploy` from {KUSTOMIZE}/{file}: change that.\n");
        files.push((Path::new(CHART).join("templates").join(name), format!("{head}{template}")));
    }
    for entry in fs::read_dir(shell::root().join(CRDS))? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?;
        if name != "kustomization.yaml" {
            files.push((Path::new(CHART).join("crds").join(name), fs::read_to_string(&path)?));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crd_goes_into_the_file_of_its_plural() {
        let (path, text) = crd_file("kind: X\nspec:\n  names:\n    plural: xs\n").unwrap();
        assert_eq!(path, Path::new("deploy/kustomize/crds/xs.yaml"));
        assert!(text.starts_with("# Written by") && text.ends_with("plural: xs\n"));
        assert!(crd_file("kind: X\n").is_err());
    }

    #[test]
    fn the_charts_files_are_as_the_base_has_them() {
        for (path, text) in chart_files().unwrap() {
            assert!(!settle(&path, &text, true).unwrap(), "run `cargo xtask deploy`: {}", path.display());
        }
    }
}
