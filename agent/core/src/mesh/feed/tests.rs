#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use super::*;
use crate::mesh::{Epoch, HearsUs, LinkState, Ranges};

fn cluster(name: &str, id: u16) -> Cluster {
    Cluster {
        name: name.parse().unwrap(),
        id: id.try_into().unwrap(),
    }
}

/// A feed that has lost its state, greeted by its mesh server.
fn feed(now: Instant) -> (Feed, u64) {
    let settings = FeedSettings {
        own: cluster("east", 1),
        node: "east-1".to_owned(),
        stale_after: Duration::from_secs(3),
        ttl: Duration::from_secs(300),
    };
    let (mut feed, events) = Feed::new(settings, SavedFeed::default(), now, SystemTime::now());
    assert_eq!(events, []);
    feed.open(now);
    let mut sequence = 0;
    let hello = ServerHello {
        cluster: cluster("east", 1),
        epoch: Epoch(7),
        heartbeat: Duration::from_secs(1),
        guard: Guard::default(),
        cidrs: vec![],
        version: VERSION,
    };
    assert_eq!(
        say(&mut feed, &mut sequence, FromServer::Hello(hello), now),
        []
    );
    (feed, sequence)
}

fn say(feed: &mut Feed, sequence: &mut u64, message: FromServer, now: Instant) -> Vec<FeedEvent> {
    *sequence += 1;
    let sequence = *sequence;
    feed.receive(Sequenced { sequence, message }, now).unwrap()
}

fn links(links: &[(&str, Option<u16>)]) -> FromServer {
    let report = |(name, id): &(&str, Option<u16>)| PeerReport {
        name: name.parse().unwrap(),
        id: id.map(|id| id.try_into().unwrap()),
        state: LinkState::Connecting,
        state_age: Duration::ZERO,
        hears_us: HearsUs::Unknown,
        hears_us_age: Duration::ZERO,
        last_error: None,
        tries: 1,
        endpoint: String::new(),
        refused_rows: 0,
        refusals: vec![],
        quarantine: None,
        ranges: Ranges::default(),
    };
    FromServer::Peers {
        reports: links.iter().map(report).collect(),
        partial: false,
        troubles: vec![],
    }
}

#[test]
fn linked_clusters_are_those_that_are_reported_whether_or_not_their_rows_have_begun() {
    let now = Instant::now();
    let (mut feed, mut sequence) = feed(now);
    let mut hear = |list: &[_]| say(&mut feed, &mut sequence, links(list), now);
    let both = [cluster("north", 3), cluster("west", 2)];
    // Whose rows of before are those of a cluster without an id yet? Nobody knows.
    assert_eq!(hear(&[("north", None), ("west", Some(2))]), []);
    assert_eq!(
        hear(&[("north", Some(3)), ("west", Some(2))]),
        [FeedEvent::Linked(both.to_vec())]
    );
    assert_eq!(hear(&[("north", Some(3)), ("west", Some(2))]), [], "told");
    // Unlinked before its rows began: what was found of it may go too.
    assert_eq!(
        hear(&[("north", Some(3))]),
        [FeedEvent::Linked(vec![cluster("north", 3)])]
    );
    assert_eq!(hear(&[]), [FeedEvent::Linked(vec![])]);
}

#[test]
fn a_partial_list_lets_no_old_report_stand() {
    let now = Instant::now();
    let (mut feed, mut sequence) = feed(now);
    let mut hear = |state, partial, names: &[_]| {
        let FromServer::Peers {
            mut reports,
            troubles,
            ..
        } = links(names)
        else {
            unreachable!("as made")
        };
        for report in &mut reports {
            report.state = state;
        }
        let list = FromServer::Peers {
            reports,
            partial,
            troubles,
        };
        say(&mut feed, &mut sequence, list, now);
        let states = feed.status().peers.into_iter();
        states
            .map(|peer| (peer.name.to_string(), peer.state, peer.id))
            .collect::<Vec<_>>()
    };
    let both: &[_] = &[("north", Some(3)), ("west", Some(2))];
    let at = |name: &str, state, id: Option<u16>| {
        (name.to_owned(), state, id.map(|id| id.try_into().unwrap()))
    };
    let (connected, connecting) = (PeerState::Connected, PeerState::Connecting);
    assert_eq!(
        hear(LinkState::Connected, false, both),
        [
            at("north", connected, Some(3)),
            at("west", connected, Some(2))
        ]
    );
    // A mesh server that has just started and cannot read north's link knows nothing of it.
    assert_eq!(
        hear(LinkState::Connected, true, &both[1..]),
        [
            at("north", connecting, None),
            at("west", connected, Some(2))
        ]
    );
}
