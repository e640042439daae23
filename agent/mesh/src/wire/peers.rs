//! What agents are told of links.

use std::time::Duration;

use ipnet::IpNet;
use isthmus_core::mesh::{
    HearsUs, LinkState, PeerReport, QuarantineReport, Ranges, RangesFrom, Refusal, RefusalReport,
    TROUBLES_MAX, Trouble, TroubleReport,
};
use isthmus_proto::mesh::v1 as proto;

use super::{Malformed, Result, cidrs, id, millis};

pub(super) fn say_trouble(report: TroubleReport) -> proto::Trouble {
    proto::Trouble {
        about: report.trouble.about,
        cause: report.trouble.cause,
        way_out: report.trouble.way_out,
        age_ms: millis(report.age),
    }
}

pub(super) fn troubles(said: Vec<proto::Trouble>) -> Result<Vec<TroubleReport>> {
    if said.len() > 4 * TROUBLES_MAX {
        return Err(Malformed("troubles"));
    }
    let report = |said: proto::Trouble| TroubleReport {
        trouble: Trouble {
            about: said.about,
            cause: said.cause,
            way_out: said.way_out,
        },
        age: Duration::from_millis(said.age_ms),
    };
    Ok(said.into_iter().map(report).collect())
}

fn say_refusal(refusal: RefusalReport) -> proto::Refusal {
    proto::Refusal {
        reason: say_reason(refusal.reason).into(),
        rows: refusal.rows,
        total: refusal.total,
        example: refusal.example,
    }
}

fn say_reason(reason: Refusal) -> proto::RefusalReason {
    match reason {
        Refusal::ForeignCluster => proto::RefusalReason::ForeignCluster,
        Refusal::Malformed => proto::RefusalReason::Malformed,
        Refusal::SpecialAddress => proto::RefusalReason::SpecialAddress,
        Refusal::OwnAddress => proto::RefusalReason::OwnAddress,
        Refusal::OutsideAddress => proto::RefusalReason::OutsideAddress,
        Refusal::TooManyRows => proto::RefusalReason::TooManyRows,
        Refusal::TooManyBytes => proto::RefusalReason::TooManyBytes,
    }
}

/// A reason that only a newer mesh server knows is left out: `refused_rows` counts it.
fn refusal(said: proto::Refusal) -> Option<RefusalReport> {
    let known = |reason: &Refusal| i32::from(say_reason(*reason)) == said.reason;
    Some(RefusalReport {
        reason: Refusal::ALL.into_iter().find(known)?,
        rows: said.rows,
        total: said.total,
        example: said.example,
    })
}

fn ranges(from: i32, allowed: &[String], announced: &[String]) -> Result<Ranges> {
    let from = match proto::CidrsFrom::try_from(from) {
        Ok(proto::CidrsFrom::Link) => Some(RangesFrom::Link),
        Ok(proto::CidrsFrom::Learnt) => Some(RangesFrom::Learnt),
        _ => None,
    };
    let allowed = cidrs(allowed)?;
    Ok(Ranges {
        allowed: from.map(|from| (from, allowed)),
        announced: cidrs(announced)?,
    })
}

pub(super) fn say_peer(peer: PeerReport) -> proto::Peer {
    let texts = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect();
    let (allowed_from, allowed_cidrs) = match &peer.ranges.allowed {
        Some((RangesFrom::Link, cidrs)) => (proto::CidrsFrom::Link, texts(cidrs)),
        Some((RangesFrom::Learnt, cidrs)) => (proto::CidrsFrom::Learnt, texts(cidrs)),
        None => (proto::CidrsFrom::Unspecified, Vec::new()),
    };
    let (last_error, last_error_age) = peer.last_error.unwrap_or_default();
    proto::Peer {
        name: peer.name.to_string(),
        cluster_id: peer.id.map_or(0, |id| id.get().into()),
        state: match peer.state {
            LinkState::Connecting => proto::LinkState::Connecting,
            LinkState::Connected => proto::LinkState::Connected,
            LinkState::Refused => proto::LinkState::Refused,
        }
        .into(),
        state_age_ms: millis(peer.state_age),
        hears_us: match peer.hears_us {
            HearsUs::Unknown => proto::HearsUs::Unspecified,
            HearsUs::Yes => proto::HearsUs::Yes,
            HearsUs::No => proto::HearsUs::No,
        }
        .into(),
        hears_us_age_ms: millis(peer.hears_us_age),
        last_error,
        last_error_age_ms: millis(last_error_age),
        tries: peer.tries,
        endpoint: peer.endpoint,
        refused_rows: peer.refused_rows,
        quarantine: peer.quarantine.map(|quarantine| proto::Quarantine {
            rows: quarantine.rows,
            held: quarantine.held,
            age_ms: millis(quarantine.age),
            left_ms: millis(quarantine.left),
        }),
        refusals: peer.refusals.into_iter().map(say_refusal).collect(),
        allowed_cidrs,
        allowed_from: allowed_from.into(),
        announced_cidrs: texts(&peer.ranges.announced),
    }
}

pub(super) fn peer(said: proto::Peer) -> Result<PeerReport> {
    let error = (!said.last_error.is_empty()).then_some(said.last_error);
    Ok(PeerReport {
        name: said.name.parse().map_err(|_| Malformed("peer.name"))?,
        id: if said.cluster_id == 0 {
            None
        } else {
            Some(id(said.cluster_id)?)
        },
        state: match proto::LinkState::try_from(said.state) {
            Ok(proto::LinkState::Connected) => LinkState::Connected,
            Ok(proto::LinkState::Refused) => LinkState::Refused,
            _ => LinkState::Connecting,
        },
        state_age: Duration::from_millis(said.state_age_ms),
        hears_us: match proto::HearsUs::try_from(said.hears_us) {
            Ok(proto::HearsUs::Yes) => HearsUs::Yes,
            Ok(proto::HearsUs::No) => HearsUs::No,
            _ => HearsUs::Unknown,
        },
        hears_us_age: Duration::from_millis(said.hears_us_age_ms),
        last_error: error.map(|text| (text, Duration::from_millis(said.last_error_age_ms))),
        tries: said.tries,
        endpoint: said.endpoint,
        refused_rows: said.refused_rows,
        quarantine: said.quarantine.map(|said| QuarantineReport {
            rows: said.rows,
            held: said.held,
            age: Duration::from_millis(said.age_ms),
            left: Duration::from_millis(said.left_ms),
        }),
        refusals: said.refusals.into_iter().filter_map(refusal).collect(),
        ranges: ranges(
            said.allowed_from,
            &said.allowed_cidrs,
            &said.announced_cidrs,
        )?,
    })
}
