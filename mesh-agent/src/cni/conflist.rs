//! The plugin's place in a network configuration: last of the chain. Pure: text comes in, text goes out.

use serde_json::{Map, Value};

/// `type` of our entry, and the name of the binary.
pub(super) const TYPE: &str = "mesh-agent";
/// What libcni reads, in this order of names alone.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What a file of the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A list of plugins.
    List,
    /// One plugin by itself: to be made a list.
    Single,
}

/// The file that the runtime uses: the lexically first.
pub(super) fn first(names: &[String]) -> Option<&String> {
    names.iter().filter(|name| is_configuration(name)).min()
}

/// Whether libcni reads a file of this name.
pub(super) fn is_configuration(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, extension)| !stem.is_empty() && EXTENSIONS.contains(&extension))
}

/// Reads a network configuration.
///
/// # Errors
/// What is wrong with it, in a sentence: it is being written, or somebody's mistake.
pub(super) fn parse(text: &str) -> Result<(Shape, Value), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value.get("plugins").is_some_and(Value::is_array) {
        return Ok((Shape::List, value));
    }
    match value.get("type").and_then(Value::as_str) {
        Some(TYPE) => Err("it has no plugin but mesh-agent, which makes no interface".to_owned()),
        Some(_) => Ok((Shape::Single, value)),
        None => Err("it has neither `plugins` nor `type`".to_owned()),
    }
}

/// One plugin as a list of one.
pub(super) fn as_list(mut single: Value) -> Value {
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        // In a list they stand outside; the runtime gives them to each plugin.
        let value = single.as_object_mut().and_then(|single| single.remove(key));
        list.extend(value.map(|value| (key.to_owned(), value)));
    }
    list.insert("plugins".to_owned(), Value::Array(vec![single]));
    Value::Object(list)
}

/// `list` with our entry last and nowhere else.
pub(super) fn with_entry(mut list: Value, entry: &Value) -> Value {
    if let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|plugin| !is_ours(plugin));
        plugins.push(entry.clone());
    }
    list
}

/// `list` without our entry; `None` when it has none.
pub(super) fn without_entry(mut list: Value) -> Option<Value> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    (plugins.len() < before).then_some(list)
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        json!({"type": TYPE, "stateDir": "/s"})
    }

    fn list(types: &[&str]) -> Value {
        let plugins: Vec<Value> = types.iter().map(|kind| json!({"type": kind, "x": 1.0})).collect();
        json!({"cniVersion": "0.3.1", "name": "n", "plugins": plugins, "disableCheck": true})
    }

    #[test]
    fn the_first_file_by_name_is_the_one_in_use() {
        let names =
            ["99-loop.conf", ".05-a.conflist.77", "10-b.conflist", "05-c.conflist.bak", "mesh-agent-kubeconfig"];
        let names = names.map(str::to_owned);
        assert_eq!(first(&names), Some(&"10-b.conflist".to_owned()));
        assert_eq!(first(&["README".to_owned(), ".conf".to_owned()]), None);
    }

    #[test]
    fn our_entry_is_last_once_whatever_was_there() {
        for types in [&["bridge", "portmap"][..], &["bridge", TYPE, "portmap"], &[TYPE, "bridge", "portmap", TYPE]] {
            let after = with_entry(list(types), &entry());
            let kinds: Vec<&str> =
                after["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap()).collect();
            assert_eq!(kinds, ["bridge", "portmap", TYPE]);
            assert_eq!(with_entry(after.clone(), &entry()), after);
            assert_eq!(without_entry(after), Some(list(&["bridge", "portmap"])));
        }
        assert_eq!(without_entry(list(&["bridge"])), None);
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_one() {
        let (shape, single) = parse(r#"{"cniVersion":"0.3.1","name":"n","type":"bridge","ipam":{}}"#).unwrap();
        assert_eq!(shape, Shape::Single);
        let expected = json!({"cniVersion": "0.3.1", "name": "n", "plugins": [{"type": "bridge", "ipam": {}}]});
        assert_eq!(as_list(single), expected);
    }

    #[test]
    fn what_is_torn_or_nothing_of_the_kind_says_so() {
        for (text, part) in
            [("{\"plugins\":[", "EOF"), ("", "EOF"), ("{}", "neither"), (r#"{"type":"mesh-agent"}"#, "no plugin but")]
        {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
