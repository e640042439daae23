//! What a peer may not do to us, be it by malice or by mistake.

use std::fs;
use std::time::Instant;

use super::world::{GUARD, World, rows};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_lost_its_memory_does_not_empty_the_mesh() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(rows(40)).await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;

    // Its state and most of its objects are gone, and it does not know.
    let state = west.home.join("state");
    let west = west
        .restart_after(|| fs::remove_dir_all(&state).unwrap())
        .await;
    west.publish(rows(3)).await;
    agent
        .until("the quarantine", |agent| {
            agent.peer("west").quarantine.is_some()
        })
        .await;
    let began = Instant::now();
    let quarantine = agent.peer("west").quarantine.unwrap();
    assert_eq!((quarantine.rows, quarantine.held), (37, 41));
    assert_eq!(agent.held("west"), Some((1, 40)), "nothing goes at once");
    west.publish(rows(4)).await;
    agent
        .until("the end of the grace time", |agent| {
            agent.held("west") == Some((1, 4))
        })
        .await;
    assert!(began.elapsed() >= GUARD.grace / 2, "{:?}", began.elapsed());
    let position = west.position();
    agent
        .until("no quarantine", |agent| {
            let peer = agent.peer("west");
            peer.quarantine.is_none() && peer.position == position
        })
        .await;
}
