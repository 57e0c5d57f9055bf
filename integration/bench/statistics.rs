//! Medians and spread of a few noisy values.

/// What several rounds of one measurement came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// The smallest value.
    pub(crate) least: f64,
    /// The value in the middle; of an even number the mean of the two in the middle.
    pub(crate) median: f64,
    /// The largest value.
    pub(crate) most: f64,
}

impl Summary {
    /// Sums up values in any order; `None` if there are none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            // Two of them, unless there is none at all.
            (sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0
        };
        Some(Self {
            least: *sorted.first()?,
            median,
            most: *sorted.last()?,
        })
    }
}

/// The value that `share` of all values do not exceed (nearest rank); the values are put in another order. 0 if there are none.
pub(crate) fn percentile(values: &mut [u32], share: f64) -> u32 {
    let Some(last) = values.len().checked_sub(1) else {
        return 0;
    };
    let rank = (values.len() as f64 * share).ceil() as usize;
    *values
        .select_nth_unstable(rank.saturating_sub(1).min(last))
        .1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let summary = Summary::of(&[9.0, 1.0, 4.0]).expect("there are values");
        assert_eq!(
            (summary.least, summary.median, summary.most),
            (1.0, 4.0, 9.0)
        );
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let summary = Summary::of(&[8.0, 1.0, 2.0, 4.0]).expect("there are values");
        assert_eq!(summary.median, 3.0);
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut values: Vec<u32> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut values, 0.5), 100);
        assert_eq!(percentile(&mut values, 0.99), 198);
        assert_eq!(percentile(&mut values, 1.0), 200);
        assert_eq!(percentile(&mut [7], 0.01), 7);
        assert_eq!(percentile(&mut [], 0.5), 0);
    }
}
