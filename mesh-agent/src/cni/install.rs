//! The plugin on the node: its binary, its place in the network configuration, its kubeconfig (decision 0010).
//!
//! Everything is replaced whole. Whatever cannot be read is left alone and named.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;
use serde_json::{Map, Value, json};

use super::conflist::{self, Shape, TYPE};
use super::stamped::replace;
use crate::config::{CniApi, CniInstall};

/// Beside the network configurations, and none of them.
const KUBECONFIG_NAME: &str = "mesh-agent-kubeconfig";
/// Appended to the name of a single configuration that was made a list.
const KEPT: &str = ".mesh-agent-kept";
/// Of a binary.
const EXECUTABLE: u32 = 0o755;
/// Of what nobody else may read.
const PRIVATE: u32 = 0o600;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory.
    #[error("{path}: {source}; it must be mounted where it is on the host, writable")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The directory has nothing to be added to.
    #[error("{dir}: no network configuration yet; it is waited for")]
    NoConfiguration {
        /// The directory.
        dir: PathBuf,
    },
    /// Somebody's mistake, or not written to its end.
    #[error("{path}: {reason}; it is left alone")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { path, source }
}

/// Whether directories are there to be written to. Looked at when an agent starts: one that could never install
/// the plugin would say that it is ready, and the node's pods would start without waiting for it.
///
/// # Errors
/// Names the directory.
pub fn is_writable<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Result<(), InstallError> {
    dirs.into_iter().try_for_each(|dir| {
        nix::unistd::access(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| at(dir)(errno.into()))
    })
}

/// Copies the running program to where runtimes look for plugins, unless it is there.
///
/// # Errors
/// What the system says.
pub fn install_binary(install: &CniInstall) -> Result<bool, InstallError> {
    let (program, target) = (Path::new("/proc/self/exe"), install.bin_dir.join(TYPE));
    if is_same(program, &target) {
        return Ok(false);
    }
    let draft = install.bin_dir.join(format!(".{TYPE}.{}", std::process::id()));
    let copy = || {
        fs::copy(program, &draft)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(EXECUTABLE))?;
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, &target)
    };
    copy().map_err(|error| {
        let _ = fs::remove_file(&draft);
        at(&target)(error)
    })?;
    Ok(true)
}

/// Whether two files have the same bytes. Of equal length they are compared: a build has its version in itself.
fn is_same(one: &Path, other: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).map(|meta| meta.len()).ok();
    if length(one).is_none() || length(one) != length(other) {
        return false;
    }
    matches!((fs::read(one), fs::read(other)), (Ok(one), Ok(other)) if one == other)
}

/// Adds the plugin to the network configuration in use, or puts it back into its place. Gives the file that it has
/// changed.
///
/// # Errors
/// When there is none, or it cannot be read or written; it is as it was then.
pub fn install_entry(install: &CniInstall) -> Result<Option<PathBuf>, InstallError> {
    let dir = &install.conf_dir;
    let names = names(dir)?;
    let Some(name) = conflist::first(&names) else {
        return Err(InstallError::NoConfiguration { dir: dir.clone() });
    };
    let path = dir.join(name);
    let (text, mode) = read(&path)?;
    let unreadable = |reason| InstallError::Unreadable { path: path.clone(), reason };
    let (shape, value) = conflist::parse(&text).map_err(unreadable)?;
    let entry = entry(install);
    match shape {
        Shape::List => {
            let wanted = conflist::with_entry(value.clone(), &entry);
            if wanted == value {
                return Ok(None);
            }
            write(&path, &wanted, mode)?;
            Ok(Some(path))
        }
        Shape::Single => {
            let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
            let list = dir.join(format!("{stem}.conflist"));
            write(&list, &conflist::with_entry(conflist::as_list(value), &entry), mode)?;
            // Last: as long as it is there it is the one in use.
            let kept = dir.join(format!("{name}{KEPT}"));
            fs::rename(&path, &kept).map_err(at(&kept))?;
            Ok(Some(list))
        }
    }
}

/// Our entry of the list.
fn entry(install: &CniInstall) -> Value {
    let mut entry = Map::from_iter([
        ("type".to_owned(), json!(TYPE)),
        ("stateDir".to_owned(), json!(install.state_dir)),
        ("deadlineSeconds".to_owned(), json!(install.deadline_seconds)),
        ("exemptNamespaces".to_owned(), json!(install.exempt_namespaces)),
    ]);
    let kubeconfig = match &install.api {
        CniApi::None => None,
        CniApi::Kubeconfig(path) => Some(path.clone()),
        CniApi::ServiceAccount { .. } => Some(install.conf_dir.join(KUBECONFIG_NAME)),
    };
    entry.extend(kubeconfig.map(|path| ("kubeconfig".to_owned(), json!(path))));
    Value::Object(entry)
}

/// Writes the kubeconfig by which the plugin asks the API server, from the service account's token as it is now.
/// Nothing to do where a kubeconfig is given, or none is wanted.
///
/// # Errors
/// What the system says.
pub fn install_kubeconfig(install: &CniInstall) -> Result<bool, InstallError> {
    let CniApi::ServiceAccount { server, folder } = &install.api else { return Ok(false) };
    let read = |name: &str| fs::read_to_string(folder.join(name)).map_err(at(&folder.join(name)));
    let (token, authority) = (read("token")?, folder.join("ca.crt"));
    let authority = fs::read(&authority).map_err(at(&authority))?;
    let text = kubeconfig(server, token.trim(), &authority).to_string();
    let path = install.conf_dir.join(KUBECONFIG_NAME);
    if fs::read_to_string(&path).is_ok_and(|now| now == text) {
        return Ok(false);
    }
    replace(&path, text.as_bytes(), PRIVATE).map_err(at(&path))?;
    Ok(true)
}

/// As JSON, which is YAML.
fn kubeconfig(server: &str, token: &str, authority: &[u8]) -> Value {
    use base64::Engine;
    let authority = base64::engine::general_purpose::STANDARD.encode(authority);
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": TYPE,
        "clusters": [{"name": TYPE, "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": TYPE, "user": {"token": token}}],
        "contexts": [{"name": TYPE, "context": {"cluster": TYPE, "user": TYPE}}],
    })
}

/// Takes everything of the plugin away; what others have configured stays as it was.
///
/// # Errors
/// The first failure, after everything else has been tried.
pub fn uninstall(conf_dir: &Path, bin_dir: &Path) -> Result<(), InstallError> {
    let mut outcome = Ok(());
    // First the configuration: a runtime must not look for a binary that is gone.
    for name in names(conf_dir)? {
        if conflist::is_configuration(&name) {
            outcome = outcome.and(remove_entry(conf_dir, &name));
        }
    }
    for path in [conf_dir.join(KUBECONFIG_NAME), bin_dir.join(TYPE)] {
        outcome = outcome.and(match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        });
    }
    outcome
}

fn remove_entry(dir: &Path, name: &str) -> Result<(), InstallError> {
    let path = dir.join(name);
    let (text, mode) = read(&path)?;
    let Ok((Shape::List, list)) = conflist::parse(&text) else { return Ok(()) };
    let Some(list) = conflist::without_entry(list) else { return Ok(()) };
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    for extension in ["conf", "json"] {
        let single = dir.join(format!("{stem}.{extension}"));
        let kept = dir.join(format!("{stem}.{extension}{KEPT}"));
        let Ok((text, _)) = read(&kept) else { continue };
        // Only if nobody has changed the list since it was made of that one.
        if conflist::parse(&text).is_ok_and(|(_, value)| conflist::as_list(value) == list) && !single.exists() {
            fs::rename(&kept, &single).map_err(at(&single))?;
            return fs::remove_file(&path).map_err(at(&path));
        }
        fs::remove_file(&kept).map_err(at(&kept))?;
    }
    write(&path, &list, mode)
}

fn write(path: &Path, value: &Value, mode: u32) -> Result<(), InstallError> {
    let text = format!("{value:#}\n");
    replace(path, text.as_bytes(), mode).map_err(at(path))
}

fn read(path: &Path) -> Result<(String, u32), InstallError> {
    let mode = fs::metadata(path).map_err(at(path))?.mode() & 0o777;
    Ok((fs::read_to_string(path).map_err(at(path))?, mode))
}

fn names(dir: &Path) -> Result<Vec<String>, InstallError> {
    let entries = fs::read_dir(dir).map_err(at(dir))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
