//! What `/metrics` says of a mesh server, read when it is asked for.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use isthmus_core::mesh::{
    Beginning, HearsUs, LinkState, PeerView, Refusal, RefusalReport, Role, View,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::families::{count, counter, counters, gauge, gauges, number};
use crate::hub::HubHandle;
use crate::server::Served;
use crate::tls::Tls;

/// A collector over the hub's newest view. Names: `isthmus_mesh_…`.
#[derive(Debug)]
pub struct MeshMetrics {
    pub hub: HubHandle,
    pub served: Arc<Served>,
    pub tls: Arc<Tls>,
}

impl Collector for MeshMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let (views, audience) = (self.hub.views(), *self.hub.audience().borrow());
        let (view, now) = (views.borrow().clone(), Instant::now());
        let peers = view.peers.as_slice();
        let label = |name: &dyn fmt::Display| [("peer", name.to_string())];
        let mut peer_gauge = |name, help, value: &dyn Fn(&PeerView) -> Option<f64>| {
            let samples = peers
                .iter()
                .filter_map(|peer| Some((label(&peer.name), value(peer)?)));
            gauges(&mut encoder, name, help, None, samples)
        };
        let flag = |on: bool| Some(if on { 1.0 } else { 0.0 });
        peer_gauge(
            "mesh_peer_connected",
            "1 while the link to the peer is connected",
            &|peer| flag(peer.state == LinkState::Connected),
        )?;
        peer_gauge(
            "mesh_peer_hears_us",
            "1 while the peer's mesh server watches this one; absent if not known",
            &|peer| {
                if peer.hears_us == HearsUs::Unknown {
                    None
                } else {
                    flag(peer.hears_us == HearsUs::Yes)
                }
            },
        )?;
        peer_gauge(
            "mesh_peer_tries",
            "Tries to connect since the link was last connected",
            &|peer| Some(peer.tries.into()),
        )?;
        let ids = |id| {
            view.clusters
                .get(&id)
                .map(|cluster| label(&cluster.cluster.name))
        };
        let ages = view.silences.iter().filter_map(|(id, _, last_word)| {
            Some((ids(*id)?, last_word.as_ref()?.at(now).as_secs_f64()))
        });
        gauges(
            &mut encoder,
            "mesh_peer_last_word_age_seconds",
            "Since the peer was last heard",
            None,
            ages,
        )?;
        let clusters = || {
            view.clusters
                .values()
                .map(|cluster| (label(&cluster.cluster.name), cluster.ledger.rows()))
        };
        let services = clusters().map(|(name, rows)| (name, count(rows.services())));
        gauges(
            &mut encoder,
            "mesh_peer_services",
            "Services held of the peer",
            None,
            services,
        )?;
        let endpoints = clusters().map(|(name, rows)| (name, count(rows.endpoints())));
        gauges(
            &mut encoder,
            "mesh_peer_endpoints",
            "Endpoints held of the peer",
            None,
            endpoints,
        )?;

        let held = view.clusters.values().chain([&view.own]);
        let withheld = held.map(|cluster| {
            let rows = cluster.quarantine.map_or(0, |quarantine| quarantine.rows);
            let label = [("cluster", cluster.cluster.name.to_string())];
            (label, count(rows))
        });
        gauges(
            &mut encoder,
            "mesh_quarantined_rows",
            "Rows of a cluster that stay for now though its newest list left them out",
            None,
            withheld,
        )?;

        refusals(&mut encoder, peers)?;
        let own = view.own.ledger.rows();
        let terms = |value: fn(&PeerView) -> u64| {
            let value = move |peer: &PeerView| (label(&peer.name), number(value(peer)));
            peers.iter().map(value)
        };
        let bytes = clusters().map(|(name, rows)| (name, number(rows.bytes())));
        let help = "What the rows held of the peer cost, roughly";
        gauges(&mut encoder, "mesh_peer_bytes", help, None, bytes)?;
        let help = "The most bytes of rows that are held of the peer";
        let most = terms(|peer| peer.bytes_max);
        gauges(&mut encoder, "mesh_peer_bytes_max", help, None, most)?;
        let help = "The most services and endpoints that are held of the peer";
        let most = terms(|peer| peer.rows_max);
        gauges(&mut encoder, "mesh_peer_rows_max", help, None, most)?;
        for (name, help, value) in [
            (
                "mesh_published_services",
                "Services told to peers",
                own.services(),
            ),
            (
                "mesh_published_endpoints",
                "Endpoints told to peers",
                own.endpoints(),
            ),
            (
                "mesh_agents",
                "Agents of this cluster that are fed",
                audience.agents,
            ),
            (
                "mesh_watching_peers",
                "Mesh servers of other clusters that watch this one",
                audience.mesh_servers,
            ),
        ] {
            gauge(&mut encoder, name, help, None, count(value))?;
        }
        self.traffic(&mut encoder)?;
        self.bounds(&mut encoder, &view)?;
        if let Some(certificate) = self.tls.status().0 {
            #[expect(
                clippy::cast_precision_loss,
                reason = "Unix time is exact in a double for 285 million years"
            )]
            let expiry = certificate.not_after.unix_timestamp() as f64;
            let help = "When this mesh server's certificate expires, in Unix time";
            gauge(
                &mut encoder,
                "mesh_certificate_expiry_timestamp_seconds",
                help,
                None,
                expiry,
            )?;
        }
        Ok(())
    }
}

/// Every reason for every peer, so that a first refusal is seen as a change.
fn refusals(encoder: &mut DescriptorEncoder<'_>, peers: &[PeerView]) -> fmt::Result {
    let each = |value: fn(&RefusalReport) -> u64| {
        let reasons = peers
            .iter()
            .flat_map(|peer| Refusal::ALL.map(|reason| (peer, reason)));
        reasons.map(move |(peer, reason)| {
            let mut reports = peer.refusals.iter();
            let seen = reports.find(|refusal| refusal.reason == reason);
            let labels = [
                ("peer", peer.name.to_string()),
                ("reason", reason.name().to_owned()),
            ];
            (labels, seen.map_or(0, value))
        })
    };
    let help = "Rows of a peer that were refused, repeated ones counted again";
    let total = each(|refusal| refusal.total);
    counters(encoder, "mesh_peer_refused_rows", help, total)?;
    let help = "Rows that a peer says now and that are refused";
    let now = each(|refusal| refusal.rows).map(|(labels, rows)| (labels, number(rows)));
    gauges(encoder, "mesh_peer_refused_rows_now", help, None, now)
}

const AUDIENCES: [(&str, Role); 2] = [("peer", Role::MeshServer), ("agent", Role::Agent)];

impl MeshMetrics {
    /// What consumers were told.
    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Times that a cluster's rows began to be told: resumed with the difference, or with a list and why";
        let begun = AUDIENCES.into_iter().flat_map(|(audience, role)| {
            Beginning::ALL.map(|beginning| {
                let labels = [("audience", audience), ("beginning", beginning.name())];
                (labels, self.served.begun(role, beginning))
            })
        });
        counters(encoder, "mesh_streams_begun", help, begun)?;
        let help = "Rows told, repeated ones counted again";
        let rows =
            AUDIENCES.map(|(audience, role)| ([("audience", audience)], self.served.rows(role)));
        counters(encoder, "mesh_rows_told", help, rows)?;
        let help = "Streams that were ended because their consumer did not read";
        counter(encoder, "mesh_streams_stalled", help, self.served.stalled())
    }

    /// Everything that can fill up, and how full it is.
    fn bounds(&self, encoder: &mut DescriptorEncoder<'_>, view: &View) -> fmt::Result {
        let queues = [
            ("hub-commands", self.hub.queue()),
            ("streams", self.served.streams()),
            ("connections", self.served.connections()),
        ];
        let label = |name: &str| [("queue", name.to_owned())];
        let used = queues.map(|(name, fill)| (label(name), count(fill.used)));
        let help = "What waits or is open";
        gauges(encoder, "mesh_queue_length", help, None, used)?;
        let capacity = queues.map(|(name, fill)| (label(name), count(fill.capacity)));
        let help = "The most that can wait or be open; more is turned away, or waits outside";
        gauges(encoder, "mesh_queue_capacity", help, None, capacity)?;

        let ledgers = || std::iter::once(&view.own).chain(view.clusters.values());
        let sizes = || {
            ledgers().map(|cluster| {
                let label = [("cluster", cluster.cluster.name.to_string())];
                (label, cluster.ledger.history_size())
            })
        };
        let states = sizes().map(|(label, size)| (label, count(size.states)));
        let help = "States of a cluster's rows that a consumer can take up from";
        gauges(encoder, "mesh_history_states", help, None, states)?;
        let removals = sizes().map(|(label, size)| (label, count(size.removals)));
        let help = "Removed rows of a cluster that are remembered for consumers";
        gauges(encoder, "mesh_history_removals", help, None, removals)?;
        let capacity = sizes().map(|(label, size)| (label, count(size.capacity)));
        let help = "The most states, and the most removals, that are remembered of a cluster";
        gauges(encoder, "mesh_history_capacity", help, None, capacity)
    }
}
