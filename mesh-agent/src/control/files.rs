//! What the directory's files say, file by file, and all objects that follow from it.
//!
//! Pure: bytes come in by [`Files::apply`], [`Objects`] go out. Which version of what is in force:
//!
//! - An object with a mistake: our enforcement kinds deny what they target; every other kind keeps the last good
//!   version of that object in that file, if there was one.
//! - A document that is not YAML: the file's other documents count. Where the text names an enforcement kind it is
//!   a broken object of that kind ([`super::object::suspects`]); what the file's last version held besides and what
//!   is now missing from it stays, enforcement kinds excepted: their verdict is never a matter of history, so that
//!   an agent started a moment ago and one that remembers decide alike.
//! - The same object in two places: the first, by file name and then by position, is in force; of an enforcement
//!   kind both are, as broken.
//! - A file that cannot be opened: nothing is known about it, what it held stays.

use std::collections::hash_map::{DefaultHasher, Entry as MapEntry};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde_json::Value;

use super::compile::Objects;
use super::document::{Document, documents};
use super::keep::{Entry, problem};
use super::object::{self, Key, Mistake, Object};
use crate::model::problem::{Effect, Problem};

/// Everything read so far.
#[derive(Debug, Default)]
pub(super) struct Files {
    by_name: BTreeMap<Arc<str>, File>,
}

#[derive(Debug, Default)]
struct File {
    /// Of the bytes last applied; `None` while the file could not be read.
    digest: Option<u64>,
    entries: Vec<Entry>,
    unavailable: Option<Problem>,
}

impl Files {
    /// Whether the file has been read before.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Takes `bytes` as what file `name` says now.
    pub(super) fn apply(&mut self, name: &str, bytes: &[u8]) {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let digest = Some(hasher.finish());
        let file = self.by_name.entry(name.into()).or_default();
        file.unavailable = None;
        if file.digest != digest {
            let before = std::mem::take(&mut file.entries);
            *file = File { digest, entries: read(&name.into(), bytes, before), unavailable: None };
        }
    }

    /// Notes that file `name` cannot be read; what it held stays.
    pub(super) fn unavailable(&mut self, name: &str, reason: String) {
        let file = self.by_name.entry(name.into()).or_default();
        let effect = if file.entries.is_empty() { Effect::Ignored } else { Effect::KeepsLast };
        file.digest = None;
        file.unavailable = Some(problem(&name.into(), "file".into(), Mistake { field: String::new(), reason }, effect));
    }

    /// Forgets every file but `names`.
    pub(super) fn retain(&mut self, names: &HashSet<String>) {
        self.by_name.retain(|name, _| names.contains(&**name));
    }

    /// Forgets file `name`: what it held is gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Everything that is in force.
    pub(super) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        let copies = self.copies();
        let mut seen: HashMap<&Key, &Arc<str>> = HashMap::new();
        for (location, file) in &self.by_name {
            objects.problems.extend(file.unavailable.clone());
            for entry in &file.entries {
                objects.problems.extend(entry.problems.iter().cloned());
                let (Some(key), Some(object)) = (&entry.key, &entry.object) else { continue };
                let first = match seen.entry(key) {
                    MapEntry::Vacant(vacant) => {
                        vacant.insert(location);
                        None
                    }
                    MapEntry::Occupied(occupied) if !key.name.is_empty() => Some(*occupied.get()),
                    MapEntry::Occupied(_) => None,
                };
                let is_copied = copies.contains(key);
                match first {
                    Some(first) if !key.kind.is_enforcement() => {
                        objects.problems.push(duplicate(location, key, first, Effect::Ignored));
                        continue;
                    }
                    Some(first) => objects.problems.push(duplicate(location, key, first, Effect::Denies)),
                    None => {}
                }
                let object = object.clone();
                objects.add(
                    if is_copied { object.broken("the object is defined more than once") } else { object },
                    location,
                );
            }
        }
        objects
    }

    /// Keys of enforcement objects that stand in more than one place.
    fn copies(&self) -> HashSet<&Key> {
        let mut seen = HashSet::new();
        let entries = self.by_name.values().flat_map(|file| &file.entries);
        let keys = entries.filter(|entry| entry.object.is_some()).filter_map(|entry| entry.key.as_ref());
        keys.filter(|key| key.kind.is_enforcement() && !key.name.is_empty()).filter(|key| !seen.insert(*key)).collect()
    }
}

/// The entries of a file; `before` are those of its last version.
fn read(location: &Arc<str>, bytes: &[u8], before: Vec<Entry>) -> Vec<Entry> {
    let mut last_good: HashMap<Key, Object> =
        before.into_iter().filter_map(|entry| entry.key.zip(entry.object)).collect();
    last_good.retain(|key, _| !key.kind.is_enforcement());
    let mut entries = Vec::new();
    let mut unreadable = Vec::new();
    for document in documents(bytes) {
        match document {
            Document::Tree { value, repeated } => match object::list_items(&value) {
                Some(items) => {
                    for (at, item) in items.iter().enumerate() {
                        let prefix = format!("items[{at}].");
                        let own = repeated.iter().filter_map(|path| path.strip_prefix(&prefix).map(str::to_owned));
                        entries.push(read_object(location, item, &own.collect::<Vec<_>>(), &mut last_good));
                    }
                }
                None => entries.push(read_object(location, &value, &repeated, &mut last_good)),
            },
            Document::Unreadable { text, reason } => unreadable.push((text, reason)),
        }
    }
    for (text, reason) in unreadable {
        entries.extend(read_unreadable(location, &text, &reason, &mut last_good));
    }
    entries
}

fn read_object(location: &Arc<str>, value: &Value, repeated: &[String], last_good: &mut HashMap<Key, Object>) -> Entry {
    Entry::new(location, value, object::read(value, repeated), |key| last_good.remove(key))
}

/// What an unreadable text is taken for. The first one of a file also keeps what is missing from the file.
fn read_unreadable(location: &Arc<str>, text: &str, reason: &str, last_good: &mut HashMap<Key, Object>) -> Vec<Entry> {
    let mistake = || Mistake { field: String::new(), reason: reason.to_owned() };
    let suspects = object::suspects(text, reason).into_iter().map(|(key, object)| {
        let problems = vec![problem(location, key.to_string().into(), mistake(), Effect::Denies)];
        Entry { key: Some(key), object: Some(object), problems }
    });
    let mut entries: Vec<Entry> = suspects.collect();
    let effect = if last_good.is_empty() { Effect::Ignored } else { Effect::KeepsLast };
    if entries.is_empty() || effect == Effect::KeepsLast {
        let problems = vec![problem(location, "document".into(), mistake(), effect)];
        entries.push(Entry { key: None, object: None, problems });
    }
    let kept =
        last_good.drain().map(|(key, object)| Entry { key: Some(key), object: Some(object), problems: Vec::new() });
    let mut kept: Vec<Entry> = kept.collect();
    kept.sort_by(|a, b| a.key.cmp(&b.key));
    entries.extend(kept);
    entries
}

fn duplicate(location: &Arc<str>, key: &Key, first: &str, effect: Effect) -> Problem {
    let reason = match effect {
        Effect::Denies => format!("defined in {first} too: neither can be trusted"),
        _ => format!("defined in {first} too, which is in force"),
    };
    problem(location, key.to_string().into(), Mistake { field: "metadata.name".to_owned(), reason }, effect)
}
