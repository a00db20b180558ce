//! Medians and their intervals, without any assumption about how samples are distributed.

/// The median; `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    let sorted = sorted(samples);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// An interval that holds the true median with a probability of at least 95 %: order statistics by the sign test
/// (the median is below the smallest of n samples with a chance of 2⁻ⁿ). `None` with fewer than 6 samples, which
/// cannot give 95 %.
pub fn interval(samples: &[f64]) -> Option<(f64, f64)> {
    const EACH_TAIL: f64 = 0.025;
    let sorted = sorted(samples);
    let n = sorted.len();
    let mut chance = 0.5_f64.powi(i32::try_from(n).ok()?);
    let mut below = 0.0;
    let mut cut = 0;
    // Sum of binomial terms: the chance that at most `cut` samples lie below the median.
    for k in 0..n {
        below += chance;
        if below > EACH_TAIL {
            break;
        }
        cut = k + 1;
        chance *= (n - k) as f64 / (k + 1) as f64;
    }
    let index = cut.checked_sub(1)?;
    Some((*sorted.get(index)?, *sorted.get(n - 1 - index)?))
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        let samples = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        // Tables of the sign test: n = 6 → 1st and 6th, 7 → 1st and 7th, 9 → 2nd and 8th, 20 → 6th and 15th.
        for (n, expected) in [(6, (1.0, 6.0)), (7, (1.0, 7.0)), (9, (2.0, 8.0)), (20, (6.0, 15.0))] {
            assert_eq!(interval(&samples(n)), Some(expected), "n = {n}");
        }
        assert_eq!(interval(&samples(5)), None);
    }
}
