//! Objects as JSON in the form that was asked for: whole, or their metadata alone.

use serde_json::{Value, json};

use super::kind::Kind;

/// What of an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    Whole,
    /// `PartialObjectMetadata`
    Metadata,
}

/// Appends an object to `text`, with its kind if `named`.
pub fn object(text: &mut Vec<u8>, kind: &Kind, object: &Value, form: Form, named: bool) {
    match form {
        Form::Metadata => {
            text.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#);
            value(text, &object["metadata"]);
            text.push(b'}');
        }
        Form::Whole if named => {
            // Objects are stored without: one stored object serves all versions of its kind.
            let head = format!(r#"{{"kind":"{}","apiVersion":"{}","#, kind.kind, kind.api_version());
            let start = text.len();
            value(text, object);
            text.splice(start..=start, head.bytes());
        }
        Form::Whole => value(text, object),
    }
}

/// Appends a list to `text`.
pub fn list<'a>(text: &mut Vec<u8>, kind: &Kind, metadata: &Value, items: impl Iterator<Item = &'a Value>, form: Form) {
    let (list_kind, api_version) = match form {
        Form::Whole => (format!("{}List", kind.kind), kind.api_version()),
        Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
    };
    let head = format!(r#"{{"kind":"{list_kind}","apiVersion":"{api_version}","metadata":"#);
    text.extend_from_slice(head.as_bytes());
    value(text, metadata);
    text.extend_from_slice(br#","items":["#);
    for (place, item) in items.enumerate() {
        if place > 0 {
            text.push(b',');
        }
        // Only items of custom resources say what they are.
        object(text, kind, item, form, kind.custom);
    }
    text.extend_from_slice(b"]}");
}

/// A line of a watch.
#[must_use]
pub fn event(what: &str, kind: &Kind, shown: &Value, form: Form) -> Vec<u8> {
    let mut text = format!(r#"{{"type":"{what}","object":"#).into_bytes();
    object(&mut text, kind, shown, form, true);
    text.extend_from_slice(b"}\n");
    text
}

/// The line that tells how far a watch has come.
#[must_use]
pub fn bookmark(kind: &Kind, version: u64, ends_initial: bool, form: Form) -> Vec<u8> {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if ends_initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    event("BOOKMARK", kind, &json!({"metadata": metadata}), form)
}

fn value(text: &mut Vec<u8>, value: &Value) {
    // Writing JSON into memory does not fail.
    let written = serde_json::to_writer(text, value);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_api::kind::built_in;

    #[test]
    fn objects_and_lists_are_written_in_both_forms() {
        let pods = built_in().into_iter().find(|kind| kind.kind == "Pod").expect("pods");
        let pod = json!({"metadata": {"name": "web"}, "spec": {}});
        let parsed = |text: &[u8]| serde_json::from_slice::<Value>(text).expect("JSON");
        let added = json!({"type": "ADDED", "object":
            {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"}, "spec": {}}});
        assert_eq!(parsed(&event("ADDED", &pods, &pod, Form::Whole)), added);
        let mut text = Vec::new();
        list(&mut text, &pods, &json!({"resourceVersion": "1"}), [&pod, &pod].into_iter(), Form::Whole);
        let listed = parsed(&text);
        assert_eq!((&listed["kind"], listed["items"][1].get("kind")), (&json!("PodList"), None));
        let partial = parsed(&event("ADDED", &pods, &pod, Form::Metadata));
        let expected = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": "web"}});
        assert_eq!(partial["object"], expected);
    }
}
