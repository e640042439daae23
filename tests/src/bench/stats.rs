//! Order statistics and their bootstrap intervals.

use serde::Serialize;

/// Resamples behind an interval.
const RESAMPLES: usize = 2000;
/// Its two-sided level.
const OUTSIDE: f64 = 0.05;

/// A figure with the interval in which 95 % of its bootstrap resamples lie.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Of a figure that was counted, not sampled.
    #[must_use]
    pub fn exact(value: f64) -> Self {
        Self {
            value,
            low: value,
            high: value,
        }
    }

    /// The same in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            low: self.low * factor,
            high: self.high * factor,
        }
    }
}

/// Rounds of interleaved batches. A round has one value of every variant; a program's place in memory moves its cost
/// from load to load, so rounds are kept by load and both are resampled.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Rounds {
    loads: Vec<Vec<Vec<f64>>>,
}

impl Rounds {
    /// The rounds of one load: of each round, the values of the variants in their order.
    pub fn push_load(&mut self, rounds: Vec<Vec<f64>>) {
        self.loads.push(rounds);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.loads.iter().map(Vec::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rounds of all loads.
    #[must_use]
    pub fn all(&self) -> Vec<&[f64]> {
        self.loads.iter().flatten().map(Vec::as_slice).collect()
    }

    /// What `figure` makes of all rounds, with its interval.
    pub fn estimate(&self, figure: impl Fn(&[&[f64]]) -> f64) -> Estimate {
        let mut random = Random::new(1);
        let resampled = (0..RESAMPLES)
            .map(|_| figure(&self.resample(&mut random)))
            .collect();
        interval(figure(&self.all()), resampled)
    }

    fn resample(&self, random: &mut Random) -> Vec<&[f64]> {
        let mut drawn = Vec::with_capacity(self.len());
        for _ in 0..self.loads.len() {
            let load = &self.loads[random.below(self.loads.len())];
            drawn.extend((0..load.len()).map(|_| load[random.below(load.len())].as_slice()));
        }
        drawn
    }
}

/// A quantile of independent values, with its interval.
#[must_use]
pub fn quantile_estimate(values: &[f64], q: f64) -> Estimate {
    let mut random = Random::new(1);
    let resampled = (0..RESAMPLES)
        .map(|_| {
            let draw = (0..values.len()).map(|_| values[random.below(values.len())]);
            quantile(draw.collect(), q)
        })
        .collect();
    interval(quantile(values.to_vec(), q), resampled)
}

fn interval(value: f64, resampled: Vec<f64>) -> Estimate {
    Estimate {
        value,
        low: quantile(resampled.clone(), OUTSIDE / 2.0),
        high: quantile(resampled, 1.0 - OUTSIDE / 2.0),
    }
}

/// The smallest value that at least a share `q` of all values do not exceed; NaN of none.
#[must_use]
pub fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let place = quantile_place(values.len(), q);
    *values.select_nth_unstable_by(place, f64::total_cmp).1
}

fn quantile_place(len: usize, q: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank between 0 and a number of samples"
    )]
    let rank = (q * len as f64).ceil() as usize;
    rank.clamp(1, len) - 1
}

/// A quantile of one variant over rounds.
#[must_use]
pub fn column(rounds: &[&[f64]], variant: usize, q: f64) -> f64 {
    quantile(rounds.iter().map(|round| round[variant]).collect(), q)
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same draws in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "below `n`, a usize")]
        let drawn = ((u128::from(self.word()) * n as u128) >> 64) as usize;
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        for (q, wanted) in [
            (0.0, 1.0),
            (0.1, 1.0),
            (0.5, 5.0),
            (0.99, 10.0),
            (1.0, 10.0),
        ] {
            assert!(
                (quantile(values.clone(), q) - wanted).abs() < f64::EPSILON,
                "{q}"
            );
        }
        assert!(quantile(Vec::new(), 0.5).is_nan());
    }

    #[test]
    fn an_interval_holds_its_figure_and_grows_with_the_noise() {
        let rounds = |noise: f64| {
            let mut random = Random::new(7);
            let mut all = Rounds::default();
            for _ in 0..4 {
                let mut shaken = |value: f64| {
                    value
                        + noise * f64::from(u32::try_from(random.below(1000)).expect("small"))
                            / 1000.0
                };
                all.push_load(
                    (0..50)
                        .map(|_| vec![shaken(100.0), shaken(150.0)])
                        .collect(),
                );
            }
            all.estimate(|rounds| column(rounds, 1, 0.1) / column(rounds, 0, 0.1))
        };
        let (quiet, loud) = (rounds(1.0), rounds(40.0));
        assert!(
            quiet.low <= quiet.value && quiet.value <= quiet.high,
            "{quiet:?}"
        );
        assert!((quiet.value - 1.5).abs() < 0.02, "{quiet:?}");
        assert!(
            loud.high - loud.low > quiet.high - quiet.low,
            "{loud:?} {quiet:?}"
        );
    }

    #[test]
    fn draws_are_even() {
        let mut random = Random::new(3);
        let mut seen = [0_u32; 5];
        for _ in 0..10_000 {
            seen[random.below(5)] += 1;
        }
        assert!(seen.iter().all(|&n| (1800..2200).contains(&n)), "{seen:?}");
    }
}
