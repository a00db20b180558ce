//! Validation rules of CRDs (`x-kubernetes-validations`), run: CEL over the object as the schema describes it. The same
//! for conditions of admission.
//!
//! A rule that fails to run refuses, as at the real server. Not here: `oldSelf`, and the functions that Kubernetes adds
//! to CEL; a rule that needs them refuses everything, so nobody takes it for tested.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use cel::{Context, Program};
use serde_json::Value;

thread_local! {
    /// Parsing takes a thousand times as long as running.
    static PROGRAMS: RefCell<HashMap<String, Result<Rc<Program>, String>>> = RefCell::default();
}

/// Adds each rule of `schema`, and of what is within it, that `value` breaks: (reason, field, what is wrong).
pub fn check(value: &Value, schema: &Value, at: &str, wrong: &mut Vec<(&'static str, String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().unwrap_or_default();
        let why = match holds(text, &[("self", value)]) {
            Ok(true) => continue,
            Ok(false) => rule["message"].as_str().unwrap_or(text).to_owned(),
            Err(reason) => format!("rule {text:?} does not run: {reason}"),
        };
        wrong.push(("FieldValueInvalid", at.to_owned(), format!("Invalid value: {why}")));
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                let inner = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                if let Some(inner) = inner {
                    let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                    check(value, inner, &at, wrong);
                }
            }
        }
        Value::Array(list) => {
            for (place, value) in list.iter().enumerate() {
                check(value, &schema["items"], &format!("{at}[{place}]"), wrong);
            }
        }
        _ => {}
    }
}

/// Whether a condition over these variables holds; an error when it does not run.
pub(super) fn holds(rule: &str, variables: &[(&str, &Value)]) -> Result<bool, String> {
    let program = PROGRAMS.with_borrow_mut(|programs| {
        let compile = || Program::compile(rule).map(Rc::new).map_err(|error| error.to_string());
        programs.entry(rule.to_owned()).or_insert_with(compile).clone()
    })?;
    let mut context = Context::default();
    for (name, value) in variables {
        context.add_variable_from_value(*name, of_cel(value));
    }
    match program.execute(&context) {
        Ok(cel::Value::Bool(holds)) => Ok(holds),
        Ok(other) => Err(format!("it is no condition: {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Whole numbers are `int`, as a schema's are.
fn of_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(is) => cel::Value::Bool(*is),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => cel::Value::Int(whole),
            None => cel::Value::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => cel::Value::from(text.as_str()),
        Value::Array(list) => cel::Value::from(list.iter().map(of_cel).collect::<Vec<_>>()),
        Value::Object(map) => {
            let fields: HashMap<&str, cel::Value> = map.iter().map(|(name, value)| (&**name, of_cel(value))).collect();
            cel::Value::from(fields)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn broken(schema: &Value, value: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        check(value, schema, "spec", &mut wrong);
        wrong.into_iter().map(|(_, field, what)| format!("{field}: {what}")).collect()
    }

    #[test]
    fn rules_are_run_where_they_stand() {
        let of = |rule: &str| json!([{"rule": rule, "message": "no"}]);
        let element = json!({"type": "string", "x-kubernetes-validations": of("self.matches('^a+$')")});
        let schema = json!({
            "x-kubernetes-validations": of("!has(self.b) || self.b in ['x', 'y']"),
            "properties": {"list": {"items": element}, "map": {"additionalProperties": element}},
        });
        assert_eq!(broken(&schema, &json!({"list": ["a", "aa"], "map": {"k": "a"}, "b": "x"})), [""; 0]);
        let found = broken(&schema, &json!({"list": ["a", "b"], "map": {"k": "c"}, "b": "z"}));
        let expected = ["spec: Invalid value: no", "spec.list[1]: Invalid value: no", "spec.map.k: Invalid value: no"];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_rule_that_does_not_run_refuses() {
        for rule in ["self.missing == 1", "self ==", "1 + 1", "url(self.a).getHost() == 'x'"] {
            let found = broken(&json!({"x-kubernetes-validations": [{"rule": rule}]}), &json!({"a": "b"}));
            assert!(found.len() == 1 && found[0].contains("does not run"), "{rule}: {found:?}");
        }
    }
}
