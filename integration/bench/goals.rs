//! Whether a goal is met, and if not by how much it is missed.

use crate::figures::Figures;
use crate::metric::{Goal, Metric};
use crate::peers::Kind;

/// A goal beside what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// The goal.
    pub(crate) goal: Goal,
    /// What is to be compared with it: a ratio, or the figure itself.
    pub(crate) value: f64,
}

impl Verdict {
    /// The verdict on one of our figures, if it has a goal and was measured, and what it is compared with was as well.
    pub(crate) fn on(metric: &Metric, figures: &Figures) -> Option<Self> {
        let own = |metric| Some(figures.summary(metric, Kind::Ours)?.median);
        let goal = metric.goal?;
        let value = match goal {
            Goal::RatioAtMost(_) | Goal::RatioAtLeast(_) => {
                figures.ratio(metric, Kind::Ours)?.median
            }
            Goal::ValueAtMost(_) | Goal::ValueAtLeast(_) => own(metric)?,
            Goal::OwnRatioAtMost(_, other) => own(metric)? / own(other)?,
        };
        Some(Self { goal, value })
    }

    /// By which part of the goal it is missed; nothing if it is met.
    pub(crate) fn missed_by(self) -> Option<f64> {
        let missed = match self.goal {
            Goal::RatioAtMost(limit)
            | Goal::ValueAtMost(limit)
            | Goal::OwnRatioAtMost(limit, _) => self.value / limit - 1.0,
            Goal::RatioAtLeast(limit) | Goal::ValueAtLeast(limit) => 1.0 - self.value / limit,
        };
        (missed > 0.0).then_some(missed)
    }

    /// The verdict in words.
    pub(crate) fn in_words(self) -> String {
        match self.missed_by() {
            None => "met".to_owned(),
            // To say "by 0 %" would be odd.
            Some(part) => format!("missed by {:.0} %", (part * 100.0).max(1.0)),
        }
    }
}

impl Goal {
    /// The goal in words, in the unit of its metric.
    pub(crate) fn in_words(self, unit: &str) -> String {
        match self {
            Self::RatioAtMost(limit) => format!("≤ {limit:.2}×"),
            Self::RatioAtLeast(limit) => format!("≥ {limit:.2}×"),
            Self::ValueAtMost(limit) => format!("≤ {limit} {unit}"),
            Self::ValueAtLeast(limit) => format!("≥ {limit} {unit}"),
            // Which is how they are ordered.
            Self::OwnRatioAtMost(limit, _) => format!("≤ {limit:.2} × above"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{ACTIVE_1_OF_1000, ACTIVE_1_OF_10000, DOWN_CPU, DOWN_RATE, START};

    fn verdict(metric: &'static Metric, ours: f64, haproxy: f64) -> String {
        let mut figures = Figures::default();
        figures.add(Kind::Ours, 0, (metric, ours));
        figures.add(Kind::Haproxy, 0, (metric, haproxy));
        figures.add(Kind::Ours, 0, (&ACTIVE_1_OF_1000, 10.0));
        Verdict::on(metric, &figures)
            .expect("it has a goal")
            .in_words()
    }

    #[test]
    fn goals_are_met_or_missed() {
        assert_eq!(verdict(&DOWN_CPU, 0.9, 2.0), "met");
        assert_eq!(verdict(&DOWN_CPU, 1.08, 2.0), "missed by 20 %");
        assert_eq!(verdict(&DOWN_RATE, 1300.0, 1000.0), "met");
        assert_eq!(verdict(&DOWN_RATE, 1170.0, 1000.0), "missed by 10 %");
        assert_eq!(verdict(&START, 15.01, 1.0), "missed by 1 %");
        assert_eq!(verdict(&ACTIVE_1_OF_10000, 10.9, 1.0), "met");
    }

    #[test]
    fn what_was_not_measured_has_no_verdict() {
        assert_eq!(Verdict::on(&DOWN_CPU, &Figures::default()), None);
    }
}
