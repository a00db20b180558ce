//! Shares are exact, in every window.

use proptest::prelude::*;

use crate::route::weights::SmoothWeights;

fn picks(weights: &[u32], count: usize) -> Vec<usize> {
    let mut state = SmoothWeights::default();
    (0..count).map(|_| state.pick(weights.iter().copied()).expect("a weight above 0")).collect()
}

proptest! {
    #[test]
    fn every_window_as_long_as_the_sum_has_the_exact_shares(
        weights in proptest::collection::vec(0..9_u32, 1..6),
        offset in 0..40_usize,
    ) {
        let sum: u32 = weights.iter().sum();
        prop_assume!(sum > 0);
        let picks = picks(&weights, offset + sum as usize);
        for (index, weight) in weights.iter().enumerate() {
            let count = picks[offset..].iter().filter(|pick| **pick == index).count();
            prop_assert_eq!(count, *weight as usize, "{:?} of {:?}", picks, weights);
        }
    }
}

#[test]
fn picks_are_spread_and_not_in_blocks() {
    assert_eq!(picks(&[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(picks(&[1, 1], 4), [0, 1, 0, 1]);
}

#[test]
fn nothing_to_pick_and_new_weights() {
    let mut state = SmoothWeights::default();
    assert_eq!(state.pick([].into_iter()), None);
    assert_eq!(state.pick([0, 0].into_iter()), None);
    let first: Vec<_> = (0..4).map(|_| state.pick([3, 1].into_iter())).collect();
    assert_eq!(first.iter().filter(|pick| **pick == Some(0)).count(), 3);
    assert_eq!(state.pick([0, 1].into_iter()), Some(1), "other weights hold at once");
    let most = [1_000_000; 16];
    assert_eq!((0..16).filter_map(|_| state.pick(most.into_iter())).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
}
