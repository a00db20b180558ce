//! `metav1.LabelSelector`, read strictly: a selector that is misread protects the wrong pods.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::decode::Mistake;
use crate::model::selector::{LabelSelector, Operator, Requirement};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RawRequirement>,
}

#[derive(Debug, Deserialize)]
struct RawRequirement {
    key: String,
    operator: RawOperator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum RawOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl RawSelector {
    /// The selector; `field` is its path, for the mistakes.
    pub(super) fn check(self, field: &str) -> Result<LabelSelector, Mistake> {
        let expressions = self.match_expressions.into_iter().enumerate().map(|(index, raw)| {
            let field = format!("{field}.matchExpressions[{index}].values");
            let operator = match (raw.operator, raw.values.is_empty()) {
                (RawOperator::In, false) => Operator::In(raw.values),
                (RawOperator::NotIn, false) => Operator::NotIn(raw.values),
                (RawOperator::Exists, true) => Operator::Exists,
                (RawOperator::DoesNotExist, true) => Operator::DoesNotExist,
                (RawOperator::In | RawOperator::NotIn, true) => {
                    return Err(Mistake::new(field, "In and NotIn need at least one value"));
                }
                (RawOperator::Exists | RawOperator::DoesNotExist, false) => {
                    return Err(Mistake::new(field, "Exists and DoesNotExist take no values"));
                }
            };
            Ok(Requirement { key: raw.key, operator })
        });
        Ok(LabelSelector { labels: self.match_labels, expressions: expressions.collect::<Result<_, _>>()? })
    }
}
