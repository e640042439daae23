//! What a peer may not do to us, be it by malice or by mistake.

use std::fs;
use std::time::Instant;

use isthmus_core::mesh::{Beginning, PeerState, RangesFrom, Refusal, Role};

use super::liar::{self, list};
use super::world::{Agent, GUARD, World, cluster, endpoint_at, rows};

/// What stands refused at a peer, and what was refused in all.
fn refused(agent: &Agent, name: &str) -> Vec<(Refusal, u64, u64)> {
    let refusals = agent.peer(name).refusals.into_iter();
    refusals.map(|r| (r.reason, r.rows, r.total)).collect()
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_may_not_say_is_refused_row_by_row_and_the_rest_goes_on() {
    let world = World::new();
    let east = world.mesh_at("east", 1, "east", &["10.1.0.0/16"]).await;
    east.publish(vec![]).await;
    let (west, north) = (cluster("west", 2), cluster("north", 3));
    let mut script = list(&north, vec![liar::service("stolen")]);
    script.extend(list(
        &west,
        vec![
            liar::service("backend"),
            liar::service(""),
            liar::endpoint("backend", [10, 2, 0, 1], 8080),
            liar::endpoint("backend", [10, 2, 0, 2], 70_000),
            liar::endpoint("backend", [127, 0, 0, 1], 8080),
            liar::endpoint("backend", [10, 1, 0, 9], 8080),
        ],
    ));
    let liar = world.liar(west, script).await;
    east.link("west", liar, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| {
            agent.held("west") == Some((1, 1)) && agent.complete("west")
        })
        .await;
    agent
        .until("the refusals", |agent| agent.peer("west").refused_rows == 5)
        .await;
    let wanted = [
        (Refusal::ForeignCluster, 0, 1),
        (Refusal::Malformed, 1, 2),
        (Refusal::SpecialAddress, 1, 1),
        (Refusal::OwnAddress, 1, 1),
    ];
    assert_eq!(refused(&agent, "west"), wanted);
    let peer = agent.peer("west");
    assert_eq!((peer.state, peer.last_error), (PeerState::Connected, None));
    assert_eq!(
        peer.refusals[1].example,
        "endpoint 10.2.0.2 of production/backend (port)"
    );
    assert_eq!(agent.held("north"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_held_to_its_own_ranges_and_the_link_has_the_last_word() {
    let world = World::new();
    let west = world.mesh_at("west", 2, "west", &["10.0.0.0/24"]).await;
    let east = world.mesh("east", 1).await;
    let far = endpoint_at("backend", 0x0a09_0001);
    let mut told = rows(3);
    told.push(far.clone());
    west.publish(told).await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west, without the one outside", |agent| {
            agent.held("west") == Some((1, 3)) && agent.complete("west")
        })
        .await;
    let allowed = agent.peer("west").ranges.allowed.unwrap();
    let near = vec!["10.0.0.0/24".parse().unwrap()];
    assert_eq!(allowed, (RangesFrom::Learnt, near));
    assert_eq!(
        refused(&agent, "west"),
        [],
        "its own server did not lend it"
    );

    // A link that allows less: at once. As much as ever: what is missing is asked for.
    let before = west.served.rows(Role::MeshServer);
    east.link_terms("west", west.address, "cidrs: [10.0.0.2/32]");
    agent
        .until("one endpoint", |agent| agent.held("west") == Some((1, 1)))
        .await;
    agent
        .until("the refusals", |agent| {
            refused(agent, "west").first().map(|r| r.1) == Some(2)
        })
        .await;
    east.link_terms("west", west.address, "cidrs: [10.0.0.0/8]");
    agent
        .until("all again", |agent| agent.held("west") == Some((1, 3)))
        .await;
    assert_eq!(refused(&agent, "west")[0].0, Refusal::OutsideAddress);
    assert_eq!(west.served.begun(Role::MeshServer, Beginning::Asked), 1);
    assert_eq!(west.served.rows(Role::MeshServer), before + 4);

    // A quota.
    east.link_terms("west", west.address, "limits: {rows: 2}");
    agent
        .until("two rows", |agent| agent.held("west") == Some((1, 1)))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_told_that_their_own_cluster_s_list_is_doubted() {
    let world = World::new();
    let east = world.mesh("east", 1).await;
    east.publish(rows(40)).await;
    let mut agent = world.agent(&east, "east", 1).await;
    let east = east.restart().await;
    east.publish(rows(3)).await;
    let told = |agent: &Agent| {
        let troubles = agent.status().feed.troubles.into_iter();
        troubles
            .map(|(trouble, _)| trouble)
            .find(|trouble| trouble.about == "source")
    };
    agent
        .until("the doubt", |agent| told(agent).is_some())
        .await;
    let cause = told(&agent).unwrap().cause;
    assert!(cause.contains("left out 37 of the 41 rows"), "{cause}");
    agent.until("its end", |agent| told(agent).is_none()).await;
    agent.stop().await;
    east.stop().await;
}
