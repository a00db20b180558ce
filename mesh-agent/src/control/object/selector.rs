//! `metav1.LabelSelector`, read strictly: a selector that is misread protects the wrong pods.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::decode::Mistake;
use crate::model::selector::{LabelSelector, Operator, Requirement};

/// A label selector; empty: every pod.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSelector {
    /// Labels with their values.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    match_labels: BTreeMap<String, String>,
    /// Requirements, all of which hold.
    #[serde(default)]
    #[schemars(length(max = 64))]
    match_expressions: Vec<RawRequirement>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
    "message": "In and NotIn need values, Exists and DoesNotExist take none",
}]))]
struct RawRequirement {
    /// The label's name.
    key: String,
    /// How its value is compared.
    operator: RawOperator,
    /// With In and NotIn.
    #[serde(default)]
    #[schemars(length(max = 64))]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
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
