//! The file of namespace modes: what the agent leaves for the plugin to decide by while it is away itself.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::stamped;

/// Its name in the state directory.
pub const MODES_NAME: &str = "namespaces.json";
/// The agent writes it this often, whatever happens.
pub const WRITTEN_EVERY: Duration = Duration::from_secs(60);
/// An older one is no answer: too much may have changed.
const BELIEVED: Duration = Duration::from_secs(600);

/// Which namespaces there are, and whether they are opted in.
pub type Modes = BTreeMap<String, bool>;

/// Writes the file, 0600, in one step.
///
/// # Errors
/// What the system says.
pub fn write(state_dir: &Path, modes: &Modes) -> io::Result<()> {
    stamped::write(state_dir, MODES_NAME, &stamped::boot_id()?, modes)
}

/// Whether `namespace` is opted in; `Err` says why that is not known.
pub(super) fn is_enabled(state_dir: &Path, namespace: &str) -> Result<bool, String> {
    let file = state_dir.join(MODES_NAME);
    let file = file.display();
    let boot = stamped::boot_id().map_err(|error| error.to_string())?;
    let Some((modes, age)) = stamped::read::<Modes>(state_dir, MODES_NAME, &boot) else {
        return Err(format!("no agent has written {file} since the node's start"));
    };
    if age > BELIEVED {
        return Err(format!("{file} is {} s old, older than {} s", age.as_secs(), BELIEVED.as_secs()));
    }
    modes.get(namespace).copied().ok_or_else(|| format!("{file} does not know namespace {namespace}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_opted_in_or_not_or_unknown() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_enabled(dir.path(), "shop").unwrap_err().contains("no agent has written"));
        write(dir.path(), &[("shop".to_owned(), true), ("other".to_owned(), false)].into()).unwrap();
        assert_eq!(is_enabled(dir.path(), "shop"), Ok(true));
        assert_eq!(is_enabled(dir.path(), "other"), Ok(false));
        assert!(is_enabled(dir.path(), "new").unwrap_err().contains("does not know namespace new"));
    }

    #[test]
    fn an_old_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("shop".to_owned(), false)].into()).unwrap();
        let file = dir.path().join(MODES_NAME);
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        value["written"] = (value["written"].as_u64().unwrap() - BELIEVED.as_secs() - 5).into();
        std::fs::write(&file, value.to_string()).unwrap();
        assert!(is_enabled(dir.path(), "shop").unwrap_err().contains("older than"));
    }
}
