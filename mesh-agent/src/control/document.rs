//! Text of a file → YAML documents → trees with every mistake still nameable.
//!
//! A file is cut at its `---` lines before anything is parsed (YAML 1.2 §9.1.2 forbids such a line inside a
//! document), so that a syntax error spoils one document and not its neighbours. JSON is YAML. Trees are
//! `serde_json` values, which is what the API server sends too. Never looks at what an object means.

use std::cell::RefCell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The parser takes time by the square of the nesting: a corrupt file must not cost minutes. No object of
/// Kubernetes is nested a twentieth as deep.
const MAX_NESTING: usize = 1_000;

/// One document of a file.
#[derive(Debug)]
pub(super) enum Document {
    /// It parsed.
    Tree {
        /// What it says; of a repeated key the last value.
        value: Value,
        /// Paths of keys that stand twice in one mapping.
        repeated: Vec<String>,
    },
    /// It is not YAML.
    Unreadable {
        /// Its text, for whoever must guess what it was to be.
        text: String,
        /// Why, with line and column of the file.
        reason: String,
    },
}

/// Cuts `bytes` into documents; empty ones are left out.
pub(super) fn documents(bytes: &[u8]) -> Vec<Document> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let text = String::from_utf8_lossy(bytes).into_owned();
            return vec![Document::Unreadable { text, reason: format!("the file is not UTF-8 text: {error}") }];
        }
    };
    pieces(text).into_iter().flat_map(|(line, piece)| parse(line, piece)).collect()
}

/// Whether every document of `bytes` is YAML.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    documents(bytes).iter().all(|document| matches!(document, Document::Tree { .. }))
}

/// Each document's text with the number of lines before it.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            pieces.push((start_line, text.get(start..offset).unwrap_or_default()));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    pieces.push((start_line, text.get(start..).unwrap_or_default()));
    pieces
}

/// A piece holds more than one document only where `...` ends one.
fn parse(line: usize, piece: &str) -> Vec<Document> {
    let read = |text: &str| -> Result<Vec<Document>, serde_norway::Error> {
        let mut found = Vec::new();
        for document in serde_norway::Deserializer::from_str(text) {
            let repeated = RefCell::default();
            let value = Tree { at: Path::Root, repeated: &repeated }.deserialize(document)?;
            if !value.is_null() {
                found.push(Document::Tree { value, repeated: repeated.into_inner() });
            }
        }
        Ok(found)
    };
    if piece.trim().is_empty() {
        return Vec::new();
    }
    if nesting(piece) > MAX_NESTING {
        let reason = format!("not YAML: more than {MAX_NESTING} brackets are open at once");
        return vec![Document::Unreadable { text: piece.to_owned(), reason }];
    }
    read(piece).unwrap_or_else(|error| {
        // The same error again, with the line counted from the beginning of the file.
        let padded = format!("{}{piece}", "\n".repeat(line));
        let reason = read(&padded).err().unwrap_or(error).to_string();
        vec![Document::Unreadable { text: piece.to_owned(), reason: format!("not YAML: {reason}") }]
    })
}

/// Brackets open at once, those in quotes counted too: good enough to tell rubbish from objects.
fn nesting(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Where in a tree: `spec.rules[0].sources`.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Builds a [`Value`], noting repeated keys, which neither `serde_json` nor `serde_norway` can do.
struct Tree<'a> {
    at: Path<'a>,
    repeated: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list or a plain value without a YAML tag")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{}: {value} is no number", self.at)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) =
            items.next_element_seed(Tree { at: Path::Index(&self.at, list.len()), repeated: self.repeated })?
        {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(Key(key)) = entries.next_key()? {
            let at = Path::Key(&self.at, &key);
            let value = entries.next_value_seed(Tree { at, repeated: self.repeated })?;
            if map.contains_key(&key) {
                self.repeated.borrow_mut().push(at.to_string());
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A mapping key as JSON has it: `8080:` is the key `"8080"`.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = Tree { at: Path::Root, repeated: &RefCell::default() }.deserialize(deserializer)?;
        match key {
            Value::String(key) => Ok(Self(key)),
            Value::Number(_) | Value::Bool(_) | Value::Null => Ok(Self(key.to_string())),
            Value::Array(_) | Value::Object(_) => Err(D::Error::custom("a list or mapping cannot be a key")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Trees as they are, unreadable documents as their reason.
    fn check(text: &str, expected: &[Value]) {
        let got: Vec<Value> = documents(text.as_bytes())
            .into_iter()
            .map(|document| match document {
                Document::Tree { value, .. } => value,
                Document::Unreadable { reason, .. } => json!(reason),
            })
            .collect();
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn documents_are_cut_and_empty_ones_left_out() {
        check("", &[]);
        check("---\n# nothing\n---\n", &[]);
        check(
            "a: 1\n---\nb: [x, null]\n--- \nc: {d: true}\n",
            &[json!({"a": 1}), json!({"b": ["x", null]}), json!({"c": {"d": true}})],
        );
        check("--- {a: 1}\n---\r\nb: -2\r\n", &[json!({"a": 1}), json!({"b": -2})]);
        check("a: 1\n...\n---\nb: 2\n", &[json!({"a": 1}), json!({"b": 2})]);
        check("text: |\n  ---\n  still text\n", &[json!({"text": "---\nstill text\n"})]);
        check("{\"a\": {\"b\": [1.5]}}", &[json!({"a": {"b": [1.5]}})]);
        check("8080: x\n", &[json!({"8080": "x"})]);
        check("a: &x [1]\nb: *x\n", &[json!({"a": [1], "b": [1]})]);
    }

    #[test]
    fn a_syntax_error_spoils_one_document_and_names_its_line() {
        let read = documents(b"a: 1\n---\nb: [\n---\nc: 3\n");
        assert_eq!(read.len(), 3);
        assert!(matches!(&read[0], Document::Tree { value, .. } if *value == json!({"a": 1})));
        assert!(
            matches!(&read[1], Document::Unreadable { text, reason } if text.contains("b: \
            [") && reason.contains("line 4")),
            "{read:?}"
        );
        assert!(matches!(&read[2], Document::Tree { value, .. } if *value == json!({"c": 3})));
        assert!(!is_whole(b"b: ["));
        assert!(is_whole(b"b: []"));
    }

    #[test]
    fn what_is_not_text_and_what_has_a_tag_is_unreadable() {
        assert!(
            matches!(&documents(&[0xff, 0xfe])[..], [Document::Unreadable { reason, .. }] if reason.contains("UTF-8"))
        );
        assert!(!is_whole(b"a: !Secret x\n"));
        assert!(!is_whole(b"a: .nan\n"));
    }

    #[test]
    fn rubbish_costs_no_time() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{},", level - 1).repeat(9);
            bomb += &format!("a{level}: &a{level} [{below}]\n");
        }
        for text in ["[".repeat(1_000_000), "{a: ".repeat(100_000), "- ".repeat(10_000), bomb] {
            let started = std::time::Instant::now();
            assert!(!is_whole(text.as_bytes()));
            // Milliseconds; the limit only has to tell them from minutes on a busy machine.
            assert!(started.elapsed() < std::time::Duration::from_secs(10));
        }
    }

    #[test]
    fn repeated_keys_are_noted_with_their_path() {
        let read = documents(b"a: 1\nb:\n- c: 1\n  c: 2\na: 3\n");
        assert!(
            matches!(&read[..], [Document::Tree { value, repeated }]
                if *value == json!({"a": 3, "b": [{"c": 2}]}) && *repeated == ["b[0].c", "a"]),
            "{read:?}"
        );
    }
}
