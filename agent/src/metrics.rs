//! What `/metrics` says of this node, read when it is asked for.

mod services;

use std::fmt;
use std::sync::Arc;

use isthmus_abi::{Counter, Refusal};
use isthmus_core::model::ProblemKind;
use isthmus_mesh::families::{count, counter, counters, gauge, gauges, number};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use crate::engine::lock;
use crate::tally::Tally;
use crate::view::View;

/// Reads the node's state at each scrape. Its labels are bounded by the number of maps, reasons and peers, and by
/// [`SERIES_MAX`](crate::tally::SERIES_MAX) for services.
#[derive(Debug)]
pub struct NodeMetrics {
    pub view: Arc<View>,
    pub tally: Arc<Tally>,
}

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.datapath(&mut encoder)?;
        self.reconcile(&mut encoder)?;
        services::encode(&self.view, &self.tally, &mut encoder)?;
        self.events(&mut encoder)?;
        self.source(&mut encoder)?;
        self.mesh(&mut encoder)
    }
}

impl NodeMetrics {
    fn datapath(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (sums, maps) = {
            let datapath = lock(&self.view.datapath);
            (datapath.counters().unwrap_or_default(), datapath.map_uses())
        };
        let value = |counter: Counter| sums.get(counter as usize).copied();
        let refused = Refusal::ALL
            .iter()
            .filter_map(|refusal| Some(([("reason", refusal.name())], value(refusal.counter())?)));
        counters(
            encoder,
            "refused_connects",
            "Connects to services that the datapath refused",
            refused,
        )?;
        let others = Counter::ALL
            .iter()
            .filter(|counter| {
                !Refusal::ALL
                    .iter()
                    .any(|refusal| refusal.counter() == **counter)
            })
            .filter_map(|counter| Some(([("event", counter.name())], value(*counter)?)));
        counters(
            encoder,
            "datapath_events",
            "What programs met besides",
            others,
        )?;
        let capacity = maps
            .iter()
            .map(|map| ([("map", map.name)], f64::from(map.capacity)));
        gauges(
            encoder,
            "map_capacity",
            "Rows that a map can hold",
            None,
            capacity,
        )?;
        let memory = maps
            .iter()
            .map(|map| ([("map", map.name)], number(map.memlock)));
        gauges(
            encoder,
            "map_memory",
            "Kernel memory that a map is charged for",
            Some(&Unit::Bytes),
            memory,
        )
    }

    fn reconcile(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let published = self.view.published.borrow().clone();
        let counts = published.counts;
        let rows = [
            ("services", "Service ports in the datapath", counts.services),
            ("backends", "Backends in the datapath", counts.backends),
            (
                "ring_slots",
                "Slots in spans that are in use",
                counts.ring_slots,
            ),
            (
                "reconcile_pending",
                "Pieces of work that are queued or wait for a grace period",
                counts.pending,
            ),
            (
                "reconcile_failing",
                "Pieces of work that failed and are tried again",
                counts.failing,
            ),
            (
                "reconcile_retiring",
                "Freed things that wait for a grace period",
                counts.retired,
            ),
        ];
        for (name, help, value) in rows {
            gauge(encoder, name, help, None, f64::from(value))?;
        }
        gauge(
            encoder,
            "programs_attached",
            "1 if all programs are attached",
            None,
            f64::from(u8::from(published.attached)),
        )?;
        counter(
            encoder,
            "reconcile_writes",
            "Writes to the kernel that were tried",
            counts.writes,
        )?;
        counter(
            encoder,
            "reconcile_write_failures",
            "Writes that the kernel refused",
            counts.writes_failed,
        )
    }

    fn events(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let monitors = &self.view.monitors;
        counters(
            encoder,
            "health_events",
            "What programs told of health, each as monitors show it",
            monitors
                .told()
                .map(|(kind, number)| ([("event", kind.name())], number)),
        )?;
        counter(
            encoder,
            "monitor_missed_events",
            "Events that monitors were too slow for",
            monitors.missed(),
        )
    }

    fn source(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let source = self.view.source.borrow().clone();
        gauge(
            encoder,
            "source_complete",
            "1 once the first list is complete",
            None,
            f64::from(u8::from(source.complete)),
        )?;
        let kinds = [
            ("broken", ProblemKind::Broken),
            ("conflict", ProblemKind::Conflict),
            ("not_handled", ProblemKind::NotHandled),
        ];
        let problems = kinds.map(|(name, kind)| {
            let found = source.problems.iter();
            let found = found.filter(|(problem, _)| problem.kind == kind);
            ([("kind", name)], count(found.count()))
        });
        gauges(
            encoder,
            "source_problems",
            "Problems of the source's objects",
            None,
            problems,
        )
    }

    fn mesh(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let answer = self.view.cluster_mesh();
        if let Some(feed) = answer.feed {
            let connected = feed.state() == isthmus_proto::node::v1::FeedState::Connected;
            gauge(
                encoder,
                "feed_connected",
                "1 if our mesh server is heard",
                None,
                f64::from(u8::from(connected)),
            )?;
        }
        let state = answer.peers.iter().map(|peer| {
            let state = peer
                .state()
                .as_str_name()
                .trim_start_matches("PEER_STATE_")
                .to_lowercase();
            ([("peer", peer.name.clone()), ("state", state)], 1.0)
        });
        gauges(
            encoder,
            "peer_state",
            "1 for the state that a peer is in",
            None,
            state,
        )?;
        let silence = answer
            .peers
            .iter()
            .filter_map(|peer| Some(([("peer", peer.name.clone())], peer.last_word_seconds?)));
        gauges(
            encoder,
            "peer_last_word_age",
            "Since our mesh server heard the peer",
            Some(&Unit::Seconds),
            silence,
        )?;
        let quarantined = answer.peers.iter().map(|peer| {
            let rows = peer.quarantine.map_or(0, |quarantine| quarantine.rows);
            ([("peer", peer.name.clone())], number(rows))
        });
        gauges(
            encoder,
            "peer_quarantined_rows",
            "Rows of a peer that stay for now though its newest list left them out",
            None,
            quarantined,
        )?;
        let refused = answer.peers.iter().flat_map(|peer| {
            let of_peer = |refusal: &isthmus_proto::node::v1::Refusal| {
                let labels = [
                    ("peer", peer.name.clone()),
                    ("reason", refusal.reason.clone()),
                ];
                (labels, refusal.total)
            };
            peer.refusals.iter().map(of_peer)
        });
        counters(
            encoder,
            "peer_refused_rows",
            "Rows of a peer that our mesh server, or this agent, refused",
            refused,
        )
    }
}
