//! Families of metrics whose values are read when they are asked for, for agent and mesh server alike.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// One gauge without labels. A unit is added to the name.
///
/// # Errors
/// Of the encoder, here and below.
pub fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: f64,
) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

/// One counter without labels; `_total` is added to the name.
///
/// # Errors
/// As [`gauge`].
pub fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(encoder)
}

/// A gauge for each set of labels.
///
/// # Errors
/// As [`gauge`].
pub fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    rows: impl IntoIterator<Item = (L, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    rows.into_iter().try_for_each(|(labels, value)| {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)
    })
}

/// A counter for each set of labels.
///
/// # Errors
/// As [`gauge`].
pub fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    rows.into_iter().try_for_each(|(labels, value)| {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)
    })
}

/// A number as a gauge shows it.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; rows and bytes that are counted here stay below 2⁵³"
)]
#[must_use]
pub fn number(number: u64) -> f64 {
    number as f64
}

/// The same of what is counted in this process.
#[must_use]
pub fn count(count: usize) -> f64 {
    number(count as u64)
}

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct Sample;

    impl Collector for Sample {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let encoder = &mut encoder;
            gauge(encoder, "age", "Old", Some(&Unit::Seconds), 1.5)?;
            counter(encoder, "tries", "Tried", 7)?;
            let peers = [([("peer", "a")], count(3)), ([("peer", "b")], number(4))];
            gauges(encoder, "rows", "Held", None, peers)?;
            counters(encoder, "words", "Said", [([("peer", "a")], 5)])
        }
    }

    #[test]
    fn names_get_their_units_and_rows_their_labels() -> fmt::Result {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Sample));
        let mut shown = String::new();
        text::encode(&mut shown, &registry)?;
        let wanted = "# HELP age_seconds Old\n# TYPE age_seconds gauge\n# UNIT age_seconds seconds\nage_seconds 1.5\n\
                      # HELP tries Tried\n# TYPE tries counter\ntries_total 7\n\
                      # HELP rows Held\n# TYPE rows gauge\nrows{peer=\"a\"} 3.0\nrows{peer=\"b\"} 4.0\n\
                      # HELP words Said\n# TYPE words counter\nwords_total{peer=\"a\"} 5\n# EOF\n";
        assert_eq!(shown, wanted);
        Ok(())
    }
}
