//! What the API server refuses, as `metav1.Status`: the same codes, reasons and words as the real one's.

use serde_json::{Map, Value, json};

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// HTTP status, and `code`.
    pub code: u16,
    /// `reason`, which clients act on.
    pub reason: &'static str,
    /// `message`
    pub message: String,
    /// `details`
    pub details: Map<String, Value>,
    /// The list that expired can go on from here, inconsistently.
    pub go_on: Option<String>,
}

impl Failure {
    /// A refusal without details.
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Map::new(), go_on: None }
    }

    /// 400
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 404 for an object.
    #[must_use]
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found")).about(resource, name)
    }

    /// 409 for an object that is there already.
    #[must_use]
    pub fn already_exists(resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists")).about(resource, name)
    }

    /// 409 for a change of what has changed.
    #[must_use]
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 422 with a cause for each field that is wrong: (reason, field, what is wrong).
    #[must_use]
    pub fn invalid(kind: &str, name: &str, wrong: &[(&'static str, String, String)]) -> Self {
        let words: Vec<String> = wrong.iter().map(|(_, field, what)| format!("{field}: {what}")).collect();
        let all = if words.len() == 1 { words.concat() } else { format!("[{}]", words.join(", ")) };
        let causes: Vec<Value> = wrong
            .iter()
            .map(|(reason, field, what)| json!({"reason": reason, "message": what, "field": field}))
            .collect();
        let mut failure = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {all}"));
        failure.details = Map::from_iter([
            ("name".to_owned(), json!(name)),
            ("kind".to_owned(), json!(kind)),
            ("causes".to_owned(), json!(causes)),
        ]);
        failure
    }

    /// 410 for a version of which the history is gone.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 504 for a version that has not been yet.
    #[must_use]
    pub fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let mut failure = Self::new(504, "Timeout", message);
        failure.details = Map::from_iter([
            ("retryAfterSeconds".to_owned(), json!(1)),
            (
                "causes".to_owned(),
                json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]),
            ),
        ]);
        failure
    }

    /// 403
    #[must_use]
    pub fn forbidden(user: &str, verb: &str, resource: &str, group: &str, place: &str) -> Self {
        let what = format!("User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}");
        let full = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        let mut failure = Self::new(403, "Forbidden", format!("{full} is forbidden: {what}"));
        failure.details = Map::from_iter([("kind".to_owned(), json!(resource)), ("group".to_owned(), json!(group))]);
        failure
    }

    /// Names the object in `details`; `resource` is `plural.group`.
    #[must_use]
    pub fn about(mut self, resource: &str, name: &str) -> Self {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        self.details.insert("name".to_owned(), json!(name));
        if !group.is_empty() {
            self.details.insert("group".to_owned(), json!(group));
        }
        self.details.insert("kind".to_owned(), json!(plural));
        self
    }

    /// As the document.
    #[must_use]
    pub fn status(&self) -> Value {
        let metadata = self.go_on.as_ref().map_or_else(|| json!({}), |token| json!({"continue": token}));
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object(self.details.clone());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_the_real_ones() {
        let missing = Failure::not_found("httproutes.gateway.networking.k8s.io", "web").status();
        assert_eq!(
            missing,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
                "code": 404, "message": "httproutes.gateway.networking.k8s.io \"web\" not found",
                "details": {"name": "web", "group": "gateway.networking.k8s.io", "kind": "httproutes"},
            })
        );
        let wrong = [("FieldValueRequired", "spec".to_owned(), "Required value".to_owned())];
        assert_eq!(Failure::invalid("Pod", "web", &wrong).message, "Pod \"web\" is invalid: spec: Required value");
    }
}
