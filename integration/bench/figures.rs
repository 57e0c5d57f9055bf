//! All that was measured.

use std::collections::BTreeMap;

use crate::metric::Metric;
use crate::peers::Kind;
use crate::statistics::Summary;

/// One value of one figure.
pub(crate) type Reading = (&'static Metric, f64);

/// A figure of a peer: the metric's key and whose it is.
type Figure = (&'static str, Kind);

/// The values of all figures, by rounds.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    values: BTreeMap<Figure, BTreeMap<usize, f64>>,
}

impl Figures {
    /// Adds a value.
    pub(crate) fn add(&mut self, kind: Kind, round: usize, (metric, value): Reading) {
        self.values
            .entry((metric.key, kind))
            .or_default()
            .insert(round, value);
    }

    /// A figure's values in the order of the rounds.
    pub(crate) fn values(&self, metric: &Metric, kind: Kind) -> Vec<f64> {
        self.of(metric, kind)
            .map(|rounds| rounds.values().copied().collect())
            .unwrap_or_default()
    }

    /// A figure's median and spread.
    pub(crate) fn summary(&self, metric: &Metric, kind: Kind) -> Option<Summary> {
        Summary::of(&self.values(metric, kind))
    }

    /// How many times haproxy's, or nginx's, a figure is: the ratio of each round that both have, and of these the median. What slows the
    /// machine down for a while slows down both.
    pub(crate) fn ratio(&self, metric: &Metric, kind: Kind) -> Option<Summary> {
        let base = self.of(metric, self.base(metric)?)?;
        let ratios: Vec<f64> = self
            .of(metric, kind)?
            .iter()
            .filter_map(|(round, value)| Some(value / base.get(round)?))
            .collect();
        Summary::of(&ratios)
    }

    /// Whose figure the others are compared with.
    pub(crate) fn base(&self, metric: &Metric) -> Option<Kind> {
        let mut bases = Kind::BASES.into_iter();
        bases.find(|base| self.of(metric, *base).is_some())
    }

    fn of(&self, metric: &Metric, kind: Kind) -> Option<&BTreeMap<usize, f64>> {
        self.values.get(&(metric.key, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::SESSION_RATE;

    #[test]
    fn ratios_are_between_values_of_the_same_round() {
        let mut figures = Figures::default();
        let rounds = [(10.0, 5.0), (100.0, 40.0), (1.0, 1.0)];
        for (round, (ours, base)) in rounds.into_iter().enumerate() {
            figures.add(Kind::Ours, round, (&SESSION_RATE, ours));
            figures.add(Kind::Haproxy, round, (&SESSION_RATE, base));
        }
        figures.add(Kind::Ours, 3, (&SESSION_RATE, 1000.0));
        let ratio = figures.ratio(&SESSION_RATE, Kind::Ours);
        assert_eq!(ratio.map(|ratio| ratio.median), Some(2.0));
        assert_eq!(figures.ratio(&SESSION_RATE, Kind::Socat), None);
    }
}
