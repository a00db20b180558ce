//! Smooth weighted round robin: every run of as many picks as the weights sum up to has exactly their shares, and
//! the picks of one destination are spread over the run.
//!
//! The state is the caller's, one for each rule ([`crate::model::route::RuleId`]).

/// How far each destination is behind its share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmoothWeights {
    weights: Vec<u32>,
    behind: Vec<i64>,
}

impl SmoothWeights {
    /// Picks the next destination; `None` when no weight is above 0. Other weights than last time begin anew.
    pub fn pick(&mut self, weights: impl Iterator<Item = u32> + Clone) -> Option<usize> {
        if !self.weights.iter().copied().eq(weights.clone()) {
            self.weights = weights.collect();
            self.behind = vec![0; self.weights.len()];
        }
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, (behind, weight)) in self.behind.iter_mut().zip(&self.weights).enumerate() {
            if *weight == 0 {
                continue;
            }
            *behind += i64::from(*weight);
            total += i64::from(*weight);
            if best.is_none_or(|(_, most)| *behind > most) {
                best = Some((index, *behind));
            }
        }
        let (index, _) = best?;
        *self.behind.get_mut(index)? -= total;
        Some(index)
    }
}
