use super::{ClusterMeshStatus, Feed, FeedState, LinkError, Peer, PeerState};
use crate::output::{Paint, Style};
use crate::report::attention_text;
use crate::table::{Cell, Table};
use crate::text::{Seconds, clean, count, or_dash, shorten};

/// Characters of an error that fit beside the other columns; the whole of it stands below the table.
const ERROR_WIDTH: usize = 48;

pub(super) fn render(status: &ClusterMeshStatus, wide: bool, style: Style) -> String {
    let mut out = clean(&status.node.headline()) + "\n";
    out.push_str("Feed     ");
    out.push_str(&clean(&feed_line(status.feed.as_ref())));
    out.push('\n');
    if !status.peers.is_empty() {
        out.push('\n');
        out.push_str(&table(status, wide).render(style));
    }
    if !status.attention.is_empty() {
        out.push('\n');
        out.push_str(&attention_text(&status.attention, style));
    }
    out.push_str(&closing(status));
    out
}

pub(super) fn summary(status: &ClusterMeshStatus) -> String {
    let Some(feed) = &status.feed else {
        return feed_line(None);
    };
    let state = match feed.state {
        FeedState::Connected => format!("feed connected {}", feed.state_seconds),
        FeedState::Lost => format!("feed lost {}", feed.state_seconds),
        FeedState::Connecting => format!("feed connecting for {}", feed.state_seconds),
        FeedState::Unknown => "feed in an unknown state".to_owned(),
    };
    let peers = status.peers.len();
    let peers = match (peers, status.peers_needing_attention) {
        (0, _) => "no peer linked".to_owned(),
        (_, 0) => format!("{peers} of {peers} peers well"),
        (_, bad) => needing(bad, peers),
    };
    match feed.troubles.len() {
        0 => format!("{state}, {peers}"),
        troubles => format!("{state}, {peers}, {}", count(troubles as u64, "trouble")),
    }
}

fn feed_line(feed: Option<&Feed>) -> String {
    let Some(feed) = feed else {
        return "none: this cluster is alone (isthmus-agent --mesh joins it to others)".to_owned();
    };
    let (server, since) = (&feed.server, feed.state_seconds);
    let mut line = match feed.state {
        FeedState::Connecting => format!("mesh server {server}: connecting for {since}"),
        FeedState::Connected => format!("mesh server {server}: connected {since}"),
        FeedState::Lost => format!("mesh server {server}: lost {since}"),
        FeedState::Unknown => format!("mesh server {server}: state unknown"),
    };
    if let Some(age) = feed.last_word_seconds {
        line.push_str(&format!(", last word {age} ago"));
    }
    if feed.resumed > 0 {
        let times = if feed.resumed == 1 { "time" } else { "times" };
        line.push_str(&format!(", resumed {} {times}", feed.resumed));
        if let Some(age) = feed.last_resumed_seconds {
            line.push_str(&format!(" ({age} ago)"));
        }
    }
    line
}

fn table(status: &ClusterMeshStatus, wide: bool) -> Table {
    let mut header = vec![
        "PEER",
        "ID",
        "STATE",
        "LAST WORD",
        "HEARS US",
        "REVISION",
        "SERVICES",
        "ENDPOINTS",
    ];
    if wide {
        header.extend(["REFUSED ROWS", "CIDRS", "ADDRESS"]);
    }
    header.push("LAST ERROR");
    let mut table = Table::new(&header);
    let feed = status.feed.as_ref();
    let lost = feed.filter(|feed| feed.state != FeedState::Connected);
    for peer in &status.peers {
        let mut row: Vec<Cell> = vec![
            peer.name.as_str().into(),
            or_dash(peer.id).into(),
            state(peer, lost),
            ago(peer.last_word_seconds).into(),
            hears_us(peer),
            revision(peer, wide).into(),
            peer.services.to_string().into(),
            peer.endpoints.to_string().into(),
        ];
        if wide {
            row.push(peer.refused_rows.to_string().into());
            row.push(cidrs(peer).into());
            row.push(or_dash(peer.endpoint.as_ref()).into());
        }
        row.push(last_error(peer.last_error.as_ref(), wide).into());
        table.row(row);
    }
    table
}

fn state(peer: &Peer, lost: Option<&Feed>) -> Cell {
    let (word, paint) = match peer.state {
        PeerState::Connecting => ("connecting", Paint::Warn),
        PeerState::Connected => ("connected", Paint::Good),
        PeerState::Stale => ("stale", Paint::Bad),
        PeerState::Dropped => ("dropped", Paint::Bad),
        PeerState::Refused => ("refused", Paint::Bad),
        PeerState::Unknown => ("unknown", Paint::Warn),
    };
    match lost {
        Some(feed) => {
            let missing = match feed.state {
                FeedState::Lost => "feed lost",
                _ => "no feed",
            };
            let text = format!("{missing} {} (was {word})", feed.state_seconds);
            Cell::painted(text, Paint::Warn)
        }
        None => Cell::painted(word, paint),
    }
}

fn cidrs(peer: &Peer) -> String {
    match (&peer.cidrs.allowed, &peer.cidrs.from) {
        (Some(cidrs), Some(from)) => format!("{} ({from})", cidrs.join(",")),
        _ => "any".to_owned(),
    }
}

fn hears_us(peer: &Peer) -> Cell {
    match (peer.hears_us, peer.hears_us_seconds) {
        (None, _) => "-".into(),
        (Some(true), _) => "yes".into(),
        (Some(false), Some(age)) => Cell::painted(format!("no ({age})"), Paint::Bad),
        (Some(false), None) => Cell::painted("no", Paint::Bad),
    }
}

fn revision(peer: &Peer, wide: bool) -> String {
    match (&peer.epoch, peer.revision) {
        (Some(epoch), Some(revision)) => {
            let digits = if wide { epoch.len() } else { 4 };
            format!("{}/{revision}", epoch.get(..digits).unwrap_or(epoch))
        }
        _ => "-".to_owned(),
    }
}

fn last_error(error: Option<&LinkError>, wide: bool) -> String {
    let Some(error) = error else {
        return "-".to_owned();
    };
    let text = if wide {
        error.text.clone()
    } else {
        shorten(&error.text, ERROR_WIDTH)
    };
    let age = error.age_seconds;
    match error.tries {
        0 => format!("{text}, {age} ago"),
        1 => format!("{text}, {age} ago, 1 try"),
        tries => format!("{text}, {age} ago, {tries} tries"),
    }
}

fn ago(age: Option<Seconds>) -> String {
    age.map_or_else(|| "never".to_owned(), |age| format!("{age} ago"))
}

fn needing(bad: usize, peers: usize) -> String {
    let verb = if bad == 1 { "needs" } else { "need" };
    let noun = if peers == 1 { "peer" } else { "peers" };
    format!("{bad} of {peers} {noun} {verb} attention")
}

fn closing(status: &ClusterMeshStatus) -> String {
    let (bad, peers) = (status.peers_needing_attention, status.peers.len());
    if bad > 0 {
        return needing(bad, peers) + "\n";
    }
    if peers == 0 && status.feed.is_some() {
        return "No peers. Link one: agentctl clustermesh connect NAME --endpoint HOST:PORT\n"
            .to_owned();
    }
    String::new()
}
