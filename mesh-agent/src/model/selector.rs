//! Label selectors: which pods an object means.
//!
//! The semantics are Kubernetes' own (`metav1.LabelSelector`): all `matchLabels` and all `matchExpressions`
//! must hold, an empty selector matches everything, and `NotIn` holds for a pod without the label.

use std::collections::BTreeMap;

/// A `metav1.LabelSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels`.
    pub labels: BTreeMap<String, String>,
    /// `matchExpressions`.
    pub expressions: Vec<Requirement>,
}

/// One entry of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
}

/// What a [`Requirement`] asks of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label is there with one of these values.
    In(Vec<String>),
    /// The label is absent, or has none of these values.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether the selector asks for nothing, and so matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// Whether a pod with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl From<BTreeMap<String, String>> for LabelSelector {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self { labels, expressions: Vec::new() }
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &LabelSelector, labels: &[(&str, &str)], expected: bool) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(selector.matches(&labels), expected, "{selector:?} on {labels:?}");
    }

    fn expression(operator: Operator) -> LabelSelector {
        LabelSelector { labels: BTreeMap::new(), expressions: vec![Requirement { key: "app".to_owned(), operator }] }
    }

    #[test]
    fn every_operator_means_what_kubernetes_means() {
        let web = || vec!["web".to_owned()];
        check(&LabelSelector::default(), &[], true);
        check(&BTreeMap::from([("app".to_owned(), "web".to_owned())]).into(), &[("app", "web"), ("x", "y")], true);
        check(&BTreeMap::from([("app".to_owned(), "web".to_owned())]).into(), &[("app", "db")], false);
        check(&expression(Operator::In(web())), &[("app", "web")], true);
        check(&expression(Operator::In(web())), &[], false);
        check(&expression(Operator::NotIn(web())), &[("app", "web")], false);
        check(&expression(Operator::NotIn(web())), &[], true);
        check(&expression(Operator::Exists), &[("app", "")], true);
        check(&expression(Operator::Exists), &[], false);
        check(&expression(Operator::DoesNotExist), &[("app", "")], false);
        check(&expression(Operator::DoesNotExist), &[], true);
    }
}
