//! Debian's kernels: looked for, downloaded and unpacked, never installed.
//!
//! ```text
//! <tools>/kernels/<name>/release       `uname -r`
//!                        vmlinuz
//!                        <module>.ko   those of MODULES that are not built in
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, shell};

/// A kernel that the programs are tried on.
pub struct Kernel {
    /// As the user names it.
    pub name: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
    /// How its version begins; the highest such is taken.
    version: &'static str,
}

/// The oldest that is promised, the long-term one between, and the newest that Debian has.
pub const KERNELS: [Kernel; 3] = [
    Kernel { name: "6.1", suite: "bookworm", version: "6.1." },
    Kernel { name: "6.12", suite: "trixie", version: "6.12." },
    Kernel { name: "newest", suite: "trixie-backports", version: "" },
];

/// What the suites need and Debian builds as modules, in the order of loading.
const MODULES: [&str; 3] = ["veth", "inet_diag", "tcp_diag"];
/// Debian's kernel for virtual machines: smaller, with the same network.
const FLAVOUR: &str = "-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel on this machine's disk.
pub struct Unpacked {
    /// `uname -r`.
    pub release: String,
    /// What boots.
    pub image: PathBuf,
    /// What is to be loaded, in this order.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// The kernel, fetched first if it is not there or if `update` asks for the highest version of today.
    ///
    /// # Errors
    /// When this is no Debian, or the package cannot be had.
    pub fn ensure(&self, update: bool) -> Result<Unpacked> {
        let folder = setup::tools_dir()?.join("kernels").join(self.name);
        if update || !folder.is_dir() {
            self.fetch(&folder).with_context(|| format!("cannot fetch Debian's kernel {}", self.name))?;
        }
        let release = fs::read_to_string(folder.join("release")).context("the unpacked kernel has no release")?;
        let modules = MODULES.iter().map(|name| folder.join(format!("{name}.ko"))).filter(|path| path.is_file());
        Ok(Unpacked { release: release.trim().to_owned(), image: folder.join("vmlinuz"), modules: modules.collect() })
    }

    fn fetch(&self, folder: &Path) -> Result<()> {
        let work = folder.with_file_name(format!("{}.new", self.name));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(work.join("tree"))?;
        let apt = Apt::new(&work, self.suite)?;
        let release = apt.newest(self.version)?;
        eprintln!("kernels: {} is {release}", self.name);
        // Newer packages keep image and modules apart.
        let parts = ["linux-image-", "linux-binary-", "linux-modules-"].map(|part| format!("{part}{release}"));
        for package in parts.iter().filter(|package| shell::succeeds(apt.cache().args(["show", package]))) {
            apt.unpack(package)?;
        }
        let tree = work.join("tree");
        keep(&tree, &release, &work)?;
        for left in ["tree", "apt"] {
            fs::remove_dir_all(work.join(left))?;
        }
        if folder.is_dir() {
            fs::remove_dir_all(folder)?;
        }
        fs::rename(&work, folder).with_context(|| format!("cannot make {}", folder.display()))
    }
}

/// Moves what is needed out of an unpacked package.
fn keep(tree: &Path, release: &str, to: &Path) -> Result<()> {
    let folders = ["lib/modules", "usr/lib/modules"].map(|folder| tree.join(folder).join(release));
    let image = folders.iter().map(|folder| folder.join("vmlinuz"));
    let image = image.chain([tree.join(format!("boot/vmlinuz-{release}"))]).find(|path| path.is_file());
    fs::rename(image.context("the package has no kernel image")?, to.join("vmlinuz"))?;
    let modules = folders.iter().find(|folder| folder.is_dir()).context("the package has no modules")?;
    for name in MODULES {
        let Some(found) = find(modules, &format!("{name}.ko"))? else { continue };
        let packed = found.extension().and_then(|e| e.to_str()) != Some("ko");
        if packed {
            // xz, as Debian does since 6.9; busybox's insmod takes plain ones only.
            shell::run(shell::command("xz").args(["-d", "-f"]).arg(&found))?;
        }
        let plain = if packed { found.with_extension("") } else { found };
        fs::rename(plain, to.join(format!("{name}.ko")))?;
    }
    Ok(fs::write(to.join("release"), release)?)
}

/// The file whose name begins with `name`, anywhere below `folder`.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_string_lossy().starts_with(name) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// apt with lists of its own, so that the machine's sources stay as they are.
struct Apt {
    work: PathBuf,
}

impl Apt {
    fn new(work: &Path, suite: &str) -> Result<Self> {
        for folder in ["apt/lists/partial", "apt/cache/archives/partial"] {
            fs::create_dir_all(work.join(folder))?;
        }
        let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        fs::write(work.join("apt/sources.list"), format!("deb {signed}{} {suite} main\n", mirror()?))?;
        let apt = Self { work: work.to_owned() };
        shell::run(apt.command("apt-get").args(["update", "-q"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let apt = self.work.join("apt");
        let mut command = shell::command(program);
        for (option, value) in [
            ("Dir::State::lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("-")),
            // Its own user may not enter the tools folder.
            ("APT::Sandbox::User", PathBuf::from("root")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command
    }

    fn cache(&self) -> Command {
        self.command("apt-cache")
    }

    /// The highest release of the flavour that begins with `version`.
    fn newest(&self, version: &str) -> Result<String> {
        let list = shell::output(self.cache().args(["search", "--names-only", "^linux-image-[0-9]"]))?;
        highest(&list, version).with_context(|| format!("no linux-image-{version}*{FLAVOUR} in the suite"))
    }

    fn unpack(&self, package: &str) -> Result<()> {
        shell::run(self.command("apt-get").args(["download", "-q", package]).current_dir(self.work.join("tree")))?;
        let tree = self.work.join("tree");
        for entry in fs::read_dir(&tree)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                shell::run(shell::command("dpkg-deb").arg("-x").arg(&path).arg(&tree))?;
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Where this machine gets Debian's packages from.
fn mirror() -> Result<String> {
    ensure!(shell::which("apt-get").is_some(), "the kernels are Debian's packages and there is no apt-get");
    let mut list = shell::command("apt-get");
    list.args(["indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Identifier: Packages", "Component: main"]);
    let sites = shell::output(&mut list)?;
    match sites.lines().find(|site| !site.contains("security")) {
        Some(site) => Ok(site.to_owned()),
        None => bail!("none of this machine's package sources is Debian's"),
    }
}

/// Among lines as `linux-image-RELEASE - DESCRIPTION`, the highest release of the flavour that begins with `version`.
fn highest(list: &str, version: &str) -> Option<String> {
    list.lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
        .filter(|release| release.starts_with(version) && release.ends_with(FLAVOUR))
        .map(|release| (numbers(release.trim_end_matches(FLAVOUR)), release))
        // Meta packages are called after two numbers.
        .filter(|(numbers, _)| numbers.len() > 2)
        .max()
        .map(|(_, release)| release.to_owned())
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_release_is_found_by_its_numbers() {
        let list = "linux-image-6.1.0-9-cloud-amd64 - x\nlinux-image-6.1.0-47-cloud-amd64 - x\n\
                    linux-image-6.1.0-50-amd64 - x\nlinux-image-6.1.0-50-cloud-amd64-dbg - x\n\
                    linux-image-6.12-cloud-amd64 - x\nlinux-image-6.12.9+deb12-cloud-amd64 - x\n\
                    linux-image-6.12.90+deb12.1-cloud-amd64 - x\n";
        assert_eq!(highest(list, "6.1.").as_deref(), Some("6.1.0-47-cloud-amd64"));
        assert_eq!(highest(list, "").as_deref(), Some("6.12.90+deb12.1-cloud-amd64"));
        assert_eq!(highest(list, "5."), None);
    }
}
