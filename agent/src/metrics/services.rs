//! What `/metrics` says of services: connects, their failures, and ejections.

use std::fmt;

use isthmus_core::model::ObjectName;
use isthmus_mesh::families::{counters, gauges};
use prometheus_client::encoding::DescriptorEncoder;

use crate::tally::{Bounded, Draws, OfPair, Pair, Sums, Tally};
use crate::view::View;

/// What stands for all that have no series of their own. No service has that name: theirs have a slash.
const OTHER: &str = "other";

type OfService = [(&'static str, String); 1];
/// Name, help, and which of a service's sums.
type Family = (&'static str, &'static str, fn(&Draws) -> u64);
type OfServiceAndCluster = [(&'static str, String); 2];

pub(super) fn encode(
    view: &View,
    tally: &Tally,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let published = view.published();
    let sums = tally.look(&published.ports, published.counts.backends);
    let cluster = |id| view.cluster_name(&published, id);
    pairs(encoder, &by_pair(&sums.pairs, cluster))?;
    services(encoder, &by_service(&sums))
}

fn by_pair(
    pairs: &Bounded<Pair, OfPair>,
    cluster: impl Fn(u16) -> String,
) -> Vec<(OfServiceAndCluster, OfPair)> {
    let labels = |service: String, cluster| [("service", service), ("cluster", cluster)];
    let own = pairs.own.iter().map(|((service, id), sum)| {
        let labels = labels(service.to_string(), cluster(*id));
        (labels, *sum)
    });
    let other = (labels(OTHER.to_owned(), OTHER.to_owned()), pairs.other);
    own.chain([other]).collect()
}

fn by_service(sums: &Sums) -> Vec<(OfService, Draws)> {
    let labels = |service: String| [("service", service)];
    let own = |(service, sum): (&ObjectName, &Draws)| (labels(service.to_string()), *sum);
    let other = (labels(OTHER.to_owned()), sums.services.other);
    sums.services.own.iter().map(own).chain([other]).collect()
}

fn pairs(
    encoder: &mut DescriptorEncoder<'_>,
    pairs: &[(OfServiceAndCluster, OfPair)],
) -> fmt::Result {
    let counted = |of: fn(&OfPair) -> u64| {
        pairs
            .iter()
            .map(move |(labels, sum)| (labels.clone(), of(sum)))
    };
    counters(
        encoder,
        "service_connects",
        "Connects that were sent to backends",
        counted(|sum| sum.connects.sent),
    )?;
    let failed = pairs.iter().flat_map(|([service, cluster], sum)| {
        let reasons = [
            ("refused", sum.connects.refused),
            ("unreachable", sum.connects.unreachable),
            ("timed_out", sum.connects.timed_out),
        ];
        reasons.map(|(reason, count)| {
            let reason = ("reason", reason.to_owned());
            ([service.clone(), cluster.clone(), reason], count)
        })
    });
    counters(
        encoder,
        "service_failed_connects",
        "Connects to backends that failed, TCP and connected UDP",
        failed,
    )?;
    counters(
        encoder,
        "service_unanswered_connects",
        "TCP connects whose first SYN got no answer in time; some are answered later",
        counted(|sum| sum.connects.unanswered),
    )?;
    let held = |of: fn(&OfPair) -> u32| {
        pairs
            .iter()
            .map(move |(labels, sum)| (labels.clone(), f64::from(of(sum))))
    };
    gauges(
        encoder,
        "service_backends",
        "Backends in the datapath",
        None,
        held(|sum| sum.backends),
    )?;
    gauges(
        encoder,
        "service_backends_ejected",
        "Backends that are left out of draws now, or on trial",
        None,
        held(|sum| sum.ejected),
    )
}

fn services(encoder: &mut DescriptorEncoder<'_>, services: &[(OfService, Draws)]) -> fmt::Result {
    let families: [Family; 3] = [
        (
            "service_ejections",
            "Backends ejected, but for those whose trial failed",
            |sum| sum.ejections,
        ),
        (
            "service_all_ejected_draws",
            "Draws that found every backend ejected, and went on as if none were",
            |sum| sum.all_ejected,
        ),
        (
            "service_refused_connects",
            "Connects that the datapath refused, having no backend",
            |sum| sum.refused,
        ),
    ];
    for (name, help, of) in families {
        let rows = services
            .iter()
            .map(|(labels, sum)| (labels.clone(), of(sum)));
        counters(encoder, name, help, rows)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Connects;

    #[test]
    fn what_has_no_series_of_its_own_is_told_as_other() {
        let pair = (ObjectName::new("production", "backend"), 2);
        let sum = |sent| OfPair {
            connects: Connects {
                sent,
                ..Connects::default()
            },
            ..OfPair::default()
        };
        let mut sums = Sums::default();
        sums.pairs.own.insert(pair, sum(7));
        sums.pairs.other = sum(3);
        let rows = by_pair(&sums.pairs, |id| format!("cluster-{id}"));
        let told: Vec<_> = rows
            .iter()
            .map(|([service, cluster], sum)| {
                (service.1.as_str(), cluster.1.as_str(), sum.connects.sent)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("production/backend", "cluster-2", 7),
                ("other", "other", 3)
            ]
        );
    }
}
