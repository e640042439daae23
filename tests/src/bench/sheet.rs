//! What a benchmark found: rows with a figure, what stands beside it, the target, and a verdict.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::machine::Machine;
use super::stats::Estimate;

/// The findings of one budget.
#[derive(Debug)]
pub struct Sheet {
    pub title: &'static str,
    /// How it was measured, so that the figures can be judged.
    pub method: String,
    pub rows: Vec<Row>,
    /// All batches.
    pub raw: Value,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub ours: Estimate,
    pub unit: Unit,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Beside>,
    /// Ours over what stands beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Estimate>,
    /// The same ratio, of the smallest values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_of_minima: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// The figure of a peer, or the limit.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    pub what: String,
    pub value: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Bytes,
    Megabytes,
    Percent,
    Count,
}

/// At most this, in the row's own unit or as a ratio.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Ours(f64),
    Ratio(f64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Short,
    /// The interval spans the target: more batches, or a quieter machine, would tell.
    Undecided,
}

impl Row {
    #[must_use]
    pub fn new(what: impl Into<String>, ours: Estimate, unit: Unit) -> Self {
        Self {
            what: what.into(),
            ours,
            unit,
            beside: None,
            ratio: None,
            ratio_of_minima: None,
            target: None,
            verdict: None,
        }
    }

    /// Sets a figure beside it that was measured in the same run, with the ratio of the two.
    #[must_use]
    pub fn beside(mut self, what: impl Into<String>, value: f64, ratio: Estimate) -> Self {
        self.beside = Some(Beside {
            what: what.into(),
            value,
        });
        self.ratio = Some(ratio);
        self
    }

    #[must_use]
    pub fn minima(mut self, ratio: f64) -> Self {
        self.ratio_of_minima = Some(ratio);
        self
    }

    /// Sets a recorded figure beside it: one that this run did not measure.
    #[must_use]
    pub fn recorded(self, what: impl Into<String>, value: f64) -> Self {
        let ratio = self.ours.scaled(1.0 / value);
        self.beside(what, value, ratio)
    }

    #[must_use]
    pub fn at_most(mut self, target: Target) -> Self {
        let (judged, bound) = match target {
            Target::Ours(bound) => (Some(self.ours), bound),
            Target::Ratio(bound) => (self.ratio, bound),
        };
        self.target = Some(target);
        self.verdict = judged.map(|judged| {
            if judged.high <= bound {
                Verdict::Pass
            } else if judged.low > bound {
                Verdict::Short
            } else {
                Verdict::Undecided
            }
        });
        self
    }
}

impl Sheet {
    /// All but the raw batches.
    #[must_use]
    pub fn summary(&self, name: &str, machine: &Machine) -> Value {
        json!({
            "apiVersion": "isthmus.dev/v1",
            "kind": "Benchmark",
            "name": name,
            "title": self.title,
            "method": self.method,
            "machine": machine,
            "rows": self.rows,
        })
    }

    /// For people.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        const HEADS: [&str; 7] = [
            "",
            "OURS",
            "BESIDE IT",
            "RATIO",
            "AT MIN",
            "TARGET",
            "VERDICT",
        ];
        let cells: Vec<[String; 7]> = std::iter::once(HEADS.map(str::to_owned))
            .chain(self.rows.iter().map(Row::cells))
            .collect();
        let width = |i: usize| cells.iter().map(|row| row[i].chars().count()).max();
        let widths: Vec<usize> = (0..HEADS.len()).map(|i| width(i).unwrap_or(0)).collect();
        let mut text = format!("{name}  {}\n", self.title);
        for row in &cells {
            let padded = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            text.push_str(&format!("  {}\n", line.trim_end()));
        }
        text.push_str(&format!("  {}\n", self.method));
        text
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let unit = |value: f64| self.unit.show(value);
        let ratio = |ratio: Estimate| {
            if ratio.low < ratio.high {
                format!("{:.2} [{:.2}, {:.2}]", ratio.value, ratio.low, ratio.high)
            } else {
                format!("{:.2}", ratio.value)
            }
        };
        let ours = if self.ours.low < self.ours.high {
            format!(
                "{} [{}, {}]",
                unit(self.ours.value),
                self.unit.number(self.ours.low),
                self.unit.number(self.ours.high)
            )
        } else {
            unit(self.ours.value)
        };
        [
            self.what.clone(),
            ours,
            self.beside
                .as_ref()
                .map_or_else(String::new, |b| format!("{} {}", b.what, unit(b.value))),
            self.ratio.map_or_else(String::new, ratio),
            self.ratio_of_minima
                .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            match self.target {
                None => String::new(),
                Some(Target::Ours(bound)) => format!("<= {}", unit(bound)),
                Some(Target::Ratio(bound)) => format!("<= {bound:.2}x"),
            },
            self.verdict.map_or_else(String::new, |v| v.to_string()),
        ]
    }
}

impl Unit {
    fn number(self, value: f64) -> String {
        match self {
            Self::Nanoseconds | Self::Bytes | Self::Count => format!("{value:.0}"),
            Self::Microseconds | Self::Milliseconds => format!("{value:.2}"),
            Self::Megabytes | Self::Percent => format!("{value:.1}"),
        }
    }

    fn show(self, value: f64) -> String {
        let name = match self {
            Self::Nanoseconds => " ns",
            Self::Microseconds => " us",
            Self::Milliseconds => " ms",
            Self::Bytes => " B",
            Self::Megabytes => " MB",
            Self::Percent => " %",
            Self::Count => "",
        };
        self.number(value) + name
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Short => "short",
            Self::Undecided => "undecided",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_verdict_when_the_interval_spans_the_target() {
        let verdict = |low, high| {
            let ours = Estimate {
                value: 1.7,
                low,
                high,
            };
            Row::new("x", ours, Unit::Count)
                .at_most(Target::Ours(1.8))
                .verdict
        };
        assert_eq!(verdict(1.6, 1.75), Some(Verdict::Pass));
        assert_eq!(verdict(1.6, 1.9), Some(Verdict::Undecided));
        assert_eq!(verdict(1.81, 1.9), Some(Verdict::Short));
    }

    #[test]
    fn a_target_on_the_ratio_is_judged_by_the_ratio() {
        let row = Row::new("x", Estimate::exact(100.0), Unit::Nanoseconds)
            .beside("trivial hook", 50.0, Estimate::exact(2.0))
            .at_most(Target::Ratio(1.8));
        assert_eq!(row.verdict, Some(Verdict::Short));
        assert!(row.cells().contains(&"trivial hook 50 ns".to_owned()));
    }
}
