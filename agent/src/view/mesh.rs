//! The other clusters as this node sees them, and the feed by which it sees them.

use std::time::Instant;

use ipnet::IpNet;
use isthmus_core::mesh::{
    Age, FeedState, HearsUs, PeerState, PeerStatus, RangesFrom, RefusalReport, Trouble,
};
use isthmus_mesh::feed::MeshStatus;
use isthmus_mesh::tls::Certificate;
use isthmus_proto::node::v1 as pb;

use super::View;

/// How far a stretch of time is, now.
fn seconds(age: &Age, now: Instant) -> f64 {
    age.at(now).as_secs_f64()
}

impl View {
    pub(crate) fn cluster_mesh(&self) -> pb::GetClusterMeshResponse {
        let now = Instant::now();
        let status = self.mesh.as_ref().map(|mesh| mesh.borrow().clone());
        pb::GetClusterMeshResponse {
            node: Some(self.node_info()),
            feed: status.as_ref().map(|status| feed(status, now)),
            peers: status
                .iter()
                .flat_map(|status| &status.feed.peers)
                .map(|status| peer(status, now))
                .collect(),
            peer_stale_after_seconds: self.peer_stale_after.as_secs_f64(),
            cluster_ttl_seconds: self.cluster_ttl.as_secs_f64(),
        }
    }
}

fn feed(mesh: &MeshStatus, now: Instant) -> pb::Feed {
    let status = &mesh.feed;
    let troubles = mesh.troubles.iter().chain(&status.troubles);
    let trouble = |(trouble, since): &(Trouble, Age)| pb::Trouble {
        about: trouble.about.clone(),
        cause: trouble.cause.clone(),
        way_out: trouble.way_out.clone(),
        age_seconds: Some(seconds(since, now)),
    };
    pb::Feed {
        server: mesh.server.clone(),
        state: match status.state {
            FeedState::Connecting => pb::FeedState::Connecting,
            FeedState::Connected => pb::FeedState::Connected,
            FeedState::Lost => pb::FeedState::Lost,
        }
        .into(),
        state_seconds: seconds(&status.state_since, now),
        last_word_seconds: status.last_word.as_ref().map(|age| seconds(age, now)),
        resumed: status.resumed,
        last_resumed_seconds: status.last_resumed.as_ref().map(|age| seconds(age, now)),
        last_error: status
            .last_error
            .as_ref()
            .map(|error| link_error(error, status.tries, now)),
        certificate: mesh.certificate.as_ref().map(certificate),
        listed: status.listed,
        troubles: troubles.map(trouble).collect(),
    }
}

fn certificate(certificate: &Certificate) -> pb::Certificate {
    pb::Certificate {
        name: certificate.names.join(", "),
        not_after_unix_seconds: certificate.not_after.unix_timestamp(),
    }
}

fn link_error((text, age): &(String, Age), tries: u32, now: Instant) -> pb::LinkError {
    pb::LinkError {
        text: text.clone(),
        age_seconds: seconds(age, now),
        tries: tries.into(),
    }
}

pub(super) fn peer_state(state: PeerState) -> pb::PeerState {
    match state {
        PeerState::Connecting => pb::PeerState::Connecting,
        PeerState::Connected => pb::PeerState::Connected,
        PeerState::Stale => pb::PeerState::Stale,
        PeerState::Refused => pb::PeerState::Refused,
        PeerState::Dropped => pb::PeerState::Dropped,
    }
}

fn refusal(refusal: &RefusalReport) -> pb::Refusal {
    pb::Refusal {
        reason: refusal.reason.name().to_owned(),
        rows: refusal.rows,
        total: refusal.total,
        example: refusal.example.clone(),
    }
}

fn peer(status: &PeerStatus, now: Instant) -> pb::Peer {
    let texts = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect();
    let (cidrs_from, allowed_cidrs) = match &status.ranges.allowed {
        Some((RangesFrom::Link, cidrs)) => ("link", texts(cidrs)),
        Some((RangesFrom::Learnt, cidrs)) => ("learnt", texts(cidrs)),
        None => ("", Vec::new()),
    };
    pb::Peer {
        name: status.name.to_string(),
        id: status.id.map(|id| id.get().into()),
        state: peer_state(status.state).into(),
        state_seconds: status.state_since.as_ref().map(|age| seconds(age, now)),
        last_word_seconds: status.last_word.as_ref().map(|age| seconds(age, now)),
        hears_us: match status.hears_us {
            HearsUs::Unknown => None,
            HearsUs::Yes => Some(true),
            HearsUs::No => Some(false),
        },
        hears_us_seconds: status.hears_us_since.as_ref().map(|age| seconds(age, now)),
        epoch: status.position.map(|position| position.epoch.0),
        revision: status.position.map(|position| position.revision),
        complete: status.complete,
        services: status.services as u64,
        endpoints: status.endpoints as u64,
        endpoint: status.endpoint.clone(),
        last_error: status
            .last_error
            .as_ref()
            .map(|error| link_error(error, status.tries, now)),
        dropped_in_seconds: status.dropped_in.map(|left| left.as_secs_f64()),
        refused_rows: status.refused_rows,
        quarantine: status.quarantine.map(|quarantine| pb::Quarantine {
            rows: quarantine.rows as u64,
            held: quarantine.held as u64,
            age_seconds: seconds(&quarantine.since, now),
            left_seconds: quarantine.left(now).as_secs_f64(),
        }),
        refusals: status.refusals.iter().map(refusal).collect(),
        allowed_cidrs,
        cidrs_from: cidrs_from.to_owned(),
        announced_cidrs: texts(&status.ranges.announced),
    }
}
