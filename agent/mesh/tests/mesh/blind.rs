//! A mesh server that cannot read all of its links tells of those that it can read, and lets nobody conclude that another
//! is not linked.

use std::fs;

use isthmus_core::mesh::{FeedEvent, PeerState};

use super::world::{Agent, World, cluster, endpoint, service};

fn is_told(agent: &Agent, name: &str) -> bool {
    let peers = agent.status().feed.peers;
    peers.iter().any(|peer| peer.name.as_str() == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_unreadable_link_blinds_nobody() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    // Linked, and dead since ever.
    east.link("north", "127.0.0.1:1".parse().unwrap(), Some(3));
    let broken = east.links.join("broken.yaml");
    fs::write(&broken, "kind: [").unwrap();
    let east = east.restart().await;

    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("west is connected", |agent| {
            is_told(agent, "west")
                && agent.peer("west").state == PeerState::Connected
                && agent.complete("west")
        })
        .await;
    assert!(!agent.peer("west").endpoint.is_empty());
    agent
        .until("why north is not", |agent| {
            is_told(agent, "north") && agent.peer("north").last_error.is_some()
        })
        .await;
    let linked = |agent: &Agent| {
        let lists = agent.events.iter().filter_map(|event| match event {
            FeedEvent::Linked(clusters) => Some(clusters.clone()),
            _ => None,
        });
        lists.collect::<Vec<_>>()
    };
    assert!(!agent.status().feed.listed);
    assert!(
        linked(&agent).is_empty(),
        "the broken one may be a link too"
    );

    let troubles = agent.status().feed.troubles;
    let [(trouble, _)] = &troubles[..] else {
        unreachable!("{troubles:?}")
    };
    assert_eq!(trouble.about, "link broken.yaml:1");
    assert!(
        trouble.way_out.contains(&east.links.display().to_string()),
        "{trouble:?}"
    );

    fs::remove_file(broken).unwrap();
    agent
        .until("all links are known", |agent| {
            !linked(agent).is_empty() && agent.status().feed.troubles.is_empty()
        })
        .await;
    assert_eq!(linked(&agent), [[cluster("north", 3), cluster("west", 2)]]);
    assert!(agent.status().feed.listed);
}
