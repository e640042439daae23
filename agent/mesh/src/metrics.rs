//! What `/metrics` says of a mesh server, read when it is asked for.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use isthmus_core::mesh::{
    Beginning, HearsUs, LinkState, PeerView, Refusal, RefusalReport, Role, View,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

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

type Label = [(&'static str, String); 1];

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
            family(&mut encoder, name, help, samples)
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
        family(
            &mut encoder,
            "mesh_peer_last_word_age_seconds",
            "Since the peer was last heard",
            ages,
        )?;
        let clusters = || {
            view.clusters
                .values()
                .map(|cluster| (label(&cluster.cluster.name), cluster.ledger.rows()))
        };
        let services = clusters().map(|(name, rows)| (name, count(rows.services())));
        family(
            &mut encoder,
            "mesh_peer_services",
            "Services held of the peer",
            services,
        )?;
        let endpoints = clusters().map(|(name, rows)| (name, count(rows.endpoints())));
        family(
            &mut encoder,
            "mesh_peer_endpoints",
            "Endpoints held of the peer",
            endpoints,
        )?;

        let held = view.clusters.values().chain([&view.own]);
        let withheld = held.map(|cluster| {
            let rows = cluster.quarantine.map_or(0, |quarantine| quarantine.rows);
            let label = [("cluster", cluster.cluster.name.to_string())];
            (label, count(rows))
        });
        family(
            &mut encoder,
            "mesh_quarantined_rows",
            "Rows of a cluster that stay for now though its newest list left them out",
            withheld,
        )?;

        refusals(&mut encoder, peers)?;
        let own = view.own.ledger.rows();
        let terms = |value: fn(&PeerView) -> u64| {
            let value = move |peer: &PeerView| (label(&peer.name), wide(value(peer)));
            peers.iter().map(value)
        };
        let bytes = clusters().map(|(name, rows)| (name, wide(rows.bytes())));
        let help = "What the rows held of the peer cost, roughly";
        family(&mut encoder, "mesh_peer_bytes", help, bytes)?;
        let help = "The most bytes of rows that are held of the peer";
        let most = terms(|peer| peer.bytes_max);
        family(&mut encoder, "mesh_peer_bytes_max", help, most)?;
        let help = "The most services and endpoints that are held of the peer";
        let most = terms(|peer| peer.rows_max);
        family(&mut encoder, "mesh_peer_rows_max", help, most)?;
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
            gauge(&mut encoder, name, help, count(value))?;
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
    let name = "mesh_peer_refused_rows";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, total) in each(|refusal| refusal.total) {
        ConstCounter::new(total).encode(family.encode_family(&labels)?)?;
    }
    let help = "Rows that a peer says now and that are refused";
    let name = "mesh_peer_refused_rows_now";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, rows) in each(|refusal| refusal.rows) {
        ConstGauge::new(wide(rows)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

const AUDIENCES: [(&str, Role); 2] = [("peer", Role::MeshServer), ("agent", Role::Agent)];

impl MeshMetrics {
    /// What consumers were told.
    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Times that a cluster's rows began to be told: resumed with the difference, or with a list and why";
        let mut begun =
            encoder.encode_descriptor("mesh_streams_begun", help, None, MetricType::Counter)?;
        for (audience, role) in AUDIENCES {
            for beginning in Beginning::ALL {
                let labels = [("audience", audience), ("beginning", beginning.name())];
                let count = ConstCounter::new(self.served.begun(role, beginning));
                count.encode(begun.encode_family(&labels)?)?;
            }
        }
        let help = "Rows told, repeated ones counted again";
        let mut rows =
            encoder.encode_descriptor("mesh_rows_told", help, None, MetricType::Counter)?;
        for (audience, role) in AUDIENCES {
            let count = ConstCounter::new(self.served.rows(role));
            count.encode(rows.encode_family(&[("audience", audience)])?)?;
        }
        let help = "Streams that were ended because their consumer did not read";
        let stalled = ConstCounter::new(self.served.stalled());
        let encoder =
            encoder.encode_descriptor("mesh_streams_stalled", help, None, MetricType::Counter)?;
        stalled.encode(encoder)
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
        family(encoder, "mesh_queue_length", help, used.into_iter())?;
        let capacity = queues.map(|(name, fill)| (label(name), count(fill.capacity)));
        let help = "The most that can wait or be open; more is turned away, or waits outside";
        family(encoder, "mesh_queue_capacity", help, capacity.into_iter())?;

        let ledgers = || std::iter::once(&view.own).chain(view.clusters.values());
        let sizes = || {
            ledgers().map(|cluster| {
                let label = [("cluster", cluster.cluster.name.to_string())];
                (label, cluster.ledger.history_size())
            })
        };
        let states = sizes().map(|(label, size)| (label, count(size.states)));
        let help = "States of a cluster's rows that a consumer can take up from";
        family(encoder, "mesh_history_states", help, states)?;
        let removals = sizes().map(|(label, size)| (label, count(size.removals)));
        let help = "Removed rows of a cluster that are remembered for consumers";
        family(encoder, "mesh_history_removals", help, removals)?;
        let capacity = sizes().map(|(label, size)| (label, count(size.capacity)));
        let help = "The most states, and the most removals, that are remembered of a cluster";
        family(encoder, "mesh_history_capacity", help, capacity)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; what is counted here stays below 2⁵³"
)]
fn wide(number: u64) -> f64 {
    number as f64
}

fn count(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

fn family(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (Label, f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (label, value) in samples {
        ConstGauge::new(value).encode(metric.encode_family(&label)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
