//! Label and field selectors, as queries spell them.

use serde_json::Value;

use super::failure::Failure;
use super::kind::Kind;

/// Which objects a request is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    on: On,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum On {
    Label(String),
    /// A JSON pointer.
    Field(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Selector {
    /// Reads both selectors of a query.
    ///
    /// # Errors
    /// 400 for what does not parse, and for a field that the kind cannot be selected by.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Failure> {
        let mut terms = Vec::new();
        for text in split_outside_parentheses(labels) {
            terms.push(label_term(text).ok_or_else(|| {
                Failure::bad_request(format!("unable to parse requirement: invalid label selector `{text}`"))
            })?);
        }
        for text in fields.split(',').filter(|text| !text.is_empty()) {
            terms.push(field_term(kind, text)?);
        }
        Ok(Self { terms })
    }

    /// Whether `object` is meant.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| term.matches(object))
    }

    /// Whether every object is meant.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
}

impl Term {
    fn matches(&self, object: &Value) -> bool {
        let found = match &self.on {
            On::Label(key) => object.pointer("/metadata/labels").and_then(|labels| labels.get(key)),
            // A field that is not set is an empty text.
            On::Field(pointer) => Some(object.pointer(pointer).unwrap_or(&Value::Null)),
        };
        let text = found.map(|value| value.as_str().unwrap_or_default());
        match (&self.test, text) {
            (Test::In(values), Some(text)) => values.iter().any(|value| value == text),
            (Test::NotIn(values), Some(text)) => values.iter().all(|value| value != text),
            (Test::Exists, text) => text.is_some(),
            (Test::In(_), None) => false,
            (Test::NotIn(_), None) => true,
            (Test::Absent, text) => text.is_none(),
        }
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let parts = text.split(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn label_term(text: &str) -> Option<Term> {
    let (key, test) = if let Some((head, values)) = text.split_once('(') {
        let values = values.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned()).collect();
        match head.trim().rsplit_once(' ')? {
            (key, "in") => (key, Test::In(values)),
            (key, "notin") => (key, Test::NotIn(values)),
            _ => return None,
        }
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Test::In(vec![value.trim().to_owned()]))
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Test::Absent)
    } else {
        (text, Test::Exists)
    };
    let key = key.trim();
    let plain = !key.is_empty() && !key.contains([' ', '=', '!', '(', ')']);
    plain.then(|| Term { on: On::Label(key.to_owned()), test })
}

fn field_term(kind: &Kind, text: &str) -> Result<Term, Failure> {
    let unequal = text.split_once("!=").map(|(field, value)| (field, Test::NotIn(vec![value.to_owned()])));
    let equal = || text.split_once("==").or_else(|| text.split_once('='));
    let equal = || equal().map(|(field, value)| (field, Test::In(vec![value.to_owned()])));
    let (field, test) = unequal
        .or_else(equal)
        .ok_or_else(|| Failure::bad_request(format!("invalid selector: '{text}'; can't understand '{text}'")))?;
    let pods = ["spec.nodeName", "spec.serviceAccountName", "status.phase", "status.podIP", "spec.restartPolicy"];
    let known = match field {
        "metadata.name" => true,
        "metadata.namespace" => kind.namespaced,
        "type" => kind.is_core("Secret"),
        "involvedObject.name" | "involvedObject.kind" | "reason" => kind.is_core("Event"),
        field => kind.is_core("Pod") && pods.contains(&field),
    };
    if !known {
        return Err(Failure::bad_request(format!("field label not supported: {field}")));
    }
    Ok(Term { on: On::Field(format!("/{}", field.replace('.', "/"))), test })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube_api::kind::built_in;

    fn pods() -> Kind {
        built_in().into_iter().find(|kind| kind.kind == "Pod").expect("pods")
    }

    #[test]
    fn each_way_to_select_selects() {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "node-a"},
        });
        let check = |labels: &str, fields: &str, expected: bool| {
            let selector = Selector::parse(&pods(), labels, fields).expect("a selector");
            assert_eq!(selector.matches(&pod), expected, "{labels} {fields}");
        };
        check("", "", true);
        check("app=web", "", true);
        check("app==api", "", false);
        check("app!=api,tier", "", true);
        check("!app", "", false);
        check("!none", "", true);
        check("app in (api, web),tier notin (back)", "", true);
        check("app in (api)", "", false);
        check("none!=x", "", true);
        check("", "spec.nodeName=node-a", true);
        check("", "spec.nodeName!=node-a", false);
        check("", "metadata.name=web,metadata.namespace=shop", true);
        check("", "status.phase=", true);
        check("app=web", "metadata.name=api", false);
    }

    #[test]
    fn what_cannot_be_selected_by_is_refused() {
        let refused = |labels: &str, fields: &str| Selector::parse(&pods(), labels, fields).map_err(|f| f.code);
        assert_eq!(refused("", "spec.hostNetwork=true"), Err(400));
        assert_eq!(refused("", "metadata.name"), Err(400));
        assert_eq!(refused("app in web", ""), Err(400));
    }
}
