//! What is wrong with the feed and the peers, why, and what can be done.

use time::{Duration, OffsetDateTime};

use super::{
    Cidrs, ClusterMeshStatus, Feed, FeedState, LinkError, Peer, PeerState, Quarantine, Refusal,
    Trouble,
};
use crate::report::Attention;
use crate::text::{Seconds, count};

/// A certificate that ends sooner is worth a line.
const EXPIRES_SOON: Duration = Duration::days(7);

pub(super) fn attention(status: &ClusterMeshStatus, now: OffsetDateTime) -> Vec<Attention> {
    let mut attention = Vec::new();
    let Some(feed) = &status.feed else {
        return attention;
    };
    attention.extend(of_feed(feed));
    attention.extend(of_certificate(feed, now));
    attention.extend(feed.troubles.iter().map(of_trouble));
    for peer in &status.peers {
        attention.extend(of_peer(peer, status));
    }
    // What a person has to do comes first. The sort keeps the order within.
    attention.sort_by_key(|item| !item.is_fault());
    attention
}

fn of_feed(feed: &Feed) -> Option<Attention> {
    let since = feed.state_seconds;
    let cause = match feed.state {
        FeedState::Connected => return None,
        FeedState::Connecting => format!(
            "mesh server {} not reached for {since}. Remote backends are those of --state-dir.",
            feed.server
        ),
        FeedState::Lost => format!(
            "lost for {since}: peers are shown as last known. No tier changes and nothing is dropped meanwhile."
        ),
        FeedState::Unknown => "in a state that this agentctl does not know.".to_owned(),
    };
    let error = feed.last_error.as_ref();
    Some(with_error(Attention::fault("feed", cause), error))
}

fn of_certificate(feed: &Feed, now: OffsetDateTime) -> Option<Attention> {
    let certificate = feed.certificate.as_ref()?;
    let left = certificate.not_after - now;
    let age = Seconds::new(left.as_seconds_f64().abs());
    let way_out = "Put a new one in the files of --tls-cert and --tls-key; they are read again when they change.";
    if left <= Duration::ZERO {
        let cause = format!("{} expired {age} ago.", certificate.name);
        return Some(Attention::fault("certificate", cause).way_out(way_out));
    }
    (left < EXPIRES_SOON).then(|| {
        let cause = format!("{} expires in {age}.", certificate.name);
        Attention::note("certificate", cause).way_out(way_out)
    })
}

fn of_trouble(trouble: &Trouble) -> Attention {
    let since = trouble.age_seconds;
    let since = since.map_or_else(String::new, |age| format!(" (for {age})"));
    let cause = format!("{}{since}", trouble.cause);
    Attention::fault(&trouble.about, cause).way_out(&trouble.way_out)
}

fn of_peer(peer: &Peer, status: &ClusterMeshStatus) -> Vec<Attention> {
    let name = &peer.name;
    let mut found = Vec::new();
    match peer.state {
        PeerState::Connected if peer.hears_us == Some(false) => found.push(deaf(peer, status)),
        PeerState::Connected => {}
        _ => found.push(with_error(
            Attention::fault(name, cause(peer, status)),
            peer.last_error.as_ref(),
        )),
    }
    if let Some(quarantine) = &peer.quarantine {
        let Quarantine {
            rows,
            held,
            age_seconds,
            left_seconds,
        } = quarantine;
        let cause = format!(
            "its list of {age_seconds} ago left out {rows} of {held} rows: they stay for {left_seconds} more."
        );
        let way_out = format!(
            "If {name} did not mean it: did its mesh server lose its state, or its source its objects?"
        );
        found.push(Attention::fault(name, cause).way_out(way_out));
    }
    found.extend(peer.refusals.iter().map(|refusal| refused(peer, refusal)));
    found.extend(elsewhere(peer));
    found
}

/// Rows that are not used, why, and what can be done.
fn refused(peer: &Peer, refusal: &Refusal) -> Attention {
    let (name, example) = (&peer.name, &refusal.example);
    let allowed = || match (&peer.cidrs.allowed, peer.cidrs.from.as_deref()) {
        (Some(cidrs), Some("learnt")) => {
            format!(
                "{}, as it said when it was first connected",
                cidrs.join(", ")
            )
        }
        (Some(cidrs), _) => format!("{}, spec.cidrs of the link", cidrs.join(", ")),
        (None, _) => "what the link allows".to_owned(),
    };
    let (why, way_out) = match refusal.reason.as_str() {
        "foreign-cluster" => (
            "they are another cluster's".to_owned(),
            "A mesh server speaks for its own cluster only: is it an Isthmus of ours?".to_owned(),
        ),
        "malformed" => (
            "a field is missing or wrong".to_owned(),
            format!("Are the mesh servers here and in {name} of the same version?"),
        ),
        "special-address" => (
            "loopback, link-local and multicast addresses mean another thing on every node".to_owned(),
            format!("Correct them in {name}'s source."),
        ),
        "own-address" => (
            "their addresses are in this cluster's own ranges".to_owned(),
            format!("Is {name}'s source wrong, or --endpoint-cidrs of this cluster's isthmus-mesh too wide?"),
        ),
        "outside-address" => (
            format!("their addresses are outside {}", allowed()),
            "If they should be used, allow them: spec.cidrs of the link, or clustermesh connect --cidr.".to_owned(),
        ),
        "too-many-rows" => (
            "the link allows no more rows".to_owned(),
            "If they should be used, allow more: spec.limits.rows of the link.".to_owned(),
        ),
        "too-many-bytes" => (
            "the link allows no more bytes".to_owned(),
            "If they should be used, allow more: spec.limits.bytes of the link.".to_owned(),
        ),
        other => (other.to_owned(), "The mesh server's log names them.".to_owned()),
    };
    if refusal.rows == 0 {
        let rows = count(refusal.total, "row");
        let cause =
            format!("{rows} refused since the mesh server started: {why}; the last was {example}.");
        return Attention::note(name, cause);
    }
    let rows = count(refusal.rows, "row");
    let cause = format!("{rows} refused: {why}; the last was {example}.");
    Attention::fault(name, cause).way_out(way_out)
}

/// It says now that its endpoints are not where it said when it was first connected.
fn elsewhere(peer: &Peer) -> Option<Attention> {
    let Cidrs {
        allowed: Some(allowed),
        from: Some(from),
        announced,
    } = &peer.cidrs
    else {
        return None;
    };
    if from != "learnt" || announced.is_empty() || announced == allowed {
        return None;
    }
    let (now, then) = (announced.join(", "), allowed.join(", "));
    let cause = format!(
        "says that its endpoints are in {now}; {then} holds, as it said when it was first connected."
    );
    let way_out = "To accept that: spec.cidrs of the link, or clustermesh connect --cidr.";
    Some(Attention::note(&peer.name, cause).way_out(way_out))
}

/// Why a peer that is not connected is not well.
fn cause(peer: &Peer, status: &ClusterMeshStatus) -> String {
    let silent = peer.last_word_seconds.or(peer.state_seconds);
    let silent = silent.map_or_else(|| "silent".to_owned(), |age| format!("silent for {age}"));
    let ttl = status.cluster_ttl_seconds;
    match peer.state {
        PeerState::Stale => match peer.dropped_in_seconds {
            Some(left) => {
                let serve = last_resort(peer.endpoints);
                format!("{silent}. {serve}; dropped in {left} (--cluster-ttl {ttl}).")
            }
            None => format!("{silent}. {}.", last_resort(peer.endpoints)),
        },
        PeerState::Dropped => {
            format!(
                "{silent}: what was known of it is dropped (--cluster-ttl {ttl}) until it is heard again."
            )
        }
        PeerState::Refused if peer.endpoints > 0 => {
            let held = count(peer.endpoints, "endpoint");
            format!("refused. What was known of it stays for now: {held}.")
        }
        PeerState::Refused => "refused. Nothing of it is used.".to_owned(),
        PeerState::Connecting => match (peer.last_word_seconds, peer.state_seconds) {
            (Some(age), _) => format!("not connected; last heard {age} ago."),
            (None, Some(age)) => format!("never heard; tried for {age}."),
            (None, None) => "never heard.".to_owned(),
        },
        PeerState::Connected | PeerState::Unknown => {
            "in a state that this agentctl does not know.".to_owned()
        }
    }
}

fn last_resort(endpoints: u64) -> String {
    match endpoints {
        0 => "It has no endpoints here".to_owned(),
        1 => "Its 1 endpoint serves only when nothing else does".to_owned(),
        more => format!("Its {more} endpoints serve only when nothing else does"),
    }
}

/// We hear it, and it does not hear us.
fn deaf(peer: &Peer, status: &ClusterMeshStatus) -> Attention {
    let (name, node) = (&peer.name, &status.node);
    let cause = format!(
        "does not watch {}: requests go there, none come here. On {name}:",
        node.cluster
    );
    let command = other_side(&node.cluster, Some(node.cluster_id), status.own_endpoint());
    Attention::fault(name, cause).way_out(command)
}

/// The command by which another cluster links to this one, with placeholders for what is not known.
pub fn other_side(cluster: &str, id: Option<u32>, endpoint: Option<&str>) -> String {
    let id = id.map_or_else(String::new, |id| format!(" --id {id}"));
    let endpoint = endpoint.unwrap_or("HOST:4260");
    format!("agentctl clustermesh connect {cluster}{id} --endpoint {endpoint}")
}

fn with_error(attention: Attention, error: Option<&LinkError>) -> Attention {
    match error {
        Some(error) => attention.way_out(&error.text),
        None => attention,
    }
}
